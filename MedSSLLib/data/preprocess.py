"""From source volumes to the training grid: orientation, intensity, spacing; class maps onto the
same grid.

The grid keeps the (possibly oblique) directions of the source, so every axis is resampled on its
own, and the returned geometry places each voxel in the patient exactly.

Images are resampled with a cubic kernel, class maps with a linear one, both widened when
down-sampling. On cardiac MR this kept 1 to 2.5 dB more of an image than linear interpolation in
either direction, passed less aliasing than a Gaussian followed by interpolation (at factor 2: 0.20
of the amplitude above the new Nyquist frequency, against 0.41 at deviation (r - 1) / 2), and
brought back labels better than nearest neighbour (Dice .997 against .993 from 1.3-1.9 to 1.5 mm).
Not from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import Plan, canonical_axes
from MedSSLLib.images.geometry import Geometry, Volume, orient, oriented
from MedSSLLib.images.labels import IGNORE, slice_axis

VERSION = 1  # part of every cache key: raise it whenever the result for the same input changes
HU_RANGE = (-1024.0, 325.0)  # PGL, section 3.1
PERCENTILES = (0.5, 99.5)  # not from the paper
_CODES = ("PSL", "LSP", "LPS")  # i, j, k = w, h, d for a slice axis along L, P, S
_MOST_SAMPLES = 2**21  # voxels that percentiles, mean and deviation are taken over

Kernel = Callable[[np.ndarray], np.ndarray]


def preprocess_image(volumes: Volume | Sequence[Volume], plan: Plan) -> tuple[np.ndarray, Geometry]:
    """Image on the grid of the plan.

    Args:
        volumes: the source volume, or one per channel, all on one grid.
        plan: the data set's plan.

    Returns:
        float32 ``[c, d, h, w]``, about zero mean and unit deviation per channel, and the grid's
        geometry (its i, j, k are w, h, d).

    Raises:
        InputError: number of channels or their grids differ, or an image is constant.
    """
    channels = (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
    if len(channels) != plan.channels:
        raise InputError(
            f"{len(channels)} channels, expected {plan.channels}",
            remedy="Give one image per channel",
        )
    source = channels[0].geometry
    for number, channel in enumerate(channels[1:], 1):
        if found := channel.geometry.difference(source):
            raise InputError(
                f"channel {number} lies on another grid than channel 0: {found}",
                remedy="Resample all channels onto one grid",
            )
    code = _CODES[_slice_direction(source, plan)]
    grid = training_grid(oriented(source, code), plan)
    operators = axis_operators(oriented(source, code), grid, cubic)
    arrays = []
    for channel, modality in zip(channels, plan.modality, strict=True):
        values = normalise(orient(channel, code).array, modality)
        arrays.append(resample_separably(values, operators))
    return np.stack(arrays), grid


def preprocess_label(label: Volume, geometry: Geometry) -> np.ndarray:
    """Class map uint8 ``[d, h, w]`` on a grid made by :func:`preprocess_image`.

    Each class is resampled over counted voxels and the greatest share wins. A voxel counts if its
    nearest source voxel or another one within it counts; else it is IGNORE. So no annotated slice
    is lost on a coarser grid.

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
    return result


def training_grid(source: Geometry, plan: Plan) -> Geometry:
    """The grid at the plan's spacing that covers an oriented ``source`` (i, j, k = w, h, d),
    concentric.
    """
    size, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    axes = zip(source.size, source.spacing, reversed(plan.spacing), strict=True)
    for axis, (n, own, planned) in enumerate(axes):
        same = planned is None or abs(own / planned - 1) < 1e-3
        step = own if planned is None or same else planned
        size[axis] = n if same else max(1, math.ceil(n * own / step - 1e-3))
        spacing[axis] = step
    corner = (np.array(source.size) - 1) / 2 - (np.array(size) - 1) / 2 * spacing / np.array(
        source.spacing
    )
    x, y, z = (float(x) for x in source.points(corner))
    (i, j, k), (a, b, c) = size, spacing
    return Geometry((i, j, k), (a, b, c), (x, y, z), source.direction)


def normalise(array: np.ndarray, modality: str) -> np.ndarray:
    """Float32 of the same shape: clipped, then zero mean and unit deviation.

    CT is clipped to -1024..325 HU (PGL); others, and CT without negative values (stored with an
    offset, or cut to tissue), to their 0.5 and 99.5 percentiles (not from the paper). The
    statistics leave out voxels of exactly the smallest value (padding, air).

    Raises:
        InputError: the image is constant.
    """
    sample = _sample(array)
    if sample.min() == sample.max():
        raise InputError(
            f"is constant ({sample.min():g})", remedy="Remove the case or give another image"
        )
    inside = sample[sample > sample.min()]
    hounsfield = modality.upper() == "CT" and sample.min() < 0
    low, high = HU_RANGE if hounsfield else np.percentile(inside, PERCENTILES)
    clipped = inside.clip(low, high)
    if clipped.std() <= 1e-3 * (high - low):  # nearly all alike: what differs is the image
        low, high = sample.min(), sample.max()
        clipped = sample
    values = array.astype(np.float32)
    np.clip(values, low, high, out=values)
    values -= np.float32(clipped.mean())
    values /= np.float32(clipped.std())
    return values


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (a = -1/2) at distances ``x >= 0``; Keys 1981, Eq. 15."""
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def linear(x: np.ndarray) -> np.ndarray:
    """The triangle kernel at distances ``x >= 0``."""
    return np.maximum(1 - x, 0)


def axis_operators(source: Geometry, target: Geometry, kernel: Kernel) -> list[np.ndarray | None]:
    """Per array axis d, h, w the matrix ``[n_target, n_source]`` that resamples it; None: nothing
    changes.

    Down-sampling by a factor r > 1 widens the kernel r times, which makes it the anti-aliasing
    filter too. Outside the source its edge value counts.
    """
    return [
        None if _identity(positions, n) else _matrix(positions, n, ratio, kernel)
        for positions, n, ratio in _axes(source, target)
    ]


def axis_footprints(source: Geometry, target: Geometry) -> list[np.ndarray | None]:
    """Per array axis the 0/1 matrix of the source voxels within, or nearest to, each target
    voxel.
    """
    matrices: list[np.ndarray | None] = []
    for positions, n, ratio in _axes(source, target):
        index = np.arange(n)
        within = np.abs(index - positions[:, None]) <= ratio / 2 + 1e-6
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


def _oriented_like(label: Volume, grid: Geometry) -> Volume:
    """``label`` with its axes along those of ``grid``."""
    volume = orient(label, grid.code)
    if not np.allclose(volume.geometry.direction, grid.direction, atol=1e-4):
        raise ValueError(
            f"grid directions {grid.direction} are not those of the source "
            f"{label.geometry.direction}"
        )
    return volume


def _axes(source: Geometry, target: Geometry) -> Iterator[tuple[np.ndarray, int, float]]:
    """Per array axis d, h, w: source index of every target voxel, source length, ratio of the
    spacings.
    """
    start = source.indices(np.array(target.origin))
    for axis in (2, 1, 0):
        ratio = target.spacing[axis] / source.spacing[axis]
        yield start[axis] + ratio * np.arange(target.size[axis]), source.size[axis], ratio


def _identity(positions: np.ndarray, n: int) -> bool:
    return len(positions) == n and bool(np.abs(positions - np.arange(n)).max() < 1e-2)


def _matrix(positions: np.ndarray, n: int, ratio: float, kernel: Kernel) -> np.ndarray:
    """Weights of n samples at ``positions``: the kernel, ``ratio`` times as wide when that exceeds
    1.
    """
    width = max(ratio, 1.0)
    reach = math.ceil(2 * width)
    near = np.floor(positions).astype(int)[:, None] + np.arange(1 - reach, 1 + reach)
    weights = kernel(np.abs(near - positions[:, None]) / width)
    matrix = np.zeros((len(positions), n))
    np.add.at(matrix, (np.arange(len(positions))[:, None], near.clip(0, n - 1)), weights)
    return (matrix / weights.sum(1, keepdims=True)).astype(np.float32)


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


def _sample(array: np.ndarray) -> np.ndarray:
    """About two million voxels, evenly spread, as float64; all of them where those are alike."""
    step = max(1, array.size // _MOST_SAMPLES) | 1
    sample = array.reshape(-1)[::step].astype(np.float64)
    return sample if sample.min() < sample.max() else array.reshape(-1).astype(np.float64)
