"""From source volumes to the training grid: orientation, intensity, spacing; class maps onto the same grid.

The grid keeps the (possibly oblique) directions of the source, so every axis is resampled on its own, and the
returned geometry places each voxel in the patient exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from MedSSLLib.errors import InputError
from MedSSLLib.geometry import Geometry, Volume, orient, oriented
from MedSSLLib.labels import IGNORE, slice_axis
from MedSSLLib.planning import Plan, canonical_axes

VERSION = 1  # part of every cache key: raise it whenever the result for the same input changes
HU_RANGE = (-1024.0, 325.0)  # PGL, section 3.1
PERCENTILES = (0.5, 99.5)  # not from the paper
_CODES = ("PSL", "LSP", "LPS")  # i, j, k = w, h, d for a slice axis along L, P, S
_MOST_SAMPLES = 2**21  # voxels that percentiles, mean and deviation are taken over
_FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian of deviation 1


def preprocess_image(volumes: Volume | Sequence[Volume], plan: Plan) -> tuple[np.ndarray, Geometry]:
    """Image on the grid of the plan.

    Args:
        volumes: the source volume, or one per channel, all on one grid.
        plan: the data set's plan.

    Returns:
        float32 ``[c, d, h, w]``, about zero mean and unit deviation per channel, and the grid's geometry
        (its i, j, k are w, h, d).

    Raises:
        InputError: number of channels or their grids differ, or an image is constant.
    """
    channels = (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
    if len(channels) != plan.channels:
        raise InputError(f"{len(channels)} channels, expected {plan.channels}",
                         remedy="Give one image per channel")
    source = channels[0].geometry
    for number, channel in enumerate(channels[1:], 1):
        if found := channel.geometry.difference(source):
            raise InputError(f"channel {number} lies on another grid than channel 0: {found}",
                             remedy="Resample all channels onto one grid")
    code = _CODES[_slice_direction(source, plan)]
    grid = training_grid(oriented(source, code), plan)
    arrays = []
    for channel, modality in zip(channels, plan.modality, strict=True):
        values = normalise(orient(channel, code).array, modality)
        arrays.append(resample_separably(values, axis_operators(oriented(source, code), grid)))
    return np.stack(arrays), grid


def preprocess_label(label: Volume, geometry: Geometry) -> np.ndarray:
    """Class map uint8 ``[d, h, w]`` on a grid made by :func:`preprocess_image`.

    Each class is resampled linearly (down-sampling averages) over counted voxels and the greatest wins. A
    voxel counts if its nearest source voxel or another one within it counts; else it is IGNORE.

    Args:
        label: class indices ``[k, j, i]`` on the source grid, IGNORE where a voxel does not count.
        geometry: the training grid of the same case.
    """
    code = _matching_code(label.geometry, geometry)
    volume = orient(label, code)
    footprint = axis_footprints(volume.geometry, geometry)
    operators = axis_operators(volume.geometry, geometry)
    known = volume.array != IGNORE
    counted = resample_separably(known.astype(np.float32), footprint) > 0.5
    best = np.zeros(geometry.shape, np.float32)
    result = np.full(geometry.shape, IGNORE, np.uint8)
    for value in np.unique(volume.array[known]):
        target, share = _class_share(volume.array == value, operators)
        wins = share > best[target]
        result[target][wins] = value
        best[target][wins] = share[wins]
    result[~counted] = IGNORE
    return result


def training_grid(source: Geometry, plan: Plan) -> Geometry:
    """The grid at the plan's spacing that covers an oriented ``source`` (i, j, k = w, h, d), concentric."""
    size, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    axes = zip(source.size, source.spacing, reversed(plan.spacing), strict=True)
    for axis, (n, own, planned) in enumerate(axes):
        same = planned is None or abs(own / planned - 1) < 1e-3
        step = own if planned is None or same else planned
        size[axis] = n if same else max(1, math.ceil(n * own / step - 1e-3))
        spacing[axis] = step
    corner = (np.array(source.size) - 1) / 2 - (np.array(size) - 1) / 2 * spacing / np.array(source.spacing)
    x, y, z = (float(x) for x in source.points(corner))
    (i, j, k), (a, b, c) = size, spacing
    return Geometry((i, j, k), (a, b, c), (x, y, z), source.direction)


def normalise(array: np.ndarray, modality: str) -> np.ndarray:
    """Float32 of the same shape: clipped, then zero mean and unit deviation.

    CT is clipped to -1024..325 HU (PGL); others to their 0.5 and 99.5 percentiles (not from the paper). The
    statistics leave out voxels of exactly the smallest value (padding, air).

    Raises:
        InputError: the image is constant.
    """
    sample = _sample(array)
    inside = sample[sample > sample.min()]
    if inside.size == 0:
        raise InputError(f"is constant ({sample.min():g})", remedy="Remove the case or give another image")
    low, high = HU_RANGE if modality.upper() == "CT" else np.percentile(inside, PERCENTILES)
    if not inside.min() <= high or low == high:
        low, high = float(inside.min()), float(inside.max())
    clipped = inside.clip(low, high)
    mean, deviation = float(clipped.mean()), float(clipped.std())
    if deviation <= 1e-6 * max(abs(mean), abs(high - low)):  # all but a few voxels alike
        mean, deviation = float(sample.mean()), float(sample.std())
        low, high = float(sample.min()), float(sample.max())
    values = array.astype(np.float32)
    np.clip(values, low, high, out=values)
    values -= np.float32(mean)
    values *= np.float32(1 / deviation)
    return values


def axis_operators(source: Geometry, target: Geometry) -> list[np.ndarray | None]:
    """Per array axis d, h, w the matrix ``[n_target, n_source]`` that resamples it; None: nothing changes.

    Interpolation is linear. Down-sampling by a factor r > 1 smooths first with a Gaussian of deviation
    sqrt(r^2 - 1) / 2.355 source voxels, which widens the source's point spread to the target's (Cardoso et
    al., MICCAI 2015, "Scale factor point spread function"). Outside, the edge value counts.
    """
    return [
        None if _identity(positions, n) else _interpolation(positions, n, ratio)
        for positions, n, ratio in _axes(source, target)
    ]


def axis_footprints(source: Geometry, target: Geometry) -> list[np.ndarray | None]:
    """Per array axis the 0/1 matrix of the source voxels within, or nearest to, each target voxel."""
    matrices: list[np.ndarray | None] = []
    for positions, n, ratio in _axes(source, target):
        index = np.arange(n)
        within = np.abs(index - positions[:, None]) <= ratio / 2
        within[np.arange(len(positions)), np.rint(positions).astype(int).clip(0, n - 1)] = True
        matrices.append(None if _identity(positions, n) else within.astype(np.float32))
    return matrices


def resample_separably(array: np.ndarray, operators: Sequence[np.ndarray | None]) -> np.ndarray:
    """Apply one matrix per axis of ``[d, h, w]``."""
    d, h, w = operators
    if w is not None:
        array = array @ w.T
    if h is not None:
        array = h @ array
    if d is not None:
        array = (d @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
    return array


def _slice_direction(geometry: Geometry, plan: Plan) -> int:
    if plan.slice_axis == "own":
        return canonical_axes(geometry)[slice_axis(geometry)]
    return plan.slice_axis


def _matching_code(source: Geometry, grid: Geometry) -> str:
    """The orientation in which ``source`` has the directions of ``grid``."""
    letters = itertools.product("LR", "PA", "SI")
    codes = ("".join(order) for signs in letters for order in itertools.permutations(signs))
    for code in (grid.code, *codes):
        if np.allclose(oriented(source, code).direction, grid.direction, atol=1e-4):
            return code
    raise ValueError(f"grid directions {grid.direction} are not those of the source {source.direction}")


def _axes(source: Geometry, target: Geometry) -> Iterator[tuple[np.ndarray, int, float]]:
    """Per array axis d, h, w: source index of every target voxel, source length, ratio of the spacings."""
    start = source.indices(np.array(target.origin))
    for axis in (2, 1, 0):
        ratio = target.spacing[axis] / source.spacing[axis]
        yield start[axis] + ratio * np.arange(target.size[axis]), source.size[axis], ratio


def _identity(positions: np.ndarray, n: int) -> bool:
    return len(positions) == n and bool(np.abs(positions - np.arange(n)).max() < 1e-2)


def _interpolation(positions: np.ndarray, n: int, ratio: float) -> np.ndarray:
    """Linear interpolation at ``positions`` among n samples, after the anti-aliasing Gaussian."""
    index = np.arange(n)
    weights = np.maximum(1 - np.abs(index - positions.clip(0, n - 1)[:, None]), 0)
    if ratio > 1:
        deviation = np.sqrt(ratio**2 - 1) / _FWHM
        gauss = np.exp(-0.5 * ((index[:, None] - index) / deviation) ** 2)
        weights = weights @ (gauss / gauss.sum(1, keepdims=True))
    return weights.astype(np.float32)


def _class_share(
    mask: np.ndarray, operators: Sequence[np.ndarray | None]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Resampled mask within the part of the target that it reaches, and that part."""
    source, target, parts = [], [], []
    for axis, operator in enumerate(operators):
        rows = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        inner = slice(int(rows[0]), int(rows[-1]) + 1)
        outer = inner
        if operator is not None:
            reached = np.flatnonzero((operator[:, inner] > 1e-4).any(1))
            outer = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
        source.append(inner)
        target.append(outer)
        parts.append(None if operator is None else operator[outer, inner])
    return tuple(target), resample_separably(mask[tuple(source)].astype(np.float32), parts)


def _sample(array: np.ndarray) -> np.ndarray:
    """At most about two million voxels, evenly spread, as float64."""
    step = max(1, array.size // _MOST_SAMPLES)
    return array.reshape(-1)[:: step | 1].astype(np.float64)
