"""Mixup: an option of fine-tuning that combines with any initialisation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.data.batch import Batch, HostBatch
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import mixed_targets, soft_segmentation_loss
from MedSSLLib.networks.unet import memory_format
from MedSSLLib.training.devices import sum_over_processes


@dataclass
class MixupTask(SegmentationTask):
    """Segmentation of convex mixtures of two patches.

    Zhang, Cisse, Dauphin, Lopez-Paz 2018 (arXiv 1710.09412), eq. 1.

    Attributes:
        alpha: the fraction of the first patch is drawn from Beta(alpha, alpha) for each sample.
    """

    alpha: float = 0.2

    def host_batch(self, step: int, micro_batch: int, micro_batches: int) -> HostBatch:
        """Labelled windows with each sample's fraction and partner, in ``meta``."""
        host = super().host_batch(step, micro_batch, micro_batches)
        rng = random_stream(self.sampler.seed, step, Stream.MIXUP, micro_batch)
        n = len(host.windows)
        fraction = torch.from_numpy(rng.beta(self.alpha, self.alpha, n).astype(np.float32))
        partner = torch.from_numpy(rng.permutation(n))
        return replace(host, meta={**host.meta, "fraction": fraction, "partner": partner})

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Dice and cross-entropy against the same mixture of both label maps."""
        assert batch.labels is not None
        fraction, partner = batch.meta["fraction"], batch.meta["partner"]
        images, labels = batch.images[:, 0], batch.labels[:, 0]
        weight = fraction.view(-1, *[1] * (images.dim() - 1))
        mixed = weight * images + (1 - weight) * images[partner]
        levels = self.module.all_logits(
            mixed.contiguous(memory_format=memory_format(self.plan.dim))
        )
        targets = mixed_targets(labels, labels[partner], fraction, levels[0].shape[1])
        return {"segmentation": soft_segmentation_loss(levels, targets, sum_over_processes)}
