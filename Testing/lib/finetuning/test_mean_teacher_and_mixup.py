"""Mean Teacher and Mixup: the weights of the parts, what has gradients, what moves after a step."""

import copy
import math

import numpy as np
import pytest
import torch

from MedSSLLib.data.batch import Batch
from MedSSLLib.finetuning.mean_teacher import TEACHER_DECAY, MeanTeacherTask, ramp
from MedSSLLib.finetuning.mixup import MixupTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import (
    dice_ce,
    dice_ce_soft,
    one_hot,
    segmentation_loss,
    soft_segmentation_loss,
)
from MedSSLLib.networks.ema import BATCH_NORMS
from Testing.lib.case_helpers import each
from Testing.lib.semi_helpers import CPU, PATCH, network, plan, sampler, unlabelled_sampler


def mixup(dim=2, deep=False, alpha=0.2):
    return MixupTask(network(dim, deep), sampler(dim, batch=4), plan(dim), CPU, alpha=alpha)


def with_fraction(task, fraction):
    host = task.host_batch(0, 0, 1)
    batch = task.device_batch(host)
    meta = {**batch.meta, "fraction": torch.full((4,), fraction)}
    return Batch(batch.images, None, batch.labels, meta)


@each("dim", [2, 3])
@each("deep", [False, True])
def test_mixup_with_fraction_one_is_the_plain_loss(dim, deep):
    task = mixup(dim, deep)
    batch = with_fraction(task, 1.0)
    assert torch.allclose(
        task.losses(batch, 0)["segmentation"],
        SegmentationTask.losses(task, batch, 0)["segmentation"],
        atol=1e-6,
    )


def test_mixup_mixes_images_and_targets_with_the_same_partner():
    """With fraction 0 every sample is its partner, in image and label alike."""
    task = mixup()
    task.module.eval()
    batch = with_fraction(task, 0.0)
    order = batch.meta["partner"]
    swapped = Batch(batch.images[order], None, batch.labels[order])
    expected = SegmentationTask.losses(task, swapped, 0)["segmentation"]
    assert torch.allclose(task.losses(batch, 0)["segmentation"], expected, atol=1e-6)
    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_mixup_equals_a_loop_over_samples():
    task = mixup()
    task.module.eval()
    batch = task.device_batch(task.host_batch(3, 0, 1))
    share, partner = batch.meta["fraction"].tolist(), batch.meta["partner"].tolist()
    x, y = batch.images[:, 0], batch.labels[:, 0]
    mixed = torch.stack(
        [s * x[i] + (1 - s) * x[j] for i, (s, j) in enumerate(zip(share, partner, strict=True))]
    )
    hot = one_hot(y, 3)
    soft = torch.stack(
        [s * hot[i] + (1 - s) * hot[j] for i, (s, j) in enumerate(zip(share, partner, strict=True))]
    )
    expected = dice_ce_soft(task.module(mixed), soft)
    assert torch.allclose(task.losses(batch, 0)["segmentation"], expected, atol=1e-5)
    assert min(share) > 0 and max(share) < 1


def test_shares_follow_a_beta_distribution_and_depend_on_the_step():
    task = mixup(alpha=0.5)
    drawn = torch.cat([task.host_batch(step, 0, 1).meta["fraction"] for step in range(60)])
    assert abs(float(drawn.mean()) - 0.5) < 0.08  # variance of Beta(a, a): 1 / (4 (2 a + 1))
    assert abs(float(drawn.var()) - 0.125) < 0.03
    assert torch.equal(
        task.host_batch(7, 0, 1).meta["fraction"], task.host_batch(7, 0, 1).meta["fraction"]
    )


def test_the_soft_loss_of_hard_targets_is_the_hard_loss_on_all_levels():
    logits = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 8)]
    labels = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    labels[0, :3] = 255
    assert torch.allclose(
        soft_segmentation_loss(logits, one_hot(labels, 3)), segmentation_loss(logits, labels)
    )
    assert torch.allclose(
        soft_segmentation_loss(logits[:1], one_hot(labels, 3)), dice_ce(logits[0], labels)
    )


def mean_teacher(dim=2, weight=2.0, frozen=False):
    labelled = SegmentationTask(network(dim), sampler(dim, batch=2), plan(dim), CPU, frozen=frozen)
    return MeanTeacherTask(labelled, unlabelled_sampler(dim), weight)


@pytest.mark.parametrize("dim", [2, 3])
def test_only_the_student_has_gradients(dim):
    task = mean_teacher(dim)
    losses = task.losses(task.device_batch(task.host_batch(0, 0, 1)), 0.5)
    losses["consistency"].backward()
    student, teacher = task.module.student, task.module.teacher
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_teacher_follows_the_closed_form_of_the_moving_average():
    """After n steps with a student held at s: t_n = s + d^n (t_0 - s), running statistics
    included.
    """
    task = mean_teacher()
    before = {n: t.clone() for n, t in task.module.teacher.state_dict().items()}
    with torch.no_grad():
        for t in task.module.student.state_dict().values():
            if t.is_floating_point():
                t.add_(torch.randn_like(t))
    for _ in range(3):
        task.after_step(0.5)
    student = task.module.student.state_dict()
    for name, value in task.module.teacher.state_dict().items():
        if value.is_floating_point():
            expected = student[name] + TEACHER_DECAY**3 * (before[name] - student[name])
            assert torch.allclose(value, expected, atol=1e-6), name


def test_computing_the_loss_moves_neither_teacher_nor_its_statistics():
    task = mean_teacher()
    before = {n: t.clone() for n, t in task.module.teacher.state_dict().items()}
    task.losses(task.device_batch(task.host_batch(0, 0, 1)), 0.5)
    assert all(torch.equal(t, before[n]) for n, t in task.module.teacher.state_dict().items())


def test_consistency_is_the_mean_squared_distance_of_probabilities_times_the_ramp():
    task = mean_teacher(weight=2.0)
    labelled, student, teacher = task.device_batch(task.host_batch(1, 0, 1))
    task.module.student.eval()
    task.module.teacher.eval()
    with torch.no_grad():
        task.module.student.head.bias.add_(torch.tensor([1.0, 0.0, -1.0]))
    p = task.module.student(student.images[:, 0]).softmax(1).detach().numpy()
    q = task.module.teacher(teacher.images[:, 0]).softmax(1).numpy()
    expected = 2.0 * math.exp(-5 * (1 - 0.1 / 0.4) ** 2) * np.mean(np.sum((p - q) ** 2, 1))
    losses = task.losses((labelled, student, teacher), 0.1)
    assert losses["consistency"].item() == pytest.approx(expected, rel=1e-4)
    assert task.diagnostics()["student_teacher"].item() == pytest.approx(
        np.mean(np.sum((p - q) ** 2, 1)), rel=1e-4
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_unlabelled_patches_leave_the_running_statistics_alone(dim):
    """After a step they are those of the labelled patches, and batch normalisation records as
    before.
    """
    task = mean_teacher(dim)
    batch = task.device_batch(task.host_batch(0, 0, 1))
    alone = copy.deepcopy(task.module.student)
    alone(batch[0].images[:, 0])
    task.losses(batch, 1.0)
    for (name, found), expected in zip(
        task.module.student.named_buffers(), alone.buffers(), strict=True
    ):
        assert "running" not in name or torch.allclose(found, expected), name
    assert all(
        part.momentum for part in task.module.student.modules() if isinstance(part, BATCH_NORMS)
    )


def test_student_and_teacher_see_one_patch_under_different_intensities():
    task = mean_teacher()
    _, student, teacher = task.host_batch(0, 0, 1)
    assert (
        student.windows is teacher.windows
        and student.geometry is teacher.geometry
        and student.labels is None
    )
    _, a, b = task.device_batch(task.host_batch(0, 0, 1))
    assert not torch.allclose(a.images, b.images)


def test_unlabelled_patches_never_ask_for_labels():
    task = mean_teacher()
    assert set(task.unlabelled.cases) - set(task.unlabelled.reader.labels), (
        "some have none: asking is a KeyError"
    )
    assert {name for step in range(4) for name in task.host_batch(step, 0, 1)[1].cases} >= {
        "c2",
        "c3",
    }


def test_a_frozen_encoder_uses_its_statistics_in_student_and_teacher():
    task = mean_teacher(frozen=True)
    task.module.train()
    task.device_batch(task.host_batch(0, 0, 1))
    assert not task.module.student.encoder.training and not task.module.teacher.encoder.training
    assert task.module.student.decoder.training and task.module.teacher.decoder.training


@each(("progress", "expected"), [(0, math.exp(-5)), (0.2, math.exp(-1.25)), (0.4, 1), (0.9, 1)])
def test_the_ramp(progress, expected):
    assert ramp(progress) == pytest.approx(expected)


def test_patches_have_the_size_of_the_plan():
    assert mixup(3).device_batch(mixup(3).host_batch(0, 0, 1)).images.shape[3:] == PATCH[3]
