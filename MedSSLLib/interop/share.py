"""A model to share: a MONAI bundle that also holds the run itself, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import atomic_folder, atomic_path, read_json, write_json
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import RUN_FORMAT, RUN_VERSION, WEIGHTS

FOLDER = "medssl"
"""Folder of a bundle with the run's own files."""
_CARD = "model_card.md"
# of the facts about the data; the last two as earlier versions call them
_SHARED = (
    "classes",
    "values",
    "single_component",
    "connected_on_slices",
    "single_foreground",
    "one_piece",
    "undivided",
)


def share_run(project: Project, run: str, out: Path, events: Events) -> Path:
    """Write a finished run as a bundle into the new folder `out`, with its card and its own files.

    The names of cases do not leave the project: of the facts about the data only the classes do.
    Raises InputError as `run_export` does.
    """
    from MedSSLLib.interop.export import run_export

    folder = project.run_folder(run)
    run_export(project, run, "bundle", out, events)
    own = out / FOLDER
    own.mkdir()
    for name in (WEIGHTS, _CARD):
        if (folder / name).is_file():
            with atomic_path(own / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    config = read_json(folder / "config.json", format_name=RUN_FORMAT, newest_version=RUN_VERSION)
    known = config.get("data") or {}
    data = {key: known[key] for key in _SHARED if key in known}
    write_json(own / "config.json", {**config, "data": data})
    return out


def take_run(project: Project, source: Path, name: str) -> Path:
    """Make a shared model a finished run of the project; returns its folder.

    Raises InputError when `source` is no bundle that MedSSL shared, or there is such a run already.
    """
    own = source / FOLDER
    for file in ("config.json", WEIGHTS):
        if not (own / file).is_file():
            raise InputError(
                f"holds no {FOLDER}/{file}",
                file=source,
                remedy="Give a folder that Export model wrote (for other weights: medssl import).",
            )
    read_json(own / "config.json", format_name=RUN_FORMAT, newest_version=RUN_VERSION)
    target = project.run_folder(name)
    if target.exists():
        raise InputError(f"run {name!r} exists already", remedy="Choose another name.")
    with atomic_folder(target) as work:
        for file in ("config.json", WEIGHTS, _CARD):
            if (own / file).is_file():
                shutil.copyfile(own / file, work / file)
    return target
