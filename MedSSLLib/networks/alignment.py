"""Prior-guided alignment: the same part of a volume cut out of the feature maps of two views of it.

RoIAlign in 2D and 3D with known boxes and flips (PGL, arXiv 2011.12640; RoIAlign, arXiv
1703.06870). WindowBoxes are parallel to the axes, so linear sampling and the average over a bin's
sub-samples are a product of one small matrix per axis: exact, deterministic on every device, and
many times cheaper than gathering points.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from MedSSLLib.networks.unet import memory_format


class WindowBoxes(NamedTuple):
    """Axis-parallel boxes ``[lo, hi)``, each ``[b, s]``, in voxels of a window; voxel i is ``[i, i
    + 1)``.
    """

    lo: Tensor
    hi: Tensor


class Aligned(NamedTuple):
    """Features of a region, ``[b, c, *n]``, and a mask ``[b, 1, *n]``: 1 where they may be used,
    else 0.
    """

    features: Tensor
    mask: Tensor


def common_box(views: WindowBoxes) -> WindowBoxes:
    """Intersection of all views' boxes, ``[b, v, s]`` to ``[b, s]``; where they do not meet, ``hi
    <= lo``.
    """
    return WindowBoxes(views.lo.amax(1), views.hi.amin(1))


def align(
    features: Tensor,
    views: WindowBoxes,
    region: WindowBoxes,
    flip: Tensor,
    bins: Sequence[int],
    samples: int = 2,
) -> Aligned:
    """Resample every view's features at the bins of a region of the source window.

    A view covers its box; its features of ``S`` voxels per axis do too, reversed on flipped axes.
    The region is cut into bins, counted in the direction of the *source*, so that bin k means the
    same place in every view. A bin is the mean of ``samples`` equally spaced points per axis, each
    interpolated linearly.

    Args:
        features: feature maps ``[b, c, *s]``, floating point.
        views: the box that each feature map covers.
        region: the box to cut out, usually the :func:`common_box` of two views.
        flip: 1 where the view's axis is reversed, else 0, ``[b, s]``.
        bins: number of bins per axis.
        samples: points per bin and axis.

    Returns:
        Features of the dtype given, channels last in memory as the heads that follow want them
        (with three levels of a 32^3 patch a whole step takes 0.7 of the time), and a mask in that
        dtype. Masked are bins with a point outside the outer voxel centres ``[1/2, S - 1/2]``,
        where interpolation would have to extrapolate (with one sample: bins whose *centre* lies
        there); of a region that views do not share, these are all bins.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    weights, inside = [], []
    for axis, (size, n) in enumerate(zip(features.shape[2:], bins, strict=True)):
        points = _points([x[:, axis].to(dtype) for x in (*views, *region, flip)], size, n * samples)
        weights.append(_hat(points, size).unflatten(1, (n, samples)).mean(2))
        inside.append(_interpolated(points, size).unflatten(1, (n, samples)).all(2))
    with _full_precision(features.device.type):
        out = _contract(features.to(dtype), weights).to(features.dtype)
    return Aligned(
        out.contiguous(memory_format=memory_format(len(bins))), _outer(inside).to(features.dtype)
    )


def _points(edges: list[Tensor], size: int, n: int) -> Tensor:
    """Centres of `n` equal parts of the region on one axis, in feature voxels of the map, ``[b,
    n]``.
    """
    lo, hi, start, stop, flip = (x[:, None] for x in edges)
    share = (torch.arange(n, device=lo.device, dtype=lo.dtype) + 0.5) / n
    points = (start - lo + share * (stop - start)) * (size / (hi - lo))
    return torch.where(flip > 0, size - points, points)


def _hat(points: Tensor, size: int) -> Tensor:
    """Linear interpolation weights of the voxel centres, constant beyond the outer ones, ``[b, n,
    size]``.
    """
    centres = torch.arange(size, device=points.device, dtype=points.dtype) + 0.5
    clamped = points.clamp(0.5, size - 0.5)
    return (1 - (clamped[..., None] - centres).abs()).clamp_min(0)


def _interpolated(points: Tensor, size: int) -> Tensor:
    """Whether a point lies between the first and last voxel centre, within rounding."""
    slack = 16 * size * torch.finfo(points.dtype).eps
    return (points >= 0.5 - slack) & (points <= size - 0.5 + slack)


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Autocast switched off: interpolation weights rounded to half precision would not add up to
    one.
    """
    return (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else nullcontext()
    )


def _contract(features: Tensor, weights: list[Tensor]) -> Tensor:
    """Apply one matrix ``[b, n, size]`` per axis; each turn moves the first spatial axis to the
    end.
    """
    for matrix in weights:
        rows = features.movedim(2, -1)
        features = (rows.flatten(1, -2) @ matrix.mT).unflatten(1, rows.shape[1:-1])
    return features


def _outer(inside: list[Tensor]) -> Tensor:
    """Conjunction of the axes' masks ``[b, n]`` as ``[b, 1, *n]``."""
    mask = inside[0].new_ones(len(inside[0]), 1)
    for axis in inside:
        mask = mask[..., None] & axis.reshape(len(axis), *(1,) * (mask.dim() - 1), -1)
    return mask
