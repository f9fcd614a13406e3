"""Scans whose size says that their lengths are in another unit. Part of `ingest`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.io import read_header
from MedSSLLib.project.manifest import Case

_FACTOR = 8.0  # between the voxels of scans of one kind; not from a paper
_LEAST_MM = 2.0  # what a scan of a patient is at least large; not from a paper


def some_grids(cases: Iterable[Case]) -> list[Geometry]:
    """The grids of the first, the middle and the last case, of those whose files can be read."""
    every = list(cases)
    chosen = {len(every) * part // 2 for part in (0, 1)} | {len(every) - 1} if every else set()
    found = []
    for place in sorted(chosen):
        with suppress(InputError):  # it is named where it is used
            found.append(read_header(every[place].images[0]))
    return found


def unlike_sizes(grids: Mapping[str, Geometry], known: Sequence[Geometry] = ()) -> list[str]:
    """Warnings of scans that are less than 2 mm large, or whose voxels are 8 times as large or as
    small as those of most scans: their headers may give metres or micrometres.

    Args:
        grids: of each new case.
        known: of cases that are there already; new ones are then compared with these.
    """
    warnings = []
    sizes = {name: _voxel(grid) for name, grid in grids.items()}
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
    typical = float(np.median([*map(_voxel, known)] or [*sizes.values()] or [1.0]))
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


def _voxel(grid: Geometry) -> float:
    """How large voxels are: the geometric mean of their lengths, in mm."""
    return float(np.prod(grid.spacing)) ** (1 / 3)


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lengths(grid: Geometry) -> str:
    return " x ".join(f"{length:.3g}" for length in grid.spacing)
