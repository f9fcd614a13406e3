"""Run by PythonSlicer, not by Slicer: small made-up volumes to try everything out.

    PythonSlicer cohort.py FOLDER KIND COUNT

KIND is `heart` (thick slices: a left ventricle, its wall and a right ventricle) or `hippocampus` (cubic voxels: a
bent body with a head and a tail). Every volume has another shape, position, contrast and noise. They are
phantoms for learning the software, not for any conclusion.
"""

import sys
from pathlib import Path

import numpy as np

KINDS = {"heart": ((12, 72, 72), (8.0, 1.6, 1.6)), "hippocampus": ((36, 48, 36), (1.0, 1.0, 1.0))}


def main(arguments):
    """Write COUNT volumes into FOLDER/images and their labels into FOLDER/labels."""
    from MedSSLLib.images.geometry import Geometry, Volume
    from MedSSLLib.images.io import write_image

    folder, kind, count = Path(arguments[0]), arguments[1], int(arguments[2])
    shape, spacing = KINDS[kind]
    geometry = Geometry(
        shape[::-1], spacing[::-1], (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    )
    for number in range(count):
        image, label = sample(kind, np.random.default_rng(number))
        write_image(folder / "images" / f"{kind}_{number + 1:02d}.nii.gz", Volume(image, geometry))
        write_image(folder / "labels" / f"{kind}_{number + 1:02d}.nii.gz", Volume(label, geometry))
    return 0


def sample(kind, generator):
    """Image int16 and label uint8, [k, j, i], of one phantom."""
    shape, spacing = KINDS[kind]
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    y, x = y - generator.uniform(-5, 5), x - generator.uniform(-5, 5)
    label = _heart(z, y, x, generator) if kind == "heart" else _hippocampus(z, y, x, generator)
    waves = sum(
        np.sin(generator.uniform(0.02, 0.12) * (x * a + y * b + z * c))
        for a, b, c in generator.normal(size=(4, 3))
    )
    levels = np.array(
        [
            generator.uniform(60, 110),
            generator.uniform(190, 250),
            generator.uniform(110, 150),
            generator.uniform(190, 250),
        ]
    )
    image = levels[label] + 18 * waves + generator.normal(0, 9, shape)
    return np.clip(image * generator.uniform(0.6, 1.6), 0, 3000).astype(np.int16), label


def _heart(z, y, x, generator):
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


def _hippocampus(z, y, x, generator):
    bend = generator.uniform(0.008, 0.02)
    distance = np.hypot(x + bend * y * y - 3, z)
    radius = generator.uniform(4.5, 6.5) * (1 + 0.3 * np.tanh(y / 8))
    inside = (distance < radius) & (np.abs(y) < generator.uniform(15, 19))
    return np.where(inside, np.where(y > generator.uniform(-2, 4), 1, 2), 0).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
