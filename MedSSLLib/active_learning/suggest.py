"""Which slices to annotate next: ranked over all cases but the test cases, each with its reason in
words.

Strategies:

* ``coverage``: slices that together represent all slices best, in the features of a run's encoder.
* ``uncertainty``: slices where a model is least sure, or several disagree: the largest uncertain
  area.
* ``hybrid``: coverage in which a slice counts as much as the model is unsure about it; with a
  pre-training run, which has no model, it is coverage; without a run, even.
* ``even``: evenly spaced slices in cases of different patients. ``random``: any slices. Both need
  no run.

Empty and drawn slices are left out, and (but by even and random, and where a case has others) near
neighbours of drawn and chosen ones. Drawn slices count as chosen. Labels are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from MedSSLLib.active_learning.slice_table import (
    Scan,
    Table,
    Viewer,
    load_viewer,
    look,
    survey,
    usable_slices,
)
from MedSSLLib.active_learning.strategies import (
    ALIKE,
    Pick,
    Room,
    even_order,
    evenly,
    most,
    patient_weights,
    representative,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting, write_json
from MedSSLLib.project.project import Project

Row = tuple[int, int, str, float | None]  # scan, slice, reason, score
FORMAT, FORMAT_VERSION = "medssl-suggestions", 1
FILE_NAME = "suggestions.json"
Strategy = Literal["hybrid", "coverage", "uncertainty", "even", "random"]


@dataclass(frozen=True)
class SuggestOptions:
    """What to suggest.

    Attributes:
        budget: number of slices, >= 1.
        strategy: see the module's text.
        per_case: most new slices of one case; not from the paper.
        seed: of random choices.
        flips: average a model's predictions over mirrored images (4 x slower in 2D, 8 x in 3D).
        device: as in RunConfig.
        precision: auto is float32 on the CPU; the others as in RunConfig.
        also: further trained runs; uncertainty is then that of the mean of all models, their
            disagreement included.
    """

    budget: int
    strategy: Strategy = "hybrid"
    per_case: int = 3
    seed: int = 0
    flips: bool = False
    device: str = "auto"
    precision: str = "auto"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """One slice: its rank from 1, its case, axis (0 i, 1 j, 2 k) and index on the source image's
    own grid, and why.

    score: coverage, hybrid: share of all slices (weighted) it newly represents; uncertainty:
        uncertain area in mm2.
    """

    rank: int
    case: str
    patient: str
    axis: int
    index: int
    reason: str
    score: float | None = None


def run_suggest(
    project: Project,
    run: str | None,
    options: SuggestOptions,
    events: Events,
    out: Path | None = None,
) -> list[Suggestion]:
    """Choose slices and write them to `out` (default: ``suggestions.json`` in the project); returns
    them, best first.

    Fewer than the budget come with a warning that says why.

    Raises:
        InputError: the strategy needs a run or a model that was not given, or nothing is left to
            annotate.
    """
    path = out or project.folder / FILE_NAME
    refuse_overwriting([path], project.files)
    strategy = _strategy(options.strategy, run, None)
    viewer = None
    if run and _looks(strategy):
        viewer = load_viewer(project, run, options.device, options.precision, options.also)
    strategy = _strategy(strategy, run, viewer)
    _refuse_useless(options.also, run, strategy)
    scans = survey(project.pool, events)
    _refuse_if_done(project, scans)
    events.emit(
        "start",
        command="suggest",
        strategy=strategy,
        run=run,
        cases=len(scans),
        budget=options.budget,
    )
    if viewer is not None:
        found = _from_table(
            look(project, scans, viewer, events, flips=options.flips), viewer, strategy, options
        )
    elif strategy == "even":
        found = _even(scans, options, events)
    else:
        found = _random(scans, options, events)
    if not found:
        raise InputError(
            "no slice is left to annotate: all are annotated, empty or much like annotated ones",
            file=str(project.folder),
            remedy="Train with what there is, add cases, or raise --per-case",
        )
    if len(found) < options.budget:
        events.emit(
            "warning",
            message=f"Only {len(found)} of {options.budget} slices are suggested: the others are "
            f"annotated, empty, much like these, or beyond {options.per_case} a case (--per-case).",
        )
    write_json(
        path,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "strategy": strategy,
            "run": run,
            "also": options.also,
            "budget": options.budget,
            "per_case": options.per_case,
            "seed": options.seed,
            "slices": [asdict(item) for item in found],
        },
    )
    events.emit(
        "done",
        command="suggest",
        strategy=strategy,
        path=str(path),
        suggested=len(found),
        slices=[asdict(item) for item in found],
    )
    return found


def _refuse_if_done(project: Project, scans: Sequence[Scan]) -> None:
    """Raises InputError when there is no case, or none with a slice that is not drawn yet."""
    if not scans:
        raise InputError(
            "there is no case to annotate",
            file=str(project.folder),
            remedy="Add cases that are not test cases",
        )
    if all(scan.drawn.all() for scan in scans):
        raise InputError(
            "every slice of every case is labelled already",
            file=str(project.folder),
            remedy="Add unlabelled cases, or train with what there is",
        )


def _refuse_useless(also: Sequence[str], run: str | None, strategy: str) -> None:
    """Raises InputError for further runs that the strategy would not look at, or that are named
    twice.
    """
    if also and strategy not in ("uncertainty", "hybrid"):
        raise InputError(
            f"the strategy {strategy!r} has no use for further runs ({', '.join(also)})",
            remedy="Leave --also out, or give a trained --run and --strategy uncertainty or hybrid",
        )
    if len({run, *also}) <= len(also):
        raise InputError(
            "a run is named more than once, and agrees with itself",
            remedy="Name different runs by --also",
        )


def _looks(strategy: str) -> bool:
    return strategy not in ("even", "random")


def _strategy(strategy: Strategy, run: str | None, viewer: Viewer | None) -> Strategy:
    """What hybrid becomes without a run or model.

    Raises:
        InputError: the strategy needs what there is not.
    """
    if not run and strategy in ("coverage", "uncertainty"):
        raise InputError(
            f"the strategy {strategy!r} needs a trained run",
            remedy="Give --run RUN (see `medssl runs PROJECT`), or use --strategy even",
        )
    if viewer is not None and viewer.model is None:
        if strategy == "uncertainty":
            raise InputError(
                f"run {run!r} is a pre-trained encoder, which predicts nothing to be unsure of",
                remedy="Use --strategy coverage, or give a finetune or selftrain run",
            )
        return "coverage" if strategy == "hybrid" else strategy
    return "even" if strategy == "hybrid" and not run else strategy


def _from_table(
    table: Table, viewer: Viewer, strategy: Strategy, options: SuggestOptions
) -> list[Suggestion]:
    """Suggestions of the strategies that look at the slices."""
    room = Room(table.case, table.place, table.usable, table.drawn, options.per_case)
    doubt = table.doubt.sum(1)
    classes = viewer.model.classes[1:] if viewer.model else ()
    who = f"{1 + len(viewer.others)} models together" if viewer.others else "model"
    chosen: list[Row] = []
    if strategy == "uncertainty":
        for row in most(doubt, room, options.budget):
            words = f"{who} unsure: {_doubt_words(table.doubt[row], classes)}"
            chosen.append((int(table.case[row]), int(table.place[row]), words, float(doubt[row])))
        return _suggestions(table.scans, chosen)
    weights = patient_weights(table.patients, table.usable)
    if strategy == "hybrid" and (weights @ doubt) > 0:
        weights = weights * doubt
    picks = representative(table.features, weights, room, table.drawn, options.budget, options.seed)
    first = not table.drawn.any()
    for number, pick in enumerate(picks):
        words = _likeness(pick, table, typical=first and number == 0)
        if strategy == "hybrid":
            words = f"{who} unsure: {_doubt_words(table.doubt[pick.row], classes)}; {words}"
        chosen.append((int(table.case[pick.row]), int(table.place[pick.row]), words, pick.gain))
    return _suggestions(table.scans, chosen)


def _doubt_words(doubt: np.ndarray, classes: Sequence[str]) -> str:
    total = float(doubt.sum())
    if total <= 0:
        return "nowhere on this slice"
    area = f"{total:.0f}" if total >= 100 else f"{total:.3g}"
    return f"{area} mm2 uncertain, mostly at {classes[int(doubt.argmax())]}"


def _likeness(pick: Pick, table: Table, *, typical: bool) -> str:
    """What a slice is among those chosen before it (drawn ones too), and how many it stands for."""
    kind = "typical" if typical else "unlike any slice chosen so far"
    if pick.likeness >= ALIKE:
        kind = f"like a slice chosen before (similarity {pick.likeness:.2f})"
    patients = {table.scans[index].case.patient for index in table.case[pick.like]}
    if len(pick.like) < 2:
        return kind
    noun = "patient" if len(patients) == 1 else "patients"
    return f"{kind}; stands for {len(pick.like)} slices of {len(patients)} {noun}"


def _even(scans: Sequence[Scan], options: SuggestOptions, events: Events) -> list[Suggestion]:
    """Evenly spaced slices, `per_case` in each of as few cases as the budget needs."""
    wanted = -(-options.budget // options.per_case)
    order = even_order(
        [bool(scan.drawn.any()) for scan in scans], [scan.case.patient for scan in scans], wanted
    )
    chosen: list[Row] = []
    for position in order:
        left = options.budget - len(chosen)
        if left <= 0:
            break
        usable = _usable(scans[position], events)
        if usable is not None:
            free = [int(index) for index in np.flatnonzero(usable & ~scans[position].drawn)]
            chosen += [
                (position, index, "evenly spaced", None)
                for index in evenly(free, min(left, options.per_case))
            ]
    return _suggestions(scans, chosen)


def _random(scans: Sequence[Scan], options: SuggestOptions, events: Events) -> list[Suggestion]:
    """Slices in random order, at most `per_case` a case; an image is opened when its first slice
    comes up.
    """
    case = np.repeat(np.arange(len(scans)), [scan.count for scan in scans])
    place = np.concatenate([np.arange(scan.count) for scan in scans])
    known: dict[int, np.ndarray | None] = {}
    taken = np.zeros(len(scans), int)
    chosen: list[Row] = []
    for row in np.random.default_rng([options.seed, 9]).permutation(len(case)):
        position, index = int(case[row]), int(place[row])
        if len(chosen) == options.budget:
            break
        if taken[position] == options.per_case or scans[position].drawn[index]:
            continue
        if position not in known:
            known[position] = _usable(scans[position], events)
        usable = known[position]
        if usable is not None and usable[index]:
            taken[position] += 1
            chosen.append((position, index, "drawn at random", None))
    return _suggestions(scans, chosen)


def _usable(scan: Scan, events: Events) -> np.ndarray | None:
    """Slices that are not empty; None, with a warning, for an image that cannot be read."""
    try:
        return usable_slices(scan)
    except InputError as error:
        events.emit("warning", message=str(error.for_case(scan.case.name)))
        return None


def _suggestions(scans: Sequence[Scan], chosen: Sequence[Row]) -> list[Suggestion]:
    found = []
    for rank, (position, index, reason, score) in enumerate(chosen, 1):
        scan = scans[position]
        found.append(
            Suggestion(rank, scan.case.name, scan.case.patient, scan.axis, index, reason, score)
        )
    return found
