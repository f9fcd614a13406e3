"""Contrastive losses as pure functions: image level, pixel level with GradFilter, local by class.

Embeddings are normalised in here, so callers pass raw head outputs; everything is computed in at
least float32, also under autocast. Nothing changes its inputs, draws random numbers, waits for the
device or picks elements by a boolean mask. Papers: SimCLR (Chen et al. 2020), GCL (Wu et al. 2023,
arXiv 2309.08888), local contrast (Chaitanya et al. 2021, arXiv 2112.09645).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.losses.precision import full_precision

Pace = Literal["linear", "root"]


def info_nce(z: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's NT-Xent: the positives of a view are the other views of its image.

    Args:
        z: embeddings of n images in v >= 2 views, ``[n, v, d]``.
        temperature: tau > 0.

    Returns:
        Mean over the n v anchors, scalar >= 0.
    """
    return supervised_contrast(z, None, temperature)


@full_precision
def supervised_contrast(z: Tensor, labels: Tensor | None, temperature: float = 0.1) -> Tensor:
    """GCL Eq. 1: positives P(i) of view i are its image's other views and all views of the same
    meta label.

    ``L_i = log sum_{a != i} exp(z_i.z_a / tau) - 1/|P(i)| sum_{p in P(i)} z_i.z_p / tau``

    Args:
        z: embeddings ``[n, v, d]``, v >= 2.
        labels: meta label per image ``[n]``, integer; -1 = missing, such a view has only its
            image's other views as positives. None: no labels at all.
        temperature: tau > 0.

    Returns:
        Mean over the n v anchors, scalar.
    """
    positive = positive_pairs(labels, z.shape[0], z.shape[1], z.device)
    z = F.normalize(z.flatten(0, 1), dim=1)
    similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_total = similarity.masked_fill(itself, -math.inf).logsumexp(1)
    weight = positive.to(z.dtype) / positive.sum(1, keepdim=True)
    return (log_total - (similarity * weight).sum(1)).mean()


def positive_pairs(labels: Tensor | None, n: int, views: int, device: torch.device) -> Tensor:
    """Which views are positives of which (Eq. 1), ``[n v, n v]`` bool, without the diagonal.

    Raises:
        ValueError: fewer than two views, so that an anchor may have no positive.
    """
    if views < 2:
        raise ValueError(f"{views} view(s) of an image; a contrastive loss needs at least 2")
    index = torch.arange(n * views, device=device)
    same = index.unsqueeze(1) // views == index // views
    if labels is not None:
        value = labels.unsqueeze(1).expand(n, views).flatten()
        same = same | ((value.unsqueeze(1) == value) & (value >= 0))
    return same & (index.unsqueeze(1) != index)


def fraction_with_positive(labels: Tensor, patients: Tensor | None = None) -> Tensor:
    """Share of images ``[n]`` that have another image (with `patients`: of another patient) of the
    same label.

    -1 = missing.
    """
    other = torch.arange(len(labels), device=labels.device) if patients is None else patients
    same = (labels.unsqueeze(1) == labels) & (labels >= 0)
    return (same & (other.unsqueeze(1) != other)).any(1).float().mean()


@full_precision
def retrieval(z: Tensor, labels: Tensor) -> Tensor:
    """Share of labelled views whose nearest view of another labelled image has the same label, in
    [0, 1].

    Args:
        z: embeddings ``[n, v, d]``.
        labels: ``[n]``, -1 = missing.
    """
    n, views = z.shape[:2]
    z = F.normalize(z.detach().flatten(0, 1), dim=1)
    value = labels.unsqueeze(1).expand(n, views).flatten()
    index = torch.arange(n * views, device=z.device) // views
    usable = (index.unsqueeze(1) != index) & (value >= 0)
    nearest = (z @ z.T).masked_fill(~usable, -2.0).argmax(1)
    known = (value >= 0).to(z.dtype)
    return ((value[nearest] == value) * known).sum() / known.sum().clamp_min(1)


def choose_partner(positive: Tensor, noise: Tensor) -> Tensor:
    """A positive view for every view, uniformly: ``[n]`` from ``positive`` and noise in [0, 1),
    ``[n, n]``.
    """
    return torch.where(positive, noise, -1.0).argmax(1)


@full_precision
def positive_pool(anchors: Tensor, partners: Tensor, size: int) -> Tensor:
    """The pool Omega of GCL Eqs. 5-6: the `size` partner pixels of highest cosine affinity.

    Args:
        anchors: anchor pixels in the image-projection space before pooling, ``[n, a, d]``.
        partners: pixels of the positive image in the same space, ``[n, s, d]``.
        size: K, 1 <= K <= s.

    Returns:
        Indices into the s pixels, ``[n, a, K]``.
    """
    anchors, partners = F.normalize(anchors.detach(), dim=2), F.normalize(partners.detach(), dim=2)
    return (anchors @ partners.mT).topk(size, dim=2, sorted=False).indices


@full_precision
def pixel_contrast(
    anchors: Tensor, partners: Tensor, kept: Tensor, dropped: Tensor, temperature: float = 0.1
) -> Tensor:
    """GCL Eq. 5: ``log sum_{a in kept + N} exp(v_i.v_a / tau) - 1/|kept| sum_{p in kept} v_i.v_p /
    tau``.

    N are the partner's pixels outside the pool. Pool members that GradFilter dropped are neither
    positives nor negatives.

    Args:
        anchors: pixel projections of the anchors, ``[n, a, d]``.
        partners: pixel projections of the positive image, ``[n, s, d]``.
        kept: indices of the positives in use, ``[n, a, k]``, k >= 1.
        dropped: indices of the rest of the pool, ``[n, a, K - k]``.
        temperature: tau > 0.

    Returns:
        Mean over all anchors, scalar.
    """
    similarity = (
        F.normalize(anchors, dim=2) @ F.normalize(partners, dim=2).mT / temperature
    )  # (n, a, s)
    log_total = similarity.scatter(2, dropped, -math.inf).logsumexp(2)
    return (log_total - similarity.gather(2, kept).mean(2)).mean()


@full_precision
def positive_gradients(
    anchors: Tensor, partners: Tensor, pool: Tensor, temperature: float = 0.1
) -> Tensor:
    """GCL Eq. 7: gradient that each positive of the pixel loss induces at the anchor's raw
    projection.

    For positive p: ``(1/tau) (sum_a P_a v_a - v_p)`` with P the softmax over all partner pixels,
    without its part along v_i and divided by the projection's length, since v_i is normalised. The
    mean over the pool is the gradient of :func:`pixel_contrast` for that anchor.

    Args:
        anchors: raw pixel projections ``[n, a, d]``.
        partners: ``[n, s, d]``.
        pool: ``[n, a, K]``.
        temperature: tau > 0.

    Returns:
        ``[n, a, K, d]``, detached.
    """
    length = anchors.detach().norm(dim=2, keepdim=True).clamp_min(1e-12)
    v, partners = anchors.detach() / length, F.normalize(partners.detach(), dim=2)
    expected = (v @ partners.mT / temperature).softmax(2) @ partners  # (n, a, d)
    index = pool.flatten(1).unsqueeze(2).expand(-1, -1, partners.shape[2])
    positives = partners.gather(1, index).view(*pool.shape, -1)
    gradient = (expected.unsqueeze(2) - positives) / temperature
    v = v.unsqueeze(2)
    return (gradient - (gradient * v).sum(3, keepdim=True) * v) / length.unsqueeze(2)


def filter_positives(pool: Tensor, gradients: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """GradFilter: split the pool into the `count` positives of lowest gradient norm and the rest.

    Args:
        pool: ``[n, a, K]``.
        gradients: gradient of each positive, ``[n, a, K, d]``.
        count: n(t), 1 <= n(t) <= K.

    Returns:
        kept ``[n, a, count]`` and dropped ``[n, a, K - count]``.
    """
    ordered = pool.gather(2, gradients.norm(dim=3).argsort(dim=2))
    return ordered[..., :count], ordered[..., count:]


def positives_in_use(
    largest: int, progress: float, start: float = 0.0, pace: Pace = "linear"
) -> int:
    """GCL Eq. 8: positives in use, ``n(t) = max(1, ceil(K f(t/T)))``.

    ``f(t) = s + (1 - s) t`` (linear) or ``sqrt(s^2 + (1 - s^2) t)`` (root), with s = `start`.

    Args:
        largest: K >= 1.
        progress: t/T in [0, 1].
        start: share of the pool in use at the beginning, in [0, 1].
        pace: which f.
    """
    share = (
        start + (1 - start) * progress
        if pace == "linear"
        else math.sqrt(start**2 + (1 - start**2) * progress)
    )
    return min(largest, max(1, math.ceil(largest * share - 1e-9)))
