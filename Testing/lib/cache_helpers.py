"""Made-up cases for the tests of the cache."""

from __future__ import annotations

import numpy as np

from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume, oriented
from MedSSLLib.project.manifest import Case

VALUES = (0, 3, 7)
GRID = oriented(Geometry((30, 26, 22), (1.0, 1.1, 1.3), (5.0, -9.0, 70.0)), "RSP")
PLAN = make_plan([GRID], modality="MR", dim="3d").model_copy(update={"spacing": (1.2, 1.2, 1.2)})


def write_case(folder, name, geometry=GRID, seed=0, **fields):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 20, geometry.shape).astype(np.float32)
    label = np.zeros(geometry.shape, np.uint8)
    label[4:14, 5:15, 6:16] = 3
    label[10:18, 8:20, 3:9] = 7
    folder.mkdir(exist_ok=True)
    io.write_image(folder / f"{name}.nii.gz", Volume(image, geometry))
    io.write_image(folder / f"{name}_label.nii.gz", Volume(label, geometry))
    return Case(name, (folder / f"{name}.nii.gz",), folder / f"{name}_label.nii.gz", **fields)


def whole(cache, name):
    return cache.image(name, (0, 0, 0), cache.shape(name)[1:])


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def never(*_args, **_kwargs):
    raise AssertionError("must not be called")
