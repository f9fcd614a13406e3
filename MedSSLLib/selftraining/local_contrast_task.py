"""Joint training of self-training: segmentation on labels, local contrast on labels and
pseudo-labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch, HostBatch, make_views
from MedSSLLib.data.intensity import sample_intensity
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.losses.dice_ce import dice_ce, dice_ce_soft
from MedSSLLib.losses.local_contrast import class_means, local_contrast, sample_anchors
from MedSSLLib.networks.unet import SegmentationNet, conv_nd, memory_format
from MedSSLLib.training.devices import sum_over_processes

HEAD = 16  # channels of the projection head (released code)
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
            conv(width, HEAD, 1, bias=False),
            nn.GroupNorm(4, HEAD),
            nn.ReLU(),
            conv(HEAD, HEAD, 1, bias=False),
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


@dataclass
class JointTask:
    """Segmentation loss on labelled patches plus lambda times local contrast on labelled and
    pseudo-labelled ones.

    Chaitanya et al. 2021 (arXiv 2112.09645), stage 3. With `pseudo_weight` the pseudo-labelled
    patches also take part in the segmentation loss (not from the paper).

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
    _figures: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Attach a new projection head."""
        self.module = JointNet(self.labelled.module)
        self.module.projector.to(self.labelled.device)

    def host_batch(self, step: int, part: int, parts: int) -> tuple[HostBatch, list[HostBatch]]:
        """Labelled windows, and contrast windows (twice with other intensity changes for intra
        matching).
        """
        first = self.contrast.sample(step, part, parts)
        first = first.pin() if self.labelled.device.type == "cuda" else first
        rng = np.random.default_rng([self.contrast.seed, step, 10, part])
        n, classes = len(first.windows), self.classes
        views = [first]
        if self.matching == "intra":
            views.append(
                replace(
                    first, changes=sample_intensity(rng, n, self.contrast.augment), targets=None
                )
            )
        noise = torch.from_numpy(rng.random((n, classes - 1, ANCHORS)).astype(np.float32))
        shift = int(rng.integers(1, n)) if n > 1 else 0
        partner = torch.from_numpy(np.roll(np.arange(n), shift))
        views[0] = replace(views[0], meta={"noise": noise, "partner": partner})
        return self.labelled.host_batch(step, part, parts), views

    def device_batch(self, host: tuple[HostBatch, list[HostBatch]]) -> tuple[Batch, list[Batch]]:
        """All batches on the device."""
        labelled, views = host
        patch, device = self.contrast.patch, self.labelled.device
        return self.labelled.device_batch(labelled), [
            make_views(view, patch, device) for view in views
        ]

    def losses(self, batch: tuple[Batch, list[Batch]], progress: float) -> dict[str, Tensor]:
        """Segmentation, weighted local contrast and, where asked, weighted pseudo-label
        segmentation.
        """
        labelled, views = batch
        layout = memory_format(self.labelled.plan.dim)
        outputs = [
            self.module(view.images[:, 0].contiguous(memory_format=layout)) for view in views
        ]
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
        self._figures = {
            "local_contrast": contrast.detach(),
            "separation": separation(features, labels, self.classes),
        }
        terms = {**self.labelled.losses(labelled, progress), "contrast": self.weight * contrast}
        if self.pseudo_weight:
            terms["pseudo"] = self.pseudo_weight * _segmentation(logits, views[0])
        return terms

    def after_step(self, progress: float) -> None:
        """Nothing changes after a step."""

    def diagnostics(self) -> dict[str, Tensor]:
        """The unweighted contrast and the separation of classes in feature space."""
        return self._figures

    def check(self, figures: dict[str, float], progress: float) -> None:
        """No check beyond finite losses."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out labelled cases."""
        return self.labelled.validate()

    def gradient_rule(self) -> None:
        """The plain sum."""

    def shared(self) -> list[nn.Parameter]:
        """No parameters need separate gradients."""
        return []


def _segmentation(logits: Tensor, view: Batch) -> Tensor:
    """Dice and cross-entropy against a view's soft targets, or its class map where it has none."""
    if view.targets is not None:
        return dice_ce_soft(logits, view.targets[:, 0], reduce=sum_over_processes)
    assert view.labels is not None
    return dice_ce(logits, view.labels[:, 0], reduce=sum_over_processes)


@torch.no_grad()
def separation(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How far apart class means lie: 1 - mean cosine between the batch's means of different
    foreground classes.

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
