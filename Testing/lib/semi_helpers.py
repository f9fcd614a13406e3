"""Tiny tasks on cases in memory, with two foreground classes; only c0 and c1 have labels."""

import numpy as np
import torch

from MedSSLLib.config.run import AugmentConfig, NetworkConfig
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.networks.unet import SegmentationNet, build_encoder
from Testing.lib.core_helpers import MemoryReader

CPU = torch.device("cpu")
PATCH = {2: (16, 16), 3: (8, 16, 16)}
ALL = AugmentConfig(
    flip=0.5,
    affine=1,
    elastic=1,
    noise=1,
    blur=1,
    brightness=1,
    contrast=1,
    gamma=1,
    low_resolution=1,
)


def strides(dim):
    return [(1,) * dim, (1, 2, 2)[3 - dim :], (2,) * dim]


def network(dim, deep=False):
    torch.manual_seed(0)
    encoder = build_encoder(dim, 1, strides(dim), NetworkConfig(widths=(4, 8, 8)))
    return SegmentationNet(encoder, 3, deep_supervision=deep)


def plan(dim):
    return Plan(
        dim=dim,
        spacing=(1.0, 1.0, 1.0),
        slice_axis=2,
        modality=("MR",),
        channels=1,
        patch=PATCH[dim],
        strides=tuple(strides(dim)),
    )


def reader(labelled=("c0", "c1"), sparse=()):
    """Cases c0 to c3; those in `sparse` have counted voxels in slice 5 alone."""
    rng = np.random.default_rng(0)
    label = np.zeros((10, 24, 24), np.uint8)
    label[2:8, 5:15, 5:12], label[2:8, 5:15, 12:19] = 1, 2
    alone = np.where(np.arange(10)[:, None, None] == 5, label, IGNORE).astype(np.uint8)
    images = {
        f"c{i}": rng.normal(size=(1, 10, 24, 24)).astype(np.float32) + label for i in range(4)
    }
    return MemoryReader(images, {name: alone if name in sparse else label for name in labelled})


def sampler(dim, cases=("c0", "c1"), batch=2, **changes):
    source = changes.pop("source", None) or reader()
    return SegmentationSampler(
        reader=source,
        cases=cases,
        patch=PATCH[dim],
        spacing=(1.0,) * dim,
        augment=ALL,
        batch=batch,
        foreground=0.5,
        seed=0,
        **changes,
    )


def unlabelled_sampler(dim):
    return sampler(dim, ("c0", "c1", "c2", "c3"), labelled=False)
