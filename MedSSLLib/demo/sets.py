"""Data sets to measure with that need no download: real anatomy, simulated patients.

Each has one body (see :mod:`MedSSLLib.demo.anatomies`), of which every subject is a random pose and
a random diffeomorphism, scanned by one of two protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_folder, write_text
from MedSSLLib.demo.acquisition import ct_values, mr_values
from MedSSLLib.demo.anatomies import Anatomy
from MedSSLLib.demo.deformation import (
    KNOTS,
    all_values_at,
    flow_of,
    index_grid,
    random_pose,
    random_velocity,
    values_at,
)
from MedSSLLib.demo.folders import About, Subject, write_folder
from MedSSLLib.demo.recipes import SAMPLE_SETS, Acquisition, SampleSet, card
from MedSSLLib.images.geometry import Geometry, Volume


def draw_subject(
    body: Anatomy, recipe: SampleSet, scanner: str, generator: np.random.Generator
) -> Subject:
    """One subject drawn with ``generator``, seen by a scanner of the set's protocols.

    ``body`` is blurred to the voxel of that scanner (:func:`seen_by`).
    """
    protocol = recipe.protocols[scanner]
    grid = _grid(recipe, protocol, generator)
    places = _places(body.geometry, grid, recipe.scales, generator)
    grey = values_at(body.grey, places)
    classes = all_values_at(body.classes, places)
    if recipe.source.modality == "MR":
        grey = np.clip(grey, 0, None) ** (protocol.gamma * generator.uniform(0.85, 1.15))
    for part, deviation in zip(classes, recipe.shifts, strict=True):
        grey = grey + generator.normal(0, deviation) * part
    if recipe.source.modality == "CT":
        values = ct_values(grey, protocol.noise, protocol.grain, generator)
    else:
        values = mr_values(np.clip(grey, 0, None), protocol.noise, protocol.gain, generator)
    background = np.clip(1 - classes.sum(0), 0, 1)
    label = np.argmax(np.stack([background, *classes]), axis=0).astype(np.uint8)
    return Subject(Volume(values, grid), Volume(label, grid), {"scanner": scanner})


def seen_by(body: Anatomy, protocol: Acquisition) -> Anatomy:
    """The body under a Gaussian of 0.35 voxels of a protocol where those are the coarser ones."""
    spacing = np.array(body.geometry.spacing)
    coarse = np.where(np.array(protocol.spacing) > 1.2 * spacing, protocol.spacing, 0)
    sigma = (0.35 * coarse / spacing)[::-1]
    classes = [ndimage.gaussian_filter(part, sigma) for part in body.classes]
    return replace(body, grey=ndimage.gaussian_filter(body.grey, sigma), classes=np.stack(classes))


def _grid(recipe: SampleSet, protocol: Acquisition, generator: np.random.Generator) -> Geometry:
    """The voxels of a scan; its field of view lies anywhere near the isocentre."""
    size = np.round(np.array(recipe.extent) / protocol.spacing).astype(int)
    first = generator.uniform(-15, 15, 3) - (size - 1) / 2 * protocol.spacing
    return Geometry(
        size=(int(size[0]), int(size[1]), int(size[2])),
        spacing=protocol.spacing,
        origin=(float(first[0]), float(first[1]), float(first[2])),
    )


def _places(
    body: Geometry,
    grid: Geometry,
    scales: tuple[tuple[float, float], ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """Where in the body every voxel lies: continuous indices ``[k, j, i, 3]`` = k, j, i."""
    index = index_grid(grid.shape)[..., ::-1]
    relative = (index - (np.array(grid.size) - 1) / 2) * grid.spacing
    pose = random_pose(generator, degrees=3, stretch=0.07, shear=0.02)
    middle = (np.array(body.size) - 1) / 2 * body.spacing
    points = relative @ pose.T + middle + generator.normal(0, 3, 3)  # mm from the first voxel
    x, y, z = (
        int(np.ceil(n * step / KNOTS)) + 1 for n, step in zip(body.size, body.spacing, strict=True)
    )
    flow = flow_of(random_velocity((x, y, z), scales, generator) / KNOTS) * KNOTS
    moved = points + np.moveaxis(all_values_at(flow, points / KNOTS), 0, -1)
    return (moved / body.spacing)[..., ::-1]


def write_sample_set(
    name: str,
    out: Path,
    *,
    subjects: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSet:
    """Write a set of ``SAMPLE_SETS`` into a new folder; the same seed gives the same files.

    They are ``images/``, ``labels/``, ``metadata.csv``, ``splits.json``, ``dataset.json`` and
    ``card.md``. Subject n does not depend on how many follow, and has a deformation of its own.

    Raises:
        InputError: an unknown set, fewer than 4 subjects, a seed below 0, or a folder with files.
        MedSSLError: the package that carries the body is not installed.
    """
    if name not in SAMPLE_SETS:
        raise InputError(
            f"there is no data set {name!r}", remedy=f"Take one of {', '.join(SAMPLE_SETS)}"
        )
    if subjects < 4 or seed < 0:
        raise InputError(
            f"{subjects} subjects with seed {seed}", remedy="Ask for at least 4, and a seed from 0"
        )
    if out.is_dir() and any(out.iterdir()):
        raise InputError("is not empty", file=out, remedy="Name a new folder")
    recipe = SAMPLE_SETS[name]
    body = recipe.body()
    bodies = {scanner: seen_by(body, how) for scanner, how in recipe.protocols.items()}

    def made() -> Iterator[tuple[str, Subject]]:
        for index, scanner in zip(range(subjects), cycle(bodies), strict=False):
            generator = np.random.default_rng([seed, index])
            subject = draw_subject(bodies[scanner], recipe, scanner, generator)
            yield f"{name}_{index + 1:02d}", subject

    about = About(
        recipe.title,
        f"{recipe.title}: simulated subjects of one body",
        recipe.source.modality,
        recipe.classes,
        subjects,
    )
    with atomic_folder(out) as folder:
        write_folder(folder, about, made(), seed, progress)
        write_text(folder / "card.md", card(name, subjects, seed))
    return recipe
