"""Functions that train: pretrain, finetune, selftrain, complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from MedSSLLib.api.arguments import (
    LabelOptions,
    PathLike,
    SelfTrainingOptions,
    TrainingOptions,
    names_of,
    opened_project,
    refuse_unknown_arguments,
)
from MedSSLLib.api.run import Run, RunLike, name_of
from MedSSLLib.api.session import session
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Event, Events
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS

if TYPE_CHECKING:
    from MedSSLLib.config.run import CommandName, RunConfig
    from MedSSLLib.methods.base import Method


def pretrain(
    project: Project | PathLike,
    method: str | type[Method],
    *,
    meta: Sequence[str] | None = None,
    **options: Unpack[TrainingOptions],
) -> Run:
    """Learn from unlabelled scans: the images of all cases but the test cases, and no label.

    Args:
        project: or its folder.
        method: a name, ``FILE.py:CLASS``, or a class derived from
            :class:`MedSSLLib.methods.base.Method`.
        meta: what makes slices alike for gcl: position, patient, phase ...
        **options: see TrainingOptions.

    Raises:
        InputError: the method, its settings or the data do not fit.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: a loss is not finite, the features have collapsed, or memory ran out.
    """
    refuse_unknown_arguments("pretrain", options, TrainingOptions.__optional_keys__)
    from MedSSLLib.methods import outside
    from MedSSLLib.pretraining.pretrain import run_pretrain

    name = outside.named(method) if isinstance(method, str) else outside.add_class(method)
    given = {"options.meta": None if meta is None else list(meta)}
    return _train(run_pretrain, project, "pretrain", name, given, options)


def finetune(
    project: Project | PathLike,
    *,
    init: RunLike | None = None,
    freeze_encoder: bool = False,
    **options: Unpack[LabelOptions],
) -> Run:
    """Train a segmentation model on labelled scans or slices.

    Args:
        project: or its folder.
        init: run, or file of weights, to start from; random weights by default.
        freeze_encoder: train the decoder only.
        **options: see LabelOptions.

    Raises:
        InputError: settings or data do not fit.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the loss is not finite, or memory ran out.
    """
    refuse_unknown_arguments("finetune", options, LabelOptions.__optional_keys__)
    from MedSSLLib.finetuning.finetune import run_finetune

    project = opened_project(project)
    given = {"init": _start(project, init), "freeze_encoder": freeze_encoder or None}
    return _train(run_finetune, project, "finetune", "supervised", given, options)


def selftrain(
    project: Project | PathLike,
    start: RunLike | None = None,
    *,
    init: RunLike | None = None,
    **options: Unpack[SelfTrainingOptions],
) -> Run:
    """Improve a model with its own predictions on unlabelled scans.

    Args:
        project: or its folder.
        start: a finished fine-tuning run to improve.
        init: or train the first model here, from this run, file of weights or "none".
        **options: see SelfTrainingOptions.

    Raises:
        InputError: neither `start` nor `init`, or settings or data do not fit.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the loss is not finite, or memory ran out.
    """
    refuse_unknown_arguments("selftrain", options, SelfTrainingOptions.__optional_keys__)
    from MedSSLLib.selftraining.selftrain import run_selftrain

    if (start is None) == (init is None) and not (start is None and options.get("resume")):
        raise InputError(
            "selftrain needs one start", remedy="Give start=RUN, or init=RUN or 'none'"
        )
    project = opened_project(project)
    given = {
        "options.start": None if start is None else name_of(project, start),
        "init": _start(project, init),
        "options.accept": names_of(project, options.get("accept")),
        "options.reject": names_of(project, options.get("reject")),
    }
    return _train(run_selftrain, project, "selftrain", "local-contrast", given, options)


def complete(
    project: Project | PathLike,
    case: str,
    *,
    init: RunLike | None = None,
    out: PathLike | None = None,
    annotated_slices: int | None = None,
    **options: Unpack[TrainingOptions],
) -> Run:
    """Fill in a volume between its annotated slices; ``run.completed`` is the label file.

    Args:
        project: or its folder.
        case: to be completed.
        init: run, or file of weights, to start from.
        out: folder of the result; that of the run by default.
        annotated_slices: use only so many slices of a full label, to try it out.
        **options: see TrainingOptions.

    Raises:
        InputError: nothing or everything is drawn, or settings do not fit.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the loss is not finite, or memory ran out.
    """
    refuse_unknown_arguments("complete", options, TrainingOptions.__optional_keys__)
    from MedSSLLib.finetuning.complete import run_complete

    project = opened_project(project)
    given = {
        "options.case": project.case(case).name,
        "options.out": None if out is None else os.path.abspath(out),
        "init": _start(project, init),
        "annotated_slices": annotated_slices,
    }
    return _train(run_complete, project, "complete", "supervised", given, options)


def _train(
    work: Callable[[Project, RunConfig, Events], Path],
    project: Project | PathLike,
    command: CommandName,
    method: str,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Run:
    """Train with the settings that the arguments stand for, seen and stoppable."""
    from MedSSLLib.cli.train import SETTING_OF, merged_settings, warn_of_unused
    from MedSSLLib.methods.options import configured

    project = opened_project(project)
    values = {key: options.get(option) for option, key in SETTING_OF.items()} | dict(given)
    values["labelled"] = names_of(project, options.get("labelled"))
    overrides = merged_settings(values, options.get("settings") or {})
    config = configured(
        command,
        preset=options.get("preset", "standard"),
        method=method,
        overrides=overrides | {"resume": bool(options.get("resume"))},
    )
    folder = _Folder()
    with session(options) as events:
        events.add(folder)
        warn_of_unused(config, overrides, project, events)
        work(project, config, events)
    return Run(folder.path)


class _Folder:
    """A sink that learns where a run is from its first event."""

    path = Path()

    def write(self, event: Event) -> None:
        if event["event"] == "start":
            self.path = Path(event["folder"])

    def close(self) -> None:
        """Nothing is open."""


def _start(project: Project, init: RunLike | None) -> str | None:
    """What ``--init`` takes: for a run of another project, its weights."""
    if not isinstance(init, Run):
        return None if init is None else os.fspath(init)
    here = init.folder.parent.resolve() == project.runs_folder.resolve()
    return init.name if here else str(init.folder / WEIGHTS)
