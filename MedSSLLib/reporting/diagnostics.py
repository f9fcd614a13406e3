"""What a run's own figures say: agreement of views, conflict of meta labels, pseudo-labels over
rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.events import read_events
from MedSSLLib.evaluation.calibration import helpful_temperature
from MedSSLLib.evaluation.scoring import dice_against
from MedSSLLib.images import io
from MedSSLLib.inference.embedding_map import MAP_FILE, read_map
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Cell, Page
from MedSSLLib.reporting.overlays import Panel, make_panel, overlay_figure
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

SHARES = {
    "non_conflicting": PALETTE[0],
    "slightly_conflicting": PALETTE[4],
    "conflicting": PALETTE[1],
}
"""Kinds of gradient pairs (GCL Fig. 3) and their colours."""
ALONE = {
    "retrieval": "Share of views whose nearest view is the other one of the same image.",
    "explained": "Share of the clean views' variance that the restored ones explain.",
    "shared": "Share of the places that both views show, so that they could be compared. Where "
    "it is low, a larger "
    "options.min_overlap, a larger training.voxels or a finer level teaches more in the same time.",
    "ema_momentum": "Momentum of the moving average that is predicted; it rises to 1.",
}  # a method's figures that are drawn by themselves, with what they mean
CASES_SHOWN = 3
CYCLE = colormaps["hsv"]  # for labels of many classes, such as patients


def diagnostics(events: Path) -> dict[str, list[tuple[float, float]]]:
    """Figures of a run's progress events beside the losses, name to ``[(step, value), ...]``,
    ordered by step.

    A step that was run again after a resume counts once, with its last value.
    """
    found: dict[str, dict[float, float]] = {}
    for event in read_events(events) if events.is_file() else ():
        values, step = event.get("figures"), event.get("step")
        if (
            event["event"] != "progress"
            or not isinstance(values, dict)
            or not isinstance(step, int)
        ):
            continue
        for name, value in values.items():
            if isinstance(value, float):
                found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def add_pool(page: Page, folder: Path) -> None:
    """Beside the losses, the number of positives of an anchor pixel where GradFilter lets it
    grow.
    """
    pool = diagnostics(folder / "events.jsonl").get("pool", [])
    if len({value for _, value in pool}) > 1:
        most = max(value for _, value in pool)
        caption = (
            "Positives of an anchor pixel, which GradFilter lets grow. The k positives share one "
            "softmax, so the pixel "
            f"loss cannot fall below ln k (ln {most:g} = {math.log(most):.2f}), and those added "
            "later are harder: "
            "losses that jump where the pool grows do not diverge."
        )
        page.figures((pool_size(pool), caption))


def add_meta_labels(page: Page, facts: Mapping[str, Any]) -> None:
    """Table of the meta labels of a run: classes and shares of samples with a positive, or why one
    is not used.
    """
    used, dropped = (facts.get(key) or {} for key in ("meta", "dropped"))
    if not used and not dropped:
        return
    shares = [
        facts.get(key) or {}
        for key in ("anchors_with_positive", "anchors_with_positive_in_another_patient")
    ]
    rows = [
        [
            name,
            Cell(str(count), number=True),
            *(
                Cell(f"{share[name]:.0%}" if name in share else "–", number=True)
                for share in shares
            ),
            "used",
        ]
        for name, count in used.items()
    ]
    rows += [
        [name, *(Cell("–", number=True) for _ in range(3)), f"not used: {why}"]
        for name, why in dropped.items()
    ]
    page.section(
        "Meta labels",
        "A positive is another sample of the batch with the same class, counted in the first "
        "batch. Where few samples have one, the label teaches little more than the two views of "
        "a sample do; "
        "where few have one in another patient, little more than the patient does.",
    )
    page.table(("meta label", "classes", "with a positive", "in another patient", "use"), rows)


def add_diagnosis(page: Page, folder: Path) -> None:
    """Figures of pre-training where the run has them: views against each other, meta labels, their
    gradients.
    """
    series = diagnostics(folder / "events.jsonl")
    drawn = []
    if "cosine" in series:
        caption = (
            "Cosine of the same place in two views, against that of mismatched places: "
            "far apart is good."
        )
        drawn.append(
            (
                together(
                    {"same place": series["cosine"], "other place": series["cosine_mismatched"]}
                ),
                caption,
            )
        )
    if "feature_std" in series:
        spread = {"features": {"standard deviation": series["feature_std"]}}
        drawn.append(
            (
                training_curves(spread, ylabel="value"),
                "Spread of the features: near 0 they have collapsed.",
            )
        )
    alone = {name: text for name, text in ALONE.items() if name in series}
    drawn += [
        (together({name.replace("_", " "): series[name]}), text) for name, text in alone.items()
    ]
    if found := _under("retrieval/", series):
        drawn.append(
            (
                together(found, bounds=(0, 1.02)),
                "Share of slices whose nearest slice has the same label.",
            )
        )
    if found := _under("gradient/", series):
        drawn.append(
            (
                conflict_shares(found),
                "Pairs of meta-label gradients, over encoder tensors (GCL Fig. 3).",
            )
        )
        cosines = {**_under("cosine/", found), "mean target": found.get("target_cosine", [])}
        drawn.append(
            (together(cosines), "Cosines of meta-label gradients, and GradMitigator's target.")
        )
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


@styled
def embedding_map(content: Mapping[str, Any]) -> Figure:
    """Slices as dots, a panel a meta label (see :mod:`MedSSLLib.inference.embedding_map`); missing
    labels in grey.
    """
    points, labels = np.asarray(content["points"], float).reshape(-1, 2), content["labels"]
    named = [
        len(label["classes"]) for label in labels.values() if len(label["classes"]) <= len(PALETTE)
    ]
    figure = Figure(
        figsize=(3.1 * max(1, len(labels)), 3.1 + 0.2 * math.ceil(max(named, default=0) / 2))
    )
    for number, (name, label) in enumerate(labels.items()):
        axes = figure.add_subplot(1, len(labels), number + 1)
        values, classes = np.asarray(label["values"]), label["classes"]
        few = len(classes) <= len(PALETTE)
        colours = PALETTE if few else [CYCLE(n / len(classes)) for n in range(len(classes))]
        for value in np.unique(values):
            colour, text = (
                (colours[value], classes[value] if few else None) if value >= 0 else (NEUTRAL, None)
            )
            axes.plot(
                *points[values == value].T, "o", markersize=3, alpha=0.7, color=colour, label=text
            )
        axes.set(title=name, xticks=[], yticks=[])
        axes.set_xlabel("first component ({:.0%})".format(content["explained"][0]))
        axes.set_ylabel("second ({:.0%})".format(content["explained"][1]) if number == 0 else "")
        if few:
            axes.legend(
                fontsize="small",
                markerscale=1.2,
                ncols=2,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.12),
            )
    return figure


def _under(prefix: str, series: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): points
        for name, points in series.items()
        if name.startswith(prefix)
    }


@styled
def together(curves: Curves, *, bounds: tuple[float, float] | None = None) -> Figure:
    """Several quantities of one unit in one panel; the strong line is a running mean."""
    figure = Figure(figsize=(4.4, 2.8))
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        if points:
            steps, values = np.asarray(points, float).T
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.9)
            axes.plot(
                steps, running_mean(values, max(3, len(values) // 20)), color=colour, label=name
            )
    axes.set(xlabel="step", ylim=bounds)
    legend_above(figure)
    return figure


@styled
def pool_size(points: Sequence[tuple[float, float]]) -> Figure:
    """Number of positives of an anchor pixel over the steps, in stairs."""
    figure = Figure(figsize=(4.4, 1.9))
    axes = figure.add_subplot()
    steps, values = np.asarray(points, float).T
    axes.step(steps, values, where="post", color=PALETTE[0])
    axes.set(xlabel="step", ylabel="positives, k", ylim=(0, values.max() + 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def conflict_shares(gradients: Curves) -> Figure:
    """Shares of non-conflicting, slightly conflicting and conflicting pairs of gradients, stacked,
    over the steps.
    """
    figure = Figure(figsize=(4.4, 2.8))
    axes = figure.add_subplot()
    steps = np.asarray(gradients["conflicting"], float).T[0]
    shares = np.asarray([[value for _, value in gradients[name]] for name in SHARES])
    smooth = np.stack([running_mean(share, max(3, len(steps) // 20)) for share in shares])
    axes.stackplot(
        steps,
        smooth,
        colors=list(SHARES.values()),
        alpha=0.8,
        labels=[name.replace("_", " ") for name in SHARES],
    )
    axes.axhline(0, color=NEUTRAL, linewidth=0.6)
    axes.set(xlabel="step", ylabel="share of pairs", ylim=(0, 1))
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
            "Share of voxels that are right, by confidence; on the dashed line both agree.",
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


def add_rounds(
    page: Page,
    project: Project,
    folder: Path,
    rounds: Sequence[Mapping[str, Any]],
    references: Path | None = None,
) -> None:
    """Self-training round by round: a table, then the pseudo-labels of the least and most certain
    cases.

    Args:
        page: the page to add to.
        project: the project that holds the run.
        folder: the run's folder.
        rounds: the run's figures of every round.
        references: labels that no training has read, to score the pseudo-labels by.

    Raises:
        InputError: references are given, but there are no pseudo-labels, or none of them has a
            reference.
    """
    if not rounds:
        if references is not None:
            raise InputError(
                "the run has no pseudo-labels to score",
                file=folder,
                remedy="Leave out --references",
            )
        return
    page.section(
        "Rounds",
        "What the model thought of the unlabelled scans before each round, and what followed.",
    )
    head = (
        "round",
        "pseudo-labelled",
        "used",
        "confidence",
        *(f"{name}, voxels" for name in project.classes[1:]),
        "separation",
        "validation Dice",
    )
    table = [_round_row(project, row) for row in rounds]
    if references is not None:
        head = (*head, "pseudo-label Dice (cases)")
        table = [
            [*row, _pseudo_dice(project, folder / "pseudo" / f"round-{row[0]}", references)]
            for row in table
        ]
    page.table(head, table)
    panels = [
        panel
        for case in _shown(rounds[-1]["pseudo"]["cases"])
        if (panel := _panel(project, folder, case))
    ]
    if panels:
        caption = (
            "Pseudo-labels before each round: the least certain case, one in the middle, "
            "the most certain one."
        )
        page.figures(
            (
                overlay_figure(panels, project.classes[1:], width=2.4 * len(panels[0].labels)),
                caption,
            )
        )


def _round_row(project: Project, row: Mapping[str, Any]) -> list[str]:
    cases = row["pseudo"]["cases"]
    confidence = np.mean([case["confidence"] for case in cases.values()])
    voxels = [
        f"{np.mean([case['voxels'][name] for case in cases.values()]):.0f}"
        for name in project.classes[1:]
    ]
    figures = [row.get("separation"), row.get("dice")]
    return [
        str(row["round"]),
        str(len(cases)),
        str(len(row["pseudo"]["kept"])),
        f"{confidence:.3f}",
        *voxels,
        *("–" if value is None else f"{value:.3f}" for value in figures),
    ]


def _pseudo_dice(project: Project, folder: Path, references: Path) -> str:
    scores = dice_against(project, folder, references)
    if not scores:
        raise InputError(
            "none of the labels belongs to a scan with pseudo-labels",
            file=references,
            remedy="Name the labels as the scans, or leave out --references",
        )
    return f"{np.mean(list(scores.values())):.3f} ({len(scores)})"


def _shown(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    order = sorted(cases, key=lambda name: (cases[name]["confidence"], name))
    places = np.unique(
        np.linspace(0, len(order) - 1, min(CASES_SHOWN, len(order))).round().astype(int)
    )
    return [order[place] for place in places]


def _panel(project: Project, folder: Path, name: str) -> Panel | None:
    """The case's pseudo-labels of every round side by side; None where a file cannot be read any
    more.
    """
    try:
        image = io.read_image(project.case(name).images[0], case=name)
        columns: dict[str, Any] = {"scan": None}
        for part in sorted(
            (folder / "pseudo").glob("round-*"), key=lambda path: int(path.name.split("-")[1])
        ):
            label = io.read_label(part / f"{name}.nii.gz", image.geometry, case=name)
            columns[f"before round {part.name.split('-')[1]}"] = label
    except MedSSLError:
        return None
    return make_panel(name, image, columns, project.values[1:]) if len(columns) > 1 else None
