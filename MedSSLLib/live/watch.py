"""What is drawn of a project's cases, and noticing that it has changed.

A look compares sizes, times and numbers of the manifest and of the label files. Only a label that
differs is read, and only a slice whose content differs counts as changed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError, naming
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import class_indices, slice_axis, sparse_label
from MedSSLLib.project.manifest import FILE_NAME, Case
from MedSSLLib.project.project import Project

Stamp = tuple[Any, ...]
TRIES = 3  # looks at a file that cannot be read, which may be being written, before it is reported
_LATELY = 10.0  # seconds: an older time of a file says nothing of when it was drawn

SlicePlace = tuple[int, int]
"""A slice: its axis (0 i, 1 j, 2 k of the source image) and its index, from 0."""


@dataclass(frozen=True)
class DrawnCase:
    """A case and its label as far as it counts.

    Attributes:
        case: the case.
        label: class map uint8 ``[k, j, i]``, IGNORE where nothing is drawn.
        geometry: the source's grid.
    """

    case: Case
    label: np.ndarray
    geometry: Geometry

    @property
    def places(self) -> list[SlicePlace]:
        """The drawn slices; of a label that counts everywhere all slices along the slice axis."""
        annotated = self.case.annotated
        if annotated is None:
            axis = slice_axis(self.geometry)
            return [(axis, index) for index in range(self.geometry.size[axis])]
        return [(axis, index) for axis, indices in annotated.slices for index in indices]

    def plane(self, place: SlicePlace) -> np.ndarray:
        """The class map of a slice, 2D."""
        axis, index = place
        return self.label.take(index, 2 - axis)

    @cached_property
    def digests(self) -> dict[SlicePlace, str]:
        """A text for every drawn slice that changes with what is drawn on it."""
        found = {}
        for place in self.places:
            content = np.ascontiguousarray(self.plane(place))
            found[place] = hashlib.blake2b(content.tobytes(), digest_size=12).hexdigest()
        return found


def read_drawn(project: Project, case: Case) -> DrawnCase:
    """The drawing of a labelled case.

    Raises:
        InputError: image header or label cannot be read, or the label has unknown values.
    """
    if case.label is None:
        raise InputError("has no label", case=case.name, remedy="Annotate a slice of it")
    header = io.read_header(case.images[0], case=case.name)
    names = dict(project.named_values)
    if project.ignore_value is not None:
        names[project.ignore_value] = "ignore"
    volume = io.read_label(case.label, header, case=case.name, names=names)
    with naming(case.name, str(case.label)):
        classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
        return DrawnCase(case, sparse_label(classes, case.annotated), volume.geometry)


def differing(
    before: Mapping[SlicePlace, str], now: Mapping[SlicePlace, str]
) -> tuple[list[SlicePlace], ...]:
    """Slices that are new or have changed, and those that are drawn no more."""
    changed = sorted(place for place, digest in now.items() if before.get(place) != digest)
    return changed, sorted(before.keys() - now.keys())


@dataclass(frozen=True)
class DrawingChange:
    """What changed of a case.

    Attributes:
        name: of the case.
        version: counts the changes of the case, from 1.
        drawn: what is drawn now; None for nothing.
        changed: slices that are new or look different; none of these and none removed where a
            drawing is as an earlier process has left it, which then is told once.
        removed: slices that count no more.
        since: when the files changed, seconds since the epoch.
    """

    name: str
    version: int
    drawn: DrawnCase | None
    changed: tuple[SlicePlace, ...]
    removed: tuple[SlicePlace, ...]
    since: float


@dataclass
class _Known:
    stamp: Stamp = ()
    digests: dict[SlicePlace, str] = field(default_factory=dict)
    version: int = 0
    failed: Stamp = ()
    failures: int = 0
    taken_up: bool = False


class Watch:
    """Looks at a project's annotated slices, again and again.

    Attributes:
        project: as its manifest says now.
    """

    def __init__(self, project: Project, warn: Callable[[str], None]) -> None:
        self.project = project
        self._warn = warn
        self._known: dict[str, _Known] = {}
        self._manifest: Stamp = ()
        self._complaint = ""

    @property
    def digests(self) -> dict[str, dict[SlicePlace, str]]:
        """The drawn slices of every case that has some, each with its digest."""
        return {name: known.digests for name, known in self._known.items() if known.digests}

    def take_up(
        self, versions: Mapping[str, int], digests: Mapping[str, dict[SlicePlace, str]]
    ) -> None:
        """Go on from what an earlier process knew, so that only what changed since is new."""
        for name, version in versions.items():
            found = dict(digests.get(name, {}))
            self._known[name] = _Known(version=version, digests=found, taken_up=bool(found))

    @property
    def versions(self) -> dict[str, int]:
        """Changes so far, by case."""
        return {name: known.version for name, known in self._known.items() if known.version}

    def look(self) -> list[DrawingChange]:
        """What has changed since the last look, case by case."""
        self._look_at_manifest()
        cases = {case.name: case for case in self.project.labelled if case.label}
        found = []
        for name in sorted({*cases, *self._known}):
            known = self._known.setdefault(name, _Known())
            change = self._changed(name, cases.get(name), known)
            if change is not None:
                found.append(change)
        return found

    def _look_at_manifest(self) -> None:
        """Read the manifest where it has changed; one that cannot be read leaves all as it was."""
        path = self.project.folder / FILE_NAME
        stamp = stamp_of(path)
        if stamp == self._manifest:
            return
        try:
            self.project = Project.open(self.project.folder)
        except InputError as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                self._warn(
                    f"The project cannot be read, so live training goes on as before: {error}"
                )
            return
        self._manifest, self._complaint = stamp, ""

    def _changed(self, name: str, case: Case | None, known: _Known) -> DrawingChange | None:
        if case is None:
            known.stamp = ()
            if not known.digests:
                return None
            return self._note(known, name, None, {}, time.time())
        stamp = self._stamp(case)
        if stamp == known.stamp or self._given_up(known, stamp):
            return None
        try:
            drawn = read_drawn(self.project, case)
            digests = drawn.digests
        except InputError as error:
            known.failed, known.failures = stamp, known.failures + 1
            if known.failures == TRIES:
                self._warn(str(error.for_case(name)))
            return None
        known.stamp, known.failed, known.failures = stamp, (), 0
        return self._note(known, name, drawn, digests, self._time_of(case))

    def _note(
        self,
        known: _Known,
        name: str,
        drawn: DrawnCase | None,
        digests: dict[SlicePlace, str],
        since: float,
    ) -> DrawingChange | None:
        changed, removed = differing(known.digests, digests)
        known.digests, taken_up, known.taken_up = digests, known.taken_up, False
        if changed or removed:
            known.version += 1
        elif not taken_up:
            return None
        return DrawingChange(name, known.version, drawn, tuple(changed), tuple(removed), since)

    def _stamp(self, case: Case) -> Stamp:
        """What decides how the drawing of a case is read."""
        assert case.label is not None
        slices = None if case.annotated is None else case.annotated
        classes = (self.project.values, self.project.classes, self.project.ignore_value)
        return (stamp_of(case.label), str(case.label), case.images, slices, classes)

    def _given_up(self, known: _Known, stamp: Stamp) -> bool:
        if known.failed != stamp:
            known.failures = 0
        return known.failures >= TRIES

    def _time_of(self, case: Case) -> float:
        """When the case was drawn, by its files; now where they are older."""
        now, times = time.time(), []
        for path in (case.label, self.project.folder / FILE_NAME):
            try:
                times.append(os.stat(path or "").st_mtime)
            except OSError:
                continue
        newest = max(times, default=now)
        return newest if now - _LATELY < newest < now else now


def stamp_of(path: Path) -> Stamp:
    """What of a file changes when its content does; () where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
