"""Scans that were moved: which files of a project are not where they were, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def relocated(cases: Iterable[Case], old: Path, new: Path) -> list[Case]:
    """The cases with files in the folder `old`, with the paths these have in `new`.

    Raises InputError when there is none, or when a file is not in `new`.
    """
    before, after = Path(os.path.abspath(old)), Path(os.path.abspath(new))

    def moved(path: Path) -> Path:
        return after / path.relative_to(before) if path.is_relative_to(before) else path

    result = []
    for case in cases:
        images = tuple(moved(path) for path in case.images)
        label = moved(case.label) if case.label else None
        if (images, label) != (case.images, case.label):
            result.append(replace(case, images=images, label=label))
    if not result:
        raise InputError(
            "holds no file of the project, by the paths that it has recorded",
            file=before,
            remedy="Give the folder in which the scans lay.",
        )
    missing = missing_files(result)
    if missing:
        raise InputError(
            f"{len(missing)} of the files are not in {after} ({missing[0]})",
            file=missing[0],
            remedy="Give the folder that holds the same files under the same names.",
        )
    return result


def _common_folder(files: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))
