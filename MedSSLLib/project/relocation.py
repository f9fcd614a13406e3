"""Files of a project: those that are not where they were, where they are now, and copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_folder, atomic_path, detached_files
from MedSSLLib.images.io import check_label, extension, read_header
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


def relocated(cases: Sequence[Case], old: Path, new: Path) -> list[Case]:
    """The cases with a file below `old`, read below `new` where it exists there.

    Args:
        cases: of a project.
        old: absolute path of the folder that the files lay in, directly or deeper.
        new: absolute path of the folder that took its place.

    Raises:
        InputError: no file lies below `old`, none of those exists below `new`, or the label of a
            labelled case does not lie on the image found there.
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
            _check_same_scan(found[-1])
    return found


def _check_same_scan(case: Case) -> None:
    """Check that the label of a labelled case lies on its image, where both are there (InputError);
    else other scans bear these names.
    """
    if case.role != "labelled" or case.label is None or not all(p.exists() for p in _files(case)):
        return
    try:
        check_label(case.label, read_header(case.images[0]))
    except InputError as error:
        raise InputError(
            f"is another scan than before, or its label is another: the label {error.finding}",
            case=case.name,
            file=case.images[0],
            remedy="Give the folder that holds the scans and labels of this project.",
        ) from None


def _files(case: Case) -> tuple[Path, ...]:
    return (*case.images, case.label) if case.label else case.images


def _common_folder(files: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


def copied(case: Case, folder: Path) -> Case:
    """`case` with its images and label copied to `folder`/images and `folder`/labels; what lies
    there already stays.

    Raises InputError for a file that has vanished, MedSSLError for a full disk or missing
    permission.
    """
    channels = len(case.images)
    names = [case.name if channels == 1 else f"{case.name}_{n:04d}" for n in range(channels)]
    images = tuple(
        _copy(image, folder / "images", name)
        for image, name in zip(case.images, names, strict=True)
    )
    return replace(
        case,
        images=images,
        label=_copy(case.label, folder / "labels", case.name) if case.label else None,
    )


def _copy(source: Path, folder: Path, name: str) -> Path:
    if not source.exists():
        raise InputError(
            "does not exist",
            file=source,
            remedy="Was the file moved? Correct its path in medssl.json.",
        )
    if source.is_dir():
        return _copy_folder(source, folder / name)
    details = detached_files(source)
    # a header names its data file: both keep their names, in a folder of their own
    target = folder / name / source.name if details else folder / f"{name}{extension(source)}"
    for file, place in [
        (source, target),
        *((detail, target.with_name(detail.name)) for detail in details),
    ]:
        if not place.exists():
            with atomic_path(place) as temporary:
                shutil.copyfile(file, temporary)
    return target


def _copy_folder(source: Path, target: Path) -> Path:
    if not target.exists():
        with atomic_folder(target) as temporary:
            shutil.copytree(
                source, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile
            )  # not their modes
    return target
