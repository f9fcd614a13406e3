"""Drawn slices on the training grid, in memory, and the sampler that favours new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedSSLLib.data.cache import Cache, class_places
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.preprocessing.label import label_on_grid
from MedSSLLib.data.slices import slice_operator
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.live.watch import DrawnCase, SlicePlace


@dataclass(frozen=True)
class _Held:
    """A case's label: grid slices d that hold anything that counts, and where its classes are."""

    rows: dict[int, np.ndarray]
    counts: dict[int, int]
    places: dict[int, np.ndarray]


class LiveLabels:
    """Reads images from a cache and labels from memory; what samplers ask of a cache.

    Only grid slices on which something counts are held. A label is replaced whole, so that a thread
    that reads sees the old one or the new one.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._held: dict[str, _Held] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Cases with a label, sorted."""
        return tuple(sorted(self._held))

    def put(self, drawn: DrawnCase) -> None:
        """Take a drawing in place of the one before; its image must be in the cache."""
        name = drawn.case.name
        label, _ = label_on_grid(Volume(drawn.label, drawn.geometry), self.cache.geometry(name))
        self.hold(name, label)

    def hold(self, name: str, label: np.ndarray) -> None:
        """Take a class map uint8 ``[d, h, w]`` of the training grid in place of the one before."""
        counts, ranges, table = class_places(label)
        if not counts:
            self.drop(name)
            return
        shown = np.flatnonzero((label != IGNORE).any((1, 2)))
        rows = {int(row): label[row].copy() for row in shown}
        places = {value: table[first:last] for value, (first, last) in ranges.items()}
        self._held[name] = _Held(rows, counts, places)

    def drop(self, name: str) -> None:
        """Forget the label of a case."""
        self._held.pop(name, None)

    def shape(self, name: str) -> tuple[int, int, int, int]:
        """Channels and size of an image, c, d, h, w."""
        return self.cache.shape(name)

    def image(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray:
        """Region [lo, hi) of an image, float32 ``[c, d, h, w]``."""
        return self.cache.image(name, lo, hi)

    def label(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray:
        """Region [lo, hi) of a class map, uint8 ``[d, h, w]``, IGNORE where nothing counts."""
        held = self._held.get(name)
        low, high = np.asarray(lo, int), np.asarray(hi, int)
        result = np.full(high - low, IGNORE, np.uint8)
        if held is None:
            return result
        size = np.asarray(self.shape(name)[2:])
        first, last = low[1:].clip(min=0), np.minimum(high[1:], size)
        if (first >= last).any():
            return result
        inside = tuple(map(slice, first - low[1:], last - low[1:]))
        for row in range(max(0, low[0]), high[0]):
            if row in held.rows:
                result[row - low[0]][inside] = held.rows[row][tuple(map(slice, first, last))]
        return result

    def whole(self, name: str) -> np.ndarray:
        """The class map of a case, ``[d, h, w]``."""
        return self.label(name, (0, 0, 0), self.shape(name)[1:])

    def foreground(self, name: str) -> dict[int, np.ndarray]:
        """Voxels int32 ``[n, 3]`` (d, h, w) per class, background included; at most 10,000 each."""
        held = self._held.get(name)
        return {} if held is None else held.places

    def counts(self, name: str) -> dict[int, int]:
        """Number of counted voxels per class that occurs."""
        held = self._held.get(name)
        return {} if held is None else dict(held.counts)

    def on_slice(self, drawn: DrawnCase, place: SlicePlace) -> dict[int, np.ndarray]:
        """As :meth:`foreground`, of the grid slice that a source slice lies nearest to."""
        name, (axis, index) = drawn.case.name, place
        along, rows = slice_operator(drawn.geometry, self.cache.geometry(name), axis)
        lo, hi = [0, 0, 0], list(self.shape(name)[1:])
        lo[along] = int(rows[index].argmax())
        hi[along] = lo[along] + 1
        _, ranges, table = class_places(self.label(name, lo, hi))
        table = table + np.asarray(lo, np.int32)
        return {value: table[first:last] for value, (first, last) in ranges.items()}


@dataclass(frozen=True)
class FreshSlice:
    """A slice that training has not seen yet, or as it is now.

    Attributes:
        case: its name.
        places: voxels int32 ``[n, 3]`` (d, h, w) of the slice per class.
    """

    case: str
    places: dict[int, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LiveSampler(SegmentationSampler):
    """Patches of drawn slices; while there are new ones they make up a share of every batch.

    Attributes:
        fresh: the new slices.
        fresh_share: of a batch.
    """

    fresh: tuple[FreshSlice, ...] = ()
    fresh_share: float = 0.5

    def _chosen(self, rng: np.random.Generator, step: int, i: int) -> tuple[str, np.ndarray]:
        reserved = round(self.fresh_share * self.batch)
        if not self.fresh or i >= reserved:
            return super()._chosen(rng, step, i)
        fresh = self.fresh[(step * reserved + i) % len(self.fresh)]
        structures = [value for value in fresh.places if value > 0]
        # every other sample lies on a structure where there is one
        values = structures if structures and i % 2 == 0 else list(fresh.places)
        chosen = fresh.places[values[rng.integers(len(values))]]
        return fresh.case, chosen[rng.integers(len(chosen))]
