"""Shared fixtures: small synthetic volumes on awkward grids, a small data set on disk, and the real
data if present.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.project.project import Project

ROOT = Path(__file__).resolve().parents[2]
LONG = (
    "test_gpu_run",
    "test_live",
    "test_selftrain",
    "test_interrupt",
    "test_outside",
    "test_resume",
    "test_demo",
    "test_export",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with few but long tests begin first; the others fill up each process's time."""
    items.sort(key=lambda item: (*LONG, item.path.stem).index(item.path.stem))


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation matrix from angles in degrees about the axes x, y, z, applied in that order."""
    cx, cy, cz = np.cos(np.deg2rad([x, y, z]))
    sx, sy, sz = np.sin(np.deg2rad([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


GEOMETRIES: dict[str, Geometry] = {
    "canonical": Geometry((12, 10, 8)),
    "anisotropic": Geometry((14, 12, 5), (0.8, 0.9, 6.0), (-20.0, 31.5, 4.0)),
    "flipped": Geometry(
        (9, 11, 7), (1.0, 1.5, 2.0), (5.0, -3.0, 60.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
    ),
    "left-handed": Geometry(
        (9, 11, 7), (1.0, 1.5, 2.0), (5.0, -3.0, 60.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0)
    ),
    "sagittal": Geometry(
        (10, 12, 6), (1.0, 1.0, 3.0), (90.0, -100.0, 80.0), (0, 0, -1.0, 1.0, 0, 0, 0, -1.0, 0)
    ),
    "oblique": Geometry(
        (11, 9, 8),
        (1.1, 0.9, 2.5),
        (-7.0, 12.0, 33.0),
        tuple(float(v) for v in rotation(20, -12, 35).ravel()),
    ),
}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data: MEDSSL_DATA, else ../shared/data beside the repository; skips when
    it is missing.
    """
    folder = Path(os.environ.get("MEDSSL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the real data are not here ({folder}); set MEDSSL_DATA to their folder")
    return folder


@pytest.fixture(params=sorted(GEOMETRIES))
def geometry(request: pytest.FixtureRequest) -> Geometry:
    """Each of the awkward grids in turn."""
    return GEOMETRIES[request.param]


@pytest.fixture
def grids() -> dict[str, Geometry]:
    """The awkward grids by name: canonical, anisotropic, flipped, left-handed, sagittal,
    oblique.
    """
    return dict(GEOMETRIES)


@pytest.fixture
def make_volume() -> Callable[..., Volume]:
    """make_volume(geometry=..., seed=0, dtype=np.int16): a bright ellipsoid on noise, values about
    0 .. 1000.
    """

    def make(
        geometry: Geometry = GEOMETRIES["canonical"], seed: int = 0, dtype: type = np.int16
    ) -> Volume:
        noise = np.random.default_rng(seed).normal(0, 20, geometry.shape)
        return Volume((200 + 500 * ellipsoid(geometry) + noise).astype(dtype), geometry)

    return make


@pytest.fixture
def make_label() -> Callable[..., Volume]:
    """make_label(geometry=..., values=(1, 2)): the ellipsoid of `make_volume`, cut along i into
    parts of each value.
    """

    def make(
        geometry: Geometry = GEOMETRIES["canonical"], values: tuple[int, ...] = (1, 2)
    ) -> Volume:
        inside = ellipsoid(geometry)
        part = np.arange(geometry.size[0]) * len(values) // geometry.size[0]
        array = np.where(inside, np.array(values)[part][None, None, :], 0)
        return Volume(
            array.astype(np.int16 if min(values) < 0 or max(values) > 255 else np.uint8), geometry
        )

    return make


def ellipsoid(geometry: Geometry) -> np.ndarray:
    """Boolean [k, j, i]: an ellipsoid that fills most of the grid."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in geometry.shape], indexing="ij")
    return sum(axis**2 for axis in axes) <= 0.8


@dataclass(frozen=True)
class DataSet:
    """A data set on disk: folders of images and labels, a metadata table, and the case names."""

    images: Path
    labels: Path
    metadata: Path
    names: tuple[str, ...]


@pytest.fixture
def data_set(
    tmp_path: Path, make_volume: Callable[..., Volume], make_label: Callable[..., Volume]
) -> DataSet:
    """Six cases, one on each awkward grid, with labels 1 and 2 and metadata (two cases per
    patient).
    """
    images, labels = tmp_path / "data" / "images", tmp_path / "data" / "labels"
    names = []
    for number, (name, grid) in enumerate(sorted(GEOMETRIES.items())):
        io.write_image(images / f"{name}.nii.gz", make_volume(grid, seed=number))
        io.write_image(labels / f"{name}.nii.gz", make_label(grid))
        names.append(name)
    table = tmp_path / "data" / "metadata.csv"
    rows = [
        f"{name},P{number // 2},{'ED' if number % 2 else 'ES'}" for number, name in enumerate(names)
    ]
    table.write_text("\n".join(["case,patient,phase", *rows]) + "\n", encoding="utf-8")
    return DataSet(images, labels, table, tuple(names))


@pytest.fixture
def project(tmp_path: Path, data_set: DataSet) -> Project:
    """A project of the six cases: `oblique` test, `canonical` and `flipped` labelled."""
    return Project.create(
        tmp_path / "project",
        data_set.images,
        labels=data_set.labels,
        metadata=data_set.metadata,
        labelled="canonical,flipped",
        test="oblique",
    )
