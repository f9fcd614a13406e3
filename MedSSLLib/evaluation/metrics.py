"""Segmentation metrics of one case in millimetres, with an explicit rule for absent classes.

Definitions (surfaces from MONAI):

* Dice: ``2 |P and R| / (|P| + |R|)`` over counted voxels.
* HD95: the larger of the two directed 95th percentiles of distances between boundary voxels
  (foreground voxels with a face neighbour outside), centre to centre, in mm.
* ASSD: mean of all directed distances of both boundaries, in mm.
* Surface Dice: fraction of both surfaces' *area* within the tolerance of the other surface
  (Nikolov et al. 2018, arXiv 1809.04430), so that thick slices do not bias it.
* Volumes: counted voxels times voxel volume, in ml.

A class absent from prediction and reference is undefined (``None``).  Absent from one of them: Dice
and surface Dice are 0, distances are undefined.  Where only some slices are annotated, the surface
between them is unknown: distances and surface Dice are undefined, and Dice and volumes cover the
annotated voxels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.labels import IGNORE

METRICS = ("dice", "hd95_mm", "assd_mm", "surface_dice", "volume_ml", "reference_ml")
"""What is measured of every class of a case."""
ClassMetrics = dict[str, float | None]
CaseMetrics = dict[str, ClassMetrics]


def evaluate_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, int],
    tolerance: float,
    counted: np.ndarray | None = None,
) -> CaseMetrics:
    """Metrics of one case.

    Args:
        prediction: label map ``[k, j, i]`` (integers).
        reference: label map of the same shape.
        spacing: voxel size in mm in the arrays' axis order ``(k, j, i)``.
        classes: name to label value; leave background out.
        tolerance: distance in mm up to which surfaces agree, > 0 (surface Dice).
        counted: voxels that count, same shape; ``None`` = all. See the module's text for sparse
            references.

    Returns:
        ``{class: {metric: value or None}}`` with the keys of :data:`METRICS`; Dice values lie in
        [0, 1].

    Raises:
        InputError: shapes differ.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction has shape {prediction.shape}, reference {reference.shape}",
            remedy="Save the prediction on the grid of the source image",
        )
    return {
        name: _class_record(prediction == value, reference == value, spacing, tolerance, counted)
        for name, value in classes.items()
    }


def _class_record(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance: float,
    counted: np.ndarray | None,
) -> ClassMetrics:
    sparse = counted is not None and not bool(counted.all())
    if counted is not None:
        prediction, reference = prediction & counted, reference & counted
    millilitres = float(np.prod(spacing)) / 1000
    sizes = int(prediction.sum()), int(reference.sum())
    record: ClassMetrics = dict.fromkeys(METRICS)
    record["volume_ml"], record["reference_ml"] = sizes[0] * millilitres, sizes[1] * millilitres
    if not any(sizes):
        return record
    record["dice"] = dice(prediction, reference)
    if not all(sizes):
        record["surface_dice"] = None if sparse else 0.0
    elif not sparse:
        record |= _surface_metrics(prediction, reference, spacing, tolerance)
    return record


def _surface_metrics(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> ClassMetrics:
    _, (forward, backward), _ = _directed_distances(prediction, reference, spacing, subvoxels=False)
    edges, surfaces, area_maps = _directed_distances(prediction, reference, spacing, subvoxels=True)
    agreeing = whole = 0.0
    for edge, distance, area_map in zip(edges, surfaces, area_maps, strict=True):
        area = area_map[edge]
        agreeing += float(area[distance <= tolerance].sum())
        whole += float(area.sum())
    return {
        "hd95_mm": float(max(np.percentile(forward, 95), np.percentile(backward, 95))),
        "assd_mm": float(np.concatenate([forward, backward]).mean()),
        "surface_dice": agreeing / whole,
    }


def _directed_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], *, subvoxels: bool
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Edges, and distances to the reference and back in mm.

    With ``subvoxels`` also the areas per edge point.
    """
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parts = get_edge_surface_distance(
            torch.from_numpy(prediction),
            torch.from_numpy(reference),
            spacing=[float(step) for step in spacing],
            use_subvoxels=subvoxels,
            symmetric=True,
        )
    edges, distances, areas = ([np.asarray(item) for item in part] for part in parts)
    return edges, [item.astype(np.float64) for item in distances], areas


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Twice the common voxels of two masks over the sum of both; NaN where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")


def foreground_dice(first: np.ndarray, second: np.ndarray) -> float:
    """Mean Dice over the foreground classes of either map; 0 without foreground."""
    scores = []
    for value in np.union1d(np.unique(first), np.unique(second)):
        if value > 0:
            scores.append(dice(first == value, second == value))
    return float(np.mean(scores)) if scores else 0.0


def dice_per_class(prediction: np.ndarray, label: np.ndarray, classes: int) -> list[float]:
    """Dice of classes 1.. over counted voxels; NaN where a class is absent from both."""
    counted = label != IGNORE
    result = []
    for index in range(1, classes):
        result.append(dice((prediction == index) & counted, (label == index) & counted))
    return result
