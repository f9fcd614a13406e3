"""Pseudo-labels of one self-training round: predicted, cleaned, filtered, written for people."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.config.commands import Clean, Filter
from MedSSLLib.core.errors import GuardError, InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.core.words import amount
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.label import preprocess_label
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.images import io
from MedSSLLib.images.components import taken_away
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE, as_label_values, class_indices, counted_mask
from MedSSLLib.images.shape_interpolation import with_known_shapes
from MedSSLLib.inference.model import Model, on_source
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.selftraining.cleaning import Cleaned, cleaned, smooth
from MedSSLLib.selftraining.soft_labels import write_probabilities

SUMMARY, _FORMAT_VERSION = "summary.json", 1
ENTRIES = "preprocessed"  # folder of a round
# factor of a class's total volume between rounds that raises the drift alarm; not from the paper
GROWTH = 3.0
# of pseudo-labels: where a first model found too little they grew 1.4 times, where they leaked 1.8
# times (hearts); not from a paper
MOST_GROWTH = 1.5
CONFIDENCE_STEPS = 200  # of the confidence that is written, which has little to pack then


@dataclass(frozen=True, kw_only=True)
class PseudoOptions:
    """How pseudo-labels are cleaned and chosen.

    Attributes:
        clean: 'components' keeps pieces by evidence and fills small holes (see ``cleaning.py``);
            'crf' smooths along the edges of the image first (see ``crf.py``).
        filter: 'consistency' keeps a case whose predictions agree under changes of contrast and
            size, 'confidence' one whose foreground is predicted with enough confidence.
        threshold: least agreement (Dice) or confidence (mean probability) of a kept case.
        accept: cases kept whatever the filter says, and though nothing was found in them.
        reject: cases left out.
        fixed: folder of earlier pseudo-labels that a person has looked at; those of accepted cases
            stay as they are.
        start: name of the run that the first model is taken from; empty when it is trained in the
            same run.
        soft: also keep the probabilities (see ``soft_labels.py``); what a person has drawn or
            accepted stays certain.
        shapes: the shapes between the drawn slices of a case count as well (see
            ``shape_interpolation.with_known_shapes``).
    """

    clean: Clean = "components"
    filter: Filter = "none"
    threshold: float = 0.8
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    fixed: Path | None = None
    start: str = ""
    soft: bool = False
    shapes: bool = True


_FIRST_STAGE = "the first stage longer (--minutes)"


class CollapsedError(GuardError):
    """The pseudo-labels show that the model that made them has failed."""


def write_pseudo_labels(
    project: Project,
    model: Model,
    cases: Sequence[Case],
    folder: Path,
    options: PseudoOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Predict all cases, write them, then the summary; returns it.

    The files are ``folder/CASE.nii.gz`` with ``folder/confidence/CASE.nii.gz``. Slices that a
    person has drawn are kept as drawn. The summary counts what the model finds, drawn or not. A
    folder with a summary is complete and is not made again.

    Raises:
        InputError: a case cannot be read.
        CollapsedError: no foreground is predicted in any case.
        GuardError: no case is left after the filter.
    """
    if (folder / SUMMARY).exists():
        return read_json(folder / SUMMARY, newest_version=_FORMAT_VERSION)
    rows, started = {}, time.monotonic()
    for number, case in enumerate(cases, 1):
        rows[case.name] = _write_case(project, model, case, folder, options)
        progress(number, len(cases))
    if not any(_found(row) for row in rows.values()):
        what = f"run {options.start!r} longer" if options.start else _FIRST_STAGE
        raise CollapsedError(
            "The model predicts no foreground in any unlabelled case, so there is nothing to learn "
            f"from. Train {what}, or annotate more slices."
        )
    summary = {
        "format_version": _FORMAT_VERSION,
        "cases": rows,
        "kept": select_cases(rows, options),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / SUMMARY, summary)
    return summary


def _write_case(
    project: Project, model: Model, case: Case, folder: Path, options: PseudoOptions
) -> dict[str, Any]:
    volumes = [io.read_image(path, case=case.name) for path in case.images]
    source = volumes[0].geometry
    found, grid = model.probabilities(volumes)
    person, predicted = decided(project, case, source, options), on_source(found, grid, source)
    own = smooth(predicted, volumes[0]) if options.clean == "crf" else predicted
    drawn = case.annotated.whole if options.shapes and case.annotated else None
    drawn = drawn if drawn and drawn.count else None
    likely = with_known_shapes(own, person, drawn, source.spacing) if drawn else own
    if options.soft and likely is not predicted:
        found = torch.from_numpy(on_source(torch.from_numpy(likely), source, grid))
    plain, clean = _classes(model, likely, options, person)
    doubtful = clean.doubtful & (person == IGNORE) & options.soft
    gone = (clean.classes != plain) & (person == IGNORE)
    seen, unsure = _classes(model, own, options)[1] if drawn else clean
    seen = np.where(unsure & options.soft, 0, seen)
    confidence = likely.max(0)
    confidence = (np.rint(confidence * CONFIDENCE_STEPS) / CONFIDENCE_STEPS).astype(np.float32)
    classes = np.where(person == IGNORE, clean.classes, person)
    values = as_label_values(classes, project.values)
    like = case.images[0]
    io.write_image(folder / f"{case.name}.nii.gz", Volume(values, source), like=like)
    io.write_image(
        folder / "confidence" / f"{case.name}.nii.gz", Volume(confidence, source), like=like
    )
    if options.soft:
        certain = ((person != IGNORE) | (clean.classes != plain)) & ~doubtful
        settled = Volume(np.where(certain, classes, IGNORE), source)
        weighed = preprocess_label(Volume(classes, source), grid)
        weighed[preprocess_label(settled, grid) != IGNORE] = IGNORE
        if doubtful.any():  # neither the structure nor background is likely: these do not count
            found = found.clone()
            on_grid = preprocess_label(Volume(doubtful.astype(np.uint8), source), grid) == 1
            found[:, torch.from_numpy(on_grid)] = 0
        write_probabilities(folder, case.name, found.numpy(), weighed, model.plan.dim)

    return {
        "voxels": _voxels(seen, project.classes),
        "confidence": float(own.max(0)[seen > 0].mean()) if seen.any() else 0.0,
        "agreement": _agreement(model, volumes) if options.filter == "consistency" else None,
        "taken_away": _measured(plain, gone, project.classes, source),
        "in_doubt": _measured(plain, doubtful, project.classes, source),
    }


def _measured(
    plain: np.ndarray, mask: np.ndarray, names: Sequence[str], grid: Geometry
) -> dict[str, dict[str, float]]:
    """The pieces of a class map within a mask, by class: how many, and their volume."""
    return {
        names[index]: {"pieces": pieces, "ml": round(voxels * grid.voxel_ml, 4)}
        for index, (pieces, voxels) in taken_away(plain, np.where(mask, 0, plain)).items()
    }


def _voxels(classes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Voxels of every foreground class by name."""
    counts = np.bincount(classes.ravel(), minlength=len(names)).tolist()
    return dict(zip(names[1:], counts[1:], strict=False))


def _found(row: dict[str, Any]) -> int:
    """Foreground voxels of a case."""
    return sum(row["voxels"].values())


def _classes(
    model: Model, likely: np.ndarray, options: PseudoOptions, person: np.ndarray | None = None
) -> tuple[np.ndarray, Cleaned]:
    """Class maps of probabilities, as they are and cleaned, by what a `person` has said too."""
    plain = model.class_map(likely, "all")
    if options.clean == "none":
        return plain, Cleaned(plain, np.zeros(plain.shape, bool))
    return plain, cleaned(model, plain, likely.max(0), person)


def _agreement(model: Model, volumes: Sequence[Volume]) -> float:
    """Dice of the prediction with those under changes of contrast and size, the mean."""
    image, _ = preprocess_image(volumes, model.plan)
    plain, *others = [found.argmax(0).numpy() for found in model.each_variant(image)]
    return float(np.mean([foreground_dice(plain, other) for other in others]))


def decided(project: Project, case: Case, grid: Geometry, options: PseudoOptions) -> np.ndarray:
    """What a person has drawn, or else accepted, of a case.

    A class map on the grid of the case, IGNORE where the model decides.
    """

    def read(path: Path) -> np.ndarray:
        label = io.read_label(path, grid, case=case.name, names=project.labels).array
        return class_indices(label, project.values, ignore=project.ignore_value)

    result = np.full(grid.shape, IGNORE, np.uint8)
    if case.name in options.accept and options.fixed:
        accepted = options.fixed / f"{case.name}.nii.gz"
        if accepted.exists():
            result = read(accepted)
    if case.annotated and case.label:
        drawn = read(case.label)
        by_person = counted_mask(grid.shape, case.annotated) & (drawn != IGNORE)
        result = np.where(by_person, drawn, result)
    return result


def select_cases(rows: dict[str, dict[str, Any]], options: PseudoOptions) -> list[str]:
    """Names of the cases whose pseudo-labels are used.

    Raises:
        GuardError: none is left.
    """
    passed = [name for name, row in rows.items() if _is_used(name, row, options)]
    if passed:
        return passed
    if options.filter == "none":
        raise GuardError(
            "No pseudo-label is left: the model finds no structure in the cases that are not "
            "rejected. Take some out of --reject, train the first model longer, or annotate more "
            "slices."
        )
    raise GuardError(
        f"No pseudo-label is left after the filter {options.filter!r} ({options.threshold:g}) and "
        "--reject. Lower the threshold (--set options.threshold=N), use --filter none, or "
        "annotate more slices."
    )


def _is_used(name: str, row: dict[str, Any], options: PseudoOptions) -> bool:
    if name in options.reject:
        return False
    if name in options.accept:
        return True
    if not _found(row):
        return False
    measure = {"consistency": "agreement", "confidence": "confidence"}.get(options.filter)
    return measure is None or row[measure] >= options.threshold


def drift(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Warnings about classes that grow without bound from one round's summary to the next.

    Raises:
        CollapsedError: a class has vanished from all cases.
    """
    first, second = _totals(before), _totals(after)
    vanished = [name for name, voxels in first.items() if voxels and not second.get(name, 0)]
    if vanished:
        raise CollapsedError(
            f"The class {', '.join(vanished)} has vanished from the pseudo-labels. The last good "
            "model is kept. Use fewer --rounds, or annotate slices that show it."
        )
    warnings = []
    for name, voxels in first.items():
        if voxels and second[name] > GROWTH * voxels:
            times = second[name] / voxels
            warnings.append(
                f"The class {name} grew {times:.1f} times between two rounds; look at the "
                "pseudo-labels."
            )
    return warnings


def leak_words(first: dict[str, Any], last: dict[str, Any]) -> str:
    """What is said where pseudo-labels have grown so much that they may leak; else "".

    Args:
        first, last: summaries of the pseudo-labels of the first and the last round.
    """
    before, after = (sum(_totals(summary).values()) for summary in (first, last))
    if after <= MOST_GROWTH * before:
        return ""
    return (
        f"Pseudo-labels have grown to {after / before:.1f} times what the first model found: they "
        "may leak into what is no structure. Look at predictions of some scans before you trust "
        "this model; if they are too large, annotate slices there, or use fewer --rounds."
    )


def absent_classes(summary: dict[str, Any]) -> list[str]:
    """Warnings of foreground classes without a voxel in any pseudo-label."""
    warnings = []
    for name in absent(summary):
        warnings.append(
            f"The model predicts the class {name} in no case; look at the pseudo-labels, or "
            "annotate slices that show it."
        )
    return warnings


def absent(summary: dict[str, Any]) -> list[str]:
    """Foreground classes without a voxel in any pseudo-label."""
    return [name for name, voxels in _totals(summary).items() if not voxels]


def taken_from(summary: dict[str, Any]) -> list[str]:
    """A sentence on pieces that were found and are not taught, if there are any."""
    found = []
    for key, what in (
        ("taken_away", "taught as background"),
        ("in_doubt", "shown, but teaching nothing"),
    ):
        cases = [case for case, row in summary["cases"].items() if row.get(key)]
        if cases:
            listed = ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if cases[3:] else "")
            found.append(f"{_summed(summary, key)}, {what}, in {listed}")
    if not found:
        return []
    return [
        f"Apart from the surest piece lie {'; and '.join(found)}. To keep every piece: --clean "
        "none."
    ]


def _summed(summary: dict[str, Any], key: str) -> str:
    """The pieces of each class in all cases, with their volume."""
    pieces: dict[str, int] = {}
    volume: dict[str, float] = {}
    for row in summary["cases"].values():
        for name, one in row.get(key, {}).items():
            pieces[name] = pieces.get(name, 0) + one["pieces"]
            volume[name] = volume.get(name, 0.0) + one["ml"]
    return " and ".join(
        f"{count} piece{'s' if count > 1 else ''} of {name} ({amount(volume[name])} ml)"
        for name, count in pieces.items()
    )


def _totals(summary: dict[str, Any]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for row in summary["cases"].values():
        for name, voxels in row["voxels"].items():
            totals[name] = totals.get(name, 0) + voxels
    return totals


def pseudo_labelled(cases: Sequence[Case], folder: Path, kept: Iterable[str]) -> tuple[Case, ...]:
    """The kept cases with their pseudo-label files as dense labels.

    Raises:
        InputError: a file is missing.
    """
    chosen = set(kept)
    result = []
    for case in cases:
        if case.name not in chosen:
            continue
        path = folder / f"{case.name}.nii.gz"
        if not path.exists():
            raise InputError(
                "the pseudo-label is missing",
                case=case.name,
                file=str(path),
                remedy=f"Remove {folder} and resume, so that the round is made again",
            )
        result.append(replace(case, label=path, annotated=None))
    return tuple(result)


def discard_entries(folder: Path) -> None:
    """Remove the preprocessed labels of all rounds in ``RUN/pseudo``.

    Those of CT scans can fill a disk.
    """
    for entries in folder.glob(f"*/{ENTRIES}"):
        shutil.rmtree(entries, ignore_errors=True)
