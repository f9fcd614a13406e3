"""Small made-up volumes to learn the software with, never for any conclusion.

`heart`: thick slices through a thorax with a left ventricle, its wall and a right ventricle.
`hippocampus`: cubic voxels around a bent body with a head and a tail. Every volume has another
shape, position, contrast, bias field and noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.io import write_image

PHANTOMS = {
    "heart": ((12, 72, 72), (8.0, 1.6, 1.6)),
    "hippocampus": ((36, 48, 36), (1.0, 1.0, 1.0)),
}
"""Shape [k, j, i] and spacing (mm) by kind."""


def write_phantoms(folder: Path, kind: str, count: int) -> list[Path]:
    """Write `count` volumes into `folder`/images and their labels into `folder`/labels; returns the
    images.

    Raises KeyError for an unknown kind.
    """
    shape, spacing = PHANTOMS[kind]
    geometry = Geometry(size=(shape[2], shape[1], shape[0]), spacing=spacing[::-1])
    written = []
    for number in range(count):
        image, label = phantom(kind, np.random.default_rng(number))
        name = f"{kind}_{number + 1:02d}.nii.gz"
        write_image(folder / "images" / name, Volume(image, geometry))
        write_image(folder / "labels" / name, Volume(label, geometry))
        written.append(folder / "images" / name)
    return written


def phantom(kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image int16 and label uint8, [k, j, i], of one phantom."""
    shape, spacing = PHANTOMS[kind]
    axes = []
    for count, step in zip(shape, spacing, strict=True):
        axes.append((np.arange(count) - (count - 1) / 2) * step)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    shift_y, shift_x = generator.uniform(-5, 5, 2)
    centred = (z, y - shift_y, x - shift_x)
    if kind == "heart":
        label = _heart(*centred, generator)
        grey = _thorax(z, y, x, label, generator)
    else:
        label = _hippocampus(*centred, generator)
        grey = _brain(*centred, label, generator)
    return _acquired(grey, spacing, generator), label


def _acquired(
    grey: np.ndarray, spacing: tuple[float, ...], generator: np.random.Generator
) -> np.ndarray:
    """What a scanner makes of tissue: blurred by its resolution, shaded by its coil, Rician
    noise.
    """
    blurred = ndimage.gaussian_filter(grey, [0.0 if step > 4 else 0.7 for step in spacing])
    coarse = generator.normal(0, 1, (3, 4, 4))
    zoom = [n / c for n, c in zip(grey.shape, coarse.shape, strict=True)]
    shade = (
        1
        + 0.12
        * ndimage.zoom(coarse, zoom, order=2)[: grey.shape[0], : grey.shape[1], : grey.shape[2]]
    )
    real = blurred * shade + generator.normal(0, 8, grey.shape)
    imaginary = generator.normal(0, 8, grey.shape)
    signal = np.hypot(real, imaginary) * generator.uniform(0.7, 1.5)
    return np.clip(signal, 0, 3000).astype(np.int16)


def _texture(shape: tuple[int, ...], generator: np.random.Generator, size: float) -> np.ndarray:
    """Smooth random structure with mean 0 and standard deviation 1; `size` in voxels."""
    field = ndimage.gaussian_filter(generator.normal(0, 1, shape), (0.6, size, size))
    return field / field.std()


def _heart(
    z: np.ndarray, y: np.ndarray, x: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    apex = 1 - 0.35 * (z / 48 + 0.5)
    radius, wall = generator.uniform(13, 18) * apex, generator.uniform(5, 8)
    long_axis = np.abs(z) < generator.uniform(32, 44)
    distance = np.hypot(x * generator.uniform(0.9, 1.1), y)
    right = np.hypot((x + radius * 1.5) / 1.3, y * 0.8)
    label = np.zeros(z.shape, np.uint8)
    label[long_axis & (right < radius)] = 1
    label[long_axis & (distance < radius + wall)] = 2
    label[long_axis & (distance < radius)] = 3
    return label


def _thorax(
    z: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    label: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Bright blood, grey muscle, dark lungs, a bright chest wall, papillary muscles."""
    blood, muscle = generator.uniform(190, 245), generator.uniform(95, 125)
    grey = np.full(z.shape, generator.uniform(28, 42))  # lungs
    body = (x / 56) ** 2 + (y / 50) ** 2
    grey[body > 0.78] = generator.uniform(120, 150)
    grey[body > 1.05] = generator.uniform(150, 185)  # fat
    grey[body > 1.25] = 8.0  # air
    heart = ndimage.binary_dilation(label > 0, iterations=3, structure=_in_plane())
    grey[heart & (label == 0)] = generator.uniform(135, 165)  # fat around the heart
    liver = (np.hypot(x + 26, y - 40) < 24) & (z < 10)
    grey[liver & ~heart] = generator.uniform(80, 100)
    grey[(label == 1) | (label == 3)] = blood
    grey[label == 2] = muscle
    angle = generator.uniform(0, 2 * np.pi)
    for turn in (0.0, 2.4):
        place = (7 * np.cos(angle + turn), 7 * np.sin(angle + turn))
        papillary = np.hypot(x - place[0], y - place[1]) < 2.6
        grey[papillary & (label == 3)] = (blood + muscle) / 2
    return grey + 7 * _texture(z.shape, generator, 3.0)


def _in_plane() -> np.ndarray:
    result = np.zeros((3, 3, 3), bool)
    result[1] = True
    return result


def _hippocampus(
    z: np.ndarray, y: np.ndarray, x: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    bend = generator.uniform(0.008, 0.02)
    distance = np.hypot(x + bend * y * y - 3, z)
    radius = generator.uniform(4.5, 6.5) * (1 + 0.3 * np.tanh(y / 8))
    inside = (distance < radius) & (np.abs(y) < generator.uniform(15, 19))
    return np.where(inside, np.where(y > generator.uniform(-2, 4), 1, 2), 0).astype(np.uint8)


def _brain(
    z: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    label: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Grey hippocampus in white matter, a dark horn of the ventricle beside it, folded cortex."""
    white, grey_matter = generator.uniform(165, 190), generator.uniform(110, 130)
    grey = np.full(z.shape, white)
    folds = np.sin(0.45 * x + 2 * np.sin(0.2 * y)) + np.sin(0.4 * z + 0.15 * y)
    grey[folds > 0.9] = grey_matter
    grey[folds > 1.6] = generator.uniform(45, 60)
    around = ndimage.binary_dilation(label > 0, iterations=2)
    grey[around] = white
    horn = (np.hypot(x - 8, z - 4) < 3.2) & (np.abs(y) < 17)
    grey[horn & (label == 0)] = generator.uniform(40, 55)
    grey[label == 1] = grey_matter + 4
    grey[label == 2] = grey_matter - 2
    return grey + 6 * _texture(z.shape, generator, 1.5)
