"""Which slices to annotate next: ranked, each with its reason in words.

All cases but the test cases are ranked.

Strategies:

* ``coverage``: slices that together represent all slices best, in the features of a run's encoder.
* ``uncertainty``: slices where a model is least sure, or several disagree: the largest uncertain
  area.
* ``hybrid``: coverage in which a slice counts as much as the model is unsure about it, and a scan
  as much as its uncertain area is large beside the structures found in it; with a pre-training run,
  which has no model, it is coverage; without a run, even.
* ``even``: evenly spaced slices in cases of different patients. ``random``: any slices. Both need
  no run.

Empty and drawn slices are left out, and (but by even and random, and where a case has others) near
neighbours of drawn and chosen ones. Drawn slices count as chosen. Labels are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from MedSSLLib.active_learning.scans import Scan, survey, usable_slices
from MedSSLLib.active_learning.strategies import (
    ALIKE_SLICES,
    Candidates,
    ChosenSlice,
    doubt_weights,
    even_order,
    evenly,
    most,
    patient_weights,
    representative,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting, write_json
from MedSSLLib.core.words import amount
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.project.project import Project

if TYPE_CHECKING:
    from MedSSLLib.active_learning.slice_table import Table, Viewer

_Choice = tuple[int, int, str, float | None]  # scan, slice, reason, score
_FORMAT, _FORMAT_VERSION = "medssl-suggestions", 1
SUGGESTIONS_FILE = "suggestions.json"
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
    """One slice: where it is, its rank from 1, and why.

    Its axis (0 i, 1 j, 2 k) and index are those of the source image's own grid.

    score: coverage, hybrid: fraction of all slices (weighted) it newly represents; uncertainty:
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
    """Choose slices and write them to `out`; returns them, best first.

    By default `out` is ``suggestions.json`` in the project.

    Fewer than the budget come with a warning that says why.

    Raises:
        InputError: the strategy needs a run or a model that was not given, or nothing is left to
            annotate.
    """
    path = out or project.folder / SUGGESTIONS_FILE
    refuse_overwriting([path], project.files)
    strategy = _strategy(options.strategy, run, None)
    viewer = None
    if run and _looks(strategy):
        from MedSSLLib.active_learning.slice_table import load_viewer

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
    found = _choose(project, scans, viewer, strategy, options, events)
    _report_few(project, found, options, events)
    slices = [asdict(item) for item in found]
    asked = {name: getattr(options, name) for name in ("also", "budget", "per_case", "seed")}
    kind = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
    write_json(path, {**kind, "strategy": strategy, "run": run, **asked, "slices": slices})
    events.emit(
        "done",
        command="suggest",
        strategy=strategy,
        path=str(path),
        suggested=len(found),
        slices=slices,
    )
    return found


def _choose(  # noqa: PLR0913 - everything that a strategy may look at
    project: Project,
    scans: Sequence[Scan],
    viewer: Viewer | None,
    strategy: Strategy,
    options: SuggestOptions,
    events: Events,
) -> list[Suggestion]:
    if viewer is not None:
        from MedSSLLib.active_learning.slice_table import extract_features

        table = extract_features(project, scans, viewer, events, flips=options.flips)
        return from_table(table, viewer, strategy, options)
    if strategy == "even":
        return even_slices(scans, options, events)
    return _random(scans, options, events)


def _report_few(
    project: Project, found: Sequence[Suggestion], options: SuggestOptions, events: Events
) -> None:
    """Warn of fewer slices than were asked for. Raises InputError when there is none."""
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
    """Raises InputError for further runs that are of no use.

    The strategy would not look at them, or they are named twice.
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


def from_table(
    table: Table, viewer: Viewer, strategy: Strategy, options: SuggestOptions
) -> list[Suggestion]:
    """Suggestions of the strategies that look at the slices."""
    candidates = Candidates(table.case, table.place, table.usable, table.drawn, options.per_case)
    uncertain = table.uncertainty.sum(1)
    chosen: list[_Choice] = []
    if strategy == "uncertainty":
        for row in most(uncertain, candidates, options.budget):
            words, score = _uncertainty_words(table, row, viewer), float(uncertain[row])
            chosen.append((int(table.case[row]), int(table.place[row]), words, score))
        return _suggestions(table.scans, chosen)
    weights = patient_weights(table.patients, table.usable)
    if strategy == "hybrid" and (weights @ uncertain) > 0:
        weights = doubt_weights(
            table.patients, table.case, table.usable, uncertain, table.structures
        )
    picked = representative(
        table.features, weights, candidates, table.drawn, options.budget, options.seed
    )
    first = not table.drawn.any()
    for number, pick in enumerate(picked):
        words = _similarity_words(pick, table, typical=first and number == 0)
        if strategy == "hybrid":
            unsure = _uncertainty_words(table, pick.row, viewer) + _doubt_words(table, pick.row)
            words = f"{unsure}; {words}"
        chosen.append((int(table.case[pick.row]), int(table.place[pick.row]), words, pick.gain))
    return _suggestions(table.scans, chosen)


def _uncertainty_words(table: Table, row: int, viewer: Viewer) -> str:
    """How unsure the model is of a slice, or the models together."""
    who = f"{1 + len(viewer.others)} models together" if viewer.others else "model"
    classes = viewer.model.classes[1:] if viewer.model else ()
    return f"{who} unsure: {_area_words(table.uncertainty[row], classes)}"


def _doubt_words(table: Table, row: int) -> str:
    """What is said of a slice of a scan that the model knows little of."""
    own = table.usable & (table.case == table.case[row])
    if table.uncertainty[own].sum() <= table.structures[own].sum():
        return ""
    return ", and more of this scan is uncertain than found"


def _area_words(areas: np.ndarray, classes: Sequence[str]) -> str:
    """Uncertain areas in mm2 by class in words: how much, and mostly where."""
    total = float(areas.sum())
    if total <= 0:
        return "nowhere on this slice"
    return f"{amount(total)} mm2 uncertain, mostly at {classes[int(areas.argmax())]}"


def _similarity_words(pick: ChosenSlice, table: Table, *, typical: bool) -> str:
    """What a slice is among those chosen before it (drawn ones too), and how many it stands for."""
    kind = "typical" if typical else "unlike any slice chosen so far"
    if pick.similarity >= ALIKE_SLICES:
        kind = f"like a slice chosen before (similarity {pick.similarity:.2f})"
    patients = {table.scans[index].case.patient for index in table.case[pick.stands_for]}
    if len(pick.stands_for) < 2:
        return kind
    known = any(scan.case.patient != scan.case.name for scan in table.scans)
    noun = ("patient" if known else "scan") + "s" * (len(patients) > 1)
    return f"{kind}; stands for {len(pick.stands_for)} slices of {len(patients)} {noun}"


def even_slices(scans: Sequence[Scan], options: SuggestOptions, events: Events) -> list[Suggestion]:
    """Evenly spaced slices, one in each of as many cases as the budget allows before a second.

    At most `per_case` in one.
    """
    drawn, patients = [], []
    for scan in scans:
        drawn.append(bool(scan.drawn.any()))
        patients.append(scan.case.patient)
    order = even_order(drawn, patients, options.budget)
    counts = _spread(scans, order, options, events)
    chosen: list[_Choice] = []
    for position, (free, count) in counts.items():
        for index in evenly(free, count):
            chosen.append((position, index, "evenly spaced", None))
    return _suggestions(scans, chosen)


def _spread(
    scans: Sequence[Scan], order: Sequence[int], options: SuggestOptions, events: Events
) -> dict[int, tuple[list[int], int]]:
    """Position of a scan to its free slices and how many of them to take; scans take turns.

    An image is opened at its first turn.
    """
    free: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    left = options.budget
    for turn in range(options.per_case):
        for position in order:
            if not left:
                break
            if position not in free:
                usable = _usable(scans[position], events)
                free[position] = []
                if usable is not None:
                    free[position] = np.flatnonzero(usable & ~scans[position].drawn).tolist()
            if turn < len(free[position]):
                counts[position] = turn + 1
                left -= 1
    return {position: (free[position], count) for position, count in counts.items()}


def _random(scans: Sequence[Scan], options: SuggestOptions, events: Events) -> list[Suggestion]:
    """Slices in random order, at most `per_case` a case.

    An image is opened when its first slice comes up.
    """
    case = np.repeat(np.arange(len(scans)), [scan.count for scan in scans])
    place = np.concatenate([np.arange(scan.count) for scan in scans])
    known: dict[int, np.ndarray | None] = {}
    taken = np.zeros(len(scans), int)
    chosen: list[_Choice] = []
    for row in random_stream(options.seed, Stream.RANDOM_SLICES).permutation(len(case)):
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


def _suggestions(scans: Sequence[Scan], chosen: Sequence[_Choice]) -> list[Suggestion]:
    found = []
    for rank, (position, index, reason, score) in enumerate(chosen, 1):
        scan = scans[position]
        found.append(
            Suggestion(rank, scan.case.name, scan.case.patient, scan.axis, index, reason, score)
        )
    return found
