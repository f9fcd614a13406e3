"""Which slices to draw next, by the model of now: a few scans are looked at, not all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from MedSSLLib.active_learning.scans import Scan, survey
from MedSSLLib.active_learning.slice_table import (
    Table,
    Viewer,
    class_uncertainty,
    structure_area,
)
from MedSSLLib.active_learning.strategies import even_order
from MedSSLLib.active_learning.suggest import Suggestion, SuggestOptions, even_slices, from_table
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import image_axes
from MedSSLLib.data.slices import annotated_along, not_empty, slice_operator, slice_spread
from MedSSLLib.inference.slice_features import combined_profiles, slice_profiles
from MedSSLLib.live.learner import Learner
from MedSSLLib.project.project import Project

LOOKED_AT = 8  # scans that are looked at for an answer, at most; not from a paper
PER_CASE = 2  # new slices of a case in one answer; not from a paper


def suggest_live(
    project: Project, learner: Learner | None, count: int, events: Events
) -> Iterator[list[Suggestion] | None]:
    """Choose slices; yields None after every scan that was looked at, and the answer at the end.

    With a model: slices that it is unsure of and that represent others, of scans without drawn
    slices first, a patient each. Before there is one: evenly spaced slices. Test cases are never
    suggested.
    """
    scans = survey(project.pool, events)
    if learner is not None:
        scans = [_as_the_model_sees(scan, learner) for scan in scans]
    options = SuggestOptions(count, per_case=PER_CASE, seed=0)
    if learner is None or not learner.taught:
        yield even_slices(scans, options, events)
        return
    chosen = _to_look_at(scans, count)
    rows: list[_Look] = []
    for scan in chosen:
        prepared = learner.labels.cache.prepare([scan.case])
        prepared.report(events)
        if prepared.usable:
            rows.append(_looked_at(learner, scan))
        yield None
    yield _answer(rows, learner, options) if rows else []


def _as_the_model_sees(scan: Scan, learner: Learner) -> Scan:
    """A scan without drawn slices along the axis of the model's slices, which is the one that is
    drawn along elsewhere: previews hold such slices, so that there is a proposal.
    """
    axis = image_axes(scan.geometry, learner.plan)[0]
    if learner.plan.dim == 3 or axis == scan.axis or scan.drawn.any():
        return scan
    drawn = annotated_along(scan.case, axis, scan.geometry.size[axis])
    return replace(scan, axis=axis, drawn=drawn)


def _to_look_at(scans: Sequence[Scan], count: int) -> list[Scan]:
    """Some of the scans with a slice left to draw, those without any drawn one first."""
    most = min(LOOKED_AT, max(2 * count, 4))
    drawn = [bool(scan.drawn.any()) for scan in scans]
    order = even_order(drawn, [scan.case.patient for scan in scans], most)
    free = [scans[position] for position in order if not scans[position].drawn.all()]
    return free[:most]


class _Look(NamedTuple):
    """A scan as the model sees it, slice by slice.

    Attributes:
        scan: the scan.
        usable: slices that show something, boolean ``[slices]``.
        profiles: their features, level by level ``[slices, channels]``.
        uncertainty: see :func:`class_uncertainty`.
        structures: see :func:`structure_area`.
    """

    scan: Scan
    usable: np.ndarray
    profiles: list[np.ndarray]
    uncertainty: np.ndarray
    structures: np.ndarray


def _looked_at(learner: Learner, scan: Scan) -> _Look:
    cache, name = learner.labels.cache, scan.case.name
    image, grid = cache.image(name, (0, 0, 0), cache.shape(name)[1:]), cache.geometry(name)
    along, rows = slice_operator(scan.geometry, grid, scan.axis)
    with learner.predicting() as model:
        encoder, plan = model.network.encoder, model.plan
        profiles = slice_profiles(encoder, image, plan, model.device, along)
        probabilities = model.on_grid(image)
    return _Look(
        scan=scan,
        usable=not_empty(rows @ slice_spread(image, along)),
        profiles=[rows @ profile for profile in profiles],
        uncertainty=rows @ class_uncertainty(probabilities, grid, along),
        structures=rows @ structure_area(probabilities, grid, along),
    )


def _answer(looks: Sequence[_Look], learner: Learner, options: SuggestOptions) -> list[Suggestion]:
    scans, usable, profiles, areas, structures = zip(*looks, strict=True)
    shown = np.concatenate(usable)
    levels = [np.concatenate(level) for level in zip(*profiles, strict=True)]
    counts = [scan.count for scan in scans]
    table = Table(
        scans=scans,
        case=np.repeat(np.arange(len(scans)), counts),
        place=np.concatenate([np.arange(count) for count in counts]),
        usable=shown,
        drawn=np.concatenate([scan.drawn for scan in scans]),
        features=combined_profiles(levels, shown),
        uncertainty=np.concatenate(areas),
        structures=np.concatenate(structures),
    )
    model = learner.model()
    viewer = Viewer(learner.plan, learner.net.encoder, model.device, model)
    return from_table(table, viewer, "hybrid", options)
