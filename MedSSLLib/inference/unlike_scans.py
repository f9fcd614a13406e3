"""Scans that are unlike those a model was trained on: what to say before trusting its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MedSSLLib.data.plan import Plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry

_FACTOR = 8.0  # between voxels of a scan and of the plan; not from a paper


def unlike_training(plan: Plan, paths: Sequence[Path], grid: Geometry) -> list[str]:
    """What is odd about a scan for a model: what its headers leave unsaid, voxels 8 times as large
    or as small as those of the plan, another modality by DICOM or by its values.

    Args:
        plan: of the model.
        paths: the images of a case, one per channel.
        grid: the first image's.
    """
    found = [f"{general} ({words})" for path in paths for general, words in io.notices(path)]
    lengths = [length for length in plan.spacing if length is not None]
    smallest = sorted(grid.spacing)[: len(lengths)]  # of a plan in 2D, those within slices
    ratio = float(np.exp(np.mean(np.log(smallest)) - np.mean(np.log(lengths))))
    if not 1 / _FACTOR < ratio < _FACTOR:
        found.append(
            f"voxels of {_lengths(grid.spacing)} mm, trained on about {_lengths(lengths)} mm. Is "
            "the header's unit of length right?"
        )
    for path, modality in zip(paths, plan.modality, strict=True):
        if words := io.contradicts(path, modality):
            found.append(f"{words}, trained on {modality}")
    return list(dict.fromkeys(found))


def _lengths(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
