"""The label-efficiency protocol: what each label is worth, which training suits the data.

For every number of labelled volumes, every choice of them and every row: fine-tune with everything
else equal, predict the test cases at native resolution, score them. What a row is made of stands in
:mod:`MedSSLLib.benchmark.records`. Rows that the result file holds are not run again; a stopped run
is resumed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from MedSSLLib import __version__
from MedSSLLib.benchmark.data import Choice, planned, require_one_dimension
from MedSSLLib.benchmark.records import (
    BASELINE,
    GOES_ON,
    ON_TOP,
    on_base,
    parse_row,
    pretraining_of,
    read_results,
    require_one_network,
    require_same_labels,
    same,
    unlike,
    write_results,
)
from MedSSLLib.config.lengths import Preset
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, relayed
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.evaluation.evaluate import evaluate_pairs
from MedSSLLib.evaluation.pairing import by_case
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.inference.model import PredictOptions
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.methods.options import configured
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.project.project import Project
from MedSSLLib.selftraining.selftrain import run_selftrain
from MedSSLLib.training.devices import resolve_device, training_precision
from MedSSLLib.training.run_folder import RunFolder

Settings = Mapping[str, str]
MEASURED = "measured_steps"
"""Setting of a result file: the steps that were made in the minutes that were asked for."""
_TRAINING: tuple[Literal["pretrain", "finetune", "selftrain"], ...] = (
    "pretrain",
    "finetune",
    "selftrain",
)


@dataclass(frozen=True)
class Protocol:
    """What is run, everywhere alike.

    Attributes:
        rows: names that :func:`~MedSSLLib.benchmark.records.parse_row` knows.
        steps: length of every fine-tuning, and again of every self-training after it.
        minutes: that length in minutes; as many steps as the first fine-tuning makes in them.
        pretrain_steps, pretrain_minutes: length of every pre-training; one of them.
        preset, seed, device: as in RunConfig; of the preset the steps count, not the minutes.
        settings, pretrain_settings, selftrain_settings: further settings of each kind of run.
        tolerance: of surface Dice, mm.
        tag: end of the run names.
    """

    rows: tuple[str, ...] = (BASELINE,)
    steps: int | None = None
    minutes: float | None = None
    pretrain_steps: int | None = None
    pretrain_minutes: float | None = None
    preset: Preset = "standard"
    seed: int = 0
    device: str = "auto"
    settings: Settings | None = None
    pretrain_settings: Settings | None = None
    selftrain_settings: Settings | None = None
    tolerance: float = 1.0
    tag: str = "bench"

    def __post_init__(self) -> None:
        if self.preset not in ("quick", "standard", "paper"):
            raise InputError(
                f"preset {self.preset!r} is a time limit, and rows have the same steps",
                remedy="Use quick, standard or paper",
            )
        if any(parse_row(row).encoder != BASELINE for row in self.rows):
            require_one_network(self.config("pretrain", ""), self.config("finetune", ""))

    def config(
        self, command: Literal["pretrain", "finetune", "selftrain"], name: str, **given: Any
    ) -> RunConfig:
        """The configuration of a run.

        ``given`` has ``method`` and settings with two underscores for a dot.
        """
        own = {
            "pretrain": self.pretrain_settings,
            "finetune": self.settings,
            "selftrain": self.selftrain_settings,
        }
        method = given.pop("method", "supervised")
        # by the minutes of a preset every row would have as many steps as there then is time for
        overrides: dict[str, Any] = {"training.minutes": None}
        overrides |= self._length(before_labels=command == "pretrain")
        overrides |= {"name": name, "seed": self.seed, "device": self.device}
        for key, value in given.items():
            overrides[key.replace("__", ".")] = value
        overrides |= own[command] or {}
        return configured(command, preset=self.preset, method=method, overrides=overrides)

    def _length(self, *, before_labels: bool) -> dict[str, Any]:
        """Steps or minutes as settings; {} where the preset decides."""
        steps, minutes = self.steps, self.minutes
        if before_labels:
            steps, minutes = self.pretrain_steps, self.pretrain_minutes
        if steps:
            return {"training.steps": steps}
        return {"training.minutes": minutes} if minutes else {}

    def whole_length(self) -> dict[str, Any]:
        """Steps or minutes of a fine-tuning and the self-training after it, together."""
        first = self.config("finetune", "").training
        second = self.config("selftrain", "").training
        if first.minutes or second.minutes:
            return {"training__minutes": (first.minutes or 0) + (second.minutes or 0)}
        return {"training__steps": first.steps + second.steps}

    @property
    def precision(self) -> str:
        """The number format that training takes on this computer.

        One for each kind of run where they differ.
        """
        found = []
        for command in _TRAINING:
            config = self.config(command, "")
            found.append(training_precision(config.precision, resolve_device(config.device)))
        return ",".join(dict.fromkeys(found))


def run_labels(
    project: Project,
    choices: Mapping[str, Sequence[Sequence[str]]],
    protocol: Protocol,
    results: Path,
    events: Events,
) -> dict[str, Any]:
    """Run the protocol on a project with test cases; returns the result file's content.

    The result file is kept up to date.

    Args:
        project: holds the runs and predictions.
        choices: number of labelled volumes to lists of case names.
        protocol: what is run.
        results: the result file; what it holds is kept.
        events: where progress goes.

    Raises:
        InputError: no test case has a label, or a result file or runs of other data or settings.
        CancelledError: stopped by the user; run it again to go on.
    """
    _require_comparable(project, protocol)
    facts = vars(protocol) | {"precision": protocol.precision}
    settings, records = read_results(results, project.name, facts)
    require_same_labels(results, records, choices)
    todo = planned(choices, protocol.rows)
    events.emit(
        "start",
        command="benchmark",
        rows=list(protocol.rows),
        runs=len(todo),
        folder=str(results.parent),
    )
    if protocol.minutes and not protocol.steps and (MEASURED in settings or not records):
        if MEASURED not in settings:
            settings[MEASURED] = str(_measured(project, protocol, todo[0], events))
        protocol = replace(protocol, steps=int(settings[MEASURED]))
    for done, (choice, row) in enumerate(todo, 1):
        if not any(same(record, row, choice.count, choice.number) for record in records):
            records.append(_score(project, protocol, row, choice, events))
            events.emit(
                "metric",
                stage="benchmark",
                row=row,
                labelled=len(choice.labelled),
                choice=choice.number,
                dice=records[-1]["summary"]["dice"],
            )
        write_results(results, project.name, settings, records, protocol.rows)
        events.progress("benchmark", done, len(todo))
    return read_json(results)


def _measured(
    project: Project, protocol: Protocol, first: tuple[Choice, str], events: Events
) -> int:
    """The steps that a fine-tuning makes in the minutes of the protocol."""
    choice, row = first
    base = BASELINE if BASELINE in protocol.rows else row.partition("+")[0]
    name = _train(project, protocol, base, choice, events)
    steps: int = _length(project, name)["steps"]
    return steps


def _require_comparable(project: Project, protocol: Protocol) -> None:
    """Raise InputError where nothing could be scored, or rows would differ in their dimension."""
    if not any(case.label for case in project.test):
        raise InputError(
            "no test case has a label", file=project.folder, remedy="Choose test cases with a label"
        )
    encoders = {parse_row(row).encoder for row in protocol.rows} - {BASELINE}
    methods = [pretraining_of(encoder)[0] for encoder in sorted(encoders)]
    require_one_dimension(project, protocol.config("finetune", "").dim, methods)


def _score(
    project: Project, protocol: Protocol, row: str, choice: Choice, events: Events
) -> dict[str, Any]:
    """Train, predict and evaluate one row on one choice."""
    started = time.monotonic()
    name = _train(project, protocol, row, choice, events)
    trained = round(time.monotonic() - started, 1)
    out = project.folder / "predictions" / name
    test = ",".join(case.name for case in project.test if case.label)
    with relayed(events, name) as inner:
        run_predict(
            project, name, out, inner, cases=test, options=PredictOptions(device=protocol.device)
        )
    scored = score_test_cases(project, out, protocol.tolerance)
    return {
        "row": row,
        "count": choice.count,
        "choice": choice.number,
        "labelled": list(choice.labelled),
        "run": name,
        **scored,
        **_lengths(project, protocol, row, choice),
        "command_s": trained,
        "medssl": __version__,
        "precision": protocol.precision,
        "intensities": RunFolder(project.run_folder(name)).plan.intensities,
    }


def _lengths(project: Project, protocol: Protocol, row: str, choice: Choice) -> dict[str, Any]:
    """Steps and seconds of training with labels, and seconds of pre-training apart.

    All runs of the row count together.
    """
    parts = parse_row(row)
    found = _length(project, choice.run(row, protocol.tag))
    if parts.on_top in GOES_ON:
        found |= on_base(found, _length(project, choice.run(row.partition("+")[0], protocol.tag)))
    if parts.encoder != BASELINE:
        found["pretraining_s"] = _length(project, f"{parts.encoder}-{protocol.tag}")["training_s"]
    return found


def _length(project: Project, name: str) -> dict[str, Any]:
    path = project.run_folder(name) / "metrics.json"
    # a run that was only gone on from may have been removed
    metrics = read_json(path) if path.exists() else {}
    return {"steps": metrics.get("steps"), "training_s": metrics.get("seconds")}


def score_test_cases(project: Project, predictions: Path, tolerance: float) -> dict[str, Any]:
    """Score predictions of the test cases, whoever made them.

    Writes ``metrics.json`` beside them.

    Args:
        project: its test cases with labels are scored.
        predictions: ``CASE.nii.gz`` (or another format) on the source grid, with the label values
            of the project.
        tolerance: of surface Dice, mm.

    Returns:
        ``summary``, ``per_class``, ``dice``, ``hd95_mm`` and ``missed`` of a record, and
        ``patients`` (case to patient) where the project knows them.

    Raises:
        InputError: a case has two predictions, or none could be scored.
    """
    test = {case.name: case for case in project.test if case.label}
    pairs, annotated, patients = {}, {}, {}
    found, twice = by_case(io.find_images(predictions), test)
    for name, case in test.items():
        if name in twice:
            raise twice[name]
        if name in found and case.label is not None:
            pairs[name] = (found[name], case.label)
        if case.annotated:
            annotated[name] = case.annotated
    metrics = evaluate_pairs(pairs, tolerance, classes=project.scored, annotated=annotated)
    write_json(predictions / "metrics.json", metrics)
    for name in metrics["cases"]:
        if test[name].patient != name:
            patients[name] = test[name].patient
    means = metrics["summary"]
    scored = {
        "summary": {key: value["mean"] for key, value in means.items()},
        "per_class": means["dice"]["per_class"],
        "dice": means["dice"]["per_case"],
        "hd95_mm": means["hd95_mm"]["per_case"],
        "missed": metrics["missed"],
    }
    return scored | {"patients": patients} if patients else scored


def _train(project: Project, protocol: Protocol, row: str, choice: Choice, events: Events) -> str:
    """Train the row on the choice unless that was done; returns the run's name."""
    encoder, frozen, slices, on_top = parse_row(row)
    annotated = {"annotated_slices": slices} if slices else {}
    name, base = choice.run(row, protocol.tag), row.partition("+")[0]
    if on_top in GOES_ON:
        config = protocol.config(
            "selftrain",
            name,
            method="local-contrast",
            labelled=choice.labelled,
            options__start=choice.run(base, protocol.tag),
            options__recipe=GOES_ON[on_top],
            **annotated,
        )
        if not _finished(project, config, protocol.minutes):
            _train(project, protocol, base, choice, events)
            _run(run_selftrain, project, config, events)
        return name
    extra = annotated | ON_TOP.get(on_top, {})
    if on_top == "longer":
        extra |= protocol.whole_length()
    if encoder != BASELINE:
        extra |= {"init": f"{encoder}-{protocol.tag}", "freeze_encoder": frozen}
    config = protocol.config("finetune", name, labelled=choice.labelled, **extra)
    if not _finished(project, config, protocol.minutes):
        if encoder != BASELINE:
            _pretrain(project, protocol, encoder, events)
        _run(run_finetune, project, config, events)
    return name


def _pretrain(project: Project, protocol: Protocol, encoder: str, events: Events) -> None:
    """Pre-train the encoder unless that was done. One encoder serves all choices."""
    method, settings = pretraining_of(encoder)
    config = protocol.config("pretrain", f"{encoder}-{protocol.tag}", method=method, **settings)
    if not _finished(project, config, protocol.minutes):
        _run(run_pretrain, project, config, events)


def _finished(project: Project, config: RunConfig, minutes: float | None = None) -> bool:
    """Whether the run is done; ``minutes`` are those that were turned into steps.

    Raises:
        InputError: the run of that name, done or begun, has other settings.
    """
    run = RunFolder(project.run_folder(config.name))
    there = (run.finished or run.has_checkpoint) and run.recorded
    if there and run.finished and _length(project, config.name)["steps"] == config.training.steps:
        # the run by which minutes were turned into steps
        by_the_clock = run.config.training.minutes
        if by_the_clock and by_the_clock == minutes:
            config = config.override({"training.minutes": by_the_clock})
    if there and (found := unlike(run.config, config)):
        raise InputError(
            f"run {config.name!r} has other settings: {'; '.join(found)}",
            file=run.folder,
            remedy="Choose another --out, and another --tag where there is one",
        )
    return run.finished


def _run(
    worker: Callable[[Project, RunConfig, Events], Path],
    project: Project,
    config: RunConfig,
    events: Events,
) -> None:
    """Start a run, or go on with one that was stopped.

    One that left no checkpoint is started anew.
    """
    folder = project.run_folder(config.name)
    if RunFolder(folder).has_checkpoint:
        config = config.override({"resume": True})
    elif folder.exists():
        shutil.rmtree(folder)
    with relayed(events, config.name) as inner:
        worker(project, config, inner)
