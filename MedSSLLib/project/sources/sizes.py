"""Scans whose size says that their lengths are in another unit. Part of `ingest`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from MedSSLLib.images.geometry import Geometry

_FACTOR = 8.0  # between the voxels of scans of one kind; not from a paper
_LEAST_MM = 2.0  # what a scan of a patient is at least large; not from a paper


def unlike_sizes(grids: Mapping[str, Geometry]) -> list[str]:
    """Warnings of scans that are less than 2 mm large, or whose voxels are 8 times as large or as
    small as those of most scans: their headers may give metres or micrometres.

    Args:
        grids: of each case.
    """
    warnings = []
    sizes = {name: float(np.prod(grid.spacing)) ** (1 / 3) for name, grid in grids.items()}
    tiny = [
        name
        for name, grid in grids.items()
        if max(np.multiply(grid.size, grid.spacing)) < _LEAST_MM
    ]
    if tiny:
        warnings.append(
            f"{_named(tiny)}: less than {_LEAST_MM:g} mm large by the header (voxels of "
            f"{_lengths(grids[tiny[0]])} mm). If its lengths are in metres, correct the voxel size"
        )
    typical = float(np.median([*sizes.values()] or [1.0]))
    unlike = [
        name
        for name, size in sizes.items()
        if name not in tiny and not 1 / _FACTOR < size / typical < _FACTOR
    ]
    if unlike:
        warnings.append(
            f"{_named(unlike)}: voxels of {_lengths(grids[unlike[0]])} mm, where most scans have "
            f"about {typical:.3g} mm. Check that the headers give the same unit of length"
        )
    return warnings


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lengths(grid: Geometry) -> str:
    return " x ".join(f"{length:.3g}" for length in grid.spacing)
