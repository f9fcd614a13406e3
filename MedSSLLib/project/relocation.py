"""Files of a project that were moved to another folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.project.manifest import Case


def moved(cases: Sequence[Case], old: Path, new: Path) -> list[Case]:
    """The cases with a file below `old`, read below `new` where it exists there.

    Args:
        cases: of a project.
        old: absolute path of the folder that the files lay in, directly or deeper.
        new: absolute path of the folder that took its place.

    Raises:
        InputError: no file lies below `old`, or none of those exists below `new`.
    """
    below = [path for case in cases for path in _files(case) if path.is_relative_to(old)]
    if not below:
        folders = sorted({str(path.parent) for case in cases for path in _files(case)})
        raise InputError(
            "holds no file of the project",
            file=old,
            remedy=f"The project's files lie in {', '.join(folders[:3])}.",
        )
    places = {}
    for path in below:
        place = new / path.relative_to(old)
        if place.exists():
            places[path] = place
    if not places:
        example = new / below[0].relative_to(old)
        raise InputError(
            f"has none of the {len(below)} files, for instance no {example.name}",
            file=new,
            remedy=f"Give the folder that stands for {old}, so that {example} exists.",
        )
    found = []
    for case in cases:
        images = tuple(places.get(path, path) for path in case.images)
        label = places.get(case.label, case.label) if case.label else None
        if (images, label) != (case.images, case.label):
            found.append(replace(case, images=images, label=label))
    return found


def _files(case: Case) -> tuple[Path, ...]:
    return (*case.images, case.label) if case.label else case.images
