"""Features of slices from a trained encoder: pooled profiles of its feature maps along the
annotation axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.data.plan import Plan
from MedSSLLib.inference.sliding_window import TILE_VOXELS, tile_size
from MedSSLLib.networks.unet import Encoder, memory_format

Box = tuple[tuple[int, int], ...]


@torch.inference_mode()
def slice_profiles(
    encoder: Encoder, image: np.ndarray, plan: Plan, device: torch.device, axis: int
) -> list[np.ndarray]:
    """Features of every grid slice along an array axis: each level's maps, averaged within the
    slice.

    Coarser levels are interpolated linearly along the axis. Not from the paper.

    Args:
        encoder: in evaluation mode, on the device.
        image: a case on the plan's grid, ``[c, d, h, w]``.
        plan: decides 2D or 3D.
        device: where the encoder is.
        axis: 0 d, 1 h, 2 w.

    Returns:
        Per level float32 ``[n, channels]``.
    """
    size = image.shape[1:]
    totals = [np.zeros((size[axis], width)) for width in encoder.widths]
    area = np.zeros((size[axis], 1))
    for box in _boxes(size, plan):
        part = torch.from_numpy(
            np.ascontiguousarray(image[(slice(None), *(slice(a, b) for a, b in box))])
        )
        voxels = np.prod([b - a for a, b in box]) / (box[axis][1] - box[axis][0])
        inside = slice(*box[axis])
        area[inside] += voxels
        for total, profile in zip(
            totals, _profiles(encoder, part.to(device), plan, axis), strict=True
        ):
            total[inside] += voxels * profile
    return [(total / area).astype(np.float32) for total in totals]


def combined(levels: Sequence[np.ndarray], usable: np.ndarray | None = None) -> np.ndarray:
    """One feature table ``[rows, f]`` of the levels' ``[rows, channels]``: channels standardised
    over the usable rows (boolean, default all), and every level of the same weight. Not from the
    paper.

    Empty slices, all alike, would otherwise make all others look like each other.
    """
    counted = slice(None) if usable is None or not usable.any() else usable
    parts = []
    for table in levels:
        spread = table[counted].std(0)
        constant = spread < 1e-6
        parts.append(
            np.where(
                constant,
                0,
                (table - table[counted].mean(0))
                / np.where(constant, 1, spread)
                / np.sqrt(table.shape[1]),
            )
        )
    return np.concatenate(parts, 1).astype(np.float32)


def _profiles(encoder: Encoder, x: Tensor, plan: Plan, axis: int) -> Iterator[np.ndarray]:
    """Per level ``[n, channels]`` of a box ``[c, d, h, w]``."""
    length, strides = x.shape[1 + axis], np.cumprod(encoder.strides, axis=0)
    batch = x.movedim(1, 0) if plan.dim == 2 else x[None]  # [b, c, *s]
    missing = [-n % s for n, s in zip(batch.shape[2:], strides[-1].tolist(), strict=True)]
    pads = [value for extra in reversed(missing) for value in (0, extra)]
    padded = F.pad(batch, pads, mode="replicate") if any(missing) else batch
    for maps, stride in zip(
        encoder(padded.contiguous(memory_format=memory_format(plan.dim))), strides, strict=True
    ):
        steps = [1, *stride][-3:]
        volume = maps.movedim(0, 1) if plan.dim == 2 else maps[0]  # [channels, d, h, w]
        for other, step in enumerate(steps):
            volume = volume.narrow(
                other + 1, 0, -(-x.shape[1 + other] // step)
            )  # what is not padding
        within = [other + 1 for other in range(3) if other != axis]
        yield _at(volume.float().mean(within).cpu().numpy().T, np.arange(length) / steps[axis])


def _at(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows of ``[n, channels]`` at continuous positions, the last one continued."""
    low = np.floor(positions).astype(int).clip(0, len(values) - 1)
    share = (positions - low).clip(0, 1)[:, None]
    return values[low] * (1 - share) + values[(low + 1).clip(0, len(values) - 1)] * share


def _boxes(size: Sequence[int], plan: Plan) -> Iterator[Box]:
    """Boxes of d, h, w that cover an image without overlap, each small enough for one forward
    pass.
    """
    if plan.dim == 2:
        tile: Sequence[int] = (max(1, TILE_VOXELS[2] // (4 * size[1] * size[2])), size[1], size[2])
    else:
        tile = (
            tile_size(size, plan.patch, TILE_VOXELS[3]) if np.prod(size) > TILE_VOXELS[3] else size
        )
    ranges = [
        [(start, min(start + t, n)) for start in range(0, n, t)]
        for n, t in zip(size, tile, strict=True)
    ]
    yield from itertools.product(*ranges)
