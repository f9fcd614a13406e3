"""The demo's page: what unlabelled scans brought on this cohort, shown case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
    duration,
    footer,
    limits,
    losses,
)
from MedSSLLib.training.run_folder import Run


def gain(methods: Sequence[Scored]) -> tuple[float, float, float]:
    """Mean paired difference in Dice, last model less first, with its 95 % bootstrap interval over
    cases.
    """
    first, last = methods[0], methods[-1]
    pairs = [(first.per_case.get(case), value) for case, value in last.per_case.items()]
    return bootstrap_interval(
        np.array([np.nan if a is None or b is None else b - a for a, b in pairs])
    )


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
    scored, runs = (
        list(methods.values()),
        {name: project.run_folder(name) for name in ("pretrain", *methods)},
    )
    slices = sum(case.annotated.count for case in project.labelled if case.annotated)
    page = Page(
        "What a few annotated slices can do",
        f"{slices} annotated slices in {len(project.labelled)} of {len(project.pool)} scans; the "
        "others have no label. "
        f"Scored on {len(project.test)} test cases that no model has seen.",
        kicker="MedSSL demo",
    )
    page.cards(_cards(scored, seconds))
    add_results(page, scored)
    add_overlays(page, project, scored)
    _add_training(
        page, {methods[run].name if run in methods else run: place for run, place in runs.items()}
    )
    _add_data(page, project, words)
    page.section("Time")
    page.facts({stage: duration(value) for stage, value in seconds.items()})
    for run, what in (("pretrain", "pre-training"), ("selftrained", "self-training")):
        add_configuration(page, Run(runs[run]).record["config"], f"Configuration of the {what}")
    made = Run(runs["pretrain"]).record
    add_environment(page, made.get("versions", {}), made.get("precision"))
    page.section("Limits")
    page.bullets([*_own_limits(scored), *limits(scored)])
    _save_figures(folder / "figures", project, scored)
    return page.write(folder / "report.html", footer())


def _cards(methods: Sequence[Scored], seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    first, last = methods[0], methods[-1]
    mean, low, high = gain(methods)
    cases = f"mean Dice of {len(last.metrics['cases'])} test cases"
    return [
        *(
            (f"{scored.metrics['summary']['dice']['mean']:.3f}", scored.name, cases)
            for scored in (first, last)
        ),
        (_signed(mean), "difference", f"95 % interval {_signed(low)} to {_signed(high)}"),
        (
            duration(sum(seconds.values())),
            "whole demo",
            f"of it pre-training {duration(seconds['pre-training'])}",
        ),
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _add_training(page: Page, runs: Mapping[str, Path]) -> None:
    """Every run's losses, a figure per kind of training."""
    page.section("Training")
    fine = [name for name in runs if name != "pretrain"][:2]
    kinds = {
        "Pre-training: no label of any scan was read.": ["pretrain"],
        "Fine-tuning on the annotated slices, both for the same time.": fine,
        "Self-training, from the pre-trained model: its own predictions teach it too.": [
            name for name in runs if name not in ("pretrain", *fine)
        ],
    }
    curves = {
        caption: losses({name: runs[name] for name in names}) for caption, names in kinds.items()
    }
    page.figures(*((training_curves(found), caption) for caption, found in curves.items() if found))


def _add_data(page: Page, project: Project, words: str) -> None:
    page.section("Data", words)
    page.facts(
        {
            "classes": ", ".join(project.classes[1:]),
            "scans": f"{len(project.pool)} for training, {len(project.test)} for testing",
            "annotated slices": annotation_words(
                {case.name: case.annotated.to_json() for case in project.labelled if case.annotated}
            ),
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
    sure = (
        "and the interval of the difference includes zero"
        if low <= 0 <= high
        else "and the interval covers cases only"
    )
    return [
        "The demo trains for minutes with one choice of labelled scans and one seed: it shows "
        "how the software works, "
        f"not how good a method is, {sure}.",
        "The last model was trained longer than the first: pre-training and self-training come "
        "on top. See Time.",
    ]


def _save_figures(folder: Path, project: Project, methods: Sequence[Scored]) -> None:
    panels = list(overlay_panels(project, methods))
    if panels:
        save(overlay_figure(panels, project.classes[1:]), folder / "overlays.png")
    first, last = methods[0], methods[-1]
    save(paired_cases(first.per_case, last.per_case, (first.name, last.name)), folder / "cases.png")
