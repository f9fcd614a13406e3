"""What the model sees in a case: the shown slice first, then outwards, some slices at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.core.files import atomic_path
from MedSSLLib.data.preprocessing.resampling import axis_positions
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, moved, oriented, triple
from MedSSLLib.inference.model import Model
from MedSSLLib.inference.source_grid import in_source_order, source_slabs
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.project.manifest import Case

CHUNK = 2**18  # voxels of the training grid that are predicted at a time, at least a slice
WRITE_EVERY = 2.0  # seconds between two writings of a preview that is neither new nor whole


class Images(Protocol):
    """What is asked of a cache."""

    def shape(self, name: str) -> tuple[int, int, int, int]: ...

    def image(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray: ...

    def geometry(self, name: str) -> Geometry: ...


@dataclass(frozen=True)
class Layout:
    """How a case lies on its training grid.

    Attributes:
        name: of the case.
        source: the grid of its image.
        grid: its training grid.
        axis: the source's axis (0 i, 1 j, 2 k) that runs along d.
        flipped: whether it runs the other way.
    """

    name: str
    source: Geometry
    grid: Geometry
    axis: int
    flipped: bool

    @property
    def count(self) -> int:
        """Slices of the source along the axis."""
        return self.source.size[self.axis]

    def turned(self, index: int) -> int:
        """The place along d of a slice of the source, or the other way round."""
        return self.count - 1 - index if self.flipped else index

    def in_source(self, plane: np.ndarray, place: SlicePlace) -> np.ndarray:
        """A class map ``[1, h, w]`` of one slice in the order of the source's own axes, 2D."""
        axis, index = place
        start, size = [0, 0, 0], list(self.source.size)
        start[axis], size[axis] = index, 1
        part = moved(self.source, triple(start), triple(size))
        return in_source_order(plane, self.grid, part).take(0, 2 - axis)

    @property
    def per_chunk(self) -> int:
        """Slices that are predicted at a time."""
        across = oriented(self.source, self.grid.code)
        finer = max(1.0, self.grid.size[2] / across.size[2])
        return max(1, int(CHUNK / (self.grid.size[0] * self.grid.size[1] * finer)))


def layout_of(case: Case, images: Images) -> Layout:
    """The layout of a prepared case. Raises InputError when its header cannot be read."""
    source, grid = io.read_header(case.images[0], case=case.name), images.geometry(case.name)
    turned = oriented(source, grid.code)
    corner, end = source.indices(turned.points(np.array([[0.0, 0, 0], [0, 0, 1]])))
    step = end - corner
    axis = int(np.abs(step).argmax())
    return Layout(case.name, source, grid, axis, bool(step[axis] < 0))


def predicted_slices(
    model: Model, images: Images, layout: Layout, first: int, last: int
) -> np.ndarray:
    """Class maps uint8 ``[last - first + 1, h, w]`` of source slices along d.

    In 3D they are seen with half a patch of their surroundings, so near the ends of a chunk
    they may differ a little from the prediction of the whole volume.

    Args:
        model: with its network in evaluation mode.
        images: the cache.
        layout: of the case.
        first: first slice, in the order of d.
        last: last slice.
    """
    turned = oriented(layout.source, layout.grid.code)
    part = _along_d(turned, first, last)
    positions, count, _ = next(iter(axis_positions(layout.grid, part)))
    margin, stride = 0, 1
    if model.plan.dim == 3:  # from where the strides of the whole volume would begin
        margin, stride = model.plan.patch[0] // 2, int(np.prod(model.plan.strides, axis=0)[0])
    low = max(0, min(int(np.floor(positions.min())), count - 1) - margin)
    low -= low % stride
    high = min(count - 1, max(0, int(np.ceil(positions.max()))) + margin)
    size = images.shape(layout.name)[1:]
    image = images.image(layout.name, (low, 0, 0), (high + 1, size[1], size[2]))
    seen = _along_d(layout.grid, low, high)
    slabs = source_slabs(model.slabs(image), seen, part)
    return np.concatenate([slab.argmax(0).numpy().astype(np.uint8) for slab in slabs])


@dataclass
class Pass:
    """One prediction of a case from a slice outwards.

    Attributes:
        layout: of the case.
        centre: where it begins, in the order of d.
        knows: which annotations the weights know.
        step: of training at its beginning.
        since: when it was asked for, seconds since the epoch.
        classes: class maps ``[n, h, w]`` in the order of d; those of before where it has not come.
        seen: slices that this pass or one before has predicted, boolean ``[n]``.
        low, high: what it has predicted, ``[low, high)``.
        written: when it was written last, on the monotonic clock.
    """

    layout: Layout
    centre: int
    knows: int
    step: int
    since: float
    classes: np.ndarray
    seen: np.ndarray
    low: int = 0
    high: int = 0
    written: float = 0.0
    _upwards: bool = field(default=False)

    @property
    def whole(self) -> bool:
        """Whether every slice is predicted."""
        return self.high - self.low == len(self.classes)

    def holds(self, place: SlicePlace | None) -> bool:
        """Whether a slice of the source is predicted; None for any."""
        if self.whole or place is None or place[0] != self.layout.axis:
            return self.whole
        return self.low <= self.layout.turned(place[1]) < self.high

    def has_shown(self, place: SlicePlace) -> bool:
        """Whether this pass or one before has predicted a slice of the source."""
        axis, index = place
        if axis != self.layout.axis:
            return bool(self.seen.all())
        return index < len(self.seen) and bool(self.seen[self.layout.turned(index)])

    def advance(self, model: Model, images: Images) -> None:
        """Predict the next slices: the centre alone, then some below and above in turn."""
        if self.high == self.low:
            self.low, self.high = self.centre, self.centre + 1
            first, last = self.centre, self.centre
        else:
            step = self.layout.per_chunk
            self._upwards = (not self._upwards or self.low == 0) and self.high < len(self.classes)
            if self._upwards:
                first, last = self.high, min(self.high + step, len(self.classes)) - 1
            else:
                first, last = max(0, self.low - step), self.low - 1
            self.low, self.high = min(self.low, first), max(self.high, last + 1)
        found = predicted_slices(model, images, self.layout, first, last)
        self.classes[first : last + 1] = found
        self.seen[first : last + 1] = True

    @property
    def due(self) -> bool:
        """Whether what it has should be written: its first slice, all of it, or after a while."""
        first = self.high - self.low == 1
        return first or self.whole or time.monotonic() - self.written > WRITE_EVERY

    @property
    def slices(self) -> list[int] | None:
        """First and last slice predicted, on the source's axis; None where all are."""
        if self.whole:
            return None
        return sorted((self.layout.turned(self.low), self.layout.turned(self.high - 1)))

    def write(self, folder: Path) -> Path:
        """Write the class maps as ``CASE.npy``, uint8 ``[k, j, i]`` on the source's grid."""
        layout = self.layout
        array = in_source_order(self.classes, layout.grid, layout.source)
        path = folder / f"{layout.name}.npy"
        write_array(path, np.ascontiguousarray(array))
        self.written = time.monotonic()
        return path


def begin_pass(
    case: Case, images: Images, place: SlicePlace | None, before: Pass | None = None
) -> Pass:
    """A pass over a prepared case.

    Args:
        case: the case.
        images: the cache.
        place: the slice that is looked at; the middle one where there is none along d.
        before: an earlier pass, whose class maps it goes on with.

    Raises:
        InputError: its header cannot be read.
    """
    layout = layout_of(case, images)
    count = layout.count
    centre = count // 2
    if place is not None and place[0] == layout.axis and place[1] < count:
        centre = layout.turned(place[1])
    shape = oriented(layout.source, layout.grid.code).shape
    if before is not None and before.layout == layout:
        return Pass(layout, centre, 0, 0, time.time(), before.classes, before.seen)
    classes, seen = np.zeros(shape, np.uint8), np.zeros(count, bool)
    return Pass(layout, centre, 0, 0, time.time(), classes, seen)


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a .npy file whole; on Windows one that somebody reads stays for now.

    Raises:
        MedSSLError: the disk is full or may not be written.
    """
    try:
        with atomic_path(path) as temporary:
            _into_temporary(temporary, array)
    except MedSSLError as error:
        if os.name != "nt" or not isinstance(error.__cause__, PermissionError):
            raise


def _into_temporary(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=False)


def _along_d(grid: Geometry, first: int, last: int) -> Geometry:
    """Slices `first` to `last` of a grid whose k runs along d."""
    i, j, _ = grid.size
    return moved(grid, (0, 0, first), (i, j, last - first + 1))
