"""HTML reports of a run, and the sections they share with the demo and the benchmark."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from MedSSLLib import __version__
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.events import Events, read_events
from MedSSLLib.core.files import refuse_overwriting
from MedSSLLib.core.words import duration_words
from MedSSLLib.evaluation.scoring import Scored, interval, score_predictions
from MedSSLLib.methods.options import changed_settings, flat_settings, setting_words
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import summary
from MedSSLLib.reporting.diagnostics import (
    add_calibration,
    add_diagnosis,
    add_meta_labels,
    add_pool,
)
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.plots import Curves, training_curves
from MedSSLLib.reporting.results import add_completion, add_overlays, add_results
from MedSSLLib.reporting.rounds import add_rounds

_SILENT = ("preprocess", "predict", "transfer")  # stages without losses
_NOT_METRICS = ("time", "seconds_left", "steps_per_second")
RESEARCH = (
    "Research use only: not a medical device. Every segmentation needs review by a person.",
    "Results hold for cases like those scored here: measure on your own references for other "
    "scanners, protocols, fields of view and diseases.",
)


def write_run_report(  # noqa: PLR0913 - what a report shows
    project: Project,
    run: str,
    out: Path | str,
    *,
    predictions: Path | None = None,
    tolerance_mm: float = 1.0,
    references: Path | None = None,
    events: Events | None = None,
) -> Path:
    """Write the report of a run as one HTML file; returns its path.

    Args:
        project: the project that holds the run.
        run: its name.
        out: the file to write.
        predictions: folder with this run's predictions, to be scored and shown; by default
            ``predictions`` in the run's folder, if it exists.
        tolerance_mm: tolerance of surface Dice.
        references: folder of labels that no training has read, to score the pseudo-labels of
            self-training by.
        events: where progress goes.

    Raises:
        InputError: the run does not exist, its configuration cannot be read, or references fit no
            pseudo-label.
        MedSSLError: some predictions cannot be used; the report is written without them.
    """
    refuse_overwriting([Path(out)], project.files)
    folder = project.run_folder(run)
    facts = summary(folder)
    if facts["config"] is None:
        raise InputError(
            facts["problem"] or "no such run",
            file=folder,
            remedy="See `medssl runs PROJECT` for names",
        )
    if predictions is None and (folder / "predictions").is_dir():
        predictions = folder / "predictions"
    scored = None
    if predictions is not None:
        scored = score_predictions(project, predictions, run, tolerance_mm, events)
    stored, metrics = facts["config"], facts["metrics"] or {}
    settings, data = stored["config"], stored.get("data", {})
    page = Page(f"Run {run}", _lead(settings, data), kicker=f"MedSSL run report · {project.name}")
    page.cards(_cards(project, metrics, scored))
    _add_scores(page, project, folder, settings, scored)
    add_curves(page, {run: folder})
    add_pool(page, folder)
    add_diagnosis(page, folder)
    add_meta_labels(page, data | metrics)
    add_calibration(page, metrics.get("calibration", {}), "held-out labelled cases")
    add_rounds(page, project, folder, metrics.get("rounds", ()), references)
    page.section("The run")
    page.facts(_run_facts(project, facts))
    add_configuration(page, settings)
    add_environment(page, stored.get("versions", {}), stored.get("precision"))
    add_limits(page, limits([scored] if scored else []))
    written = page.write(out, footer())
    if scored and scored.metrics["errors"]:
        raise _written_with_gaps(written, scored.metrics["errors"])
    return written


def _written_with_gaps(report: Path, errors: Mapping[str, str]) -> MedSSLError:
    """What to say of a report that lacks predictions, so that nobody takes it for whole."""
    count = len(errors)
    return MedSSLError(
        f"{report}: written, without {count} prediction{'s' * (count > 1)} that cannot be used: "
        f"{'; '.join(errors.values())}"
    )


def _add_scores(
    page: Page, project: Project, folder: Path, settings: Mapping[str, Any], scored: Scored | None
) -> None:
    """Results of the predictions, or how to get some."""
    if scored is not None:
        add_results(page, [scored])
        add_overlays(page, project, [scored])
    elif settings.get("command") == "complete":
        add_completion(page, project, folder, settings)
    elif settings.get("command") != "pretrain":
        page.section(
            "Results",
            "No predictions were given. Predict test cases, then name the folder with "
            "--predictions.",
        )


def footer() -> str:
    """The last line of a report."""
    now = time.strftime("%d %B %Y, %H:%M")
    return f"Written by MedSSL {__version__} on {now}. One file, no network."


_VERBS = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "selftrain": "Self-training",
    "complete": "Completing one volume",
}


def _lead(settings: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    start = settings.get("init") or "none"
    if settings.get("command") == "selftrain":
        start = settings.get("options", {}).get("start") or start
    origin = "from random weights" if start == "none" else f"from {start}"
    kind = _VERBS.get(settings.get("command", ""), "Training")
    counts = []
    total = 0
    for word in ("labelled", "unlabelled"):
        if count := len(data.get(word, ())):
            counts.append(f"{count} {word}")
            total += count
    on = ""
    if counts:
        on = f" on {' and '.join(counts)} scan{'' if total == 1 else 's'}"
    return f"{kind} ({settings.get('method')}, preset {settings.get('preset')}) {origin}{on}."


def _leaving_out(scored: Scored) -> str:
    missed = scored.metrics["missed"]
    return f"mean over cases, {missed} missed structures left out" if missed else "mean over cases"


def _cards(
    project: Project, metrics: Mapping[str, Any], scored: Scored | None
) -> list[tuple[str, str, str]]:
    """Headline numbers: (value, what it is, note)."""
    cards = [] if scored is None else _score_cards(project, scored)
    if metrics.get("seconds"):
        steps = metrics.get("steps")
        note = f"{'?' if steps is None else steps} steps"
        if "rounds" in metrics:
            note += ", pseudo-labels included"
        elif steps:
            note += f", {steps / metrics['seconds']:.3g} a second"
        cards.append((duration_words(metrics["seconds"]), "training time", note))
    if metrics.get("best") is not None:
        note = f"at step {metrics.get('best_step')}"
        cards.append((_short(metrics["best"]), "best validation Dice", note))
    return cards


def _score_cards(project: Project, scored: Scored) -> list[tuple[str, str, str]]:
    means = {metric: entry["mean"] for metric, entry in scored.metrics["summary"].items()}
    _, low, high = interval(scored.per_case, {case.name: case.patient for case in project.cases})
    tests = {case.name for case in project.test}
    others = len(scored.metrics["cases"].keys() - tests)
    kind = f"{others} of them no test cases: what a model learnt from flatters it"
    tolerance = f"within {scored.metrics['tolerance_mm']:g} mm"
    hausdorff = _short(means["hd95_mm"], 1, " mm")
    return [
        (_short(means["dice"]), "mean Dice", f"95 % interval {low:.3f} to {high:.3f}"),
        (hausdorff, "95 % Hausdorff distance", _leaving_out(scored)),
        (_short(means["surface_dice"]), "surface Dice", tolerance),
        (
            str(len(scored.metrics["cases"])),
            "cases scored",
            kind if others else "test cases, never seen in training",
        ),
    ]


def _short(value: float | None, digits: int = 3, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def add_curves(page: Page, runs: Mapping[str, Path]) -> None:
    """Loss curves of runs (name to run folder), and validation where there was one."""
    curves, scores = losses(runs), losses(runs, validation=True)
    if curves:
        page.section("Training")
        page.figures(
            (training_curves(curves), "Losses by step; the strong line is a running mean.")
        )
    if scores:
        page.figures(
            (training_curves(scores, ylabel="value"), "Validation on held-out labelled cases.")
        )


def losses(runs: Mapping[str, Path], *, validation: bool = False) -> dict[str, Curves]:
    """Loss curves (or validation metrics) of runs, one entry per run and stage.

    ``runs`` is run name to run folder.
    """
    found: dict[str, Curves] = {}
    for name, folder in runs.items():
        for stage, series in training_series(folder / "events.jsonl").items():
            label = name if stage in _VERBS else f"{name}, {stage}"
            curves = series.scores if validation else series.losses
            if curves:
                found[label] = curves
    return found


class StageSeries(NamedTuple):
    """Losses and validation metrics of a stage, each name to ``[(step, value), ...]``."""

    losses: Curves
    scores: Curves


def training_series(events: Path) -> dict[str, StageSeries]:
    """Losses and validation metrics of a run's stages, in order of steps.

    Stages without losses are left out.

    A step that was run again after a resume counts once, with its last value.
    """
    lost: dict[str, dict[str, dict[int, float]]] = {}
    scored: dict[str, dict[str, dict[int, float]]] = {}
    for event in read_events(events) if events.is_file() else ():
        stage, step = str(event.get("stage", "")), event.get("step")
        training = event["event"] == "progress"
        values = event.get("losses") if training else event
        if stage in _SILENT or not isinstance(step, int) or not isinstance(values, dict):
            continue
        series = (lost if training else scored).setdefault(stage, {})
        for name, value in values.items():
            if isinstance(value, float) and name not in _NOT_METRICS:
                series.setdefault(name, {})[step] = value
    found = {}
    for stage, curves in lost.items():
        if curves:
            found[stage] = StageSeries(_in_order(curves), _in_order(scored.get(stage, {})))
    return found


def _in_order(curves: Mapping[str, Mapping[int, float]]) -> Curves:
    return {name: sorted(points.items()) for name, points in curves.items()}


def _run_facts(project: Project, facts: Mapping[str, Any]) -> dict[str, Any]:
    stored = facts["config"]
    plan, data, settings = stored.get("plan", {}), stored.get("data", {}), stored["config"]
    spacing = []
    for step in plan.get("spacing", ()):
        spacing.append("as scanned" if step is None else f"{step:g}")
    started = stored.get("started")
    return {
        "project": project.name,
        "started": time.strftime("%d %B %Y, %H:%M", time.localtime(started)) if started else "",
        "stopped by a guard": (facts["metrics"] or {}).get("stopped"),
        "classes": ", ".join(project.classes[1:]),
        "modality": ", ".join(project.modalities),
        "labelled cases": ", ".join(data.get("labelled", ())),
        "annotated slices": annotation_words(data.get("annotated") or {}),
        "network": f"{plan.get('dim', '?')}D U-Net, {_channels(plan.get('channels', '?'))}",
        "grid, mm (d x h x w)": " x ".join(spacing),
        "patch, voxels": " x ".join(map(str, plan.get("patch", ()))),
        "seed": settings.get("seed"),
    }


def _channels(count: Any) -> str:
    return f"{count} input channel{'' if count == 1 else 's'}"


def annotation_words(annotated: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Annotated slices as text: "case03: k 4, 9, 15"."""
    texts = []
    for case, parts in annotated.items():
        axes = [f"{'ijk'[p['axis']]} {', '.join(map(str, p['indices']))}" for p in parts]
        texts.append(f"{case}: {', '.join(axes)}")
    return "; ".join(texts)


def add_configuration(
    page: Page, settings: Mapping[str, Any], title: str = "Configuration"
) -> None:
    """Every setting, those that differ from the preset first.

    The run's name and labelled cases stand elsewhere.
    """
    changed = changed_settings(settings)
    order = " Settings that differ from it come first." if changed else ""
    page.section(title, f"Preset {settings.get('preset')}.{order}")
    page.facts(changed)
    page.fold("All settings")
    page.facts({key: setting_words(key, value) for key, value in flat_settings(settings)})
    page.unfold()


def add_environment(page: Page, versions: Mapping[str, str], precision: str | None = None) -> None:
    """Versions that made the run, its number format where recorded, and this computer."""
    page.section("Environment")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    trained = {"number format of training": precision} if precision else {}
    page.facts({**versions, **trained, "report written on": system})


def limits(methods: Sequence[Scored]) -> list[str]:
    """What the figures cannot say, from the figures themselves, then what always holds."""
    found = []
    for scored in methods[-1:]:
        count, dice = len(scored.metrics["cases"]), scored.metrics["summary"]["dice"]
        if count < 20:
            found.append(
                f"Only {count} cases were scored: intervals are wide, and rare failures may be "
                "missing."
            )
        if dice["undefined"]:
            found.append(
                f"{dice['undefined']} times a class was absent from prediction and reference: "
                "not counted."
            )
        if errors := scored.metrics["errors"]:
            found.append(f"{len(errors)} cases could not be scored; see the table of cases.")
    return [*found, *RESEARCH]


def add_limits(page: Page, items: Sequence[str]) -> None:
    """The last section."""
    page.section("Limits")
    page.bullets(items)
