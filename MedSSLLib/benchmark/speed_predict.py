"""Prediction of a volume over the bare network on the fewest patches that cover it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from MedSSLLib.benchmark.timing import Comparison, in_turn
from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.inference.sliding_window import predict_probabilities
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, memory_format, place
from MedSSLLib.training.devices import resolve_device

VOLUMES = {
    "hippocampus": Geometry((35, 50, 36), (1.0, 1.0, 1.0)),
    "heart": Geometry((256, 216, 10), (1.5, 1.5, 10.0)),
    "ct": Geometry((224, 224, 96), (1.2, 1.2, 2.0)),
}
"""Volumes on their training grid."""
PREDICT_GOAL = 1.2


def measure_predict(
    name: str,
    pairs: int,
    *,
    device: str = "cpu",
    grid: Geometry | None = None,
    network: NetworkConfig | None = None,
) -> Comparison:
    """Times of predictions and of bare passes.

    Args:
        name: one of VOLUMES.
        pairs: predictions of each.
        device: 'cpu', 'cuda' or 'cuda:N'.
        grid: another grid than that of VOLUMES.
        network: the network; ``None`` = the default one.
    """
    grid, where = grid or VOLUMES[name], resolve_device(device)
    plan = make_plan([grid], modality="MR")
    torch.manual_seed(0)
    net = SegmentationNet(
        build_encoder(plan.dim, 1, plan.strides, network or NetworkConfig()), 3
    ).eval()
    place(net, where, plan.dim)
    image = np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32)
    ready = torch.from_numpy(image).to(where)
    times = in_turn(
        lambda: predict_probabilities(net, image, plan, where),
        lambda: bare_prediction(net, ready, plan.patch, 4 if plan.dim == 2 else 1),
        pairs,
        device=where,
    )
    facts = {"size": list(grid.size), "patch": list(plan.patch)}
    return Comparison("predict", name, *times, goal=PREDICT_GOAL, facts=facts)


@torch.inference_mode()
def bare_prediction(
    net: SegmentationNet, image: torch.Tensor, patch: tuple[int, ...], batch: int
) -> None:
    """The network over the fewest patches of an image ``[c, d, h, w]``, and nothing else.

    Patches go in batches.
    """
    slices = image.movedim(1, 0) if len(patch) == 2 else [image]
    patches = torch.cat([p for part in slices for p in fewest_patches(part, patch)])
    layout = memory_format(len(patch))
    for part in patches.split(batch):
        net(part.contiguous(memory_format=layout))


def fewest_patches(image: torch.Tensor, patch: tuple[int, ...]) -> list[torch.Tensor]:
    """Patches ``[1, c, *p]`` that cover an image ``[c, *s]``.

    The last of an axis is moved inwards or padded.
    """
    padded, starts = [], []
    for size, length in zip(image.shape[1:], patch, strict=True):
        whole = max(size, length)
        padded.append(whole)
        starts.append([min(i * length, whole - length) for i in range(math.ceil(whole / length))])
    volume = image.new_zeros(image.shape[0], *padded)
    volume[:, *map(slice, image.shape[1:])] = image
    patches = []
    for corner in itertools.product(*starts):
        box = [slice(a, a + length) for a, length in zip(corner, patch, strict=True)]
        patches.append(volume[None, :, *box])
    return patches
