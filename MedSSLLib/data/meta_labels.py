"""Meta labels: free attributes of cases and slices as class indices.

GCL, arXiv 2309.08888, section 3.1.

`patient` and `position` (part of the slice axis) are always known; any categorical metadata column
can serve as well. -1 stands for a missing value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from MedSSLLib.core.errors import InputError, did_you_mean
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
        found = {}
        for name, classes in self.classes.items():
            if name == POSITION:
                found[name] = quantile(index, int(self.slices[case]), len(classes))
            else:
                found[name] = int(self.of_case[name][case])
        return found

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
            groups = [
                f"{', '.join(names)} ({_of_several(reason) if len(names) > 1 else reason})"
                for reason, names in alike.items()
            ]
            sentences.append(f"Not used: {'; '.join(groups)}.")
        return sentences

    def _missing(self, name: str) -> str:
        missing = int((self.of_case[name] == MISSING).sum()) if name in self.of_case else 0
        return f", missing for {missing} of {len(self.slices)} cases" if missing else ""


def quantile(index: int, count: int, parts: int = 4) -> int:
    """Part of the slice axis of slice i of n: ``min(i // (n / parts), parts - 1)``.

    GCL has 4 parts.
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
    refuse_unknown_labels(names, cases)
    counts = np.ones(len(cases), np.int64) if slices is None else np.asarray(slices, np.int64)
    classes: dict[str, tuple[str, ...]] = {}
    of_case: dict[str, np.ndarray] = {}
    dropped: dict[str, str] = {}
    columns[PATIENT] = [case.patient for case in cases]
    for name in dict.fromkeys(names or (PATIENT, POSITION, *columns)):
        if name == POSITION:
            reason = _why_no_position(slices, parts)
            found = tuple(f"part {part} of {parts}" for part in range(1, parts + 1))
        else:
            found, codes = encode(columns[name])
            # the members of a patient are its slices, of another class its cases
            members = counts if name == PATIENT else np.ones_like(counts)
            reason = _why_not(found, codes, members)
            if not (reason or names):
                reason = _why_not_chosen(found, codes, of_case)
            if not reason:
                of_case[name] = codes
        if reason:
            dropped[name] = reason
        else:
            classes[name] = found
    if names and not classes:
        reasons = [f"{name} {reason}" for name, reason in dropped.items()]
        raise InputError(
            "no meta label is usable: " + "; ".join(reasons),
            remedy="Name other labels, or none to leave the choice open.",
        )
    return MetaLabels(classes, of_case, counts, dropped)


def _of_several(reason: str) -> str:
    """A reason why a label is not used, said of several."""
    for one, several in (
        ("it has", "they have"),
        ("it holds", "they hold"),
        ("it groups", "they group"),
    ):
        reason = reason.replace(one, several)
    return reason.replace("name it to", "name one to")


def encode(values: Sequence[str | None]) -> tuple[tuple[str, ...], np.ndarray]:
    """Sorted class names and the class index of each value, -1 for empty, NA, nan and the like."""
    texts = ["" if value is None else str(value).strip() for value in values]
    classes = tuple(sorted({text for text in texts if text.lower() not in NO_VALUE}))
    index = {text: i for i, text in enumerate(classes)}
    codes = [index.get(text, MISSING) for text in texts]
    return classes, np.asarray(codes, np.int64)


def _columns(cases: Sequence[CaseFacts]) -> dict[str, list[str | None]]:
    """Metadata columns by name; `patient` and `position` are made here, never read."""
    names: dict[str, None] = {}
    for case in cases:
        names |= dict.fromkeys(case.metadata)
    columns = {}
    for name in names:
        if name not in (PATIENT, POSITION):
            columns[name] = [case.metadata.get(name) for case in cases]
    return columns


def refuse_unknown_labels(names: Sequence[str], cases: Sequence[CaseFacts]) -> None:
    """Raises InputError where a name is neither patient, position nor a metadata column."""
    known = (PATIENT, POSITION, *_columns(cases))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"meta label {', '.join(map(repr, unknown))} does not exist",
            remedy=f"{did_you_mean(unknown[0], known)} There are {', '.join(known)} (upper and "
            "lower case differ).".lstrip(),
        )


def _why_no_position(slices: Sequence[int] | None, parts: int) -> str:
    if slices is None:
        return "a 3D patch has no slice position"
    return "" if len(slices) and max(slices) >= parts else f"no case has {parts} slices"


def _why_not(classes: Sequence[str], codes: np.ndarray, members: np.ndarray) -> str:
    """Why a label gives no positives or negatives, or nothing.

    Args:
        classes: of the label.
        codes: class index of each case, ``[cases]``.
        members: how many members of its class each case gives, ``[cases]``.
    """
    if not classes:
        return "it has no values"
    if len(classes) < 2:
        return "it has one class only"
    known = codes >= 0
    of_class = np.bincount(codes[known], members[known], len(classes))
    return "" if of_class.max() > 1 else "each class has one member only"


def _why_not_chosen(
    classes: Sequence[str], codes: np.ndarray, earlier: Mapping[str, np.ndarray]
) -> str:
    """Why a column is left out when nobody asked for it."""
    for name, other in earlier.items():
        if _same_groups(codes, other):
            return f"it groups the cases as {name} does"
    if all(map(_is_number, classes)):
        return "it holds numbers; name it to use it as categories"
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
    """Whether all scans of a patient are of one class, and most patients have several scans."""
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
