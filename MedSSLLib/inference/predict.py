"""Prediction on the source grid: label volumes, probabilities and uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MedSSLLib.core.errors import InputError, is_out_of_memory, naming
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting, require_folder
from MedSSLLib.core.words import amount
from MedSSLLib.data.plan import LINEAR_CT
from MedSSLLib.evaluation.calibration import probability_path
from MedSSLLib.evaluation.quality import drop_estimate
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference.model import (
    CaseSegmentation,
    Model,
    PredictOptions,
    load_model,
    prepared,
    segment_case,
)
from MedSSLLib.inference.quality_estimator import QualityEstimator
from MedSSLLib.inference.unlike_scans import unlike_training
from MedSSLLib.project.layouts import images_at
from MedSSLLib.project.project import Project
from MedSSLLib.project.relocation import missing_words
from MedSSLLib.training.run_folder import RunFolder

WHY_TAKEN = (
    "What was taken away lies apart from what is kept, and the training labels show one piece (or "
    "--components largest was asked for). To keep every piece: --components all."
)


class Predictions(NamedTuple):
    """Label files written, the errors of the cases that could not be predicted, and the entries of
    ``quality.json`` that are new.
    """

    written: list[Path]
    refused: list[InputError]
    quality: dict[str, dict[str, Any]]


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
    jobs, refused, notes = _jobs(project, cases, images, model.plan.channels, out)
    require_folder(out)
    _protect_inputs(project, out, jobs, model.classes)
    events.emit("start", command="predict", run=run, cases=len(jobs), device=str(model.device))
    _warn_of_run(source, model, options, events)
    estimator = _estimator(project, source, model, options, events)
    for text in [*notes, *map(str, refused)]:
        events.emit("warning", message=text)
    written: list[Path] = []
    quality, incomplete = {}, False
    for number, (name, paths) in enumerate(jobs.items(), 1):
        try:
            found, estimate = _predicted(model, name, paths, options, estimator)
        except InputError as error:
            refused.append(error)
            events.emit("warning", message=str(error))
            continue
        incomplete |= bool(found.taken)
        if estimate:
            quality[name] = estimate
        drop_estimate(out, run, name)
        written.append(_write(out, name, found, paths[0], model.classes))
        for words in _noteworthy(model, name, paths if images else (), found):
            events.emit("warning", message=words, case=name)
        del found
        events.progress("predict", number, len(jobs))
    if not written:
        raise refused[0]
    _tell_why(events, incomplete)
    if estimator:
        estimator.write(out, quality)
    counts = {"cases": len(written), "refused": len(refused)}
    events.emit("done", run=run, **counts, folder=str(out), components=options.components)
    return Predictions(written, refused, quality)


def _predicted(
    model: Model,
    name: str,
    paths: Sequence[Path],
    options: PredictOptions,
    estimator: QualityEstimator | None,
) -> tuple[CaseSegmentation, dict[str, Any]]:
    """What is predicted of one case, and the estimate of its quality, {} where none is asked for.

    Raises:
        InputError: the case cannot be read, or memory runs out.
    """
    try:
        volumes = [io.read_image(path, case=name) for path in paths]
        with naming(name, str(paths[0])):
            source = volumes[0].geometry
            image, grid = prepared(model, volumes)
            del volumes  # a scan may be as large as all else together
            found = segment_case(model, image, grid, source, options)
            return found, estimator.entry(image) if estimator else {}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "there is not enough memory to segment it",
            case=name,
            file=str(paths[0]),
            remedy=_less_memory(options),
        ) from error


def _less_memory(options: PredictOptions) -> str:
    """What takes less memory than these options."""
    spared = [f"--{word}" for word in ("quality", "probabilities", "uncertainty", "flips")]
    asked = [word for word in spared if getattr(options, word[2:])]
    if asked:
        return f"Leave out {' and '.join(asked)}, or close other programs"
    return "Close other programs, or use --device cpu where a graphics card was full"


def _noteworthy(
    model: Model, name: str, new: Sequence[Path], found: CaseSegmentation
) -> Iterator[str]:
    """What to say of a prediction: what is odd about `new` images (of the project's own it was said
    when they came into it), and the pieces that were taken away.
    """
    grid = found.label.geometry
    if new:
        try:
            yield from (f"{name}: {words}" for words in unlike_training(model.plan, new, grid))
        except MemoryError:  # the result is written, and the other cases go on
            yield (
                f"{name}: there was not enough memory to compare its values with those trained on; "
                "look whether the scan is of the same kind."
            )
    if found.taken:
        yield about_pieces(name, found.taken, model.classes, grid)


def _tell_why(events: Events, incomplete: bool) -> None:
    if incomplete:
        events.emit("warning", message=WHY_TAKEN)


def about_pieces(
    name: str, taken: Mapping[int, tuple[int, int]], classes: Sequence[str], geometry: Geometry
) -> str:
    """A sentence on the pieces (and their voxels) of classes that were found and are taken away;
    ``WHY_TAKEN`` is said once for all cases.
    """
    parts = [
        f"{pieces} piece{'s' if pieces > 1 else ''} of {classes[index]} "
        f"({amount(voxels * geometry.voxel_ml)} ml)"
        for index, (pieces, voxels) in taken.items()
    ]
    return f"{name}: {', '.join(parts)} taken away."


def _estimator(
    project: Project, run: RunFolder, model: Model, options: PredictOptions, events: Events
) -> QualityEstimator | None:
    """What estimates the quality of predictions, where that is asked for."""
    if not options.quality:
        return None
    return QualityEstimator.of(project, run, model, options, events)


def _warn_of_run(run: RunFolder, model: Model, options: PredictOptions, events: Events) -> None:
    """Say where a run does not fit what is asked of it."""
    if options.flips and not run.config.augment.flip:
        events.emit(
            "warning",
            message=f"Run {run.name} was trained without flips, so mirrored images are new to it "
            "and averaging over them may make it worse. Train with --set augment.flip=0.5, or "
            "leave --flips out.",
        )
    if model.plan.intensities < LINEAR_CT:
        events.emit(
            "warning",
            message=f"Run {run.name} was trained with intensities normalised by a rule that is no "
            "longer there, so its predictions may be worse than they were. Train it again.",
        )


def _protect_inputs(
    project: Project, out: Path, jobs: dict[str, tuple[Path, ...]], classes: Sequence[str]
) -> None:
    """Raises InputError where a result would replace a file of the project, an input, or in another
    folder than the project's a label map that no model made.
    """
    results: list[Path] = []
    inputs = list(project.files)
    for name, paths in jobs.items():
        results += _targets(out, name, classes)
        inputs += paths
    refuse_overwriting(results, inputs)
    if not out.resolve().is_relative_to(project.folder.resolve()):
        io.refuse_to_replace_drawn(out / f"{name}.nii.gz" for name in jobs)


def _jobs(
    project: Project, cases: str | None, images: Sequence[Path], channels: int, out: Path
) -> tuple[dict[str, tuple[Path, ...]], list[InputError], tuple[str, ...]]:
    """Images by case, and what is wrong with cases that cannot be told apart or lack a channel."""
    if images:
        source = images_at(images, channels, (out, project.folder))
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
    found: CaseSegmentation,
    source: Path,
    classes: Sequence[str],
) -> Path:
    path, geometry = out / f"{name}.nii.gz", found.label.geometry
    certainty = out / "uncertainty" / f"{name}.nii.gz"
    for index, words in enumerate(classes):
        place = probability_path(out, name, index, words)
        if found.probabilities is not None:
            p = found.probabilities[index].astype(np.float32, copy=False)
            io.write_image(place, Volume(p, geometry), like=source)
        else:
            place.unlink(missing_ok=True)  # of an earlier prediction, whose label is replaced below
    if found.uncertainty is not None:
        io.write_image(certainty, Volume(found.uncertainty, geometry), like=source)
    else:
        certainty.unlink(missing_ok=True)
    io.write_image(path, found.label, like=source, fields=io.made_here(found.label))
    return path
