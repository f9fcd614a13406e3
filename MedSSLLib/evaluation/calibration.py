"""Calibration: do probabilities mean what they say?

Expected calibration error, reliability, temperature scaling.

Probabilities come as ``[n, k]`` rows of voxels, with the true class of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import IGNORE, Annotated, counted_mask

BINS = 15  # Guo, Pleiss, Sun, Weinberger 2017, section 5
BACKGROUND = (
    0.99  # probability of background from which a voxel is plain background; not from the paper
)
MOST_VOXELS = 100_000  # rows kept of each case, drawn evenly; not from the paper
T_RANGE = (0.2, 10.0)  # temperatures that are searched; not from the paper


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of the confidence.

    Edges ``[bins + 1]``; voxels, mean confidence and accuracy ``[bins]``.

    Empty bins have confidence and accuracy 0.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap of accuracy and confidence, weighted by voxels.

        Guo et al., Eq. 3.
        """
        return float(
            (self.count * np.abs(self.accuracy - self.confidence)).sum() / max(1, self.count.sum())
        )


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Reliability:
    """Reliability data of the predicted class (Guo et al. 2017, section 2).

    Guo, Pleiss, Sun, Weinberger, arXiv 1706.04599.

    Bin m holds confidences in ((m - 1) / bins, m / bins].
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == truth
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = np.maximum(count, 1)
    return Reliability(
        np.linspace(0, 1, bins + 1),
        count,
        np.bincount(which, confidence, bins) / filled,
        np.bincount(which, right, bins) / filled,
    )


def softened(probabilities: np.ndarray, temperature: float, axis: int = 1) -> np.ndarray:
    """Probabilities at a temperature, ``softmax(log p / T)``.

    They are those of the logits over T (Guo et al. 2017, Eq. 9).
    """
    if temperature == 1:
        return probabilities
    log = np.log(np.maximum(probabilities, 1e-12)) / temperature
    power = np.exp(log - log.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def nll(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean())


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature in ``T_RANGE`` of least negative log-likelihood.

    Found by golden-section search over log T.

    The likelihood has one minimum: it is convex in 1 / T.
    """
    low, high = np.log(T_RANGE)
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        worse = nll(softened(probabilities, float(np.exp(left))), truth) > nll(
            softened(probabilities, float(np.exp(right))), truth
        )
        low, high = (left, high) if worse else (low, right)
    return float(np.exp((low + high) / 2))


def sampled(
    probabilities: np.ndarray, label: np.ndarray, ignore: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``[n, k]`` and classes ``[n]`` of the counted voxels of a case ``[k, ...]``.

    At most ``MOST_VOXELS``.
    """
    counted = np.flatnonzero(label.ravel() != ignore)
    if len(counted) > MOST_VOXELS:
        rng = random_stream(seed, Stream.CALIBRATION_VOXELS)
        counted = rng.choice(counted, MOST_VOXELS, replace=False)
    return probabilities.reshape(len(probabilities), -1)[:, counted].T, label.ravel()[
        counted
    ].astype(int)


def near_structures(rows: np.ndarray) -> np.ndarray:
    """Which voxels of rows ``[n, k]`` are not plainly background, ``[n]``.

    The predictions alone decide. To choose by the truth as well would add the wrong ones of the
    voxels predicted as background and none of the right ones, and so charge a calibrated model with
    an error.
    """
    return rows[:, 0] < BACKGROUND


def voxel_calibration(
    rows: np.ndarray, truth: np.ndarray, near: np.ndarray | None = None
) -> dict[str, Any]:
    """Calibration of rows ``[n, k]`` with their classes ``[n]``.

    ``ece_foreground`` counts only the voxels `near` structures ``[n]``: by default
    :func:`near_structures` of the rows.
    """
    near = near_structures(rows) if near is None else near
    data, structures = reliability(rows, truth), reliability(rows[near], truth[near])
    return {
        "voxels": len(truth),
        "ece": data.ece,
        "ece_foreground": structures.ece,
        "bins": {
            "count": data.count.tolist(),
            "confidence": data.confidence.tolist(),
            "accuracy": data.accuracy.tolist(),
        },
    }


def helpful_temperature(calibration: Mapping[str, Any]) -> float:
    """The recorded temperature where it lowered the error on cases it was not fitted on; else 1."""
    scaled, plain = calibration.get("ece_foreground_scaled"), calibration.get("ece_foreground")
    return float(calibration["temperature"]) if scaled is not None and scaled < plain else 1.0


def calibration_of(
    cases: Sequence[tuple[np.ndarray, np.ndarray]], patients: Sequence[str] = ()
) -> dict[str, Any]:
    """What is recorded of the calibration on held-out cases.

    Each case is rows ``[n, k]`` and classes ``[n]``.

    As :func:`voxel_calibration`, and ``ece_scaled``, measured on every case with the temperature
    fitted on the cases of other patients; None with a single patient. The same voxels count before
    and after scaling.

    Args:
        cases: rows and classes.
        patients: whose they are; by default every case is another patient's.
    """
    rows, truth = np.concatenate([p for p, _ in cases]), np.concatenate([t for _, t in cases])
    owners = list(patients or map(str, range(len(cases))))
    after = None
    if len(set(owners)) > 1:
        others = {
            owner: fit_temperature(*_of_others(cases, owners, owner)) for owner in set(owners)
        }
        scaled = [softened(p, others[owner]) for (p, _), owner in zip(cases, owners, strict=True)]
        after = voxel_calibration(np.concatenate(scaled), truth, near_structures(rows))
    return {
        "cases": len(cases),
        "temperature": fit_temperature(rows, truth),
        **voxel_calibration(rows, truth),
        "ece_scaled": after and after["ece"],
        "ece_foreground_scaled": after and after["ece_foreground"],
    }


def probability_path(predictions: Path, case: str, index: int, class_name: str) -> Path:
    """Where ``predict --probabilities`` writes the probability of a class."""
    plain = "".join(c if c.isalnum() else "-" for c in class_name)
    return predictions / "probabilities" / f"{case}_{index}_{plain}.nii.gz"


def folder_calibration(
    predictions: Path,
    references: Mapping[str, Path],
    classes: Mapping[str, int],
    annotated: Mapping[str, Annotated] | None = None,
) -> dict[str, Any] | None:
    """Calibration of the written probabilities of all cases that have them.

    None where there is none.

    Args:
        predictions: the folder that ``predict --probabilities`` wrote.
        references: case to reference label.
        classes: foreground classes in the order of the project, name to label value.
        annotated: annotated slices of sparsely labelled references.
    """
    cases: list[tuple[np.ndarray, np.ndarray]] = []
    for name, reference in references.items():
        paths = [probability_path(predictions, name, n, kind) for n, kind in enumerate(classes, 1)]
        if not all(path.exists() for path in paths):
            continue
        geometry = io.common_grid(paths[0], reference)
        kinds = {value: kind for kind, value in classes.items()}
        label = io.read_label(reference, geometry, case=name, names=kinds).array
        truth = _indices(label, list(classes.values()))
        if annotated and name in annotated:
            truth[~counted_mask(label.shape, annotated[name])] = IGNORE
        foreground = np.stack([_on_grid(path, geometry, name) for path in paths])
        rows = np.concatenate([1 - foreground.sum(0, keepdims=True), foreground])
        cases.append(sampled(rows, truth, IGNORE, len(cases)))
    if not cases:
        return None
    rows = np.concatenate([rows for rows, _ in cases])
    truth = np.concatenate([truth for _, truth in cases])
    return {"cases": len(cases), **voxel_calibration(rows, truth)}


def _indices(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Class indices of a label map; a value of no class does not count."""
    indices = np.where(label == 0, 0, IGNORE).astype(np.uint8)
    for index, value in enumerate(values, 1):
        indices[label == value] = index
    return indices


def _on_grid(path: Path, geometry: Geometry, case: str) -> np.ndarray:
    volume = io.read_image(path, case=case, constant=True)
    if not volume.geometry.close_to(geometry):
        raise InputError(
            "does not lie on the grid of the reference",
            case=case,
            file=path,
            remedy="Predict the case again with --probabilities, or delete the folder of "
            "probabilities",
        )
    return volume.array


def _of_others(
    cases: Sequence[tuple[np.ndarray, np.ndarray]], owners: Sequence[str], left_out: str
) -> tuple[np.ndarray, np.ndarray]:
    rest = [case for case, owner in zip(cases, owners, strict=True) if owner != left_out]
    return np.concatenate([p for p, _ in rest]), np.concatenate([t for _, t in rest])
