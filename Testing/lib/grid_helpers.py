"""Grids of every kind that scanners and programs write, and made-up volumes on them."""

from __future__ import annotations

import numpy as np
import pytest

from MedSSLLib.data.plan import make_plan
from MedSSLLib.images.geometry import Geometry, Volume, oriented
from Testing.lib.case_helpers import each


def rotation(x=0.0, y=0.0, z=0.0):
    """Row-major 3 x 3 rotation by angles in degrees."""
    a, b, c = np.deg2rad([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return tuple(float(v) for v in (rz @ ry @ rx).ravel())


ORIGIN = (-31.0, 17.0, 120.0)
GRIDS = {
    "axial": Geometry((40, 36, 30), (1.0, 1.0, 1.0), ORIGIN),
    "oblique": Geometry((40, 36, 14), (1.1, 0.9, 2.4), ORIGIN, rotation(12, -17, 25)),
    "flipped": oriented(
        Geometry((40, 36, 14), (1.1, 0.9, 2.4), ORIGIN, rotation(5, 8, -10)), "RAI"
    ),
    "left-handed": Geometry((40, 36, 30), (1.0, 1.2, 1.3), ORIGIN, (1, 0, 0, 0, -1, 0, 0, 0, 1)),
    "thick": Geometry((40, 36, 8), (0.9, 0.9, 5.0), ORIGIN, rotation(3, 4, 5)),
    "sagittal": oriented(Geometry((9, 38, 40), (4.5, 1.0, 0.9), ORIGIN, rotation(-6, 3, 9)), "PIL"),
    "coronal": oriented(Geometry((38, 10, 40), (1.0, 4.0, 0.9), ORIGIN), "RSA"),
    "45 degrees": Geometry((30, 30, 30), (1.0, 1.2, 0.9), ORIGIN, rotation(0, 0, 45)),
}
SPACINGS = {"same": None, "finer": (0.8, 0.7, 0.7), "coarser": (1.9, 1.6, 1.6)}


def plan_for(geometry, dim, spacing):
    plan = make_plan([geometry], modality="MR", dim=dim)
    if spacing is None:
        return plan
    return plan.model_copy(
        update={"spacing": (None if plan.dim == 2 else spacing[0], *spacing[1:])}
    )


def voxel_points(geometry):
    """Millimetres [k, j, i, 3] of every voxel centre."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij")
    return geometry.points(np.stack([i, j, k], -1))


def three_blobs(geometry):
    """Class map of an asymmetric object: three balls of different sizes, placed in mm."""
    points = voxel_points(geometry)
    centre = geometry.points((np.array(geometry.size) - 1) / 2)
    label = np.zeros(geometry.shape, np.uint8)
    for value, offset, radius in (
        (1, (-6.3, -5.1, 2.2), 7.4),
        (2, (6.7, 2.6, -4.9), 6.3),
        (3, (-1.2, 8.4, 5.3), 5.2),
    ):
        label[np.linalg.norm(points - centre - offset, axis=-1) <= radius] = value
    return Volume(label, geometry)


def noise(geometry, seed=0):
    return Volume(
        np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32), geometry
    )


every_grid = pytest.mark.parametrize("name", GRIDS)
every_dim = each("dim", ["2d", "3d"])
every_spacing = each("spacing", SPACINGS)
