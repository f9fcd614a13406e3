"""Pre-training as a task of the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import GuardError
from MedSSLLib.data.batch import Batch, CropReader, HostBatch, make_views
from MedSSLLib.data.patch_samplers import Picker, ViewSampler
from MedSSLLib.methods.base import Method
from MedSSLLib.training.task import Task

COLLAPSED = 1e-3  # standard deviation of features below which a run is stopped; not from the paper
# so many readings in a row stop a run that has collapsed or compares nothing; not from the paper
READINGS = 10


@dataclass
class PretrainTask(Task):
    """A method over random views, as the trainer sees it."""

    module: Method
    sampler: ViewSampler
    device: torch.device
    collapsed: int = 0  # readings in a row
    apart: int = 0  # readings in a row without a place that two views share

    def host_batch(self, step: int, micro_batch: int, micro_batches: int) -> HostBatch:
        """Windows and view parameters of one micro-batch of a step."""
        host = self.sampler.sample(step, micro_batch, micro_batches)
        return host.pin() if self.device.type == "cuda" else host

    def device_batch(self, host: HostBatch) -> Batch:
        """The views, on the device."""
        return make_views(host, self.sampler.patch, self.device)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The method's losses."""
        return self.module.losses(batch, progress)

    def after_step(self, progress: float) -> None:
        """The method's own updates."""
        self.module.after_step(progress)

    def diagnostics(self) -> dict[str, Tensor]:
        """The method's own."""
        return self.module.diagnostics()

    def check(self, metrics: dict[str, float], progress: float) -> None:
        """Stop a run that has collapsed, or that compares nothing.

        One reading says little: a small batch may hold crops of air alone, or views that hardly
        overlap.

        Raises:
            GuardError: the features hardly vary any more, or the views of a sample share no place.
        """
        spread = metrics.get("feature_std", math.inf)
        self.collapsed = self.collapsed + 1 if progress > 0.02 and spread < COLLAPSED else 0
        self.apart = self.apart + 1 if metrics.get("shared") == 0 else 0
        if self.apart >= READINGS:
            raise GuardError(
                f"The views of a sample had no place in common that could be compared, {READINGS} "
                "readings in a row: nothing is learnt. Raise options.min_overlap or "
                "training.voxels, or choose a finer level (options.levels); the last checkpoint is "
                "kept."
            )
        if self.collapsed >= READINGS:
            raise GuardError(
                f"The features have collapsed (standard deviation {spread:.1e}). Lower "
                "optimiser.lr, use network.norm=batch, or raise the batch size; the last "
                "checkpoint is kept."
            )

    def gradient_rule(self) -> Any:
        """The method's rule."""
        return self.module.gradient_rule()

    def shared(self) -> list[nn.Parameter]:
        """The encoder's parameters."""
        return [p for p in self.module.encoder.parameters() if p.requires_grad]


def view_sampler(
    method: Method,
    *,
    config: RunConfig,
    reader: CropReader,
    pick: Picker,
    patch: Sequence[int],
    spacing: Sequence[float],
) -> ViewSampler:
    """What draws the views that a method compares.

    Args:
        method: the method.
        config: settings of the run.
        reader: of preprocessed images.
        pick: chooses cases and slices.
        patch: voxels of a view an axis.
        spacing: mm along the same axes.
    """
    options = method.config
    return ViewSampler(
        reader=reader,
        pick=pick,
        patch=tuple(patch),
        spacing=tuple(spacing),
        augment=config.augment if method.intensity else None,
        views=method.views,
        scale=options.view_scale,
        min_overlap=options.min_overlap,
        flip=options.flip,
        rotation=options.rotation,
        seed=config.seed,
        whole=options.view_of == "image",
        inner=method.inner,
    )
