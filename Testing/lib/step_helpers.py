"""A whole training step of every kind, over cases in memory: any size, any device.

Used by the tests on the meta device and by ``Testing/gpu``, so it needs neither files of images nor
pytest.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.config.run import AugmentConfig, NetworkConfig, OptimiserConfig
from MedSSLLib.core.events import Events
from MedSSLLib.data.patch_samplers import Pick, SegmentationSampler, ViewSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.finetuning.mean_teacher import MeanTeacherTask
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask, TeacherMixingTask
from MedSSLLib.finetuning.mixup import MixupTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.methods import METHODS, load_method
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.networks.unet import SegmentationNet, build_encoder
from MedSSLLib.pretraining.task import PretrainTask
from MedSSLLib.selftraining.local_contrast_task import JointTask
from MedSSLLib.selftraining.round_tasks import MixedContrastTask
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.trainer import LoopConfig, Trainer
from Testing.lib.core_helpers import MemoryReader, lone_fabric
from Testing.lib.semi_helpers import ALL

NAMES = tuple(f"c{i}" for i in range(4))
SEMI = {
    "mixup": set(),
    "mean-teacher": {"consistency"},
    "mean-teacher and mixup": {"consistency"},
    "inter": {"contrast", "pseudo"},
    "intra": {"contrast", "pseudo"},
    "inter soft": {"contrast", "pseudo"},
    "mixing": set(),
    "mixing soft": set(),
    "mixing plain": set(),
    "mixing teacher": set(),
    "mixing contrast": {"contrast"},
}
"""Kinds of training with labels, and their losses beside that of segmentation."""


@dataclass(frozen=True)
class Size:
    """How large the data, the network and a batch are.

    Attributes:
        widths: channels per level, at least three.
        volume: voxels d, h, w of a case.
        patch2, patch3: voxels of a patch, by dimension.
        batch: labelled samples a step.
        samples: samples a step of pre-training.
        channels: images per case.
        augment: changes of views.
        deep: whether fine-tuning has deep supervision.
    """

    widths: tuple[int, ...] = (4, 8, 8)
    volume: tuple[int, int, int] = (10, 24, 24)
    patch2: tuple[int, int] = (16, 16)
    patch3: tuple[int, int, int] = (8, 16, 16)
    batch: int = 2
    samples: int = 8
    channels: int = 2
    augment: AugmentConfig = ALL
    deep: bool = True

    def patch(self, dim: int) -> tuple[int, ...]:
        return self.patch2 if dim == 2 else self.patch3

    def strides(self, dim: int) -> list[tuple[int, ...]]:
        coarse = [(2,) * dim] * (len(self.widths) - 2)
        return [(1,) * dim, (1, 2, 2)[3 - dim :], *coarse]

    def encoder(self, dim: int):
        network = NetworkConfig(widths=self.widths)
        return build_encoder(dim, self.channels, self.strides(dim), network)

    def plan(self, dim: int) -> Plan:
        return Plan(
            dim=dim,
            spacing=(1.0, 1.0, 1.0),
            slice_axis=2,
            modality=("MR",) * self.channels,
            channels=self.channels,
            patch=self.patch(dim),
            strides=tuple(self.strides(dim)),
        )

    def reader(self, classes: int = 2) -> MemoryReader:
        """Four noisy cases with a block of class 1, and half of it of class 2 where asked for."""
        rng = np.random.default_rng(0)
        d, h, w = self.volume
        label = np.zeros(self.volume, np.uint8)
        block = (slice(d // 5, 4 * d // 5), slice(5 * h // 24, 15 * h // 24))
        label[*block, 5 * w // 24 : 15 * w // 24] = 1
        if classes > 2:
            label[*block, 10 * w // 24 : 15 * w // 24] = 2
        images = {
            name: rng.normal(size=(self.channels, *self.volume)).astype(np.float32)
            for name in NAMES
        }
        return MemoryReader(images, dict.fromkeys(NAMES, label))


TINY = Size()
Wrap = Callable[[Any], Any]
"""What makes another sampler of a sampler."""


def same(sampler: Any) -> Any:
    """The sampler itself."""
    return sampler


def kinds(dim: int) -> list[str]:
    """Every kind of training of a dimension, by the name that :func:`build_step_task` takes."""
    methods = [name for name in METHODS if dim in load_method(name).dims]
    return ["supervised", *SEMI, *methods]


def build_step_task(
    kind: str, dim: int, device: str | torch.device, size: Size = TINY, wrap: Wrap = same
) -> Any:
    """The task of a kind of training, with weights that depend on the seed of torch alone."""
    if kind in METHODS:
        return pretraining(kind, dim, device, size=size, wrap=wrap)
    if kind == "supervised":
        return supervised(dim, device, size, wrap)
    return semi(kind, dim, device, size, wrap)


def segmentation_sampler(dim: int, size: Size, source: MemoryReader, wrap: Wrap) -> Any:
    """Draws patches of the first two cases."""
    return wrap(
        SegmentationSampler(
            reader=source,
            cases=NAMES[:2],
            patch=size.patch(dim),
            spacing=(1.0,) * dim,
            augment=size.augment,
            batch=size.batch,
            foreground=0.5,
            seed=0,
        )
    )


def supervised(dim, device, size=TINY, wrap=same):
    """Plain fine-tuning on one structure."""
    net = SegmentationNet(size.encoder(dim), 2, deep_supervision=size.deep).to(device)
    sampler = segmentation_sampler(dim, size, size.reader(), wrap)
    return SegmentationTask(net, sampler, size.plan(dim), torch.device(device), frozen=False)


def semi(kind, dim, device, size=TINY, wrap=same):
    """Mean Teacher, Mixup, both, mixing, and the joint stage of self-training."""
    sampler = segmentation_sampler(dim, size, size.reader(3), wrap)
    net = SegmentationNet(size.encoder(dim), 3).to(device)
    facts = (net, sampler, size.plan(dim), torch.device(device))
    labelled = MixupTask(*facts) if "mixup" in kind else SegmentationTask(*facts)
    if "mean-teacher" in kind:
        return MeanTeacherTask(labelled, replace(sampler, cases=NAMES[2:], labelled=False), 1.0)
    if "mixing" in kind:
        return mixing(kind, facts)
    if kind.split()[0] in ("inter", "intra"):
        soft = soft_labels() if "soft" in kind else None
        return JointTask(
            labelled=labelled,
            contrast=replace(sampler, batch=size.batch + 1, soft=soft),
            classes=3,
            matching=kind.split()[0],
            weight=0.1,
            pseudo_weight=0.5,
        )
    return labelled


def mixing(kind, facts):
    """Mixing with pseudo-labels of a round, with the contrast, or with a teacher's."""
    soft = soft_labels() if "soft" in kind else None
    other = replace(facts[1], cases=NAMES[2:], soft=soft, labelled="teacher" not in kind)
    task = MixingTask(
        *facts,
        other=other,
        classes=3,
        mix=Mix(threshold=0.5 if soft else 0.0, plain_every=2 if "plain" in kind else 0),
    )
    if "teacher" in kind:
        return TeacherMixingTask(task)
    if "contrast" in kind:
        return MixedContrastTask(mixing=task, matching="inter", weight=0.1)
    return task


def soft_labels():
    """Soft targets of a round that predicted no case."""
    from MedSSLLib.selftraining.soft_labels import SoftLabels  # needs blosc2, as no other kind does

    return SoftLabels(Path("nothing"), 3, frozenset())


def pretraining(method, dim, device, *, size=TINY, wrap=same, **options):
    """A pre-training method over all cases."""
    kind = load_method(method)
    meta = {"patient": 4, "position": 2} if kind.needs_meta else {}
    context = MethodContext(dim, size.channels, size.patch(dim), meta)
    module = kind(size.encoder(dim), kind.Config(**options), context).to(device)

    def pick(rng, step):
        return [
            Pick(
                NAMES[i % 4],
                i % size.volume[0],
                {"patient": i % 4, "position": i // 4 % 2} if meta else {},
            )
            for i in range(size.samples)
        ]

    config = module.config
    sampler = ViewSampler(
        reader=size.reader(),
        pick=pick,
        patch=size.patch(dim),
        spacing=(1.0,) * dim,
        augment=size.augment,
        views=kind.views,
        scale=config.view_scale,
        min_overlap=config.min_overlap,
        flip=config.flip,
        rotation=config.rotation,
        seed=0,
    )
    return PretrainTask(module, wrap(sampler), torch.device(device))


class Ready:
    """A batch that is there already, where the trainer expects one that is being loaded."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def step_trainer(task: Any, folder: Path, fabric: Any = None, **options: Any) -> Trainer:
    """The real trainer of a task; `options` are those of LoopConfig."""
    fabric = fabric or lone_fabric(next(task.module.parameters()).device)
    given: dict[str, Any] = {"stage": "step", "seed": 0, "budget": Budget(steps=4)}
    given["optimiser"] = OptimiserConfig()
    trainer = Trainer(task, LoopConfig(**given | options), fabric, folder, Events())
    trainer.module.train()
    return trainer


def take_step(trainer: Trainer, step: int = 0) -> dict[str, torch.Tensor]:
    """One whole step of the trainer on the batch of that number; its losses."""
    rank, world = trainer.fabric.global_rank, trainer.fabric.world_size
    return trainer._step([Ready(trainer.task.host_batch(step, rank, world))])
