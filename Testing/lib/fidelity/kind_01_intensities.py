"""What surrounds the anatomy must not change its intensities in the cache."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.project.manifest import Case
from Testing.lib.data.test_normalisation import BODY, SCANS
from Testing.lib.fidelity.files import save
from Testing.lib.fidelity.registry import variant

KIND = "intensities"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Change = Callable[[np.ndarray], tuple[np.ndarray, tuple[slice, ...]]]


def cached(folder: Path, name: str, array: np.ndarray, modality: str) -> np.ndarray:
    """Intensities [i, j, k] in the cache of an image that nibabel has written."""
    path = save(folder / f"{name}.nii.gz", array.transpose(2, 1, 0), LPS)
    plan = make_plan([io.read_header(path)], modality=modality, dim=3)
    cache = Cache(folder / "cache", plan)
    cache.prepare([Case(name, images=(path,))]).require_all()
    return cache.image(name, (0, 0, 0), cache.shape(name)[1:])[0]


@functools.cache
def plain(name: str) -> np.ndarray:
    """Intensities of a scan as it is, which all its changes are compared with."""
    with tempfile.TemporaryDirectory() as folder:
        return np.array(cached(Path(folder), "plain", SCANS[name], name[:2]))


def compare(folder: Path, name: str, change: Change) -> None:
    base = plain(name)
    array, place = change(SCANS[name].astype(np.float32))
    now = cached(folder, "changed", array, name[:2])[place]
    off = np.sort(np.abs(now - base)[BODY])[: -60 if place else -90]
    assert off.max() < 0.1, f"the anatomy's intensities move by {off.max():.2f} deviations"


def whole(array: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    return array, ()


def padded(value: float, around: tuple[tuple[int, int], ...]) -> Change:
    def change(array: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
        place = tuple(slice(a, a + n) for (a, _), n in zip(around, array.shape, strict=True))
        return np.pad(array, around, constant_values=value), place

    return change


def stray(amount: float, count: int = 1) -> Change:
    def change(array: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
        places = np.random.default_rng(0).choice(array.size, count, replace=False)
        array.reshape(-1)[places] = (array.min() if amount < 0 else array.max()) + amount
        return whole(array)

    return change


def scaled(factor: float, offset: float) -> Change:
    return lambda array: whole(array * np.float32(factor) + np.float32(offset))


ALL_SIDES, ONE_SIDE = ((2, 3), (6, 5), (5, 6)), ((0, 0), (0, 15), (0, 0))
EVERY: dict[str, Change] = {
    "a stray voxel of -1": stray(-1),
    "a stray voxel of -5000": stray(-5000),
    "a stray voxel of 50,000": stray(50000),
    "eight stray voxels": stray(-20, 8),
    "padding of -3024": padded(-3024, ALL_SIDES),
    "padding of -2000 on one side": padded(-2000, ONE_SIDE),
    "padding of 0": padded(0, ALL_SIDES),
    "padding of 32,767": padded(32767, ALL_SIDES),
}
CHOSEN = ("MR masked", "MR in air", "MR of tissue", "CT in air", "CT with an offset")
for scan_name in CHOSEN:
    changes = dict(EVERY)
    if scan_name.startswith("MR"):
        changes["7 x + 100"] = scaled(7, 100)
        changes["x / 100 - 3"] = scaled(0.01, -3)
    for words, made in changes.items():

        def check(folder: Path, name: str = scan_name, change: Change = made) -> None:
            compare(folder, name, change)

        variant(KIND, f"{scan_name}: {words}")(check)
