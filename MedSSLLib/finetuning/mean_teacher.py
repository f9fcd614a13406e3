"""Mean Teacher: an option of fine-tuning that combines with any initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch, HostBatch, make_views
from MedSSLLib.data.intensity import sample_intensity
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.networks.ema import BATCH_NORMS, ema_update, frozen_copy
from MedSSLLib.networks.unet import SegmentationNet, memory_format
from MedSSLLib.training.task import Task

TEACHER_DECAY = 0.99  # Mean Teacher, section 3.3 (ramp-up phase)
RAMP_UP = 0.4  # fraction of the run over which the consistency weight rises; not from the paper


class TeacherStudent(nn.Module):
    """A student network and its frozen moving average."""

    def __init__(self, student: SegmentationNet) -> None:
        super().__init__()
        self.student = student
        self.teacher = frozen_copy(student)


@dataclass
class MeanTeacherTask(Task):
    """A labelled task plus consistency with a moving-average teacher on unlabelled patches.

    Tarvainen, Valpola 2017 (arXiv 1703.01780): student and teacher see the same patch under
    independently drawn intensity changes; the loss adds ``w(t) * mean (softmax_student -
    softmax_teacher)^2`` with ``w(t) = weight * exp(-5 (1 - t)^2)`` while ramping up.

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

    def host_batch(
        self, step: int, micro_batch: int, micro_batches: int
    ) -> tuple[HostBatch, HostBatch, HostBatch]:
        """Labelled windows, and unlabelled ones as the student and as the teacher see them."""
        student = self.unlabelled.sample(step, micro_batch, micro_batches)
        student = replace(student, labels=None)
        if self.labelled.device.type == "cuda":
            student = student.pin()
        rng = random_stream(self.unlabelled.seed, step, Stream.TEACHER_VIEW, micro_batch)
        changes = sample_intensity(rng, len(student.windows), self.unlabelled.augment)
        labelled = self.labelled.host_batch(step, micro_batch, micro_batches)
        return labelled, student, replace(student, changes=changes)

    def device_batch(
        self, host: tuple[HostBatch, HostBatch, HostBatch]
    ) -> tuple[Batch, Batch, Batch]:
        """The three batches on the device."""
        labelled, *unlabelled = host
        patch, device = self.unlabelled.patch, self.labelled.device
        if self.labelled.frozen:
            self.module.teacher.encoder.eval()
        views = [make_views(one, patch, device) for one in unlabelled]
        return self.labelled.device_batch(labelled), views[0], views[1]

    def losses(self, batch: tuple[Batch, Batch, Batch], progress: float) -> dict[str, Tensor]:
        """The labelled losses and the weighted consistency.

        The running statistics of batch normalisation stay those of labelled patches, which lie
        around structures; the others lie anywhere (not from the paper).
        """
        labelled, student, teacher = batch
        layout = memory_format(self.labelled.plan.dim)
        seen = student.images[:, 0].contiguous(memory_format=layout)
        with statistics_kept(self.module.student):
            prediction = self.module.student(seen).float().softmax(1)
        seen = teacher.images[:, 0].contiguous(memory_format=layout)
        with torch.no_grad():
            target = self.module.teacher(seen).float().softmax(1)
        distance = (prediction - target).square().sum(1).mean()
        self._consistency = distance.detach()
        return {
            **self.labelled.losses(labelled, progress),
            "consistency": ramp(progress) * self.weight * distance,
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        ema_update(self.module.teacher, self.module.student, TEACHER_DECAY)

    def diagnostics(self) -> dict[str, Tensor]:
        """Unweighted distance between student and teacher."""
        return {} if self._consistency is None else {"student_teacher": self._consistency}

    def validate(self) -> dict[str, float]:
        """Metrics of the student on held-out cases."""
        return self.labelled.validate()


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within the context a forward pass leaves the statistics of batch normalisation alone."""
    norms = [norm for norm in module.modules() if isinstance(norm, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def ramp(progress: float) -> float:
    """Fraction of the full weight at `progress` of the run.

    ``exp(-5 (1 - t)^2)`` (Laine, Aila 2017, arXiv 1610.02242), t reaching 1 at `RAMP_UP`.
    """
    return float(np.exp(-5 * (1 - min(1.0, progress / RAMP_UP)) ** 2))
