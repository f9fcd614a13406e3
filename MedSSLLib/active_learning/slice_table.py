"""Every slice that could be annotated, and what a run sees in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.active_learning.scans import Scan
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import Plan
from MedSSLLib.data.slices import (
    not_empty,
    slice_operator,
    slice_spread,
)
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference.model import Model, load_model
from MedSSLLib.inference.slice_features import combined_profiles, slice_profiles
from MedSSLLib.inference.sliding_window import uncertainty as entropy_map
from MedSSLLib.networks.unet import Encoder, build_encoder, place
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.checkpoint import unprefixed
from MedSSLLib.training.devices import resolve_device
from MedSSLLib.training.run_folder import find_start


@dataclass(frozen=True)
class Table:
    """All slices of all scans, one row each, case after case.

    Attributes:
        scans: the scans.
        case: index of the scan, ``[rows]``.
        place: index of the slice on the source's own axis, ``[rows]``.
        usable: slices that show something, boolean ``[rows]``.
        drawn: slices that are annotated, boolean ``[rows]``.
        features: ``[rows, f]``, standardised over the usable rows; no columns without an encoder.
        uncertainty: see :func:`class_uncertainty`, ``[rows, classes]``; no columns without a model.
        structures: see :func:`structure_area`, ``[rows]``; 0 without a model.
    """

    scans: tuple[Scan, ...]
    case: np.ndarray
    place: np.ndarray
    usable: np.ndarray
    drawn: np.ndarray
    features: np.ndarray
    uncertainty: np.ndarray
    structures: np.ndarray

    @property
    def patients(self) -> list[str]:
        """The patient of every row."""
        return [self.scans[index].case.patient for index in self.case]


@dataclass(frozen=True)
class Viewer:
    """What a run brings: its plan, its encoder, its model when it segments.

    And the models of other runs.
    """

    plan: Plan
    encoder: Encoder
    device: torch.device
    model: Model | None = None
    others: tuple[Model, ...] = ()


def load_viewer(
    project: Project, run: str, device: str, precision: str, also: Sequence[str] = ()
) -> Viewer:
    """The encoder of a finished pre-training run, or encoder and model of a finished training run.

    Args:
        project: the project.
        run: its name.
        device: as in RunConfig.
        precision: as in RunConfig.
        also: further training runs, whose models shall predict too.

    Raises:
        InputError: a run does not exist or is not finished, a further one has other classes, or the
            device does not exist.
    """
    source = find_start(project, run)
    assert source is not None
    config, plan = source.config, source.plan
    if config.command != "pretrain":
        model = load_model(source, device, precision)
        others = []
        for name in also:
            other = load_model(project.run_folder(name), device, precision)
            _require_same_classes(model, other, name)
            others.append(other)
        return Viewer(plan, model.network.encoder, model.device, model, tuple(others))
    where = resolve_device(device)
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, config.network)
    encoder.load_state_dict(unprefixed("encoder", source.tensors))
    encoder.eval()
    place(encoder, where, plan.dim)
    return Viewer(plan, encoder, where)


def _require_same_classes(model: Model, other: Model, name: str) -> None:
    """Raises InputError when the other model tells other classes apart."""
    if (other.classes, other.values) != (model.classes, model.values):
        raise InputError(
            f"run {name!r} has the classes {', '.join(other.classes[1:])}, not "
            f"{', '.join(model.classes[1:])} with the same values",
            remedy="Name runs of the same classes",
        )


def extract_features(
    project: Project, scans: Sequence[Scan], viewer: Viewer, events: Events, *, flips: bool = False
) -> Table:
    """The table of all slices with features and, from a model, uncertainty.

    Cases that cannot be used are left out.

    Raises:
        InputError: no case can be used.
    """
    cache = Cache(project.cache_folder, viewer.plan)
    kept = _prepared(project, scans, cache, events)
    usable, levels, uncertain, structures = [], [], [], []
    for number, scan in enumerate(kept, 1):
        name = scan.case.name
        image, grid = cache.image(name, (0, 0, 0), cache.shape(name)[1:]), cache.geometry(name)
        axis, rows = slice_operator(scan.geometry, grid, scan.axis)
        usable.append(not_empty(rows @ slice_spread(image, axis)))
        profiles = slice_profiles(viewer.encoder, image, viewer.plan, viewer.device, axis)
        levels.append([rows @ profile for profile in profiles])
        if viewer.model:
            probabilities = _predicted(viewer, scan.case, image, grid, flips)
            uncertain.append(rows @ class_uncertainty(probabilities, grid, axis))
            structures.append(rows @ structure_area(probabilities, grid, axis))
        else:
            uncertain.append(np.zeros((scan.count, 0)))
            structures.append(np.zeros(scan.count))
        events.progress("look", number, len(kept))
    shown = np.concatenate(usable)
    features = [np.concatenate(level) for level in zip(*levels, strict=True)]
    counts = [scan.count for scan in kept]
    return Table(
        scans=kept,
        case=np.repeat(np.arange(len(kept)), counts),
        place=np.concatenate([np.arange(count) for count in counts]),
        usable=shown,
        drawn=np.concatenate([scan.drawn for scan in kept]),
        features=combined_profiles(features, shown),
        uncertainty=np.concatenate(uncertain),
        structures=np.concatenate(structures),
    )


def _prepared(
    project: Project, scans: Sequence[Scan], cache: Cache, events: Events
) -> tuple[Scan, ...]:
    """The scans that could be preprocessed. Raises InputError when there is none."""
    prepared = cache.prepare(
        [scan.case for scan in scans],
        progress=lambda done, total: events.progress("preprocess", done, total),
    )
    prepared.report(events)
    prepared.require_any(str(project.folder))
    usable = {case.name for case in prepared.usable}
    return tuple(scan for scan in scans if scan.case.name in usable)


def _predicted(
    viewer: Viewer, case: Case, image: np.ndarray, grid: Geometry, flips: bool
) -> Tensor:
    """Probabilities ``[k, d, h, w]`` of a preprocessed case on its grid.

    The mean over all models of the viewer.

    Every model sees the case on the grid of its own plan.
    """
    assert viewer.model is not None
    total = viewer.model.on_grid(image, flips=flips)
    if not viewer.others:
        return total
    volumes = [io.read_image(path, case=case.name) for path in case.images]
    for other in viewer.others:
        probabilities, own = other.probabilities(volumes, flips=flips)
        classes = []
        for index, values in enumerate(probabilities.numpy()):
            outside = float(index == 0)  # what the other model does not cover is background
            resampled = io.resample_volume(
                Volume(values, own), grid, interpolation="linear", outside=outside
            )
            classes.append(resampled.array)
        total = total + torch.from_numpy(np.stack(classes))
    return total / (1 + len(viewer.others))


def class_uncertainty(probabilities: Tensor, grid: Geometry, axis: int) -> np.ndarray:
    """Uncertain area in mm2 of every grid slice along an array axis, by class: ``[n, k - 1]``.

    The area is the sum of the normalised predictive entropy over the slice; each voxel's goes to
    its most probable foreground class. Where the probabilities are a mean, over mirrored images or
    over models, their entropy is the mean entropy plus the disagreement (the mutual information of
    Houlsby et al. 2011, arXiv 1112.5745).
    """
    within, area = _within(grid, axis)
    return np.stack([part.sum(within).numpy() * area for part in _by_class(probabilities)], 1)


def structure_area(probabilities: Tensor, grid: Geometry, axis: int) -> np.ndarray:
    """Area in mm2 of what is segmented on every grid slice along an array axis: ``[n]``."""
    within, area = _within(grid, axis)
    return (probabilities.argmax(0) > 0).sum(within).numpy() * area


def _within(grid: Geometry, axis: int) -> tuple[list[int], float]:
    """The array axes of a slice, and the area of one of its pixels in mm2."""
    within = [other for other in (0, 1, 2) if other != axis]
    return within, float(np.prod([grid.spacing[2 - other] for other in within]))


def _by_class(probabilities: Tensor) -> Iterator[Tensor]:
    """Entropy maps ``[d, h, w]``, one per foreground class.

    The entropy where that class is the likeliest one.
    """
    entropy = entropy_map(probabilities)
    likeliest = probabilities[1:].argmax(0)
    for index in range(probabilities.shape[0] - 1):
        yield entropy * (likeliest == index)
