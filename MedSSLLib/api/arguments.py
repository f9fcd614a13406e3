"""The arguments that functions of the Python face share, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from MedSSLLib.config.lengths import Preset
from MedSSLLib.core.events import Event
from MedSSLLib.project.project import Project

PathLike = str | os.PathLike[str]
Selection = str | Sequence[str]
"""Cases: their names, or text as on the command line: names with commas, or ``@FILE``."""


class Reporting(TypedDict, total=False):
    """Arguments of every function that works for long.

    Attributes:
        quiet: show warnings only, no progress bar.
        on_event: called with every event, a dictionary as in ``events.jsonl``. Raise
            KeyboardInterrupt in it to stop.
    """

    quiet: bool
    on_event: Callable[[Event], None]


class TrainingOptions(Reporting, total=False):
    """Arguments of every function that trains; those left out come from the preset.

    Attributes:
        name: of the run; made from the method and a number by default.
        preset: quick, standard (default: 10 minutes on labels, 20 of self-training, 15 of
            pre-training), overnight (1, 7 and 2 hours; not of `complete` and `live`) or paper.
        dim: slices (2d) or volumes (3d).
        steps: optimiser steps, or
        minutes: a time limit that the schedule is fitted to.
        batch: samples a step.
        seed: of everything random.
        device: auto, cpu, cuda or cuda:N.
        precision: number format.
        settings: any other setting by dotted key, ``{"optimiser.lr": 1e-3}``; ``medssl settings``
            lists them.
        resume: go on with an unfinished run (`name`, or the latest).
    """

    name: str
    preset: Preset
    dim: Literal["auto", "2d", "3d"]
    steps: int
    minutes: float
    batch: int
    seed: int
    device: str
    precision: Literal["auto", "32", "bf16", "16"]
    settings: Mapping[str, Any]
    resume: bool


class LabelOptions(TrainingOptions, total=False):
    """Besides, how labels are used.

    Attributes:
        labelled: the only cases whose labels may be read.
        annotated_slices: use only so many slices of each label.
        semi: "mixing" and "mean-teacher" also learn from unlabelled scans.
        mixup: mixes pairs of samples, weights Beta(mixup, mixup).
    """

    labelled: Selection
    annotated_slices: int
    semi: Literal["none", "mean-teacher", "mixing"]
    mixup: float


class SelfTrainingOptions(LabelOptions, total=False):
    """Besides, of self-training.

    Attributes:
        rounds: of pseudo-labels.
        matching: pairs of images (inter), or views of one (intra).
        weight: of the contrast, lambda.
        filter: which pseudo-labels are used.
        clean: how they are cleaned up.
        accept: cases whose pseudo-labels are always used; with `start` as they are in that run.
        reject: cases whose pseudo-labels are never used.
    """

    rounds: int
    matching: Literal["inter", "intra"]
    weight: float
    filter: Literal["none", "consistency", "confidence"]
    clean: Literal["none", "components", "crf"]
    accept: Selection
    reject: Selection


class PredictionOptions(Reporting, total=False):
    """Arguments of `predict`: see :class:`MedSSLLib.inference.model.PredictOptions`."""

    probabilities: bool
    uncertainty: bool
    flips: bool
    quality: bool
    components: Literal["auto", "largest", "all"]
    device: str
    precision: Literal["auto", "32", "bf16", "16"]


class SuggestionOptions(Reporting, total=False):
    """Arguments of `suggest`: see :class:`MedSSLLib.active_learning.suggest.SuggestOptions`."""

    strategy: Literal["hybrid", "coverage", "uncertainty", "even", "random"]
    per_case: int
    seed: int
    flips: bool
    device: str
    precision: Literal["auto", "32", "bf16", "16"]


def opened_project(project: Project | PathLike) -> Project:
    return project if isinstance(project, Project) else Project.open(project)


def names_of(project: Project, selection: Selection | None) -> tuple[str, ...] | None:
    if selection is None:
        return None
    if isinstance(selection, str):
        return tuple(case.name for case in project.select(selection))
    return tuple(project.case(name).name for name in selection)


def without_reporting(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in Reporting.__optional_keys__}


def refuse_unknown_arguments(
    function: str, options: Mapping[str, Any], known: Collection[str]
) -> None:
    """Raise TypeError for an argument that does not exist, as Python does."""
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() has no argument {name!r}{hint}")
