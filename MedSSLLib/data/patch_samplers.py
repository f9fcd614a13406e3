"""Which cases, slices and patches make a batch, and the batch itself.

Every sampler is a pure function of (seed, step): resuming, prefetching and splitting a batch over
processes need no state. The global batch of a step is drawn whole and each micro-batch of it reads
its own samples only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data.batch import CropReader, HostBatch, TargetReader
from MedSSLLib.data.intensity import sample_intensity
from MedSSLLib.data.random import Stream, own_samples, random_stream, shuffled_order
from MedSSLLib.data.spatial import (
    ViewGeometry,
    meeting_boxes,
    sample_boxes,
    sample_flips,
    sample_rotations,
    sample_segmentation_views,
    scale_of_image,
    view_margin,
)
from MedSSLLib.images.labels import IGNORE


@dataclass(frozen=True, kw_only=True)
class SegmentationSampler:
    """Patches (3D) or slice patches (2D) of labelled cases, some of them centred on a structure.

    Attributes:
        reader: the cache.
        cases: names of labelled cases.
        patch: patch size, length 2 or 3.
        spacing: voxel size in mm of the patch axes.
        batch: samples of the global batch.
        foreground: fraction of samples centred on a labelled foreground voxel; the others lie
            anywhere that counts, every voxel alike.
        labelled: whether labels are read; without, patches lie anywhere and nothing counts.
        soft: reads soft targets beside the labels; None leaves them out.
    """

    reader: CropReader
    cases: tuple[str, ...]
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    augment: AugmentConfig
    batch: int
    foreground: float
    seed: int
    labelled: bool = True
    soft: TargetReader | None = None

    def sample(self, step: int, micro_batch: int = 0, micro_batches: int = 1) -> HostBatch:
        """The samples of one of the micro-batches of a step's global batch."""
        rng = random_stream(self.seed, step, Stream.SEGMENTATION_BATCH)
        draws = [self._draw(rng, step, i) for i in range(self.batch)]
        geometry = sample_segmentation_views(
            rng, self.batch, self.patch, self.patch, self.spacing, self.augment
        )
        changes = sample_intensity(rng, self.batch, self.augment)
        mine = own_samples(self.batch, micro_batch, micro_batches)
        names = [draws[i][0] for i in mine]
        lows = np.stack([draws[i][1] for i in mine])
        return HostBatch(
            **self._windows(names, lows, geometry.only(mine)),
            changes={kind: change.only(mine) for kind, change in changes.items()},
            cases=tuple(names),
        )

    def _windows(self, names: list[str], lows: np.ndarray, views: ViewGeometry) -> dict[str, Any]:
        """The windows of the samples, of one size that holds what each view sees of its volume.

        Args:
            names: the cases.
            lows: lower corners d, h, w of the patches, ``[b, 3]``.
            views: where the views lie, in voxels from these corners.
        """
        dim = len(self.patch)
        before = np.asarray([0] * (3 - dim) + [*view_margin(views, self.patch)])
        whole = np.asarray([1] * (3 - dim) + [*self.patch])
        shapes = np.asarray([self.reader.shape(name)[1:] for name in names])
        side = np.minimum(whole + 2 * before, shapes.max(0))
        # outside the volume resampling continues its edge, and labels do not count
        first = np.clip(lows - before, 0, np.maximum(shapes - side, 0))
        parts = [self._read(name, low, low + side) for name, low in zip(names, first, strict=True)]
        images, labels, soft = zip(*parts, strict=True)
        return {
            "windows": torch.from_numpy(np.stack(images)[:, None]),
            "labels": torch.from_numpy(np.stack(labels)[:, None]),
            "targets": torch.from_numpy(np.stack(soft)[:, None]) if self.soft else None,
            "corner": _float((first - lows)[:, None, 3 - dim :]),
            "geometry": views,
        }

    def _draw(self, rng: np.random.Generator, step: int, i: int) -> tuple[str, np.ndarray]:
        """Case and lower corner d, h, w of the patch of sample i."""
        name, centre = self._chosen(rng, step, i)
        extent = np.asarray(self.reader.shape(name)[1:])
        patch = np.asarray(self.patch if len(self.patch) == 3 else (1, *self.patch))
        jitter = rng.uniform(-0.1, 0.1, 3) * patch * (patch > 1)
        room = np.maximum(extent - patch, 0) / 2
        middle = np.clip(centre + 0.5, extent / 2 - room, extent / 2 + room) + jitter
        low = np.rint(middle - patch / 2).astype(int)
        if len(self.patch) == 2:
            low[0] = centre[0]
        return name, low

    def _chosen(self, rng: np.random.Generator, step: int, i: int) -> tuple[str, np.ndarray]:
        """Case of sample i and the voxel d, h, w that its patch lies around."""
        name = self.cases[shuffled_order(self.seed, step * self.batch + i, len(self.cases))]
        return name, self._centre(rng, name, i < round(self.foreground * self.batch))

    def _centre(self, rng: np.random.Generator, name: str, foreground: bool) -> np.ndarray:
        if not self.labelled:
            return rng.integers(np.asarray(self.reader.shape(name)[1:]))
        places = {c: xyz for c, xyz in self.reader.foreground(name).items() if len(xyz)}
        structures = sorted(c for c in places if c > 0)
        if foreground and structures:
            chosen = places[structures[rng.integers(len(structures))]]
            return chosen[rng.integers(len(chosen))]
        if not places:
            return rng.integers(np.asarray(self.reader.shape(name)[1:]))
        counts = self.reader.counts(name)  # the lists of places are of limited length
        sizes = np.asarray([counts[c] for c in places], float)
        chosen = list(places.values())[rng.choice(len(places), p=sizes / sizes.sum())]
        return chosen[rng.integers(len(chosen))]

    def _read(
        self, name: str, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        corners = low.tolist(), high.tolist()
        image = self.reader.image(name, *corners)
        label = (
            self.reader.label(name, *corners)
            if self.labelled
            else np.full(high - low, IGNORE, np.uint8)
        )
        soft = self.soft.targets(name, corners[0], label) if self.soft else None
        if len(self.patch) == 2:
            image, label, soft = image[:, 0], label[0], None if soft is None else soft[:, 0]
        return image, label, soft


@dataclass(frozen=True)
class Pick:
    """One pre-training sample: a case, the slice (2D) and its meta labels."""

    name: str
    slice: int = 0
    meta: dict[str, int] = field(default_factory=dict)


Picker = Callable[[np.random.Generator, int], list[Pick]]


@dataclass(frozen=True, kw_only=True)
class ViewSampler:
    """Several views a sample for pre-training: boxes, flips, rotation, intensity.

    Attributes:
        pick: draws the samples of a step's global batch, ``pick(rng, step)``.
        augment: changes of intensity; None leaves it alone.
        views: views a sample.
        scale: side of a box relative to the patch, or with `whole` to the image's largest box of
            its proportions.
        min_overlap: least overlap of the boxes of a sample, fraction of the smaller box.
        flip, rotation, inner: as in the method; `inner` is what of a view can be compared, None for
            all of it.
    """

    reader: CropReader
    pick: Picker
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    augment: AugmentConfig | None
    views: int
    scale: tuple[float, float]
    min_overlap: float
    flip: float
    rotation: float
    seed: int
    whole: bool = False
    inner: np.ndarray | None = None

    def sample(self, step: int, micro_batch: int = 0, micro_batches: int = 1) -> HostBatch:
        """The samples of one of the micro-batches of a step's global batch."""
        rng = random_stream(self.seed, step, Stream.VIEW_BATCH)
        picks = self.pick(rng, step)
        dim = len(self.patch)
        draws = [partial(self._boxes, rng, self.reader.shape(pick.name)[-dim:]) for pick in picks]
        boxes = [draw() for draw in draws]
        flips = sample_flips(rng, (len(picks), self.views, dim), self.flip)
        turns = (
            sample_rotations(rng, len(picks) * self.views, self.spacing, self.rotation)
            if self.rotation
            else None
        )
        changes = (
            sample_intensity(rng, len(picks) * self.views, self.augment) if self.augment else {}
        )
        if self.inner is not None:
            boxes = [
                meeting_boxes(pair, flip, self.inner, draw)
                for pair, flip, draw in zip(boxes, flips, draws, strict=True)
            ]
        mine = own_samples(len(picks), micro_batch, micro_batches, equal=True)
        kept = (mine[:, None] * self.views + np.arange(self.views)).ravel()
        lo, hi = np.moveaxis(np.asarray(boxes), 1, 0)[:, mine]
        turns = None if turns is None else turns.reshape(len(picks), self.views, dim, dim)[mine]
        windows, corner = self._windows([picks[i] for i in mine], lo, hi, turns)
        origin = corner.min(1, keepdims=True)
        lower, upper, flipped = _float(lo - origin), _float(hi - origin), _float(flips[mine])
        return HostBatch(
            windows=windows,
            corner=_float(corner - origin),
            geometry=ViewGeometry(lower, upper, flipped, None if turns is None else _float(turns)),
            changes={kind: change.only(kept) for kind, change in changes.items()},
            meta={key: torch.tensor([picks[i].meta[key] for i in mine]) for key in picks[0].meta},
            cases=tuple(picks[i].name for i in mine),
        )

    def _boxes(
        self, rng: np.random.Generator, extent: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        scale = scale_of_image(self.scale, extent, self.patch) if self.whole else self.scale
        return sample_boxes(rng, extent, self.patch, scale, self.min_overlap, self.views)

    def _windows(
        self, picks: list[Pick], lo: np.ndarray, hi: np.ndarray, turns: np.ndarray | None
    ) -> tuple[Tensor, np.ndarray]:
        """Windows of one size that hold what each view looks at, ``[b, v, c, *w]``, and their
        corners ``[b, v, s]``.
        """
        reach = (
            (hi - lo) / 2 * (1 - 1 / np.asarray(self.patch))
        )  # from a view's centre to that of its last voxel
        if turns is not None:
            reach = np.einsum("bvij,bvj->bvi", np.abs(turns), reach)
        centre = (lo + hi) / 2
        corner = np.floor(centre - reach - 0.5).astype(int)
        size = (np.ceil(centre + reach + 0.5).astype(int) - corner).max((0, 1))
        shapes = np.asarray([self.reader.shape(p.name) for p in picks])
        corner = corner.clip(
            0, np.maximum(shapes[:, None, -len(size) :] - size, 0)
        )  # resampling continues the edge
        crops = [
            torch.from_numpy(self._read(pick, low, low + size))
            for pick, lows in zip(picks, corner, strict=True)
            for low in lows
        ]
        return torch.stack(crops).unflatten(0, corner.shape[:2]), corner

    def _read(self, pick: Pick, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        if len(self.patch) == 3:
            return self.reader.image(pick.name, low.tolist(), high.tolist())
        return self.reader.image(pick.name, (pick.slice, *low), (pick.slice + 1, *high))[:, 0]


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
