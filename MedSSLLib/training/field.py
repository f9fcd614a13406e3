"""How coarse the grid must be for a patch to show the structures with what surrounds them.

A patch that ends inside a structure cannot tell where that structure lies: with 64x64 voxels at the
1.5 mm of cardiac MR a patch is smaller than many hearts, and a model of one labelled volume takes
whatever is as bright for one. The rule is not from the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import Plan, image_axes
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import IGNORE, class_indices, sparse_label
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project

AROUND = 1.5  # side of the field over that of all structures together; not from the paper
FEW_VOXELS = 64 * 64  # of a slice on a coarser grid; not from the paper
MOST_COARSE = 2.0  # grid over the scans' spacing up to which so few are taken; not from the paper
_FINER, _COARSEST = 1.04, 4.0  # steps of the search, and its end, over the scans' spacing


def structure_sides(project: Project, cases: Sequence[Case], plan: Plan) -> np.ndarray | None:
    """Sides in mm of the box around all structures along d, h, w, the median over the cases that
    show one; None where none does.

    Cases whose label cannot be used are left out; they are refused later. Of annotated slices only
    what is drawn counts.
    """
    found = []
    for case in cases:
        assert case.label is not None
        try:
            geometry = io.read_header(case.images[0])
            volume = io.read_label(case.label, geometry, case=case.name)
            classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
        except InputError:
            continue
        classes = sparse_label(classes, case.annotated)
        shown = (classes != 0) & (classes != IGNORE)
        if shown.any():
            axes = image_axes(volume.geometry, plan)
            spacing = volume.geometry.spacing
            found.append([_length(shown, 2 - axis) * spacing[axis] for axis in axes])
    return np.median(found, axis=0) if found else None


def scan_sides(geometries: Sequence[Geometry], plan: Plan) -> np.ndarray:
    """Median sides of the scans in mm along d, h, w."""
    sides = [
        [geometry.size[axis] * geometry.spacing[axis] for axis in image_axes(geometry, plan)]
        for geometry in geometries
    ]
    result: np.ndarray = np.median(sides, axis=0)
    return result


def _length(shown: np.ndarray, axis: int) -> int:
    places = np.flatnonzero(shown.any(tuple({0, 1, 2} - {axis})))
    return int(places[-1] - places[0] + 1)


def plan_around(
    sides: np.ndarray, extent: np.ndarray, planned: Callable[[int | None, float | None], Plan]
) -> Plan:
    """The plan whose patch shows the structures with what surrounds them.

    In 2D a small patch on a coarser grid, which takes a quarter of the time a step, where the grid
    need not be more than MOST_COARSE times as coarse as the scans. Structures that fit into a small
    patch as they are keep the large one: they are small in the scan, and are found by their
    surroundings.

    Args:
        sides: of the structures, mm, d, h, w.
        extent: of the scans, mm, d, h, w.
        planned: the plan with at most so many voxels in a patch (None: by dimension) and a grid.
    """

    def usual(grid: float | None) -> Plan:
        return planned(None, grid)

    def small(grid: float | None) -> Plan:
        return planned(FEW_VOXELS, grid)

    plain = usual(None)
    if plain.dim == 2:
        grid = grid_for(sides, extent, small)
        if grid is not None and grid <= MOST_COARSE * min(mm for mm in plain.spacing if mm):
            return small(grid)
    return usual(grid_for(sides, extent, usual))


def grid_for(
    sides: np.ndarray, extent: np.ndarray, planned: Callable[[float | None], Plan]
) -> float | None:
    """The finest grid with which a patch is `AROUND` times as wide as the structures, or as wide as
    the scans; None where the spacing of the scans will do.

    Args:
        sides: of the structures, mm, d, h, w.
        extent: of the scans, mm, d, h, w.
        planned: the plan with a grid.
    """
    plain = planned(None)
    finest = min(mm for mm in plain.spacing if mm)
    wanted = np.minimum(AROUND * sides, extent)[-plain.dim :]
    grid: float | None = None
    while (grid or finest) < _COARSEST * finest:
        plan = planned(grid)
        spacing = np.asarray([mm or 0.0 for mm in plan.spacing])[-plan.dim :]
        step = np.prod(plan.strides, axis=0) * spacing  # patches are whole strides
        if (np.asarray(plan.patch) * spacing >= wanted - step / 2).all():
            break
        grid = round((grid or finest) * _FINER, 3)
    return grid
