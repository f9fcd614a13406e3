"""A simulated brain MR cohort, made from the ICBM152 template.

The nilearn package ships the template: no network is needed.

Every subject is the template under a random pose, a random diffeomorphism (a stationary velocity
field integrated by scaling and squaring, Arsigny et al. 2006) that also widens or narrows the
ventricles, scanned with one of three protocols: own spacing, orientation, obliqueness, contrast,
bias field, Rician noise and grey scale.  Labels follow the anatomy: 1 lateral ventricles, 2 deep
grey matter, 3 white matter; cortex, cisterns and air are background.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_path, write_json
from MedSSLLib.demo.atlas import CENTRE, EXTENT, Atlas, load_atlas
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume

CLASSES = {"1": "lateral ventricles", "2": "deep grey matter", "3": "white matter"}
_KNOTS = 5.0  # mm between nodes of the velocity field


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


@dataclass(frozen=True)
class Subject:
    """One simulated scan (uint16), its label (uint8) on the same grid, and its metadata."""

    image: Volume
    label: Volume
    metadata: dict[str, str]


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
    knots = (points - atlas.origin) / _KNOTS
    points = points + np.moveaxis(_interpolate_all(displacement, knots), 0, -1)
    maps = _interpolate_all(atlas.maps, points - atlas.origin)
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
    direction = _rotation(angles) @ np.array(scanner.axes, dtype=float).T
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


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix: about the first axis, then the second, then the third (radians)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _template_points(geometry: Geometry, generator: np.random.Generator) -> np.ndarray:
    """Template position (RAS mm, ``[k, j, i, 3]``) of every voxel under a random pose."""
    index = _indices(geometry.shape)[..., ::-1]
    middle = geometry.points((np.array(geometry.size) - 1) / 2)
    relative = (geometry.points(index) - middle) * np.array([-1.0, -1.0, 1.0])  # LPS to RAS
    turned = _rotation(np.deg2rad(generator.normal(0, 4, 3)))
    scaled = turned @ np.diag(generator.uniform(0.92, 1.08, 3))
    pose = scaled + np.triu(generator.normal(0, 0.02, (3, 3)), 1)
    return relative @ pose.T + CENTRE + generator.normal(0, 2.5, 3)


def _indices(shape: tuple[int, ...]) -> np.ndarray:
    """The index of every element of an array, ``[*shape, ndim]``."""
    return np.moveaxis(np.indices(shape), 0, -1)


def sample_displacement(
    atlas: Atlas, widening: float, generator: np.random.Generator
) -> np.ndarray:
    """A random diffeomorphism as displacements ``[3, x, y, z]`` in mm.

    Its nodes lie 5 mm apart from ``atlas.origin``.

    ``widening``: mm by which the walls of the ventricles move outwards (negative: inwards).
    """
    x, y, z = (int(np.ceil(n / _KNOTS)) + 1 for n in atlas.maps.shape[1:])
    velocity = np.zeros((3, x, y, z))
    for sigma, amplitude in ((5.0, 3.0), (2.0, 1.2)):
        noise = ndimage.gaussian_filter(
            generator.normal(size=velocity.shape), (0, sigma, sigma, sigma)
        )
        velocity += amplitude * noise / noise.std()
    nodes = _indices((x, y, z)) * _KNOTS
    slope = np.stack(np.gradient(ndimage.gaussian_filter(_interpolate(atlas.maps[3], nodes), 1.2)))
    velocity += widening * slope / np.abs(slope).max()
    return _exponential(velocity / _KNOTS) * _KNOTS


def _exponential(velocity: np.ndarray, squarings: int = 5) -> np.ndarray:
    """Displacement (in nodes) of the flow of a stationary velocity field after unit time."""
    grid = _indices(velocity.shape[1:])
    flow = velocity / 2**squarings
    for _ in range(squarings):
        flow = flow + _interpolate_all(flow, grid + np.moveaxis(flow, 0, -1))
    return flow


def _interpolate(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``values`` at continuous indices ``[..., ndim]``.

    Outside, the edge value goes on.
    """
    return ndimage.map_coordinates(values, np.moveaxis(places, -1, 0), order=1, mode="nearest")


def _interpolate_all(channels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """As :func:`_interpolate`, for every channel; stacked."""
    return np.stack([_interpolate(values, places) for values in channels])


def _acquire(maps: np.ndarray, scanner: Scanner, generator: np.random.Generator) -> np.ndarray:
    """Grey values uint16 from template maps ``[channel, k, j, i]``.

    Contrast, bias field, Rician noise and gain are drawn.
    """
    t1, grey, white = maps[:3]
    signal = np.clip(t1, 0, 1) ** (scanner.gamma * generator.uniform(0.9, 1.1))
    signal = np.clip(
        signal + generator.normal(0, 0.03) * grey + generator.normal(0, 0.03) * white, 0, None
    )
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in t1.shape), indexing="ij", sparse=True)
    bias = sum(generator.normal(0, 0.12) * a + generator.normal(0, 0.08) * a * a for a in axes)
    signal = signal * np.exp(bias)
    sigma = scanner.noise * generator.uniform(0.7, 1.3)
    noisy = np.hypot(
        signal + generator.normal(0, sigma, t1.shape), generator.normal(0, sigma, t1.shape)
    )
    return np.clip(noisy * scanner.gain * generator.uniform(0.7, 1.4), 0, 65535).astype(np.uint16)


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
    rows = []
    for index, scanner in zip(range(subjects), cycle(SCANNERS), strict=False):
        name = f"subject{index + 1:02d}"
        subject = simulate_subject(atlases[scanner], scanner, np.random.default_rng([seed, index]))
        io.write_image(folder / "images" / f"{name}.nii.gz", subject.image)
        io.write_image(folder / "labels" / f"{name}.nii.gz", subject.label)
        rows.append({"case": name, "patient": name, **subject.metadata})
        if progress is not None:
            progress(index + 1, subjects)
    with (
        atomic_path(folder / "metadata.csv") as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    splits = _splits(rows, seed)
    write_json(folder / "splits.json", splits)
    write_json(folder / "dataset.json", _dataset(splits))
    return folder


def _splits(rows: list[dict[str, str]], seed: int) -> dict[str, Any]:
    """Last quarter for testing; of the rest, five choices of 1, 2 and 8 labelled."""
    generator = np.random.default_rng([seed, len(rows), 1])
    pool, test = rows[: -(len(rows) // 4)], rows[-(len(rows) // 4) :]
    labelled = {}
    for count in (1, 2, 8):
        if count <= len(pool):
            labelled[str(count)] = [_choice(pool, count, generator) for _ in range(5)]
    return {
        "unit": "case",
        "test": [row["case"] for row in test],
        "pool": [row["case"] for row in pool],
        "labelled": labelled,
        "classes": CLASSES,
    }


def _dataset(splits: dict[str, Any]) -> dict[str, Any]:
    """The cohort in the Decathlon's form, so that class names are known to whoever reads it."""

    def entries(names: list[str]) -> list[dict[str, str]]:
        files = [f"{name}.nii.gz" for name in names]
        return [{"image": f"images/{file}", "label": f"labels/{file}"} for file in files]

    return {
        "name": "Simulated brains",
        "description": "T1-weighted brain scans simulated from the ICBM152 template",
        "modality": {"0": "MR"},
        "labels": {"0": "background", **CLASSES},
        "training": entries(splits["pool"]),
        "test": entries(splits["test"]),
    }


def _choice(pool: list[dict[str, str]], n: int, generator: np.random.Generator) -> list[str]:
    """Names of ``n`` random subjects; scanners, in random order, take turns."""
    queues: dict[str, list[str]] = {}
    for index in generator.permutation(len(pool)):
        queues.setdefault(pool[index]["scanner"], []).append(pool[index]["case"])
    turns: list[str] = []
    for group in zip_longest(*queues.values()):
        turns += [name for name in group if name is not None]
    return sorted(turns[:n])
