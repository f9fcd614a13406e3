"""One whole training step with every tensor on the meta device.

Mixing in a CPU tensor, ``.item()``, a boolean test, ``nonzero`` or boolean-mask indexing raises
there, so this finds device mixes and hidden waits of the CUDA path on a machine without a card.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
from MedSSLLib.selftraining.soft_labels import SoftLabels
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.trainer import LoopConfig, Trainer
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import MemoryReader, lone_fabric

META = torch.device("meta")
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
PATCH = {2: (16, 16), 3: (8, 16, 16)}


def encoder(dim):
    strides = [(1,) * dim, (1, 2, 2)[3 - dim :], (2,) * dim]
    return build_encoder(dim, 2, strides, NetworkConfig(widths=(4, 8, 8)))


def reader():
    rng = np.random.default_rng(0)
    label = np.zeros((10, 24, 24), np.uint8)
    label[2:8, 5:15, 5:15] = 1
    names = [f"c{i}" for i in range(4)]
    images = {n: rng.normal(size=(2, 10, 24, 24)).astype(np.float32) for n in names}
    return MemoryReader(images, dict.fromkeys(names, label))


def plan(dim):
    return Plan(
        dim=dim,
        spacing=(1.0, 1.0, 1.0),
        slice_axis=2,
        modality=("MR", "MR"),
        channels=2,
        patch=PATCH[dim],
        strides=tuple(encoder(dim).strides),
    )


def one_step(task, tmp_path, **options):
    """A step of the real trainer; the same step also on the CPU, so that the code under test is
    known to run.
    """
    config = LoopConfig(
        stage="meta",
        seed=0,
        budget=Budget(steps=4),
        optimiser=OptimiserConfig(name=options.pop("optimiser", "adamw")),
        **options,
    )
    trainer = Trainer(
        task, config, lone_fabric(next(task.module.parameters()).device), tmp_path, Events()
    )
    trainer.module.train()

    class Ready:
        def result(self):
            return task.host_batch(0, 0, 1)

    losses = trainer._step([Ready()])
    figures = {**losses, **task.diagnostics()}
    assert all(
        t.device.type == next(task.module.parameters()).device.type and t.dim() == 0
        for t in figures.values()
    )
    return losses


@each("device", ["meta", "cpu"])
@each("dim", [2, 3])
@each("optimiser", ["adamw", "sgd", "lars"])
def test_a_step_of_fine_tuning(tmp_path, dim, optimiser, device):
    sampler = SegmentationSampler(
        reader=reader(),
        cases=("c0", "c1"),
        patch=PATCH[dim],
        spacing=(1.0,) * dim,
        augment=ALL,
        batch=2,
        foreground=0.5,
        seed=0,
    )
    net = SegmentationNet(encoder(dim), 2, deep_supervision=True).to(device)
    task = SegmentationTask(net, sampler, plan(dim), torch.device(device), frozen=False)
    assert set(one_step(task, tmp_path, optimiser=optimiser)) == {"segmentation"}


def two_classes():
    source = reader()
    for label in source.labels.values():
        label[2:8, 5:15, 10:15] = 2
    return source


def semi(kind, dim, device):
    """Mean Teacher, Mixup, both, and the joint stage of self-training with either matching."""
    source = two_classes()
    sampler = SegmentationSampler(
        reader=source,
        cases=("c0", "c1"),
        patch=PATCH[dim],
        spacing=(1.0,) * dim,
        augment=ALL,
        batch=2,
        foreground=0.5,
        seed=0,
    )
    facts = (SegmentationNet(encoder(dim), 3).to(device), sampler, plan(dim), torch.device(device))
    labelled = MixupTask(*facts) if "mixup" in kind else SegmentationTask(*facts)
    if "mean-teacher" in kind:
        return MeanTeacherTask(labelled, replace(sampler, cases=("c2", "c3"), labelled=False), 1.0)
    if "mixing" in kind:
        return mixing(kind, facts)
    if kind.split()[0] in ("inter", "intra"):
        soft = SoftLabels(Path("nothing"), 3, frozenset()) if "soft" in kind else None
        return JointTask(
            labelled=labelled,
            contrast=replace(sampler, batch=3, soft=soft),
            classes=3,
            matching=kind.split()[0],
            weight=0.1,
            pseudo_weight=0.5,
        )
    return labelled


def mixing(kind, facts):
    """Mixing with pseudo-labels of a round, with the contrast, or with a teacher's."""
    soft = SoftLabels(Path("nothing"), 3, frozenset()) if "soft" in kind else None
    other = replace(facts[1], cases=("c2", "c3"), soft=soft, labelled="teacher" not in kind)
    task = MixingTask(*facts, other=other, classes=3, mix=Mix(threshold=0.5 if soft else 0.0))
    if "teacher" in kind:
        return TeacherMixingTask(task)
    if "contrast" in kind:
        return MixedContrastTask(mixing=task, matching="inter", weight=0.1)
    return task


SEMI = {
    "mixup": set(),
    "mean-teacher": {"consistency"},
    "mean-teacher and mixup": {"consistency"},
    "inter": {"contrast", "pseudo"},
    "intra": {"contrast", "pseudo"},
    "inter soft": {"contrast", "pseudo"},
    "mixing": set(),
    "mixing soft": set(),
    "mixing teacher": set(),
    "mixing contrast": {"contrast"},
}


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", SEMI)
def test_a_step_of_semi_supervised_training(tmp_path, kind, dim, device):
    extra = SEMI[kind]
    assert set(one_step(semi(kind, dim, device), tmp_path)) == {"segmentation"} | extra


def pretraining(method, dim, device, **options):
    kind = load_method(method)
    meta = {"patient": 4, "position": 2} if kind.needs_meta else {}
    context = MethodContext(dim, 2, PATCH[dim], meta)
    module = kind(encoder(dim), kind.Config(**options), context).to(device)

    def pick(rng, step):
        return [
            Pick(f"c{i % 4}", i % 10, {"patient": i % 4, "position": i // 4} if meta else {})
            for i in range(8)
        ]

    config = module.config
    sampler = ViewSampler(
        reader=reader(),
        pick=pick,
        patch=PATCH[dim],
        spacing=(1.0,) * dim,
        augment=ALL,
        views=kind.views,
        scale=config.view_scale,
        min_overlap=config.min_overlap,
        flip=config.flip,
        rotation=config.rotation,
        seed=0,
    )
    return PretrainTask(module, sampler, torch.device(device))


@each("device", ["meta", "cpu"])
@each(("method", "dim"), [(m, d) for m in METHODS for d in (2, 3) if d in load_method(m).dims])
def test_a_step_of_pre_training(tmp_path, method, dim, device):
    assert one_step(pretraining(method, dim, device), tmp_path)


@each(
    "break_it",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(x.shape),
        lambda x: float(x.mean()),
    ],
)
def test_what_would_wait_for_a_card_is_found(tmp_path, break_it):
    """The net catches fish: each of these, put into a loss, fails on the meta device."""
    task = pretraining("simclr", 2, "meta")
    plain = task.module.losses

    def losses(batch, progress):
        break_it(batch.images)
        return plain(batch, progress)

    task.module.losses = losses
    with pytest.raises(
        RuntimeError, match=r"meta|Expected all tensors"
    ):  # NotImplementedError is one
        one_step(task, tmp_path)
