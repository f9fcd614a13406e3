"""Small scans with known labels, written by nibabel: the second library that the checks compare
with.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

AFFINE = np.array([[-1.2, 0, 0, 30], [0, 1.1, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])
SHAPE = (24, 22, 16)


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A noisy ball in two halves, values 1 and 2: float32 image and uint8 label [i, j, k]."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).astype(float)
    centre = np.array(shape) / 2 + random.uniform(-2, 2, 3)
    inside = np.linalg.norm((places - centre) / (1, 1, 0.8), axis=-1) < 6
    label = np.where(inside, np.where(places[..., 0] > centre[0], 2, 1), 0).astype(np.uint8)
    image = 100 + random.normal(0, 8, shape) + 60 * (label == 1) + 120 * (label == 2)
    return image.astype(np.float32), label


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write an array [i, j, k] as nibabel does by default (sform code 2), making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path
