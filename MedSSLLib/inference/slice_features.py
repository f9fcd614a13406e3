"""Features of slices from a trained encoder: its feature maps pooled along the annotation axis."""

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

Box = tuple[slice, ...]


@torch.inference_mode()
def slice_profiles(
    encoder: Encoder, image: np.ndarray, plan: Plan, device: torch.device, axis: int
) -> list[np.ndarray]:
    """Features of every grid slice along an array axis: each level's maps, averaged within it.

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
        content = np.ascontiguousarray(image[:, *box])
        inside = box[axis]
        voxels = np.prod(content.shape[1:]) / (inside.stop - inside.start)
        area[inside] += voxels
        profiles = _profiles(encoder, torch.from_numpy(content).to(device), plan, axis)
        for total, profile in zip(totals, profiles, strict=True):
            total[inside] += voxels * profile
    return [(total / area).astype(np.float32) for total in totals]


def combined_profiles(levels: Sequence[np.ndarray], usable: np.ndarray | None = None) -> np.ndarray:
    """One feature table of all levels, every level of the same weight.

    Channels are standardised over the usable rows: empty slices, all alike, would otherwise make
    all others look like each other. Not from the paper.

    Args:
        levels: per level ``[rows, channels]``.
        usable: boolean ``[rows]``; by default all.

    Returns:
        float32 ``[rows, f]``.
    """
    counted = slice(None) if usable is None or not usable.any() else usable
    scaled = []
    for table in levels:
        spread = table[counted].std(0)
        constant = spread < 1e-6
        centred = table - table[counted].mean(0)
        standardised = centred / np.where(constant, 1, spread) / np.sqrt(table.shape[1])
        scaled.append(np.where(constant, 0, standardised))
    return np.concatenate(scaled, 1).astype(np.float32)


def _profiles(encoder: Encoder, x: Tensor, plan: Plan, axis: int) -> Iterator[np.ndarray]:
    """Per level ``[n, channels]`` of a box ``[c, d, h, w]``."""
    length, strides = x.shape[1 + axis], np.cumprod(encoder.strides, axis=0)
    batch = x.movedim(1, 0) if plan.dim == 2 else x[None]  # [b, c, *s]
    padded = _in_whole_strides(batch, strides[-1].tolist())
    within = ((2, 3), (1, 3), (1, 2))[axis]
    every_level = encoder(padded.contiguous(memory_format=memory_format(plan.dim)))
    for maps, stride in zip(every_level, strides, strict=True):
        steps = [1, *stride][-3:]
        volume = maps.movedim(0, 1) if plan.dim == 2 else maps[0]  # [channels, d, h, w]
        for other, step in enumerate(steps):  # what is not padding
            volume = volume.narrow(other + 1, 0, -(-x.shape[1 + other] // step))
        profile = volume.float().mean(within).cpu().numpy().T
        yield _at(profile, np.arange(length) / steps[axis])


def _in_whole_strides(batch: Tensor, stride: Sequence[int]) -> Tensor:
    """``[b, c, *s]`` with its last voxels repeated up to whole strides."""
    pads: list[int] = []
    for n, step in zip(batch.shape[2:], stride, strict=True):
        pads = [0, -n % step, *pads]  # the last axis comes first
    return F.pad(batch, pads, mode="replicate") if any(pads) else batch


def _at(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows of ``[n, channels]`` at continuous positions, the last one continued."""
    low = np.floor(positions).astype(int).clip(0, len(values) - 1)
    fraction = (positions - low).clip(0, 1)[:, None]
    high = (low + 1).clip(0, len(values) - 1)
    return values[low] * (1 - fraction) + values[high] * fraction


def _boxes(size: Sequence[int], plan: Plan) -> Iterator[Box]:
    """Boxes of d, h, w that cover an image without overlap.

    Each is small enough for one forward pass.
    """
    tile: Sequence[int] = size
    if plan.dim == 2:
        tile = (max(1, TILE_VOXELS[2] // (4 * size[1] * size[2])), size[1], size[2])
    elif np.prod(size) > TILE_VOXELS[3]:
        tile = tile_size(size, plan.patch, TILE_VOXELS[3])
    pieces = []
    for n, step in zip(size, tile, strict=True):
        pieces.append([slice(start, min(start + step, n)) for start in range(0, n, step)])
    yield from itertools.product(*pieces)
