"""Two augmented views of a batch against MONAI's dictionary transforms of the same distribution; goal 5 x faster.

Both sides, on the CPU, from float32 volumes in memory (torch tensors for MONAI): a box of 1.1 to 1.4 patches a view,
resized linearly to the patch; a flip per axis (1/2); Gaussian blur of 0.5 to 1 voxels (0.2); resolution lowered 1 to 2
times, linear both ways (0.15); Gaussian noise (0.1); a factor of 0.75 to 1.25 (1/2); gamma of 0.7 to 1.5 (1/2); in this
order. Ours does a little more: boxes lie between voxels, views of a sample overlap, the factor keeps the range, blur
continues the edge. MONAI's zoom is drawn instead of its inverse.

MONAI runs as it comes, and "bare" without recording metadata and transforms (`set_track_meta(False)`), which its
readers, inversion and writers need. The three are timed in turn in one run; ratios are medians over pairs, of time on
the clock and of processor time. JSON on stdout.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import monai.transforms as mt
import numpy as np
import torch
from monai.data import set_track_meta

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
        return np.pad(crop, [(0, 0), *pads], mode="edge") if np.any(pads) else crop


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
        mt.RandGaussianSmoothd(keys, prob=AUGMENT.blur, **sigma),
        mt.RandSimulateLowResolutiond(keys, prob=AUGMENT.low_resolution, zoom_range=(0.5, 1.0),
                                      downsample_mode=mode, upsample_mode=mode),
        mt.RandGaussianNoised(keys, prob=AUGMENT.noise, std=0.1**0.5),
        mt.RandScaleIntensityd(keys, prob=AUGMENT.brightness, factors=0.25),
        mt.RandAdjustContrastd(keys, prob=AUGMENT.gamma, gamma=(0.7, 1.5)),
    ])  # fmt: skip


def timed(make: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    make()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(dim: str, pairs: int) -> dict[str, object]:
    """Times of `pairs` two-view batches of every side."""
    shape, patch, samples = CASES[dim]
    reader = Volumes(shape, samples)
    sampler = ViewSampler(reader, lambda rng, step: [Pick(name) for name in reader.arrays], patch, (1.0,) * len(patch),
                          AUGMENT, 2, (1.1, 1.4), 0.1, 0.5, 0.0, 0)  # fmt: skip
    pipeline = monai_pipeline(patch)
    pipeline.set_random_state(0)
    volumes = [torch.from_numpy(x if len(patch) == 3 else x[:, 0]) for x in reader.arrays.values()]

    def theirs() -> torch.Tensor:
        views = [torch.stack([torch.as_tensor(pipeline({"image": x})["image"]) for _ in range(2)]) for x in volumes]
        return torch.stack(views)

    assert make_views(sampler.sample(0), patch, torch.device("cpu")).images.shape == theirs().shape
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "monai": [], "monai_bare": []}
    for step in range(pairs + 1):
        times["ours"].append(timed(lambda: make_views(sampler.sample(step), patch, torch.device("cpu")).images))  # noqa: B023
        times["monai"].append(timed(theirs))
        set_track_meta(False)
        times["monai_bare"].append(timed(theirs))
        set_track_meta(True)
    table = np.array(list(times.values()))[:, 1:]  # sides, pairs, clock and processor
    result = {f"{side}_{kind}": float(x) for kind, row in zip(("s", "cpu_s"), np.median(table, 1).T, strict=True)
              for side, x in zip(times, row, strict=True)}  # fmt: skip
    ratios = np.median(table[1:] / table[0], 1)
    names = ("times_faster", "times_faster_cpu", "times_faster_than_bare", "times_faster_than_bare_cpu")
    result |= {name: round(float(x), 2) for name, x in zip(names, ratios.ravel(), strict=True)}
    return {"volume": shape, "patch": patch, "samples": samples, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", choices=tuple(CASES), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {dim: measure(dim, args.pairs) for dim in args.dim or CASES}
    print(json.dumps({"bench": "views", "goal": 5.0, "torch": torch.__version__, "machine": platform.machine(),
                      "threads": args.threads, "pairs": args.pairs, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
