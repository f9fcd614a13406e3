"""Prediction of a preprocessed volume over the bare network on the fewest covering patches; goal 1.2.

Both are timed in turn in one run; the ratio is the median over pairs. JSON on stdout.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import time

import numpy as np
import torch

from MedSSLLib.config import NetworkConfig
from MedSSLLib.geometry import Geometry
from MedSSLLib.inference import predict_probabilities
from MedSSLLib.networks import SegmentationNet, build_encoder, memory_format
from MedSSLLib.planning import make_plan

VOLUMES = {  # voxels d, h, w and mm, on the training grid
    "hippocampus": ((36, 50, 35), (1.0, 1.0, 1.0)),
    "heart": ((10, 216, 256), (10.0, 1.5, 1.5)),
    "ct": ((96, 224, 224), (2.0, 1.2, 1.2)),
}


def fewest_patches(image: torch.Tensor, patch: tuple[int, ...]) -> list[torch.Tensor]:
    """Patches ``[1, c, *p]`` that cover an image ``[c, *s]``; the last of an axis is moved inwards or padded."""
    padded = [max(n, p) for n, p in zip(image.shape[1:], patch, strict=True)]
    whole = torch.zeros(image.shape[0], *padded)
    whole[:, *[slice(n) for n in image.shape[1:]]] = image
    starts = [[min(i * p, n - p) for i in range(math.ceil(n / p))] for n, p in zip(padded, patch, strict=True)]
    places = itertools.product(*starts)
    return [whole[None, :, *[slice(a, a + p) for a, p in zip(at, patch, strict=True)]] for at in places]


@torch.inference_mode()
def bare(net: SegmentationNet, image: torch.Tensor, patch: tuple[int, ...], batch: int) -> None:
    """The network over the fewest covering patches, in batches, and nothing else."""
    slices = image.movedim(1, 0) if len(patch) == 2 else [image]
    patches = torch.cat([p for part in slices for p in fewest_patches(part, patch)])
    layout = memory_format(len(patch))
    for part in patches.split(batch):
        net(part.contiguous(memory_format=layout))


def measure(name: str, pairs: int) -> dict[str, object]:
    """Times of `pairs` predictions and bare passes."""
    size, spacing = VOLUMES[name]
    plan = make_plan([Geometry(size[::-1], spacing[::-1])], modality="MR")
    torch.manual_seed(0)
    net = SegmentationNet(build_encoder(plan.dim, 1, plan.strides, NetworkConfig()), 3).eval()
    net.to(memory_format=memory_format(plan.dim))
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    ours, theirs = [], []
    for _ in range(pairs + 1):
        begin = time.perf_counter()
        predict_probabilities(net, image, plan, torch.device("cpu"))
        middle = time.perf_counter()
        bare(net, torch.from_numpy(image), plan.patch, 4 if plan.dim == 2 else 1)
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)
    return {
        "size": size, "patch": plan.patch, "ours_s": statistics.median(ours[1:]),
        "bare_s": statistics.median(theirs[1:]),
        "ratio": round(statistics.median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True)), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--volume", choices=tuple(VOLUMES), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {name: measure(name, args.pairs) for name in args.volume or VOLUMES}
    print(json.dumps({"bench": "predict", "goal": 1.2, "torch": torch.__version__, "machine": platform.machine(),
                      "threads": args.threads, "pairs": args.pairs, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
