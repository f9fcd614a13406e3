"""Class maps on the training grid: what counts is what was annotated, and no structure is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MedSSLLib.data.preprocessing.resampling import (
    axis_footprints,
    axis_operators,
    axis_positions,
    linear,
    resample_separably,
)
from MedSSLLib.images.components import Pieces, pieces_of
from MedSSLLib.images.geometry import Geometry, Volume, orient
from MedSSLLib.images.labels import IGNORE

ALIKE = 0.9  # of a lost piece's best share in any voxel: those get it too; not from the paper
SECOND_BEST = 0.5  # ... and what a voxel must have that takes it where the best one is not free


@dataclass(frozen=True)
class Small:
    """Pieces of a class that win no voxel of a coarser grid: those that got their best voxels
    nevertheless, and those that are left unknown.
    """

    kept: int = 0
    unknown: int = 0


def preprocess_label(label: Volume, geometry: Geometry) -> np.ndarray:
    """Class map uint8 ``[d, h, w]`` on a grid made by `image.preprocess_image`; see
    :func:`label_on_grid`.
    """
    return label_on_grid(label, geometry)[0]


def label_on_grid(label: Volume, geometry: Geometry) -> tuple[np.ndarray, dict[int, Small]]:
    """Class map uint8 ``[d, h, w]`` on a grid made by `image.preprocess_image`, and what became of
    structures too small for it, by class.

    Each class is resampled over counted voxels and the greatest share wins. A voxel counts if its
    nearest source voxel or another one within it counts; else it is IGNORE. So no annotated slice
    is lost on a coarser grid. A connected piece of a class that wins no voxel gets those where its
    share is largest; where other small pieces have these, the best of what is left is IGNORE.

    Args:
        label: class indices uint8 ``[k, j, i]`` on the source grid, IGNORE where a voxel does not
            count.
        geometry: the training grid of the same case.
    """
    volume = _oriented_like(label, geometry)
    footprint = axis_footprints(volume.geometry, geometry)
    operators = axis_operators(volume.geometry, geometry, linear)
    known = volume.array != IGNORE
    counted = resample_separably(known.astype(np.float32), footprint) > 0.5
    best = np.zeros(geometry.shape, np.float32)
    result = np.full(geometry.shape, IGNORE, np.uint8)
    for value, box in enumerate(
        ndimage.find_objects(volume.array + np.uint8(1))
    ):  # IGNORE + 1 = 0: no object
        if box is None:
            continue
        target, share = _class_share(volume.array, value, box, operators)
        wins = share > best[target]
        result[target][wins] = value
        best[target][wins] = share[wins]
    result[~counted] = IGNORE
    if all(operator is None for operator in operators):
        return result, {}
    return result, _keep_small(volume, geometry, operators, result)


def _keep_small(
    volume: Volume,
    grid: Geometry,
    operators: Sequence[np.ndarray | None],
    result: np.ndarray,
) -> dict[int, Small]:
    """Give pieces of the source that ``result`` has lost their best voxels, in place."""
    found = pieces_of(volume.array)
    lost = _lost(found, volume, grid, result)
    taken = _single_voxels(result) if lost.size else np.zeros(grid.shape, bool)
    small: dict[int, Small] = {}
    for piece in lost:
        runs = np.flatnonzero(found.piece == piece)
        value = int(found.value[runs[0]])
        mask, box = _mask_of(found, runs, volume.array)
        target, share = _class_share(mask, 1, box, operators)
        share = np.where(result[target] == IGNORE, 0, share)
        free = np.where(taken[target], 0, share)
        kept = free.max(initial=0) >= max(SECOND_BEST * share.max(initial=0), 1e-9)
        places = (free >= ALIKE * free.max(initial=0)) & (free > 0)
        result[target][places] = value if kept else IGNORE
        taken[target] |= places & kept
        before = small.get(value, Small())
        small[value] = Small(before.kept + int(kept), before.unknown + int(not kept))
    return small


def _single_voxels(result: np.ndarray) -> np.ndarray:
    """Where the map has pieces of one voxel, which are not to be lost for others."""
    found = pieces_of(result)
    mask = np.zeros(result.shape, bool)
    mask.reshape(-1)[found.start[found.sizes()[found.piece] == 1]] = True
    return mask


def _lost(found: Pieces, volume: Volume, grid: Geometry, result: np.ndarray) -> np.ndarray:
    """Numbers of the pieces of which no voxel's nearest one on the grid has their class."""
    source = volume.geometry
    survived = np.zeros(int(found.piece.max(initial=-1)) + 1, bool)
    nearest = [
        np.rint((np.arange(n) - positions[0]) / ratio).astype(int).clip(0, len(positions) - 1)
        for positions, n, ratio in axis_positions(source, grid)
    ]
    step = 2**20
    for first in range(0, len(found.start), step):
        runs = slice(first, first + step)
        length = found.stop[runs] - found.start[runs]
        offset = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
        place = np.repeat(found.start[runs], length) + offset
        k, j, i = np.unravel_index(place, source.shape)
        there = result[nearest[0][k], nearest[1][j], nearest[2][i]]
        same = there == np.repeat(found.value[runs], length)
        survived[np.repeat(found.piece[runs], length)[same]] = True
    return np.flatnonzero(~survived)


def _oriented_like(label: Volume, grid: Geometry) -> Volume:
    """``label`` with its axes along those of ``grid``."""
    volume = orient(label, grid.code)
    if not np.allclose(volume.geometry.direction, grid.direction, atol=1e-4):
        raise ValueError(
            f"grid directions {grid.direction} are not those of the source "
            f"{label.geometry.direction}"
        )
    return volume


def _class_share(
    label: np.ndarray, value: int, box: tuple[slice, ...], operators: Sequence[np.ndarray | None]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The part of the target that a class, which lies within ``box``, reaches, and its share of
    each voxel.
    """
    target: list[slice] = []
    parts: list[np.ndarray | None] = []
    for inner, operator in zip(box, operators, strict=True):
        rows = None if operator is None else np.flatnonzero(operator[:, inner].any(1))
        outer = (
            inner
            if rows is None
            else slice(int(rows[0]), int(rows[-1]) + 1)
            if rows.size
            else slice(0)
        )
        target.append(outer)
        parts.append(None if operator is None else operator[outer, inner])
    return tuple(target), resample_separably((label[box] == value).astype(np.float32), parts)


def _mask_of(
    found: Pieces, runs: np.ndarray, like: np.ndarray
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Map of the source that is 1 in a piece, and the box that holds it."""
    mask = np.zeros(like.shape, np.uint8)
    for start, stop in zip(found.start[runs], found.stop[runs], strict=True):
        mask.reshape(-1)[start:stop] = 1
    first = np.stack(np.unravel_index(found.start[runs], like.shape), 1)
    last = np.stack(np.unravel_index(found.stop[runs] - 1, like.shape), 1)
    box = zip(first.min(0), last.max(0) + 1, strict=True)
    return mask, tuple(slice(int(a), int(b)) for a, b in box)
