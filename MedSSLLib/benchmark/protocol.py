"""The label-efficiency protocol: which way of training suits these data, and what each label is
worth.

For every number of labelled volumes, every choice of them and every row: fine-tune with everything
else equal, predict the test cases at native resolution, score them. ``benchmark_rows.py`` says what
a row is. Rows that the result file holds are not run again; a stopped run is resumed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from MedSSLLib import __version__
from MedSSLLib.benchmark.data import require_one_dimension
from MedSSLLib.benchmark.records import (
    BASELINE,
    on_base,
    read_results,
    require_one_network,
    require_same_labels,
    same,
    unlike,
    write_results,
)
from MedSSLLib.config.run import Preset, RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, relayed
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.evaluation.evaluate import evaluate_pairs
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.inference.model import PredictOptions
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.methods import known_methods
from MedSSLLib.methods.options import configured
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.selftraining.selftrain import run_selftrain
from MedSSLLib.training.devices import resolve_device, training_precision
from MedSSLLib.training.run_folder import read_config

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Protocol:
    """What is run, everywhere alike.

    Attributes:
        rows: names of ``benchmark_rows.py``.
        steps, minutes: length of every fine-tuning, and again of every self-training after it; one
            of them.
        pretrain_steps, pretrain_minutes: length of every pre-training; one of them.
        preset, seed, device: as in RunConfig.
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
        if any(parse_row(row).encoder != BASELINE for row in self.rows):
            require_one_network(self.config("pretrain", ""), self.config("finetune", ""))

    def config(
        self, command: Literal["pretrain", "finetune", "selftrain"], name: str, **given: Any
    ) -> RunConfig:
        """The configuration of a run; ``given`` has ``method`` and settings with two underscores
        for a dot.
        """
        before = command == "pretrain"
        own = {
            "pretrain": self.pretrain_settings,
            "finetune": self.settings,
            "selftrain": self.selftrain_settings,
        }
        steps, minutes = (
            (self.pretrain_steps, self.pretrain_minutes) if before else (self.steps, self.minutes)
        )
        length = (
            {"training.steps": steps} if steps else {"training.minutes": minutes} if minutes else {}
        )
        method = given.pop("method", "supervised")
        settings = {key.replace("__", "."): value for key, value in given.items()}
        fixed = {"name": name, "seed": self.seed, "device": self.device}
        overrides = {**length, **fixed, **settings, **(own[command] or {})}
        return configured(command, preset=self.preset, method=method, overrides=overrides)

    def whole_length(self) -> dict[str, Any]:
        """Steps or minutes of a fine-tuning and the self-training that goes on from it,
        together.
        """
        parts = [self.config(command, "").training for command in ("finetune", "selftrain")]
        if any(part.minutes for part in parts):
            return {"training__minutes": sum(part.minutes or 0 for part in parts)}
        return {"training__steps": sum(part.steps for part in parts)}

    @property
    def precision(self) -> str:
        """The number format that training takes on this computer (one for each kind of run where
        they differ).
        """
        configs = [self.config(command, "") for command in ("pretrain", "finetune", "selftrain")]
        return ",".join(
            dict.fromkeys(
                training_precision(c.precision, resolve_device(c.device)) for c in configs
            )
        )


def run_labels(
    project: Project,
    choices: Mapping[str, Sequence[Sequence[str]]],
    protocol: Protocol,
    results: Path,
    events: Events,
) -> dict[str, Any]:
    """Run the protocol on a project with test cases, and keep the result file up to date; returns
    its content.

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
    if not any(case.label for case in project.test):
        raise InputError(
            "no test case has a label", file=project.folder, remedy="Choose test cases with a label"
        )
    encoders = {parse_row(row).encoder for row in protocol.rows} - {BASELINE}
    require_one_dimension(
        project,
        protocol.config("finetune", "").dim,
        [VARIANTS.get(encoder, (encoder, {}))[0] for encoder in sorted(encoders)],
    )
    facts = vars(protocol) | {"precision": protocol.precision}
    settings, records = read_results(results, project.name, facts)
    require_same_labels(results, records, choices)
    todo = [
        (count, number, labelled, row)
        for count, some in choices.items()
        for number, labelled in enumerate(some)
        for row in protocol.rows
    ]
    events.emit(
        "start",
        command="benchmark",
        rows=list(protocol.rows),
        runs=len(todo),
        folder=str(results.parent),
    )
    for done, (count, number, labelled, row) in enumerate(todo, 1):
        if not any(same(record, row, count, number) for record in records):
            one = Choice(count, number, tuple(labelled))
            records.append(_score(project, protocol, row, one, events))
            events.emit(
                "metric",
                stage="benchmark",
                row=row,
                labelled=len(labelled),
                choice=number,
                dice=records[-1]["summary"]["dice"],
            )
        write_results(results, project.name, settings, records, protocol.rows)
        events.progress("benchmark", done, len(todo))
    return read_json(results)


@dataclass(frozen=True)
class Choice:
    """One choice of labelled volumes: the number as in the file of splits, which choice, and the
    cases.
    """

    count: str
    number: int
    labelled: tuple[str, ...]

    def run(self, row: str, tag: str) -> str:
        """Name of the run of a row."""
        return f"{row}-{self.count}-{self.number}-{tag}".replace("+", "-")


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
    }


def _lengths(project: Project, protocol: Protocol, row: str, choice: Choice) -> dict[str, Any]:
    """Steps and seconds of training with labels, all runs of the row together, and seconds of
    pre-training apart.
    """
    parts = parse_row(row)
    found = _length(project, choice.run(row, protocol.tag))
    if parts.on_top == "selftrain":
        found |= on_base(found, _length(project, choice.run(row.partition("+")[0], protocol.tag)))
    if parts.encoder != BASELINE:
        found["pretraining_s"] = _length(project, f"{parts.encoder}-{protocol.tag}")["training_s"]
    return found


def _length(project: Project, name: str) -> dict[str, Any]:
    path = project.run_folder(name) / "metrics.json"
    figures = (
        read_json(path) if path.exists() else {}
    )  # a run that was only gone on from may have been removed
    return {"steps": figures.get("steps"), "training_s": figures.get("seconds")}


def score_test_cases(project: Project, predictions: Path, tolerance: float) -> dict[str, Any]:
    """Score a folder of predictions of the test cases, whoever made them, and write its
    ``metrics.json``.

    Args:
        project: its test cases with labels are scored.
        predictions: ``CASE.nii.gz`` (or another format) on the source grid, with the label values
            of the project.
        tolerance: of surface Dice, mm.

    Returns:
        ``summary``, ``per_class``, ``dice``, ``hd95_mm`` and ``missed`` of a record, and
        ``patients`` (case to patient) where the project knows them.
    """
    test = {case.name: case for case in project.test if case.label}
    found = {io.case_name(path): path for path in io.find_images(predictions)}
    metrics = evaluate_pairs(
        {case: (found[case], test[case].label) for case in test if case in found},  # type: ignore[misc]
        tolerance,
        classes=project.scored,
        annotated={case: test[case].annotated for case in test if test[case].annotated},  # type: ignore[misc]
    )
    write_json(predictions / "metrics.json", metrics)
    means = metrics["summary"]
    patients = {case: test[case].patient for case in metrics["cases"] if test[case].patient != case}
    return {
        "summary": {key: value["mean"] for key, value in means.items()},
        "per_class": means["dice"]["per_class"],
        "dice": means["dice"]["per_case"],
        "hd95_mm": means["hd95_mm"]["per_case"],
        "missed": metrics["missed"],
        **({"patients": patients} if patients else {}),
    }


def _train(project: Project, protocol: Protocol, row: str, choice: Choice, events: Events) -> str:
    """Train the row on the choice unless that was done; returns the run's name."""
    encoder, frozen, slices, on_top = parse_row(row)
    annotated = {"annotated_slices": slices} if slices else {}
    name, base = choice.run(row, protocol.tag), row.partition("+")[0]
    if on_top == "selftrain":
        config = protocol.config(
            "selftrain",
            name,
            method="local-contrast",
            labelled=choice.labelled,
            options__start=choice.run(base, protocol.tag),
            **annotated,
        )
        if not _finished(project, config):
            _train(project, protocol, base, choice, events)
            _run(run_selftrain, project, config, events)
        return name
    extra = (
        annotated | ON_TOP.get(on_top, {}) | (protocol.whole_length() if on_top == "longer" else {})
    )
    if encoder != BASELINE:
        extra |= {"init": f"{encoder}-{protocol.tag}", "freeze_encoder": frozen}
    config = protocol.config("finetune", name, labelled=choice.labelled, **extra)
    if not _finished(project, config):
        if encoder != BASELINE:
            _pretrain(project, protocol, encoder, events)
        _run(run_finetune, project, config, events)
    return name


def _pretrain(project: Project, protocol: Protocol, encoder: str, events: Events) -> None:
    """Pre-train the encoder unless that was done. One encoder serves all choices."""
    method, settings = VARIANTS.get(encoder, (encoder, {}))
    config = protocol.config("pretrain", f"{encoder}-{protocol.tag}", method=method, **settings)
    if not _finished(project, config):
        _run(run_pretrain, project, config, events)


def _finished(project: Project, config: RunConfig) -> bool:
    """Whether the run is done.

    Raises:
        InputError: the run of that name, done or begun, has other settings.
    """
    folder = project.run_folder(config.name)
    done = (folder / WEIGHTS).exists()
    there = (done or _has_checkpoint(folder)) and (folder / "config.json").exists()
    if there and (found := unlike(read_config(folder), config)):
        raise InputError(
            f"run {config.name!r} has other settings: {'; '.join(found)}",
            file=folder,
            remedy="Choose another --out, and another --tag where there is one",
        )
    return done


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoint").glob("*.safetensors"))


def _run(
    worker: Callable[[Project, RunConfig, Events], Path],
    project: Project,
    config: RunConfig,
    events: Events,
) -> None:
    """Start a run, or go on with one that was stopped; one that left no checkpoint is started
    anew.
    """
    folder = project.run_folder(config.name)
    if _has_checkpoint(folder):
        config = config.override({"resume": True})
    elif folder.exists():
        shutil.rmtree(folder)
    with relayed(events, config.name) as inner:
        worker(project, config, inner)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gcl-image": ("gcl", {"options.pixel": False}),
    "gcl-sum": ("gcl", {"options.pixel": False, "options.gradient": "sum"}),
    "gcl-patient": ("gcl", {"options.pixel": False, "options.meta": ["patient"]}),
    "gcl-position": ("gcl", {"options.pixel": False, "options.meta": ["position"]}),
    "gcl-phase": ("gcl", {"options.pixel": False, "options.meta": ["phase"]}),
    "gcl-no-filter": ("gcl", {"options.grad_filter": False}),
    "pgl-no-scale": ("pgl", {"options.use_scale_prior": False}),
    "pgl-no-flip": ("pgl", {"options.use_flip_prior": False}),
}
"""Ablations: the method and its settings."""
ON_TOP: dict[str, dict[str, Any]] = {
    "mean-teacher": {"semi": "mean-teacher"},
    "mixup": {"mixup": 0.2},
    "selftrain": {},
    "longer": {},
}


_ROW = re.compile(
    r"(?P<encoder>.+?)(?P<frozen>-frozen)?(-(?P<slices>[1-9][0-9]*)-slices)?([+](?P<on_top>.+))?"
)


class Row(NamedTuple):
    """What a row is made of.

    Attributes:
        encoder: ``random``, a method or one of VARIANTS.
        frozen: whether the encoder is fixed.
        slices: annotated slices of every labelled volume; 0 for whole volumes.
        on_top: what comes on top; '' for nothing.
    """

    encoder: str
    frozen: bool = False
    slices: int = 0
    on_top: str = ""


def parse_row(row: str) -> Row:
    """The parts of a row's name.

    Raises:
        InputError: no such row.
    """
    known = (BASELINE, *known_methods(), *VARIANTS)
    if found := _ROW.fullmatch(row):
        parts = Row(
            found["encoder"],
            bool(found["frozen"]),
            int(found["slices"] or 0),
            found["on_top"] or "",
        )
        fits = parts.encoder in known and parts.on_top in ("", *ON_TOP)
        if fits and not (parts.frozen and parts.encoder == BASELINE):
            return parts
    raise InputError(
        f"method {row!r} is unknown",
        remedy=f"Use {', '.join(known)}; all but random with -frozen; each with -3-slices (or "
        "another number); "
        f"then +{', +'.join(ON_TOP)}",
    )


def baseline_of(row: str) -> str:
    """The random start that a row is to be judged against: that with as many annotated slices of
    every volume.
    """
    found = _ROW.fullmatch(row)
    return f"{BASELINE}-{found['slices']}-slices" if found and found["slices"] else BASELINE
