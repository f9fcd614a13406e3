"""Completing one volume: from a few drawn slices to all of it, the drawn ones kept exactly.

A network is fine-tuned on the drawn slices of this one case, from random weights or from a
pre-trained encoder. Its probabilities are multiplied with those of the shapes interpolated between
the drawn slices (`shape_prior`). The network sees the image but only few slices, the shapes are
consistent but blind to the image. Beside a drawn slice the shapes decide, far from one the network
does.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MedSSLLib.config.commands import CompletionConfig, completion_options
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import refuse_overwriting
from MedSSLLib.data.plan import Plan, canonical_axes
from MedSSLLib.finetuning.finetune import make_task
from MedSSLLib.finetuning.labelled_data import LabelledData
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import (
    IGNORE,
    Annotated,
    class_indices,
    simulate_annotation,
    slice_axis,
    sparse_label,
)
from MedSSLLib.images.shape_interpolation import Softness, with_shapes
from MedSSLLib.inference.model import Model, PredictOptions, label_volume, predict_case
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.context import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    prepare,
    record,
    resolve_weights,
    with_options,
)
from MedSSLLib.training.devices import resolve_precision
from MedSSLLib.training.stages import build_network, finish, fit, stage_budget


@dataclass(frozen=True)
class Drawing:
    """What was drawn on a case: class map ``[k, j, i]``, IGNORE where nothing was, and the
    slices.
    """

    case: Case
    label: np.ndarray
    annotated: Annotated


def run_complete(project: Project, config: RunConfig, events: Events) -> Path:
    """Train on a case's drawn slices and write its completed label; returns that file.

    Raises:
        InputError: no such case, nothing drawn on it or everything, settings that do not fit
            together, or a result that would replace a scan or a label of the project.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: a guard stopped the run.
    """
    with ExitStack() as stack:
        ready = prepare(project, config, events, stack)
        options = completion_options(ready.config)
        ready, drawing = read_drawing(with_options(ready, options), options.case)
        path = (Path(options.out) if options.out else ready.folder) / f"{drawing.case.name}.nii.gz"
        refuse_overwriting([path], project.files)
        init = resolve_weights(ready.project, ready.config.init)
        ready = adopt_network(in_slices(ready, init), init)
        plan = plan_along(choose_plan(ready, ready.project.pool, init), drawing)
        cache, cases = fill_cache(ready, plan, (drawing.case,), labels=True)
        data = LabelledData(plan, cache, cases)
        record(ready, plan, data.facts(len(ready.project.classes)))
        net = build_network(ready, plan, init)
        figures = fit(ready, make_task(ready, data, net), stage_budget(ready.config), "complete")
        model = Model(
            net.eval(),
            plan,
            ready.project.values,
            ready.project.classes,
            ready.device,
            resolve_precision(ready.config.precision, ready.device),
        )
        if ready.fabric.is_global_zero:
            io.write_image(
                path, complete_case(model, drawing, options), like=drawing.case.images[0]
            )
        finish(ready, plan, net, figures, path=str(path), case=drawing.case.name)
        return path


def read_drawing(ready: Preparation, name: str) -> tuple[Preparation, Drawing]:
    """The drawing of a case, and the preparation with that case alone labelled.

    Raises:
        InputError: no such case, no drawn slice, every slice drawn, or no structure on them.
    """
    case = ready.project.case(name)
    if case.label is None:
        raise InputError(
            "has no annotated slice",
            case=case.name,
            remedy="Draw 3 to 5 slices in Slicer's Annotate panel and mark them, or add a label "
            "file",
        )
    if case.role == "test":
        raise InputError(
            "is a test case, so no model may be trained on its label",
            case=case.name,
            remedy="Complete another case, or take this one out of the test cases",
        )
    project = ready.project.with_labelled(case.name)
    volume = io.read_label(
        case.label,
        io.read_header(case.images[0], case=case.name),
        case=case.name,
        names=project.labels,
    )
    classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
    annotated = _annotated(case, classes, volume, ready.config.annotated_slices)
    label = sparse_label(classes, annotated)
    if not (label == IGNORE).any():
        raise InputError(
            "is annotated on every slice, there is nothing to complete",
            case=case.name,
            file=case.label or "",
            remedy="Complete another case, or take its label as it is",
        )
    if not ((label > 0) & (label != IGNORE)).any():
        raise InputError(
            "shows no structure on its annotated slices",
            case=case.name,
            file=case.label or "",
            remedy="Annotate a slice on which there is one",
        )
    return replace(ready, project=project), Drawing(
        replace(case, annotated=annotated), label, annotated
    )


def in_slices(ready: Preparation, init: Path | None) -> Preparation:
    """In 2D where neither the user nor an encoder says otherwise: a few drawn slices hold little of
    a 3D patch.

    On a hippocampus with 3 drawn slices, 200 steps in 2D took as long as about 30 in 3D (see
    bench/NOTES.md).
    """
    if init is not None or ready.config.dim != "auto":
        return ready
    return replace(ready, config=ready.config.override({"dim": "2d"}))


def plan_along(plan: Plan, drawing: Drawing) -> Plan:
    """A 2D plan whose slices are those that were drawn (most of them); a 3D plan as it is."""
    if plan.dim == 3:
        return plan
    geometry = io.read_header(drawing.case.images[0])
    axis = max(drawing.annotated.slices, key=lambda pair: len(pair[1]))[0]
    own = axis == slice_axis(geometry)
    return plan.model_copy(update={"slice_axis": "own" if own else canonical_axes(geometry)[axis]})


def complete_case(model: Model, drawing: Drawing, options: CompletionConfig) -> Volume:
    """The completed label, in the label file's values, on the source grid; drawn voxels are as
    drawn.
    """
    volumes = [io.read_image(path, case=drawing.case.name) for path in drawing.case.images]
    _, probabilities = predict_case(model, volumes, PredictOptions(components="all"))
    source = volumes[0].geometry
    joint = with_shapes(
        probabilities,
        drawing.label,
        drawing.annotated,
        source.spacing,
        Softness(options.edge, options.spread),
        options.network,
    )
    classes = np.where(drawing.label == IGNORE, joint.argmax(0).astype(np.uint8), drawing.label)
    return label_volume(model, classes, source)


def _annotated(case: Case, classes: np.ndarray, volume: Volume, simulated: int | None) -> Annotated:
    """The drawn slices that the manifest records, or so many that are simulated from a full
    label.
    """
    if simulated and case.annotated is not None:
        raise InputError(
            f"has {case.annotated.count} annotated slices, so none can be simulated",
            case=case.name,
            remedy="Leave --annotated-slices out",
        )
    if simulated:
        return simulate_annotation(classes, simulated, slice_axis(volume.geometry))
    if case.annotated is None:
        raise InputError(
            "is annotated on every slice, there is nothing to complete",
            case=case.name,
            file=case.label or "",
            remedy="Record its annotated slices, or simulate some with --annotated-slices N",
        )
    if not case.annotated.count:
        raise InputError(
            "has no annotated slice",
            case=case.name,
            remedy="Mark the slices that you drew in Slicer's Annotate panel",
        )
    return case.annotated
