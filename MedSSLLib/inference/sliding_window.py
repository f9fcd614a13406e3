"""Class probabilities of a preprocessed case.

Whole slices or volumes where they fit into one forward pass, blended tiles where not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import Tensor

from MedSSLLib.data.plan import Plan

Network = Callable[[Tensor], Tensor]

TILE_VOXELS = {2: 2**20, 3: 2**20}  # most voxels of one forward pass; not from the paper
SLAB = 2**23  # most probabilities that are handed on at a time
HALVED = 2**27  # most sums of a row of tiles in single precision; not from the paper
PERTURBATIONS = ((1.0, 1.0), (0.8, 1.0), (1.25, 1.0), (1.0, 0.85), (1.0, 1.15))
"""Contrast and in-plane zoom of the views that a prediction should survive, the plain one first;
inside the range that training varies. Not from the paper."""
OVERLAP = 0.125  # fraction of a tile shared with its neighbour; not from the paper


@torch.inference_mode()
def predict_probabilities(
    network: Network, image: np.ndarray, plan: Plan, device: torch.device, *, flips: bool = False
) -> Tensor:
    """Probabilities float32 ``[k, d, h, w]`` on the CPU for an image ``[c, d, h, w]``.

    Args:
        network: logits ``[b, k, *s]`` of images ``[b, c, *s]``; in evaluation mode.
        image: a case on the plan's grid.
        plan: decides 2D or 3D and the patch.
        flips: average over all combinations of axis flips.
    """
    return _predict(network, image, plan, device, list(flip_sets(plan.dim)) if flips else [()])


@torch.inference_mode()
def predict_varied(
    network: Network,
    image: np.ndarray,
    plan: Plan,
    device: torch.device,
    variant: tuple[float, float],
    *,
    flips: bool = False,
) -> Tensor:
    """As :func:`predict_probabilities`, from the image with another contrast and in-plane size,
    scaled back.

    `variant` holds both, as PERTURBATIONS does.
    """
    contrast, zoom = variant
    source = torch.from_numpy(np.ascontiguousarray(image))
    mean = source.mean((1, 2, 3), keepdim=True)
    source, size = (source - mean) * contrast + mean, list(source.shape[2:])
    if zoom != 1:
        scaled = [max(1, round(n * zoom)) for n in size]
        source = F.interpolate(source, scaled, mode="bilinear", align_corners=False)
    probabilities = predict_probabilities(network, source.numpy(), plan, device, flips=flips)
    return (
        F.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        if zoom != 1
        else probabilities
    )


@torch.inference_mode()
def probability_slabs(
    network: Network,
    image: np.ndarray,
    plan: Plan,
    device: torch.device,
    flips: Sequence[tuple[int, ...]] = ((),),
) -> Iterator[Tensor]:
    """The probabilities of :func:`predict_probabilities` as ``[k, n, h, w]``, some slices at a
    time, in order, so that memory never holds those of all.
    """
    source = torch.from_numpy(np.ascontiguousarray(image))
    if plan.dim == 3:
        padded = _padded_size(source.shape[1:], plan)
        if np.prod(padded) > TILE_VOXELS[3]:
            yield from _tiled_slabs(network, source, plan, device, flips)
        else:
            yield _averaged(network, source[None].float().to(device), plan, flips)[0].cpu()
        return
    batch = max(1, TILE_VOXELS[2] // (4 * source.shape[2] * source.shape[3]))
    for slices in source.movedim(1, 0).split(batch):
        yield _averaged(network, slices.float().to(device), plan, flips).cpu().movedim(0, 1)


def _predict(
    network: Network,
    image: np.ndarray,
    plan: Plan,
    device: torch.device,
    flips: Sequence[tuple[int, ...]],
) -> Tensor:
    return torch.cat(list(probability_slabs(network, image, plan, device, flips)), 1)


def _tiled_slabs(
    network: Network,
    source: Tensor,
    plan: Plan,
    device: torch.device,
    flips: Sequence[tuple[int, ...]],
) -> Iterator[Tensor]:
    """Probabilities of a volume from overlapping tiles whose logits are blended as MONAI's
    ``sliding_window_inference`` blends them, row of tiles by row of tiles.

    Only the slices that the tiles of one row cover are held.
    """
    size, padded = source.shape[1:], _padded_size(source.shape[1:], plan)
    tile = tile_size(padded, plan.patch, TILE_VOXELS[3])
    weights = compute_importance_map(tile, mode="gaussian", sigma_scale=0.125)
    rows, *others = [tile_starts(n, t) for n, t in zip(padded, tile, strict=True)]
    sums, counts = torch.zeros(0), torch.zeros(tile[0], *padded[1:])
    for row, following in zip(rows, [*rows[1:], padded[0]], strict=True):
        for column, line in product(*others):
            logits = _tile_logits(network, source, (row, column, line), tile, device, flips)
            if not sums.numel():
                shape = (len(logits), tile[0], *padded[1:])
                kind = torch.float16 if np.prod(shape) > HALVED else torch.float32
                sums = torch.zeros(shape, dtype=kind)
            place = (slice(None), slice(column, column + tile[1]), slice(line, line + tile[2]))
            sums[:, *place] += (logits * weights).to(sums.dtype)
            counts[place] += weights
        done = min(following, size[0]) - row
        step = max(1, SLAB // (len(sums) * counts[0].numel()))
        for first in range(0, done, step):
            part = slice(first, min(first + step, done))
            blended = (sums[:, part].float() / counts[part]).softmax(0)
            yield blended[:, :, : size[1], : size[2]]
        left = tile[0] - (following - row)
        for held in (sums, counts[None]):
            held[:, :left] = held[:, tile[0] - left :].clone()
            held[:, left:] = 0


def _tile_logits(
    network: Network,
    source: Tensor,
    start: Sequence[int],
    tile: Sequence[int],
    device: torch.device,
    flips: Sequence[tuple[int, ...]],
) -> Tensor:
    """Logits ``[k, *tile]`` of one tile; over flips, the logarithm of the mean probability."""
    place = tuple(slice(a, a + n) for a, n in zip(start, tile, strict=True))
    x = _pad(source[:, *place][None].float().to(device), list(tile))
    found = [
        network(x.flip(axes).contiguous(memory_format=_layout(3))).float().flip(axes)[0].cpu()
        for axes in flips
    ]
    if len(found) == 1:
        return found[0]
    return torch.stack([logits.softmax(0) for logits in found]).mean(0).clamp_min(1e-30).log()


def tile_starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along an axis, as MONAI places them."""
    if tile >= size:
        return [0]
    step = max(1, int(tile * (1 - OVERLAP)))
    starts = range(0, size, step)
    needed = next(n for n, start in enumerate(starts) if start + tile >= size) + 1
    return [min(start, size - tile) for start in starts[:needed]]


def _averaged(network: Network, x: Tensor, plan: Plan, flips: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.stack([_tiled(network, x.flip(axes), plan).flip(axes) for axes in flips]).mean(0)


def flip_sets(dim: int) -> Iterator[tuple[int, ...]]:
    """All combinations of the axes of ``[b, c, *s]`` that can be mirrored, none of them first."""
    axes = range(2, 2 + dim)
    return chain.from_iterable(combinations(axes, n) for n in range(dim + 1))


def _tiled(network: Network, x: Tensor, plan: Plan) -> Tensor:
    """Softmax probabilities; the image is padded to whole strides and cut off again."""
    size = x.shape[2:]
    padded_size = _padded_size(size, plan)
    padded = _pad(x, padded_size)
    if np.prod(padded_size) <= TILE_VOXELS[plan.dim]:
        logits = network(padded.contiguous(memory_format=_layout(plan.dim)))
    else:
        tile = tile_size(padded_size, plan.patch, TILE_VOXELS[plan.dim])
        logits = sliding_window_inference(
            padded, tile, 1, network, overlap=OVERLAP, mode="gaussian"
        )
    probabilities = logits.float().softmax(1)
    for axis, n in enumerate(size, 2):
        probabilities = probabilities.narrow(axis, 0, n)
    return probabilities


def _padded_size(size: Sequence[int], plan: Plan) -> list[int]:
    """Whole strides along each axis."""
    step = np.prod(plan.strides, axis=0).astype(int)
    return [int(-(-n // s) * s) for n, s in zip(size, step, strict=True)]


def tile_size(size: Sequence[int], patch: Sequence[int], budget: int) -> tuple[int, ...]:
    """A tile that is the patch times a whole number per axis, within the image and the budget:
    large within slices first, so that a row of tiles covers few of them.
    """
    tile = [min(p, n) for p, n in zip(patch, size, strict=True)]
    while True:
        grown = [min(t + p, n) for t, p, n in zip(tile, patch, size, strict=True)]
        options = [
            [*tile[:i], grown[i], *tile[i + 1 :]] for i in range(len(tile)) if grown[i] > tile[i]
        ]
        fitting = [option for option in options if np.prod(option) <= budget]
        if not fitting:
            return tuple(tile)
        tile = min(fitting, key=lambda option: (option[:-2] != tile[:-2], np.prod(option)))


def _pad(x: Tensor, size: Sequence[int]) -> Tensor:
    missing = [n - have for n, have in zip(size, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    pads = [value for extra in reversed(missing) for value in (0, extra)]
    return F.pad(x, pads, mode="replicate")


def _layout(dim: int) -> torch.memory_format:
    return torch.channels_last if dim == 2 else torch.channels_last_3d


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of the class probabilities ``[k, ...]``, over its maximum log k: 0 certain, 1
    undecided.
    """
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(0)
    return entropy / float(np.log(max(2, probabilities.shape[0])))
