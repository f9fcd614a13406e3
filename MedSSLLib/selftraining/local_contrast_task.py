"""Joint training: segmentation on labels, local contrast on labels and pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch, HostBatch, make_views
from MedSSLLib.data.intensity import sample_intensity
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import dice_ce, dice_ce_soft
from MedSSLLib.losses.local_contrast import class_means, local_contrast, sample_anchors
from MedSSLLib.networks.unet import SegmentationNet, conv_nd, memory_format
from MedSSLLib.training.devices import sum_over_processes
from MedSSLLib.training.task import Task

_HEAD = 16  # channels of the projection head (released code)
ANCHORS = 3  # random pixels a class and image (released code)


class JointNet(nn.Module):
    """A segmentation network with the projection head of the local contrastive loss.

    The head stands on the full-resolution decoder output: 1x1 convolution (16, no bias),
    normalisation, ReLU, 1x1 convolution (16, no bias).
    """

    def __init__(self, network: SegmentationNet) -> None:
        super().__init__()
        conv, width = conv_nd(network.encoder.dim), network.encoder.widths[0]
        self.network = network
        self.projector = nn.Sequential(
            conv(width, _HEAD, 1, bias=False),
            nn.GroupNorm(4, _HEAD),
            nn.ReLU(),
            conv(_HEAD, _HEAD, 1, bias=False),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[b, k, *s]`` and projections ``[b, 16, *s]``."""
        features = self.network.features(x)[-1]
        return self.network.head(features), self.projector(features)

    def all_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """As ``forward``, with the logits of coarser levels under deep supervision, finest
        first.
        """
        features = self.network.features(x)
        return self.network.logits_of(features), self.projector(features[-1])


@dataclass(kw_only=True)
class JointTask(Task):
    """Segmentation of labelled patches, local contrast of labelled and pseudo-labelled ones.

    Chaitanya et al. 2021 (arXiv 2112.09645), stage 3: the segmentation loss plus lambda times the
    contrast. With `pseudo_weight` the pseudo-labelled patches also take part in the segmentation
    loss (not from the paper).

    Attributes:
        labelled: the task on labelled patches; its network is the one trained.
        contrast: draws patches of labelled and pseudo-labelled cases, around their structures or
            also elsewhere.
        classes: number of classes with background.
        matching: 'inter' matches each image with another one, 'intra' two views of the same image.
        weight: lambda.
        temperature: tau.
    """

    labelled: SegmentationTask
    contrast: SegmentationSampler
    classes: int
    matching: Literal["inter", "intra"]
    weight: float
    pseudo_weight: float
    temperature: float = 0.1
    module: JointNet = field(init=False)
    _diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Attach a new projection head."""
        self.module = JointNet(self.labelled.module)
        self.module.projector.to(self.labelled.device)

    def host_batch(
        self, step: int, micro_batch: int, micro_batches: int
    ) -> tuple[HostBatch, list[HostBatch]]:
        """Labelled windows, and contrast windows.

        For intra matching the latter twice, with other changes of intensity.
        """
        first = self.contrast.sample(step, micro_batch, micro_batches)
        if self.labelled.device.type == "cuda":
            first = first.pin()
        rng = random_stream(self.contrast.seed, step, Stream.CONTRAST, micro_batch)
        n = len(first.windows)
        views = [first]
        if self.matching == "intra":
            changes = sample_intensity(rng, n, self.contrast.augment)
            views.append(replace(first, changes=changes, targets=None))
        noise = rng.random((n, self.classes - 1, ANCHORS)).astype(np.float32)
        shift = int(rng.integers(1, n)) if n > 1 else 0
        partner = np.roll(np.arange(n), shift)
        meta = {"noise": torch.from_numpy(noise), "partner": torch.from_numpy(partner)}
        views[0] = replace(first, meta=meta)
        return self.labelled.host_batch(step, micro_batch, micro_batches), views

    def device_batch(self, host: tuple[HostBatch, list[HostBatch]]) -> tuple[Batch, list[Batch]]:
        """All batches on the device."""
        labelled, views = host
        patch, device = self.contrast.patch, self.labelled.device
        contrasted = [make_views(view, patch, device) for view in views]
        return self.labelled.device_batch(labelled), contrasted

    def losses(self, batch: tuple[Batch, list[Batch]], progress: float) -> dict[str, Tensor]:
        """Segmentation, weighted local contrast and, where asked, of pseudo-labels too."""
        labelled, views = batch
        layout = memory_format(self.labelled.plan.dim)
        outputs = []
        for view in views:
            images = view.images[:, 0].contiguous(memory_format=layout)
            outputs.append(self.module(images))
        logits, features = outputs[0]
        assert views[0].labels is not None
        labels = views[0].labels[:, 0]
        partner = views[0].meta["partner"] if self.matching == "inter" else None
        if self.matching == "intra":
            features = torch.cat([features, outputs[1][1]], 2)
            labels = torch.cat([labels, labels], 1)
        anchors = sample_anchors(labels, self.classes, views[0].meta["noise"])
        contrast = local_contrast(
            features, labels, anchors, partner, self.temperature, sum_over_processes
        )
        self._diagnostics = {
            "local_contrast": contrast.detach(),
            "separation": separation(features, labels, self.classes),
        }
        terms = {**self.labelled.losses(labelled, progress), "contrast": self.weight * contrast}
        if self.pseudo_weight:
            terms["pseudo"] = self.pseudo_weight * _segmentation(logits, views[0])
        return terms

    def diagnostics(self) -> dict[str, Tensor]:
        """The unweighted contrast and the separation of classes in feature space."""
        return self._diagnostics

    def validate(self) -> dict[str, float]:
        """Metrics on held-out labelled cases."""
        return self.labelled.validate()


def _segmentation(logits: Tensor, view: Batch) -> Tensor:
    """Dice and cross-entropy against a view's soft targets, or its class map where it has none."""
    if view.targets is not None:
        return dice_ce_soft(logits, view.targets[:, 0], reduce=sum_over_processes)
    assert view.labels is not None
    return dice_ce(logits, view.labels[:, 0], reduce=sum_over_processes)


@torch.no_grad()
def separation(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How far apart the means of different foreground classes lie: 1 - their mean cosine.

    Args:
        features: ``[n, d, *s]``.
        labels: ``[n, *s]``.
        classes: k with background; 1 with a single foreground class.
    """
    means, present = class_means(features, labels, classes)
    weight = present.unsqueeze(2).to(means.dtype)
    mean = nn.functional.normalize((means * weight).sum(0) / weight.sum(0).clamp_min(1), dim=1)
    k = mean.shape[0]
    cosine = (mean @ mean.mT).sum() - (mean * mean).sum()
    return 1 - cosine / max(1, k * (k - 1))
