"""Local contrastive loss on pixels and class means (Chaitanya et al. 2021, arXiv 2112.09645).

Pure functions; n images, ``*s`` 2D or 3D, classes 0 (background, never contrasted) to k - 1,
`IGNORE` for pixels that belong to none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.losses.dice_ce import Reduce, identity
from MedSSLLib.losses.precision import full_precision


def sample_anchors(labels: Tensor, classes: int, noise: Tensor) -> Tensor:
    """Random pixels of every foreground class in every image, with replacement.

    Args:
        labels: ``[n, *s]``.
        classes: k, including background.
        noise: uniform in [0, 1), ``[n, k - 1, a]`` for a pixels a class (the released code draws
            3).

    Returns:
        Indices into the flattened space, ``[n, k - 1, a]``; arbitrary where the class is absent.
    """
    places = _indicators(labels, classes, torch.bool).cumsum(2, dtype=torch.int32)  # (n, k - 1, m)
    total = places[..., -1:]
    wanted = (noise * total).to(torch.int32).clamp_max(total - 1) + 1
    return torch.searchsorted(places, wanted).clamp_max(places.shape[2] - 1)


@full_precision
def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each foreground class over all its pixels; gradients flow.

    Args:
        features: ``[n, d, *s]``.
        labels: ``[n, *s]``.
        classes: k, including background.

    Returns:
        means ``[n, k - 1, d]`` (0 where absent) and present ``[n, k - 1]`` bool.
    """
    inside = _indicators(labels, classes, features.dtype)
    count = inside.sum(2)
    return inside @ features.flatten(2).mT / count.clamp_min(1).unsqueeze(2), count > 0


@full_precision
def local_contrast(
    features: Tensor,
    labels: Tensor,
    anchors: Tensor,
    partner: Tensor | None = None,
    temperature: float = 0.1,
    reduce: Reduce = identity,
) -> Tensor:
    """Pull pixels towards the mean of their class and away from those of the other foreground
    classes.

    For an anchor pixel z of class c, with e(.) = exp(cosine / tau), over the foreground classes
    present:

    * intra (no `partner`): ``-log( e(z, zbar_c) / sum_c' e(z, zbar_c') )`` with the image's own
      means;
    * inter: the numerator adds the partner's ``zbar_c``, the denominator all class means of the
      partner.

    Two views of an image count as one image when joined along a spatial axis. With a single
    foreground class the loss is 0 by construction.

    Args:
        features: ``[n, d, *s]``, raw.
        labels: labels or pseudo-labels ``[n, *s]``.
        anchors: pixel indices from :func:`sample_anchors`, ``[n, k - 1, a]``.
        partner: the image that each image is matched with, ``[n]``.
        temperature: tau > 0 (0.1 in the released code).
        reduce: autograd-aware sum over processes.

    Returns:
        Plain mean over the anchors of all classes, images and pairs, scalar >= 0; 0 where there is
        no anchor.
    """
    z = _anchor_features(features, anchors)
    means, present = class_means(features, labels, anchors.shape[1] + 1)
    logits = [_logits(z, means, present, temperature)]
    if partner is not None:
        logits.append(_logits(z, means[partner], present[partner], temperature))
    same = torch.stack(
        [x.diagonal(dim1=1, dim2=3).mT for x in logits]
    )  # the anchor's own class, (., n, c, a)
    loss = torch.cat(logits, 3).logsumexp(3) - same.logsumexp(0)
    weight = present.unsqueeze(2).to(loss.dtype).expand_as(loss)
    total, count = reduce(torch.stack([(loss * weight).sum(), weight.sum()])).unbind()
    return total / count.clamp_min(1)


def _anchor_features(features: Tensor, anchors: Tensor) -> Tensor:
    """Normalised features of the anchors, ``[n, d, c, a]``."""
    index = anchors.flatten(1).unsqueeze(1).expand(-1, features.shape[1], -1)
    return F.normalize(features.flatten(2).gather(2, index), dim=1).unflatten(2, anchors.shape[1:])


def _logits(z: Tensor, means: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Cosines over tau of anchors with class means, ``[n, c, a, c]``; lowest where the class is
    absent.
    """
    cosine = torch.einsum("ndca,nkd->ncak", z, F.normalize(means, dim=2))
    lowest = torch.finfo(z.dtype).min / 4  # finite: an image without any class must not give NaN
    return (cosine / temperature).masked_fill(~present[:, None, None], lowest)


def _indicators(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """``[n, *s]`` to ``[n, k - 1, m]``: which pixels belong to each foreground class."""
    values = torch.arange(1, classes, device=labels.device, dtype=labels.dtype)
    return (labels.flatten(1).unsqueeze(1) == values.view(1, -1, 1)).to(dtype)
