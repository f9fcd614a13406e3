"""The demo's page: what unlabelled scans brought on this cohort, shown case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def write_demo_report(
    folder: Path,
    project: Project,
    methods: Mapping[str, Scored],
    words: str,
    seconds: Mapping[str, float],
) -> Path:
    """Write ``report.html`` and the figures as PNG into the demo's folder; returns the page's path.

    Args:
        folder: where to write.
        project: the demo's project.
        methods: run name to its scores, random weights first, the best that was done last.
        words: what the scans are.
        seconds: how long each stage took.
    """
    scored = list(methods.values())
    runs = {run: project.run_folder(run) for run in ("pretrain", *methods)}
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
    _add_training(page, runs, {run: of.name for run, of in methods.items()})
    _add_data(page, project, words)
    page.section("Time")
    page.facts({stage: duration_words(value) for stage, value in seconds.items()})
    for run, what in (("pretrain", "pre-training"), ("selftrained", "self-training")):
        add_configuration(
            page, RunFolder(runs[run]).record["config"], f"Configuration of the {what}"
        )
    made = RunFolder(runs["pretrain"]).record
    add_environment(page, made.get("versions", {}), made.get("precision"))
    page.section("Limits")
    page.bullets([*_own_limits(scored), *limits(scored)])
    _save_figures(folder / "figures", project, scored)
    return page.write(folder / "report.html", footer())


def _cards(methods: Sequence[Scored], seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Headline numbers: (value, what it is, note)."""
    mean, low, high = gain(methods)
    before = f"of it pre-training {duration_words(seconds['pre-training'])}"
    cards = []
    for scored in (methods[0], methods[-1]):
        dice = scored.metrics["summary"]["dice"]["mean"]
        cases = f"mean Dice of {len(scored.metrics['cases'])} test cases"
        cards.append((f"{dice:.3f}", scored.name, cases))
    interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    cards.append((_signed(mean), "difference", interval))
    cards.append((duration_words(sum(seconds.values())), "whole demo", before))
    return cards


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _add_training(page: Page, runs: Mapping[str, Path], names: Mapping[str, str]) -> None:
    """Every run's losses, a figure per kind of training."""
    page.section("Training")
    first, second, *rest = names
    kinds = {
        "Pre-training: no label of any scan was read.": ["pretrain"],
        "Fine-tuning on the annotated slices, both for the same time.": [first, second],
        "Self-training, from the pre-trained model: its own predictions teach it too.": rest,
    }
    drawn = []
    for caption, some in kinds.items():
        if curves := losses({names.get(run, run): runs[run] for run in some}):
            drawn.append((training_curves(curves), caption))
    page.figures(*drawn)


def _add_data(page: Page, project: Project, words: str) -> None:
    page.section("Data", words)
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
    page.text("The same from the command line, with --minutes or --steps to taste:")
    page.code(
        f"medssl pretrain {project.name} --method pgl --name pretrain\n"
        f"medssl finetune {project.name} --init pretrain --name pretrained\n"
        f"medssl selftrain {project.name} --from pretrained --rounds 1 --name selftrained\n"
        f"medssl predict {project.name} --run selftrained --out segmentations\n"
        "medssl evaluate --predictions segmentations --references LABELS --out metrics.json"
    )


def _own_limits(methods: Sequence[Scored]) -> list[str]:
    _, low, high = gain(methods)
    sure = "the interval covers cases only"
    if low <= 0 <= high:
        sure = "the interval of the difference includes zero"
    return [
        "The demo trains for minutes with one choice of labelled scans and one seed: it shows "
        f"how the software works, not how good a method is, and {sure}.",
        "The last model was trained longer than the first: pre-training and self-training come "
        "on top. See Time.",
    ]


def _save_figures(folder: Path, project: Project, methods: Sequence[Scored]) -> None:
    panels = list(overlay_panels(project, methods))
    if panels:
        save(overlay_figure(panels, project.classes[1:]), folder / "overlays.png")
    first, last = methods[0], methods[-1]
    save(paired_cases(first.per_case, last.per_case, (first.name, last.name)), folder / "cases.png")
