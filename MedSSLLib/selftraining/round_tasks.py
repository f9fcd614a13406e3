"""What a round of self-training trains: the mixing recipe, or the document's joint training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.config.commands import SelfTrainConfig
from MedSSLLib.data.batch import Batch, HostBatch
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.random import Stream, own_samples, random_stream
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import soft_segmentation_loss
from MedSSLLib.losses.local_contrast import local_contrast, sample_anchors
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining.local_contrast_task import ANCHORS, JointNet, JointTask, separation
from MedSSLLib.training.devices import sum_over_processes
from MedSSLLib.training.task import Task


@dataclass(kw_only=True)
class MixedContrastTask(Task):
    """`MixingTask` plus lambda times the local contrast of the mixed images.

    Every pixel has the label of the image it comes from. Not from the paper: there the images are
    not mixed.

    Attributes:
        mixing: the task on mixed patches; its network is the one trained.
        matching: 'inter' matches each image with another one, 'intra' with itself.
        weight: lambda.
        temperature: tau.
    """

    mixing: MixingTask
    matching: Literal["inter", "intra"]
    weight: float
    temperature: float = 0.1
    module: JointNet = field(init=False)
    _diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Attach a new projection head."""
        self.module = JointNet(self.mixing.module)
        self.module.projector.to(self.mixing.device)

    def host_batch(
        self, step: int, micro_batch: int, micro_batches: int
    ) -> tuple[HostBatch, HostBatch]:
        """The windows to be mixed, with the noise that draws anchors and every image's partner."""
        first, second = self.mixing.host_batch(step, micro_batch, micro_batches)
        rng = random_stream(self.mixing.sampler.seed, step, Stream.MIXED_CONTRAST)
        total, classes = self.mixing.sampler.batch, self.mixing.classes
        mine = own_samples(total, micro_batch, micro_batches)
        noise = rng.random((total, classes - 1, ANCHORS)).astype(np.float32)[mine]
        shift = int(rng.integers(1, len(mine))) if len(mine) > 1 else 0
        partner = np.roll(np.arange(len(mine)), shift)
        first.meta["noise"], first.meta["partner"] = map(torch.from_numpy, (noise, partner))
        return first, second

    def device_batch(self, host: tuple[HostBatch, HostBatch]) -> tuple[Batch, Batch]:
        """Both batches on the device."""
        return self.mixing.device_batch(host)

    def losses(self, batch: tuple[Batch, Batch], progress: float) -> dict[str, Tensor]:
        """The segmentation loss and the weighted contrast of the mixture."""
        mixing, meta = self.mixing, batch[0].meta
        mixture = mixing.mixture(*batch, *mixing.pseudo_targets(batch[1]))
        with mixing.statistics(batch[0]):
            logits, features = self.module.all_outputs(mixture.images)
        anchors = sample_anchors(mixture.labels, mixing.classes, meta["noise"])
        partner = meta["partner"] if self.matching == "inter" else None
        contrast = local_contrast(
            features, mixture.labels, anchors, partner, self.temperature, sum_over_processes
        )
        self._diagnostics = {
            "local_contrast": contrast.detach(),
            "separation": separation(features, mixture.labels, mixing.classes),
        }
        return {
            "segmentation": soft_segmentation_loss(logits, mixture.targets, sum_over_processes),
            "contrast": self.weight * contrast,
        }

    def diagnostics(self) -> dict[str, Tensor]:
        """The unweighted contrast and the separation of classes in feature space."""
        return self._diagnostics

    def validate(self) -> dict[str, float]:
        """Metrics on held-out labelled cases."""
        return self.mixing.validate()


RoundTask = JointTask | MixingTask | MixedContrastTask


def round_cases(
    options: SelfTrainConfig,
    whole: Sequence[Case],
    pseudo: Sequence[Case],
    partly: Sequence[str],
) -> tuple[Case, ...]:
    """The cases that the second sampler of a round draws from.

    Args:
        options: the settings.
        whole: labelled cases without pseudo-labels; the joint training contrasts them too.
        pseudo: pseudo-labelled cases.
        partly: names of those of which a person has drawn some slices; they come more often.
    """
    drawn = tuple(case for case in pseudo if case.name in partly)
    others = tuple(case for case in pseudo if case.name not in partly)
    if options.recipe == "contrast":
        others = (*whole, *others)
    return with_fraction(drawn, others, options.drawn_share)


def with_fraction(
    first: Sequence[Case], others: Sequence[Case], fraction: float
) -> tuple[Case, ...]:
    """The cases, the first ones so often that they are about a fraction of the list, or more.

    Each is in it at least once.
    """
    if not first:
        return tuple(others)
    times = round(fraction / (1 - fraction) * len(others) / len(first))
    return (*first,) * max(times, 1) + (*others,)


def round_task(
    labelled: SegmentationTask,
    other: SegmentationSampler,
    classes: int,
    options: SelfTrainConfig,
    plain_every: int = 0,
) -> RoundTask:
    """The task of a round.

    Args:
        labelled: the task on labelled patches.
        other: draws patches of :func:`round_cases`.
        classes: k with background.
        options: the settings; ``recipe`` chooses.
        plain_every: as in :class:`~MedSSLLib.finetuning.mixing_task.Mix`.
    """
    o = options
    if o.recipe == "contrast":
        return JointTask(
            labelled=labelled,
            contrast=other,
            classes=classes,
            matching=o.matching,
            weight=o.weight,
            pseudo_weight=o.pseudo_weight,
            temperature=o.temperature,
        )
    mix = Mix(
        weight=o.pseudo_weight,
        share=o.rectangle,
        alone_every=o.alone_every,
        threshold=o.confident,
        soft=o.soft,
        plain_every=plain_every,
    )
    task = MixingTask(
        labelled.module,
        labelled.sampler,
        labelled.plan,
        labelled.device,
        labelled.validation,
        labelled.frozen,
        other=other,
        classes=classes,
        mix=mix,
    )
    if not o.weight:
        return task
    return MixedContrastTask(
        mixing=task, matching=o.matching, weight=o.weight, temperature=o.temperature
    )
