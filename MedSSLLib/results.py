"""Scored predictions, and the report sections that show them: tables, spread, volumes, overlays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib import io
from MedSSLLib.errors import InputError, MedSSLError
from MedSSLLib.evaluate import averaged_within, bootstrap_interval, evaluate_pairs
from MedSSLLib.figures import class_spread, paired_cases, volume_agreement
from MedSSLLib.geometry import Volume
from MedSSLLib.htmlpage import Cell, Page, number
from MedSSLLib.manifest import Case
from MedSSLLib.overlays import Panel, make_panel, overlay_figure
from MedSSLLib.project import Project

_METRICS = {
    "dice": ("Dice", 3),
    "surface_dice": ("surface Dice", 3),
    "hd95_mm": ("HD95, mm", 2),
    "assd_mm": ("ASSD, mm", 2),
}


@dataclass(frozen=True)
class Scored:
    """Predictions of one method with their metrics (the content of ``metrics.json``)."""

    name: str
    predictions: dict[str, Path]
    metrics: dict[str, Any]

    @property
    def per_case(self) -> dict[str, float | None]:
        """Mean Dice over classes of every case."""
        values: dict[str, float | None] = self.metrics["summary"]["dice"]["per_case"]
        return values


def score_predictions(project: Project, predictions: Path, name: str, tolerance_mm: float = 1.0) -> Scored:
    """Score the predictions in a folder against the labels of the project's cases of the same names.

    Test cases only, where any was predicted; else every predicted case with a label.

    Raises:
        InputError: no prediction belongs to a case with a label.
    """
    found = {io.case_name(path): path for path in io.find_images(predictions)}
    cases = [case for case in project.cases if case.name in found and case.label is not None]
    cases = [case for case in cases if case.role == "test"] or cases
    if not cases:
        raise InputError(
            "holds no prediction of a case that has a label", file=predictions, remedy="Predict cases with a label"
        )
    metrics = evaluate_pairs(
        {case.name: (found[case.name], case.label) for case in cases if case.label is not None},
        tolerance_mm,
        classes=project.scored,
        annotated={case.name: case.annotated for case in cases if case.annotated is not None},
    )
    return Scored(name, {case: found[case] for case in metrics["cases"]}, metrics)


def interval(
    per_case: Mapping[str, float | None], patients: Mapping[str, str] | None = None
) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over patients, their cases averaged first; undefined cases are left out."""
    values = np.array([np.nan if value is None else value for value in per_case.values()])
    return bootstrap_interval(averaged_within(values, [(patients or {}).get(case, case) for case in per_case]))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def add_results(page: Page, methods: Sequence[Scored]) -> None:
    """Methods side by side, then the last one by class and by case."""
    last = methods[-1]
    page.section("Results")
    page.text(
        "Mean over cases, with the smallest and largest case behind it. Surface Dice counts surface within "
        f"{last.metrics['tolerance_mm']:g} mm. A dash means that no case has the class in both prediction and "
        "reference."
    )
    several = len(methods) > 1
    if several:
        classes = list(last.metrics["summary"]["dice"]["per_class"])
        head = ("model", *(name for name, _ in _METRICS.values()), *(f"Dice, {name}" for name in classes))
        page.table(head, map(_method_row, methods), caption="All models")
    head = ("class", *(name for name, _ in _METRICS.values()))
    page.table(head, _class_rows(last), caption=f"By class: {last.name}" if several else "", total=True)
    spread = (class_spread(_dice_by_class(last)), f"Dice of every case by class, {last.name}.")
    if several:
        first = methods[0]
        pairs = paired_cases(first.per_case, last.per_case, (first.name, last.name))
        page.figures((pairs, "Mean Dice of every case, blue where it rose."), spread)
    else:
        page.figures(spread)
    limits = "bias (line) and limits of agreement (dashed, 1.96 SD)"
    page.figures((volume_agreement(_volumes(last)), f"Volumes, {last.name}: {limits}."))
    page.fold("Every case")
    page.table(("case", *(f"Dice, {scored.name}" for scored in methods), "HD95, mm"), _case_rows(methods))
    if last.metrics["errors"]:
        page.text("Not scored:")
        page.facts(last.metrics["errors"])
    page.unfold()


def _method_row(scored: Scored) -> list[Cell | str]:
    summaries = scored.metrics["summary"]
    means = [number(summaries[metric]["mean"], digits) for metric, (_, digits) in _METRICS.items()]
    return [scored.name, *means, *(number(value) for value in summaries["dice"]["per_class"].values())]


def _class_rows(scored: Scored) -> list[list[Cell | str]]:
    cases, summaries = scored.metrics["cases"], scored.metrics["summary"]
    rows: list[list[Cell | str]] = []
    for name in summaries["dice"]["per_class"]:
        row: list[Cell | str] = [name]
        for metric, (_, digits) in _METRICS.items():
            values = [case[name][metric] for case in cases.values() if case[name][metric] is not None]
            spread = f"{min(values):.{digits}f}–{max(values):.{digits}f}" if values else ""
            row.append(number(summaries[metric]["per_class"][name], digits, spread))
        rows.append(row)
    rows.append(
        ["mean of classes", *(number(summaries[metric]["mean"], digits) for metric, (_, digits) in _METRICS.items())]
    )
    return rows


def _case_rows(methods: Sequence[Scored]) -> Iterable[list[Cell | str]]:
    last = methods[-1].metrics
    for case in sorted(last["cases"]):
        dice = [number(scored.per_case.get(case)) for scored in methods]
        yield [case, *dice, number(last["summary"]["hd95_mm"]["per_case"][case], 2)]


def _dice_by_class(scored: Scored) -> dict[str, dict[str, float | None]]:
    return {
        case: {name: record["dice"] for name, record in records.items()}
        for case, records in scored.metrics["cases"].items()
    }


def _volumes(scored: Scored) -> dict[str, list[tuple[float, float]]]:
    cases = scored.metrics["cases"].values()
    return {
        name: [(case[name]["volume_ml"], case[name]["reference_ml"]) for case in cases]
        for name in scored.metrics["summary"]["dice"]["per_class"]
    }


def add_overlays(page: Page, project: Project, methods: Sequence[Scored]) -> None:
    """Best, median and worst case of the last method: scan, reference and each method's prediction."""
    panels = list(overlay_panels(project, methods))
    if panels:
        page.section("Best, median and worst case")
        caption = "The slice that shows most of all classes, patient's right on the left. Dashed white: the reference."
        page.figures((overlay_figure(panels, project.classes[1:]), caption))


def overlay_panels(project: Project, methods: Sequence[Scored]) -> Iterable[Panel]:
    """Panels of the cases that :func:`extremes` names; a case that cannot be read any more is left out."""
    for rank, name in extremes(methods[-1].per_case):
        try:
            yield _panel(project, project.case(name), rank, methods)
        except MedSSLError:
            continue


def _panel(project: Project, case: Case, rank: str, methods: Sequence[Scored]) -> Panel:
    image = io.read_image(case.images[0], case=case.name)
    labels: dict[str, Volume | None] = {"scan": None}
    if case.label is not None:
        labels["reference"] = io.read_label(case.label, image.geometry, case=case.name)
    for scored in methods:
        name = scored.name if len(methods) > 1 else "prediction"
        labels[name] = io.read_label(scored.predictions[case.name], image.geometry, case=case.name)
    dice = methods[-1].per_case[case.name]
    return make_panel(f"{rank}: {case.name}, Dice {dice:.3f}", image, labels, project.values[1:])


def extremes(per_case: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """(rank, case) of the best, median and worst defined case; fewer when there are fewer cases."""
    order = sorted((value, case) for case, value in per_case.items() if value is not None)
    if not order:
        return []
    picks = {"best": order[-1][1], "median": order[(len(order) - 1) // 2][1], "worst": order[0][1]}
    return list({case: (rank, case) for rank, case in picks.items()}.values())
