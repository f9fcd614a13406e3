"""What values mean where no project says it: the names that segmentations of 3D Slicer carry.

A structure may have another value in every file, so files with names are compared by name. A plain
label file has numbers only, which mean something as long as all names agree on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.images import io
from MedSSLLib.images.formats.segments import says_nothing
from MedSSLLib.images.headers import is_segmentation_file
from MedSSLLib.images.labels import name_key


class ClassNames:
    """One value and one name a class, over all files that are evaluated together.

    Attributes:
        names: value to name, as :func:`~MedSSLLib.images.io.read_label` takes them; empty where no
            file has names.
        contradiction: two files that do not mean the same by a value, in words; "" where all agree.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self.names = dict(names or {})
        self.contradiction = ""
        self._values: dict[str, int] = {}
        self._said_by: dict[int, Path] = {}
        self._next = 1

    @classmethod
    def of(cls, pairs: Iterable[tuple[Path, Path]]) -> ClassNames:
        """The names in (prediction, reference) files, from headers alone.

        References say what there is. Where they have names, a prediction's segment that is called
        otherwise and has the value of one of them is refused when it is read.
        """
        predicted, expected = [], []
        for prediction, reference in pairs:
            predicted.append((prediction, _stored(prediction)))
            expected.append((reference, _stored(reference)))
        found = cls()
        every = [value for _, stored in (*predicted, *expected) for value in stored]
        found._next = max(every, default=0) + 1  # no file means anything by what is above
        found._add(expected, new=True)
        found._add(predicted, new=not found.names)
        return found

    def check(self, files: Iterable[Path]) -> None:
        """Raise InputError where names contradict each other and one of these files has numbers."""
        if not self.contradiction:
            return
        for path in files:
            stored = _stored(path).values()
            unknown = [name for name in stored if says_nothing(name) and not self._knows(name)]
            if unknown or not is_segmentation_file(path):
                raise InputError(
                    "has values without names, and the files with names do not agree on values: "
                    f"{self.contradiction}",
                    file=path,
                    remedy="Give --project, whose classes say what the values mean.",
                )

    def classes(self, values: Iterable[int]) -> dict[str, int]:
        """A name for each of some values, in their order: its number where nothing names it."""
        names = set(self.names.values())
        found = {}
        for value in sorted(values):
            number = f"value {value}" if str(value) in names else str(value)
            found[self.names.get(value, number)] = value
        return found

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names of :meth:`classes`, by their values."""
        values = {name: value for value, name in self.names.items()}
        return sorted(names, key=lambda name: values.get(name) or int(name.split()[-1]))

    def _knows(self, name: str) -> bool:
        return name_key(name) in self._values

    def _add(self, files: Iterable[tuple[Path, Mapping[int, str]]], *, new: bool) -> None:
        """Names that say something first, so that the order of the files does not matter."""
        for nothing in (False, True):
            for path, stored in files:
                for value, name in stored.items():
                    if says_nothing(name) is nothing:
                        self._add_segment(path, value, name, new=new)

    def _add_segment(self, path: Path, stored: int, name: str, *, new: bool) -> None:
        value, taken = self._values.get(name_key(name)), stored in self.names
        if value is None and taken and (says_nothing(name) or not new):
            return  # a number like any other; or refused when it is read
        if value is None:
            value = self._next if taken else stored
            self._next += taken
        if value != stored and not self.contradiction:
            self.contradiction = self._words(path, stored, name, value)
        self._values.setdefault(name_key(name), value)
        self.names.setdefault(value, name)
        self._said_by.setdefault(value, path)

    def _words(self, path: Path, stored: int, name: str, value: int) -> str:
        if stored in self.names:
            known, first = self.names[stored], self._said_by[stored]
            return f"{stored} is {known!r} in {first} and {name!r} in {path}"
        return f"{name!r} is {value} in {self._said_by[value]} and {stored} in {path}"


def _stored(path: Path) -> dict[int, str]:
    try:
        return io.segment_names(path)
    except MedSSLError:
        return {}  # said when the file is read
