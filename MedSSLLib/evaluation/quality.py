"""Predicted quality: how good a segmentation probably is, without a reference.

And the file of the estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.files import read_json, write_json

QUALITY_FORMAT, QUALITY_VERSION, QUALITY_FILE = "medssl-quality", 1, "quality.json"
LEVEL = 0.8  # coverage that the interval aims at; not from the paper
REVIEW_BELOW = 0.7  # Dice below which a case is to be looked at; not from the paper


@dataclass(frozen=True)
class Raw:
    """What one case's predictions say about themselves.

    Each by class from 1, None where the class is not predicted.

    Attributes:
        agreements: Dice of the predictions of variants of the image with the plain one, their mean.
        expectations: :func:`expected_dice`.
    """

    agreements: tuple[float | None, ...]
    expectations: tuple[float | None, ...]

    @property
    def agreement(self) -> float:
        """Mean over classes."""
        return float(np.mean([value for value in self.agreements if value is not None]))

    @property
    def expected(self) -> float:
        """Mean over classes."""
        return float(np.mean([value for value in self.expectations if value is not None]))

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """The uncalibrated estimates: the mean of both (not from the paper)."""
        return tuple(
            None if one is None or other is None else (one + other) / 2
            for one, other in zip(self.agreements, self.expectations, strict=True)
        )

    @property
    def dice(self) -> float:
        """The mean of :attr:`per_class`."""
        return (self.agreement + self.expected) / 2


def expected_dice(probabilities: np.ndarray, classes: np.ndarray) -> list[float | None]:
    """Dice that a prediction would have on average if its probabilities were true.

    Each voxel would be of class c with its probability p_c.

    Ratio of expectations, ``2 sum of p_c where c is predicted / (voxels predicted c + sum of
    p_c)``.

    Args:
        probabilities: ``[k, ...]``.
        classes: predicted class of every voxel ``[...]``.

    Returns:
        One value per class from 1, None where it is not predicted.
    """
    found: list[float | None] = []
    for index in range(1, len(probabilities)):
        mask, p = classes == index, probabilities[index]
        count = int(mask.sum())
        if count:
            both = 2 * float(p[mask].sum(dtype=np.float64))
            found.append(both / (count + float(p.sum(dtype=np.float64))))
        else:
            found.append(None)
    return found


def calibrated(
    raw: float, known: Sequence[Sequence[tuple[float, float]]], level: float = LEVEL
) -> tuple[float, float | None, float | None]:
    """Estimate, lower and upper end of the interval, from patients that were not trained on.

    `known` has for each of these patients the raw and the true Dice of their cases. The raw value
    is shifted by the mean error of the known patients. The interval is the jackknife+ one (Barber,
    Candes, Ramdas, Tibshirani 2021, arXiv 1905.02928, Eq. 1.5), with patients left out whole, as
    cases of one patient are not independent; n counts patients. A patient's cases share one vote
    (not from the paper). With too few patients for the level there is no interval.

    With one case of each patient it covers at least ``2 level - 1`` of new patients like the known
    ones, and mostly about `level`. That does not allow for the choice of the training step, which
    the held-out cases have made too: they flatter the model a little.
    """
    patients = [np.array([true - own for own, true in cases], float) for cases in known]
    n = len(patients)
    if not n:
        return raw, None, None
    means = np.array([errors.mean() for errors in patients])
    estimate = float(np.clip(raw + means.mean(), 0, 1))
    rank = math.floor((1 - level) * (n + 1) + 1e-9)
    if rank < 1 or n < 2:
        return estimate, None, None
    sizes = [len(errors) for errors in patients]
    others = np.repeat((means.sum() - means) / (n - 1), sizes)
    residuals, votes = (
        np.abs(np.concatenate(patients) - others),
        np.repeat(1 / np.array(sizes), sizes),
    )
    low = _ranked(raw + others - residuals, votes, rank)
    high = -_ranked(-raw - others - residuals, votes, rank)
    return estimate, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def _ranked(values: np.ndarray, votes: np.ndarray, rank: int) -> float:
    """The value at which the votes, from the least value up, reach `rank`."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(votes[order].cumsum(), rank - 1e-9)])


def judged(
    raw: Raw | None, known: Sequence[Sequence[tuple[float, float]]], missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The entry of one case in ``quality.json``; `raw` is None where no structure was found.

    Without an interval the estimate is not ``calibrated``: nothing is known of how it relates to
    true Dice, and ``review`` is None unless something speaks for it beyond the estimate.
    ``per_class`` means what ``dice`` does, and is shifted alike.

    `missing` names classes that are not found here, though labelled cases all have them: the
    estimate, which knows only what was found, does not show it.
    """
    if raw is None:
        return not_estimated("no structure was found") | {"dice": 0.0, "review": True}
    if not np.isfinite(raw.dice):
        return not_estimated("the model's probabilities are no numbers") | {"review": True}
    dice, low, high = calibrated(raw.dice, known)
    why = [f"Dice may be as low as {low:.2f}"] if low is not None and low < REVIEW_BELOW else []
    why += [f"{name} was not found, though all labels have it" for name in missing]
    return {
        "dice": dice,
        "low": low,
        "high": high,
        "calibrated": low is not None,
        "agreement": raw.agreement,
        "expected": raw.expected,
        "per_class": [
            None if value is None else float(np.clip(value + dice - raw.dice, 0, 1))
            for value in raw.per_class
        ],
        "review": True if why else None if low is None else False,
        "why": "; ".join(why),
    }


def not_estimated(why: str) -> dict[str, Any]:
    """The entry of a case whose Dice is not estimated."""
    known = ("dice", "low", "high", "agreement", "expected", "per_class", "review")
    return {**dict.fromkeys(known), "calibrated": False, "why": why}


def estimate_text(entry: Mapping[str, Any]) -> str:
    """An estimated Dice in words, never without its interval or the word that there is none."""
    if entry["dice"] is None:
        return f"not estimated: {entry['why']}"
    if entry.get("agreement", 0) is None:
        return "nothing found"
    if entry["low"] is None:
        return f"{entry['dice']:.2f} uncalibrated"
    return f"{entry['dice']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"


def review_text(entry: Mapping[str, Any]) -> str:
    """Whether a case is to be reviewed, and why."""
    if entry["review"] is None:
        return "not known: look at it"
    return f"yes: {entry['why']}" if entry["review"] else "no"


def read_quality(folder: Path) -> dict[str, Any]:
    """The estimates in a folder of predictions. Raises InputError for a file of another kind."""
    path = folder / QUALITY_FILE
    return read_json(path, format_name=QUALITY_FORMAT, newest_version=QUALITY_VERSION)


def drop_estimate(folder: Path, run: str, case: str) -> None:
    """Take a case that is predicted anew out of ``quality.json``.

    The file goes if it is another run's, or empty.
    """
    path = folder / QUALITY_FILE
    if path.exists():
        content = read_quality(folder)
        left = {name: entry for name, entry in content["cases"].items() if name != case}
        if content["run"] != run or not left:
            path.unlink()
        elif len(left) < len(content["cases"]):
            write_json(path, content | {"cases": left})


def compared(quality: Mapping[str, Any], per_case: Mapping[str, float | None]) -> dict[str, Any]:
    """Predicted against true Dice.

    Spearman's rank correlation with its interval, mean absolute error, fraction inside.

    Cases whose labels the run was trained, chosen or calibrated on say nothing about new ones; they
    are ``left_out``. None where it is not defined: fewer than 3 cases or no variation (Spearman),
    no interval (inside).
    """
    seen = set(quality.get("seen", ()))
    predicted, true, inside, left_out = [], [], [], []
    uncalibrated = 0
    for name, entry in quality["cases"].items():
        dice = per_case.get(name)
        if dice is None or entry["dice"] is None:
            continue
        if name in seen:
            left_out.append(name)
            continue
        predicted.append(entry["dice"])
        true.append(dice)
        uncalibrated += entry["low"] is None
        if entry["low"] is not None:
            inside.append(entry["low"] <= dice <= entry["high"])
    errors = np.abs(np.array(predicted) - np.array(true))
    rho = spearman(np.array(predicted), np.array(true))
    return {
        "n": len(predicted),
        "left_out": sorted(left_out),
        "spearman": rho,
        "spearman_interval": spearman_interval(rho, len(predicted)),
        "mean_absolute_error": float(errors.mean()) if predicted else None,
        "inside_interval": float(np.mean(inside)) if inside else None,
        "uncalibrated": uncalibrated,
        "review": sorted(name for name, entry in quality["cases"].items() if entry["review"]),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation with mean ranks for ties.

    None for fewer than 3 values or no variation.
    """
    from scipy.stats import rankdata

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def spearman_interval(rho: float | None, n: int) -> tuple[float, float] | None:
    """95 % interval of a rank correlation of `n` cases; None for fewer than 4.

    By Fisher's transformation with the variance ``(1 + rho^2 / 2) / (n - 3)`` of Bonett and
    Wright 2000 (Psychometrika 65, Eq. 5).

    The cases count as independent: with several of one patient it is too narrow.
    """
    if rho is None or n < 4:
        return None
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    centre = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    return math.tanh(centre - half), math.tanh(centre + half)
