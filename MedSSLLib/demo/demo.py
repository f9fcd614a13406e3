"""The whole pipeline on one page: a cohort, a few annotated slices, and what they bring.

Two models are fine-tuned on the same few annotated slices for the same time: one from random
weights, one from an encoder pre-trained on the unlabelled scans.  The second then teaches itself
from its own predictions on the unlabelled scans.  All three segment the test cases, which none has
seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, relayed
from MedSSLLib.core.files import write_json
from MedSSLLib.data.plan import make_plan
from MedSSLLib.demo.data import gather
from MedSSLLib.demo.report import write_demo_report
from MedSSLLib.evaluation.scoring import Scored, score_predictions
from MedSSLLib.images import io
from MedSSLLib.images.labels import Annotated, simulate_annotation, slice_axis
from MedSSLLib.methods.options import configured
from MedSSLLib.project.project import Project

MINUTES = {
    "quick": {"pretrain": 1.1, "finetune": 0.8, "selftrain": 1.1},
    "standard": {"pretrain": 12.0, "finetune": 5.0, "selftrain": 8.0},
}
"""Minutes of pre-training, of each fine-tuning and of self-training. Not from the papers."""
_SELF = {"method": "local-contrast", "options.start": "pretrained", "options.rounds": 1}
VOXELS = 32 * 32 * 32
"""Voxels of a 3D patch in the quick demo: small, for many steps in little time. Not from the
papers.
"""
QUICK_BATCH = 4
"""Scans a step of pre-training in the quick demo, likewise."""
SLICES_A_CASE = 3
METHOD = "pgl"
RUNS = {
    "scratch": "random weights",
    "pretrained": "pre-trained",
    "selftrained": "pre-trained, self-trained",
}
"""Runs that are compared, and what they are called."""
TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Demo:
    """What the demo leaves behind.

    report: the HTML file. methods: the models' scores, random weights first. seconds: time of every
        stage.
    """

    folder: Path
    report: Path
    methods: tuple[Scored, ...]
    seconds: Mapping[str, float]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of the result table for the terminal."""
        classes = tuple(self.methods[0].metrics["summary"]["dice"]["per_class"])
        head = ("model", "mean Dice", *classes, "surface Dice", "HD95 mm")
        return head, [_row(scored, classes) for scored in self.methods]


def _row(scored: Scored, classes: tuple[str, ...]) -> tuple[str, ...]:
    summary = scored.metrics["summary"]
    values = [summary["dice"]["mean"]]
    values += [summary["dice"]["per_class"][name] for name in classes]
    values.append(summary["surface_dice"]["mean"])
    cells = [_cell(value, 3) for value in values]
    return (scored.name, *cells, _cell(summary["hd95_mm"]["mean"], 1))


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def run_demo(
    data: str, budget: str, out: Path | str, events: Events, *, device: str = "auto", seed: int = 0
) -> Demo:
    """Run the demo in a new folder.

    It writes its project, predictions, metrics, figures and report.

    Args:
        data: ``simulated`` (needs no network), ``hippocampus`` (downloaded and checked) or a folder
            of images and labels, with ``splits.json`` honoured where there is one.
        budget: ``quick`` (a few minutes on two cores) or ``standard``.
        out: a folder that does not exist yet, or is empty.
        events: where progress goes.
        device: as in RunConfig.
        seed: seed of the cohort, of the choice of cases and of training.

    Raises:
        InputError: the folder is in use, the budget is unknown or the data cannot be used.
    """
    folder = Path(out)
    if budget not in MINUTES:
        raise InputError(f"budget {budget!r} is unknown", remedy=f"Use {' or '.join(MINUTES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "is in use already",
            file=folder,
            remedy="Give a new folder with --out, or remove this one",
        )
    events.emit("start", command="demo", data=data, budget=budget, folder=str(folder))
    clock = _Clock()
    with clock.time("data"):
        cohort = gather(data, folder, seed, events)
        project = cohort.project(folder / cohort.name, seed)
        _tell(project, events)
        annotate(project, SLICES_A_CASE)
    methods = _train_and_score(
        project, _Settings(budget, device, seed, _voxels(project, budget)), events, clock
    )
    for run, scored in zip(RUNS, methods, strict=True):
        write_json(folder / f"metrics-{run}.json", scored.metrics)
    with clock.time("report"):
        report = write_demo_report(
            folder, project, dict(zip(RUNS, methods, strict=True)), cohort.words, clock.seconds
        )
    events.images(sorted((folder / "figures").iterdir()))
    means = {scored.name: scored.metrics["summary"]["dice"]["mean"] for scored in methods}
    events.emit("done", command="demo", folder=str(folder), report=str(report), dice=means)
    return Demo(folder, report, methods, dict(clock.seconds))


@dataclass(frozen=True)
class _Settings:
    budget: str
    device: str
    seed: int
    voxels: int | None

    def config(
        self, command: Literal["pretrain", "finetune", "selftrain"], **settings: Any
    ) -> RunConfig:
        minutes = MINUTES[self.budget][command]
        overrides: dict[str, Any] = {
            "training.minutes": minutes,
            "training.voxels": self.voxels,
            "device": self.device,
        }
        overrides |= {"seed": self.seed, **settings}
        return configured(
            command,
            preset="quick",
            method=overrides.pop("method", "supervised"),
            overrides=overrides,
        )


def _voxels(project: Project, budget: str) -> int | None:
    """The patch of every run, pre-training included, since an encoder brings its strides along;
    None = default.
    """
    geometries = [io.read_header(case.images[0]) for case in project.pool]
    plan = make_plan(geometries, modality=project.modalities, channels=project.channels)
    return VOXELS if budget == "quick" and plan.dim == 3 else None


class _Clock:
    """Keeps how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 1)


def _train_and_score(
    project: Project, settings: _Settings, events: Events, clock: _Clock
) -> tuple[Scored, ...]:
    from MedSSLLib.finetuning.finetune import run_finetune
    from MedSSLLib.pretraining.pretrain import run_pretrain
    from MedSSLLib.selftraining.selftrain import run_selftrain

    with relayed(events, "pre-train") as inner, clock.time("pre-training"):
        batch = {"training.batch": QUICK_BATCH} if settings.voxels else {}
        run_pretrain(
            project, settings.config("pretrain", method=METHOD, name="pretrain", **batch), inner
        )
    work = {
        "scratch": (run_finetune, settings.config("finetune", name="scratch")),
        "pretrained": (
            run_finetune,
            settings.config("finetune", name="pretrained", init="pretrain"),
        ),
        "selftrained": (run_selftrain, settings.config("selftrain", name="selftrained", **_SELF)),
    }
    scored = []
    for run, (train, config) in work.items():
        with relayed(events, RUNS[run]) as inner:
            with clock.time(f"training, {RUNS[run]}"):
                train(project, config, inner)
            with clock.time(f"testing, {RUNS[run]}"):
                _predict(project, run, settings.device, inner)
                scored.append(
                    score_predictions(project, _predictions(project, run), RUNS[run], TOLERANCE_MM)
                )
    return tuple(scored)


def _predictions(project: Project, run: str) -> Path:
    return project.run_folder(run) / "predictions"


def _predict(project: Project, run: str, device: str, events: Events) -> None:
    from MedSSLLib.inference.model import PredictOptions
    from MedSSLLib.inference.predict import run_predict

    names = ",".join(case.name for case in project.test)
    run_predict(
        project,
        run,
        _predictions(project, run),
        events,
        cases=names,
        options=PredictOptions(device=device),
    )


def annotate(project: Project, slices: int) -> None:
    """Let only a few slices of every labelled case count, as if someone had annotated just those;
    saves the project.

    Where there are three classes or more the slices are spread over the extent of all but the
    largest, as a person does who looks for the small structures.
    """
    for case in project.labelled:
        assert case.label is not None
        geometry = io.read_header(case.images[0])
        label = io.read_label(case.label, geometry, case=case.name, names=project.labels).array
        project.set_annotated(
            case.name, _chosen_slices(label, project.values[1:], slices, slice_axis(geometry))
        )
    project.save()


def _chosen_slices(label: np.ndarray, values: tuple[int, ...], slices: int, axis: int) -> Annotated:
    sizes = {}
    for value in values:
        if size := int((label == value).sum()):
            sizes[value] = size
    small = sorted(sizes, key=lambda value: sizes[value])
    if len(small) > 2:
        small.pop()
    return simulate_annotation(np.isin(label, small).astype(np.uint8), slices, axis)


def _tell(project: Project, events: Events) -> None:
    for problem in project.refused:
        events.emit("warning", message=f"left out: {problem}")
    for text in project.warnings:
        events.emit("warning", message=text)
