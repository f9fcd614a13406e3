"""Calibration: do probabilities mean what they say? Expected calibration error, reliability, temperature scaling.

Probabilities come as ``[n, k]`` rows of voxels, with the true class of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15  # Guo, Pleiss, Sun, Weinberger 2017, section 5
MOST_VOXELS = 100_000  # rows kept of each case, drawn evenly; not from the paper
T_RANGE = (0.2, 10.0)  # temperatures that are searched; not from the paper


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of the confidence: edges ``[bins + 1]``, voxels, mean confidence and accuracy ``[bins]``.

    Empty bins have confidence and accuracy 0.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap of accuracy and confidence, weighted by voxels (Guo et al., Eq. 3)."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / max(1, self.count.sum()))


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Reliability:
    """Reliability data of the predicted class (Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599, section 2).

    Bin m holds confidences in ((m - 1) / bins, m / bins].
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == truth
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    share = np.maximum(count, 1)
    return Reliability(np.linspace(0, 1, bins + 1), count, np.bincount(which, confidence, bins) / share,
                       np.bincount(which, right, bins) / share)


def softened(probabilities: np.ndarray, temperature: float, axis: int = 1) -> np.ndarray:
    """Probabilities at a temperature, ``softmax(log p / T)``: those of the logits over T (Guo et al. 2017, Eq. 9)."""
    if temperature == 1:
        return probabilities
    log = np.log(np.maximum(probabilities, 1e-12)) / temperature
    power = np.exp(log - log.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def nll(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean())


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature in ``T_RANGE`` of least negative log-likelihood, by golden-section search over log T.

    The likelihood has one minimum: it is convex in 1 / T.
    """
    low, high = np.log(T_RANGE)
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        worse = nll(softened(probabilities, float(np.exp(left))), truth) > nll(
            softened(probabilities, float(np.exp(right))), truth)
        low, high = (left, high) if worse else (low, right)
    return float(np.exp((low + high) / 2))


def sampled(probabilities: np.ndarray, label: np.ndarray, ignore: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``[n, k]`` and classes ``[n]`` of the counted voxels of a case ``[k, ...]``, at most ``MOST_VOXELS``."""
    counted = np.flatnonzero(label.ravel() != ignore)
    if len(counted) > MOST_VOXELS:
        counted = np.random.default_rng([seed, 10]).choice(counted, MOST_VOXELS, replace=False)
    return probabilities.reshape(len(probabilities), -1)[:, counted].T, label.ravel()[counted].astype(int)


def calibration_of(cases: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """What is recorded of the calibration on held-out cases, each rows ``[n, k]`` and classes ``[n]``.

    ``ece_scaled`` is measured on every case with the temperature fitted on the others; None with a single case.
    ``ece_foreground`` counts only voxels whose true or predicted class is not background, where errors are.
    """
    rows, truth = np.concatenate([p for p, _ in cases]), np.concatenate([t for _, t in cases])
    scaled = [softened(p, fit_temperature(*_others(cases, n))) for n, (p, _) in enumerate(cases)] if len(
        cases) > 1 else None
    foreground = (truth > 0) | (rows.argmax(1) > 0)
    data = reliability(rows, truth)
    after = None if scaled is None else np.concatenate(scaled)
    return {
        "cases": len(cases), "voxels": len(truth), "temperature": fit_temperature(rows, truth),
        "ece": data.ece, "ece_foreground": reliability(rows[foreground], truth[foreground]).ece,
        "ece_scaled": None if after is None else reliability(after, truth).ece,
        "ece_foreground_scaled": None if after is None else reliability(after[foreground], truth[foreground]).ece,
        "bins": {"count": data.count.tolist(), "confidence": data.confidence.tolist(),
                 "accuracy": data.accuracy.tolist()},
    }


def _others(cases: Sequence[tuple[np.ndarray, np.ndarray]], left_out: int) -> tuple[np.ndarray, np.ndarray]:
    rest = [case for n, case in enumerate(cases) if n != left_out]
    return np.concatenate([p for p, _ in rest]), np.concatenate([t for _, t in rest])
