"""Fine-tuning step over the same network's forward + backward + optimiser on a ready batch; goal 1.10.

Both are timed in turn in one run; the ratio is the median over pairs. JSON on stdout.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from MedSSLLib.cache import Cache
from MedSSLLib.config import AugmentConfig, NetworkConfig, OptimiserConfig
from MedSSLLib.events import Events
from MedSSLLib.geometry import Geometry
from MedSSLLib.networks import SegmentationNet, build_encoder, memory_format
from MedSSLLib.planning import make_plan
from MedSSLLib.project import Project
from MedSSLLib.sampling import SegmentationSampler
from MedSSLLib.schedule import Budget
from MedSSLLib.segmentation import SegmentationTask, segmentation_loss
from MedSSLLib.trainer import LoopConfig, Trainer

SHAPES = {"2d": ((10, 200, 180), (8.0, 1.4, 1.4), 12), "3d": ((64, 64, 64), (1.0, 1.0, 1.0), 2)}


def project_of(folder: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Project:
    """Four noisy volumes with a block of foreground."""
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for index in range(4):
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(n // 3, 2 * n // 3) for n in shape)] = 1
        for part, array in (("images", rng.normal(100, 9, shape) + 50 * label), ("labels", label)):
            (folder / part).mkdir(exist_ok=True)
            volume = sitk.GetImageFromArray(array.astype(np.uint8 if part == "labels" else np.float32))
            volume.SetSpacing(spacing[::-1])
            sitk.WriteImage(volume, str(folder / part / f"c{index}.nii.gz"))
    return Project.create(folder / "project", folder / "images", labels=folder / "labels")


def make_trainer(folder: Path, dim: str) -> Trainer:
    """The real trainer and task, with the default network, over a real cache."""
    shape, spacing, batch = SHAPES[dim]
    project = project_of(folder, shape, spacing)
    plan = make_plan([Geometry(shape[::-1], spacing[::-1])], modality="MR", dim=dim)
    cache = Cache(folder / "cache", plan)
    cache.prepare(project.cases, labels=True, values=project.values)
    names = tuple(case.name for case in project.cases)
    mm = tuple(float(x) for x in plan.spacing[3 - plan.dim :])
    sampler = SegmentationSampler(cache, names, plan.patch, mm, AugmentConfig(), batch, 0.5, 0)
    torch.manual_seed(0)
    net = SegmentationNet(build_encoder(plan.dim, 1, plan.strides, NetworkConfig()), 2)
    task = SegmentationTask(net.to(memory_format=memory_format(plan.dim)), sampler, plan, torch.device("cpu"))
    fabric = SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True, device=torch.device("cpu"),
                             autocast=nullcontext, _precision=SimpleNamespace(precision="32-true"))  # fmt: skip
    config = LoopConfig("bench", 0, Budget(steps=10**6), OptimiserConfig())
    return Trainer(task, config, fabric, folder, Events())


def measure(dim: str, pairs: int) -> dict[str, object]:
    """Times of `pairs` full and bare steps."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as loader:
        trainer = make_trainer(Path(name), dim)
        task, net = trainer.task, trainer.module.train()
        ready = task.device_batch(task.host_batch(0, 0, 1))
        images = ready.images[:, 0].contiguous(memory_format=memory_format(task.plan.dim))
        full, bare = [], []
        upcoming = trainer._load(loader, 0)
        for step in range(pairs + 2):
            begin = time.perf_counter()
            host, upcoming = upcoming, trainer._load(loader, step + 1)
            trainer.state.step = step
            trainer._step(host)
            middle = time.perf_counter()
            for future in upcoming:
                future.result()  # prefetching ends before the bare step begins; its time counts as ours
            loaded = time.perf_counter()
            trainer.optimiser.zero_grad(set_to_none=True)
            segmentation_loss(net.all_logits(images), ready.labels[:, 0]).backward()
            trainer.optimiser.step()
            full.append(loaded - begin)
            bare.append(time.perf_counter() - loaded)
            del middle
        return {
            "patch": task.plan.patch, "batch": task.sampler.batch,
            "full_s": statistics.median(full[2:]), "bare_s": statistics.median(bare[2:]),
            "ratio": round(statistics.median(a / b for a, b in zip(full[2:], bare[2:], strict=True)), 3),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", choices=tuple(SHAPES), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {dim: measure(dim, args.pairs) for dim in args.dim or SHAPES}
    print(json.dumps({"bench": "step", "goal": 1.10, "torch": torch.__version__, "machine": platform.machine(),
                      "threads": args.threads, "pairs": args.pairs, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
