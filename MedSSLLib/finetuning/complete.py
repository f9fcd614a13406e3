"""Completing one volume: from a few drawn slices to all of it, the drawn ones kept exactly.

A network is fine-tuned on the drawn slices of this one case, from random weights or from a
pre-trained encoder. Its probabilities are multiplied with those of the shapes interpolated between
the drawn slices (`shape_interpolation`). The network sees the image but only few slices, the shapes
are consistent but blind to the image. Beside a drawn slice the shapes decide, far from one the
network does.
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
from MedSSLLib.networks.unet import SegmentationNet
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.context import (
    TrainingContext,
    fill_cache,
    open_context,
    record,
)
from MedSSLLib.training.devices import resolve_precision
from MedSSLLib.training.planning import choose_plan
from MedSSLLib.training.run_folder import RunFolder, find_start
from MedSSLLib.training.stages import build_network, finish, fit, stage_budget


@dataclass(frozen=True)
class Drawing:
    """What was drawn on a case.

    Attributes:
        case: the case, with the drawn slices.
        label: class map uint8 ``[k, j, i]``, IGNORE where nothing was drawn.
        annotated: the drawn slices.
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
        context = open_context(project, config, events, stack)
        options = completion_options(context.config)
        context, drawing = read_drawing(context.with_options(options), options.case)
        folder = Path(options.out) if options.out else context.folder
        path = folder / f"{drawing.case.name}.nii.gz"
        refuse_overwriting([path], project.files)
        if options.out:
            io.refuse_to_replace_drawn([path])
        start = find_start(context.project, context.config.init)
        context = in_slices(context, start).starting_from(start)
        plan = plan_along(choose_plan(context, context.project.pool), drawing)
        cache, cases = fill_cache(context, plan, (drawing.case,), labels=True)
        data = LabelledData(plan, cache, cases)
        record(context, plan, data.facts(len(context.project.classes)))
        net = build_network(context, plan, start)
        task = make_task(context, data, net)
        metrics = fit(context, task, stage_budget(context.config), "complete")
        if context.is_first:
            completed = complete_case(_model(context, plan, net), drawing, options)
            like = drawing.case.images[0]
            io.write_image(path, completed, like=like, fields=io.made_here(completed))
        finish(context, net, metrics, path=str(path), case=drawing.case.name)
        return path


def _model(context: TrainingContext, plan: Plan, net: SegmentationNet) -> Model:
    return Model(
        network=net.eval(),
        plan=plan,
        values=context.project.values,
        classes=context.project.classes,
        device=context.device,
        precision=resolve_precision(context.config.precision, context.device),
    )


def read_drawing(context: TrainingContext, name: str) -> tuple[TrainingContext, Drawing]:
    """The drawing of a case, and the context with that case alone labelled.

    Raises:
        InputError: no such case, no drawn slice, every slice drawn, or no structure on them.
    """
    case = _case_to_complete(context.project, name)
    assert case.label is not None
    project = context.project.with_labelled(case.name)
    header = io.read_header(case.images[0], case=case.name)
    volume = io.read_label(case.label, header, case=case.name, names=project.labels)
    classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
    annotated = _annotated(case, classes, volume, context.config.annotated_slices)
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
    case = replace(case, annotated=annotated)
    return replace(context, project=project), Drawing(case, label, annotated)


def _case_to_complete(project: Project, name: str) -> Case:
    case = project.case(name)
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
    return case


def in_slices(context: TrainingContext, start: RunFolder | None) -> TrainingContext:
    """In 2D where neither the user nor an encoder says otherwise.

    A few drawn slices hold little of a 3D patch. On a hippocampus with 3 drawn slices, 200 steps in
    2D took less time than 40 in 3D and gave more (see Testing/bench/NOTES.md).
    """
    if start is not None or context.config.dim != "auto":
        return context
    return context.override({"dim": "2d"})


def plan_along(plan: Plan, drawing: Drawing) -> Plan:
    """A 2D plan whose slices are those that were drawn (most of them); a 3D plan as it is."""
    if plan.dim == 3:
        return plan
    geometry = io.read_header(drawing.case.images[0])
    axis = max(drawing.annotated.slices, key=lambda pair: len(pair[1]))[0]
    own = axis == slice_axis(geometry)
    return plan.model_copy(update={"slice_axis": "own" if own else canonical_axes(geometry)[axis]})


def complete_case(model: Model, drawing: Drawing, options: CompletionConfig) -> Volume:
    """The completed label, in the label file's values, on the source grid.

    Drawn voxels are as drawn.
    """
    volumes = [io.read_image(path, case=drawing.case.name) for path in drawing.case.images]
    _, probabilities = predict_case(model, volumes, PredictOptions(components="all"))
    source = volumes[0].geometry
    joint, outlined = probabilities, drawing.annotated.whole  # strokes have no outline
    if outlined.count:
        joint = with_shapes(
            probabilities,
            drawing.label,
            outlined,
            source.spacing,
            Softness(options.edge, options.spread),
            options.network,
        )
    classes = np.where(drawing.label == IGNORE, joint.argmax(0).astype(np.uint8), drawing.label)
    return label_volume(model, classes, source)


def _annotated(case: Case, classes: np.ndarray, volume: Volume, simulated: int | None) -> Annotated:
    """The slices that the manifest records as drawn, or so many simulated from a full label."""
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
