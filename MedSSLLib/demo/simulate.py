"""A simulated brain MR cohort, made from the ICBM152 template.

The nilearn package ships the template: no network is needed.

Every subject is the template under a random pose, a random diffeomorphism (a stationary velocity
field integrated by scaling and squaring, Arsigny et al. 2006) that also widens or narrows the
ventricles, scanned with one of three protocols: own spacing, orientation, obliqueness, contrast,
bias field, Rician noise and grey scale.  Labels follow the anatomy: 1 lateral ventricles, 2 deep
grey matter, 3 white matter; cortex, cisterns and air are background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedSSLLib.core.errors import InputError
from MedSSLLib.demo.acquisition import mr_values
from MedSSLLib.demo.atlas import CENTRE, EXTENT, Atlas, load_atlas
from MedSSLLib.demo.deformation import (
    KNOTS,
    all_values_at,
    flow_of,
    index_grid,
    random_pose,
    random_velocity,
    rotation_matrix,
    values_at,
)
from MedSSLLib.demo.folders import About, Subject, write_folder
from MedSSLLib.images.geometry import Geometry, Volume

CLASSES = {"1": "lateral ventricles", "2": "deep grey matter", "3": "white matter"}


@dataclass(frozen=True)
class Scanner:
    """How a scanner images: axes (columns in LPS), voxel in mm, tilts in degrees, grey values."""

    axes: tuple[tuple[int, int, int], ...]
    spacing: tuple[float, float, float]
    tilts: tuple[tuple[float, float], ...]
    gamma: float
    gain: float
    noise: float


_AXIAL = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_SAGITTAL = ((0, 1, 0), (0, 0, -1), (-1, 0, 0))
SCANNERS = {
    "Axial2D": Scanner(
        _AXIAL, (2.2, 2.2, 4.0), ((-15, -5), (0, 0), (0, 0)), gamma=1.0, gain=900, noise=0.03
    ),
    "Sagittal3D": Scanner(
        _SAGITTAL, (2.5, 2.5, 2.5), ((0, 0), (0, 0), (0, 0)), gamma=1.6, gain=240, noise=0.05
    ),
    "Oblique3D": Scanner(
        _AXIAL, (2.0, 2.0, 3.0), ((-12, 12), (-8, 8), (-8, 8)), gamma=0.8, gain=6500, noise=0.04
    ),
}
"""How each scanner acquires."""


def blurred(atlas: Atlas, scanner: Scanner) -> Atlas:
    """The atlas under a Gaussian of 0.35 voxels of a scanner.

    That is near the variance of a voxel-wide box.
    """
    voxel = np.array(scanner.spacing) @ np.abs(np.array(scanner.axes))
    maps = [ndimage.gaussian_filter(part, 0.35 * voxel) for part in atlas.maps]
    return Atlas(np.stack(maps), atlas.origin)


def simulate_subject(atlas: Atlas, name: str, generator: np.random.Generator) -> Subject:
    """One subject drawn with ``generator``, seen by a scanner, ``name`` of :data:`SCANNERS`.

    ``atlas`` is blurred to the voxel of that scanner (:func:`blurred`): thick slices mix tissue.
    """
    scanner = SCANNERS[name]
    older = bool(generator.random() < 0.5)
    widening = generator.uniform(1.0, 4.0) if older else generator.uniform(-1.0, 1.5)
    geometry, tilted = sample_grid(scanner, generator)
    displacement = sample_displacement(atlas, widening, generator)
    points = _template_points(geometry, generator)
    knots = (points - atlas.origin) / KNOTS
    points = points + np.moveaxis(all_values_at(displacement, knots), 0, -1)
    maps = all_values_at(atlas.maps, points - atlas.origin)
    image = _acquire(maps, scanner, generator)
    metadata = {
        "scanner": name,
        "age_group": "older" if older else "younger",
        "orientation": "oblique" if tilted else "straight",
    }
    return Subject(Volume(image, geometry), Volume(_label(maps), geometry), metadata)


def sample_grid(scanner: Scanner, generator: np.random.Generator) -> tuple[Geometry, bool]:
    """A voxel grid over the field of view, turned by random tilts, and whether it is tilted.

    The tilts turn about L, P and S.
    """
    angles = np.deg2rad([generator.uniform(*limits) for limits in scanner.tilts])
    direction = rotation_matrix(angles) @ np.array(scanner.axes, dtype=float).T
    extent = np.abs(np.array(scanner.axes)) @ EXTENT
    size = np.round(extent / scanner.spacing).astype(int)
    isocentre = generator.uniform(-15, 15, 3)  # scanner coordinates of the field's centre
    origin = isocentre - direction @ ((size - 1) / 2 * scanner.spacing)
    geometry = Geometry(
        size=(int(size[0]), int(size[1]), int(size[2])),
        spacing=scanner.spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(map(float, direction.ravel())),
    )
    return geometry, bool(np.any(angles != 0))


def _template_points(geometry: Geometry, generator: np.random.Generator) -> np.ndarray:
    """Template position (RAS mm, ``[k, j, i, 3]``) of every voxel under a random pose."""
    index = index_grid(geometry.shape)[..., ::-1]
    middle = geometry.points((np.array(geometry.size) - 1) / 2)
    relative = (geometry.points(index) - middle) * np.array([-1.0, -1.0, 1.0])  # LPS to RAS
    pose = random_pose(generator, degrees=4, stretch=0.08, shear=0.02)
    return relative @ pose.T + CENTRE + generator.normal(0, 2.5, 3)


def sample_displacement(
    atlas: Atlas, widening: float, generator: np.random.Generator
) -> np.ndarray:
    """A random diffeomorphism as displacements ``[3, x, y, z]`` in mm.

    Its nodes lie 5 mm apart from ``atlas.origin``.

    ``widening``: mm by which the walls of the ventricles move outwards (negative: inwards).
    """
    x, y, z = (int(np.ceil(n / KNOTS)) + 1 for n in atlas.maps.shape[1:])
    velocity = random_velocity((x, y, z), ((5.0, 3.0), (2.0, 1.2)), generator)
    nodes = index_grid((x, y, z)) * KNOTS
    slope = np.stack(np.gradient(ndimage.gaussian_filter(values_at(atlas.maps[3], nodes), 1.2)))
    velocity += widening * slope / np.abs(slope).max()
    return flow_of(velocity / KNOTS) * KNOTS


def _acquire(maps: np.ndarray, scanner: Scanner, generator: np.random.Generator) -> np.ndarray:
    """Grey values uint16 from template maps ``[channel, k, j, i]``.

    Contrast, bias field, Rician noise and gain are drawn.
    """
    t1, grey, white = maps[:3]
    signal = np.clip(t1, 0, 1) ** (scanner.gamma * generator.uniform(0.9, 1.1))
    signal = np.clip(
        signal + generator.normal(0, 0.03) * grey + generator.normal(0, 0.03) * white, 0, None
    )
    return mr_values(signal, scanner.noise, scanner.gain, generator)


def _label(maps: np.ndarray) -> np.ndarray:
    ventricles, deep = maps[3], maps[4]
    white = maps[2] * np.clip(1 - ventricles - deep, 0, 1)
    other = np.clip(1 - ventricles - deep - white, 0, 1)
    return np.argmax(np.stack([other, ventricles, deep, white]), axis=0).astype(np.uint8)


def simulate_cohort(
    out: Path | str,
    *,
    subjects: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort as a folder; the same seed gives the same files.

    They are ``images/``, ``labels/``, ``metadata.csv``, ``splits.json`` and ``dataset.json``.

    Subject n does not depend on how many follow. The last quarter is for testing; labelled subjects
    are drawn so that scanners take turns.

    Raises:
        InputError: fewer than 4 subjects, or a seed below 0.
    """
    if subjects < 4 or seed < 0:
        raise InputError(
            f"{subjects} subjects with seed {seed}", remedy="Ask for at least 4, and a seed from 0"
        )
    folder, template = Path(out), load_atlas()
    atlases = {name: blurred(template, scanner) for name, scanner in SCANNERS.items()}

    def made() -> Iterator[tuple[str, Subject]]:
        for index, scanner in zip(range(subjects), cycle(SCANNERS), strict=False):
            generator = np.random.default_rng([seed, index])
            subject = simulate_subject(atlases[scanner], scanner, generator)
            yield f"subject{index + 1:02d}", subject

    about = About(
        "Simulated brains",
        "T1-weighted brain scans simulated from the ICBM152 template",
        "MR",
        CLASSES,
        subjects,
    )
    write_folder(folder, about, made(), seed, progress)
    return folder
