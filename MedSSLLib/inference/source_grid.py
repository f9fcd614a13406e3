"""Probabilities of the training grid on the grid of the source, some slices at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.data.preprocessing.resampling import axis_positions
from MedSSLLib.images.geometry import Geometry, Volume, orient, oriented
from MedSSLLib.inference.sliding_window import SLAB


def source_slabs(slabs: Iterable[Tensor], grid: Geometry, source: Geometry) -> Iterator[Tensor]:
    """Linear interpolation of slabs of a training grid at the voxels of its source.

    Args:
        slabs: consecutive slices ``[k, n, h, w]`` of the training grid.
        grid: the training grid, which covers the source and has its axes.
        source: the source's grid, in any order and direction of axes.

    Yields:
        ``[k, n, h, w]``: consecutive slices of ``oriented(source, grid.code)``.
    """
    slices, rows, columns = (
        torch.from_numpy(positions.clip(0, n - 1))
        for positions, n, _ in axis_positions(grid, oriented(source, grid.code))
    )
    held, first, done = None, 0, 0
    for slab in slabs:
        held = slab if held is None else torch.cat([held[:, -1:], slab], 1)
        last = first + held.shape[1] - 1  # grid slices first..last are held
        ready = int((slices <= last + 1e-6).sum())
        step = max(1, SLAB // (len(held) * len(rows) * len(columns)))
        for start in range(done, ready, step):
            part = slices[start : min(start + step, ready)] - first
            yield _at(_at(_at(held, part, 1), rows, 2), columns, 3)
        first, done = last, max(done, ready)


def in_source_order(array: np.ndarray, grid: Geometry, source: Geometry) -> np.ndarray:
    """A map on ``oriented(source, grid.code)`` on the grid of the source itself."""
    return orient(Volume(array, oriented(source, grid.code)), source.code).array


def _at(values: Tensor, positions: Tensor, axis: int) -> Tensor:
    """Linear interpolation at positions, in voxels, along an axis."""
    n = values.shape[axis]
    low = positions.floor().clamp(0, n - 1).long()
    share = (positions - low).to(values.dtype)
    if bool((share.abs() < 1e-6).all()):
        return values if len(low) == n else values.index_select(axis, low)
    shape = [1] * values.ndim
    shape[axis] = -1
    below = values.index_select(axis, low)
    above = values.index_select(axis, (low + 1).clamp(max=n - 1))
    return below.lerp_(above, share.reshape(shape))
