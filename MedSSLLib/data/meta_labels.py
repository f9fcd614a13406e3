"""Meta labels: free attributes of cases and slices as class indices (GCL, arXiv 2309.08888, section
3.1).

`patient` and `position` (part of the slice axis) are always known; any categorical metadata column
can serve as well. -1 stands for a missing value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.project.manifest import NO_VALUE

PATIENT, POSITION = "patient", "position"
MISSING = -1


class CaseFacts(Protocol):
    """What is asked of a case; see :class:`MedSSLLib.project.manifest.Case`."""

    @property
    def name(self) -> str: ...

    @property
    def patient(self) -> str: ...

    @property
    def metadata(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class MetaLabels:
    """Meta labels in use.

    Attributes:
        classes: class names per label, in index order.
        of_case: class index of each case per label, ``[cases]`` int64; without `position`.
        slices: slices of each case, ``[cases]``.
        dropped: labels that cannot be used, and why.
    """

    classes: dict[str, tuple[str, ...]]
    of_case: dict[str, np.ndarray]
    slices: np.ndarray
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels in use."""
        return tuple(self.classes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of classes per label."""
        return {name: len(classes) for name, classes in self.classes.items()}

    def of(self, case: int, index: int = 0) -> dict[str, int]:
        """Class index per label of slice `index` of case number `case`; -1 where missing."""
        parts = len(self.classes.get(POSITION, ()))
        return {
            name: quantile(index, int(self.slices[case]), parts)
            if name == POSITION
            else int(self.of_case[name][case])
            for name in self.classes
        }

    def describe(self) -> list[str]:
        """At most two sentences: what is used, and what is not and why."""
        used = []
        for name, classes in self.classes.items():
            used.append(f"{name} ({len(classes)} classes{self._missing(name)})")
        sentences = [f"Meta labels: {', '.join(used)}."] if used else []
        alike: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            alike.setdefault(reason, []).append(name)
        if alike:
            groups = [f"{', '.join(names)} ({reason})" for reason, names in alike.items()]
            sentences.append(f"Not used: {'; '.join(groups)}.")
        return sentences

    def _missing(self, name: str) -> str:
        missing = int((self.of_case[name] == MISSING).sum()) if name in self.of_case else 0
        return f", missing for {missing} of {len(self.slices)} cases" if missing else ""


def quantile(index: int, count: int, parts: int = 4) -> int:
    """Part of the slice axis, ``min(i // (n / parts), parts - 1)``, of slice i of n (GCL: 4
    parts).
    """
    return min(index * parts // count, parts - 1)


def build_metalabels(
    cases: Sequence[CaseFacts],
    slices: Sequence[int] | None,
    names: Sequence[str] = (),
    *,
    parts: int = 4,
) -> MetaLabels:
    """The usable meta labels of some cases.

    Without `names`: patient, position, and every metadata column that reads as categories (text,
    not numbers) and groups the cases otherwise than a label before it, but those that all scans of
    a patient share, where most patients have several. Columns of numbers, and such ones, serve when
    they are named.

    Args:
        cases: the cases to pre-train on.
        slices: slices of each case; None in 3D, where a sample is a patch and has no position.
        names: labels to use, in order; empty = as above.
        parts: classes of `position` (not from the paper beyond its 4).

    Raises:
        InputError: a name is neither patient, position nor a metadata column, or none of the names
            is usable.
    """
    columns = _columns(cases)
    refuse_unknown(names, cases)
    counts = np.ones(len(cases), np.int64) if slices is None else np.asarray(slices, np.int64)
    classes: dict[str, tuple[str, ...]] = {}
    of_case: dict[str, np.ndarray] = {}
    dropped: dict[str, str] = {}
    for name in dict.fromkeys(names or (PATIENT, POSITION, *columns)):
        if name == POSITION:
            reason = _why_no_position(slices, parts)
            found: tuple[str, ...] = tuple(f"part {part + 1} of {parts}" for part in range(parts))
        else:
            found, codes = encode(
                [case.patient for case in cases] if name == PATIENT else columns[name]
            )
            reason = _why_not(found, codes, counts, PATIENT if name == PATIENT else "column")
            reason = reason or ("" if names else _why_not_chosen(found, codes, of_case))
            of_case |= {} if reason else {name: codes}
        if reason:
            dropped[name] = reason
        else:
            classes[name] = found
    if names and not classes:
        raise InputError(
            "no meta label is usable: " + "; ".join(f"{n} {why}" for n, why in dropped.items()),
            remedy="Name other labels, or none to leave the choice open.",
        )
    return MetaLabels(classes, of_case, counts, dropped)


def encode(values: Sequence[str | None]) -> tuple[tuple[str, ...], np.ndarray]:
    """Sorted class names and the class index of each value, -1 for empty, NA, nan and the like."""
    texts = ["" if value is None else str(value).strip() for value in values]
    known = [text.lower() not in NO_VALUE for text in texts]
    classes = tuple(sorted({text for text, is_known in zip(texts, known, strict=True) if is_known}))
    index = {text: i for i, text in enumerate(classes)}
    codes = [
        index[text] if is_known else MISSING for text, is_known in zip(texts, known, strict=True)
    ]
    return classes, np.asarray(codes, np.int64)


def _columns(cases: Sequence[CaseFacts]) -> dict[str, list[str | None]]:
    """Metadata columns by name; `patient` and `position` are made here, never read."""
    names = dict.fromkeys(key for case in cases for key in case.metadata)
    return {
        name: [case.metadata.get(name) for case in cases]
        for name in names
        if name not in (PATIENT, POSITION)
    }


def refuse_unknown(names: Sequence[str], cases: Sequence[CaseFacts]) -> None:
    """Raises InputError where a name is neither patient, position nor a metadata column of the
    cases.
    """
    known = (PATIENT, POSITION, *_columns(cases))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"meta label {', '.join(map(repr, unknown))} does not exist",
            remedy=f"Use {', '.join(known)} (upper and lower case differ).",
        )


def _why_no_position(slices: Sequence[int] | None, parts: int) -> str:
    if slices is None:
        return "a 3D patch has no slice position"
    return "" if len(slices) and max(slices) >= parts else f"no case has {parts} slices"


def _why_not(classes: Sequence[str], codes: np.ndarray, slices: np.ndarray, kind: str) -> str:
    """Why a label gives no positives or negatives, or nothing; the members of a patient are its
    slices.
    """
    if len(classes) < 2:
        return "it has one class only" if classes else "it has no values"
    weights = slices if kind == PATIENT else np.ones_like(slices)
    members = np.bincount(codes[codes >= 0], weights[codes >= 0], len(classes))
    return "" if members.max() > 1 else "each class has one member only"


def _why_not_chosen(
    classes: Sequence[str], codes: np.ndarray, earlier: Mapping[str, np.ndarray]
) -> str:
    """Why a column is left out when nobody asked for it."""
    same = [name for name, other in earlier.items() if _same_groups(codes, other)]
    if same:
        return f"it groups the cases as {same[0]} does"
    if all(map(_is_number, classes)):
        return "it holds numbers (name it to use it as categories)"
    if PATIENT in earlier and _same_for_a_patient(codes, earlier[PATIENT]):
        return (
            "all scans of a patient share it, so in a batch it says hardly more than patient "
            "(name it to use it)"
        )
    return ""


def _same_groups(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _same_for_a_patient(codes: np.ndarray, patients: np.ndarray) -> bool:
    """Whether no patient has scans of two classes, though most have several scans of a known
    class.
    """
    known = patients[codes != MISSING]
    pairs = set(zip(known.tolist(), codes[codes != MISSING].tolist(), strict=True))
    scans = np.unique(known, return_counts=True)[1]
    return len(scans) == len(pairs) and 2 * int((scans > 1).sum()) > len(scans)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
