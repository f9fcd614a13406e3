"""Batches: windows read on the host, and views made of them on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.data.intensity import Change, apply_intensity
from MedSSLLib.data.spatial import (
    ViewGeometry,
    resample_boxes,
    resample_labels,
    resample_views,
    sampling_grid,
)
from MedSSLLib.images.labels import IGNORE


class TargetReader(Protocol):
    """What samplers ask of soft targets beside the labels, those of pseudo-labels say."""

    def targets(self, name: str, lo: Sequence[int], label: np.ndarray) -> np.ndarray: ...


class CropReader(Protocol):
    """What samplers ask of a cache: shapes and crops of preprocessed cases, ``[c, d, h, w]``."""

    def shape(self, name: str) -> tuple[int, int, int, int]: ...

    def image(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray: ...

    def label(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray: ...

    def foreground(self, name: str) -> dict[int, np.ndarray]: ...

    def counts(self, name: str) -> dict[int, int]: ...


@dataclass(frozen=True)
class Batch:
    """Views on the device: b samples, v views, c channels, s axes.

    Attributes:
        images: ``[b, v, c, *s]``.
        geometry: where each view lies in its window.
        labels: class maps ``[b, v, *s]`` uint8, IGNORE where a voxel does not count; None without
            labels.
        meta: class index per meta label, ``[b]``, -1 where missing.
        targets: soft targets ``[b, v, k, *s]``, whose sum over classes is the voxel's weight; None
            without.
        plain: whether mixing leaves its patches as they are.
    """

    images: Tensor
    geometry: ViewGeometry | None = None
    labels: Tensor | None = None
    meta: dict[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None
    plain: bool = False


@dataclass(frozen=True)
class HostBatch:
    """What is read and drawn on the host: a window a view, and how the view is made of it.

    Attributes:
        windows: ``[b, v, c, *w]``.
        corner: lower corner of each window in the geometry's frame, ``[b, v, s]``.
        geometry: where each view lies.
        changes: of intensity, by kind.
        labels: class maps of the windows, ``[b, v, *w]`` uint8.
        meta: as in :class:`Batch`.
        cases: names of the samples' cases.
        targets: soft targets of the windows, ``[b, v, k, *w]``.
        plain: as in :class:`Batch`.
    """

    windows: Tensor
    corner: Tensor
    geometry: ViewGeometry
    changes: dict[str, Change]
    labels: Tensor | None = None
    meta: dict[str, Tensor] = field(default_factory=dict)
    cases: tuple[str, ...] = ()
    targets: Tensor | None = None
    plain: bool = False

    def pin(self) -> HostBatch:
        """A copy in page-locked memory, for asynchronous transfer."""
        labels = None if self.labels is None else self.labels.pin_memory()
        targets = None if self.targets is None else self.targets.pin_memory()
        return replace(self, windows=self.windows.pin_memory(), labels=labels, targets=targets)


def make_views(host: HostBatch, patch: Sequence[int], device: torch.device) -> Batch:
    """Resample all views of a batch on the device, once, then change their intensity."""
    windows = host.windows.to(device, non_blocking=True).flatten(0, 1)
    geometry = host.geometry.to(device)
    seen = geometry.seen_from(host.corner.to(device, non_blocking=True))
    views, labels, targets = geometry.lo.shape[1], None, None
    if geometry.is_box and host.labels is None:
        images = resample_boxes(windows, seen, patch)
    else:
        grid = sampling_grid(seen, windows.shape[2:], patch)
        images = resample_views(windows, grid)
        if host.labels is not None:
            source = host.labels.to(device, non_blocking=True).flatten(0, 1)
            labels = resample_labels(source, grid).unflatten(0, (-1, views))
            if host.targets is not None:
                soft = resample_views(
                    host.targets.to(device, non_blocking=True).flatten(0, 1), grid
                )
                targets = soft.unflatten(0, (-1, views)) * (labels != IGNORE).unsqueeze(2)
    apply_intensity(images, host.changes)
    meta = {name: value.to(device, non_blocking=True) for name, value in host.meta.items()}
    return Batch(images.unflatten(0, (-1, views)), geometry, labels, meta, targets, host.plain)
