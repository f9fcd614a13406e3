"""Class probabilities of a preprocessed case.

Whole slices or volumes where they fit into one forward pass, blended tiles where not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from MedSSLLib.data.plan import Plan

Network = Callable[[Tensor], Tensor]

TILE_VOXELS = {2: 2**20, 3: 2**21}  # most voxels of one forward pass; not from the paper
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


def _predict(
    network: Network,
    image: np.ndarray,
    plan: Plan,
    device: torch.device,
    flips: Sequence[tuple[int, ...]],
) -> Tensor:
    source = torch.from_numpy(np.ascontiguousarray(image))
    if plan.dim == 3:
        return _averaged(network, source[None].to(device), plan, flips)[0].cpu()
    batch = max(1, TILE_VOXELS[2] // (4 * source.shape[2] * source.shape[3]))
    parts = [
        _averaged(network, slices.to(device), plan, flips).cpu()
        for slices in source.movedim(1, 0).split(batch)
    ]
    return torch.cat(parts).movedim(0, 1)


def _averaged(network: Network, x: Tensor, plan: Plan, flips: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.stack([_tiled(network, x.flip(axes), plan).flip(axes) for axes in flips]).mean(0)


def flip_sets(dim: int) -> Iterator[tuple[int, ...]]:
    """All combinations of the axes of ``[b, c, *s]`` that can be mirrored, none of them first."""
    axes = range(2, 2 + dim)
    return chain.from_iterable(combinations(axes, n) for n in range(dim + 1))


def _tiled(network: Network, x: Tensor, plan: Plan) -> Tensor:
    """Softmax probabilities; the image is padded to whole strides and cut off again."""
    step = np.prod(plan.strides, axis=0).astype(int)
    size = x.shape[2:]
    padded_size = [int(-(-n // s) * s) for n, s in zip(size, step, strict=True)]
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


def tile_size(size: Sequence[int], patch: Sequence[int], budget: int) -> tuple[int, ...]:
    """The largest tile that is the patch times a whole number per axis, within the image and the
    budget.
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
        tile = min(fitting, key=np.prod)


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
