"""Two augmented views of a batch against MONAI's dictionary transforms of the same distribution; goal 5 x faster.

Boxes of 1.1 to 1.4 patches, flips, noise, blur, brightness, gamma and low resolution, on the CPU, from volumes in
memory on both sides. Timed in turn in one run; the ratio is the median over pairs. JSON on stdout.
"""

import argparse
import json
import platform
import statistics
import time

import monai.transforms as mt
import numpy as np
import torch

from MedSSLLib.config import AugmentConfig
from MedSSLLib.sampling import Pick, ViewSampler, make_views

CASES = {"3d": ((96, 96, 96), (48, 48, 48), 4), "2d": ((1, 256, 256), (96, 96), 16)}
AUGMENT = AugmentConfig(contrast=0.0)


class Volumes:
    """A CropReader over arrays."""

    def __init__(self, shape: tuple[int, ...], cases: int) -> None:
        rng = np.random.default_rng(0)
        self.arrays = {f"c{i}": rng.normal(size=(1, *shape)).astype(np.float32) for i in range(cases)}

    def shape(self, name):
        return self.arrays[name].shape

    def image(self, name, lo, hi):
        x = self.arrays[name]
        inside = [slice(max(a, 0), min(b, n)) for a, b, n in zip(lo, hi, x.shape[1:], strict=True)]
        pads = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(lo, hi, x.shape[1:], strict=True)]
        crop = x[:, *inside]
        return np.pad(crop, [(0, 0), *pads], mode="edge") if np.any(pads) else np.ascontiguousarray(crop)


def monai_pipeline(patch: tuple[int, ...]) -> mt.Compose:
    """One view of a sample: random-size crop resized to the patch, flips, intensity; keys and probabilities as ours."""
    dim = len(patch)
    keys, low, high = ["image"], [int(1.1 * n) for n in patch], [int(1.4 * n) for n in patch]
    flips = [mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(dim)]
    mode = "bilinear" if dim == 2 else "trilinear"
    sigma = {f"sigma_{axis}": (0.5, 1.0) for axis in "xyz"[:dim]}
    return mt.Compose([
        mt.RandSpatialCropd(keys, roi_size=low, max_roi_size=high, random_center=True, random_size=True),
        mt.Resized(keys, spatial_size=patch, mode=mode),
        *flips,
        mt.RandGaussianNoised(keys, prob=AUGMENT.noise, std=0.1**0.5),
        mt.RandGaussianSmoothd(keys, prob=AUGMENT.blur, **sigma),
        mt.RandScaleIntensityd(keys, prob=AUGMENT.brightness, factors=0.25),
        mt.RandSimulateLowResolutiond(keys, prob=AUGMENT.low_resolution, zoom_range=(0.5, 1.0),
                                      upsample_mode=mode),
        mt.RandAdjustContrastd(keys, prob=AUGMENT.gamma, gamma=(0.7, 1.5)),
    ])  # fmt: skip


def measure(dim: str, pairs: int) -> dict[str, object]:
    """Times of `pairs` two-view batches of either side."""
    shape, patch, samples = CASES[dim]
    reader = Volumes(shape, samples)
    sampler = ViewSampler(reader, lambda rng, step: [Pick(name) for name in reader.arrays], patch, (1.0,) * len(patch),
                          AUGMENT, 2, (1.1, 1.4), 0.1, 0.5, 0.0, 0)  # fmt: skip
    pipeline = monai_pipeline(patch)
    pipeline.set_random_state(0)
    volumes = [torch.from_numpy(x if len(patch) == 3 else x[:, 0]) for x in reader.arrays.values()]
    ours, theirs = [], []
    for step in range(pairs + 1):
        begin = time.perf_counter()
        batch = make_views(sampler.sample(step), patch, torch.device("cpu"))
        middle = time.perf_counter()
        views = [torch.stack([pipeline({"image": x})["image"].as_tensor() for _ in range(2)]) for x in volumes]
        reference = torch.stack(views)
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)
        assert batch.images.shape == reference.shape
    return {
        "volume": shape, "patch": patch, "samples": samples, "ours_s": statistics.median(ours[1:]),
        "monai_s": statistics.median(theirs[1:]),
        "times_faster": round(statistics.median(b / a for a, b in zip(ours[1:], theirs[1:], strict=True)), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", choices=tuple(CASES), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {dim: measure(dim, args.pairs) for dim in args.dim or CASES}
    print(json.dumps({"bench": "views", "goal": 5.0, "torch": torch.__version__, "machine": platform.machine(),
                      "threads": args.threads, "pairs": args.pairs, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
