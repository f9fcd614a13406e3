"""Two views of a batch against batchgeneratorsv2, nnU-Net's own augmentation, and against MONAI.

    pip install batchgeneratorsv2      into MedSSL's environment, or --target DIR and PYTHONPATH=DIR
    python Testing/bench/peers/batchgenerators.py [--pairs 9] [--threads 2]

What is made is that of `MedSSLLib/benchmark/speed_views.py`, as near as the transforms allow: crop,
zoom and resampling are one step there too; blur, noise, brightness and gamma are drawn with the
same probabilities; resolution is lowered by the nearest voxel and raised linearly; edges are
repeated. Both peers are timed in one run. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from MedSSLLib.benchmark.speed_views import AUGMENT, SCALE, VIEWS, Reference, measure_views


def pipeline(patch: tuple[int, ...]) -> BasicTransform:
    """The transforms of one view, in the order of ours."""
    alike = {"synchronize_channels": False}
    sometimes = (
        (GaussianBlurTransform(blur_sigma=(0.5, 1.0), **alike), AUGMENT.blur),
        (
            SimulateLowResolutionTransform(
                scale=(0.5, 1.0), synchronize_axes=False, ignore_axes=None, **alike
            ),
            AUGMENT.low_resolution,
        ),
        (GaussianNoiseTransform(noise_variance=(0, 0.1), **alike), AUGMENT.noise),
        (MultiplicativeBrightnessTransform((0.75, 1.25), **alike), AUGMENT.brightness),
        (
            GammaTransform(
                gamma=(0.7, 1.5), p_invert_image=0, p_retain_stats=0, p_per_channel=1, **alike
            ),
            AUGMENT.gamma,
        ),
    )
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=[n // 2 for n in patch],
        random_crop=True,
        p_scaling=1,
        scaling=SCALE,
        padding_mode_image="border",
    )
    mirror = MirrorTransform(allowed_axes=tuple(range(len(patch))))
    return ComposeTransforms([spatial, mirror, *(RandomTransform(*pair) for pair in sometimes)])


def one_view(patch: tuple[int, ...]) -> Reference:
    """What makes one view of a sample."""
    transform = pipeline(patch)
    return lambda sample: transform(image=sample.clone())["image"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in VIEWS:
        for peer, reference in (("MONAI", None), ("batchgeneratorsv2", one_view)):
            found = measure_views(name, args.pairs, reference=reference).record()
            rows.append({"peer": peer, **found})
    facts = {"bench": "views-of-peers", "threads": args.threads, "machine": platform.machine()}
    print(json.dumps({**facts, "torch": torch.__version__, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
