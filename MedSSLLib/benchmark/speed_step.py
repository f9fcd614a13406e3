"""A whole training step over the bare networks on a ready batch, for every kind of training.

The whole step is the real trainer's: batch from the cache, views, losses, gradient rule, optimiser,
prefetching of the next batch included. The references are, all with the same optimiser step:

* fine-tuning: forward and backward;
* self-training: the same on the labelled and on the contrast batch;
* PGL: the online network forward and backward, the target network forward, on ready views;
* GCL: one encoder forward and one backward pass for every meta label.

What opens files is imported where it is used: ``Testing/gpu`` takes the references without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from MedSSLLib.benchmark.timing import Comparison, in_turn
from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import atomic_path
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.finetuning.mixing_task import MixingTask, TeacherMixingTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.losses.dice_ce import segmentation_loss
from MedSSLLib.methods.options import configured
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, memory_format, place
from MedSSLLib.selftraining.local_contrast_task import JointTask
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.trainer import Trainer

if TYPE_CHECKING:
    from MedSSLLib.project.project import Project
    from MedSSLLib.training.context import TrainingContext

GRIDS = {"2d": Geometry((180, 200, 10), (1.4, 1.4, 8.0)), "3d": Geometry((64, 64, 64))}
"""Heart-like slices and a small volume, for each dimension."""
_Kind = Literal["pretrain", "finetune", "selftrain"]


@dataclass(frozen=True)
class Step:
    """A kind of training to time.

    Attributes:
        command, method: as in the configuration.
        dim: '2d' or '3d'.
        batch: samples a step.
        goal: of whole step over reference.
    """

    command: _Kind
    method: str
    dim: str
    batch: int
    goal: float


STEPS = {
    "finetune-2d": Step("finetune", "supervised", "2d", 12, 1.10),
    "finetune-3d": Step("finetune", "supervised", "3d", 2, 1.10),
    "pgl-3d": Step("pretrain", "pgl", "3d", 4, 1.20),
    "gcl-2d": Step("pretrain", "gcl", "2d", 24, 1.20),
    "selftrain-2d": Step("selftrain", "local-contrast", "2d", 8, 1.25),
    "selftrain-3d": Step("selftrain", "local-contrast", "3d", 2, 1.25),
    "mixing-2d": Step("selftrain", "mixing", "2d", 8, 1.30),
    "mixing-3d": Step("selftrain", "mixing", "3d", 2, 1.30),
    "mixing-teacher-2d": Step("finetune", "mixing", "2d", 8, 1.30),
    "mixing-teacher-3d": Step("finetune", "mixing", "3d", 2, 1.30),
}


def measure_step(
    name: str,
    pairs: int,
    *,
    device: str = "cpu",
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Times of whole and bare steps.

    Args:
        name: one of STEPS.
        pairs: steps of each.
        device: as in the configuration.
        batch: samples a step; ``None`` = that of STEPS.
        settings: further settings of the run.
    """
    from MedSSLLib.training.context import open_context

    step = STEPS[name]
    size = batch or step.batch
    overrides = {
        "dim": step.dim,
        "device": device,
        "name": "speed",
        "training.batch": size,
        **(settings or {}),
    }
    config = configured(step.command, method=step.method, overrides=overrides)
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as loader,
        ExitStack() as stack,
    ):
        context = open_context(_project(Path(folder), GRIDS[step.dim]), config, Events(), stack)
        trainer = _trainer(context, step, size)
        trainer.module.train()
        whole, bare = WholeStep(trainer, loader), bare_step(trainer, step)
        times = in_turn(whole, bare, pairs, warm=2, device=context.device)
        whole.finish()
    return Comparison("step", name, *times, goal=step.goal, facts={"batch": size})


class WholeStep:
    """A step as the trainer takes it.

    What is prefetched is waited for, so that its time counts here alone.

    Args:
        trainer: at its first step, its module in training mode.
        loader: one thread that loads batches.
    """

    def __init__(self, trainer: Trainer, loader: ThreadPoolExecutor) -> None:
        self.trainer, self.loader, self.step = trainer, loader, 0
        self.upcoming = trainer._load(loader, 0)

    def __call__(self) -> None:
        host, self.upcoming = self.upcoming, self.trainer._load(self.loader, self.step + 1)
        self.trainer.state.step = self.step
        self.trainer._step(host)
        self.finish()
        self.step += 1

    def finish(self) -> None:
        """Wait for what is being loaded."""
        for future in self.upcoming:
            future.result()


def _project(folder: Path, grid: Geometry) -> Project:
    """Four noisy volumes of two patients in two phases, with two blocks of foreground."""
    from MedSSLLib.images import io
    from MedSSLLib.project.project import Project

    rng = np.random.default_rng(0)
    for index in range(4):
        label = np.zeros(grid.shape, np.uint8)
        label[tuple(slice(n // 3, n // 2) for n in grid.shape)] = 1
        label[tuple(slice(n // 2, 2 * n // 3) for n in grid.shape)] = 2
        image = (rng.normal(100, 9, grid.shape) + 50 * label).astype(np.float32)
        io.write_image(folder / "images" / f"c{index}.nii.gz", Volume(image, grid))
        io.write_image(folder / "labels" / f"c{index}.nii.gz", Volume(label, grid))
    rows = "".join(f"c{i},p{i // 2},{'ab'[i % 2]}\n" for i in range(4))
    with atomic_path(folder / "metadata.csv") as path:
        path.write_text("case,patient,phase\n" + rows, encoding="utf-8")
    return Project.create(
        folder / "project",
        folder / "images",
        labels=folder / "labels",
        metadata=folder / "metadata.csv",
    )


def _trainer(context: TrainingContext, step: Step, batch: int) -> Trainer:
    """The real trainer and task over a real cache."""
    from MedSSLLib.pretraining.pretrain import build_task
    from MedSSLLib.training.context import fill_cache
    from MedSSLLib.training.planning import choose_plan
    from MedSSLLib.training.stages import loop_config

    plan = choose_plan(context, context.project.pool)
    pretraining = step.command == "pretrain"
    cache, cases = fill_cache(context, plan, context.project.pool, labels=not pretraining)
    if pretraining:
        task: Any = build_task(context, plan, cache, cases)[0]
    else:
        mm = tuple(float(x) for x in plan.spacing[3 - plan.dim :] if x)
        names = tuple(case.name for case in cases)
        net = SegmentationNet(build_encoder(plan.dim, 1, plan.strides, context.config.network), 3)
        labelled, contrast = (
            SegmentationSampler(
                reader=cache,
                cases=names,
                patch=plan.patch,
                spacing=mm,
                augment=AugmentConfig(),
                batch=batch,
                foreground=fraction,
                seed=seed,
            )
            for seed, fraction in enumerate((0.5, 1.0))
        )
        task = SegmentationTask(net, labelled, plan, context.device)
        if step.method == "mixing":
            other = replace(contrast, foreground=0.5, labelled=step.command == "selftrain")
            task = MixingTask(net, labelled, plan, context.device, other=other, classes=3)
            task = task if step.command == "selftrain" else TeacherMixingTask(task)
        elif step.command == "selftrain":
            task = JointTask(
                labelled=task,
                contrast=contrast,
                classes=3,
                matching="inter",
                weight=0.1,
                pseudo_weight=0.5,
            )
    place(task.module, context.device, plan.dim)
    return Trainer(
        task,
        loop_config(context.config, "speed", Budget(steps=10**6)),
        context.fabric,
        context.folder,
        context.events,
    )


def bare_step(trainer: Trainer, step: Step) -> Callable[[], None]:
    """Forward, backward and optimiser step of the networks alone, on a ready batch.

    Args:
        trainer: of a task of the kind that the step names.
        step: which reference is meant.
    """
    task: Any = trainer.task
    key = step.command if step.method in ("supervised", "local-contrast") else step.method
    work = _BARE[key](task, task.device_batch(task.host_batch(0, 0, 1)))

    def bare() -> None:
        trainer.optimiser.zero_grad(set_to_none=True)
        with trainer.fabric.autocast():
            work().backward()
        trainer.optimiser.step()

    return bare


def _bare_finetune(task: SegmentationTask, batch: Any) -> Callable[[], torch.Tensor]:
    images = batch.images[:, 0].contiguous(memory_format=memory_format(task.plan.dim))
    return lambda: segmentation_loss(task.module.all_logits(images), batch.labels[:, 0])


def _bare_selftrain(task: JointTask, batch: Any) -> Callable[[], torch.Tensor]:
    labelled, (view, *_) = batch
    layout = memory_format(task.labelled.plan.dim)
    first, second = (
        part.images[:, 0].contiguous(memory_format=layout) for part in (labelled, view)
    )

    def work() -> torch.Tensor:
        loss = segmentation_loss(task.labelled.module.all_logits(first), labelled.labels[:, 0])
        logits, projections = task.module(second)
        return loss + segmentation_loss([logits], view.labels[:, 0]) + projections.mean()

    return work


def _bare_mixing(task: MixingTask | TeacherMixingTask, batch: Any) -> Callable[[], torch.Tensor]:
    """The network alone on a batch as large; a teacher's forward pass is no part of it."""
    mixing = task.mixing if isinstance(task, TeacherMixingTask) else task
    images = batch[0].images[:, 0].contiguous(memory_format=memory_format(mixing.plan.dim))
    return lambda: segmentation_loss(mixing.module.all_logits(images), batch[0].labels[:, 0])


def _bare_pgl(task: Any, batch: Any) -> Callable[[], torch.Tensor]:
    method, images = task.module, batch.images.flatten(0, 1)

    def work() -> torch.Tensor:
        projections = method.projectors(method.features(method.encoder(images)))
        predicted = [head(z) for head, z in zip(method.predictors, projections, strict=True)]
        with torch.no_grad():
            method.target_projectors(method.features(method.target_encoder(images)))
        return torch.stack([p.square().mean() for p in predicted]).sum()

    return work


def _bare_gcl(task: Any, batch: Any) -> Callable[[], torch.Tensor]:
    method, images = task.module, batch.images.flatten(0, 1)

    def work() -> torch.Tensor:
        deepest = method.encoder(images)[-1]
        for _ in range(len(method.labels) - 1):
            deepest.square().mean().backward(retain_graph=True)
        loss: torch.Tensor = deepest.square().mean()
        return loss

    return work


_BARE: dict[str, Callable[[Any, Any], Callable[[], torch.Tensor]]] = {
    "finetune": _bare_finetune,
    "selftrain": _bare_selftrain,
    "mixing": _bare_mixing,
    "pgl": _bare_pgl,
    "gcl": _bare_gcl,
}
