"""A whole training step over the bare networks on a ready batch, for every kind of training.

Goals: fine-tuning 1.10 of forward + backward + optimiser; PGL 1.20 of the online and target networks with their heads;
GCL 1.20 of one forward and a backward pass over the encoder for every meta label; self-training 1.25 of forward +
backward on the same batches. Both sides are timed in turn in one run; the ratio is the median over pairs. JSON on
stdout.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.config import AugmentConfig, RunConfig
from MedSSLLib.events import Events
from MedSSLLib.finetune import loop_config
from MedSSLLib.joint import JointTask
from MedSSLLib.networks import SegmentationNet, build_encoder, memory_format
from MedSSLLib.preparation import Preparation, choose_plan, fill_cache, prepare
from MedSSLLib.pretrain import build_task
from MedSSLLib.project import Project
from MedSSLLib.sampling import SegmentationSampler
from MedSSLLib.schedule import Budget
from MedSSLLib.segmentation import SegmentationTask, segmentation_loss
from MedSSLLib.trainer import Trainer

SHAPES = {"2d": ((10, 200, 180), (8.0, 1.4, 1.4)), "3d": ((64, 64, 64), (1.0, 1.0, 1.0))}
KINDS = {"finetune-2d": 1.10, "finetune-3d": 1.10, "pgl-3d": 1.20, "gcl-2d": 1.20, "selftrain-2d": 1.25,
         "selftrain-3d": 1.25}  # fmt: skip
"""What is timed, and its goal."""
BATCH = {"finetune": {"2d": 12, "3d": 2}, "selftrain": {"2d": 8, "3d": 2}, "pgl": {"3d": 4}, "gcl": {"2d": 24}}


def project_of(folder: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Project:
    """Four noisy volumes of two patients in two phases, with a block of foreground."""
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for index in range(4):
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(n // 3, n // 2) for n in shape)] = 1
        label[tuple(slice(n // 2, 2 * n // 3) for n in shape)] = 2
        for part, array in (("images", rng.normal(100, 9, shape) + 50 * label), ("labels", label)):
            (folder / part).mkdir(exist_ok=True)
            volume = sitk.GetImageFromArray(array.astype(np.uint8 if part == "labels" else np.float32))
            volume.SetSpacing(spacing[::-1])
            sitk.WriteImage(volume, str(folder / part / f"c{index}.nii.gz"))
    rows = "".join(f"c{i},p{i // 2},{'ab'[i % 2]}\n" for i in range(4))
    (folder / "metadata.csv").write_text("case,patient,phase\n" + rows)
    return Project.create(folder / "project", folder / "images", labels=folder / "labels",
                          metadata=folder / "metadata.csv")  # fmt: skip


def trainer_of(ready: Preparation, method: str) -> Trainer:
    """The real trainer and task, with the default network, over a real cache."""
    plan = choose_plan(ready, ready.project.pool)
    pretraining = method in ("pgl", "gcl")
    cache, cases = fill_cache(ready, plan, ready.project.pool, labels=not pretraining)
    batch = BATCH[method][f"{plan.dim}d"]
    if pretraining:
        task: Any = build_task(ready, plan, cache, cases, None)[0]
    else:
        mm = tuple(float(x) for x in plan.spacing[3 - plan.dim :])
        names = tuple(case.name for case in cases)
        net = SegmentationNet(build_encoder(plan.dim, 1, plan.strides, ready.config.network), 3)
        net.to(memory_format=memory_format(plan.dim))
        labelled, contrast = (SegmentationSampler(cache, names, plan.patch, mm, AugmentConfig(), batch, share, seed)
                              for seed, share in enumerate((0.5, 1.0)))  # fmt: skip
        task = SegmentationTask(net, labelled, plan, ready.device)
        if method == "selftrain":
            task = JointTask(task, contrast, 3, "inter", 0.1, 0.5)
    config = loop_config(ready.config, "bench", Budget(steps=10**6))
    return Trainer(task, config, ready.fabric, ready.folder, ready.events)


def bare_finetune(task: SegmentationTask, batch: Any) -> Callable[[], None]:
    """Forward and backward on a ready batch."""
    images = batch.images[:, 0].contiguous(memory_format=memory_format(task.plan.dim))

    def work() -> None:
        segmentation_loss(task.module.all_logits(images), batch.labels[:, 0]).backward()

    return work


def bare_selftrain(task: JointTask, batch: Any) -> Callable[[], None]:
    """Forward and backward on the labelled and the contrast batch, segmentation losses only."""
    labelled, (view, *_) = batch
    layout = memory_format(task.labelled.plan.dim)
    first, second = (part.images[:, 0].contiguous(memory_format=layout) for part in (labelled, view))

    def work() -> None:
        loss = segmentation_loss(task.labelled.module.all_logits(first), labelled.labels[:, 0])
        logits, projections = task.module(second)
        (loss + segmentation_loss([logits], view.labels[:, 0]) + projections.mean()).backward()

    return work


def bare_pgl(task: Any, batch: Any) -> Callable[[], None]:
    """Online network forward and backward, target network forward, on ready views."""
    method = task.module
    images = batch.images.flatten(0, 1)

    def work() -> None:
        predicted = [head(z) for head, z in zip(method.predictors,
                     method.projectors(method.features(method.encoder(images))), strict=True)]  # fmt: skip
        with torch.no_grad():
            method.target_projectors(method.features(method.target_encoder(images)))
        torch.stack([p.square().mean() for p in predicted]).sum().backward()

    return work


def bare_gcl(task: Any, batch: Any) -> Callable[[], None]:
    """One encoder forward, one backward pass for every meta label."""
    method = task.module
    images = batch.images.flatten(0, 1)

    def work() -> None:
        deepest = method.encoder(images)[-1]
        for number in range(len(method.labels)):
            deepest.square().mean().backward(retain_graph=number + 1 < len(method.labels))

    return work


BARE = {"finetune": bare_finetune, "selftrain": bare_selftrain, "pgl": bare_pgl, "gcl": bare_gcl}


def measure(kind: str, pairs: int) -> dict[str, object]:
    """Times of `pairs` full and bare steps."""
    method, dim = kind.split("-")
    command = {"finetune": "finetune", "selftrain": "selftrain"}.get(method, "pretrain")
    name = {"finetune": "supervised", "selftrain": "local-contrast"}.get(method, method)
    config = RunConfig.build(command, method=name, overrides={"dim": dim, "device": "cpu", "name": "bench",
                             "training.batch": BATCH[method][dim]})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as loader, ExitStack() as stack:
        ready = prepare(project_of(Path(folder), *SHAPES[dim]), config, Events(), stack)
        trainer = trainer_of(ready, method)
        trainer.module.train()
        task = trainer.task
        bare_step = BARE[method](task, task.device_batch(task.host_batch(0, 0, 1)))
        full, bare = [], []
        upcoming = trainer._load(loader, 0)
        for step in range(pairs + 2):
            begin = time.perf_counter()
            host, upcoming = upcoming, trainer._load(loader, step + 1)
            trainer.state.step = step
            trainer._step(host)
            for future in upcoming:
                future.result()  # prefetching ends before the bare step begins; its time counts as ours
            loaded = time.perf_counter()
            trainer.optimiser.zero_grad(set_to_none=True)
            bare_step()
            trainer.optimiser.step()
            full.append(loaded - begin)
            bare.append(time.perf_counter() - loaded)
        ratios = [a / b for a, b in zip(full[2:], bare[2:], strict=True)]
        return {
            "goal": KINDS[kind], "ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios],
            "batch": BATCH[method][dim], "full_s": statistics.median(full[2:]), "bare_s": statistics.median(bare[2:]),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", choices=tuple(KINDS), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {kind: measure(kind, args.pairs) for kind in args.kind or KINDS}
    print(json.dumps({"bench": "step", "torch": torch.__version__, "machine": platform.machine(),
                      "threads": args.threads, "pairs": args.pairs, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
