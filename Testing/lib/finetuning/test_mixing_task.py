"""Mixed batches: what each voxel is taught, the teacher, and the parts of a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedSSLLib.data.mixing import labelled_mask
from MedSSLLib.finetuning.mean_teacher import TEACHER_DECAY, ramp
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask, TeacherMixingTask
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.dice_ce import dice_ce, dice_ce_soft
from MedSSLLib.selftraining.round_tasks import MixedContrastTask
from Testing.lib.semi_helpers import CPU, network, plan, reader, sampler


def task(dim=2, batch=8, labelled=True, **changes):
    """Labelled c0 and c1, pseudo-labelled c2 and c3."""
    mix = changes.pop("mix", Mix())
    source = reader(("c0", "c1", "c2", "c3"), **changes)
    first = sampler(dim, ("c0", "c1"), batch=batch, source=source)
    other = replace(first, cases=("c2", "c3"), seed=5, labelled=labelled)
    return MixingTask(network(dim), first, plan(dim), CPU, other=other, classes=3, mix=mix)


def batches(made, step=0):
    return made.device_batch(made.host_batch(step, 0, 1))


def mixture_of(made, step=0):
    first, second = batches(made, step)
    return first, second, made.mixture(first, second, *made.pseudo_targets(second))


@pytest.mark.parametrize("dim", [2, 3])
def test_every_voxel_has_image_and_target_of_the_same_side(dim):
    made = task(dim)
    first, second, mixture = mixture_of(made)
    meta = first.meta
    mask = labelled_mask(
        meta["low"], meta["high"], meta["outside"], meta["alone"], mixture.labels.shape[1:]
    ).numpy()
    assert 0.1 < mask.mean() < 0.9
    truth, guess = first.labels[:, 0].numpy(), second.labels[:, 0].numpy()
    np.testing.assert_array_equal(mixture.labels, np.where(mask, truth, guess))
    np.testing.assert_array_equal(
        mixture.images[:, 0],
        np.where(mask, first.images[:, 0, 0].numpy(), second.images[:, 0, 0].numpy()),
    )
    weight = np.where(mask, truth != IGNORE, 0.5 * (guess != IGNORE))
    np.testing.assert_allclose(mixture.targets.sum(1), weight)
    for value in range(3):
        np.testing.assert_allclose(
            mixture.targets[:, value], weight * (np.where(mask, truth, guess) == value)
        )


def test_without_pseudo_labels_only_labelled_voxels_teach():
    made = task(mix=Mix(weight=0.0))
    first, second, mixture = mixture_of(made)
    meta = first.meta
    mask = labelled_mask(meta["low"], meta["high"], meta["outside"], meta["alone"], (16, 16))
    known = torch.where(mask, first.labels[:, 0], torch.full_like(first.labels[:, 0], IGNORE))
    loss = made.losses((first, second), 0.0)["segmentation"]
    made.module.zero_grad()
    torch.testing.assert_close(loss, dice_ce(made.module(mixture.images), known))


def test_a_rectangle_of_the_whole_patch_is_plain_training():
    made = task(mix=Mix(share=(1.0, 1.0), alone_every=0))
    first, second, mixture = mixture_of(made)
    inner = [i for i in range(8) if i % 2 == 0]  # the others are turned inside out
    assert torch.equal(mixture.images[inner], first.images[inner, 0])
    assert torch.equal(mixture.labels[inner], first.labels[inner, 0])
    outer = [i for i in range(8) if i % 2]
    assert torch.equal(mixture.images[outer], second.images[outer, 0])


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_every_other_step_has_patches_as_they_are(parts):
    """Labelled and pseudo-labelled ones in turn in every part of a batch, which is normalised by
    itself; where a part is one sample, from step to step.
    """
    made = task(mix=Mix(plain_every=2))
    for step in (0, 1, 2, 3):
        for part in range(parts):
            first, second = made.device_batch(made.host_batch(step, part, parts))
            mixture = made.mixture(first, second, *made.pseudo_targets(second))
            assert first.plain is (step % 2 == 1)
            sides = [
                [torch.equal(image, side.images[n, 0]) for side in (first, second)]
                for n, image in enumerate(mixture.images)
            ]
            if not first.plain:
                assert not any(own for own, _ in sides), "some are of the teacher alone"
                continue
            turn = step // 2 + part
            assert sides == [[n % 2 == 0, n % 2 == 1] for n in range(turn, turn + len(sides))]
            for n, own in enumerate(mixture.labels):
                source = first if sides[n][0] else second
                assert torch.equal(own, source.labels[n, 0])


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("every", [0, 2, 3])
def test_a_quarter_of_the_mixed_samples_is_of_the_teacher_alone(batch, every):
    made, alone = task(batch=batch, mix=Mix(plain_every=every)), []
    for step in range(24):
        first, _ = made.host_batch(step, 0, 1)
        alone += [] if first.plain else first.meta["alone"].tolist()
    assert np.mean(alone) == 0.25


@pytest.mark.parametrize("kind", ["mixing", "teacher", "contrast"])
@pytest.mark.parametrize("every", [0, 2])
def test_only_patches_as_they_are_move_the_statistics(kind, every):
    made = task(mix=Mix(plain_every=every), labelled=kind != "teacher")
    if kind == "teacher":
        made = TeacherMixingTask(made)
    if kind == "contrast":
        made = MixedContrastTask(mixing=made, matching="inter", weight=0.1)
    net = made.module.student if kind == "teacher" else made.module
    means = [norm for norm in net.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    for step in range(4):
        before = [norm.running_mean.clone() for norm in means]
        made.losses(batches(made, step), 0.5)
        moved = [
            not torch.equal(norm.running_mean, b) for norm, b in zip(means, before, strict=True)
        ]
        assert means and set(moved) == {every == 0 or step % 2 == 1}


def test_voxels_of_sparse_labels_that_are_unknown_stay_unknown():
    made = task(3, sparse=("c0", "c1"))
    first, _, mixture = mixture_of(made)
    meta = first.meta
    mask = labelled_mask(
        meta["low"], meta["high"], meta["outside"], meta["alone"], mixture.labels.shape[1:]
    )
    unknown = mask & (first.labels[:, 0] == IGNORE)
    assert unknown.float().mean() > 0.05
    assert not mixture.targets.sum(1)[unknown].any() and (mixture.labels[unknown] == IGNORE).all()


@pytest.mark.parametrize("soft", [False, True])
def test_unsure_voxels_of_soft_pseudo_labels_do_not_count(soft):
    """Targets that readers give are probabilities times their largest."""
    made = task(mix=Mix(threshold=0.7, soft=soft))
    _, second = batches(made)
    likely = torch.from_numpy(
        np.random.default_rng(0).dirichlet([0.3] * 3, (8, 16, 16)).transpose(0, 3, 1, 2)
    ).float()
    likely[0, :, 0, 0] = torch.tensor([0.6, 0.3, 0.1])
    given = likely * likely.amax(1, keepdim=True)
    given[1] = 0  # what does not count
    labels, targets = made.pseudo_targets(replace(second, targets=given[:, None]))
    assert torch.equal(labels, second.labels[:, 0])
    assert not targets[0, :, 0, 0].any() and not targets[1].any()
    sure = likely.amax(1) >= 0.7
    sure[1] = False
    assert torch.equal(targets.sum(1) > 0, sure)
    best = 0.5 * torch.nn.functional.one_hot(likely.argmax(1), 3).movedim(-1, 1)
    expected = 0.5 * given if soft else best
    torch.testing.assert_close(targets, (expected * sure[:, None]).float())


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_mixed_batch_make_up_the_whole(parts):
    made = task()
    for step in range(2):
        whole = mixture_of(made, step)[2]
        for part in range(parts):
            first, second = made.device_batch(made.host_batch(step, part, parts))
            mine = made.mixture(first, second, *made.pseudo_targets(second))
            torch.testing.assert_close(mine.images, whole.images[part::parts], atol=1e-4, rtol=1e-4)
            assert torch.equal(mine.labels, whole.labels[part::parts])
            torch.testing.assert_close(mine.targets, whole.targets[part::parts])


def teacher_task(dim=2, **mix):
    return TeacherMixingTask(task(dim, labelled=False, mix=Mix(**mix)))


def test_the_teacher_sees_the_place_of_the_student_without_changes_of_intensity():
    made = teacher_task()
    host = made.host_batch(0, 0, 1)
    assert host[1].changes and not host[2].changes and host[1].windows is host[2].windows
    _, strong, weak = made.device_batch(host)
    assert not torch.equal(strong.images, weak.images)
    plain = replace(host[1], changes={})
    assert torch.equal(made.mixing.device_batch((host[0], plain))[1].images, weak.images)


def test_the_teacher_labels_the_student_learns():
    made = teacher_task(threshold=0.4)
    first, strong, weak = made.device_batch(made.host_batch(0, 0, 1))
    progress = 0.2
    before = {k: v.clone() for k, v in made.module.teacher.state_dict().items()}
    made.module.train()
    with torch.no_grad():
        teacher = made.module.teacher.eval()
        likely = teacher(weak.images[:, 0]).softmax(1)
        teacher.train()
    sure, best = likely.max(1)
    weight = 0.5 * ramp(progress) * (sure >= 0.4)
    targets = torch.nn.functional.one_hot(best, 3).movedim(-1, 1) * weight[:, None]
    mixture = made.mixing.mixture(first, strong, best.to(torch.uint8), targets)
    loss = made.losses((first, strong, weak), progress)["segmentation"]
    loss.backward()
    torch.testing.assert_close(made.diagnostics()["teacher_sure"], (sure >= 0.4).float().mean())
    made.module.student.train()
    torch.testing.assert_close(
        loss, dice_ce_soft(made.module.student(mixture.images), mixture.targets)
    )
    assert all(p.grad is None for p in made.module.teacher.parameters())
    after = made.module.teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "predicting changes nothing"


def test_the_teacher_follows_the_student_with_its_statistics():
    made = teacher_task()
    with torch.no_grad():
        for p in made.module.student.parameters():
            p.add_(1.0)
    for b in made.module.student.buffers():
        if b.is_floating_point():
            b.add_(2.0)
    before = {k: v.clone() for k, v in made.module.teacher.state_dict().items()}
    made.after_step(0.5)
    student = made.module.student.state_dict()
    for name, value in made.module.teacher.state_dict().items():
        if value.is_floating_point():
            expected = TEACHER_DECAY * before[name] + (1 - TEACHER_DECAY) * student[name]
            torch.testing.assert_close(value, expected)
