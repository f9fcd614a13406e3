"""What becomes of the record of a case's drawn slices when its label file comes anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import Case

_AXES = "ijk"


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
