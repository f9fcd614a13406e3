"""Scoring a folder of predictions against references; summaries and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError, MedSSLError, naming
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting, require_file, write_json
from MedSSLLib.evaluation import quality
from MedSSLLib.evaluation.calibration import folder_calibration
from MedSSLLib.evaluation.class_names import ClassNames
from MedSSLLib.evaluation.metrics import METRICS, CaseMetrics, ClassMetrics, evaluate_case
from MedSSLLib.evaluation.pairing import by_case
from MedSSLLib.images import io
from MedSSLLib.images.labels import Annotated, counted_mask, label_values

MOST_VALUES, MOST_FOREIGN = 200, 40
"""Different values that a segmentation has at most, and those that its reference lacks.

What has more is a scan. Not from a paper.
"""
IGNORED = "ignore"
"""Name of the label value that says that nothing is known of a voxel, as in nnU-Net."""


def evaluate_folder(  # noqa: PLR0913 - what a score depends on
    predictions: Path | str,
    references: Path | str,
    out: Path | str | None,
    tolerance_mm: float = 1.0,
    *,
    classes: Mapping[str, int] | None = None,
    annotated: Mapping[str, Annotated] | None = None,
    events: Events | None = None,
) -> dict[str, Any]:
    """Score every prediction that has a reference of the same case name.

    Writes ``metrics.json``.

    Args:
        predictions: folder with ``CASE.nii.gz``, ``.nrrd`` or ``.mha`` on the source grid.
        references: folder with the reference labels under the same names, or those of labels
            beside scans (CASE_seg.nii.gz); two files of a case are refused.
        out: the JSON file to write; ``None`` = only return.
        tolerance_mm: tolerance of surface Dice in mm, > 0.
        classes: name to label value; ``None`` = every value but 0 that occurs anywhere, with the
            name that segmentations give it (they are compared by name, whatever their values),
            else its number. A value named "ignore" is no class: where a reference has it, nothing
            counts.
        annotated: annotated slices of sparsely labelled references; cases not named count fully.
        events: where progress goes.

    Returns:
        The content of ``metrics.json``: ``cases``, ``summary``, ``tolerance_mm``, ``missed`` (how
        many times a prediction lacks a class of its reference; no distance holds those),
        ``missing`` (references without prediction), ``extra`` (predictions without reference),
        ``unknown`` (case -> values that `classes` lacks and that are not scored) and ``errors``
        (case -> why it was not scored); ``quality`` where the predictions have a ``quality.json``
        (see :func:`~MedSSLLib.evaluation.quality.compared`); ``calibration`` where they have
        probabilities and `classes` is given (see :mod:`MedSSLLib.evaluation.calibration`).

    Raises:
        InputError: a folder is missing, the tolerance is not positive, or not a single case could
            be scored.
    """
    predicted, expected, twice = _by_case(Path(predictions), Path(references))
    if out is not None:
        require_file(Path(out))
        refuse_overwriting([Path(out)], [*predicted.values(), *expected.values()])
    missing = sorted(expected.keys() - predicted.keys())
    extra = sorted(predicted.keys() - expected.keys())
    paired = sorted((predicted.keys() & expected.keys()) - twice.keys())
    if not paired and not twice:
        raise InputError(
            f"the predictions ({_some(extra)}) and the references ({_some(missing)}) have no "
            "name in common",
            file=predictions,
            remedy="Give both files of a case the same name",
        )
    pairs = {name: (predicted[name], expected[name]) for name in paired}
    result = evaluate_pairs(
        pairs, tolerance_mm, classes=classes, annotated=annotated, errors=twice, events=events
    )
    result |= {"missing": missing, "extra": extra}
    _add_quality(result, Path(predictions))
    _add_calibration(result, Path(predictions), expected, classes or {}, annotated)
    if out is not None:
        write_json(Path(out), result)
    return result


def _add_quality(result: dict[str, Any], predictions: Path) -> None:
    """How good the estimates beside the predictions were, where there are any."""
    if (predictions / quality.QUALITY_FILE).exists():
        estimates = quality.read_quality(predictions)
        result["quality"] = quality.compared(estimates, result["summary"]["dice"]["per_case"])


def _add_calibration(
    result: dict[str, Any],
    predictions: Path,
    expected: Mapping[str, Path],
    classes: Mapping[str, int],
    annotated: Mapping[str, Annotated] | None,
) -> None:
    """Calibration of written probabilities; what is wrong with them does not cost the scores."""
    kinds = {kind: value for kind, value in classes.items() if kind.lower() != IGNORED}
    if not kinds:
        return
    scored = {name: expected[name] for name in result["cases"]}
    try:
        measured = folder_calibration(predictions, scored, kinds, annotated)
    except MedSSLError as error:
        result["errors"]["probabilities"] = str(error)
        return
    if measured:
        result["calibration"] = measured


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    tolerance_mm: float = 1.0,
    *,
    classes: Mapping[str, int] | None = None,
    annotated: Mapping[str, Annotated] | None = None,
    errors: Mapping[str, str] | None = None,
    events: Events | None = None,
) -> dict[str, Any]:
    """As :func:`evaluate_folder`, for ``{case: (prediction, reference)}`` files.

    Nothing is written.

    ``errors`` are cases that were given up before, listed with those found here; ``events`` is
    where progress goes.
    """
    if not tolerance_mm > 0:
        raise InputError(f"tolerance is {tolerance_mm} mm", remedy="Give a positive tolerance")
    if classes is None:
        known = ClassNames.of(pairs.values())
    else:
        known = ClassNames({value: kind for kind, value in classes.items()})
    failed, cases = dict(errors or {}), {}
    unknown: dict[str, list[int]] = {}
    events = events or Events()
    for number, (name, files) in enumerate(pairs.items(), 1):
        drawn = (annotated or {}).get(name)
        events.progress("evaluate", number, len(pairs))
        try:
            cases[name], others = _evaluate_files(name, files, tolerance_mm, known, classes, drawn)
        except MedSSLError as error:
            failed[name] = str(error)
            continue
        if others:
            unknown[name] = others
    if not cases:
        first = next(iter(failed.values()), "there is none")
        raise InputError(
            f"no case could be scored: {first}", remedy="Correct the files that are named"
        )
    completed = _completed(cases, None if classes else known)
    return {
        "format": "medssl-metrics",
        "format_version": 1,
        "tolerance_mm": tolerance_mm,
        "cases": completed,
        "summary": summarise(completed),
        "missed": sum(_missed(kinds) for kinds in completed.values()),
        "missing": [],
        "extra": [],
        "unknown": unknown,
        "errors": failed,
    }


def _by_case(
    predictions: Path, references: Path
) -> tuple[dict[str, Path], dict[str, Path], dict[str, str]]:
    """Files of both folders by case, and why a case with two files is given up."""
    ours, theirs = io.find_images(predictions), io.find_images(references)
    expected, twice = by_case(theirs, by_case(ours)[0])
    predicted, more = by_case(ours, expected)
    return predicted, expected, {name: str(why) for name, why in (twice | more).items()}


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names)


def _evaluate_files(
    name: str,
    files: tuple[Path, Path],
    tolerance: float,
    known: ClassNames,
    classes: Mapping[str, int] | None,
    annotated: Annotated | None,
) -> tuple[CaseMetrics, list[int]]:
    """The metrics of a case, and the values that are neither 0, a class nor to be ignored."""
    predicted, expected = files
    geometry = io.common_grid(predicted, expected)
    with naming(name):
        known.check(files)
    reference = io.read_label(expected, geometry, case=name, names=known.names).array
    prediction = io.read_label(predicted, geometry, case=name, names=known.names).array
    _require_label(reference, None, expected)
    _require_label(prediction, reference, predicted)
    values = {*label_values(reference), *label_values(prediction)} - {0}
    if classes is None:
        classes = known.classes(values)
    counted = None if annotated is None else counted_mask(reference.shape, annotated)
    scored = {}
    for kind, value in classes.items():
        if kind.lower() != IGNORED:
            scored[kind] = value
        elif counted is None:
            counted = reference != value
        else:
            counted = counted & (reference != value)
    metrics = evaluate_case(
        prediction, reference, geometry.spacing[::-1], scored, tolerance, counted
    )
    return metrics, sorted(values - set(classes.values()))


def _require_label(label: np.ndarray, known: np.ndarray | None, file: Path) -> None:
    """Raise InputError for what holds so many values that it must be a scan.

    Args:
        label: of a prediction or reference.
        known: the reference of a prediction; its values are expected.
        file: where it was read.
    """
    values = set(label_values(label))
    foreign = set() if known is None else values - set(label_values(known))
    if len(values) > MOST_VALUES or len(foreign) > MOST_FOREIGN:
        raise InputError(
            f"holds {len(values)} different values, as a scan does, not a segmentation",
            file=file,
            remedy="Give folders of segmentations and of reference labels",
        )


def _completed(
    cases: Mapping[str, CaseMetrics], known: ClassNames | None
) -> dict[str, CaseMetrics]:
    """Every case with every class; in the order of their values where nobody gave the classes.

    A class that a case lacks on both sides has volume 0 and is undefined.
    """
    names: list[str] = []
    for kinds in cases.values():
        names += [name for name in kinds if name not in names]
    names = names if known is None else known.in_order(names)
    absent: ClassMetrics = dict.fromkeys(METRICS) | {"volume_ml": 0.0, "reference_ml": 0.0}
    completed = {}
    for case, kinds in cases.items():
        completed[case] = {name: kinds.get(name, dict(absent)) for name in names}
    return completed


def _missed(kinds: CaseMetrics) -> int:
    """How many classes of the reference a case's prediction lacks."""
    return sum(bool(of["reference_ml"]) and not of["volume_ml"] for of in kinds.values())


def summarise(cases: Mapping[str, CaseMetrics]) -> dict[str, dict[str, Any]]:
    """Summary per metric over ``{case: {class: {metric: value}}}``.

    ``mean`` is the mean over cases of the mean over foreground classes, undefined values left out;
    ``n`` is the number of cases in it, ``undefined`` the number of case x class values left out. A
    mean over nothing is ``None``.
    """
    return {metric: _summary(cases, metric) for metric in METRICS}


def _summary(cases: Mapping[str, CaseMetrics], metric: str) -> dict[str, Any]:
    by_case: dict[str, list[float | None]] = {}
    by_class: dict[str, list[float | None]] = {}
    for case, kinds in cases.items():
        by_case[case] = []
        for name, values in kinds.items():
            by_case[case].append(values[metric])
            by_class.setdefault(name, []).append(values[metric])
    per_case = {case: _mean(values) for case, values in by_case.items()}
    return {
        "mean": _mean(per_case.values()),
        "per_class": {name: _mean(values) for name, values in by_class.items()},
        "per_case": per_case,
        "n": sum(value is not None for value in per_case.values()),
        "undefined": sum(values.count(None) for values in by_case.values()),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def averaged_within(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Values ``[choices, cases]`` averaged within groups: ``[choices, groups]``.

    A group holds the cases of a patient.

    ``groups`` has one name a case. Undefined values (NaN) are left out; a group without any stays
    undefined.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    names = list(dict.fromkeys(groups))
    member = np.zeros((len(groups), len(names)))
    for case, group in enumerate(groups):
        member[case, names.index(group)] = 1
    defined = ~np.isnan(values)
    weight = defined @ member
    total = np.where(defined, values, 0.0) @ member
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def bootstrap_interval(
    differences: np.ndarray, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and bootstrap percentile interval of paired differences over cases x label choices.

    Cases and choices are both drawn with replacement (the crossed, or pigeonhole, bootstrap of Owen
    2007), so the interval speaks about new cases *and* new choices of labelled volumes. It is too
    narrow where choices are few (the variance of r of them shrinks by (r - 1) / r); that of a
    single one is not in it at all.

    Args:
        differences: ``[choices, cases]`` or ``[cases]``; NaN = undefined, left out.
        level: coverage in (0, 1).
        samples: bootstrap samples.
        seed: seed of the resampling.

    Returns:
        ``(mean, low, high)``.

    Raises:
        ValueError: no defined difference.
    """
    values = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    defined = ~np.isnan(values)
    if not defined.any():
        raise ValueError("bootstrap_interval needs at least one defined difference")
    generator = np.random.default_rng(seed)

    def drawn(n: int) -> np.ndarray:
        """How often each of n is in every sample, ``[samples, n]``."""
        return generator.multinomial(n, np.full(n, 1 / n), size=samples)

    choices, cases = drawn(len(values)), drawn(values.shape[1])
    total = np.einsum("sr,rc,sc->s", choices, np.where(defined, values, 0.0), cases, optimize=True)
    weight = np.einsum("sr,rc,sc->s", choices, defined.astype(np.float64), cases, optimize=True)
    means = total[weight > 0] / weight[weight > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values[defined].mean()), float(low), float(high)
