"""The ICBM152 brain template with the two regions that the simulated cohort labels.

Template: ICBM 2009a nonlinear symmetric (Fonov et al. 2011), copyright 1993-2009 Louis Collins,
McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.  It comes with
the nilearn package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MedSSLLib.core.packages import missing

EXTENT = np.array([146.0, 180.0, 72.0])
"""Field of view of the cohort in mm along right-left, front-back, head-foot."""
CENTRE = np.array([0.0, -15.0, 14.0])
"""Its centre in the template, RAS mm."""
_MARGIN = 20.0  # mm of template around the field of view


@dataclass(frozen=True)
class Atlas:
    """Template maps in [0, 1], ``[channel, x, y, z]`` on a 1 mm RAS grid.

    Voxel 0 lies at ``origin`` (RAS mm).

    Channels: T1, grey matter, white matter, ventricles, deep grey matter.
    """

    maps: np.ndarray
    origin: np.ndarray


def load_atlas() -> Atlas:
    """Template and tissue maps from nilearn, cut to the field of view.

    The two regions are delineated.

    Raises:
        MedSSLError: nilearn is not installed; it says how to install it.
    """
    try:
        from nilearn import datasets
    except ImportError:
        raise missing("nilearn") from None
    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    images = [load(resolution=1) for load in loaders]
    offset = np.asarray(images[0].affine)[:3, 3]
    first = np.floor(CENTRE - EXTENT / 2 - _MARGIN - offset).astype(int).clip(0)
    last = np.ceil(CENTRE + EXTENT / 2 + _MARGIN - offset).astype(int)
    box = tuple(map(slice, first.tolist(), last.tolist()))
    t1, grey, white = (np.asarray(image.get_fdata(dtype=np.float32)[box]) for image in images)
    origin = offset + first
    ventricles, deep = _regions(t1, grey, white, origin)
    return Atlas(np.stack([t1, grey, white, ventricles, deep]).astype(np.float32), origin)


def _regions(
    t1: np.ndarray, grey: np.ndarray, white: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lateral ventricles and deep grey matter.

    They are tissue within hand-set bounds (RAS mm), connected to seeds.
    """
    x, y, z = np.meshgrid(
        *(np.arange(n) + o for n, o in zip(t1.shape, origin, strict=True)),
        indexing="ij",
        sparse=True,
    )
    x = np.abs(x)
    brain = ndimage.binary_fill_holes(t1 > 0)
    fluid = brain & (grey + white < 0.5)
    cistern = (y < -14) & (x <= 13) & (z < 17)
    inside = (z >= -2) & (z <= 34) & (y <= 34) & (y >= -52) & (x <= 34) & ~cistern
    ventricles = _seeded(
        ndimage.binary_opening(fluid & inside), [(14, -5, 24), (22, -38, 14)], origin
    )
    core = ((x / 33) ** 2 + ((y + 3) / 33) ** 2 + ((z - 6) / 18) ** 2 < 1) & (z >= -4)
    nuclei = ndimage.binary_opening(core & brain & ~fluid & (grey >= white), iterations=2)
    deep = _seeded(nuclei, [(26, 4, 2), (13, 12, 10), (12, -18, 8)], origin)
    return ndimage.binary_closing(ventricles), deep


def _seeded(mask: np.ndarray, seeds: list[tuple[int, int, int]], origin: np.ndarray) -> np.ndarray:
    """Connected parts of ``mask`` that hold a seed (RAS mm) or its mirror image."""
    parts, _ = ndimage.label(mask)
    found = set()
    for x, y, z in seeds:
        for side in (x, -x):
            i, j, k = (np.array([side, y, z]) - origin).astype(int)
            found.add(int(parts[i, j, k]))
    return np.isin(parts, list(found - {0}))
