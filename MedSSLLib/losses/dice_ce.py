"""Losses as pure functions of tensors; the contrastive ones live in
:mod:`MedSSLLib.losses.contrastive`.

Shapes: b samples, k classes, ``*s`` any spatial shape (2D or 3D alike). Nothing here changes its
inputs, waits for the device or picks elements by a boolean mask, so every function also runs on
``device="meta"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.precision import at_least_float32

Reduce = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """The gather and the reduction of a single process."""
    return x


def dice_ce(
    logits: Tensor,
    labels: Tensor,
    *,
    reduce: Reduce = identity,
    background: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """Soft Dice loss plus cross-entropy over the voxels that count.

    ``mean_c [1 - (2 I_c + e) / (P_c + Y_c + e)] - 1/N sum_v log p(v, label_v)``, where I, P and Y
    are the sums over batch and space of overlap, prediction and reference of class c and N the
    number of counted voxels. A class absent from the reference costs P / (P + e): pushed out where
    predicted, free where it is not.

    Args:
        logits: ``[b, k, *s]``, any floating type; computed in at least float32.
        labels: class map ``[b, *s]``, integer, `IGNORE` where a voxel does not count.
        reduce: autograd-aware sum over processes; applied once, to a vector of 3 k + 2 sums, which
            makes the value that of the global batch.
        background: whether class 0 takes part in the Dice term.
        smooth: e above, in voxels. Not from the paper.

    Returns:
        Scalar in [0, inf); exactly 0 with zero gradients where no voxel counts.
    """
    logits = at_least_float32(logits)
    targets = one_hot(labels, logits.shape[1], logits.dtype)
    weight = (labels != IGNORE).to(logits.dtype)
    return _dice_ce(logits, targets, weight, reduce, 0 if background else 1, smooth)


def dice_ce_soft(
    logits: Tensor,
    targets: Tensor,
    *,
    reduce: Reduce = identity,
    background: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """:func:`dice_ce` for soft targets: soft pseudo-labels, Mixup.

    Args:
        logits: ``[b, k, *s]``.
        targets: ``[b, k, *s]``, non-negative.  Their sum over classes is the voxel's weight: 1 for
            a probability, 0 where the voxel does not count, in between for a confidence.
        reduce: autograd-aware sum over processes.
        background: whether class 0 takes part in the Dice term.
        smooth: Dice smoothing in voxels. Not from the paper.
    """
    logits = at_least_float32(logits)
    targets = targets.to(logits.dtype)
    return _dice_ce(logits, targets, targets.sum(1), reduce, 0 if background else 1, smooth)


def mixed_targets(first: Tensor, second: Tensor, share: Tensor, classes: int) -> Tensor:
    """Soft targets of Mixup, ``share * first + (1 - share) * second`` (Zhang et al. 2017).

    A voxel that does not count in one of the two maps keeps the other's part alone, at that part's
    weight.

    Args:
        first: class map ``[b, *s]`` with `IGNORE`.
        second: class map of the images mixed in, ``[b, *s]``.
        share: ``[b]`` in [0, 1], floating; its type is that of the result.
        classes: number of classes k.

    Returns:
        ``[b, k, *s]`` for :func:`dice_ce_soft`.
    """
    share = share.view(-1, *[1] * first.ndim)
    ours, theirs = (one_hot(labels, classes, share.dtype) for labels in (first, second))
    return share * ours + (1 - share) * theirs


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Class map ``[b, *s]`` to indicators ``[b, k, *s]``; all zero where the value is none of the
    classes.
    """
    values = torch.arange(classes, device=labels.device, dtype=labels.dtype)
    return (labels.unsqueeze(1) == values.view(1, -1, *[1] * (labels.ndim - 1))).to(dtype)


def cosine_regression(prediction: Tensor, target: Tensor, dim: int = 1) -> Tensor:
    """``2 - 2 cos(prediction, sg target)`` along `dim`, unreduced, in [0, 4] (BYOL Eq. 2; PGL per
    voxel).
    """
    prediction = F.normalize(prediction, dim=dim)
    return 2 - 2 * (prediction * F.normalize(target.detach(), dim=dim)).sum(dim)


def _dice_ce(
    logits: Tensor, targets: Tensor, weight: Tensor, reduce: Reduce, first_class: int, smooth: float
) -> Tensor:
    k = logits.shape[1]
    targets, weight = targets.flatten(2), weight.flatten(1)  # (b, k, n), (b, n)
    log_p = F.log_softmax(logits.flatten(2), dim=1)
    p = log_p.exp()
    overlap = (p * targets).sum((0, 2))
    predicted = torch.einsum("bkn,bn->k", p, weight)
    entropy = -(log_p * targets).sum()
    sums = reduce(
        torch.cat([overlap, predicted, targets.sum((0, 2)), torch.stack([entropy, weight.sum()])])
    )
    overlap, predicted, reference = sums[: 3 * k].view(3, k)[:, first_class:]
    dice = (2 * overlap + smooth) / (predicted + reference + smooth)
    # A mean over weights: where they sum to nothing the numerator is zero as well.
    tiny = torch.finfo(logits.dtype).tiny
    return (1 - dice).mean() + sums[3 * k] / sums[3 * k + 1].clamp_min(tiny)


def segmentation_loss(
    logits: Sequence[Tensor], labels: Tensor, reduce: Reduce = identity
) -> Tensor:
    """Dice + cross-entropy at every decoder level, weights 1, 1/2, 1/4 ... normalised.

    Args:
        logits: ``[b, k, *s]`` per level, finest first.
        labels: class maps ``[b, *s]`` uint8 with IGNORE; coarser levels take every n-th voxel.
        reduce: autograd-aware sum over processes.
    """
    terms, total = [], 0.0
    for index, level in enumerate(logits):
        weight = 0.5**index
        terms.append(weight * dice_ce(level, _thinned(labels, level), reduce=reduce))
        total += weight
    return torch.stack(terms).sum() / total


def soft_segmentation_loss(
    logits: Sequence[Tensor], targets: Tensor, reduce: Reduce = identity
) -> Tensor:
    """:func:`~MedSSLLib.losses.dice_ce.segmentation_loss` for soft targets.

    Args:
        logits: ``[b, k, *s]`` per level, finest first; they weigh 1, 1/2, 1/4 ... normalised.
        targets: ``[b, k, *s]``; coarser levels take every n-th voxel.
        reduce: autograd-aware sum over processes.
    """
    terms, total = [], 0.0
    for index, level in enumerate(logits):
        weight = 0.5**index
        terms.append(weight * dice_ce_soft(level, _thinned(targets, level), reduce=reduce))
        total += weight
    return torch.stack(terms).sum() / total


def _thinned(full: Tensor, level: Tensor) -> Tensor:
    """Every n-th voxel of ``[b, ..., *s]``, so that as many are left as a coarser level has."""
    axes = level.dim() - 2
    index = [slice(None)] * (full.dim() - axes)
    for size, coarse in zip(full.shape[-axes:], level.shape[-axes:], strict=True):
        index.append(slice(None, None, size // coarse))
    return full[tuple(index)]
