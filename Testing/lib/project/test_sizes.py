"""Scans whose lengths are in another unit than those of the others."""

from __future__ import annotations

from MedSSLLib.images.geometry import Geometry
from MedSSLLib.project.sources.sizes import unlike_sizes


def of(*spacings: float, size: int = 100) -> dict[str, Geometry]:
    return {f"c{n}": Geometry((size,) * 3, (mm,) * 3) for n, mm in enumerate(spacings)}


def test_scans_alike_are_not_named() -> None:
    assert not unlike_sizes(of(1.0, 0.5, 3.0, 1.2))
    assert not unlike_sizes({})
    assert not unlike_sizes(of(0.02, 0.02))  # 2 mm: a scan of a specimen


def test_one_of_another_unit_is_named() -> None:
    (warning,) = unlike_sizes(of(1.0, 1.0, 10.0, 1.0))
    assert warning.startswith("c2: voxels of 10 x 10 x 10 mm, where most scans have about 1 mm")
    (warning,) = unlike_sizes(of(1.0, 0.1, 1.0))
    assert warning.startswith("c1: voxels of 0.1")
    assert not unlike_sizes(of(1.0, 7.9, 1.0, 1 / 7.9))


def test_scans_of_less_than_two_millimetres_are_named_once() -> None:
    (warning,) = unlike_sizes(of(0.001, 0.001, 0.001, 0.001, 0.001))
    assert warning.startswith("c0, c1, c2 and 2 more: less than 2 mm large")
    (warning,) = unlike_sizes(of(1.0, 0.001, 1.0))
    assert warning.startswith("c1: less than 2 mm")


def test_a_new_scan_is_compared_with_those_that_are_there() -> None:
    known = list(of(1.0, 1.1, 0.9).values())
    assert not unlike_sizes(of(2.0), known)
    (warning,) = unlike_sizes(of(20.0), known)
    assert warning.startswith("c0: voxels of 20 x 20 x 20 mm")
