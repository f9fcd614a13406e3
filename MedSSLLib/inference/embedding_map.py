"""A map of what a pre-trained encoder sees: slices by principal components of their features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSSLLib.core.files import read_json
from MedSSLLib.data.slices import not_empty, slice_spread

if TYPE_CHECKING:
    import torch

    from MedSSLLib.data.cache import Cache
    from MedSSLLib.data.meta_labels import MetaLabels
    from MedSSLLib.data.plan import Plan
    from MedSSLLib.networks.unet import Encoder
    from MedSSLLib.project.manifest import Case


MAP_FILE = "embedding.json"
_FORMAT, _FORMAT_VERSION = "medssl-embedding", 1
MOST_CASES = 24  # on a map; not from the paper
MOST_SLICES = 32  # of a case, evenly spaced; not from the paper


def map_slices(
    encoder: Encoder,
    cache: Cache,
    cases: Sequence[Case],
    meta: MetaLabels,
    plan: Plan,
    device: torch.device,
) -> dict[str, Any]:
    """Where the slices of some cases lie, with their meta labels.

    The content of ``embedding.json``. The first ``MOST_CASES`` of the cases that `meta` knows, so
    that those of a patient stay together. ``points`` holds a row of two principal components a
    slice, ``explained`` their fraction of the variance, ``labels`` the classes and every slice's
    class index. For a 2D encoder, to which slices are independent.

    Empty slices are left out: all alike, and far from the others, they would set the scale and the
    first component.

    Raises:
        RuntimeError: every slice is empty.
    """
    from MedSSLLib.inference.slice_features import combined_profiles, slice_profiles

    encoder.eval()
    features, rows = [], []
    for number, case in enumerate(cases[:MOST_CASES]):
        name = case.name
        image = cache.image(name, (0, 0, 0), cache.shape(name)[1:])
        shown = slices_on_map(image)
        features.append(slice_profiles(encoder, image[:, shown], plan, device, 0)[-1])
        rows += [(number, index) for index in shown.tolist()]
    if not rows:
        raise RuntimeError("every slice is empty")
    points, explained = principal_components(combined_profiles([np.concatenate(features)]), 2)
    values = [meta.of(*row) for row in rows]
    labels = {}
    for name, classes in meta.classes.items():
        labels[name] = {"classes": list(classes), "values": [value[name] for value in values]}
    return {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "explained": explained.tolist(),
        "points": points.tolist(),
        "slices": [[cases[number].name, index] for number, index in rows],
        "labels": labels,
    }


def read_map(path: Path) -> dict[str, Any]:
    """What :func:`map_slices` gave and a run kept. Raises InputError for a damaged file."""
    return read_json(path, format_name=_FORMAT, newest_version=_FORMAT_VERSION)


def slices_on_map(image: np.ndarray) -> np.ndarray:
    """Indices along d of up to ``MOST_SLICES`` slices of ``[c, d, h, w]``.

    They are evenly spaced among the slices that are not empty.
    """
    places = np.flatnonzero(not_empty(slice_spread(image, 0)))
    count = min(len(places), MOST_SLICES)
    spaced = np.linspace(0, len(places) - 1, count).round().astype(int)
    return places[np.unique(spaced)]


def principal_components(table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the first principal axes, and their fractions of the variance.

    Args:
        table: ``[rows, f]``.
        count: number of axes.

    Returns:
        ``[rows, count]`` and ``[count]``.

    The sign of an axis is such that its largest coordinate is positive. Missing axes are 0.
    """
    left, size, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    points = np.zeros((len(table), count))
    kept = min(count, len(size))
    points[:, :kept] = left[:, :kept] * size[:kept]
    largest = points[np.abs(points).argmax(0), np.arange(count)]
    fractions = np.zeros(count)
    fractions[:kept] = size[:kept] ** 2 / max(float((size**2).sum()), 1e-12)
    return points * np.where(largest < 0, -1, 1), fractions
