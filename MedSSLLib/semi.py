"""Mean Teacher and Mixup: options of fine-tuning that combine with any initialisation and with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.device import sum_over_processes
from MedSSLLib.intensity import sample_intensity
from MedSSLLib.losses import dice_ce_soft, mixed_targets
from MedSSLLib.methods.ema import BATCH_NORMS, ema_update, frozen_copy
from MedSSLLib.networks import SegmentationNet, memory_format
from MedSSLLib.sampling import Batch, HostBatch, SegmentationSampler, make_views
from MedSSLLib.segmentation import SegmentationTask

TEACHER_DECAY = 0.99  # Mean Teacher, section 3.3 (ramp-up phase)
RAMP_UP = 0.4  # share of the run over which the consistency weight rises; not from the paper


@dataclass
class MixupTask(SegmentationTask):
    """Segmentation of convex mixtures of two patches (Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv 1710.09412).

    Attributes:
        alpha: the mixing share is drawn from Beta(alpha, alpha) for each sample.
    """

    alpha: float = 0.2

    def host_batch(self, step: int, part: int, parts: int) -> HostBatch:
        """Labelled windows with each sample's share and partner, in ``meta``."""
        host = super().host_batch(step, part, parts)
        rng = np.random.default_rng([self.sampler.seed, step, 8, part])
        n = len(host.windows)
        share = torch.from_numpy(rng.beta(self.alpha, self.alpha, n).astype(np.float32))
        partner = torch.from_numpy(rng.permutation(n))
        return replace(host, meta={**host.meta, "share": share, "partner": partner})

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Dice and cross-entropy against the same mixture of both label maps."""
        assert batch.labels is not None
        share, partner = batch.meta["share"], batch.meta["partner"]
        images, labels = batch.images[:, 0], batch.labels[:, 0]
        weight = share.view(-1, *[1] * (images.dim() - 1))
        mixed = weight * images + (1 - weight) * images[partner]
        levels = self.module.all_logits(mixed.contiguous(memory_format=memory_format(self.plan.dim)))
        targets = mixed_targets(labels, labels[partner], share, levels[0].shape[1])
        return {"segmentation": soft_segmentation_loss(levels, targets)}


def soft_segmentation_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """:func:`~MedSSLLib.segmentation.segmentation_loss` for soft targets.

    Args:
        logits: ``[b, k, *s]`` per level, finest first; they weigh 1, 1/2, 1/4 ... normalised.
        targets: ``[b, k, *s]``; coarser levels take every n-th voxel.
    """
    weights = [0.5**level for level in range(len(logits))]
    terms = []
    for weight, level in zip(weights, logits, strict=True):
        steps = [n // m for n, m in zip(targets.shape[2:], level.shape[2:], strict=True)]
        reduced = targets[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
        terms.append(weight * dice_ce_soft(level, reduced, reduce=sum_over_processes))
    return torch.stack(terms).sum() / sum(weights)


class TeacherStudent(nn.Module):
    """A student network and its frozen moving average."""

    def __init__(self, student: SegmentationNet) -> None:
        super().__init__()
        self.student = student
        self.teacher = frozen_copy(student)


@dataclass
class MeanTeacherTask:
    """A labelled task plus consistency with a moving-average teacher on unlabelled patches.

    Tarvainen, Valpola 2017 (arXiv 1703.01780): student and teacher see the same patch under independently drawn
    intensity changes; the loss adds ``w(t) * mean (softmax_student - softmax_teacher)^2`` with
    ``w(t) = weight * exp(-5 (1 - t)^2)`` while ramping up.

    Attributes:
        labelled: the task on labelled patches; its network is the student.
        unlabelled: draws patches without labels.
        weight: largest weight of the consistency.
    """

    labelled: SegmentationTask
    unlabelled: SegmentationSampler
    weight: float
    module: TeacherStudent = field(init=False)
    _consistency: Tensor | None = None

    def __post_init__(self) -> None:
        """Make the teacher from the student as it is now."""
        self.module = TeacherStudent(self.labelled.module)

    def host_batch(self, step: int, part: int, parts: int) -> tuple[HostBatch, HostBatch, HostBatch]:
        """Labelled windows, and unlabelled windows with the student's and with the teacher's changes."""
        student = replace(self.unlabelled.sample(step, part, parts), labels=None)
        student = student.pin() if self.labelled.device.type == "cuda" else student
        rng = np.random.default_rng([self.unlabelled.seed, step, 9, part])
        teacher = replace(student, changes=sample_intensity(rng, len(student.windows), self.unlabelled.augment))
        return self.labelled.host_batch(step, part, parts), student, teacher

    def device_batch(self, host: tuple[HostBatch, HostBatch, HostBatch]) -> tuple[Batch, Batch, Batch]:
        """The three batches on the device."""
        labelled, *unlabelled = host
        patch, device = self.unlabelled.patch, self.labelled.device
        if self.labelled.frozen:
            self.module.teacher.encoder.eval()
        views = [make_views(one, patch, device) for one in unlabelled]
        return self.labelled.device_batch(labelled), views[0], views[1]

    def losses(self, batch: tuple[Batch, Batch, Batch], progress: float) -> dict[str, Tensor]:
        """The labelled losses and the weighted consistency.

        The running statistics of batch normalisation stay those of labelled patches, which lie around structures; the
        others lie anywhere (not from the paper).
        """
        labelled, student, teacher = batch
        layout = memory_format(self.labelled.plan.dim)
        with statistics_kept(self.module.student):
            prediction = self.module.student(student.images[:, 0].contiguous(memory_format=layout)).float().softmax(1)
        with torch.no_grad():
            target = self.module.teacher(teacher.images[:, 0].contiguous(memory_format=layout)).float().softmax(1)
        distance = (prediction - target).square().sum(1).mean()
        self._consistency = distance.detach()
        return {**self.labelled.losses(labelled, progress), "consistency": ramp(progress) * self.weight * distance}

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        ema_update(self.module.teacher, self.module.student, TEACHER_DECAY)

    def diagnostics(self) -> dict[str, Tensor]:
        """Unweighted distance between student and teacher."""
        return {} if self._consistency is None else {"student_teacher": self._consistency}

    def check(self, figures: dict[str, float], progress: float) -> None:
        """No check beyond finite losses."""

    def validate(self) -> dict[str, float]:
        """Figures of the student on held-out cases."""
        return self.labelled.validate()

    def gradient_rule(self) -> None:
        """The plain sum."""

    def shared(self) -> list[nn.Parameter]:
        """No parameters need separate gradients."""
        return []


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within the context a forward pass leaves the running statistics of batch normalisation alone."""
    parts = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]
    momenta = [part.momentum for part in parts]
    for part in parts:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(parts, momenta, strict=True):
            part.momentum = momentum


def ramp(progress: float) -> float:
    """Share of the full weight at `progress` of the run: ``exp(-5 (1 - t)^2)``, t reaching 1 at `RAMP_UP`."""
    return float(np.exp(-5 * (1 - min(1.0, progress / RAMP_UP)) ** 2))
