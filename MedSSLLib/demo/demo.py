"""The whole pipeline on one page: a cohort, a few annotated slices, and what they bring.

Every model learns from the same few annotated slices and for the same time in all. The first does
nothing else. The others spend a part of the time on the unlabelled scans: self-training learns from
the model's own predictions there, pre-training (in the longer demo) learns before any label is
read. All segment the test cases, which none has seen.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
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
from MedSSLLib.demo.report import Made, gain, write_demo_report
from MedSSLLib.evaluation.scoring import Scored, score_predictions
from MedSSLLib.images import io
from MedSSLLib.images.labels import Annotated, simulate_annotation, slice_axis
from MedSSLLib.methods.options import configured
from MedSSLLib.project.project import Project


@dataclass(frozen=True)
class Row:
    """A model of the demo and how its training time is spent, in minutes.

    Attributes:
        run: name of the run that is scored.
        words: what the tables call it.
        first: training on the annotated slices.
        pretrain: learning from all scans before that, no label read; 0 for none.
        selftrain: learning from its own predictions on the unlabelled scans after it; 0 for none.
    """

    run: str
    words: str
    first: float
    pretrain: float = 0.0
    selftrain: float = 0.0

    @property
    def minutes(self) -> float:
        """Training time of the model in all."""
        return self.first + self.pretrain + self.selftrain

    @property
    def first_run(self) -> str:
        """Name of the run on the annotated slices."""
        return f"{self.run}-start" if self.selftrain else self.run


BUDGETS = {
    "quick": (
        Row("labels", "labels alone", 1.9),
        Row("selftrained", "self-trained", 0.8, selftrain=1.1),
    ),
    "standard": (
        Row("labels", "labels alone", 12.0),
        Row("pretrained", "pre-trained", 7.0, pretrain=5.0),
        Row("selftrained", "pre-trained, self-trained", 3.0, pretrain=5.0, selftrain=4.0),
    ),
}
"""The models that are compared; those of a budget train for the same time. Not from the papers.

In minutes pre-training brings nothing yet, so that the quick demo does without.
"""
VOXELS = 32 * 32 * 32
"""Voxels of a 3D patch in the quick demo: small, for many steps in little time. Not from the
papers.
"""
QUICK_BATCH = 4
"""Scans a step of pre-training in the quick demo, likewise."""
SLICES_A_CASE = 3
METHOD = "pgl"
ENCODER = "pretrain"
TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Demo:
    """What the demo leaves behind.

    Attributes:
        folder: where everything is.
        report: the HTML file.
        picture: slices of test cases with every model's segmentation.
        methods: the models' scores, labels alone first.
        minutes: training time of every model.
        seconds: time of every stage.
    """

    folder: Path
    report: Path
    picture: Path
    methods: tuple[Scored, ...]
    minutes: float
    seconds: Mapping[str, float]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of the result table for the terminal."""
        classes = tuple(self.methods[0].metrics["summary"]["dice"]["per_class"])
        head = ("model", "Dice", *classes, "HD95, mm")
        return head, [_row(scored, classes) for scored in self.methods]

    def verdict(self) -> str:
        """What the last model has over the first, in a sentence."""
        mean, low, high = gain(self.methods)
        first, last = self.methods[0], self.methods[-1]
        more = "more" if mean >= 0 else "less"
        return (
            f"{last.name.capitalize()}: {abs(mean):.3f} Dice {more} than {first.name} on "
            f"{len(last.metrics['cases'])} scans that no model has seen (95 % interval {low:+.3f} "
            f"to {high:+.3f}), both trained for {self.minutes:g} minutes."
        )


def _row(scored: Scored, classes: tuple[str, ...]) -> tuple[str, ...]:
    summary = scored.metrics["summary"]
    cells = [_cell(summary["dice"]["mean"], 3)]
    cells += [_cell(summary["dice"]["per_class"][name], 3) for name in classes]
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
    if budget not in BUDGETS:
        raise InputError(f"budget {budget!r} is unknown", remedy=f"Use {' or '.join(BUDGETS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "is in use already",
            file=folder,
            remedy="Give a new folder with --out, or remove this one",
        )
    events.emit("start", command="demo", data=data, budget=budget, folder=str(folder))
    clock = _Clock()
    rows = BUDGETS[budget]
    with clock.time("data"):
        cohort = gather(data, folder, seed, events)
        project = cohort.project(folder / cohort.name, seed)
        _tell(project, events)
        annotate(project, SLICES_A_CASE)
    settings = _Settings(device, seed, _voxels(project, budget))
    methods = _train_and_score(project, rows, settings, events, clock)
    for row, scored in zip(rows, methods, strict=True):
        write_json(folder / f"metrics-{row.run}.json", scored.metrics)
    with clock.time("report"):
        made = Made(project, cohort.words, methods, settings.commands(project, rows[-1], folder))
        report = write_demo_report(folder, made, run_folders(project, rows), clock.seconds)
    pictures = sorted((folder / "figures").iterdir())
    events.images(pictures)
    means = {scored.name: scored.metrics["summary"]["dice"]["mean"] for scored in methods}
    events.emit("done", command="demo", folder=str(folder), report=str(report), dice=means)
    picture = folder / "figures" / "overlays.png"
    return Demo(folder, report, picture, methods, rows[-1].minutes, dict(clock.seconds))


def run_folders(project: Project, rows: Sequence[Row]) -> dict[str, dict[str, Path]]:
    """Kind of training to what its runs are called and their folders."""
    kinds: dict[str, dict[str, Path]] = {"pre-training": {}, "fine-tuning": {}, "self-training": {}}
    for row in rows:
        if row.pretrain:
            kinds["pre-training"]["pre-training"] = project.run_folder(ENCODER)
        first = f"{row.words}, start" if row.selftrain else row.words
        kinds["fine-tuning"][first] = project.run_folder(row.first_run)
        if row.selftrain:
            kinds["self-training"][row.words] = project.run_folder(row.run)
    return {kind: runs for kind, runs in kinds.items() if runs}


@dataclass(frozen=True)
class _Settings:
    device: str
    seed: int
    voxels: int | None

    def config(
        self,
        command: Literal["pretrain", "finetune", "selftrain"],
        minutes: float,
        **settings: Any,
    ) -> RunConfig:
        overrides: dict[str, Any] = {
            "training.minutes": minutes,
            "training.voxels": self.voxels,
            "device": self.device,
            "seed": self.seed,
            **settings,
        }
        method = overrides.pop("method", "supervised")
        return configured(command, preset="quick", method=method, overrides=overrides)

    def commands(self, project: Project, row: Row, folder: Path) -> list[str]:
        """The same work as commands that can be typed in the demo's folder."""
        common = f"--preset quick --seed {self.seed}"
        if self.voxels:
            common += f" --set training.voxels={self.voxels}"
        name = shlex.quote(project.folder.name)
        start, lines = "", []
        if row.pretrain:
            lines.append(
                f"medssl pretrain {name} --method {METHOD} --minutes {row.pretrain:g} {common} "
                "--name again-pretrain"
            )
            start = " --init again-pretrain"
        lines.append(
            f"medssl finetune {name}{start} --minutes {row.first:g} {common} --name again-start"
        )
        lines.append(
            f"medssl selftrain {name} --from again-start --rounds 1 "
            f"--minutes {row.selftrain:g} {common} --name again"
        )
        labels = sorted({case.label.parent for case in project.test if case.label})[0]
        if labels.is_relative_to(folder.absolute()):
            labels = labels.relative_to(folder.absolute())
        where = f"--predictions again --references {shlex.quote(str(labels))}"
        lines.append(f"medssl predict {name} --run again --out again")
        lines.append(f"medssl evaluate {where} --project {name} --out again.json")
        return lines


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
    project: Project, rows: Sequence[Row], settings: _Settings, events: Events, clock: _Clock
) -> tuple[Scored, ...]:
    scored = []
    for row in rows:
        with relayed(events, row.words) as inner:
            _train(project, row, settings, inner, clock)
            with clock.time(f"testing, {row.words}"):
                _predict(project, row.run, settings.device, inner)
                predictions = _predictions(project, row.run)
                scored.append(
                    score_predictions(project, predictions, row.words, TOLERANCE_MM, inner)
                )
    return tuple(scored)


def _train(project: Project, row: Row, settings: _Settings, events: Events, clock: _Clock) -> None:
    """The runs of a model, one after the other; all share one pre-training."""
    from MedSSLLib.finetuning.finetune import run_finetune
    from MedSSLLib.pretraining.pretrain import run_pretrain
    from MedSSLLib.selftraining.selftrain import run_selftrain

    init = {"init": ENCODER} if row.pretrain else {}
    if row.pretrain and not project.run_folder(ENCODER).exists():
        batch = {"training.batch": QUICK_BATCH} if settings.voxels else {}
        with clock.time("pre-training"):
            config = settings.config("pretrain", row.pretrain, method=METHOD, name=ENCODER, **batch)
            run_pretrain(project, config, events)
    with clock.time(f"training, {row.words}"):
        config = settings.config("finetune", row.first, name=row.first_run, **init)
        run_finetune(project, config, events)
        if row.selftrain:
            start = {"options.start": row.first_run, "options.rounds": 1}
            config = settings.config(
                "selftrain", row.selftrain, method="local-contrast", name=row.run, **start
            )
            run_selftrain(project, config, events)


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
