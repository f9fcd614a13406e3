"""What every training command does first: device, run folder, plan, cache, encoder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, at_most
from MedSSLLib.core.files import write_text
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import LINEAR_CT, Plan
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE, class_indices, simulate_annotation, slice_axis
from MedSSLLib.networks.unet import Encoder, build_encoder
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.relocation import missing_words
from MedSSLLib.training.checkpoint import transfer, unprefixed
from MedSSLLib.training.devices import make_fabric, precision_of, resolve_device, resolve_precision
from MedSSLLib.training.run_folder import (
    RunData,
    RunFolder,
    open_run,
    owned,
    resumable,
    write_config,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from pydantic import BaseModel


BATCH = {2: 8, 3: 2}  # samples a step when not set; not from the paper


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The things a training command works with.

    Attributes:
        project: with the labelled cases that the run may read.
        config: the run's settings.
        run: the run, whose folder is held.
        fabric: device and processes.
        events: where progress goes.
        start: the run, or the weight file, that training starts from; None for random weights.
    """

    project: Project
    config: RunConfig
    run: RunFolder
    fabric: Fabric
    events: Events
    start: RunFolder | None = None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self.fabric.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.fabric.is_global_zero)

    @property
    def precision(self) -> str:
        """The number format of training: '32', 'bf16' or '16'."""
        return precision_of(self.fabric)

    def batch(self, plan: Plan) -> int:
        """Samples of the global batch."""
        return self.config.training.batch or BATCH[plan.dim]

    def warn(self, message: str) -> None:
        """Tell the user of something that was not expected."""
        self.events.emit("warning", message=message)

    def override(self, changes: dict[str, Any]) -> TrainingContext:
        """With dotted keys of the settings replaced."""
        return replace(self, config=self.config.override(changes))

    def with_options(self, options: BaseModel) -> TrainingContext:
        """With every option in the settings, also those left as they are.

        So ``config.json`` is complete.
        """
        return self.override({"options": options.model_dump(mode="json")})

    def starting_from(self, start: RunFolder | None) -> TrainingContext:
        """With the start, and the network's widths and normalisation of that run.

        Only so its weights fit.
        """
        if start is None or not start.recorded:
            return replace(self, start=start)
        theirs, own = start.config.network, self.config.network
        if (own.widths, own.norm) != (theirs.widths, theirs.norm):
            self.events.emit(
                "metric",
                message=f"Network taken over from {start.name!r}: widths "
                f"{list(theirs.widths)}, norm {theirs.norm}, not {list(own.widths)}, {own.norm}.",
            )
        changes = {"network.widths": theirs.widths, "network.norm": theirs.norm}
        return replace(self.override(changes), start=start)


def open_context(
    project: Project, config: RunConfig, events: Events, stack: ExitStack
) -> TrainingContext:
    """Open the run folder on the first process and hold it; other processes stay silent.

    Raises:
        InputError: the name of the run is taken, there is nothing to resume, or no such device.
    """
    going_on = resumable(project, config) if config.resume else None
    if going_on is not None:
        config = _in_its_precision(config, going_on)
    fabric = make_fabric(config)
    opened = open_run(project, config, going_on) if fabric.is_global_zero else None
    folder, config = fabric.broadcast(opened)
    if fabric.is_global_zero:
        stack.enter_context(owned(folder))
        events.open_run(folder)
    else:
        events = Events()
    if config.labelled is not None:
        project = project.with_labelled(",".join(config.labelled))
    context = TrainingContext(
        project=project,
        config=config,
        run=going_on or RunFolder(folder),
        fabric=fabric,
        events=events,
    )
    events.emit(
        "start",
        command=config.command,
        method=config.method,
        run=folder.name,
        folder=str(folder),
        device=str(fabric.device),
        precision=context.precision,
        seed=config.seed,
        **({"resumed": True} if config.resume else {}),
    )
    for text in missing_words(project.folder, project.pool):
        context.warn(text)
    if config.precision == "16" and context.precision != "16":
        context.warn("Float16 trains on CUDA cards only, so bfloat16 is taken.")
    return context


def _in_its_precision(config: RunConfig, going_on: RunFolder) -> RunConfig:
    """The settings to resume a run with, in the number format it began with.

    So another processor does not change it. Earlier versions did not record it; their 'auto' was
    that of prediction.
    """
    began = going_on.precision
    if began is None:
        began = resolve_precision(going_on.config.precision, resolve_device(config.device))
    return config.override({"name": going_on.name, "precision": began})


def fill_cache(
    context: TrainingContext, plan: Plan, cases: Sequence[Case], *, labels: bool
) -> tuple[Cache, tuple[Case, ...]]:
    """A cache that holds the usable cases; refused ones are named in warnings.

    Raises:
        InputError: no case is usable.
    """
    project, events = context.project, context.events
    cache = Cache(project.cache_folder, plan)
    prepared = cache.prepare(
        cases,
        labels=labels,
        values=project.named_values,
        ignore=project.ignore_value,
        progress=lambda done, total: events.progress("preprocess", done, total),
    )
    prepared.report(events)
    prepared.require_any()
    if labels:
        names = [case.name for case in prepared.usable]
        for message in at_most(cache.small_structures(names, project.classes)):
            events.emit("warning", message=message)
    return cache, prepared.usable


def labelled_cases(project: Project, config: RunConfig) -> tuple[Case, ...]:
    """The cases whose labels may be read, sparse where `annotated_slices` simulates it.

    Raises:
        InputError: there is none.
    """
    cases = tuple(case for case in project.labelled if case.label)
    if not cases:
        raise InputError(
            "no case is labelled",
            file=str(project.folder),
            remedy="Name cases that have labels with --labelled, annotate slices in Slicer, or add "
            f"labels: medssl add {shlex.quote(str(project.folder))} --labels FOLDER",
        )
    if config.annotated_slices:
        cases = tuple(_simulated(project, case, config.annotated_slices) for case in cases)
    return cases


def _simulated(project: Project, case: Case, slices: int) -> Case:
    """The case with so many annotated slices.

    Some of those that are drawn where only some are, else of a full label. A label that cannot be
    used is left for `fill_cache` to refuse. One without structures has all its extent to choose
    from.
    """
    if case.annotated is not None:
        return replace(case, annotated=case.annotated.thinned(slices))
    assert case.label is not None
    try:
        geometry = io.read_header(case.images[0])
        volume = io.read_label(case.label, geometry, case=case.name, names=project.labels)
        classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
    except InputError:
        return case
    shown = ((classes != 0) & (classes != IGNORE)).any()
    extent = classes if shown else np.ones_like(classes)
    return replace(case, annotated=simulate_annotation(extent, slices, slice_axis(geometry)))


def make_encoder(context: TrainingContext, plan: Plan, start: RunFolder | None) -> Encoder:
    """A new encoder, with the weights of `start` where they fit; the transfer is reported."""
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, context.config.network)
    if start is None:
        return encoder
    report = transfer(encoder, unprefixed("encoder", start.tensors) or start.tensors)
    if context.is_first:
        write_text(context.folder / "transfer.txt", report.text())
        context.events.emit(
            "metric", stage="transfer", tensors_loaded=len(report.loaded), report=report.text()
        )
    return encoder


def record(context: TrainingContext, plan: Plan, facts: dict[str, Any]) -> None:
    """Write ``config.json`` on the first process; a run that goes on must have the same data.

    Raises:
        InputError: images or labels have changed, or can no longer be read.
    """
    own = {"classes": list(context.project.classes), "values": list(context.project.values)}
    facts = {**own, **facts}
    if context.config.resume:
        _require_same_data(context.run, RunData.model_validate(facts))
        return
    if not context.is_first:
        return
    seen = context.start.labels_seen if context.start else ()
    if seen:
        facts["seen_before"] = sorted(seen)
    write_config(context.folder, context.config, plan, facts, context.precision)


def _require_same_data(run: RunFolder, now: RunData) -> None:
    before = run.data
    if before.meta is not None and before.meta != (now.meta or {}):
        raise InputError(
            f"run {run.name!r} cannot go on: its meta labels were {_in_words(before.meta)}, and "
            f"are {_in_words(now.meta or {}) or 'none'}",
            file=str(run.folder),
            remedy="Restore the metadata, or start a new run without --resume",
        )
    if before.fingerprint is None or before.fingerprint == now.fingerprint:
        return
    if run.plan.intensities < LINEAR_CT:
        raise InputError(
            f"run {run.name!r} was begun by an earlier version of MedSSL, which normalised "
            "intensities by another rule",
            file=str(run.folder),
            remedy="Start a new run without --resume",
        )
    missing, added = _used(before) - _used(now), _used(now) - _used(before)
    if missing:
        what = f"cannot be used any more: {', '.join(sorted(missing))}"
    elif added:
        what = f"new since it began: {', '.join(sorted(added))}"
    else:
        what = "images, labels or annotated slices have changed since it began"
    raise InputError(
        f"run {run.name!r} cannot go on as it was; {what}",
        file=str(run.folder),
        remedy="Restore the files, or start a new run without --resume",
    )


def _in_words(meta: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} classes)" for name, count in meta.items())


def _used(data: RunData) -> set[str]:
    return {*data.labelled, *data.validation, *data.unlabelled}
