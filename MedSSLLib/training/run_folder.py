"""A run's folder: made once, resumable, with a complete configuration, versions and a lock."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSSLLib import __version__
from MedSSLLib.config.run import RunConfig, as_begun
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import FileLock, read_json, write_json
from MedSSLLib.data.plan import Plan
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import FORMAT, FORMAT_VERSION, WEIGHTS, begun

_PACKAGES = ("torch", "monai", "numpy", "SimpleITK", "lightning-fabric")

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class RunData(BaseModel):
    """What a run knows of its data: class names and label values, both with background, and pieces.

    Attributes:
        one_piece: class indices that are one piece in every dense label.
        undivided: without dense labels, those that annotated slices show in one piece.
        connected: whether the whole foreground is one piece in every dense label.
    """

    model_config = ConfigDict(extra="allow")

    classes: tuple[str, ...] = Field(min_length=1, max_length=255)
    values: tuple[int, ...]
    one_piece: tuple[int, ...] = ()
    undivided: tuple[int, ...] = ()
    connected: bool = False


def open_run(project: Project, config: RunConfig) -> tuple[Path, RunConfig]:
    """The run folder for a configuration: a new one, or with ``resume`` the one to go on with (and
    its own settings).

    Raises:
        InputError: the name is taken, or there is nothing to resume.
    """
    if config.resume:
        folder = resumable(project, config)
        return folder, as_begun(read_config(folder)).override(
            {"resume": True, "device": config.device}
        )
    name = config.name or _free_name(project, config)
    folder = project.run_folder(name)
    if (folder / "config.json").exists() and not _abandoned(folder):
        raise InputError(
            f"run {name!r} exists already",
            file=str(folder),
            remedy="Choose another --name, or continue it with --resume",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder, config.override({"name": name})


def _abandoned(folder: Path) -> bool:
    """Whether a run ended before its first checkpoint, so that there is nothing in it; it is then
    cleared away.

    Raises:
        MedSSLError: it has only just begun, in another process.
    """
    if begun(folder):
        return False
    with FileLock(folder / ".lock", timeout=0):
        (folder / "config.json").unlink(missing_ok=True)
        for part in ("pseudo", "stages"):  # made under other settings
            shutil.rmtree(folder / part, ignore_errors=True)
    return True


def _free_name(project: Project, config: RunConfig) -> str:
    stem = config.method if config.command == "pretrain" else config.command
    taken = (
        [p.name for p in project.runs_folder.glob(f"{stem}-*")]
        if project.runs_folder.exists()
        else []
    )
    numbers = [
        int(m[1]) for name in taken if (m := re.fullmatch(rf"{re.escape(stem)}-(\d+)", name))
    ]
    return f"{stem}-{max(numbers, default=0) + 1}"


def resumable(project: Project, config: RunConfig) -> Path:
    """The folder of the run to go on with: the one named, else the newest unfinished one of the
    command.

    Raises:
        InputError: there is none.
    """
    if config.name:
        folder = project.run_folder(config.name)
        if not (folder / "config.json").exists():
            raise InputError(
                f"there is no run {config.name!r} to resume",
                file=str(project.folder),
                remedy="See `medssl runs PROJECT` for the names",
            )
        if (folder / WEIGHTS).exists():
            raise InputError(
                f"run {config.name!r} is finished, nothing is left to resume",
                file=str(folder),
                remedy="Start a new run without --resume",
            )
        if not any((folder / "checkpoint").glob("*.safetensors")):
            raise InputError(
                f"run {config.name!r} stopped before its first checkpoint, nothing can be resumed",
                file=str(folder),
                remedy="Start a new run without --resume",
            )
        return folder
    open_runs = [
        p.parent
        for p in project.runs_folder.glob("*/config.json")
        if not (p.parent / WEIGHTS).exists()
        and any((p.parent / "checkpoint").glob("*.safetensors"))
        and read_config(p.parent).command == config.command
    ]
    if not open_runs:
        raise InputError(
            f"there is no unfinished {config.command} run to resume",
            file=str(project.folder),
            remedy="Start without --resume",
        )
    return max(open_runs, key=lambda p: (p / "config.json").stat().st_mtime)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes.

    A run that ends before its settings are written, or is refused before its first checkpoint,
    leaves nothing.

    A stop request and half-written files left from before are cleared away.
    """
    try:
        with FileLock(folder / ".lock"):
            (folder / "stop").unlink(missing_ok=True)
            for left in folder.rglob(".tmp-*"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield
    except InputError:
        if not begun(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if not (folder / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_config(
    folder: Path, config: RunConfig, plan: Plan, facts: dict[str, Any], precision: str = ""
) -> None:
    """``config.json``: settings, plan, versions, facts about the data (classes, cases), the number
    format taken.
    """
    if (folder / "config.json").exists():
        return
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": config.model_dump(mode="json"),
            "plan": plan.model_dump(mode="json"),
            "data": facts,
            "versions": versions(),
            "started": time.time(),
            **({"precision": precision} if precision else {}),
        },
    )


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of ``config.json``.

    Raises:
        InputError: it is missing, damaged or newer than this version.
    """
    return read_json(folder / "config.json", format_name=FORMAT, newest_version=FORMAT_VERSION)


def read_config(folder: Path) -> RunConfig:
    """The run's settings. Raises InputError as `read_run` does."""
    return _part(folder, "config", RunConfig)


def read_plan(folder: Path) -> Plan:
    """The run's plan. Raises InputError as `read_run` does."""
    return _part(folder, "plan", Plan)


def read_data(folder: Path) -> RunData:
    """What the run recorded about its data. Raises InputError as `read_run` does."""
    return _part(folder, "data", RunData)


def labels_seen(weights: Path | None) -> set[str]:
    """Names of the cases whose labels have trained the weights of a run, or those that it started
    from.

    Pseudo-labels that a person has accepted count. Empty for no weights, and for a file that is of
    no run.
    """
    if weights is None or not (weights.parent / "config.json").exists():
        return set()
    data, options = read_run(weights.parent)["data"], read_config(weights.parent).options
    return {*data.get("labelled", ()), *data.get("seen_before", ()), *options.get("accept", ())}


def _part(folder: Path, key: str, kind: type[AnyModel]) -> AnyModel:
    try:
        return kind.model_validate(read_run(folder)[key])
    except (KeyError, ValidationError) as error:
        raise InputError(
            f"has no usable {key!r}",
            file=folder / "config.json",
            remedy="Restore the file from a backup, or train again",
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"medssl": __version__, "python": platform.python_version(), "platform": sys.platform}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
