"""Estimating the quality of predictions without a reference.

From predictions of variants of the image, calibrated on held-out labelled cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from MedSSLLib.core.events import Events
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.data.cache import Cache
from MedSSLLib.evaluation.metrics import dice_per_class
from MedSSLLib.evaluation.quality import (
    LEVEL,
    QUALITY_FILE,
    QUALITY_FORMAT,
    QUALITY_VERSION,
    REVIEW_BELOW,
    Raw,
    calibrated,
    expected_dice,
    judged,
    not_estimated,
)
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import RunFolder

if TYPE_CHECKING:
    from MedSSLLib.inference.model import Model, PredictOptions


NEAR_VOXELS = 3  # not from the paper
HELD = 4  # probabilities of a case that are held at the same time
UNCALIBRATED = (
    "not calibrated: no labelled case was held out when the run was trained, "
    "so there is no interval"
)


@dataclass(frozen=True, kw_only=True)
class QualityEstimator:
    """Estimates the Dice of what a model's predictions write, as far as the training grid shows it.

    Attributes:
        model: the model.
        run: its name.
        known: the held-out patients, each with the (raw, true) Dice of their labelled cases.
        usual: class indices that all held-out labels show, or all training labels where none is
            held out.
        seen: cases whose labels the run was trained, chosen or calibrated on.
        components: which pieces are kept, as in PredictOptions.
        flips: whether predictions are averaged over flips.
    """

    model: Model
    run: str
    known: Sequence[Sequence[tuple[float, float]]] = ()
    usual: frozenset[int] = frozenset()
    seen: frozenset[str] = frozenset()
    components: str = "auto"
    flips: bool = False

    @classmethod
    def of(
        cls, project: Project, run: RunFolder, model: Model, options: PredictOptions, events: Events
    ) -> QualityEstimator:
        """An estimator that knows the held-out labelled cases of the run, where there are any."""
        cache = Cache(project.cache_folder, model.plan)
        held_out = recorded_cases(project, run, run.data.validation, events)
        cases = readable(cache, project, held_out, model, events)
        estimator = cls(
            model=model,
            run=run.name,
            seen=run.labels_seen | frozenset(run.data.validation),
            components=options.components,
            flips=options.flips,
        )
        known: dict[str, list[tuple[float, float]]] = {}
        for number, case in enumerate(cases, 1):
            pair = estimator.pair(cache, case)
            if pair is not None:
                known.setdefault(case.patient, []).append(pair)
            events.progress("calibrate", number, len(cases))
        estimator = replace(estimator, known=tuple(map(tuple, known.values())))
        if estimator.calibration.startswith("not"):
            events.emit("warning", message=f"Predicted quality is {estimator.calibration}.")
        if not cases:
            labelled = recorded_cases(project, run, run.data.labelled, events)
            cases = readable(cache, project, labelled, model, events)
        shown = [frozenset(cache.counts(case.name)) for case in cases]
        usual = frozenset.intersection(*shown) if shown else frozenset()
        return replace(estimator, usual=usual - {0})

    def pair(self, cache: Cache, case: Case) -> tuple[float, float] | None:
        """Raw and true Dice of a labelled case.

        None where no structure is found, or none counts.
        """
        size = cache.shape(case.name)[1:]
        raw, classes = self.raw(cache.image(case.name, (0, 0, 0), size))
        label = cache.label(case.name, (0, 0, 0), size)
        dice = dice_per_class(classes, label, len(self.model.classes))
        if raw is None or np.isnan(dice).all():
            return None
        return raw.dice, float(np.nanmean(dice))

    def raw(self, image: np.ndarray) -> tuple[Raw | None, np.ndarray]:
        """See :func:`raw_quality`."""
        return raw_quality(self.model, image, components=self.components, flips=self.flips)

    def entry(self, image: np.ndarray) -> dict[str, Any]:
        """The entry of a preprocessed case ``[c, d, h, w]`` in ``quality.json``, with no estimate
        where memory does not suffice.
        """
        needed = HELD * len(self.model.classes) * int(np.prod(image.shape[1:])) * 4
        free = psutil.virtual_memory().available
        if needed > free:
            return not_estimated(
                f"it needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
            )
        raw, classes = self.raw(image)
        missing = self.usual - {int(value) for value in np.unique(classes)}
        return judged(raw, self.known, [self.model.classes[index] for index in sorted(missing)])

    @property
    def calibration(self) -> str:
        """What the estimates are calibrated on, in words."""
        cases = sum(map(len, self.known))
        if not cases:
            return UNCALIBRATED
        if calibrated(0.5, self.known)[1] is None:
            return (
                f"not calibrated: labelled cases of {len(self.known)} patients were held out, too "
                "few for an interval"
            )
        return f"calibrated on {cases} held-out labelled cases of {len(self.known)} patients"

    def write(self, folder: Path, entries: dict[str, dict[str, Any]]) -> Path:
        """Write ``quality.json``; entries of other cases by the same run are kept."""
        path = folder / QUALITY_FILE
        earlier: dict[str, Any] = {}
        if path.exists():
            content = read_json(path, format_name=QUALITY_FORMAT, newest_version=QUALITY_VERSION)
            earlier = content["cases"] if content["run"] == self.run else {}
        write_json(
            path,
            {
                "format": QUALITY_FORMAT,
                "format_version": QUALITY_VERSION,
                "run": self.run,
                "level": LEVEL,
                "review_below": REVIEW_BELOW,
                "calibration": self.calibration,
                "known": self.known,
                "classes": self.model.classes[1:],
                "seen": sorted(self.seen),
                "cases": earlier | entries,
            },
        )
        return path


def recorded_cases(
    project: Project, run: RunFolder, names: Sequence[str], events: Events
) -> tuple[Case, ...]:
    """The cases of these names, with the slices that were annotated when the run was trained.

    Those that the project no longer has, or has without a label, are named in a warning.
    """
    known = {case.name: case for case in project.cases if case.label is not None}
    gone = [name for name in names if name not in known]
    if gone:
        events.emit(
            "warning",
            message=f"Predicted quality does without {', '.join(gone)}, no longer labelled cases "
            f"of the project as they were when run {run.name} was trained.",
        )
    cases = []
    for name in names:
        if name in known:
            then = run.data.annotated.get(name)
            annotated = None if then is None else Annotated.from_json(then)
            cases.append(replace(known[name], annotated=annotated))
    return tuple(cases)


def readable(
    cache: Cache, project: Project, cases: Sequence[Case], model: Model, events: Events
) -> tuple[Case, ...]:
    """The cases that could be read into the cache, labels in the model's classes.

    Warnings name the others.
    """
    prepared = cache.prepare(cases, labels=True, values=model.values, ignore=project.ignore_value)
    prepared.report(events, "Predicted quality does without a labelled case: ")
    return prepared.usable


def raw_quality(
    model: Model, image: np.ndarray, *, components: str = "auto", flips: bool = False
) -> tuple[Raw | None, np.ndarray]:
    """What predictions of a preprocessed case and its variants say, and the plain one's classes.

    None where the plain prediction holds no structure. Every prediction is what would be written:
    averaged over flips if asked, and without the pieces that are not kept, whose voxels count as
    certain background. Mirrored images would be no fair variants: models are trained without flips
    unless asked, since many structures have a side.
    """
    single: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    total: torch.Tensor | None = None
    for probabilities in model.each_variant(image, flips=flips):
        single.append(model.class_map(probabilities.numpy(), "all"))
        kept.append(model.class_map(probabilities.numpy(), components))
        total = probabilities if total is None else total + probabilities
    assert total is not None
    classes, mean = kept[0], (total / len(single)).numpy()
    mean[:, classes != single[0]] = 0
    expected = expected_dice(_near(mean, classes), classes)
    if all(value is None for value in expected):
        return None, classes
    dice = np.mean([dice_per_class(one, classes, len(mean)) for one in kept[1:]], 0)
    agreements = tuple(
        None if value is None else float(own) for value, own in zip(expected, dice, strict=True)
    )
    return Raw(agreements, tuple(expected)), classes


def _near(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probabilities ``[k, d, h, w]`` of structures near where they are predicted, 0 elsewhere.

    Near is within NEAR_VOXELS voxels. A model of few labels spreads small probabilities over the
    whole image, which say little about what is written.
    """
    from scipy.ndimage import binary_dilation

    near = probabilities.copy()
    for index in range(1, len(near)):
        near[index][~binary_dilation(classes == index, iterations=NEAR_VOXELS)] = 0
    return near
