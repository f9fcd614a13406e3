"""Two augmented views of a batch against MONAI's dictionary transforms of the same distribution.

Both sides, from float32 volumes in memory: a box of 1.1 to 1.4 patches a view, resized linearly to
the patch; a flip per axis (1/2); Gaussian blur of 0.5 to 1 voxels (0.2); resolution lowered 1 to 2
times, linear both ways (0.15); Gaussian noise (0.1); a factor of 0.75 to 1.25 (1/2); gamma of 0.7
to 1.5 (1/2); in this order. Ours does a little more: boxes lie between voxels, views of a sample
overlap, blur continues the edge. The reference runs on the CPU, as a data loader would, and records
metadata, as MONAI does unless told not to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import monai.transforms as mt
import numpy as np
import torch
from torch import Tensor

from MedSSLLib.benchmark.timing import Comparison, in_turn
from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data.batch import CropReader, make_views
from MedSSLLib.data.patch_samplers import Pick, ViewSampler
from MedSSLLib.training.devices import resolve_device

VIEWS_GOAL = 5.0
SCALE = (1.1, 1.4)
AUGMENT = AugmentConfig(noise=0.1, brightness=0.5, contrast=0.0, gamma=0.5)


@dataclass(frozen=True)
class Views:
    """A batch to make: shape of the volumes ``[d, h, w]``, patch, and how many."""

    volume: tuple[int, int, int]
    patch: tuple[int, ...]
    samples: int


VIEWS = {"3d": Views((96, 96, 96), (48, 48, 48), 4), "2d": Views((1, 256, 256), (96, 96), 16)}


class Arrays:
    """What view samplers ask of a ``CropReader``, over arrays in memory."""

    def __init__(self, shape: tuple[int, ...], cases: int) -> None:
        rng = np.random.default_rng(0)
        self.arrays = {
            f"c{i}": rng.normal(size=(1, *shape)).astype(np.float32) for i in range(cases)
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """``(c, d, h, w)`` of a case."""
        return self.arrays[name].shape

    def image(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray:
        """A box of a case; outside the volume, its edge."""
        whole = self.arrays[name]
        inside, pads = [], [(0, 0)]
        for start, stop, size in zip(lo, hi, whole.shape[1:], strict=True):
            inside.append(slice(max(start, 0), min(stop, size)))
            pads.append((max(-start, 0), max(stop - size, 0)))
        crop = whole[:, *inside]
        return np.pad(crop, pads, mode="edge") if np.any(pads) else crop


Reference = Callable[[Tensor], Tensor]  # one view [c, *patch] of a sample [c, *volume]


def measure_views(
    name: str,
    pairs: int,
    *,
    device: str = "cpu",
    views: Views | None = None,
    reference: Callable[[tuple[int, ...]], Reference] | None = None,
) -> Comparison:
    """Times of two-view batches of either side.

    Args:
        name: one of VIEWS.
        pairs: batches of each.
        device: where our views are made.
        views: another batch than that of VIEWS.
        reference: patch to what makes one view of a sample; None for MONAI.
    """
    views, where = views or VIEWS[name], resolve_device(device)
    patch = views.patch
    reader = Arrays(views.volume, views.samples)
    sampler = ViewSampler(
        reader=cast(CropReader, reader),
        pick=lambda rng, step: [Pick(case) for case in reader.arrays],
        patch=patch,
        spacing=(1.0,) * len(patch),
        augment=AUGMENT,
        views=2,
        scale=SCALE,
        min_overlap=0.1,
        flip=0.5,
        rotation=0.0,
        seed=0,
    )
    one_view = (reference or _monai_view)(patch)
    volumes = [torch.from_numpy(x if len(patch) == 3 else x[:, 0]) for x in reader.arrays.values()]
    steps = iter(range(10**9))
    times = in_turn(
        lambda: make_views(sampler.sample(next(steps)), patch, where),
        lambda: torch.stack([torch.stack([one_view(x) for _ in range(2)]) for x in volumes]),
        pairs,
        device=where,
    )
    facts = {"volume": list(views.volume), "patch": list(patch), "batch": views.samples}
    return Comparison("views", name, *times, goal=VIEWS_GOAL, faster=True, facts=facts)


def _monai_view(patch: tuple[int, ...]) -> Reference:
    pipeline = monai_pipeline(patch)
    pipeline.set_random_state(0)

    def one_view(sample: Tensor) -> Tensor:
        return pipeline({"image": sample})["image"].as_tensor()

    return one_view


def monai_pipeline(patch: tuple[int, ...]) -> mt.Compose:
    """One view of a sample: random-size crop resized to the patch, flips, intensity.

    Keys and probabilities are ours.
    """
    dim = len(patch)
    keys, low, high = ["image"], *([int(factor * n) for n in patch] for factor in SCALE)
    flips = [mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(dim)]
    mode = "bilinear" if dim == 2 else "trilinear"
    sigma = {f"sigma_{axis}": (0.5, 1.0) for axis in "xyz"[:dim]}
    return mt.Compose(
        [
            mt.RandSpatialCropd(
                keys, roi_size=low, max_roi_size=high, random_center=True, random_size=True
            ),
            mt.Resized(keys, spatial_size=patch, mode=mode),
            *flips,
            mt.RandGaussianSmoothd(keys, prob=AUGMENT.blur, **sigma),
            mt.RandSimulateLowResolutiond(
                keys,
                prob=AUGMENT.low_resolution,
                zoom_range=(0.5, 1.0),
                downsample_mode=mode,
                upsample_mode=mode,
            ),
            mt.RandGaussianNoised(keys, prob=AUGMENT.noise, std=0.1**0.5),
            mt.RandScaleIntensityd(keys, prob=AUGMENT.brightness, factors=0.25),
            mt.RandAdjustContrastd(keys, prob=AUGMENT.gamma, gamma=(0.7, 1.5)),
        ]
    )
