"""Training a segmentation network on labelled patches: the task that the trainer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class SegmentationTask:
    """Dice and cross-entropy over counted voxels of augmented patches.

    Attributes:
        module: the network.
        sampler: draws labelled patches.
        plan: patch and dimension.
        device: where it runs.
        validation: names of held-out labelled cases.
    """

    module: SegmentationNet
    sampler: SegmentationSampler
    plan: Plan
    device: torch.device
    validation: Sequence[str] = ()
    frozen: bool = False
    _figures: dict[str, Tensor] = field(default_factory=dict)

    def host_batch(self, step: int, part: int, parts: int) -> HostBatch:
        """Windows and labels of one part of a step's batch."""
        host = self.sampler.sample(step, part, parts)
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
        return {
            "segmentation": segmentation_loss(
                self.module.all_logits(images), batch.labels[:, 0], sum_over_processes
            )
        }

    def after_step(self, progress: float) -> None:
        """Nothing changes after a step."""

    def diagnostics(self) -> dict[str, Tensor]:
        """No figures beyond the loss."""
        return {}

    def check(self, figures: dict[str, float], progress: float) -> None:
        """No check beyond finite losses."""

    def validate(self) -> dict[str, float]:
        """Mean Dice over held-out cases on the training grid; 'score' is the mean over classes."""
        return validation_dice(
            self.module, self.sampler.reader, self.validation, self.plan, self.device
        )

    def gradient_rule(self) -> None:
        """The plain sum."""

    def shared(self) -> list[nn.Parameter]:
        """No parameters need separate gradients."""
        return []


@torch.inference_mode()
def validation_dice(
    network: nn.Module, reader: CropReader, cases: Sequence[str], plan: Plan, device: torch.device
) -> dict[str, float]:
    """Dice per foreground class over cases on the training grid, counted voxels only; {} without
    cases.
    """
    rows = []
    for name in cases:
        c, *size = reader.shape(name)
        image, label = reader.image(name, (0, 0, 0), size), reader.label(name, (0, 0, 0), size)
        probabilities = predict_probabilities(network, image, plan, device)
        rows.append(dice_per_class(probabilities.argmax(0).numpy(), label, probabilities.shape[0]))
    if not rows:
        return {}
    table = np.asarray(rows)
    per_class = [
        float(np.mean(column[~np.isnan(column)])) if (~np.isnan(column)).any() else 0.0
        for column in table.T
    ]
    figures = {f"dice_{index + 1}": value for index, value in enumerate(per_class)}
    return {**figures, "score": float(np.mean(per_class))}
