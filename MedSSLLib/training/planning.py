"""The plan of a run: that of the run it goes on with, or starts from, or a new one.

A new one is as coarse as it must be for a patch to show the structures with what surrounds them.

A patch that ends inside a structure cannot tell where that structure lies: with 64x64 voxels at the
1.5 mm of cardiac MR a patch is smaller than many hearts, and a model of one labelled volume takes
whatever is as bright for one. The rule is not from the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import LINEAR_CT, Plan, image_axes, make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import IGNORE, class_indices, sparse_label
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project

if TYPE_CHECKING:
    from MedSSLLib.training.context import TrainingContext

AROUND = 1.5  # side of the field over that of all structures together; not from the paper
FEW_VOXELS = 64 * 64  # of a slice on a coarser grid; not from the paper
MOST_COARSE = 2.0  # grid over the scans' spacing up to which so few are taken; not from the paper
_FINER, _COARSEST = 1.04, 4.0  # steps of the search, and its end, over the scans' spacing


def readable_headers(cases: Sequence[Case]) -> list[Geometry]:
    """Geometries of the cases whose header can be read.

    Unreadable ones are refused later, when cached.
    """
    found = []
    for case in cases:
        try:
            found.append(io.read_header(case.images[0]))
        except InputError:
            continue
    return found


def choose_plan(
    context: TrainingContext,
    cases: Sequence[Case],
    auto: Literal["auto", "2d", "3d"] = "auto",
    labelled: Sequence[Case] = (),
) -> Plan:
    """The plan of the run that goes on, of the run that is started from, or a new one.

    With an encoder whose pre-training left patch and grid to the plan, both are those of a new one.

    Args:
        context: of the run.
        cases: whose headers a new plan is made from.
        auto: what ``--dim auto`` means in a new one.
        labelled: whose structures decide what ``training.grid=auto`` means in a new one.

    Raises:
        InputError: no case can be read, or `--dim` contradicts the encoder that is taken over.
    """
    config, start = context.config, context.start
    if config.resume:
        return context.run.plan
    plan = _new_plan(context, cases, auto if config.dim == "auto" else config.dim, labelled)
    if start is None or not start.recorded:
        return plan
    rule = max(start.plan.intensities, LINEAR_CT)  # the one before is no longer there
    theirs = start.plan.model_copy(update={"intensities": rule})
    if config.dim != "auto" and theirs.dim != int(config.dim[0]):
        raise InputError(
            f"--dim {config.dim} contradicts the {theirs.dim}D encoder of {start.name!r}",
            remedy="Leave --dim out, or pre-train again in that dimension",
        )
    if config.command != "pretrain" and _left_open(start.config):
        return _with_field_of(_new_plan(context, cases, theirs.dim, labelled), theirs, config)
    asked = isinstance(config.training.grid, float)
    if config.training.voxels is None and not asked:
        return theirs
    fitted = _new_plan(context, cases, theirs.dim)
    if fitted.strides != theirs.strides:
        return theirs
    taken: dict[str, Any] = {"patch": fitted.patch} if config.training.voxels else {}
    taken |= {"spacing": fitted.spacing} if asked else {}
    return theirs.model_copy(update=taken)


def _left_open(config: RunConfig) -> bool:
    """Whether the settings are those of a pre-training whose patch and grid followed from scan
    sizes alone, as it reads no label.
    """
    asked = config.training.voxels is not None or isinstance(config.training.grid, float)
    return config.command == "pretrain" and not asked


def _with_field_of(fitted: Plan, theirs: Plan, config: RunConfig) -> Plan:
    """An encoder's plan with the patch and the grid that a run from random weights would take,
    where its levels fit them.
    """
    levels = len(config.network.widths)
    if fitted.strides[:levels] != theirs.strides[:levels]:
        return theirs
    field = {"patch": fitted.patch, "spacing": fitted.spacing, "strides": fitted.strides}
    return theirs.model_copy(update=field)


def _new_plan(
    context: TrainingContext, cases: Sequence[Case], dim: str | int, labelled: Sequence[Case] = ()
) -> Plan:
    training, project = context.config.training, context.project
    headers = readable_headers(cases)

    def planned(voxels: int | None, grid: float | None) -> Plan:
        made = make_plan(
            headers,
            modality=project.modalities,
            channels=project.channels,
            dim=dim,
            voxel_budget=voxels,
            grid=grid,
        )
        if context.config.preset != "paper":
            return made
        return made.model_copy(update={"intensities": LINEAR_CT})  # clipped as in PGL

    def fixed(grid: float | None) -> Plan:
        return planned(training.voxels, grid)

    if training.grid != "auto":
        return fixed(training.grid)
    plain = fixed(None)
    sides = structure_sides(project, labelled, plain)
    if sides is None:
        return plain
    extent = scan_sides(headers, plain)
    if training.voxels or context.config.preset == "paper":
        return fixed(grid_for(sides, extent, fixed))
    return plan_around(sides, extent, planned)


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
