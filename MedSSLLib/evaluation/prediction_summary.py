"""Numbers of predictions for a table: volumes, uncertainty, Dice against what was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.evaluation.quality import read_quality
from MedSSLLib.images.io import read_image, read_label
from MedSSLLib.images.labels import counted_mask

ENDING = ".nii.gz"
UNSURE = (
    0.1  # voxels above this uncertainty are counted outside of structures too; not from a paper
)


def predicted_cases(folder: Path) -> list[str]:
    """Names of the cases that a folder of predictions holds, sorted."""
    return sorted(path.name[: -len(ENDING)] for path in folder.glob(f"*{ENDING}"))


def prediction_numbers(folder: Path, name: str, case: Any = None) -> dict[str, Any]:
    """``{"volumes_ml": {value: ml}, "uncertainty", "dice", "problem"}`` of one prediction.

    Args:
        folder: holds CASE.nii.gz and, where it was asked for, uncertainty/CASE.nii.gz.
        name: of the case.
        case: the case of the project, for the Dice against its label; None: no Dice.

    Returns:
        uncertainty: mean of the map in and around the structures, None without a map. dice: mean
        over the classes of the label, on its annotated slices only; None without a label. problem:
        why the prediction cannot be read, else "".
    """
    result: dict[str, Any] = {"volumes_ml": {}, "uncertainty": None, "dice": None, "problem": ""}
    try:
        label = read_image(folder / f"{name}{ENDING}", constant=True)
        values, counts = np.unique(label.array[label.array > 0], return_counts=True)
        for value, count in zip(values, counts, strict=True):
            result["volumes_ml"][str(int(value))] = round(int(count) * label.geometry.voxel_ml, 3)
        result["uncertainty"] = _uncertainty(
            folder / "uncertainty" / f"{name}{ENDING}", label.array
        )
        if case is not None and case.label is not None:
            drawn = read_label(case.label, label.geometry, case=name)
            counted = counted_mask(label.array.shape, case.annotated)
            result["dice"] = _dice(label.array[counted], drawn.array[counted])
    except (MedSSLError, OSError) as error:
        result["problem"] = str(error)
    return result


def _uncertainty(path: Path, label: np.ndarray) -> float | None:
    if not path.is_file():
        return None
    values = read_image(path, constant=True).array
    unsure = (values > UNSURE) | (label > 0)
    return round(float(values[unsure].mean()) if unsure.any() else 0.0, 4)


def _dice(prediction: np.ndarray, label: np.ndarray) -> float | None:
    """Mean Dice over the classes from 1 that either shows; None when neither shows any."""
    from MedSSLLib.evaluation.metrics import dice_per_class

    classes = int(max(prediction.max(initial=0), label.max(initial=0))) + 1
    scores = np.array(dice_per_class(prediction, label, classes), dtype=float)
    return None if np.isnan(scores).all() else round(float(np.nanmean(scores)), 4)


def predicted_quality(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``quality.json`` by case; {} where there is none that can be read."""
    try:
        content = read_quality(folder)
    except InputError:
        return {}
    return dict(content.get("cases") or {})
