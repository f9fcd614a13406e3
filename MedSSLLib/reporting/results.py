"""Scored predictions, and the report sections that show them: tables, spread, volumes, overlays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.evaluation.scoring import Scored, extremes
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Cell, Page, number
from MedSSLLib.reporting.overlays import Panel, make_panel, overlay_figure, volume_panels
from MedSSLLib.reporting.plots import class_spread, paired_cases, volume_agreement

_METRICS = {
    "dice": ("Dice", 3),
    "surface_dice": ("surface Dice", 3),
    "hd95_mm": ("HD95, mm", 2),
    "assd_mm": ("ASSD, mm", 2),
}


def add_results(page: Page, methods: Sequence[Scored]) -> None:
    """Methods side by side, then the last one by class and by case."""
    last = methods[-1]
    page.section("Results")
    page.text(
        "Mean over cases, with the smallest and largest case behind it. Surface Dice counts "
        f"surface within {last.metrics['tolerance_mm']:g} mm. A dash means that no case has the "
        "class in both prediction and reference."
    )
    names = [name for name, _ in _METRICS.values()]
    spread = (class_spread(_dice_by_class(last)), f"Dice of every case by class, {last.name}.")
    if len(methods) > 1:
        first = methods[0]
        classes = [f"Dice, {name}" for name in last.metrics["summary"]["dice"]["per_class"]]
        page.table(["model", *names, *classes], map(_method_row, methods), caption="All models")
        by_class = f"By class: {last.name}"
        page.table(["class", *names], _class_rows(last), caption=by_class, total=True)
        pairs = paired_cases(first.per_case, last.per_case, (first.name, last.name))
        page.figures((pairs, "Mean Dice of every case, blue where it rose."), spread)
    else:
        page.table(["class", *names], _class_rows(last), total=True)
        page.figures(spread)
    limits = "bias (line) and limits of agreement (dashed, 1.96 SD)"
    page.figures((volume_agreement(_volumes(last)), f"Volumes, {last.name}: {limits}."))
    _add_cases(page, methods)


def _add_cases(page: Page, methods: Sequence[Scored]) -> None:
    """Every case, folded away, with those that could not be scored."""
    page.fold("Every case")
    columns = [f"Dice, {scored.name}" for scored in methods]
    estimated = ["estimated Dice"] if methods[-1].estimates else []
    page.table(["case", *columns, "HD95, mm", *estimated], _case_rows(methods))
    if estimated:
        page.text(
            "The estimate was made without the reference; where it is far off, do not trust it on "
            "new cases."
        )
    errors = methods[-1].metrics["errors"]
    if errors:
        page.text("Not scored:")
        page.facts(errors)
    page.unfold()


def _method_row(scored: Scored) -> list[Cell | str]:
    summaries = scored.metrics["summary"]
    row: list[Cell | str] = [scored.name]
    row += [number(summaries[metric]["mean"], digits) for metric, (_, digits) in _METRICS.items()]
    row += map(number, summaries["dice"]["per_class"].values())
    return row


def _class_rows(scored: Scored) -> list[list[Cell | str]]:
    cases, summaries = scored.metrics["cases"].values(), scored.metrics["summary"]
    rows: list[list[Cell | str]] = []
    for name in summaries["dice"]["per_class"]:
        row: list[Cell | str] = [name]
        for metric, (_, digits) in _METRICS.items():
            found = [case[name][metric] for case in cases]
            values = [value for value in found if value is not None]
            spread = f"{min(values):.{digits}f}–{max(values):.{digits}f}" if values else ""
            row.append(number(summaries[metric]["per_class"][name], digits, spread))
        rows.append(row)
    total: list[Cell | str] = ["mean of classes"]
    total += [number(summaries[metric]["mean"], digits) for metric, (_, digits) in _METRICS.items()]
    return [*rows, total]


def _case_rows(methods: Sequence[Scored]) -> Iterable[list[Cell | str]]:
    last = methods[-1].metrics
    for case in sorted(last["cases"]):
        dice = [number(scored.per_case.get(case)) for scored in methods]
        estimates = methods[-1].estimates
        estimated = [estimates.get(case, "–")] if estimates else []
        yield [case, *dice, number(last["summary"]["hd95_mm"]["per_case"][case], 2), *estimated]


def _dice_by_class(scored: Scored) -> dict[str, dict[str, float | None]]:
    found = {}
    for case, kinds in scored.metrics["cases"].items():
        found[case] = {name: values["dice"] for name, values in kinds.items()}
    return found


def _volumes(scored: Scored) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for case in scored.metrics["cases"].values():
        for name, values in case.items():
            found.setdefault(name, []).append((values["volume_ml"], values["reference_ml"]))
    return found


def add_overlays(page: Page, project: Project, methods: Sequence[Scored]) -> None:
    """Best, median and worst case of the last method.

    Scan, reference and each method's prediction.
    """
    panels = list(overlay_panels(project, methods))
    if panels:
        page.section("Best, median and worst case")
        caption = (
            "The slice that shows most of all classes, patient's right on the left. "
            "Dashed white: the reference."
        )
        page.figures((overlay_figure(panels, project.classes[1:]), caption))


def overlay_panels(project: Project, methods: Sequence[Scored]) -> Iterable[Panel]:
    """Panels of the cases that :func:`~MedSSLLib.evaluation.scoring.extremes` names.

    A case that cannot be read any more is left out.
    """
    for rank, name in extremes(methods[-1].per_case):
        try:
            yield _panel(project, project.case(name), rank, methods)
        except MedSSLError:
            continue


def _panel(project: Project, case: Case, rank: str, methods: Sequence[Scored]) -> Panel:
    image = io.read_image(case.images[0], case=case.name)
    labels: dict[str, Volume | None] = {"scan": None}
    if case.label is not None:
        labels["reference"] = io.read_label(
            case.label, image.geometry, case=case.name, names=project.labels
        )
    for scored in methods:
        name = scored.name if len(methods) > 1 else "prediction"
        labels[name] = io.read_label(scored.predictions[case.name], image.geometry, case=case.name)
    dice = methods[-1].per_case[case.name]
    return make_panel(f"{rank}: {case.name}, Dice {dice:.3f}", image, labels, project.values[1:])


def add_completion(page: Page, project: Project, folder: Path, settings: Mapping[str, Any]) -> None:
    """The volume that ``complete`` has filled in: slices from end to end, drawn ones named.

    Args:
        page: the page to add to.
        project: the project that holds the run.
        folder: the run's folder.
        settings: the run's configuration.
    """
    options = settings.get("options") or {}
    name = str(options.get("case", ""))
    file = Path(options.get("out") or folder) / f"{name}.nii.gz"
    if not name or not file.exists():
        return
    try:
        case = project.case(name)
        image = io.read_image(case.images[0], case=name)
        label = io.read_label(file, image.geometry, case=name)
    except MedSSLError:
        return
    panels = volume_panels(image, label, project.values[1:], case.annotated)
    page.section("The volume", "A suggestion on every slice that was not drawn: look at each.")
    caption = f"{len(panels)} slices of {name}, evenly spaced over what it shows."
    page.figures((overlay_figure(panels, project.classes[1:], width=4.8), caption))
