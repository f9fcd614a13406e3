"""Segmentation of labelled images mixed with images that a teacher has labelled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from MedSSLLib.data.batch import Batch, HostBatch, make_views
from MedSSLLib.data.mixing import (
    ALONE_EVERY,
    label_targets,
    labelled_mask,
    mixed,
    prediction_targets,
    sample_rectangles,
    sample_roles,
    sample_whole,
)
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.random import Stream, own_samples, random_stream
from MedSSLLib.finetuning.mean_teacher import TEACHER_DECAY, TeacherStudent, ramp, statistics_kept
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import soft_segmentation_loss
from MedSSLLib.networks.ema import ema_update
from MedSSLLib.networks.unet import SegmentationNet, memory_format
from MedSSLLib.training.devices import sum_over_processes
from MedSSLLib.training.task import Task


@dataclass(frozen=True)
class Mix:
    """How two images are mixed.

    Attributes:
        weight: of a voxel that a teacher has labelled, against 1 of one that a person has (BCP:
            0.5).
        share: range of a rectangle's side, share of the patch. Not from the paper (BCP: 2/3).
        alone_every: of so many samples one is that of the teacher alone; 0 = none. Not from the
            paper.
        threshold: least probability of a voxel of the teacher that counts (UniMatch: 0.95).
        soft: whether the teacher's targets are probabilities.
        plain_every: of so many steps one has patches as they are, labelled and pseudo-labelled
            ones, and only these move the running statistics of batch normalisation: those of mixed
            patches made structures too large. 0 = no such steps. Not from the paper.
    """

    weight: float = 0.5
    share: tuple[float, float] = (0.4, 0.8)
    alone_every: int = ALONE_EVERY
    threshold: float = 0.0
    soft: bool = False
    plain_every: int = 0


class Mixture(NamedTuple):
    """A mixed batch: images ``[n, c, *s]``, class maps ``[n, *s]``, soft targets ``[n, k, *s]``."""

    images: Tensor
    labels: Tensor
    targets: Tensor


@dataclass
class MixingTask(SegmentationTask):
    """Dice and cross-entropy of one batch in which every image is put together from two.

    A rectangle of a labelled patch lies in one with pseudo-labels, or the other way round, and
    their targets alike (BCP, arXiv 2305.00673); see :mod:`MedSSLLib.data.mixing`.

    Attributes:
        other: draws patches with pseudo-labels, as many as `sampler`.
        classes: k with background.
        mix: how they are mixed.
    """

    other: SegmentationSampler = field(kw_only=True)
    classes: int = field(kw_only=True)
    mix: Mix = field(kw_only=True, default=Mix())

    def host_batch(  # type: ignore[override]
        self, step: int, micro_batch: int, micro_batches: int
    ) -> tuple[HostBatch, HostBatch]:
        """Labelled windows, with the rectangles of the mix in ``meta``, and those with
        pseudo-labels.
        """
        first = super().host_batch(step, micro_batch, micro_batches)
        second = self.other.sample(step, micro_batch, micro_batches)
        n = self.sampler.batch
        mine = own_samples(n, micro_batch, micro_batches)
        every = self.mix.plain_every
        before = step // every if every else 0  # steps without mixing
        plain = bool(every) and step % every == every - 1
        if plain:  # both kinds in what is normalised together, this process's part of the batch
            turn = before + micro_batch
            low, high, outside, alone = sample_whole(len(mine), turn, self.sampler.patch)
        else:
            rng = random_stream(self.sampler.seed, step, Stream.MIXING)
            low, high = (
                corner[mine]
                for corner in sample_rectangles(rng, n, self.sampler.patch, self.mix.share)
            )
            outside, alone = (
                role[mine] for role in sample_roles(n, (step - before) * n, self.mix.alone_every)
            )
        drawn = {"low": low, "high": high, "outside": outside, "alone": alone}
        meta = {name: torch.from_numpy(value) for name, value in drawn.items()}
        second = second.pin() if self.device.type == "cuda" else second
        return replace(first, meta={**first.meta, **meta}, plain=plain), second

    def device_batch(self, host: tuple[HostBatch, HostBatch]) -> tuple[Batch, Batch]:  # type: ignore[override]
        """Both batches on the device."""
        return super().device_batch(host[0]), make_views(host[1], self.other.patch, self.device)

    def losses(self, batch: tuple[Batch, Batch], progress: float) -> dict[str, Tensor]:  # type: ignore[override]
        """The segmentation loss of the mixture."""
        mixture = self.mixture(*batch, *self.pseudo_targets(batch[1]))
        with self.statistics(batch[0]):
            logits = self.module.all_logits(mixture.images)
        return {"segmentation": soft_segmentation_loss(logits, mixture.targets, sum_over_processes)}

    def statistics(self, first: Batch) -> AbstractContextManager[None]:
        """Within the context a forward pass moves the statistics of batch normalisation only where
        they are to be those of this step's patches.
        """
        if first.plain or not self.mix.plain_every:
            return nullcontext()
        return statistics_kept(self.module)

    def mixture(self, first: Batch, second: Batch, labels: Tensor, targets: Tensor) -> Mixture:
        """The mixed batch.

        Args:
            first: labelled patches, with the rectangles.
            second: the other ones, of which only the images count.
            labels: class maps of the latter, ``[n, *s]``.
            targets: their targets, ``[n, k, *s]``.
        """
        assert first.labels is not None
        meta, truth = first.meta, first.labels[:, 0]
        mask = labelled_mask(
            meta["low"], meta["high"], meta["outside"], meta["alone"], truth.shape[1:]
        )
        images = mixed(mask, first.images[:, 0], second.images[:, 0])
        return Mixture(
            images.contiguous(memory_format=memory_format(self.plan.dim)),
            mixed(mask, truth, labels),
            mixed(mask, label_targets(truth, self.classes), targets),
        )

    def pseudo_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Class maps ``[n, *s]`` of pseudo-labels and their weighted targets ``[n, k, *s]``."""
        assert batch.labels is not None
        labels = batch.labels[:, 0]
        if batch.targets is None:
            return labels, label_targets(labels, self.classes, self.mix.weight)
        given = batch.targets[:, 0]
        mass = given.sum(1, keepdim=True)  # the confidence; 0 where nothing counts
        likely = given / mass.clamp_min(torch.finfo(given.dtype).tiny)
        if self.mix.soft:
            sure = prediction_targets(likely, self.mix.weight, self.mix.threshold, "soft")
            return labels, sure * mass
        return labels, prediction_targets(likely, self.mix.weight, self.mix.threshold)


@dataclass
class TeacherMixingTask(Task):
    """:class:`MixingTask` whose pseudo-labels a moving average of the network makes in every step.

    The teacher labels a patch as it is, the student learns from the same patch with changed
    intensities, mixed with a labelled one (UniMatch, arXiv 2208.09910; BCP). The weight of these
    labels rises as that of Mean Teacher does. The teacher normalises by the running statistics of
    the student's patches, mixed ones where ``plain_every`` is 0.

    Attributes:
        mixing: the task on mixed patches; its network is the student, its `other` sampler draws
            patches without labels.
    """

    mixing: MixingTask
    module: TeacherStudent = field(init=False)
    _sure: Tensor | None = None

    def __post_init__(self) -> None:
        """Make the teacher from the student as it is now."""
        self.module = TeacherStudent(self.mixing.module)
        self.module.teacher = deepcopy(self.mixing.module).requires_grad_(False)

    def host_batch(
        self, step: int, micro_batch: int, micro_batches: int
    ) -> tuple[HostBatch, HostBatch, HostBatch]:
        """Labelled windows with the rectangles, and others for the student and for the teacher."""
        first, strong = self.mixing.host_batch(step, micro_batch, micro_batches)
        strong = replace(strong, labels=None)
        return first, strong, replace(strong, changes={})

    def device_batch(
        self, host: tuple[HostBatch, HostBatch, HostBatch]
    ) -> tuple[Batch, Batch, Batch]:
        """The three batches on the device."""
        first, strong = self.mixing.device_batch(host[:2])
        return first, strong, make_views(host[2], self.mixing.other.patch, self.mixing.device)

    def losses(self, batch: tuple[Batch, Batch, Batch], progress: float) -> dict[str, Tensor]:
        """The segmentation loss of the mixture with the teacher's labels."""
        first, strong, weak = batch
        mixing, mix = self.mixing, self.mixing.mix
        layout = memory_format(mixing.plan.dim)
        with torch.no_grad(), evaluating(self.module.teacher):
            seen = weak.images[:, 0].contiguous(memory_format=layout)
            likely = self.module.teacher(seen).float().softmax(1)
            targets = prediction_targets(
                likely,
                mix.weight * ramp(progress),
                mix.threshold,
                "soft" if mix.soft else "hard",
            )
        self._sure = (likely.amax(1) >= mix.threshold).float().mean()
        mixture = mixing.mixture(first, strong, likely.argmax(1).to(torch.uint8), targets)
        with mixing.statistics(first):
            logits = self.module.student.all_logits(mixture.images)
        return {"segmentation": soft_segmentation_loss(logits, mixture.targets, sum_over_processes)}

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        ema_update(self.module.teacher, self.module.student, TEACHER_DECAY)

    def diagnostics(self) -> dict[str, Tensor]:
        """Share of the teacher's voxels that count."""
        return {} if self._sure is None else {"teacher_sure": self._sure}

    def validate(self) -> dict[str, float]:
        """Metrics of the student on held-out cases."""
        return self.mixing.validate()


@contextmanager
def evaluating(network: SegmentationNet) -> Iterator[None]:
    """Within the context the network normalises by its running statistics."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
