"""Runs, and what a trained one does: segment an image, predict cases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from MedSSLLib.api.arguments import (
    PathLike,
    PredictionOptions,
    Selection,
    names_of,
    opened_project,
    refuse_unknown_arguments,
    without_reporting,
)
from MedSSLLib.api.session import session
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS

if TYPE_CHECKING:
    import numpy as np

    from MedSSLLib.config.run import RunConfig
    from MedSSLLib.inference.model import Model
    from MedSSLLib.inference.predict import Predictions
    from MedSSLLib.training.run_folder import RunFolder


_OF_SEGMENT = ("flips", "components", "device", "precision")


class Segmentation(NamedTuple):
    """Label values ``[i, j, k]``, and the affine ``[4, 4]`` from voxel indices to mm in RAS."""

    labels: np.ndarray
    affine: np.ndarray


class Run:
    """A run: what training left in its folder.

    Args:
        folder: of the run, in ``runs/`` of a project.

    Raises:
        InputError: there is no run.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._models: dict[str, Model] = {}
        if not (self.folder / "config.json").exists():
            raise InputError(
                "is no folder of a run", file=self.folder, remedy="See `medssl runs PROJECT`"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def project(self) -> Project:
        """The project that the run lies in."""
        return Project.open(self.folder.parents[1])

    @property
    def finished(self) -> bool:
        """Whether there are weights to use."""
        return (self.folder / WEIGHTS).exists()

    @cached_property
    def _files(self) -> RunFolder:
        from MedSSLLib.training.run_folder import RunFolder

        return RunFolder(self.folder)

    @property
    def config(self) -> RunConfig:
        """Every setting of the run."""
        return self._files.config

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; empty before the run has finished."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else {}

    @property
    def classes(self) -> dict[int, str]:
        """Names of the label values that `segment` gives."""
        data = self._files.data
        return dict(zip(data.values, data.classes, strict=True))

    @property
    def completed(self) -> Path:
        """The label file that `complete` has written."""
        options = self.config.options
        if self.config.command != "complete":
            raise InputError(f"run {self.name!r} completes no case", file=self.folder)
        return Path(options.get("out") or self.folder) / f"{options['case']}.nii.gz"

    def segment(
        self,
        image: PathLike | np.ndarray | Sequence[PathLike | np.ndarray],
        *,
        affine: np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
        **options: Unpack[PredictionOptions],
    ) -> Segmentation:
        """Segment one image. The network is read at the first call and kept.

        Args:
            image: a file, a folder with one DICOM series, or an array ``[i, j, k]``; a list of them
                for a model of several channels.
            affine: of an array, ``[4, 4]``, from voxel indices to mm in RAS, as in NIfTI.
            spacing: instead, mm along i, j, k of an array whose axes point right, forward and up.
            **options: `flips`, `components`, `device` and `precision` of PredictionOptions.

        Returns:
            Label values on the grid of the image, and its affine.

        Raises:
            InputError: the run segments nothing, or the image cannot be used.
        """
        refuse_unknown_arguments("segment", options, _OF_SEGMENT)
        from MedSSLLib.api.affine import affine_of
        from MedSSLLib.inference.model import PredictOptions, load_model, predict_case

        chosen = PredictOptions(**without_reporting(options))
        key = f"{chosen.device} {chosen.precision}"
        if key not in self._models:
            self._models[key] = load_model(self.folder, chosen.device, chosen.precision)
        model = self._models[key]
        images = [*image] if isinstance(image, (list, tuple)) else [image]
        if len(images) != model.plan.channels:
            raise InputError(
                f"{len(images)} image(s) for a model of {model.plan.channels} channel(s)",
                remedy="Give a list with one image for each channel",
            )
        volumes = [_volume(one, affine, spacing) for one in images]
        label, _ = predict_case(model, volumes, chosen)
        return Segmentation(label.array.transpose(2, 1, 0), affine_of(label.geometry))

    def predict(
        self,
        out: PathLike,
        *,
        cases: Selection | None = None,
        images: Sequence[PathLike] = (),
        **options: Unpack[PredictionOptions],
    ) -> Predictions:
        """Write ``CASE.nii.gz`` for cases of the project, or for image files: see `predict`."""
        return predict(self.project, self, out, cases=cases, images=images, **options)


RunLike = Run | PathLike
"""A run, or its name in the project."""


def predict(
    project: Project | PathLike,
    run: RunLike,
    out: PathLike,
    *,
    cases: Selection | None = None,
    images: Sequence[PathLike] = (),
    **options: Unpack[PredictionOptions],
) -> Predictions:
    """Segment cases of a project (all by default) or image files, into ``OUT/CASE.nii.gz``.

    Args:
        project: or its folder.
        run: a finished fine-tuning or self-training run.
        out: folder of the results.
        cases: of the project.
        images: instead, image files, DICOM folders or folders.
        **options: see PredictionOptions.

    Returns:
        ``written``, the files, and ``refused``, the errors of cases that were left out.

    Raises:
        InputError: no usable case, an unusable run, or a result that would replace a scan.
    """
    refuse_unknown_arguments("predict", options, PredictionOptions.__optional_keys__)
    from MedSSLLib.inference.model import PredictOptions
    from MedSSLLib.inference.predict import run_predict

    project = opened_project(project)
    chosen = PredictOptions(**without_reporting(options))
    names = names_of(project, cases)
    with session(options) as events:
        return run_predict(
            project,
            name_of(project, run),
            Path(out),
            events,
            cases=None if names is None else ",".join(names),
            images=[Path(image) for image in images],
            options=chosen,
        )


def name_of(project: Project, run: RunLike) -> str:
    """The name of a run of this project."""
    if not isinstance(run, Run):
        return os.fspath(run)
    if run.folder.parent.resolve() != project.runs_folder.resolve():
        raise InputError(
            f"run {run.name!r} is of another project", file=run.folder, remedy="Use it as init"
        )
    return run.name


def _volume(image: Any, affine: np.ndarray | None, spacing: Sequence[float] | None) -> Any:
    from MedSSLLib.api.affine import volume_of
    from MedSSLLib.images import io

    if isinstance(image, (str, os.PathLike)):
        return io.read_image(image)
    return volume_of(image, affine, spacing)
