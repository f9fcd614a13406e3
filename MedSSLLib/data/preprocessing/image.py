"""From source volumes to the training grid: orientation, intensity, spacing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import Plan, canonical_axes
from MedSSLLib.data.preprocessing.normalisation import GreyScale, grey_scale
from MedSSLLib.data.preprocessing.resampling import (
    axis_operators,
    cubic,
    resample_separably,
    training_grid,
)
from MedSSLLib.images.geometry import Geometry, Volume, orient, oriented
from MedSSLLib.images.labels import slice_axis

VERSION = 2  # part of every cache key: raise it whenever the result for the same input changes
_CODES = ("PSL", "LSP", "LPS")  # i, j, k = w, h, d for a slice axis along L, P, S
_BLOCK = 2**23  # voxels that are worked on at a time


def preprocess_image(
    volumes: Volume | Sequence[Volume], plan: Plan, dtype: type[np.floating] = np.float32
) -> tuple[np.ndarray, Geometry]:
    """Image on the grid of the plan.

    Args:
        volumes: the source volume, or one per channel, all on one grid.
        plan: the data set's plan.
        dtype: of the result.

    Returns:
        ``[c, d, h, w]``, about zero mean and unit deviation per channel, and the grid's
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
    result = np.empty((len(channels), *grid.shape), dtype)
    for target, channel, modality in zip(result, channels, plan.modality, strict=True):
        array = orient(channel, code).array
        _on_grid(array, grey_scale(array, modality, plan.intensities), operators, target)
    return result, grid


def _on_grid(
    array: np.ndarray,
    scale: GreyScale,
    operators: Sequence[np.ndarray | None],
    target: np.ndarray,
) -> None:
    """Normalise and resample an oriented image into ``target``, some slices at a time, so that
    memory holds no second image.
    """
    padding, (d, h, w) = scale.padding(array), operators
    step = max(1, _BLOCK // max(array[0].size, target[0].size))
    for first in range(0, len(target), step):
        rows = slice(first, first + step)
        weights, needed = (None, rows) if d is None else _needed(d[rows])
        part = scale.apply(array[needed], None if padding is None else padding[needed])
        target[rows] = resample_separably(part, (weights, h, w))


def _needed(weights: np.ndarray) -> tuple[np.ndarray, slice]:
    """Weights of the source slices that count in some target slices, and which those are."""
    used = np.flatnonzero(weights.any(0))
    places = slice(int(used[0]), int(used[-1]) + 1)
    return weights[:, places], places


def _slice_direction(geometry: Geometry, plan: Plan) -> int:
    if plan.slice_axis == "own":
        return canonical_axes(geometry)[slice_axis(geometry)]
    return plan.slice_axis
