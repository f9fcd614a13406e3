"""A small conditional random field that smooths a segmentation along the edges of its image.

The fully connected field of Krähenbühl and Koltun 2011 (arXiv 1210.5644): Potts model, the two
Gaussian kernels of eq. 3, mean-field updates of Algorithm 1; truncated to a window around every
voxel as in Teichmann and Cipolla 2018 (arXiv 1805.04777), which keeps it a few shifted products.
Widths and weights are not from the papers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# widths of the smoothness and the appearance kernel, in voxels of the finest axis
NEAR_WIDTH, FAR_WIDTH = 1.0, 1.5
CONTRAST = 0.5  # width of the appearance kernel in intensity, standard deviations of the image
SMOOTHNESS, APPEARANCE = 1.0, 3.0  # weights of the kernels
REACH = 2.0  # radius of the window in widths of the appearance kernel
ROUNDS = 5

Offset = tuple[int, ...]


def mean_field(
    probabilities: Tensor, image: Tensor, spacing: Sequence[float], rounds: int = ROUNDS
) -> Tensor:
    """Probabilities after `rounds` mean-field updates, on the grid that they came on.

    A voxel's message is the mean of its neighbours' probabilities under both kernels. Distances are
    in mm, so that thick slices do not speak to each other.

    Args:
        probabilities: of the network, ``[k, d, h, w]``, summing to 1 over k.
        image: ``[d, h, w]``, any scale.
        spacing: mm per voxel along d, h and w.
        rounds: mean-field updates.

    Returns:
        ``[k, d, h, w]``, summing to 1 over k.
    """
    scaled = image.float() / image.float().std(correction=0).clamp_min(1e-6)
    unary = probabilities.float().clamp_min(1e-6).log()
    pairs = list(_kernels(scaled, spacing))
    total = torch.zeros_like(scaled)
    for offset, kernel in pairs:
        here, there = _overlap(offset)
        total[here] += kernel
        total[there] += kernel
    current = probabilities.float()
    for _ in range(rounds):
        message = torch.zeros_like(current)
        for offset, kernel in pairs:
            here, there = _overlap(offset)
            message[:, *here] += kernel * current[:, *there]
            message[:, *there] += kernel * current[:, *here]
        weight = (SMOOTHNESS + APPEARANCE) / total.clamp_min(1e-6)
        current = (unary + weight * message).softmax(0)
    return current


def _kernels(image: Tensor, spacing: Sequence[float]) -> Iterator[tuple[Offset, Tensor]]:
    """Half of the window's offsets, each with its kernel where both voxels exist.

    The other half mirrors them.
    """
    finest = min(spacing)
    for offset in _half_window(image.shape, spacing):
        squared = 0.0
        for n, mm in zip(offset, spacing, strict=True):
            squared += (n * mm / finest) ** 2
        here, there = _overlap(offset)
        unlike = (image[here] - image[there]).square()
        appearance = torch.exp(-squared / (2 * FAR_WIDTH**2) - unlike / (2 * CONTRAST**2))
        yield (
            offset,
            SMOOTHNESS * math.exp(-squared / (2 * NEAR_WIDTH**2)) + APPEARANCE * appearance,
        )


def _half_window(size: Sequence[int], spacing: Sequence[float]) -> Iterator[Offset]:
    """Offsets within reach and within an image of this size, one of each opposite pair."""
    finest = min(spacing)
    ranges = []
    for n, mm in zip(size, spacing, strict=True):
        radius = min(math.floor(REACH * FAR_WIDTH * finest / mm + 1e-9), n - 1)
        ranges.append(range(-radius, radius + 1))
    for offset in itertools.product(*ranges):
        if offset > (0,) * len(offset):
            yield offset


def _overlap(offset: Offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the voxels that have a partner at `offset`, and of their partners."""
    here = tuple(slice(max(-n, 0), -n if n > 0 else None) for n in offset)
    there = tuple(slice(max(n, 0), n if n < 0 else None) for n in offset)
    return here, there
