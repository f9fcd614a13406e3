"""A run's folder: made once, resumable, with a complete configuration, versions and a lock."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from MedSSLLib import __version__
from MedSSLLib.config.run import RunConfig, as_begun
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import FileLock, clear_temporary, read_json, write_json
from MedSSLLib.data.plan import Plan
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import RUN_FORMAT, RUN_VERSION, WEIGHTS, begun
from MedSSLLib.training.checkpoint import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG = "config.json"
_ENDING = 2.0  # seconds within which a process that ends lets go of its run
_PACKAGES = ("torch", "monai", "numpy", "SimpleITK", "lightning-fabric")

_Part = TypeVar("_Part", bound=BaseModel)


class RunData(BaseModel):
    """What a run knows of its data.

    Attributes:
        classes: class names, with background.
        values: label values in class order, with background.
        single_component: class indices that are one piece in every dense label (``one_piece`` in
            runs of earlier versions).
        connected_on_slices: without dense labels, those that annotated slices show in one piece
            (``undivided`` in runs of earlier versions).
        single_foreground: whether the whole foreground is one piece in every dense label; False in
            runs of earlier versions.
        labelled: names of the cases trained on with their labels.
        validation: names of the held-out labelled cases.
        unlabelled: names of the cases whose images alone are used.
        annotated: annotated slices by case, as :class:`~MedSSLLib.images.labels.Annotated` writes
            them.
        seen_before: names of the cases whose labels trained the weights that the run started from.
        fingerprint: of the preprocessed data; None in runs that have none.
        meta: number of classes of each meta label; None in runs without meta labels.
    """

    model_config = ConfigDict(extra="allow")

    classes: tuple[str, ...] = Field(min_length=1, max_length=255)
    values: tuple[int, ...]
    single_component: tuple[int, ...] = Field(
        (), validation_alias=AliasChoices("single_component", "one_piece")
    )
    connected_on_slices: tuple[int, ...] = Field(
        (), validation_alias=AliasChoices("connected_on_slices", "undivided")
    )
    single_foreground: bool = False
    labelled: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    annotated: dict[str, Any] = Field(default_factory=dict)
    seen_before: tuple[str, ...] = ()
    fingerprint: str | None = None
    meta: dict[str, int] | None = None


class RunFolder:
    """A run, by its folder; every file of it is read when it is first asked for, and only once.

    Reading raises InputError where a file is missing, damaged or newer than this version.

    Attributes:
        folder: the run's folder.
        weights_file: its weights, which a run that is not finished does not have.
    """

    def __init__(self, folder: Path, weights_file: Path | None = None) -> None:
        """With `weights_file`, a weight file that may lie in a run's folder or anywhere else."""
        self.folder = folder
        self.weights_file = weights_file or folder / WEIGHTS

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name

    @property
    def recorded(self) -> bool:
        """Whether the folder holds the settings of a run."""
        return (self.folder / _CONFIG).exists()

    @property
    def finished(self) -> bool:
        """Whether there are weights."""
        return self.weights_file.exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.folder / "checkpoint").glob("*.safetensors"))

    @cached_property
    def record(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        return read_json(self.folder / _CONFIG, format_name=RUN_FORMAT, newest_version=RUN_VERSION)

    @cached_property
    def config(self) -> RunConfig:
        """The settings."""
        return self._part("config", RunConfig)

    @cached_property
    def plan(self) -> Plan:
        """The plan of its data."""
        return self._part("plan", Plan)

    @cached_property
    def data(self) -> RunData:
        """What was recorded about its data."""
        return self._part("data", RunData)

    @property
    def precision(self) -> str | None:
        """The number format it trains in; None in runs of versions that did not record it."""
        return self.record.get("precision")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``; empty where there is none."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU."""
        return load_tensors(self.weights_file)[0]

    @property
    def labels_seen(self) -> frozenset[str]:
        """Cases whose labels have trained the weights, or those that the run started from.

        Pseudo-labels that a person has accepted count. Empty for a file that is of no run.
        """
        if not self.recorded:
            return frozenset()
        accepted = self.config.options.get("accept", ())
        return frozenset((*self.data.labelled, *self.data.seen_before, *accepted))

    def _part(self, key: str, kind: type[_Part]) -> _Part:
        try:
            return kind.model_validate(self.record[key])
        except (KeyError, ValidationError) as error:
            raise InputError(
                f"has no usable {key!r}",
                file=self.folder / _CONFIG,
                remedy="Restore the file from a backup, or train again",
            ) from error


def find_start(project: Project, name: str) -> RunFolder | None:
    """The finished run, or the weight file, that ``--init`` names; None for 'none'.

    Raises:
        InputError: no such file or run, or the run is not finished.
    """
    if name in ("", "none"):
        return None
    path = Path(name)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError("does not exist", file=name, remedy="Check the path of --init")
        return RunFolder(path.parent, path)
    if path.is_file() or "/" in name or path.suffix in (".pt", ".pth", ".ckpt"):
        raise InputError(
            "is neither the name of a run nor a .safetensors file",
            file=name,
            remedy="Other weights become a run with: medssl import PROJECT --from FILE --name RUN",
        )
    run = RunFolder(project.run_folder(name))
    if run.finished:
        return run
    found = "is not finished: it has no weights" if run.folder.exists() else "does not exist"
    raise InputError(
        f"run {name!r} {found}",
        file=str(project.folder),
        remedy="See `medssl runs PROJECT` for finished runs",
    )


def open_run(
    project: Project, config: RunConfig, going_on: RunFolder | None = None
) -> tuple[Path, RunConfig]:
    """The folder and the settings of a new run, or with ``resume`` of the one to go on with.

    A run that goes on keeps its own settings, but for the device. It may be given as `going_on`.

    Raises:
        InputError: the name is taken, or there is nothing to resume.
    """
    if config.resume:
        run = going_on or resumable(project, config)
        changes = {"resume": True, "device": config.device}
        return run.folder, as_begun(run.config).override(changes)
    name = config.name or _free_name(project, config)
    folder = project.run_folder(name)
    if (folder / _CONFIG).exists() and not _abandoned(folder):
        raise InputError(
            f"run {name!r} exists already",
            file=str(folder),
            remedy="Choose another --name, or continue it with --resume",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder, config.override({"name": name})


def _abandoned(folder: Path) -> bool:
    """Whether a run ended before its first checkpoint; what it left is then cleared away.

    Raises:
        MedSSLError: it has only just begun, in another process.
    """
    if begun(folder):
        return False
    with FileLock(folder / ".lock", timeout=0):
        (folder / _CONFIG).unlink(missing_ok=True)
        for part in ("pseudo", "stages"):  # made under other settings
            shutil.rmtree(folder / part, ignore_errors=True)
    return True


def _free_name(project: Project, config: RunConfig) -> str:
    stem = config.method if config.command == "pretrain" else config.command
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)")
    highest = 0
    for path in project.runs_folder.glob(f"{stem}-*"):
        if match := pattern.fullmatch(path.name):
            highest = max(highest, int(match[1]))
    return f"{stem}-{highest + 1}"


def resumable(project: Project, config: RunConfig) -> RunFolder:
    """The run to go on with: the one named, else the newest unfinished one of the command.

    Raises:
        InputError: there is none.
    """
    if config.name:
        return _resumable_by_name(project, config.name)
    candidates = []
    for path in project.runs_folder.glob(f"*/{_CONFIG}"):
        run = RunFolder(path.parent)
        mine = run.has_checkpoint and run.config.command == config.command
        if mine and (not run.finished or _endless(run)):
            candidates.append((path.stat().st_mtime, run.name, run))
    if not candidates:
        raise InputError(
            f"there is no unfinished {config.command} run to resume",
            file=str(project.folder),
            remedy="Start without --resume",
        )
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def _resumable_by_name(project: Project, name: str) -> RunFolder:
    run = RunFolder(project.run_folder(name))
    if not run.recorded:
        raise InputError(
            f"there is no run {name!r} to resume",
            file=str(project.folder),
            remedy="See `medssl runs PROJECT` for the names",
        )
    if run.finished and not _endless(run):
        raise InputError(
            f"run {name!r} is finished, nothing is left to resume",
            file=str(run.folder),
            remedy="Start a new run without --resume",
        )
    if not run.has_checkpoint:
        raise InputError(
            f"run {name!r} stopped before its first checkpoint, nothing can be resumed",
            file=str(run.folder),
            remedy="Start a new run without --resume",
        )
    return run


def _endless(run: RunFolder) -> bool:
    """Whether a run may go on though it has weights: live training keeps some now and then."""
    return run.config.command == "live"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes.

    A run that ends before its settings are written, or is refused before its first checkpoint,
    leaves nothing.

    A stop request, half-written files and half-filled folders left from before are cleared away.
    """
    try:
        with FileLock(folder / ".lock", timeout=_ENDING):
            (folder / "stop").unlink(missing_ok=True)
            clear_temporary(folder)
            yield
    except InputError:
        if not begun(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if not (folder / _CONFIG).exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_config(
    folder: Path, config: RunConfig, plan: Plan, facts: dict[str, Any], precision: str = ""
) -> None:
    """Write ``config.json``, where there is none yet.

    It holds settings, plan, facts about the data (see :class:`RunData`), versions of packages, and
    the number format taken.
    """
    if (folder / _CONFIG).exists():
        return
    content: dict[str, Any] = {
        "format": RUN_FORMAT,
        "format_version": RUN_VERSION,
        "config": config.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "data": facts,
        "versions": versions(),
        "started": time.time(),
    }
    if precision:
        content["precision"] = precision
    write_json(folder / _CONFIG, content)


def renew_data(folder: Path, facts: dict[str, Any]) -> None:
    """Replace facts about the data in ``config.json``, of a run whose data grow while it trains."""
    content = dict(RunFolder(folder).record)
    content["data"] = {**content["data"], **facts}
    write_json(folder / _CONFIG, content)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"medssl": __version__, "python": platform.python_version(), "platform": sys.platform}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
