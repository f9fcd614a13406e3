"""The label-efficiency protocol: which way of training suits these data, and what each label is worth.

For every number of labelled volumes, every choice of them and every row: fine-tune with everything else equal, predict
the test cases at native resolution, score them. A row is ``random``, a pre-training method or one of VARIANTS, each
with ``-frozen`` for a fixed encoder, and ``+mean-teacher``, ``+mixup`` or ``+selftrain`` (which goes on from the row
without it) for what comes on top. Rows that the result file holds are not run again; a stopped run is resumed.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from MedSSLLib import io
from MedSSLLib.config import Preset, RunConfig
from MedSSLLib.demo import relayed
from MedSSLLib.errors import InputError
from MedSSLLib.evaluate import bootstrap_interval, evaluate_pairs
from MedSSLLib.events import Events
from MedSSLLib.files import read_json, write_json
from MedSSLLib.finetune import run_finetune
from MedSSLLib.methods import METHODS
from MedSSLLib.predict import PredictOptions, run_predict
from MedSSLLib.pretrain import run_pretrain
from MedSSLLib.project import Project
from MedSSLLib.runfolder import WEIGHTS, versions
from MedSSLLib.selftrain import run_selftrain

Settings = Mapping[str, str]
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
ON_TOP: dict[str, dict[str, Any]] = {"mean-teacher": {"semi": "mean-teacher"}, "mixup": {"mixup": 0.2}, "selftrain": {}}
BASELINE = "random"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """What is run, everywhere alike.

    Attributes:
        rows: in the grammar above.
        steps, minutes: length of every fine-tuning and self-training; one of them.
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
        for row in self.rows:
            parse_row(row)

    def config(self, command: Literal["pretrain", "finetune", "selftrain"], name: str, **given: Any) -> RunConfig:
        """The configuration of a run; ``given`` has ``method`` and settings with two underscores for a dot."""
        before = command == "pretrain"
        own = {"pretrain": self.pretrain_settings, "finetune": self.settings, "selftrain": self.selftrain_settings}
        steps, minutes = (self.pretrain_steps, self.pretrain_minutes) if before else (self.steps, self.minutes)
        length = {"training.steps": steps} if steps else {"training.minutes": minutes} if minutes else {}
        method = given.pop("method", "supervised")
        settings = {key.replace("__", "."): value for key, value in given.items()}
        fixed = {"name": name, "seed": self.seed, "device": self.device}
        overrides = {**length, **fixed, **settings, **(own[command] or {})}
        return RunConfig.build(command, preset=self.preset, method=method, overrides=overrides)


def parse_row(row: str) -> tuple[str, bool, str]:
    """The encoder of a row, whether it is frozen, and what comes on top ('' for nothing).

    Raises:
        InputError: no such row.
    """
    base, plus, on_top = row.partition("+")
    encoder = base.removesuffix("-frozen")
    frozen = encoder != base
    known = (BASELINE, *METHODS, *VARIANTS)
    if encoder not in known or (plus and on_top not in ON_TOP) or (frozen and encoder == BASELINE):
        raise InputError(
            f"method {row!r} is unknown",
            remedy=f"Use {', '.join(known)}; all but random with -frozen; each with +{', +'.join(ON_TOP)}",
        )
    return encoder, frozen, on_top


def run_labels(
    project: Project, choices: Mapping[str, Sequence[Sequence[str]]], protocol: Protocol, results: Path, events: Events
) -> dict[str, Any]:
    """Run the protocol on a project with test cases, and keep the result file up to date; returns its content.

    Args:
        project: holds the runs and predictions.
        choices: number of labelled volumes to lists of case names.
        protocol: what is run.
        results: the result file; what it holds is kept.
        events: where progress goes.

    Raises:
        InputError: no test case has a label, or a result file of other data.
        CancelledError: stopped by the user; run it again to go on.
    """
    if not any(case.label for case in project.test):
        raise InputError("no test case has a label", file=project.folder, remedy="Choose test cases with a label")
    records = _known_records(results, project.name)
    todo = [(count, number, labelled, row) for count, some in choices.items() for number, labelled in enumerate(some)
            for row in protocol.rows]  # fmt: skip
    events.emit("start", command="benchmark", rows=list(protocol.rows), runs=len(todo), folder=str(results.parent))
    for done, (count, number, labelled, row) in enumerate(todo, 1):
        if not any(same(record, row, count, number) for record in records):
            one = Choice(count, number, tuple(labelled))
            records.append(_score(project, protocol, row, one, events))
            events.emit("metric", stage="benchmark", row=row, labelled=len(labelled), choice=number,
                        dice=records[-1]["summary"]["dice"])  # fmt: skip
        _write(results, project.name, protocol, choices, records)
        events.progress("benchmark", done, len(todo))
    return read_json(results)


def same(record: Mapping[str, Any], row: str, count: str, choice: int) -> bool:
    """Whether a record is of this row, number of labels and choice."""
    return (record["row"], record["count"], record["choice"]) == (row, count, choice)


def with_counts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a result file, each with its ``count``, which early files have in their settings only."""
    count = str(content.get("settings", {}).get("count", ""))
    return [{"count": count or str(len(record["labelled"])), **record} for record in content["records"]]


def _known_records(results: Path, data: str) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    content = read_json(results, newest_version=FORMAT_VERSION)
    if content.get("bench") != "protocol" or content.get("data") != data:
        raise InputError(f"holds results of {content.get('data')!r}, not of {data!r}", file=results,
                         remedy="Choose another --out")
    return with_counts(content)


def _write(
    results: Path, data: str, protocol: Protocol, choices: Mapping[str, Sequence[Any]], records: list[dict[str, Any]]
) -> None:
    settings = {name: "" if value is None else str(value) for name, value in vars(protocol).items()}
    settings |= {"rows": ",".join(protocol.rows), "count": ",".join(choices),
                 "choices": str(max(map(len, choices.values()), default=0))}  # fmt: skip
    write_json(results, {
        "bench": "protocol", "format_version": FORMAT_VERSION, "data": data, "settings": settings,
        "versions": versions(), "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "difference_to_random": {count: differences([r for r in records if r["count"] == count]) for count in choices},
        "records": records,
    })  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One choice of labelled volumes: the number as in the file of splits, which choice, and the cases."""

    count: str
    number: int
    labelled: tuple[str, ...]


def _score(project: Project, protocol: Protocol, row: str, choice: Choice, events: Events) -> dict[str, Any]:
    """Train, predict and evaluate one row on one choice."""
    started = time.monotonic()
    name = _train(project, protocol, row, choice, events)
    trained = round(time.monotonic() - started, 1)
    out = project.folder / "predictions" / name
    test = ",".join(case.name for case in project.test if case.label)
    with relayed(events, name) as inner:
        run_predict(project, name, out, inner, cases=test, options=PredictOptions(device=protocol.device))
    scored = score_test_cases(project, out, protocol.tolerance)
    training = read_json(project.run_folder(name) / "metrics.json")
    return {"row": row, "count": choice.count, "choice": choice.number, "labelled": list(choice.labelled), "run": name,
            **scored, "steps": training.get("steps"), "training_s": training.get("seconds"),
            "command_s": trained}  # fmt: skip


def score_test_cases(project: Project, predictions: Path, tolerance: float) -> dict[str, Any]:
    """Score a folder of predictions of the test cases, whoever made them, and write its ``metrics.json``.

    Args:
        project: its test cases with labels are scored.
        predictions: ``CASE.nii.gz`` (or another format) on the source grid, with the label values of the project.
        tolerance: of surface Dice, mm.

    Returns:
        ``summary``, ``per_class``, ``dice`` and ``hd95_mm`` of a record.
    """
    test = {case.name: case for case in project.test if case.label}
    found = {io.case_name(path): path for path in io.find_images(predictions)}
    metrics = evaluate_pairs(
        {case: (found[case], test[case].label) for case in test if case in found},  # type: ignore[misc]
        tolerance, classes=dict(zip(project.classes[1:], project.values[1:], strict=True)),
        annotated={case: test[case].annotated for case in test if test[case].annotated},  # type: ignore[misc]
    )  # fmt: skip
    write_json(predictions / "metrics.json", metrics)
    means = metrics["summary"]
    return {"summary": {key: value["mean"] for key, value in means.items()}, "per_class": means["dice"]["per_class"],
            "dice": means["dice"]["per_case"], "hd95_mm": means["hd95_mm"]["per_case"]}  # fmt: skip


def _train(project: Project, protocol: Protocol, row: str, choice: Choice, events: Events) -> str:
    """Train the row on the choice unless that was done; returns the run's name."""
    encoder, frozen, on_top = parse_row(row)
    name = f"{row}-{choice.count}-{choice.number}-{protocol.tag}".replace("+", "-")
    if _finished(project, name):
        return name
    if on_top == "selftrain":
        start = _train(project, protocol, row.partition("+")[0], choice, events)
        config = protocol.config("selftrain", name, method="local-contrast", labelled=choice.labelled,
                                 options__start=start)  # fmt: skip
        _run(run_selftrain, project, config, events)
        return name
    extra = ON_TOP.get(on_top, {})
    if encoder != BASELINE:
        extra = extra | {"init": _pretrain(project, protocol, encoder, events), "freeze_encoder": frozen}
    _run(run_finetune, project, protocol.config("finetune", name, labelled=choice.labelled, **extra), events)
    return name


def _pretrain(project: Project, protocol: Protocol, encoder: str, events: Events) -> str:
    """Pre-train the encoder unless that was done; returns the run's name. One encoder serves all choices."""
    name = f"{encoder}-{protocol.tag}"
    method, settings = VARIANTS.get(encoder, (encoder, {}))
    if not _finished(project, name):
        _run(run_pretrain, project, protocol.config("pretrain", name, method=method, **settings), events)
    return name


def _finished(project: Project, name: str) -> bool:
    return (project.run_folder(name) / WEIGHTS).exists()


def _run(worker: Callable[[Project, RunConfig, Events], Path], project: Project, config: RunConfig,
         events: Events) -> None:  # fmt: skip
    """Start a run, or go on with one that was stopped; one that left no checkpoint is started anew."""
    folder = project.run_folder(config.name)
    if any((folder / "checkpoint").glob("*.safetensors")):
        config = config.override({"resume": True})
    elif folder.exists():
        shutil.rmtree(folder)
    with relayed(events, config.name) as inner:
        worker(project, config, inner)


def differences(records: Sequence[Mapping[str, Any]], level: float = 0.95) -> dict[str, dict[str, Any]]:
    """Paired difference of every row to ``random`` over cases x choices; records of one number of labels."""
    rows = dict.fromkeys(record["row"] for record in records)
    found = {row: difference(records, row, BASELINE, level) for row in rows if row != BASELINE}
    return {row: value for row, value in found.items() if value}


def difference(records: Sequence[Mapping[str, Any]], row: str, other: str, level: float = 0.95) -> dict[str, Any]:
    """Mean paired difference in Dice of two rows with its bootstrap interval; {} where no choice has both."""
    by_key = {(record["row"], record["choice"]): record["dice"] for record in records}
    choices = [c for r, c in by_key if r == row and (other, c) in by_key]
    if not choices:
        return {}
    cases = sorted(set.union(*(set(by_key[row, c]) for c in choices)))
    table = np.array([[_less(by_key[row, c].get(n), by_key[other, c].get(n)) for n in cases] for c in choices])
    if np.isnan(table).all():
        return {}
    mean, low, high = bootstrap_interval(table, level=level)
    return {"mean": mean, "low": low, "high": high, "choices": choices}


def _less(value: float | None, other: float | None) -> float:
    return float("nan") if value is None or other is None else value - other
