"""The demo's page: what pre-training brought on this cohort, shown case by case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from MedSSLLib.evaluate import bootstrap_interval
from MedSSLLib.figures import paired_cases, save, training_curves
from MedSSLLib.htmlpage import Page
from MedSSLLib.overlays import overlay_figure
from MedSSLLib.project import Project
from MedSSLLib.report import (
    add_configuration,
    add_environment,
    annotation_words,
    duration,
    footer,
    limits,
    losses,
)
from MedSSLLib.results import Scored, add_overlays, add_results, overlay_panels
from MedSSLLib.runfolder import read_run


def gain(methods: tuple[Scored, Scored]) -> tuple[float, float, float]:
    """Mean paired difference in Dice, second less first, with its 95 % bootstrap interval over cases."""
    first, second = methods
    pairs = [(first.per_case[case], value) for case, value in second.per_case.items() if case in first.per_case]
    return bootstrap_interval(np.array([np.nan if None in pair else pair[1] - pair[0] for pair in pairs]))  # type: ignore[operator]


def write_demo_report(
    folder: Path, project: Project, methods: tuple[Scored, Scored], words: str, seconds: Mapping[str, float]
) -> Path:
    """Write ``report.html`` and the figures as PNG into the demo's folder; returns the page's path."""
    runs = {
        name: project.run_folder(run) for name, run in (("random weights", "scratch"), ("pre-trained", "pretrained"))
    }
    pretraining = project.run_folder("pretrain")
    slices = sum(case.annotated.count for case in project.labelled if case.annotated)
    page = Page(
        "What a few annotated slices can do",
        f"{slices} annotated slices in {len(project.labelled)} of {len(project.pool)} scans. One model starts from "
        "random weights, the other from an encoder that has seen all the scans without labels. Same network, same "
        f"slices, same training time; scored on {len(project.test)} test cases that neither has seen.",
        kicker="MedSSL demo",
    )
    page.cards(_cards(methods, seconds))
    add_results(page, methods)
    add_overlays(page, project, methods)
    _add_training(page, pretraining, runs)
    _add_data(page, project, words)
    add_configuration(page, read_run(runs["pre-trained"])["config"], "Configuration of the fine-tuning")
    add_environment(page, read_run(pretraining).get("versions", {}))
    page.section("Limits")
    page.bullets([*_own_limits(methods), *limits(methods)])
    _save_figures(folder / "figures", project, methods)
    return page.write(folder / "report.html", footer())


def _cards(methods: tuple[Scored, Scored], seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    means = [scored.metrics["summary"]["dice"]["mean"] for scored in methods]
    mean, low, high = gain(methods)
    return [
        *(
            (f"{value:.3f}", f"Dice, {scored.name}", f"{len(scored.metrics['cases'])} test cases")
            for value, scored in zip(means, methods, strict=True)
        ),
        (f"{mean:+.3f}", "gain from pre-training", f"95 % interval {low:+.3f} to {high:+.3f}"),
        (duration(sum(seconds.values())), "whole demo", f"pre-training {duration(seconds['pre-training'])}"),
    ]


def _add_training(page: Page, pretraining: Path, runs: Mapping[str, Path]) -> None:
    page.section("Training")
    before = losses({"pre-training": pretraining})
    after = losses(runs)
    page.figures(
        (training_curves(before), "Pre-training: no label of any scan was read."),
        (training_curves(after), "Fine-tuning on the annotated slices; the strong line is a running mean."),
    )


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
        f"medssl predict  {project.name} --run pretrained --out segmentations\n"
        "medssl evaluate --predictions segmentations --references LABELS --out metrics.json"
    )


def _own_limits(methods: tuple[Scored, Scored]) -> list[str]:
    _, low, high = gain(methods)
    sure = "the interval of the gain includes zero" if low <= 0 <= high else "the interval covers cases only"
    return [
        "The demo trains for minutes with one choice of labelled scans and one seed: it shows how the software works, "
        f'not how good a method is ({sure}). "medssl benchmark labels" measures that.',
    ]


def _save_figures(folder: Path, project: Project, methods: tuple[Scored, Scored]) -> None:
    panels = list(overlay_panels(project, methods))
    if panels:
        save(overlay_figure(panels, project.classes[1:]), folder / "overlays.png")
    first, second = methods
    save(paired_cases(first.per_case, second.per_case, (first.name, second.name)), folder / "cases.png")
