"""How much must be drawn until the model is good: live training against other ways to annotate.

A scripted person draws slices from hidden labels. It takes a fixed time a slice, and a computer
that takes a fixed number of steps a second trains meanwhile; both are assumptions, counted instead
of waited for, so that a run does not depend on the speed of the computer it runs on. Ways:

* ``live``: the slice that live training suggests, its proposal corrected once proposals pay,
  unlabelled scans mixed in as live training does by itself.
* ``live-no-mixing``: the same from what is drawn alone.
* ``even``: evenly spaced slices, drawn from nothing; a training at the end, as long as live
  training was until then.
* ``complete``: case by case three evenly spaced slices, the rest completed and taken as it is; a
  training on the completed cases at the end, as long as that.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.active_learning.scans import survey
from MedSSLLib.active_learning.strategies import even_order
from MedSSLLib.active_learning.suggest import SuggestOptions, even_slices
from MedSSLLib.benchmark.effort.annotator import Annotator, Corrected
from MedSSLLib.benchmark.protocol import score_test_cases
from MedSSLLib.benchmark.records import Record
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, relayed
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.finetuning.complete import run_complete
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images.labels import simulate_annotation
from MedSSLLib.inference.model import PredictOptions
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.live.live import open_session
from MedSSLLib.live.previews import layout_of, predicted_slices
from MedSSLLib.live.session import Session
from MedSSLLib.live.suggestions import suggest_live
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.methods.options import configured
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import versions

WAYS = ("live", "live-no-mixing", "even", "complete")
LEVELS = (0.7, 0.8, 0.85)
SLICES_PER_CASE = 3  # slices of a case that is completed
EFFORT_VERSION = 3  # 1: patches of 128x128; 2: first phases alone, large uncertain areas
RESULTS = "effort.json"


@dataclass(frozen=True)
class Effort:
    """What is compared.

    Attributes:
        ways: of WAYS.
        slices: most slices drawn.
        seeds: repetitions, each with its own seed.
        seconds: that the person takes for a slice; an assumption.
        rate: steps a second that training takes meanwhile; an assumption (one core of a processor
            with AVX512-BF16 takes 16 of four 64x64 slices).
        tests: test cases that are scored, evenly spaced; None for all.
        device: as in RunConfig.
        settings: further settings of every training.
    """

    ways: tuple[str, ...] = WAYS
    slices: int = 16
    seeds: int = 3
    seconds: float = 30.0
    rate: float = 10.0
    tests: int | None = None
    device: str = "auto"
    settings: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for way in self.ways:
            if way not in WAYS:
                raise InputError(f"way {way!r} is unknown", remedy=f"Use {', '.join(WAYS)}")

    @property
    def steps(self) -> int:
        """Steps while the person draws one slice."""
        return max(1, round(self.seconds * self.rate))

    @property
    def scored(self) -> tuple[int, ...]:
        """Numbers of slices after which the model is scored: each half as many again."""
        found = [1]
        while found[-1] < self.slices:
            found.append(min(self.slices, max(found[-1] + 1, round(found[-1] * 1.5))))
        return tuple(found)

    def config(self, command: str, name: str, seed: int, **given: Any) -> RunConfig:
        """The settings of a training: network and batch are the same in all ways, patch and grid as
        each has them by itself.
        """
        overrides: dict[str, Any] = {"name": name, "seed": seed, "device": self.device, "dim": "2d"}
        overrides |= {"training.batch": 4}
        overrides |= dict(self.settings or {}) | given
        return configured(command, overrides=overrides)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Trial:
    """One way with one seed, in a project of its own."""

    effort: Effort
    way: str
    seed: int
    person: Annotator
    events: Events

    @property
    def project(self) -> Project:
        return self.person.project

    def record(self, run: str, steps: int) -> Record:
        """Score a finished run on the test cases, with the work so far."""
        tests = [case.name for case in self.project.test if case.label]
        most = self.effort.tests or len(tests)
        places = np.linspace(0, len(tests) - 1, min(most, len(tests))).round().astype(int)
        out = self.project.folder / "predictions" / run
        with relayed(self.events, run) as inner:
            options = PredictOptions(device=self.effort.device)
            chosen = ",".join(tests[place] for place in places)
            run_predict(self.project, run, out, inner, cases=chosen, options=options)
        scored = score_test_cases(self.project, out, 1.0)
        shutil.rmtree(out)
        return {
            "way": self.way,
            "seed": self.seed,
            "slices": self.person.slices,
            "voxels": self.person.voxels,
            "contour_mm": round(self.person.contour, 1),
            "structure": self.person.structure,
            "corrected": asdict(self.person.corrected),
            "steps": steps,
            "mean": scored["summary"]["dice"],
            "dice": scored["dice"],
        }


def run_effort(data: Project, effort: Effort, out: Path, events: Events) -> dict[str, Any]:
    """Run all ways and seeds; returns the content of ``effort.json``, which is kept up to date.

    Args:
        data: its test cases are scored; labels of its other cases are hidden and drawn from.
        effort: what is compared.
        out: folder of the result file and of the projects. What the file holds is not run again.
        events: where progress goes.

    Raises:
        InputError: no test case or no other case has a label, or results of other settings.
    """
    truths = {case.name: case.label for case in data.pool if case.label}
    if not truths or not any(case.label for case in data.test):
        raise InputError(
            "has no test case with a label, or no other case with one",
            file=data.folder,
            remedy="Choose test cases with a label, and give labels of others to draw from",
        )
    facts = {key: value for key, value in asdict(effort).items() if key not in ("ways", "seeds")}
    records = _read(out / RESULTS, data.name, facts)
    todo = [(way, seed) for seed in range(effort.seeds) for way in effort.ways]
    events.emit("start", command="benchmark", rows=list(effort.ways), runs=len(todo), folder=out)
    for done, (way, seed) in enumerate(todo, 1):
        if not any((r["way"], r["seed"]) == (way, seed) for r in records):
            person = _person(data, truths, out / "trials" / f"{way}-{seed}")
            trial = _Trial(effort, way, seed, person, events)
            for found in _RUN[way](trial):
                records.append(found)
                events.emit("metric", stage="effort", **{k: found[k] for k in _SHOWN})
            _write(out / RESULTS, data.name, facts, records)
        events.progress("effort", done, len(todo))
    return read_json(out / RESULTS)


_SHOWN = ("way", "seed", "slices", "voxels", "steps", "mean")


def _person(data: Project, truths: Mapping[str, Path], folder: Path) -> Annotator:
    """A person before a project without drawn slices; what is left of an earlier try is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    project = data.at(folder / "project")
    for case in project.pool:
        project.set_annotated(case.name, None)
        project.set_label(case.name, None)
    project.save()
    known = {name: path for name, path in truths.items()}
    return Annotator(project, known, folder / "drawn")


def _live(trial: _Trial) -> Iterator[Record]:
    """Suggested slices, proposals corrected, training in between."""
    effort, person = trial.effort, trial.person
    mixing = trial.way == "live"
    config = effort.config("live", "live", trial.seed, **{"options.mixing": mixing})
    with ExitStack() as stack:
        events = stack.enter_context(relayed(trial.events, f"live-{trial.seed}"))
        session = open_session(person.project, config, events, stack)
        while person.slices < effort.slices:
            name, place = _suggested(session, trial)
            person.draw(name, place, _proposal(session, name, place))
            session.look()
            for _ in range(effort.steps):
                if not session.train():
                    break
            if person.slices in effort.scored:
                assert session.learner is not None
                run = f"live-{person.slices}"
                session.keeper.save_as(run, session.teaching)
                yield trial.record(run, session.learner.step)


def _suggested(session: Session, trial: _Trial) -> tuple[str, SlicePlace]:
    """The best slice of a case whose truth is known."""
    found = []
    for answer in suggest_live(trial.project, session.learner, 3, trial.events):
        found += answer or []
    for item in found:
        if item.case in trial.person.truths:
            return item.case, (item.axis, item.index)
    raise InputError(
        "no slice is left to draw", file=trial.project.folder, remedy="Ask for fewer --slices"
    )


def _proposal(session: Session, name: str, place: SlicePlace) -> np.ndarray | None:
    """What the model proposes for a slice; None while it proposes nothing."""
    learner = session.learner
    if learner is None or not session.teaching.scores.proposals_pay(learner.step):
        return None
    cache, case = learner.labels.cache, session.teaching.watch.project.case(name)
    cache.prepare([case]).require_all()
    layout = layout_of(case, cache)
    if place[0] != layout.axis:
        return None
    at = layout.turned(place[1])
    with learner.predicting() as model:
        return layout.in_source(predicted_slices(model, cache, layout, at, at), place)


def _even(trial: _Trial) -> Iterator[Record]:
    """Evenly spaced slices from nothing, then one training; anew for every number of slices."""
    effort, person = trial.effort, trial.person
    scans = [scan for scan in survey(trial.project.pool, trial.events)]
    scans = [scan for scan in scans if scan.case.name in person.truths]
    for count in effort.scored:
        options = SuggestOptions(count, per_case=SLICES_PER_CASE, seed=trial.seed)
        _begin_anew(person)
        for item in even_slices(scans, options, trial.events):
            person.draw(item.case, (item.axis, item.index))
        steps = max(count * effort.steps, 1)
        config = effort.config("finetune", f"even-{count}", trial.seed, **{"training.steps": steps})
        with relayed(trial.events, config.name) as inner:
            run_finetune(trial.project, config, inner)
        yield trial.record(config.name, steps)


def _begin_anew(person: Annotator) -> None:
    project = person.project
    for case in project.labelled:
        project.set_annotated(case.name, None)
        project.set_label(case.name, None)
    project.save()
    person.slices, person.voxels, person.contour = 0, 0, 0.0
    person.structure, person.corrected = 0, Corrected()


def _complete(trial: _Trial) -> Iterator[Record]:
    """Case by case three slices and their completion, then a training on all completed cases."""
    effort, person, project = trial.effort, trial.person, trial.project
    scans = [scan for scan in survey(project.pool, trial.events)]
    scans = [scan for scan in scans if scan.case.name in person.truths]
    patients = [scan.case.patient for scan in scans]
    completed: dict[str, Path] = {}
    for position in even_order([False] * len(scans), patients, effort.slices // SLICES_PER_CASE):
        if person.slices + SLICES_PER_CASE > effort.slices:
            return
        name, axis = scans[position].case.name, scans[position].axis
        chosen = simulate_annotation(person.truth(name), SLICES_PER_CASE, axis).slices[0][1]
        for index in chosen:
            person.draw(name, (axis, index))
        steps = SLICES_PER_CASE * effort.steps
        given = {"training.steps": steps, "options.case": name}
        config = effort.config("complete", f"complete-{name}", trial.seed, **given)
        with relayed(trial.events, config.name) as inner:
            completed[name] = run_complete(project, config, inner)
        for case, path in completed.items():
            project.set_label(case, path)
            project.set_annotated(case, None)
        project.save()
        steps = person.slices * effort.steps
        run = f"from-completed-{len(completed)}"
        config = effort.config("finetune", run, trial.seed, **{"training.steps": steps})
        with relayed(trial.events, run) as inner:
            run_finetune(project, config, inner)
        yield trial.record(run, steps)


_RUN: dict[str, Callable[[_Trial], Iterator[Record]]] = {
    "live": _live,
    "live-no-mixing": _live,
    "even": _even,
    "complete": _complete,
}


def _read(path: Path, data: str, facts: Mapping[str, Any]) -> list[Record]:
    """The records of a result file. Raises InputError where it has other data or settings."""
    if not path.exists():
        return []
    content = read_json(path, newest_version=EFFORT_VERSION)
    version = "format_version"
    theirs = {"data": content.get("data"), version: content.get(version)}
    theirs |= content.get("settings") or {}
    ours = {"data": data, version: EFFORT_VERSION, **facts}
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if content.get("bench") != "effort" or differing:
        raise InputError(
            f"was made with other settings ({', '.join(differing) or 'no result of effort'})",
            file=path,
            remedy="Choose another --out",
        )
    return list(content["records"])


def _write(path: Path, data: str, facts: Mapping[str, Any], records: Sequence[Record]) -> None:
    write_json(
        path,
        {
            "bench": "effort",
            "format_version": EFFORT_VERSION,
            "data": data,
            "settings": dict(facts),
            "versions": versions(),
            "machine": {"processor": platform.machine()},
            "records": list(records),
        },
    )
