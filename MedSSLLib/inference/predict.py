"""Prediction on the source grid: label volumes, probabilities and uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from MedSSLLib.core.errors import InputError, naming
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting, require_folder
from MedSSLLib.evaluation.calibration import probability_path
from MedSSLLib.evaluation.quality import drop_estimate
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.inference.model import PredictOptions, load_model, predict_case
from MedSSLLib.inference.quality_estimator import QualityEstimator
from MedSSLLib.inference.sliding_window import uncertainty
from MedSSLLib.project.layouts import images_at
from MedSSLLib.project.project import Project
from MedSSLLib.project.relocation import missing_words
from MedSSLLib.training.run_folder import RunFolder


class Predictions(NamedTuple):
    """Label files written, and the errors of the cases that could not be predicted."""

    written: list[Path]
    refused: list[InputError]


def run_predict(  # noqa: PLR0913 - the contract of the command
    project: Project,
    run: str,
    out: Path,
    events: Events,
    *,
    cases: str | None = None,
    images: Sequence[Path] = (),
    options: PredictOptions | None = None,
) -> Predictions:
    """Predict cases of the project (all of them by default) or image files.

    A case that cannot be read is named in a warning, and the others go on.

    Raises:
        InputError: no usable case, an unusable run, or a result that would replace a scan or a
            label.
    """
    options = options or PredictOptions()
    source = RunFolder(project.run_folder(run))
    model = load_model(source, options.device, options.precision)
    jobs, refused, notes = _jobs(project, cases, images, model.plan.channels)
    require_folder(out)
    _protect_inputs(project, out, jobs, model.classes)
    events.emit("start", command="predict", run=run, cases=len(jobs), device=str(model.device))
    _warn_of_flips(source, options, events)
    estimator = None
    if options.quality:
        estimator = QualityEstimator.of(project, source, model, options, events)
    for text in [*notes, *map(str, refused)]:
        events.emit("warning", message=text)
    written: list[Path] = []
    quality = {}
    for number, (name, paths) in enumerate(jobs.items(), 1):
        try:
            volumes = [io.read_image(path, case=name) for path in paths]
            with naming(name, str(paths[0])):
                label, probabilities = predict_case(model, volumes, options)
                if estimator:
                    quality[name] = estimator.entry(volumes)
        except InputError as error:
            refused.append(error)
            events.emit("warning", message=str(error))
            continue
        drop_estimate(out, run, name)
        written.append(_write(out, name, (label, paths[0]), probabilities, model.classes, options))
        events.progress("predict", number, len(jobs))
    if not written:
        raise refused[0]
    if estimator:
        estimator.write(out, quality)
    events.emit("done", run=run, cases=len(written), refused=len(refused), folder=str(out))
    return Predictions(written, refused)


def _warn_of_flips(run: RunFolder, options: PredictOptions, events: Events) -> None:
    """Say so where flips are averaged over that the run was not trained with."""
    if options.flips and not run.config.augment.flip:
        events.emit(
            "warning",
            message=f"Run {run.name} was trained without flips, so mirrored images are new to it "
            "and averaging over them may make it worse. Train with --set augment.flip=0.5, or "
            "leave --flips out.",
        )


def _protect_inputs(
    project: Project, out: Path, jobs: dict[str, tuple[Path, ...]], classes: Sequence[str]
) -> None:
    """Raises InputError where a result would replace a file of the project or an input."""
    results: list[Path] = []
    inputs = list(project.files)
    for name, paths in jobs.items():
        results += _targets(out, name, classes)
        inputs += paths
    refuse_overwriting(results, inputs)


def _jobs(
    project: Project, cases: str | None, images: Sequence[Path], channels: int
) -> tuple[dict[str, tuple[Path, ...]], list[InputError], tuple[str, ...]]:
    """Images by case, and what is wrong with cases that cannot be told apart or lack a channel."""
    if images:
        source = images_at(images, channels)
        jobs = {case.name: case.images for case in source.cases}
        return jobs, list(source.refused), source.warnings
    chosen = project.cases if cases is None else project.select(cases)
    if not chosen:
        raise InputError(
            "no case is selected", remedy="Name cases with --cases, or image files with --images"
        )
    return {case.name: case.images for case in chosen}, [], missing_words(project.folder, chosen)


def _targets(out: Path, name: str, classes: Sequence[str]) -> list[Path]:
    """Every file that `_write` writes or removes."""
    return [
        out / f"{name}.nii.gz",
        out / "uncertainty" / f"{name}.nii.gz",
        *(probability_path(out, name, index, words) for index, words in enumerate(classes)),
    ]


def _write(
    out: Path,
    name: str,
    found: tuple[Volume, Path],
    probabilities: np.ndarray,
    classes: Sequence[str],
    options: PredictOptions,
) -> Path:
    label, source = found
    path = out / f"{name}.nii.gz"
    certainty = out / "uncertainty" / f"{name}.nii.gz"
    for index, p in enumerate(probabilities):
        place = probability_path(out, name, index, classes[index])
        if options.probabilities:
            io.write_image(place, Volume(p.astype(np.float32), label.geometry), like=source)
        else:
            place.unlink(missing_ok=True)  # of an earlier prediction, whose label is replaced below
    if not options.uncertainty:
        certainty.unlink(missing_ok=True)
    else:
        entropy = uncertainty(torch.from_numpy(probabilities)).numpy().astype(np.float32)
        io.write_image(certainty, Volume(entropy, label.geometry), like=source)
    io.write_image(path, label, like=source)
    return path
