"""Mixing of labelled with pseudo-labelled images: a rectangle of one image in the other.

Bai, Chen, Li, Shen, Wang 2023 (BCP, arXiv 2305.00673) paste a box of a labelled image into an
unlabelled one and the other way round; CutMix (Yun et al. 2019, arXiv 1905.04899) draws it
anywhere. Images and targets are mixed by the same mask, so every voxel keeps its own target. Boxes
are drawn on the host by an explicit generator and applied on the device; nothing here waits for it.

Shapes: n samples, c channels, k classes, ``*s`` any spatial shape, 2D or 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.data.spatial import Rng
from MedSSLLib.losses.dice_ce import one_hot

ALONE_EVERY = 4  # of so many samples one is pseudo-labelled alone; not from the paper


def sample_rectangles(
    rng: Rng, n: int, patch: Sequence[int], share: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """One rectangle a sample, anywhere inside the patch.

    Args:
        rng: generator.
        n: samples.
        patch: voxels an axis, s axes.
        share: least and largest share of a side of the patch, in (0, 1].

    Returns:
        Lower and upper corners, whole numbers ``[n, s]``; every side has at least one voxel.
    """
    sides = np.asarray(patch)
    wanted = rng.uniform(*share, size=(n, len(sides))) * sides
    side = np.clip(np.rint(wanted).astype(np.int64), 1, sides)
    low = np.floor(rng.random((n, len(sides))) * (sides - side + 1)).astype(np.int64)
    return low, low + side


def sample_roles(
    n: int, start: int = 0, alone_every: int = ALONE_EVERY
) -> tuple[np.ndarray, np.ndarray]:
    """What of each sample the first, labelled image gives: inside the rectangle and outside of it
    in turn, and nothing in every `alone_every`-th sample (0: in none).

    Args:
        n: samples.
        start: how many were drawn before, over all batches.
        alone_every: see above.

    Returns:
        `outside` and `alone`, 0 or 1, ``[n]``.
    """
    index = np.arange(start, start + n)
    alone = (index + 1) % alone_every == 0 if alone_every else np.zeros(n, bool)
    before = index // alone_every if alone_every else 0
    return ((index - before) % 2 * ~alone).astype(np.int64), alone.astype(np.int64)


def sample_whole(
    n: int, turn: int, patch: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Roles without mixing: a sample is the labelled patch or the other one, in turn.

    Args:
        n: samples that are normalised together.
        turn: even where the first is the labelled one, odd where it is the other.
        patch: voxels an axis, s axes.

    Returns:
        Lower and upper corners ``[n, s]`` of the whole patch, `outside` and `alone` as in
        :func:`sample_roles`.
    """
    low = np.zeros((n, len(patch)), np.int64)
    alone = (np.arange(n) + turn) % 2
    return low, low + np.asarray(patch), np.zeros_like(alone), alone


def rectangle_mask(low: Tensor, high: Tensor, patch: Sequence[int]) -> Tensor:
    """Whether a voxel lies in its sample's rectangle.

    Args:
        low: first voxel of the rectangle an axis, ``[n, s]``.
        high: the one after its last, ``[n, s]``.
        patch: voxels an axis.

    Returns:
        bool ``[n, *s]``.
    """
    mask = torch.ones((), dtype=torch.bool, device=low.device)
    for axis, size in enumerate(patch):
        place = torch.arange(size, device=low.device)
        inside = (place >= low[:, axis, None]) & (place < high[:, axis, None])
        mask = mask & inside.view(-1, *(size if k == axis else 1 for k in range(len(patch))))
    return mask


def labelled_mask(
    low: Tensor, high: Tensor, outside: Tensor, alone: Tensor, patch: Sequence[int]
) -> Tensor:
    """Which voxels come from the labelled image, bool ``[n, *s]``.

    Those of the rectangle, or all others where `outside`, none where `alone`.

    Args:
        low: lower corners, ``[n, s]``.
        high: upper corners, ``[n, s]``.
        outside: from :func:`sample_roles`, ``[n]``.
        alone: from :func:`sample_roles`, ``[n]``.
        patch: voxels an axis.
    """
    shape = (-1, *(1 for _ in patch))
    inside = rectangle_mask(low, high, patch)
    return (inside ^ (outside > 0).view(shape)) & (alone == 0).view(shape)


def mixed(mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`first` where the mask ``[n, *s]`` holds and `second` elsewhere; ``[n, *s]`` or with one axis
    of channels or classes behind n.
    """
    return torch.where(mask if first.ndim == mask.ndim else mask.unsqueeze(1), first, second)


def label_targets(labels: Tensor, classes: int, weight: float = 1.0) -> Tensor:
    """Targets of a class map for :func:`~MedSSLLib.losses.dice_ce.dice_ce_soft`.

    Args:
        labels: ``[n, *s]``, IGNORE where a voxel does not count; it has no weight.
        classes: k with background.
        weight: of every voxel that counts.

    Returns:
        ``[n, k, *s]``.
    """
    return weight * one_hot(labels, classes)


def prediction_targets(
    probabilities: Tensor,
    weight: float,
    threshold: float = 0.0,
    kind: Literal["hard", "soft"] = "hard",
) -> Tensor:
    """Targets from a teacher's probabilities.

    Args:
        probabilities: ``[n, k, *s]``, which sum to 1 (or to a voxel's own weight).
        weight: of every voxel that counts.
        threshold: least probability of the best class of a voxel that counts.
        kind: 'hard' the best class, 'soft' the probabilities.

    Returns:
        ``[n, k, *s]``, whose sum over classes is `weight` (with 'soft' times the voxel's own), and
        0 where the voxel does not count.
    """
    sure, best = probabilities.max(1)
    counts = (sure >= threshold) & (sure > 0)
    if kind == "soft":
        return weight * probabilities * counts.unsqueeze(1)
    return weight * one_hot(best, probabilities.shape[1]) * counts.unsqueeze(1)
