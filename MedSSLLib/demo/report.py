"""The demo's page: what unlabelled scans brought on this cohort, shown case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.words import duration_words
from MedSSLLib.evaluation.evaluate import bootstrap_interval
from MedSSLLib.evaluation.scoring import Scored
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.overlays import overlay_figure
from MedSSLLib.reporting.plots import paired_cases, save, training_curves
from MedSSLLib.reporting.results import add_overlays, add_results, overlay_panels
from MedSSLLib.reporting.run_report import (
    add_configuration,
    add_environment,
    annotation_words,
    footer,
    limits,
    losses,
)
from MedSSLLib.training.run_folder import RunFolder


def gain(methods: Sequence[Scored]) -> tuple[float, float, float]:
    """Mean paired difference in Dice, last model less first, with its interval.

    The interval is a 95 % bootstrap interval over cases.
    """
    first, last = methods[0].per_case, methods[-1].per_case
    differences = []
    for case, after in last.items():
        before = first.get(case)
        if before is not None and after is not None:
            differences.append(after - before)
    return bootstrap_interval(np.array(differences, dtype=float))


@dataclass(frozen=True)
class Made:
    """What the demo has made: its project, what the scans are, scores, and the same as commands."""

    project: Project
    words: str
    methods: Sequence[Scored]
    commands: Sequence[str]


def write_demo_report(
    folder: Path,
    made: Made,
    runs: Mapping[str, Mapping[str, Path]],
    seconds: Mapping[str, float],
) -> Path:
    """Write ``report.html`` and the figures as PNG into the demo's folder; returns the page's path.

    Args:
        folder: where to write.
        made: what the demo has made; scores with labels alone first, the fullest model last.
        runs: kind of training to what its runs are called and their folders.
        seconds: how long each stage took.
    """
    project, scored = made.project, made.methods
    slices = sum(case.annotated.count for case in project.labelled if case.annotated)
    page = Page(
        "What a few annotated slices can do",
        f"{slices} annotated slices in {len(project.labelled)} of {len(project.pool)} scans; the "
        f"others have no label. Scored on {len(project.test)} test cases that no model has seen.",
        kicker="MedSSL demo",
    )
    page.cards(_cards(scored, seconds))
    add_results(page, scored)
    add_overlays(page, project, scored)
    _add_training(page, runs)
    _add_data(page, made)
    page.section("Time")
    page.facts({stage: duration_words(value) for stage, value in seconds.items()})
    last: Mapping[str, Any] = {}
    for kind, some in runs.items():
        last = RunFolder(list(some.values())[-1]).record
        add_configuration(page, last["config"], f"Configuration of the {kind}")
    add_environment(page, last.get("versions", {}), last.get("precision"))
    page.section("Limits")
    page.bullets([*_own_limits(scored), *limits(scored)])
    _save_figures(folder / "figures", project, scored)
    return page.write(folder / "report.html", footer())


def _cards(methods: Sequence[Scored], seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Headline numbers: (value, what it is, note)."""
    mean, low, high = gain(methods)
    training = sum(took for stage, took in seconds.items() if "training" in stage)
    cards = []
    for scored in (methods[0], methods[-1]):
        dice = scored.metrics["summary"]["dice"]["mean"]
        cases = f"mean Dice of {len(scored.metrics['cases'])} test cases"
        cards.append((f"{dice:.3f}", scored.name, cases))
    interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    cards.append((_signed(mean), "difference", interval))
    note = f"of it training {duration_words(training)}"
    cards.append((duration_words(sum(seconds.values())), "whole demo", note))
    return cards


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


_CAPTIONS = {
    "pre-training": "Pre-training: no label of any scan was read.",
    "fine-tuning": "Training on the annotated slices.",
    "self-training": "Self-training: the model's own predictions on unlabelled scans teach it too.",
}


def _add_training(page: Page, runs: Mapping[str, Mapping[str, Path]]) -> None:
    """Every run's losses, a figure per kind of training."""
    page.section("Training")
    drawn = []
    for kind, some in runs.items():
        if curves := losses(some):
            drawn.append((training_curves(curves), _CAPTIONS[kind]))
    page.figures(*drawn)


def _add_data(page: Page, made: Made) -> None:
    project = made.project
    page.section("Data", made.words)
    annotated = {}
    for case in project.labelled:
        if case.annotated:
            annotated[case.name] = case.annotated.to_json()
    page.facts(
        {
            "classes": ", ".join(project.classes[1:]),
            "scans": f"{len(project.pool)} for training, {len(project.test)} for testing",
            "annotated slices": annotation_words(annotated),
            "unlabelled": ", ".join(case.name for case in project.unlabelled),
            "test": ", ".join(case.name for case in project.test),
        }
    )
    page.text("The last model again, from the command line in the demo's folder:")
    page.code("\n".join(made.commands))


def _own_limits(methods: Sequence[Scored]) -> list[str]:
    _, low, high = gain(methods)
    sure = "the interval covers cases only"
    if low <= 0 <= high:
        sure = "the interval of the difference includes zero"
    return [
        "The demo trains for minutes with one choice of labelled scans and one seed: it shows "
        f"how the software works, not how good a method is, and {sure}.",
        "All models were trained for the same time in all, what came before or after the training "
        "on the annotated slices included.",
    ]


def _save_figures(folder: Path, project: Project, methods: Sequence[Scored]) -> None:
    panels = list(overlay_panels(project, methods))
    if panels:
        save(overlay_figure(panels, project.classes[1:]), folder / "overlays.png")
    first, last = methods[0], methods[-1]
    save(paired_cases(first.per_case, last.per_case, (first.name, last.name)), folder / "cases.png")
