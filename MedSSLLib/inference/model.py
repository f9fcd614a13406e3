"""A trained model: its network, plan and classes, and the prediction of one case."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import Plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.evaluation.calibration import helpful_temperature, softened
from MedSSLLib.images import io
from MedSSLLib.images.components import (
    NEARLY_AS_SURE,
    kept_pieces,
    largest_components,
    taken_away,
)
from MedSSLLib.images.geometry import Geometry, Volume, oriented
from MedSSLLib.images.labels import as_label_values
from MedSSLLib.inference.sliding_window import (
    PERTURBATIONS,
    flip_sets,
    predict_probabilities,
    predict_varied,
    probability_slabs,
    uncertainty,
)
from MedSSLLib.inference.source_grid import in_source_order, source_slabs
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, place
from MedSSLLib.training.devices import resolve_device, resolve_precision
from MedSSLLib.training.run_folder import RunFolder

LARGE_SCAN = 2**26  # voxels from which memory is saved at the cost of digits; not from the paper


@dataclass(frozen=True)
class PredictOptions:
    """What to write and how.

    Attributes:
        probabilities: also write each class's probability, into ``probabilities/``, at the run's
            temperature.
        uncertainty: also write their normalised entropy, into ``uncertainty/``, 0 certain to 1.
        flips: average over axis flips (slower; 4 x in 2D, 8 x in 3D).
        quality: also write ``quality.json``, the estimated Dice of every case (six times slower).
        components: which pieces are kept: 'auto' the surest one and those nearly as sure, of
            classes that are one piece in every dense training label or on the annotated slices, and
            of the whole foreground where that is one piece in every dense label; 'largest' the
            largest of every class, 'all' every piece.
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


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained segmentation network with what it needs to be applied.

    Attributes:
        network: in evaluation mode, on the device.
        plan: of the data it was trained on.
        values: label values in class order, with background.
        classes: class names, with background.
        device: where it runs.
        precision: '32', 'bf16' or '16'.
        single_component, connected_on_slices, single_foreground: what training labels told of
            pieces, as in :class:`~MedSSLLib.training.run_folder.RunData`.
        temperature: of the written probabilities (see :mod:`MedSSLLib.evaluation.calibration`); it
            moves no label.
    """

    network: SegmentationNet
    plan: Plan
    values: tuple[int, ...]
    classes: tuple[str, ...]
    device: torch.device
    precision: str
    single_component: tuple[int, ...] = ()
    connected_on_slices: tuple[int, ...] = ()
    temperature: float = 1.0
    single_foreground: bool = False

    @torch.inference_mode()
    def probabilities(
        self, volumes: Sequence[Volume], *, flips: bool = False
    ) -> tuple[Tensor, Geometry]:
        """Probabilities ``[k, d, h, w]`` on the training grid of a source case, and that grid."""
        image, grid = preprocess_image(volumes, self.plan)
        return self.on_grid(image, flips=flips), grid

    def slabs(self, image: np.ndarray, *, flips: bool = False) -> Iterator[Tensor]:
        """Probabilities ``[k, n, h, w]`` of a preprocessed case, some slices at a time."""
        axes = list(flip_sets(self.plan.dim)) if flips else [()]
        with self._autocast():
            yield from probability_slabs(self.network, image, self.plan, self.device, axes)

    def on_grid(self, image: np.ndarray, *, flips: bool = False) -> Tensor:
        """Probabilities ``[k, d, h, w]`` of a preprocessed case ``[c, d, h, w]``."""
        with self._autocast():
            return predict_probabilities(self.network, image, self.plan, self.device, flips=flips)

    def each_variant(self, image: np.ndarray, *, flips: bool = False) -> Iterator[Tensor]:
        """Probabilities of a preprocessed case from each of PERTURBATIONS; the plain one first."""
        for variant in PERTURBATIONS:
            with self._autocast():
                probabilities = predict_varied(
                    self.network, image, self.plan, self.device, variant, flips=flips
                )
            yield probabilities

    def class_map(self, probabilities: np.ndarray, components: str = "auto") -> np.ndarray:
        """Most probable classes, in the pieces that are kept.

        Args:
            probabilities: ``[k, d, h, w]``, of any grid.
            components: as in :class:`PredictOptions`.

        Returns:
            uint8 ``[d, h, w]``.
        """
        classes = probabilities.argmax(0).astype(np.uint8)
        return self.kept(classes, probabilities.max(0), components)

    def kept(
        self,
        classes: np.ndarray,
        likely: np.ndarray,
        components: str = "auto",
        nearly: float = NEARLY_AS_SURE,
    ) -> np.ndarray:
        """A class map in the pieces that are kept; the map itself where every piece is.

        Args:
            classes: most probable classes.
            likely: their probabilities, see :func:`~MedSSLLib.images.components.kept_pieces`.
            components: as in :class:`PredictOptions`.
            nearly: least certainty of a further piece, of the surest one's, in (0, 1]; 1 keeps
                none.
        """
        if components == "all":
            return classes
        if components == "largest":
            return largest_components(classes)
        single = {*self.single_component, *self.connected_on_slices}
        return kept_pieces(classes, likely, single, connected=self.single_foreground, nearly=nearly)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        kind = {"bf16": torch.bfloat16, "16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            yield


def load_model(run: RunFolder | Path, device: str = "auto", precision: str = "auto") -> Model:
    """The network of a finished fine-tuning or self-training run, ready to predict.

    Args:
        run: the run, or its folder.
        device: as in RunConfig.
        precision: auto is float32 on the CPU; the others as in RunConfig.

    Raises:
        InputError: the run is not finished, is a pre-training run, or the device does not exist.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    if not run.finished:
        found = "is not finished: it has no weights" if run.folder.exists() else "does not exist"
        raise InputError(
            f"run {run.name!r} {found}",
            file=str(run.folder),
            remedy=f"See finished runs: medssl runs {_project(run)}",
        )
    if run.config.command == "pretrain":
        raise InputError(
            f"run {run.name!r} is a pre-trained encoder, it segments nothing yet",
            remedy="Train with labels from it, and take that run: medssl finetune "
            f"{_project(run)} --init {run.name}",
        )
    data, where = run.data, resolve_device(device)
    network = _network(run)
    network.eval()
    place(network, where, run.plan.dim)
    return Model(
        network=network,
        plan=run.plan,
        values=data.values,
        classes=data.classes,
        device=where,
        precision=resolve_precision(precision, where),
        single_component=data.single_component,
        connected_on_slices=data.connected_on_slices,
        temperature=helpful_temperature(run.metrics.get("calibration") or {}),
        single_foreground=data.single_foreground,
    )


def _project(run: RunFolder) -> str:
    """The project of a run, to be typed."""
    return shlex.quote(str(run.folder.parent.parent))


def _network(run: RunFolder) -> SegmentationNet:
    """The network of a run with its weights."""
    tensors = run.tensors
    try:
        network = network_of(run.config, run.plan, len(run.data.classes))
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise InputError(
            f"its settings and weights do not fit together ({type(error).__name__})",
            file=str(run.folder),
            remedy="Restore the folder from a backup, or train again",
        ) from error
    return network


def network_of(config: RunConfig, plan: Plan, classes: int) -> SegmentationNet:
    """The network a configuration and plan describe, newly initialised."""
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, config.network)
    return SegmentationNet(encoder, classes, config.network.deep_supervision)


class CaseSegmentation(NamedTuple):
    """What is predicted of a case, on the grid of its source.

    Attributes:
        label: values of the label files.
        taken: pieces and voxels of each class index that were found and are not in ``label``.
        probabilities: ``[k, *shape]`` at the run's temperature, where asked.
        uncertainty: their normalised entropy, where asked.
    """

    label: Volume
    taken: dict[int, tuple[int, int]]
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


def prepared(model: Model, volumes: Sequence[Volume]) -> tuple[np.ndarray, Geometry]:
    """A source case on the model's grid: ``[c, d, h, w]`` and the grid; a large one in half
    precision, as training sees it.
    """
    large = np.prod(volumes[0].geometry.size) > LARGE_SCAN
    return preprocess_image(volumes, model.plan, np.float16 if large else np.float32)


def segment_case(
    model: Model, image: np.ndarray, grid: Geometry, source: Geometry, options: PredictOptions
) -> CaseSegmentation:
    """Segment a case that :func:`prepared` has put on its grid.

    Memory holds probabilities of some slices at a time, and of all only where they are asked for.

    Raises:
        InputError: there is no memory for the probabilities that are asked for.
    """
    size = oriented(source, grid.code).shape
    classes, likely = np.empty(size, np.uint8), np.empty(size, np.uint8 if _large(size) else "f4")
    whole = _room(len(model.classes), size) if options.probabilities else None
    entropy = np.empty(size, np.float32) if options.uncertainty else None
    done = 0
    for slab in source_slabs(model.slabs(image, flips=options.flips), grid, source):
        place = slice(done, done := done + slab.shape[1])
        found, index = slab.max(0)
        classes[place] = index.numpy()
        likely[place] = (found * 255).round().numpy() if _large(size) else found.numpy()
        if whole is not None or entropy is not None:
            soft = softened(slab.numpy(), model.temperature, axis=0)
            if whole is not None:
                whole[:, place] = soft
            if entropy is not None:
                entropy[place] = uncertainty(torch.from_numpy(soft)).numpy()
    kept = model.kept(classes, likely, options.components)
    taken = taken_away(classes, kept) if kept is not classes else {}
    maps = [None if x is None else in_source_order(x, grid, source) for x in (kept, entropy)]
    if whole is not None:
        whole = np.stack([in_source_order(p, grid, source) for p in whole])
    assert maps[0] is not None
    return CaseSegmentation(label_volume(model, maps[0], source), taken, whole, maps[1])


def predict_case(
    model: Model, volumes: Sequence[Volume], options: PredictOptions
) -> tuple[Volume, np.ndarray]:
    """Label volume, in the values of the label files, and class probabilities.

    Both are on the source grid, the probabilities ``[k, *shape]``.
    """
    image, grid = prepared(model, volumes)
    options = replace(options, probabilities=True)
    found = segment_case(model, image, grid, volumes[0].geometry, options)
    assert found.probabilities is not None
    return found.label, found.probabilities


def _large(size: Sequence[int]) -> bool:
    return bool(np.prod(size) > LARGE_SCAN)


def _room(classes: int, size: Sequence[int]) -> np.ndarray:
    """An array for the probabilities of a case.

    Raises:
        InputError: it is larger than the memory that is free.
    """
    needed, free = 8 * classes * int(np.prod(size)), psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"the probabilities of its {classes} classes need {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free",
            remedy="Leave out --probabilities",
        )
    return np.empty((classes, *size), np.float32)


def on_source(probabilities: Tensor, grid: Geometry, source: Geometry) -> np.ndarray:
    """Probabilities ``[k, d, h, w]`` of the training grid as ``[k, *shape]`` of the source grid.

    What lies outside the training grid is background.
    """
    result = []
    for index, values in enumerate(probabilities.numpy()):
        outside = 1.0 if index == 0 else 0.0
        resampled = io.resample_volume(
            Volume(values, grid), source, interpolation="linear", outside=outside
        )
        result.append(resampled.array)
    return np.stack(result)


def label_volume(model: Model, classes: np.ndarray, geometry: Geometry) -> Volume:
    """A class map in the values of the label files."""
    return Volume(as_label_values(classes, model.values), geometry)
