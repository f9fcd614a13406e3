"""Copies of a case's files inside the project folder, for projects that must stand alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from MedSSLLib.errors import InputError
from MedSSLLib.files import atomic_folder, atomic_path, detached_files
from MedSSLLib.io import case_name
from MedSSLLib.manifest import Case


def copied(case: Case, folder: Path) -> Case:
    """`case` with its images and label copied to `folder`/images and `folder`/labels; what lies there already stays.

    Raises InputError for a file that has vanished, MedSSLError for a full disk or missing permission.
    """
    channels = len(case.images)
    names = [case.name if channels == 1 else f"{case.name}_{n:04d}" for n in range(channels)]
    images = tuple(_copy(image, folder / "images", name) for image, name in zip(case.images, names, strict=True))
    return replace(case, images=images, label=_copy(case.label, folder / "labels", case.name) if case.label else None)


def _copy(source: Path, folder: Path, name: str) -> Path:
    if not source.exists():
        raise InputError("does not exist", file=source, remedy="Was the file moved? Correct its path in medssl.json.")
    if source.is_dir():
        return _copy_folder(source, folder / name)
    extension = source.name.removeprefix(case_name(source))
    details = detached_files(source)
    # a header names its data file: both keep their names, in a folder of their own
    target = folder / name / source.name if details else folder / f"{name}{extension}"
    for file, place in [(source, target), *((detail, target.with_name(detail.name)) for detail in details)]:
        if not place.exists():
            with atomic_path(place) as temporary:
                shutil.copyfile(file, temporary)
    return target


def _copy_folder(source: Path, target: Path) -> Path:
    if not target.exists():
        with atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile)  # not their modes
    return target
