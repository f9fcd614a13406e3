"""HTML reports of a run, and the sections they share with the demo and the benchmark."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MedSSLLib import __version__
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import read_events
from MedSSLLib.core.files import refuse_overwriting
from MedSSLLib.evaluation.scoring import Scored, interval, score_predictions
from MedSSLLib.methods.options import configured, own_options
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import summary
from MedSSLLib.reporting.diagnostics import (
    add_calibration,
    add_diagnosis,
    add_meta_labels,
    add_pool,
    add_rounds,
)
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.plots import Curves, training_curves
from MedSSLLib.reporting.results import add_overlays, add_results, duration

_SILENT = ("preprocess", "predict", "transfer")  # stages without losses
_NOT_FIGURES = ("time", "seconds_left", "steps_per_second")
RESEARCH = (
    "Research use only: not a medical device. Every segmentation needs review by a person.",
    "Figures hold for cases like those scored here: measure on your own references for other "
    "scanners, protocols, "
    "fields of view and diseases.",
)


def write_run_report(
    project: Project,
    run: str,
    out: Path | str,
    *,
    predictions: Path | None = None,
    tolerance_mm: float = 1.0,
    references: Path | None = None,
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

    Raises:
        InputError: the run does not exist, its configuration cannot be read, or references fit no
            pseudo-label.
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
    predictions = predictions or (
        folder / "predictions" if (folder / "predictions").is_dir() else None
    )
    scored = (
        None if predictions is None else score_predictions(project, predictions, run, tolerance_mm)
    )
    settings = facts["config"]["config"]
    lead = _lead(settings, facts["config"].get("data", {}))
    page = Page(f"Run {run}", lead, kicker=f"MedSSL run report · {project.name}")
    page.cards(_cards(project, facts, scored))
    if scored is not None:
        add_results(page, [scored])
        add_overlays(page, project, [scored])
    elif settings.get("command") != "pretrain":
        page.section(
            "Results",
            "No predictions were given. Predict test cases, then name the folder with "
            "--predictions.",
        )
    add_curves(page, {run: folder})
    add_pool(page, folder)
    add_diagnosis(page, folder)
    add_meta_labels(page, facts["config"].get("data", {}) | (facts["metrics"] or {}))
    add_calibration(
        page, (facts["metrics"] or {}).get("calibration", {}), "held-out labelled cases"
    )
    add_rounds(page, project, folder, (facts["metrics"] or {}).get("rounds", ()), references)
    page.section("The run")
    page.facts(_run_facts(project, facts))
    add_configuration(page, settings)
    add_environment(page, facts["config"].get("versions", {}), facts["config"].get("precision"))
    add_limits(page, limits([scored] if scored else []))
    return page.write(out, footer())


def footer() -> str:
    """The last line of a report."""
    now = time.strftime("%d %B %Y, %H:%M")
    return f"Written by MedSSL {__version__} on {now}. One file, no network."


def _lead(settings: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    options = settings.get("options", {}) if settings.get("command") == "selftrain" else {}
    start = options.get("start") or settings.get("init") or "none"
    origin = "from random weights" if start == "none" else f"from {start}"
    verb = {
        "pretrain": "Pre-training",
        "finetune": "Fine-tuning",
        "selftrain": "Self-training",
        "complete": "Completing one volume",
    }
    kind = verb.get(settings.get("command", ""), "Training")
    counts = {word: len(data.get(word, ())) for word in ("labelled", "unlabelled")}
    scans = " and ".join(f"{count} {word}" for word, count in counts.items() if count)
    on = f" on {scans} scan{'' if sum(counts.values()) == 1 else 's'}" if scans else ""
    return f"{kind} ({settings.get('method')}, preset {settings.get('preset')}) {origin}{on}."


def _leaving_out(scored: Scored) -> str:
    missed = scored.metrics["missed"]
    return f"mean over cases, {missed} missed structures left out" if missed else "mean over cases"


def _cards(
    project: Project, facts: Mapping[str, Any], scored: Scored | None
) -> list[tuple[str, str, str]]:
    cards = []
    if scored is not None:
        summaries = scored.metrics["summary"]
        _, low, high = interval(
            scored.per_case, {case.name: case.patient for case in project.cases}
        )
        cards.append(
            (
                _short(summaries["dice"]["mean"]),
                "mean Dice",
                f"95 % interval {low:.3f} to {high:.3f}",
            )
        )
        cards.append(
            (
                _short(summaries["hd95_mm"]["mean"], 1, " mm"),
                "95 % Hausdorff distance",
                _leaving_out(scored),
            )
        )
        tolerance = f"within {scored.metrics['tolerance_mm']:g} mm"
        cards.append((_short(summaries["surface_dice"]["mean"]), "surface Dice", tolerance))
        unseen = {case.name for case in project.test} >= set(scored.metrics["cases"])
        kind = "test cases, never seen in training" if unseen else "some were seen in training"
        cards.append((str(len(scored.metrics["cases"])), "cases scored", kind))
    metrics = facts["metrics"] or {}
    if metrics.get("seconds"):
        steps = metrics.get("steps")
        rate = f", {steps / metrics['seconds']:.3g} a second" if steps else ""
        rate = ", pseudo-labels included" if "rounds" in metrics else rate
        cards.append(
            (
                duration(metrics["seconds"]),
                "training time",
                f"{'?' if steps is None else steps} steps{rate}",
            )
        )
    if metrics.get("best") is not None:
        cards.append(
            (_short(metrics["best"]), "best validation Dice", f"at step {metrics.get('best_step')}")
        )
    return cards


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
    """Loss curves (or validation figures) of runs (name to run folder), one entry per run and
    stage.
    """
    found: dict[str, Curves] = {}
    for name, folder in runs.items():
        for stage, series in training_series(folder / "events.jsonl").items():
            label = (
                name
                if stage in ("pretrain", "finetune", "selftrain", "complete")
                else f"{name}, {stage}"
            )
            found |= {label: series[validation]} if series[validation] else {}
    return found


def training_series(events: Path) -> dict[str, tuple[Curves, Curves]]:
    """Per stage of a run: losses and validation figures, each name to ``[(step, value), ...]``.

    A step that was run again after a resume counts once, with its last value.
    """
    found: dict[str, tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]] = {}
    for event in read_events(events) if events.is_file() else ():
        stage, step = str(event.get("stage", "")), event.get("step")
        values = event.get("losses") if event["event"] == "progress" else event
        if stage in _SILENT or not isinstance(step, int) or not isinstance(values, dict):
            continue
        series = found.setdefault(stage, ({}, {}))[0 if event["event"] == "progress" else 1]
        for name, value in values.items():
            if isinstance(value, float) and name not in _NOT_FIGURES:
                series.setdefault(name, {})[step] = value
    return {
        stage: (
            {n: sorted(p.items()) for n, p in loss.items()},
            {n: sorted(p.items()) for n, p in score.items()},
        )
        for stage, (loss, score) in found.items()
        if loss
    }


def _run_facts(project: Project, facts: Mapping[str, Any]) -> dict[str, Any]:
    stored = facts["config"]
    plan, data, settings = stored.get("plan", {}), stored.get("data", {}), stored["config"]
    stopped = (facts["metrics"] or {}).get("stopped")
    spacing = " x ".join(
        "as scanned" if step is None else f"{step:g}" for step in plan.get("spacing", ())
    )
    started = stored.get("started")
    return {
        "project": project.name,
        "started": time.strftime("%d %B %Y, %H:%M", time.localtime(started)) if started else "",
        **({"stopped by a guard": stopped} if stopped else {}),
        "classes": ", ".join(project.classes[1:]),
        "modality": ", ".join(project.modalities),
        "labelled cases": ", ".join(data.get("labelled", ())),
        "annotated slices": annotation_words(data.get("annotated") or {}),
        "network": f"{plan.get('dim', '?')}D U-Net, {_channels(plan.get('channels', '?'))}",
        "grid, mm (d x h x w)": spacing,
        "patch, voxels": " x ".join(map(str, plan.get("patch", ()))),
        "seed": settings.get("seed"),
    }


def _channels(count: Any) -> str:
    return f"{count} input channel{'' if count == 1 else 's'}"


def annotation_words(annotated: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Annotated slices as text: "case03: k 4, 9, 15"."""
    return "; ".join(
        f"{case}: "
        + ", ".join(
            f"{'ijk'[part['axis']]} {', '.join(map(str, part['indices']))}" for part in parts
        )
        for case, parts in annotated.items()
    )


def add_configuration(
    page: Page, settings: Mapping[str, Any], title: str = "Configuration"
) -> None:
    """Every setting, those that differ from the preset first; the run's name and labelled cases
    stand elsewhere.
    """
    command, preset, method = (settings.get(key) for key in ("command", "preset", "method"))
    usual = configured(command, preset=preset, method=method)  # type: ignore[arg-type]
    own = own_options(usual.command, usual.method, usual.options)
    default = dict(
        _flat(
            usual.model_dump(mode="json")
            | ({"options": own.model_dump(mode="json")} if own else {})
        )
    )
    rows = [
        (
            key,
            "null" if value is None and key.startswith("options.") else _setting(value),
            str(default.get(key)) != str(value),
        )
        for key, value in _flat(settings)
    ]
    changed = {
        key: words for key, words, differs in rows if differs and key not in ("name", "labelled")
    }
    order = " Settings that differ from it come first." if any(changed.values()) else ""
    page.section(title, f"Preset {preset}.{order}")
    page.facts(changed)
    page.fold("All settings")
    page.facts({key: words for key, words, _ in rows})
    page.unfold()


def _setting(value: Any) -> str:
    """A value as ``--set`` takes it; a list of names as ``--labelled`` and ``--meta`` do."""
    if isinstance(value, str):
        return value
    if value and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else [(f"{prefix}{key}", value)]
        )
    return rows


def add_environment(page: Page, versions: Mapping[str, str], precision: str | None = None) -> None:
    """Versions that made the run, the number format it was trained in where one is recorded, and
    this computer.
    """
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
        if scored.metrics["errors"]:
            found.append(
                f"{len(scored.metrics['errors'])} cases could not be scored; see the table of "
                "cases."
            )
    return [*found, *RESEARCH]


def add_limits(page: Page, items: Sequence[str]) -> None:
    """The last section."""
    page.section("Limits")
    page.bullets(items)
