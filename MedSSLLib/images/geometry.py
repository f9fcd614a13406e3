"""Voxel grids in the patient's space, and exact reorientation. Pure arithmetic: nothing is opened
or resampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from MedSSLLib.core.errors import InputError

T = TypeVar("T")
_LPS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume, in SimpleITK's conventions.

    Attributes:
        size: voxels along i, j, k.
        spacing: mm along i, j, k.
        origin: centre of voxel (0, 0, 0), mm, LPS.
        direction: 9 numbers, row-major 3 x 3; column a is the unit vector of axis a in LPS.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape, [k, j, i]."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def matrix(self) -> np.ndarray:
        """4 x 4 affine from voxel indices (i, j, k, 1) to millimetres in LPS."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing)) / 1000.0

    def points(self, indices: np.ndarray) -> np.ndarray:
        """LPS millimetres [..., 3] of (continuous) voxel indices [..., 3] = i, j, k."""
        return np.asarray(indices, dtype=float) @ self.matrix[:3, :3].T + np.asarray(self.origin)

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Continuous voxel indices [..., 3] = i, j, k of LPS millimetres [..., 3]."""
        return (np.asarray(points, dtype=float) - np.asarray(self.origin)) @ np.linalg.inv(
            self.matrix[:3, :3]
        ).T

    def corners(self) -> np.ndarray:
        """LPS millimetres [8, 3] of the centres of the corner voxels."""
        return self.points(np.array(list(itertools.product(*[(0, n - 1) for n in self.size]))))

    def close_to(self, other: Geometry, *, tolerance: float = 0.1) -> bool:
        """Same size, and no corner voxel further apart than `tolerance` of the smallest spacing."""
        return self.difference(other, tolerance=tolerance) == ""

    def difference(self, other: Geometry, *, tolerance: float = 0.1) -> str:
        """What separates this grid from `other`, in words with both values; empty when they are
        close.
        """
        if self.size != other.size:
            return f"size {self.size}, expected {other.size}"
        limit = tolerance * min(*self.spacing, *other.spacing)
        if np.linalg.norm(self.corners() - other.corners(), axis=1).max() <= limit:
            return ""
        scales = {"spacing": 1e-4 * max(other.spacing), "direction": 1e-4, "origin": limit}
        pairs = {
            name: (np.array(getattr(self, name)), np.array(getattr(other, name))) for name in scales
        }
        worst = max(
            scales, key=lambda name: np.abs(pairs[name][0] - pairs[name][1]).max() / scales[name]
        )
        return f"{worst} {_rounded(pairs[worst][0])}, expected {_rounded(pairs[worst][1])}"

    @property
    def code(self) -> str:
        """The three letters (of L/R, P/A, S/I) that the axes i, j, k point to most, e.g. "LPS" or
        "RAS".
        """
        letters = {pair: letter for letter, pair in _LPS.items()}
        direction = np.reshape(self.direction, (3, 3))
        return "".join(
            letters[row, 1 if direction[row, axis] >= 0 else -1]
            for axis, row in enumerate(_closest_rows(direction))
        )


@dataclass(frozen=True)
class Volume:
    """A scalar volume: `array` is [k, j, i] on the grid `geometry` (array.shape ==
    geometry.shape).
    """

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.geometry.shape:
            raise ValueError(
                f"array shape {self.array.shape} does not fit the grid {self.geometry.shape}"
            )


def orient(volume: Volume, code: str = "LPS") -> Volume:
    """`volume` with its axes reordered and flipped so that i, j, k point as near as possible to
    `code`.

    Exact: voxels keep their values and their places in space; an oblique grid stays oblique.
    Raises InputError for a code that does not name each of L/R, P/A, S/I once.
    """
    geometry = oriented(volume.geometry, code)
    order, flips = _moves(volume.geometry, code)
    array = volume.array.transpose([2 - order[2 - axis] for axis in range(3)])
    array = array[tuple(slice(None, None, -1 if flips[2 - axis] else 1) for axis in range(3))]
    return Volume(np.ascontiguousarray(array), geometry)


def oriented(geometry: Geometry, code: str = "LPS") -> Geometry:
    """The grid of `orient`."""
    order, flips = _moves(geometry, code)
    first = [
        geometry.size[axis] - 1 if flip else 0 for axis, flip in zip(order, flips, strict=True)
    ]
    start = np.zeros(3)
    start[list(order)] = first
    signs = np.where(flips, -1.0, 1.0)
    direction = np.reshape(geometry.direction, (3, 3))[:, list(order)] * signs + 0.0
    return Geometry(
        size=triple(geometry.size[axis] for axis in order),
        spacing=triple(geometry.spacing[axis] for axis in order),
        origin=triple(float(x) for x in geometry.points(start)),
        direction=tuple(float(x) for x in direction.ravel()),
    )


def moved(geometry: Geometry, start: tuple[int, int, int], size: tuple[int, int, int]) -> Geometry:
    """The part of a grid (or its continuation) that starts at voxel `start` = i, j, k with `size`
    voxels.
    """
    return replace(
        geometry, size=size, origin=triple(float(x) for x in geometry.points(np.array(start)))
    )


def _moves(geometry: Geometry, code: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each new axis: the old axis it takes, and whether that is flipped."""
    wanted = [_LPS.get(letter) for letter in code.upper()]
    rows = [pair[0] for pair in wanted if pair]
    if len(code) != 3 or sorted(rows) != [0, 1, 2]:
        raise InputError(
            f"the orientation {code!r} is unknown",
            remedy="Use one letter of each pair: L/R, P/A, S/I.",
        )
    direction = np.reshape(geometry.direction, (3, 3))
    closest = _closest_rows(direction)
    order = triple(closest.index(row) for row in rows)
    flips = triple(
        bool((direction[row, axis] < 0) == (pair[1] > 0))
        for row, axis, pair in zip(rows, order, (p for p in wanted if p), strict=True)
    )
    return order, flips


def _closest_rows(direction: np.ndarray) -> tuple[int, int, int]:
    """For each axis (column) the patient axis (row) it follows; the assignment with the greatest
    total cosine.
    """
    # at exactly 45 degrees the second term decides, the same way whatever the order and signs of
    # the columns
    weights = np.array([[1.0], [2.0], [3.0]])
    size = np.abs(direction) + 1e-6 * weights * direction * np.roll(direction, -1, axis=0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda rows: sum(size[row, axis] for axis, row in enumerate(rows)),
    )
    return triple(best)


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Exactly three values as a tuple."""
    first, second, third = values
    return first, second, third


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
