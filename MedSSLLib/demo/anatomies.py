"""Bodies that subjects are drawn from: real scans that small packages carry, and a rendered head.

A package is looked for, its image files are read, and nothing of its code is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.core.packages import install_command
from MedSSLLib.demo.acquisition import HOUNSFIELD
from MedSSLLib.demo.atlas import load_atlas
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, orient

BODY_MARGIN = 25.0
"""What is kept, in mm, around the field of view, for deformations to bring in."""


@dataclass(frozen=True)
class Anatomy:
    """One body on a grid whose axes are left, posterior and superior.

    Attributes:
        grey: Hounsfield units or the signal of MR near [0, 1], ``[k, j, i]``.
        classes: how much of a voxel each class fills, ``[class, k, j, i]`` in [0, 1].
        geometry: of the voxels.
        beyond: what lies outside, as ``numpy.pad`` names it: the mirror image, or the edge.
    """

    grey: np.ndarray
    classes: np.ndarray
    geometry: Geometry
    beyond: str = "reflect"


@dataclass(frozen=True)
class PackagedScan:
    """A scan and its label in a Python package.

    Attributes:
        package: name to import, whose folder is looked in.
        release: what to install, with a version that was tried.
        image: file of the scan, below the folder.
        label: file of its label.
        merged: the label's values that make up each class, by the name of the class.
        modality: MR or CT.
        thinned: how many voxels are averaged into one along i, j, k.
    """

    package: str
    release: str
    image: str
    label: str
    merged: Mapping[str, tuple[int, ...]]
    modality: str
    thinned: tuple[int, int, int] = (1, 1, 1)

    def folder(self) -> Path:
        """Where the package is installed.

        Raises:
            MedSSLError: it is not installed; it says how to install it, without what it needs to
                run.
        """
        spec = importlib.util.find_spec(self.package)
        places = spec.submodule_search_locations if spec else None
        for place in places or ():
            if (Path(place) / self.image).is_file() and (Path(place) / self.label).is_file():
                return Path(place)
        raise MedSSLError(
            f"The scan of the package {self.package} is missing. Install it, without the packages "
            f"that it needs to run, which are not used: "
            f"{install_command('--no-deps', self.release)}"
        )

    def source(self) -> str:
        """Package, version and files, as a card names them."""
        name, _, tried = self.release.partition("==")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = f"of unknown version (tried: {tried})"
        return f"{name} {version}: `{self.package}/{self.image}`, `{self.package}/{self.label}`"

    def load(self) -> Anatomy:
        """The scan with its classes."""
        folder = self.folder()
        image = io.read_image(folder / self.image)
        label = io.read_label(folder / self.label, image.geometry)
        scan, drawn = orient(image), orient(label).array
        grey = thinned(np.clip(scan.array, *HOUNSFIELD), self.thinned)
        if self.modality == "MR":
            grey = grey / np.percentile(grey, 99.5)
        classes = [thinned(np.isin(drawn, values), self.thinned) for values in self.merged.values()]
        return Anatomy(grey, np.stack(classes), _thinned_grid(scan.geometry, self.thinned))


@dataclass(frozen=True)
class RenderedHead:
    """The head of the ICBM152 template as CT shows it; skull and scalp are made up."""

    modality: str = "CT"
    merged = {"lateral ventricles": (3,), "deep grey matter": (4,)}

    def source(self) -> str:
        """Package and version, as a card names them."""
        return f"nilearn {metadata.version('nilearn')}: T1 template, grey and white matter, 1 mm"

    def load(self) -> Anatomy:
        """Tissue of the template with the Hounsfield units of tissue."""
        atlas = load_atlas()
        maps = atlas.maps.transpose(0, 3, 2, 1)[:, :, ::-1, ::-1]  # from RAS to LPS
        last = atlas.origin + np.array(atlas.maps.shape[1:]) - 1
        geometry = Geometry(
            size=(maps.shape[3], maps.shape[2], maps.shape[1]),
            origin=(-float(last[0]), -float(last[1]), float(atlas.origin[2])),
        )
        return Anatomy(rendered_head(*maps[:3]), maps[3:], geometry, beyond="edge")


BodySource = PackagedScan | RenderedHead
"""Where an anatomy comes from."""


def rendered_head(t1: np.ndarray, grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Hounsfield units of a head: brain, fluid, two tables of the skull, scalp and air.

    Everything outside the brain is made up: shells around it.
    """
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(t1 > 0, iterations=3))
    fluid = np.clip(1 - grey - white, 0, 1)
    inside = 37 * grey + 29 * white + 8 * fluid
    outwards = ndimage.distance_transform_edt(~brain)
    shells = ((1.5, 12.0), (3.0, 1100.0), (5.5, 550.0), (7.5, 1200.0), (11.0, -75.0), (13.0, 45.0))
    hounsfield = np.full(t1.shape, -1000.0, np.float32)
    for distance, value in reversed(shells):
        hounsfield[outwards <= distance] = value
    hounsfield[brain] = inside[brain]
    return ndimage.gaussian_filter(hounsfield, 0.5)


def thinned(values: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Means over blocks of ``steps`` voxels along i, j, k; what fills no block is left out."""
    blocks = values.astype(np.float32)
    for axis, step in enumerate(reversed(steps)):
        count = blocks.shape[axis] // step
        blocks = blocks[(slice(None),) * axis + (slice(count * step),)]
        shape = (*blocks.shape[:axis], count, step, *blocks.shape[axis + 1 :])
        blocks = blocks.reshape(shape).mean(axis + 1)
    return blocks


def _thinned_grid(geometry: Geometry, steps: tuple[int, int, int]) -> Geometry:
    """The grid of :func:`thinned`: voxels lie in the middle of their blocks."""
    size = [n // step for n, step in zip(geometry.size, steps, strict=True)]
    spacing = np.multiply(geometry.spacing, steps)
    origin = geometry.points((np.array(steps) - 1) / 2)
    return Geometry(
        size=(size[0], size[1], size[2]),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=geometry.direction,
    )


def cropped(anatomy: Anatomy, centre: np.ndarray, extent: np.ndarray) -> Anatomy:
    """The part around a field of view (LPS mm), with a margin; continued where the scan ends."""
    geometry = anatomy.geometry
    low = np.floor(geometry.indices(centre - extent / 2 - BODY_MARGIN)).astype(int)
    high = np.ceil(geometry.indices(centre + extent / 2 + BODY_MARGIN)).astype(int) + 1
    kept, pads = [], []
    for first, last, size in zip(low[::-1], high[::-1], geometry.shape, strict=True):
        kept.append(slice(max(first, 0), min(last, size)))
        pads.append((max(-first, 0), max(last - size, 0)))
    box = tuple(kept)
    grey = _padded(anatomy.grey[box], pads, anatomy.beyond)
    classes = [_padded(part[box], pads, anatomy.beyond) for part in anatomy.classes]
    origin = geometry.points(low)
    grid = Geometry(
        size=(grey.shape[2], grey.shape[1], grey.shape[0]),
        spacing=geometry.spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=geometry.direction,
    )
    return Anatomy(grey, np.stack(classes), grid)


def _padded(values: np.ndarray, pads: list[tuple[int, int]], beyond: str) -> np.ndarray:
    if beyond == "edge":
        return np.pad(values, pads, mode="edge")
    return np.pad(values, pads, mode="reflect")
