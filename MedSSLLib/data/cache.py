"""Preprocessed cases on disk: made once, shared by all runs of a project, read by crop.

``cache/images/KEY`` and ``cache/labels/KEY`` hold the entries (see ``store``). A key is made of the
content of the source files and of every setting that changes the result, so an entry never goes
stale.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSSLLib.core.errors import InputError, naming
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import FileLock, explained_os_errors
from MedSSLLib.core.hashes import Hashes
from MedSSLLib.data.array_store import Handles, read_info, write_entry
from MedSSLLib.data.plan import Plan
from MedSSLLib.data.preprocessing.image import VERSION, preprocess_image
from MedSSLLib.data.preprocessing.label import Small, label_on_grid
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE, class_indices, sparse_label

if TYPE_CHECKING:
    from MedSSLLib.project.manifest import Case


MOST_PLACES = 10_000  # remembered voxels per class
_PATIENCE = 3600.0  # seconds to wait for another process that makes the same entry


@dataclass(frozen=True)
class _Entry:
    """Where a case's image or label lies, and what of its ``info.json`` is kept in memory."""

    folder: Path
    shape: tuple[int, ...]
    geometry: Geometry
    counts: dict[int, int]
    places: dict[int, tuple[int, int]]
    small: dict[int, Small]

    @classmethod
    def of(cls, folder: Path, info: Mapping[str, Any]) -> _Entry:
        geometry = Geometry(**{name: tuple(value) for name, value in info["geometry"].items()})
        counts = {int(value): int(n) for value, n in info.get("counts", {}).items()}
        places = {int(value): (int(a), int(b)) for value, (a, b) in info.get("places", {}).items()}
        small = {int(value): Small(*both) for value, both in info.get("small", {}).items()}
        return cls(folder, tuple(info["shape"]), geometry, counts, places, small)


@dataclass(frozen=True)
class _Classes:
    """The values of a label file, in class order, and the value that does not count."""

    values: Sequence[int]
    ignore: int | None
    names: Mapping[int, str] | None


@dataclass(frozen=True)
class Prepared:
    """What became of cases that a cache was asked to hold.

    Attributes:
        usable: the cases that can be read now, in the order they were given.
        refused: the others, each with its error, which names the case.
    """

    usable: tuple[Case, ...]
    refused: tuple[tuple[Case, InputError], ...] = ()

    def report(self, events: Events, opening: str = "") -> None:
        """Name every refused case and its error in a warning, after `opening`."""
        for _, error in self.refused:
            events.emit("warning", message=f"{opening}{error}")

    def require_any(self, file: str = "") -> None:
        """Raises InputError where no case is usable, with the first reason."""
        if self.usable:
            return
        reason = f": {self.refused[0][1]}" if self.refused else ""
        raise InputError(
            f"none of the {len(self.refused)} cases can be used{reason}",
            file=file,
            remedy="See the warnings, and `medssl status`",
        )

    def require_all(self) -> None:
        """Raises the error of the first refused case, if there is one."""
        if self.refused:
            raise self.refused[0][1]


class Cache:
    """The preprocessed cases of a project.

    Call :meth:`prepare` first; then cases are read by name. Memory does not grow with the number of
    cases. Several processes may prepare and read one cache at the same time.
    """

    def __init__(
        self, folder: str | os.PathLike[str], plan: Plan, labels: Path | None = None
    ) -> None:
        """With `labels`, entries of labels lie in that folder, which may be removed after use."""
        self.folder = Path(folder)
        self._label_folder = labels or self.folder / "labels"
        self.plan = plan
        self._settings = _settings(plan)
        self._images: dict[str, _Entry] = {}
        self._labels: dict[str, _Entry] = {}
        self._handles = Handles()

    def prepare(
        self,
        cases: Sequence[Case],
        *,
        labels: bool = False,
        values: Sequence[int] | Mapping[int, str] = (),
        ignore: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prepared:
        """Make what is missing; afterwards the usable cases can be read.

        Args:
            cases: the cases.
            labels: also prepare their labels. Only then is a label file opened.
            values: label values in class order (``project.values``), best with their names
                (``project.named_values``): segmentations of Slicer are read by name then.
            ignore: label value of voxels that do not count (``project.ignore_value``).
            progress: called with (done, total) after every case.

        Returns:
            The usable cases, and the refused ones with their errors.

        Raises:
            MedSSLError: the cache cannot be written.
        """
        usable: list[Case] = []
        refused: list[tuple[Case, InputError]] = []
        names = dict(values) if isinstance(values, Mapping) else None
        if names is not None and ignore is not None:
            names[ignore] = "ignore"
        classes = _Classes(tuple(values), ignore, names)
        with Hashes(self.folder / "hashes.json") as hashes:
            for done, case in enumerate(cases, 1):
                try:
                    image = self._image_entry(case, hashes)
                    if labels:
                        self._labels[case.name] = self._label_entry(case, image, hashes, classes)
                    self._images[case.name] = image
                    usable.append(case)
                except InputError as error:
                    refused.append((case, error.for_case(case.name)))
                if progress:
                    progress(done, len(cases))
        return Prepared(tuple(usable), tuple(refused))

    def shape(self, name: str) -> tuple[int, int, int, int]:
        """Channels and size of a prepared image, c, d, h, w."""
        c, d, h, w = self._images[name].shape
        return c, d, h, w

    def geometry(self, name: str) -> Geometry:
        """The grid of a prepared image (its i, j, k are w, h, d)."""
        return self._images[name].geometry

    def image(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray:
        """Region [lo, hi) of an image, float32 ``[c, d, h, w]``.

        Outside the volume the edge is repeated.
        """
        entry = self._images[name]
        low, high, size = (np.asarray(x, int) for x in (lo, hi, entry.shape[1:]))
        first, last = low.clip(0, size - 1), high.clip(1, size)
        values = self._handles.read(entry.folder, (slice(None), *map(slice, first, last)))
        outside = (high <= 0) | (low >= size)
        for axis in np.flatnonzero(outside):
            values = values.repeat(high[axis] - low[axis], axis + 1)
        before, after = (np.where(outside, 0, np.maximum(n, 0)) for n in (first - low, high - last))
        return _edge_padded(values, before, after)

    def label(self, name: str, lo: Sequence[int], hi: Sequence[int]) -> np.ndarray:
        """Region [lo, hi) of a class map, uint8 ``[d, h, w]``.

        IGNORE outside and where nothing counts.
        """
        entry = self._labels[name]
        low, high = np.asarray(lo, int), np.asarray(hi, int)
        result = np.full(high - low, IGNORE, np.uint8)
        first, last = low.clip(min=0), np.minimum(high, entry.shape)
        if (first < last).all():
            inside = tuple(map(slice, first - low, last - low))
            result[inside] = self._handles.read(entry.folder, tuple(map(slice, first, last)))
        return result

    def foreground(self, name: str) -> dict[int, np.ndarray]:
        """Voxels int32 ``[n, 3]`` (d, h, w) per class: at most 10,000 counted ones each.

        They are drawn evenly. Classes without a counted voxel are left out; class 0 is included, so
        that a case without a structure still tells which voxels count.
        """
        entry = self._labels[name]
        table = self._handles.table(entry.folder, "places")
        return {value: table[start:stop] for value, (start, stop) in entry.places.items()}

    def counts(self, name: str) -> dict[int, int]:
        """Number of counted voxels per class that occurs."""
        return dict(self._labels[name].counts)

    def small_structures(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """What became of structures that win no voxel of the training grid: a sentence per case
        and class.
        """
        found = [(name, value) for name in names for value in sorted(self._labels[name].small)]
        return [
            _about_small(
                name, classes[value], self._labels[name].small[value], self._labels[name].geometry
            )
            for name, value in found
        ]

    def fingerprint(self) -> str:
        """A text that depends on everything prepared so far, and on how it was preprocessed."""
        parts = []
        for entries in (self._images, self._labels):
            parts.append([sorted((name, entry.folder.name) for name, entry in entries.items())])
        return _key(parts)

    def clear(self) -> int:
        """Delete all entries, of every plan; returns the bytes freed. See :func:`clear_cache`."""
        self._handles.close()
        self._images.clear()
        self._labels.clear()
        return clear_cache(self.folder)

    def _image_entry(self, case: Case, hashes: Hashes) -> _Entry:
        key = _key(self._settings, [hashes.of(path) for path in case.images])

        def make(folder: Path) -> None:
            volumes = [io.read_image(path, case=case.name) for path in case.images]
            array, geometry = preprocess_image(volumes, self.plan)
            write_entry(
                folder,
                array.astype(np.float16),
                self.plan.dim,
                {"settings": self._settings, "shape": array.shape, "geometry": asdict(geometry)},
            )

        return self._entry(self.folder / "images" / key, make)

    def _label_entry(self, case: Case, image: _Entry, hashes: Hashes, classes: _Classes) -> _Entry:
        if case.label is None:
            raise InputError("has no label", remedy="Add its label, or do not list it as labelled")
        path, annotated = case.label, case.annotated
        slices = None if annotated is None else annotated.to_json()
        content: Any = hashes.of(path)
        if classes.names and path.name.lower().endswith(".nrrd"):
            content = [content, sorted(classes.names.items())]
        key = _key(image.folder.name, content, list(classes.values), classes.ignore, slices)

        def make(folder: Path) -> None:
            volume = io.read_label(
                path, io.read_header(case.images[0]), case=case.name, names=classes.names
            )
            with naming(case.name, os.fspath(path)):
                indices = class_indices(volume.array, classes.values, ignore=classes.ignore)
                source = Volume(sparse_label(indices, annotated), volume.geometry)
            array, small = label_on_grid(source, image.geometry)
            counts, ranges, places = class_places(array)
            write_entry(
                folder,
                array,
                self.plan.dim,
                {
                    "image": image.folder.name,
                    "shape": array.shape,
                    "geometry": asdict(image.geometry),
                    "counts": counts,
                    "places": ranges,
                    "small": {value: [one.kept, one.unknown] for value, one in small.items()},
                },
                places=places,
            )

        return self._entry(self._label_folder / key, make)

    def _entry(self, folder: Path, make: Callable[[Path], None]) -> _Entry:
        info = read_info(folder)
        if info is None:
            with FileLock(_lock_path(folder), timeout=_PATIENCE):
                info = read_info(folder)
                if info is None:
                    make(folder)
                    info = read_info(folder)
        if info is None:
            raise RuntimeError(f"{folder}: was written but cannot be read back")
        return _Entry.of(folder, info)


def clear_cache(folder: str | os.PathLike[str]) -> int:
    """Delete all entries of the cache in ``folder``; returns the bytes freed.

    Other files are left alone. Entries that another process is making are deleted once they are
    finished.
    """
    root, freed = Path(folder), 0
    with explained_os_errors(root):
        for entry in itertools.chain(root.glob("images/*/"), root.glob("labels/*/")):
            with FileLock(_lock_path(entry), timeout=_PATIENCE):
                if entry.is_dir():
                    freed += sum(path.stat().st_size for path in entry.iterdir())
                    shutil.rmtree(entry)
        (root / "hashes.json").unlink(missing_ok=True)
    return freed


def _edge_padded(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Float32 copy of ``[c, d, h, w]`` with its edge repeated.

    So many voxels before and after along d, h, w.
    """
    n = np.array(values.shape[1:])
    result = np.empty((len(values), *(n + before + after)), np.float32)
    result[:, *map(slice, before, before + n)] = values
    for axis in (0, 1, 2):
        view = np.moveaxis(result, axis + 1, 0)
        view[: before[axis]] = view[before[axis]]
        view[before[axis] + n[axis] :] = view[before[axis] + n[axis] - 1]
    return result


def _about_small(case: str, words: str, small: Small, grid: Geometry) -> str:
    spacing = " x ".join(f"{step:.3g}" for step in grid.spacing)
    count = small.kept + small.unknown
    pieces, are = ("1 piece", "is") if count == 1 else (f"{count} pieces", "are")
    if not small.unknown:
        fate = "the voxels that hold most of it are taught as it"
    elif not small.kept:
        fate = "other structures take its voxels, which are left unknown"
    else:
        fate = f"{small.unknown} are left unknown, as other structures take their voxels"
    return (
        f"{case}: {pieces} of {words} {are} too small for the training grid ({spacing} mm): "
        f"{fate}. A finer grid: --set training.grid=N (mm)."
    )


def _settings(plan: Plan) -> dict[str, Any]:
    """What decides an entry beside its source; part of its key.

    A plan of the first rule of intensities was made when VERSION was 1 and has the keys of then, so
    that a run of then finds its entries and can go on.
    """
    settings = plan.model_dump(mode="json", exclude={"patch", "strides"})
    if plan.intensities == 1:
        del settings["intensities"]
        return {"version": 1, **settings}
    return {"version": VERSION, **settings}


def _lock_path(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def class_places(
    label: np.ndarray,
) -> tuple[dict[int, int], dict[int, tuple[int, int]], np.ndarray]:
    """Counted voxels per class, the rows of each in the table, and the table int32 ``[n, 3]``.

    The table has at most 10,000 voxels of a class, drawn evenly.
    """
    rng = np.random.default_rng(0)
    flat = label.reshape(-1)
    counts, ranges, tables, start = {}, {}, [np.empty((0, 3), np.int32)], 0
    for value in np.unique(flat[flat != IGNORE]):
        found = chosen = np.flatnonzero(flat == value)
        if len(found) > MOST_PLACES:
            chosen = rng.choice(found, MOST_PLACES, replace=False)
        tables.append(np.stack(np.unravel_index(np.sort(chosen), label.shape), 1).astype(np.int32))
        counts[int(value)], ranges[int(value)] = len(found), (start, start + len(chosen))
        start += len(chosen)
    return counts, ranges, np.concatenate(tables)
