"""Training a segmentation network on labelled patches: the task that the trainer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch, CropReader, HostBatch, make_views
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.evaluation.metrics import dice_per_class
from MedSSLLib.inference.sliding_window import predict_probabilities
from MedSSLLib.losses.dice_ce import segmentation_loss
from MedSSLLib.networks.unet import SegmentationNet, memory_format
from MedSSLLib.training.devices import sum_over_processes
from MedSSLLib.training.task import Task


@dataclass
class SegmentationTask(Task):
    """Dice and cross-entropy over counted voxels of augmented patches.

    Attributes:
        module: the network.
        sampler: draws labelled patches.
        plan: patch and dimension.
        device: where it runs.
        validation: names of held-out labelled cases.
        frozen: whether the encoder stays as it is.
    """

    module: SegmentationNet
    sampler: SegmentationSampler
    plan: Plan
    device: torch.device
    validation: Sequence[str] = ()
    frozen: bool = False

    def host_batch(self, step: int, micro_batch: int, micro_batches: int) -> HostBatch:
        """Windows and labels of one micro-batch of a step."""
        host = self.sampler.sample(step, micro_batch, micro_batches)
        return host.pin() if self.device.type == "cuda" else host

    def device_batch(self, host: HostBatch) -> Batch:
        """Augmented patches on the device."""
        if self.frozen:
            self.module.encoder.eval()
        return make_views(host, self.sampler.patch, self.device)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Segmentation loss; coarser levels under deep supervision weigh half as much each."""
        assert batch.labels is not None
        images = batch.images[:, 0].contiguous(memory_format=memory_format(self.plan.dim))
        levels = self.module.all_logits(images)
        loss = segmentation_loss(levels, batch.labels[:, 0], sum_over_processes)
        return {"segmentation": loss}

    def validate(self) -> dict[str, float]:
        """Mean Dice over held-out cases on the training grid; 'score' is the mean over classes."""
        reader = self.sampler.reader
        return validation_dice(self.module, reader, self.validation, self.plan, self.device)


@torch.inference_mode()
def validation_dice(
    network: nn.Module, reader: CropReader, cases: Sequence[str], plan: Plan, device: torch.device
) -> dict[str, float]:
    """Dice per foreground class over cases on the training grid, counted voxels only.

    Returns:
        ``dice_1`` and so on, each the mean over the cases that have the class, 0 where none has it;
        ``score``, the mean over classes. Empty without cases.
    """
    rows = []
    for name in cases:
        size = reader.shape(name)[1:]
        image = reader.image(name, (0, 0, 0), size)
        label = reader.label(name, (0, 0, 0), size)
        probabilities = predict_probabilities(network, image, plan, device)
        rows.append(dice_per_class(probabilities.argmax(0).numpy(), label, probabilities.shape[0]))
    if not rows:
        return {}
    metrics = {}
    for index, column in enumerate(np.asarray(rows).T, 1):
        known = column[~np.isnan(column)]
        metrics[f"dice_{index}"] = float(np.mean(known)) if len(known) else 0.0
    return {**metrics, "score": float(np.mean(list(metrics.values())))}
