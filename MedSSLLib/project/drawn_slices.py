"""What becomes of the record of a case's drawn slices when its label file comes anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.io import planes
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import Case

_AXES = "ijk"
_FEW_VOXELS = 16  # of a slice: structures that small may end within it; not from a paper
_FEW_SLICES = 5  # of an image: of fewer, one slice may be all of a structure; not from a paper
_FLAT = 4.0  # in-plane side over thickness from which one slice looks drawn; not from a paper


def lone_slices(label: np.ndarray, grid: Geometry) -> str:
    """The slices that a label map shows structures on, in words, where none touches another: a
    structure of a whole label spans neighbouring slices, and these look drawn one by one. "" for
    other label maps. One slice alone looks drawn where what it shows is much wider than the slice
    is thick: a small structure may lie on one slice.

    Args:
        label: ``[k, j, i]``.
        grid: its grid.
    """
    shown = label != 0
    for axis in (2, 1, 0):
        counts = shown.sum(tuple(other for other in range(3) if other != 2 - axis))
        found = np.flatnonzero(counts)
        if len(found) == 0 or len(counts) < _FEW_SLICES or counts[found].min() < _FEW_VOXELS:
            continue
        apart = np.diff(found).min() > 1 if len(found) > 1 else _flat(shown, axis, grid.spacing)
        if apart:
            return f"{planes(grid)[axis]} {', '.join(str(index) for index in found)}"
    return ""


def _flat(shown: np.ndarray, axis: int, spacing: Sequence[float]) -> bool:
    """Whether what is shown is at least _FLAT times as wide, both ways, as one slice is thick."""
    sides = []
    for other in {0, 1, 2} - {axis}:
        places = np.flatnonzero(shown.any(tuple(2 - n for n in range(3) if n != other)))
        sides.append((places[-1] - places[0] + 1) * spacing[other])
    return min(sides) >= _FLAT * spacing[axis]


def about_lone_slices(found: Sequence[str]) -> list[str]:
    """A warning of labels that look drawn on some slices alone, and count as whole ones; [] for
    none.
    """
    if not found:
        return []
    shown = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
    return [
        f"{len(found)} label{'s' * (len(found) > 1)} with structures on single slices only "
        f"({shown}), counted from 0: all other slices count as background. If only these were "
        "drawn, say so with --drawn axial (coronal, sagittal)"
    ]


def carry_over(before: Mapping[str, Case], cases: dict[str, Case]) -> list[str]:
    """Carry the records of drawn slices over to cases whose label file came anew; warnings.

    Args:
        before: the cases as they were, by name.
        cases: as they are with what was found in the new files; changed. Labels of test cases are
            not opened, and keep their record.
    """
    warnings = []
    for name, case in list(cases.items()):
        record, words = before[name].annotated, ""
        if case.role != "test":
            record, words = carried_over(name, record, case.annotated)
        cases[name] = replace(case, annotated=record)
        if words:
            warnings.append(words)
    return warnings


def carried_over(
    case: str, before: Annotated | None, after: Annotated | None
) -> tuple[Annotated | None, str]:
    """The record of a label's drawn slices, and words of what it no longer says ("" for nothing).

    Slices that were partly drawn stay so. Slices that show nothing any more do not count any more:
    whether they were erased or are drawn and empty cannot be seen.

    Args:
        case: its name.
        before: the record of the label before; None where all of it counted.
        after: of the new one, found in its file.
    """
    if before is None:
        return after, ""
    if after is None:
        words = f"{case}: the whole label counts now, and not {_named(before)} alone"
        return after, f"{words}. Where it is drawn on some slices only, add it with --drawn."
    found = {(axis, index) for axis, indices in after.slices for index in indices}
    partly, gone = [], []
    for axis, indices in before.partly:
        partly.append((axis, [index for index in indices if (axis, index) in found]))
    for axis, indices in before.slices:
        gone.append((axis, [index for index in indices if (axis, index) not in found]))
    record = Annotated.of(after.slices, [pair for pair in partly if pair[1]])
    lost = Annotated.of([pair for pair in gone if pair[1]])
    if not lost.count:
        return record, ""
    shows = "shows nothing and counts" if lost.count == 1 else "show nothing and count"
    words = f"{case}: {_named(lost)}, drawn before, {shows} no longer"
    return record, f"{words}. What is drawn and empty is put among its indices in medssl.json."


def _named(slices: Annotated) -> str:
    """Slices in words, as they are counted in the manifest."""
    parts = []
    for axis, indices in slices.slices:
        plural = "s" * (len(indices) > 1)
        parts.append(f"slice{plural} {', '.join(map(str, indices))} along {_AXES[axis]}")
    return " and ".join(parts)
