"""Scores of predictions, their intervals and extremes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.evaluation.evaluate import averaged_within, bootstrap_interval, evaluate_pairs
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.evaluation.pairing import by_case
from MedSSLLib.evaluation.quality import QUALITY_FILE, estimate_text, read_quality
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE, class_indices
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project


def dice_against(project: Project, folder: Path, references: Path) -> dict[str, float]:
    """Dice of the pseudo-labels of a round against labels that no training has read.

    Case to mean over structures.

    Cases with drawn slices, and those without a reference, are left out; so are cases that show no
    structure in both.

    Args:
        project: knows the scans' grids and the label values.
        folder: ``RUN/pseudo/round-N``.
        references: folder with labels under the cases' names.

    Raises:
        InputError: a case has two files, or a file cannot be read or lies on another grid.
    """
    found, twice = by_case(io.find_images(references), [case.name for case in project.pool])
    scores = {}
    for case in project.pool:
        path = folder / f"{case.name}.nii.gz"
        if case.name not in found or case.annotated or not path.exists():
            continue
        if case.name in twice:
            raise twice[case.name]
        ours = _read_classes(project, case, path)
        theirs = _read_classes(project, case, found[case.name])
        counted = theirs != IGNORE
        if (ours[counted] > 0).any() or (theirs[counted] > 0).any():
            scores[case.name] = foreground_dice(ours[counted], theirs[counted])
    return scores


def _read_classes(project: Project, case: Case, file: Path) -> np.ndarray:
    """Class indices of a label file on the grid of the case's scan."""
    grid = io.read_header(case.images[0], case=case.name)
    label = io.read_label(file, grid, case=case.name, names=project.labels).array
    return class_indices(label, project.values, ignore=project.ignore_value)


@dataclass(frozen=True)
class Scored:
    """Predictions of one method with their metrics (the content of ``metrics.json``)."""

    name: str
    predictions: dict[str, Path]
    metrics: dict[str, Any]
    estimates: dict[str, str] = field(default_factory=dict)
    """Estimated Dice of cases in words, where ``predict --quality`` was used."""

    @property
    def per_case(self) -> dict[str, float | None]:
        """Mean Dice over classes of every case."""
        values: dict[str, float | None] = self.metrics["summary"]["dice"]["per_case"]
        return values


def score_predictions(
    project: Project,
    predictions: Path,
    name: str,
    tolerance_mm: float = 1.0,
    events: Events | None = None,
) -> Scored:
    """Score predictions in a folder against the labels of the project's cases.

    Files are named as the cases; a case with two is not scored, and its error says so.

    Test cases only, where any was predicted; else every predicted case with a label. Progress goes
    to ``events``.

    Raises:
        InputError: no prediction belongs to a case with a label.
    """
    names = [case.name for case in project.cases]
    found, twice = by_case(io.find_images(predictions), names)
    cases = [case for case in project.cases if case.name in found and case.label is not None]
    cases = [case for case in cases if case.role == "test"] or cases
    if not cases:
        raise InputError(
            "holds no prediction of a case that has a label",
            file=predictions,
            remedy="Predict cases with a label",
        )
    pairs, annotated, errors = {}, {}, {}
    for case in cases:
        assert case.label is not None
        if case.name in twice:
            errors[case.name] = str(twice[case.name])
            continue
        pairs[case.name] = (found[case.name], case.label)
        if case.annotated is not None:
            annotated[case.name] = case.annotated
    metrics = evaluate_pairs(
        pairs,
        tolerance_mm,
        classes=project.scored,
        annotated=annotated,
        errors=errors,
        events=events,
    )
    scored = {case: found[case] for case in metrics["cases"]}
    return Scored(name, scored, metrics, _estimates(predictions))


def _estimates(predictions: Path) -> dict[str, str]:
    """Estimated Dice of the cases in a folder of predictions, in words."""
    if not (predictions / QUALITY_FILE).exists():
        return {}
    return {
        name: estimate_text(entry) for name, entry in read_quality(predictions)["cases"].items()
    }


def interval(
    per_case: Mapping[str, float | None], patients: Mapping[str, str] | None = None
) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over patients, their cases averaged first.

    Undefined cases are left out.
    """
    owner = patients or {}
    values = np.array(list(per_case.values()), dtype=float)  # None becomes NaN
    return bootstrap_interval(averaged_within(values, [owner.get(case, case) for case in per_case]))


def extremes(per_case: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """(rank, case) of the best, median and worst defined case; fewer when there are fewer cases."""
    order = sorted((value, case) for case, value in per_case.items() if value is not None)
    if not order:
        return []
    ranks = {}
    for rank, place in (("best", -1), ("median", (len(order) - 1) // 2), ("worst", 0)):
        ranks[order[place][1]] = rank
    return [(rank, case) for case, rank in ranks.items()]
