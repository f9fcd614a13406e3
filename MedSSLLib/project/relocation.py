"""Scans that were moved: which files of a project are not where they were, and where they are
now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.project.manifest import Case

_ONE = "1 file is not where it was"


def missing_files(cases: Iterable[Case]) -> list[Path]:
    """Images and labels of cases that do not exist, in order, each once."""
    files = (path for case in cases for path in (*case.images, case.label) if path)
    return [path for path in dict.fromkeys(files) if not path.exists()]


def missing_words(project: Path, cases: Iterable[Case]) -> tuple[str, ...]:
    """One warning about the cases' files that are gone, with the command for moved ones; none where
    all are there.

    Raises InputError, in the same words, when no case has its images any more.
    """
    cases = list(cases)
    missing = missing_files(cases)
    if not missing:
        return ()
    count = len(missing)
    finding = f"{count} files are not where they were" if count > 1 else _ONE
    example = f"{finding} ({missing[0]}{', ...' if count > 1 else ''})"
    old = _common_folder(missing)
    remedy = f"If they were moved: medssl relocate {project} {old} NEW."
    if all(any(path in missing for path in case.images) for case in cases):
        raise InputError(example, remedy=remedy)
    return (f"{example}. {remedy}",)


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


def _common_folder(files: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))
