"""Self-training round by round, for reports: a table, and pseudo-labels as they changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.evaluation.scoring import dice_against
from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.overlays import Panel, make_panel, overlay_figure

CASES_SHOWN = 3


def add_rounds(
    page: Page,
    project: Project,
    folder: Path,
    rounds: Sequence[Mapping[str, Any]],
    references: Path | None = None,
) -> None:
    """Self-training round by round.

    A table, then the pseudo-labels of the least and the most certain cases.

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
    page.table(*_rounds_table(project, folder, rounds, references))
    panels = []
    for case in _cases_shown(rounds[-1]["pseudo"]["cases"]):
        if panel := _panel(project, folder, case):
            panels.append(panel)
    if panels:
        caption = (
            "Pseudo-labels before each round: the least certain case, one in the middle, "
            "the most certain one."
        )
        width = 2.4 * len(panels[0].labels)
        page.figures((overlay_figure(panels, project.classes[1:], width=width), caption))


def _rounds_table(
    project: Project,
    folder: Path,
    rounds: Sequence[Mapping[str, Any]],
    references: Path | None,
) -> tuple[list[str], list[list[str]]]:
    """Head and rows; with references, what Dice the pseudo-labels of each round had."""
    head = ["round", "pseudo-labelled", "used", "confidence"]
    head += [f"{name}, voxels" for name in project.classes[1:]]
    head += ["separation", "validation Dice"]
    rows = [_round_row(project, row) for row in rounds]
    if references is not None:
        head.append("pseudo-label Dice (cases)")
        for row in rows:
            row.append(_pseudo_dice(project, folder / "pseudo" / f"round-{row[0]}", references))
    return head, rows


def _round_row(project: Project, row: Mapping[str, Any]) -> list[str]:
    cases = row["pseudo"]["cases"].values()
    confidence = np.mean([case["confidence"] for case in cases])
    cells = [
        str(row["round"]),
        str(len(cases)),
        str(len(row["pseudo"]["kept"])),
        f"{confidence:.3f}",
    ]
    for name in project.classes[1:]:
        cells.append(f"{np.mean([case['voxels'][name] for case in cases]):.0f}")
    for value in (row.get("separation"), row.get("dice")):
        cells.append("–" if value is None else f"{value:.3f}")
    return cells


def _pseudo_dice(project: Project, folder: Path, references: Path) -> str:
    scores = dice_against(project, folder, references)
    if not scores:
        raise InputError(
            "none of the labels belongs to a scan with pseudo-labels",
            file=references,
            remedy="Name the labels as the scans, or leave out --references",
        )
    return f"{np.mean(list(scores.values())):.3f} ({len(scores)})"


def _cases_shown(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A few cases, evenly spaced from the least to the most certain one."""
    order = sorted(cases, key=lambda name: (cases[name]["confidence"], name))
    places = np.linspace(0, len(order) - 1, min(CASES_SHOWN, len(order))).round().astype(int)
    return [order[place] for place in np.unique(places)]


def _panel(project: Project, folder: Path, name: str) -> Panel | None:
    """The case's pseudo-labels of every round side by side.

    None where a file cannot be read any more.
    """

    def number(part: Path) -> int:
        return int(part.name.split("-")[1])

    try:
        image = io.read_image(project.case(name).images[0], case=name)
        columns: dict[str, Any] = {"scan": None}
        for part in sorted((folder / "pseudo").glob("round-*"), key=number):
            label = io.read_label(part / f"{name}.nii.gz", image.geometry, case=name)
            columns[f"before round {number(part)}"] = label
    except MedSSLError:
        return None
    return make_panel(name, image, columns, project.values[1:]) if len(columns) > 1 else None
