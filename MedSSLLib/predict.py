"""Prediction on the source grid: label volumes, probabilities and uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from MedSSLLib import io
from MedSSLLib.calibration import helpful_temperature, probability_path, softened
from MedSSLLib.checkpoint import load_tensors
from MedSSLLib.components import class_map
from MedSSLLib.config import RunConfig
from MedSSLLib.device import resolve_device, resolve_precision
from MedSSLLib.errors import InputError, naming
from MedSSLLib.events import Events
from MedSSLLib.files import read_json, refuse_overwriting, require_folder
from MedSSLLib.geometry import Geometry, Volume
from MedSSLLib.inference import VARIANTS, predict_probabilities, predict_varied, uncertainty
from MedSSLLib.judge import Judge
from MedSSLLib.networks import SegmentationNet, build_encoder, place
from MedSSLLib.planning import Plan
from MedSSLLib.preprocess import preprocess_image
from MedSSLLib.project import Project
from MedSSLLib.quality import drop_estimate
from MedSSLLib.runfolder import WEIGHTS, read_config, read_data, read_plan
from MedSSLLib.sources import images_at


@dataclass(frozen=True)
class PredictOptions:
    """What to write and how.

    Attributes:
        probabilities: also write each class's probability, into ``probabilities/``, at the run's temperature.
        uncertainty: also write their normalised entropy, into ``uncertainty/``, 0 certain to 1.
        flips: average over axis flips (slower; 4 x in 2D, 8 x in 3D).
        quality: also write ``quality.json``, the estimated Dice of every case (six times slower).
        components: which pieces are kept: 'auto' the largest one of the classes that are one piece in every dense
            training label, and, where slices alone were annotated, the surest ones of the classes that these show in
            one piece; 'largest' the largest of every class, 'all' every piece.
        device: as in RunConfig.
        precision: auto is float32 on the CPU; the others as in RunConfig.
    """

    probabilities: bool = False
    uncertainty: bool = False
    flips: bool = False
    quality: bool = False
    components: Literal["auto", "largest", "all"] = "auto"
    device: str = "auto"
    precision: str = "auto"


class Predictions(NamedTuple):
    """Label files written, and the errors of the cases that could not be predicted."""

    written: list[Path]
    refused: list[InputError]


@dataclass(frozen=True)
class Model:
    """A trained segmentation network with what it needs to be applied.

    ``one_piece`` and ``undivided`` are as in :class:`~MedSSLLib.runfolder.RunData`. ``temperature`` is that of the
    written probabilities (see :mod:`MedSSLLib.calibration`); it moves no label.
    """

    network: SegmentationNet
    plan: Plan
    values: tuple[int, ...]
    classes: tuple[str, ...]
    device: torch.device
    precision: str
    one_piece: tuple[int, ...] = ()
    undivided: tuple[int, ...] = ()
    temperature: float = 1.0

    @torch.inference_mode()
    def probabilities(self, volumes: Sequence[Volume], *, flips: bool = False) -> tuple[Tensor, Geometry]:
        """Probabilities ``[k, d, h, w]`` on the training grid of a source case, and that grid."""
        image, grid = preprocess_image(volumes, self.plan)
        return self.on_grid(image, flips=flips), grid

    def on_grid(self, image: np.ndarray, *, flips: bool = False) -> Tensor:
        """Probabilities ``[k, d, h, w]`` of a preprocessed case ``[c, d, h, w]``."""
        with self._autocast():
            return predict_probabilities(self.network, image, self.plan, self.device, flips=flips)

    def each_variant(self, image: np.ndarray, *, flips: bool = False) -> Iterator[Tensor]:
        """Probabilities of a preprocessed case from every one of VARIANTS; the plain one first."""
        for variant in VARIANTS:
            with self._autocast():
                probabilities = predict_varied(self.network, image, self.plan, self.device, variant, flips=flips)
            yield probabilities

    def class_map(self, probabilities: np.ndarray, components: str = "auto") -> np.ndarray:
        """Most probable classes uint8 ``[d, h, w]`` of ``[k, d, h, w]`` in the pieces that are kept.

        Args:
            probabilities: of any grid.
            components: as in :class:`PredictOptions`.
        """
        if components == "auto":
            return class_map(probabilities, self.one_piece, self.undivided)
        return class_map(probabilities, range(1, len(probabilities)) if components == "largest" else ())

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        kind = {"bf16": torch.bfloat16, "16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            yield


def load_model(run_folder: Path, device: str = "auto", precision: str = "auto") -> Model:
    """The network of a finished fine-tuning or self-training run, ready to predict.

    Raises:
        InputError: the run is not finished, is a pre-training run, or the device does not exist.
    """
    if not (run_folder / WEIGHTS).exists():
        found = "is not finished: it has no weights" if run_folder.exists() else "does not exist"
        raise InputError(f"run {run_folder.name!r} {found}", file=str(run_folder),
                         remedy="See `medssl runs PROJECT` for finished runs")
    config, plan = read_config(run_folder), read_plan(run_folder)
    if config.command == "pretrain":
        raise InputError(f"run {run_folder.name!r} is a pre-trained encoder, it segments nothing yet",
                         remedy=f"Run `medssl finetune PROJECT --init {run_folder.name}` and predict with that run")
    data, where = read_data(run_folder), resolve_device(device)
    tensors, _ = load_tensors(run_folder / WEIGHTS)
    try:
        network = network_of(config, plan, len(data.classes))
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise InputError(f"its settings and weights do not fit together ({type(error).__name__})", file=str(run_folder),
                         remedy="Restore the folder from a backup, or train again") from error
    network.eval()
    place(network, where, plan.dim)
    return Model(network, plan, data.values, data.classes, where, resolve_precision(precision, where), data.one_piece,
                 data.undivided, run_temperature(run_folder))


def run_temperature(run_folder: Path) -> float:
    """The temperature of a run's probabilities; 1 where none was measured, or where it did not help."""
    metrics = run_folder / "metrics.json"
    return helpful_temperature(read_json(metrics).get("calibration") or {}) if metrics.exists() else 1.0


def network_of(config: RunConfig, plan: Plan, classes: int) -> SegmentationNet:
    """The network a configuration and plan describe, newly initialised."""
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, config.network)
    return SegmentationNet(encoder, classes, config.network.deep_supervision)


def predict_case(
    model: Model, volumes: Sequence[Volume], options: PredictOptions
) -> tuple[Volume, np.ndarray]:
    """Label volume (values of the label files) and class probabilities ``[k, *shape]``, both on the source grid."""
    source = volumes[0].geometry
    probabilities, grid = model.probabilities(volumes, flips=options.flips)
    found = on_source(probabilities, grid, source)
    label = label_volume(model, model.class_map(found, options.components), source)
    return label, softened(found, model.temperature, axis=0)


def on_source(probabilities: Tensor, grid: Geometry, source: Geometry) -> np.ndarray:
    """Probabilities ``[k, d, h, w]`` of the training grid as ``[k, *shape]`` of the source grid."""
    return np.stack([
        io.resample(Volume(p, grid), source, interpolation="linear", outside=float(index == 0)).array
        for index, p in enumerate(probabilities.numpy())
    ])


def label_volume(model: Model, classes: np.ndarray, geometry: Geometry) -> Volume:
    """A class map in the values of the label files."""
    return Volume(np.asarray(model.values, np.int32)[classes].astype(_label_type(model.values)), geometry)


def run_predict(  # noqa: PLR0913 - the contract of the command
    project: Project, run: str, out: Path, events: Events, *,
    cases: str | None = None, images: Sequence[Path] = (), options: PredictOptions | None = None,
) -> Predictions:
    """Predict cases of the project (all of them by default) or image files.

    A case that cannot be read is named in a warning, and the others go on.

    Raises:
        InputError: no usable case, an unusable run, or a result that would replace a scan or a label.
    """
    options = options or PredictOptions()
    model = load_model(project.run_folder(run), options.device, options.precision)
    jobs, refused = _jobs(project, cases, images, model.plan.channels)
    require_folder(out)
    refuse_overwriting((path for name in jobs for path in _targets(out, name, model.classes)),
                       [*project.files, *(path for paths in jobs.values() for path in paths)])
    events.emit("start", command="predict", run=run, cases=len(jobs), device=str(model.device))
    if options.flips and not read_config(project.run_folder(run)).augment.flip:
        events.emit("warning", message=f"Run {run} was trained without flips, so mirrored images are new to it and "
                    "averaging over them may make it worse. Train with --set augment.flip=0.5, or leave --flips out.")
    judge = Judge.of(project, run, model, options, events) if options.quality else None
    for error in refused:
        events.emit("warning", message=str(error))
    written: list[Path] = []
    quality = {}
    for number, (name, paths) in enumerate(jobs.items(), 1):
        try:
            volumes = [io.read_image(path, case=name) for path in paths]
            with naming(name, str(paths[0])):
                label, probabilities = predict_case(model, volumes, options)
                if judge:
                    quality[name] = judge.entry(volumes)
        except InputError as error:
            refused.append(error)
            events.emit("warning", message=str(error))
            continue
        drop_estimate(out, run, name)
        written.append(_write(out, name, label, probabilities, model.classes, options))
        events.progress("predict", number, len(jobs))
    if not written:
        raise refused[0]
    if judge:
        judge.write(out, quality)
    events.emit("done", run=run, cases=len(written), refused=len(refused), folder=str(out))
    return Predictions(written, refused)


def _jobs(
    project: Project, cases: str | None, images: Sequence[Path], channels: int
) -> tuple[dict[str, tuple[Path, ...]], list[InputError]]:
    """Images by case, and what is wrong with cases that cannot be told apart or lack a channel."""
    if images:
        source = images_at(images, channels)
        return {case.name: case.images for case in source.cases}, list(source.refused)
    chosen = project.cases if cases is None else project.select(cases)
    if not chosen:
        raise InputError("no case is selected", remedy="Name cases with --cases, or image files with --images")
    return {case.name: case.images for case in chosen}, []


def _targets(out: Path, name: str, classes: Sequence[str]) -> list[Path]:
    """Every file that `_write` writes or removes."""
    return [out / f"{name}.nii.gz", out / "uncertainty" / f"{name}.nii.gz",
            *(probability_path(out, name, index, words) for index, words in enumerate(classes))]


def _write(
    out: Path, name: str, label: Volume, probabilities: np.ndarray, classes: Sequence[str], options: PredictOptions
) -> Path:
    path = out / f"{name}.nii.gz"
    certainty = out / "uncertainty" / f"{name}.nii.gz"
    for index, p in enumerate(probabilities):
        place = probability_path(out, name, index, classes[index])
        if options.probabilities:
            io.write_image(place, Volume(p.astype(np.float32), label.geometry))
        else:
            place.unlink(missing_ok=True)  # of an earlier prediction, whose label is replaced below
    if not options.uncertainty:
        certainty.unlink(missing_ok=True)
    else:
        entropy = uncertainty(torch.from_numpy(probabilities)).numpy().astype(np.float32)
        io.write_image(certainty, Volume(entropy, label.geometry))
    io.write_image(path, label)
    return path


def _label_type(values: Sequence[int]) -> type[np.uint8] | type[np.int16]:
    return np.uint8 if max(values) < 256 else np.int16
