"""Samplers whose images lie on the device: what travels in a step is a few numbers a sample.

They draw what the library's samplers draw. Instead of windows cut on the host, whole slices (2D) or
volumes (3D) are picked on the device, and views are made of them as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.data.batch import CropReader, HostBatch
from MedSSLLib.data.patch_samplers import Pick, SegmentationSampler, ViewSampler
from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.images.labels import IGNORE


@dataclass(frozen=True)
class Store:
    """Cases on the device, all of one size: edges continue, labels there do not count.

    Attributes:
        images: ``[n, c, *s]`` float32, a slice or a volume each.
        labels: class maps ``[n, *s]`` uint8; IGNORE for cases without.
        first: where each case begins.
        dim: 2 or 3.
    """

    images: Tensor
    labels: Tensor
    first: dict[str, int]
    dim: int

    @classmethod
    def of(
        cls,
        reader: CropReader,
        names: Sequence[str],
        dim: int,
        device: torch.device,
        labelled: Sequence[str] = (),
    ) -> Store:
        """The cases of a reader; of `labelled` ones the labels too."""
        shapes = np.asarray([reader.shape(name)[1:] for name in names])
        size = shapes.max(0)
        images, labels, first = [], [], {}
        for name, shape in zip(names, shapes, strict=True):
            high = size if dim == 3 else (shape[0], *size[1:])
            image = torch.from_numpy(reader.image(name, (0, 0, 0), high))
            label = torch.full(image.shape[1:], IGNORE, dtype=torch.uint8)
            if name in labelled:
                label = torch.from_numpy(reader.label(name, (0, 0, 0), high))
            first[name] = sum(map(len, labels))
            images.append(image.movedim(1, 0) if dim == 2 else image[None])
            labels.append(label if dim == 2 else label[None])
        stacked = torch.cat(images).float().to(device), torch.cat(labels).to(device)
        return cls(*stacked, first, dim)

    def place(self, name: str, index: int) -> int:
        """Where slice `index` of a case lies; a volume lies as a whole."""
        return self.first[name] + (int(index) if self.dim == 2 else 0)

    def filled(self, host: HostBatch, labelled: bool | None) -> ResidentBatch:
        """A batch whose windows are places in the store, with what lies there.

        Args:
            host: windows are places ``[b, v]``.
            labelled: whether labels are read; without, none counts; None leaves them out.
        """
        places = host.windows.to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, places.flatten()).unflatten(0, places.shape)
        labels = None
        if labelled is not None:
            labels = self.labels.index_select(0, places.flatten()).unflatten(0, places.shape)
            labels = labels if labelled else torch.full_like(labels, IGNORE)
        given = vars(host) | {"windows": images, "labels": labels}
        return ResidentBatch(**given)


@dataclass(frozen=True)
class ResidentBatch(HostBatch):
    """A batch whose windows are on the device already."""

    def pin(self) -> ResidentBatch:
        """Itself: there is nothing to transfer."""
        return self


@dataclass(frozen=True, kw_only=True)
class ResidentViews(ViewSampler):
    """:class:`ViewSampler` over a store."""

    store: Store

    def sample(self, step: int, micro_batch: int = 0, micro_batches: int = 1) -> ResidentBatch:
        """As of the library, on the device."""
        return self.store.filled(super().sample(step, micro_batch, micro_batches), None)

    def _windows(
        self, picks: list[Pick], lo: np.ndarray, hi: np.ndarray, turns: np.ndarray | None
    ) -> tuple[Tensor, np.ndarray]:
        places = [[self.store.place(pick.name, pick.slice)] * self.views for pick in picks]
        return torch.tensor(places), np.zeros((len(picks), self.views, len(self.patch)), int)


@dataclass(frozen=True, kw_only=True)
class ResidentPatches(SegmentationSampler):
    """:class:`SegmentationSampler` over a store; it has no soft targets."""

    store: Store

    def sample(self, step: int, micro_batch: int = 0, micro_batches: int = 1) -> ResidentBatch:
        """As of the library, on the device."""
        host = super().sample(step, micro_batch, micro_batches)
        return self.store.filled(host, self.labelled)

    def _windows(self, names: list[str], lows: np.ndarray, views: ViewGeometry) -> dict[str, Any]:
        dim = len(self.patch)
        places = [[self.store.place(name, low[0])] for name, low in zip(names, lows, strict=True)]
        corner = np.ascontiguousarray(-lows[:, None, 3 - dim :], np.float32)
        return {
            "windows": torch.tensor(places),
            "labels": None,
            "targets": None,
            "corner": torch.from_numpy(corner),
            "geometry": views,
        }


def resident(sampler: Any, store: Store) -> Any:
    """The sampler over a store instead of its reader.

    Raises:
        ValueError: it reads soft targets.
    """
    if getattr(sampler, "soft", None) is not None:
        raise ValueError("soft targets are read on the host")
    kind = ResidentViews if isinstance(sampler, ViewSampler) else ResidentPatches
    given = {field.name: getattr(sampler, field.name) for field in fields(sampler)}
    return kind(**given, store=store)


def without_noise(sampler: Any) -> Any:
    """The sampler without the noise that is drawn on the device, for comparisons."""
    return replace(sampler, augment=sampler.augment.model_copy(update={"noise": 0.0}))
