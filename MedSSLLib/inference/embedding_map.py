"""A map of what a pre-trained encoder sees: slices by the principal components of their deepest
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSSLLib.data.slices import not_empty, slice_spread

if TYPE_CHECKING:
    import torch

    from MedSSLLib.data.cache import Cache
    from MedSSLLib.data.meta_labels import MetaLabels
    from MedSSLLib.data.plan import Plan
    from MedSSLLib.networks.unet import Encoder
    from MedSSLLib.project.manifest import Case


FILE_NAME, FORMAT, FORMAT_VERSION = "embedding.json", "medssl-embedding", 1
CASES = 24  # most cases on a map; not from the paper
SLICES = 32  # most slices of a case, evenly spaced; not from the paper


def map_slices(
    encoder: Encoder,
    cache: Cache,
    cases: Sequence[Case],
    meta: MetaLabels,
    plan: Plan,
    device: torch.device,
) -> dict[str, Any]:
    """Where the slices of some cases lie, with their meta labels; the content of
    ``embedding.json``.

    The first ``CASES`` of the cases that `meta` knows, so that those of a patient stay together.
    ``points`` holds a row of two principal components a slice, ``explained`` their share of the
    variance, ``labels`` the classes and every slice's class index. For a 2D encoder, to which
    slices are independent.

    Empty slices are left out: all alike, and far from the others, they would set the scale and the
    first component.

    Raises:
        RuntimeError: every slice is empty.
    """
    from MedSSLLib.inference.slice_features import combined, slice_profiles

    encoder.eval()
    features, rows = [], []
    for number, name in enumerate(case.name for case in cases[:CASES]):
        image = cache.image(name, (0, 0, 0), cache.shape(name)[1:])
        shown = slices_on_map(image)
        features.append(slice_profiles(encoder, image[:, shown], plan, device, 0)[-1])
        rows += [(number, index) for index in shown.tolist()]
    if not rows:
        raise RuntimeError("every slice is empty")
    points, explained = principal_components(combined([np.concatenate(features)]), 2)
    values = [meta.of(*row) for row in rows]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "explained": explained.tolist(),
        "points": points.tolist(),
        "slices": [[cases[number].name, index] for number, index in rows],
        "labels": {
            name: {"classes": list(classes), "values": [value[name] for value in values]}
            for name, classes in meta.classes.items()
        },
    }


def slices_on_map(image: np.ndarray) -> np.ndarray:
    """Indices along d of up to ``SLICES`` slices of ``[c, d, h, w]``, evenly spaced among those
    that are not empty.
    """
    places = np.flatnonzero(not_empty(slice_spread(image, 0)))
    return places[
        np.unique(np.linspace(0, len(places) - 1, min(len(places), SLICES)).round().astype(int))
    ]


def principal_components(table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``[rows, count]`` on the first principal axes of ``[rows, f]``, and their shares
    of the variance.

    The sign of an axis is such that its largest coordinate is positive. Missing axes are 0.
    """
    left, size, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    points = np.zeros((len(table), count))
    kept = min(count, len(size))
    points[:, :kept] = left[:, :kept] * size[:kept]
    largest = points[np.abs(points).argmax(0), np.arange(count)]
    shares = np.zeros(count)
    shares[:kept] = size[:kept] ** 2 / max(float((size**2).sum()), 1e-12)
    return points * np.where(largest < 0, -1, 1), shares
