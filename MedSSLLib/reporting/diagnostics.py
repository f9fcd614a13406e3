"""What a run's own metrics say: agreement of views, conflicts, pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from MedSSLLib.core.events import read_events
from MedSSLLib.evaluation.calibration import helpful_temperature
from MedSSLLib.inference.embedding_map import MAP_FILE, read_map
from MedSSLLib.reporting.html import Cell, Page
from MedSSLLib.reporting.plots import (
    NEUTRAL,
    PALETTE,
    Curves,
    legend_above,
    reliability_diagram,
    running_mean,
    styled,
    training_curves,
)

CONFLICT_COLOURS = {
    "non_conflicting": PALETTE[0],
    "slightly_conflicting": PALETTE[4],
    "conflicting": PALETTE[1],
}
"""Kinds of gradient pairs (GCL Fig. 3) and their colours."""
ALONE = {
    "retrieval": "Fraction of views whose nearest view is the other one of the same image.",
    "explained": "Fraction of the clean views' variance that the restored ones explain.",
    "shared": "Fraction of the places that both views show, so that they could be compared. Where "
    "it is low, a larger options.min_overlap, a larger training.voxels or a finer level teaches "
    "more in the same time.",
    "ema_momentum": "Momentum of the moving average that is predicted; it rises to 1.",
}  # a method's metrics that are drawn by themselves, with what they mean
CYCLE = colormaps["hsv"]  # for labels of many classes, such as patients


def diagnostics(events: Path) -> dict[str, list[tuple[float, float]]]:
    """Metrics of a run's progress events beside the losses, ordered by step.

    Name to ``[(step, value), ...]``.

    A step that was run again after a resume counts once, with its last value.
    """
    found: dict[str, dict[float, float]] = {}
    for event in read_events(events) if events.is_file() else ():
        values, step = event.get("figures"), event.get("step")
        if event["event"] != "progress" or not isinstance(values, dict):
            continue
        for name, value in values.items():
            if isinstance(value, float) and isinstance(step, int):
                found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def add_pool(page: Page, folder: Path) -> None:
    """The number of positives of an anchor pixel where GradFilter lets it grow."""
    pool = diagnostics(folder / "events.jsonl").get("pool", [])
    sizes = {value for _, value in pool}
    if len(sizes) > 1:
        most = max(sizes)
        caption = (
            "Positives of an anchor pixel, which GradFilter lets grow. The k positives share one "
            f"softmax, so the pixel loss cannot fall below ln k (ln {most:g} = "
            f"{math.log(most):.2f}), and those added later are harder: losses that jump where the "
            "pool grows do not diverge."
        )
        page.figures((pool_curve(pool), caption))


def add_meta_labels(page: Page, facts: Mapping[str, Any]) -> None:
    """Table of a run's meta labels: classes, and how many samples have a positive.

    Or why one is not used.
    """
    used, dropped = facts.get("meta") or {}, facts.get("dropped") or {}
    if not used and not dropped:
        return
    anywhere = facts.get("anchors_with_positive") or {}
    elsewhere = facts.get("anchors_with_positive_in_another_patient") or {}
    rows: list[list[Cell | str]] = []
    for name, count in used.items():
        found = (_percent(anywhere.get(name)), _percent(elsewhere.get(name)))
        rows.append([name, Cell(str(count), number=True), *found, "used"])
    for name, why in dropped.items():
        rows.append([name, _percent(None), _percent(None), _percent(None), f"not used: {why}"])
    page.section(
        "Meta labels",
        "A positive is another sample of the batch with the same class, counted in the first "
        "batch. Where few samples have one, the label teaches little more than the two views of "
        "a sample do; where few have one in another patient, little more than the patient does.",
    )
    page.table(("meta label", "classes", "with a positive", "in another patient", "use"), rows)


def _percent(fraction: float | None) -> Cell:
    return Cell("–" if fraction is None else f"{fraction:.0%}", number=True)


def add_diagnosis(page: Page, folder: Path) -> None:
    """Plots of pre-training: views against each other, meta labels, their gradients.

    Only those that the run has.
    """
    series = diagnostics(folder / "events.jsonl")
    drawn = [*_view_plots(series), *_gradient_plots(series)]
    if (folder / MAP_FILE).exists():
        content = read_map(folder / MAP_FILE)
        caption = (
            "Slices by the first two principal components of their deepest features, "
            "coloured by each meta label."
        )
        drawn.append((embedding_map(content), caption))
    if drawn:
        page.section("What was learnt")
        page.figures(*drawn)


def _view_plots(series: Mapping[str, Any]) -> list[tuple[Figure, str]]:
    """How well views agree, and whether the features spread."""
    drawn = []
    if "cosine" in series:
        curves = {"same place": series["cosine"], "other place": series["cosine_mismatched"]}
        caption = (
            "Cosine of the same place in two views, against that of mismatched places: "
            "far apart is good."
        )
        drawn.append((together(curves), caption))
    if "feature_std" in series:
        spread = {"features": {"standard deviation": series["feature_std"]}}
        caption = "Spread of the features: near 0 they have collapsed."
        drawn.append((training_curves(spread, ylabel="value"), caption))
    for name, caption in ALONE.items():
        if name in series:
            drawn.append((together({name.replace("_", " "): series[name]}), caption))
    if found := _under("retrieval/", series):
        caption = "Fraction of slices whose nearest slice has the same label."
        drawn.append((together(found, bounds=(0, 1.02)), caption))
    return drawn


def _gradient_plots(series: Mapping[str, Any]) -> list[tuple[Figure, str]]:
    """Whether the meta labels of GCL pull the encoder the same way."""
    found = _under("gradient/", series)
    if not found:
        return []
    cosines = {**_under("cosine/", found), "mean target": found.get("target_cosine", [])}
    return [
        (conflict_plot(found), "Pairs of meta-label gradients, over encoder tensors (GCL Fig. 3)."),
        (together(cosines), "Cosines of meta-label gradients, and GradMitigator's target."),
    ]


@styled
def embedding_map(content: Mapping[str, Any]) -> Figure:
    """Slices as dots, a panel a meta label; missing labels in grey.

    See :mod:`MedSSLLib.inference.embedding_map`.
    """
    points, labels = np.asarray(content["points"], float).reshape(-1, 2), content["labels"]
    named = [0]
    for label in labels.values():
        if len(label["classes"]) <= len(PALETTE):
            named.append(len(label["classes"]))
    height = 3.1 + 0.2 * math.ceil(max(named) / 2)
    figure = Figure(figsize=(3.1 * max(1, len(labels)), height))
    for number, (name, label) in enumerate(labels.items()):
        axes = figure.add_subplot(1, len(labels), number + 1)
        _draw_classes(axes, points, np.asarray(label["values"]), label["classes"])
        axes.set(title=name, xticks=[], yticks=[])
        axes.set_xlabel("first component ({:.0%})".format(content["explained"][0]))
        if number == 0:
            axes.set_ylabel("second ({:.0%})".format(content["explained"][1]))
    return figure


def _draw_classes(
    axes: Axes, points: np.ndarray, values: np.ndarray, classes: Sequence[str]
) -> None:
    """Dots ``[n, 2]`` in the colours of their classes ``[n]``; a legend where classes are few."""
    few = len(classes) <= len(PALETTE)
    for value in np.unique(values):
        colour, text = NEUTRAL, None
        if value >= 0 and few:
            colour, text = PALETTE[value], classes[value]
        elif value >= 0:
            colour = CYCLE(value / len(classes))
        axes.plot(
            *points[values == value].T, "o", markersize=3, alpha=0.7, color=colour, label=text
        )
    if few:
        axes.legend(
            fontsize="small",
            markerscale=1.2,
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
        )


def _under(prefix: str, series: Mapping[str, Any]) -> dict[str, Any]:
    """The series whose names begin with a prefix, without it."""
    found = {}
    for name, points in series.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = points
    return found


@styled
def together(curves: Curves, *, bounds: tuple[float, float] | None = None) -> Figure:
    """Several quantities of one unit in one panel; the strong line is a running mean."""
    figure = Figure(figsize=(4.4, 2.8))
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        if points:
            steps, values = np.asarray(points, float).T
            smooth = running_mean(values, max(3, len(values) // 20))
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.9)
            axes.plot(steps, smooth, color=colour, label=name)
    axes.set(xlabel="step", ylim=bounds)
    legend_above(figure)
    return figure


@styled
def pool_curve(points: Sequence[tuple[float, float]]) -> Figure:
    """Number of positives of an anchor pixel over the steps, in stairs."""
    figure = Figure(figsize=(4.4, 1.9))
    axes = figure.add_subplot()
    steps, values = np.asarray(points, float).T
    axes.step(steps, values, where="post", color=PALETTE[0])
    axes.set(xlabel="step", ylabel="positives, k", ylim=(0, values.max() + 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def conflict_plot(gradients: Curves) -> Figure:
    """Non-conflicting, slightly conflicting and conflicting pairs of gradients over the steps.

    The fractions of all pairs, stacked.
    """
    figure = Figure(figsize=(4.4, 2.8))
    axes = figure.add_subplot()
    steps = np.asarray(gradients["conflicting"], float).T[0]
    window = max(3, len(steps) // 20)
    smooth = []
    for kind in CONFLICT_COLOURS:
        fractions = np.asarray(gradients[kind], float).T[1]
        smooth.append(running_mean(fractions, window))
    axes.stackplot(
        steps,
        np.stack(smooth),
        colors=list(CONFLICT_COLOURS.values()),
        alpha=0.8,
        labels=[kind.replace("_", " ") for kind in CONFLICT_COLOURS],
    )
    axes.axhline(0, color=NEUTRAL, linewidth=0.6)
    axes.set(xlabel="step", ylabel="fraction of pairs", ylim=(0, 1))
    legend_above(figure)
    return figure


def add_calibration(page: Page, calibration: Mapping[str, Any], where: str) -> None:
    """Reliability of the probabilities of some cases (see :mod:`MedSSLLib.evaluation.calibration`);
    nothing where unmeasured.
    """
    if "bins" not in calibration:
        return
    page.section(
        "Calibration",
        f"Do the probabilities mean what they say? Measured on {calibration['cases']} {where}.",
    )
    page.figures(
        (
            reliability_diagram(calibration["bins"], calibration["ece"]),
            "Fraction of voxels that are right, by confidence; on the dashed line both agree.",
        )
    )
    rows = {
        "error, all voxels": calibration["ece"],
        "error, voxels near structures": calibration["ece_foreground"],
    }
    if calibration.get("ece_foreground_scaled") is not None:
        rows |= {
            "the same after temperature scaling": calibration["ece_foreground_scaled"],
            "temperature used": helpful_temperature(calibration),
        }
    page.facts({name: f"{value:.3f}" for name, value in rows.items()})
