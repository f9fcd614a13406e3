"""Segmentations on another grid than their image, brought onto it without losing small pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.writing import resample_volume

if TYPE_CHECKING:
    from MedSSLLib.images.components import Pieces

_STEP = 2**12  # runs whose voxels are worked on at a time


def label_on_image(label: Volume, grid: Geometry) -> Volume:
    """A label map at the voxels of `grid`, by the nearest voxel; 0 outside `label`.

    A connected piece that no voxel of a coarser grid shows gets the one in which most of it lies,
    if that is background (not from a paper).
    """
    result = resample_volume(label, grid, interpolation="nearest")
    if _same_voxels(label.geometry, grid) or not label.array.any():
        return result
    from MedSSLLib.images.components import pieces_of  # loads SciPy, rarely needed here

    array, found = result.array.copy(), pieces_of(label.array)
    order = np.argsort(found.piece, kind="stable")
    lost = np.flatnonzero(~_shown(found, label, result))
    first, last = (np.searchsorted(found.piece[order], lost, side) for side in ("left", "right"))
    for own in (order[a:b] for a, b in zip(first, last, strict=True)):
        places = _places(found, own, label.geometry, grid)
        there, counts = np.unique(places, axis=0, return_counts=True)
        free = counts * (array[tuple(there.T)] == 0)
        if free.any():
            array[tuple(there[free.argmax()])] = found.value[own[0]]
    return Volume(array, grid)


def _same_voxels(first: Geometry, grid: Geometry) -> bool:
    """Whether voxels of both grids are the same where they overlap."""
    corners = grid.indices(first.corners())
    steps = np.array(first.size) - 1
    whole = np.abs(corners - np.rint(corners)).max() < 0.1
    return bool(whole and np.abs(np.ptp(corners, axis=0) - steps).max() < 0.1)


def _shown(found: Pieces, label: Volume, result: Volume) -> np.ndarray:
    """Which pieces a voxel of the result shows."""
    shown = np.zeros(int(found.piece.max(initial=-1)) + 1, bool)
    for first in range(0, len(found.start), _STEP):
        runs = np.arange(first, min(first + _STEP, len(found.start)))
        k, j, i = _places(found, runs, label.geometry, result.geometry).T
        length = (found.stop - found.start)[runs]
        same = result.array[k, j, i] == np.repeat(found.value[runs], length)
        shown[np.repeat(found.piece[runs], length)[same]] = True
    return shown


def _places(found: Pieces, runs: np.ndarray, own: Geometry, grid: Geometry) -> np.ndarray:
    """The voxels [n, 3] = k, j, i of `grid` that are nearest to those of some runs."""
    length = (found.stop - found.start)[runs]
    offset = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
    voxels = np.stack(
        np.unravel_index(np.repeat(found.start[runs], length) + offset, own.shape), -1
    )
    nearest = np.rint(grid.indices(own.points(voxels[:, ::-1]))).astype(int)
    return nearest.clip(0, np.array(grid.size) - 1)[:, ::-1]
