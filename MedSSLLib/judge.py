"""Judging predictions without a reference: predictions of its variants, calibrated on held-out labelled cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from MedSSLLib.cache import Cache
from MedSSLLib.events import Events
from MedSSLLib.files import read_json, write_json
from MedSSLLib.geometry import Volume
from MedSSLLib.labels import Annotated
from MedSSLLib.manifest import Case
from MedSSLLib.preprocess import preprocess_image
from MedSSLLib.project import Project
from MedSSLLib.quality import FILE_NAME, FORMAT, FORMAT_VERSION, LEVEL, REVIEW_BELOW, Raw, expected_dice, judged
from MedSSLLib.runfolder import read_run
from MedSSLLib.segmentation import dice_per_class

if TYPE_CHECKING:
    from MedSSLLib.predict import Model

UNCALIBRATED = "not calibrated: no labelled case was held out when the run was trained, so there is no interval"


@dataclass(frozen=True)
class Judge:
    """Estimates the Dice of a model's predictions; `known` holds (raw, true) pairs of held-out labelled cases."""

    model: Model
    run: str
    known: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, project: Project, run: str, model: Model, events: Events) -> Judge:
        """A judge that knows the held-out labelled cases of the run, where there are any."""
        known = []
        cases = held_out_cases(project, run)
        cache = Cache(project.cache_folder, model.plan)
        bad = {case.name for case, _ in cache.prepare(cases, labels=True, values=project.values,
                                                      ignore=project.ignore_value)}
        for number, case in enumerate(cases, 1):
            if case.name not in bad:
                size = cache.shape(case.name)[1:]
                raw, classes = raw_quality(model, cache.image(case.name, (0, 0, 0), size))
                dice = dice_per_class(classes, cache.label(case.name, (0, 0, 0), size), len(model.classes))
                if raw is not None and not np.isnan(dice).all():
                    known.append((raw.dice, float(np.nanmean(dice))))
            events.progress("calibrate", number, len(cases))
        if not known:
            events.emit("warning", message=f"Predicted quality is {UNCALIBRATED}.")
        return cls(model, run, tuple(known))

    def entry(self, volumes: Sequence[Volume]) -> dict[str, Any]:
        """The entry of a case in ``quality.json``."""
        raw, _ = raw_quality(self.model, preprocess_image(volumes, self.model.plan)[0])
        return judged(raw, self.known)

    def write(self, folder: Path, entries: dict[str, dict[str, Any]]) -> Path:
        """Write ``quality.json``; entries of other cases by the same run are kept."""
        path = folder / FILE_NAME
        earlier: dict[str, Any] = {}
        if path.exists():
            content = read_json(path, format_name=FORMAT, newest_version=FORMAT_VERSION)
            earlier = content["cases"] if content["run"] == self.run else {}
        note = f"calibrated on {len(self.known)} held-out labelled cases" if self.known else UNCALIBRATED
        write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, "run": self.run, "level": LEVEL,
                          "review_below": REVIEW_BELOW, "calibration": note, "known": self.known,
                          "classes": self.model.classes[1:], "cases": earlier | entries})
        return path


def held_out_cases(project: Project, run: str) -> tuple[Case, ...]:
    """The labelled cases that the run held out, with the slices that were annotated then; unknown ones left out."""
    data = read_run(project.run_folder(run))["data"]
    known = {case.name: case for case in project.cases if case.label is not None}
    annotated = data.get("annotated", {})
    return tuple(
        replace(known[name], annotated=Annotated.from_json(annotated[name]) if name in annotated else None)
        for name in data.get("validation", ()) if name in known
    )


def raw_quality(model: Model, image: np.ndarray) -> tuple[Raw | None, np.ndarray]:
    """What predictions of a preprocessed case ``[c, d, h, w]`` and its variants say, and the plain one's classes.

    None where the plain prediction holds no structure. Mirrored images would be no fair variants: models are trained
    without flips unless asked, since many structures have a side.
    """
    single: list[np.ndarray] = []
    total: torch.Tensor | None = None
    for probabilities in model.each_variant(image):
        single.append(probabilities.argmax(0).numpy().astype(np.uint8))
        total = probabilities if total is None else total + probabilities
    assert total is not None
    mean = (total / len(single)).numpy()
    classes = single[0]
    per_class = expected_dice(mean, classes)
    expected = [value for value in per_class if value is not None]
    if not expected:
        return None, classes
    agreement = [np.nanmean(dice_per_class(one, classes, len(mean))) for one in single[1:]]
    return Raw(float(np.mean(agreement)), float(np.mean(expected)), tuple(per_class)), classes
