"""What every training command does first: device, run folder, plan, cache, encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_text
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import Plan, make_plan
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE, class_indices, simulate_annotation, slice_axis
from MedSSLLib.networks.unet import Encoder, build_encoder
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import TransferReport, load_tensors, transfer, unprefixed
from MedSSLLib.training.devices import make_fabric, precision_of, resolve_device, resolve_precision
from MedSSLLib.training.field import grid_for, scan_sides, structure_sides
from MedSSLLib.training.run_folder import (
    labels_seen,
    open_run,
    owned,
    read_config,
    read_plan,
    read_run,
    resumable,
    write_config,
)

if TYPE_CHECKING:
    from pydantic import BaseModel


BATCH = {2: 8, 3: 2}  # samples a step when not set; not from the paper


@dataclass(frozen=True)
class Preparation:
    """The things a training command works with."""

    project: Project
    config: RunConfig
    folder: Path
    fabric: Fabric
    events: Events

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self.fabric.device

    @property
    def precision(self) -> str:
        """The number format of training: '32', 'bf16' or '16'."""
        return precision_of(self.fabric)

    def batch(self, plan: Plan) -> int:
        """Samples of the global batch."""
        return self.config.training.batch or BATCH[plan.dim]


def prepare(project: Project, config: RunConfig, events: Events, stack: ExitStack) -> Preparation:
    """Open the run folder on the first process and hold it; other processes stay silent."""
    config = _in_its_precision(project, config)
    fabric = make_fabric(config)
    opened = open_run(project, config) if fabric.is_global_zero else None
    folder, config = fabric.broadcast(opened)
    if fabric.is_global_zero:
        stack.enter_context(owned(folder))
        events.open_run(folder)
    else:
        events = Events()
    if config.labelled is not None:
        project = project.with_labelled(",".join(config.labelled))
    events.emit(
        "start",
        command=config.command,
        method=config.method,
        run=folder.name,
        folder=str(folder),
        device=str(fabric.device),
        precision=precision_of(fabric),
        seed=config.seed,
    )
    if config.precision == "16" and precision_of(fabric) != "16":
        events.emit("warning", message="Float16 trains on CUDA cards only, so bfloat16 is taken.")
    return Preparation(project, config, folder, fabric, events)


def _in_its_precision(project: Project, config: RunConfig) -> RunConfig:
    """A run to be resumed, with the number format it began with, so that another processor does not
    change it.

    Earlier versions did not record it; their 'auto' was that of prediction.
    """
    if not config.resume:
        return config
    folder = resumable(project, config)
    began = read_run(folder).get("precision")
    if began is None:
        began = resolve_precision(read_config(folder).precision, resolve_device(config.device))
    return config.override({"name": folder.name, "precision": began})


def readable_headers(cases: Sequence[Case]) -> list[io.Geometry]:
    """Geometries of the cases whose header can be read; unreadable ones are refused later, when
    cached.
    """
    found = []
    for case in cases:
        try:
            found.append(io.read_header(case.images[0]))
        except InputError:
            continue
    return found


def choose_plan(
    ready: Preparation,
    cases: Sequence[Case],
    init: Path | None = None,
    auto: Literal["auto", "2d", "3d"] = "auto",
    labelled: Sequence[Case] = (),
) -> Plan:
    """The plan of the run being resumed, of the run whose encoder is taken over, or a new one from
    the headers.

    `auto` is what ``--dim auto`` means in a new one; the structures of the `labelled` cases decide
    what ``training.grid=auto`` means there (see ``field.py``).

    Raises:
        InputError: no case can be read, or `--dim` contradicts the encoder that is taken over.
    """
    config = ready.config
    if (ready.folder / "config.json").exists():
        return read_plan(ready.folder)
    plan = _new_plan(ready, cases, auto if config.dim == "auto" else config.dim, labelled)
    if init is None or not (init.parent / "config.json").exists():
        return plan
    theirs = read_plan(init.parent)
    if config.dim != "auto" and theirs.dim != int(config.dim[0]):
        raise InputError(
            f"--dim {config.dim} contradicts the {theirs.dim}D encoder of {init.parent.name!r}",
            remedy="Leave --dim out, or pre-train again in that dimension",
        )
    asked = isinstance(config.training.grid, float)
    if config.training.voxels is None and not asked:
        return theirs
    fitted = _new_plan(ready, cases, theirs.dim)
    if fitted.strides != theirs.strides:
        return theirs
    taken: dict[str, Any] = {"patch": fitted.patch} if config.training.voxels else {}
    taken |= {"spacing": fitted.spacing} if asked else {}
    return theirs.model_copy(update=taken)


def _new_plan(
    ready: Preparation, cases: Sequence[Case], dim: str | int, labelled: Sequence[Case] = ()
) -> Plan:
    training, project = ready.config.training, ready.project
    headers = readable_headers(cases)

    def planned(grid: float | None) -> Plan:
        return make_plan(
            headers,
            modality=project.modalities,
            channels=project.channels,
            dim=dim,
            voxel_budget=training.voxels,
            grid=grid,
        )

    if training.grid != "auto":
        return planned(training.grid)
    plain = planned(None)
    sides = structure_sides(project, labelled, plain)
    if sides is None:
        return plain
    return planned(grid_for(sides, scan_sides(headers, plain), planned))


def fill_cache(
    ready: Preparation, plan: Plan, cases: Sequence[Case], *, labels: bool
) -> tuple[Cache, tuple[Case, ...]]:
    """A cache that holds the usable cases; refused ones are named in warnings.

    Raises:
        InputError: no case is usable.
    """
    project, events = ready.project, ready.events
    cache = Cache(project.cache_folder, plan)
    refused = cache.prepare(
        cases,
        labels=labels,
        values=project.values,
        ignore=project.ignore_value,
        progress=lambda done, total: events.progress("preprocess", done, total),
    )
    for _, error in refused:
        events.emit("warning", message=str(error))
    bad = {case.name for case, _ in refused}
    usable = tuple(case for case in cases if case.name not in bad)
    if not usable:
        raise InputError(
            f"none of the {len(cases)} cases can be used"
            + (f": {refused[0][1]}" if refused else ""),
            remedy="See the warnings, and `medssl status`",
        )
    return cache, usable


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
            remedy="Name labelled cases with --labelled, or annotate slices in Slicer",
        )
    if config.annotated_slices:
        cases = tuple(_simulated(project, case, config.annotated_slices) for case in cases)
    return cases


def _simulated(project: Project, case: Case, slices: int) -> Case:
    """The case with `slices` annotated slices: of those that are drawn where only some are, else of
    a full label.

    A label that cannot be used is left for `fill_cache` to refuse. One without structures has all
    its extent to choose from.
    """
    if case.annotated is not None:
        return replace(case, annotated=case.annotated.thinned(slices))
    assert case.label is not None
    try:
        geometry = io.read_header(case.images[0])
        volume = io.read_label(case.label, geometry, case=case.name)
        classes = class_indices(volume.array, project.values, ignore=project.ignore_value)
    except InputError:
        return case
    shown = ((classes != 0) & (classes != IGNORE)).any()
    extent = classes if shown else np.ones_like(classes)
    return replace(case, annotated=simulate_annotation(extent, slices, slice_axis(geometry)))


def resolve_weights(project: Project, name: str) -> Path | None:
    """The weight file of ``--init``: None for 'none', a file, or the weights of a run.

    Raises:
        InputError: no such file or run, or the run is not finished.
    """
    if name in ("", "none"):
        return None
    if Path(name).suffix == ".safetensors":
        if not Path(name).is_file():
            raise InputError("does not exist", file=name, remedy="Check the path of --init")
        return Path(name)
    if Path(name).is_file() or "/" in name or Path(name).suffix in (".pt", ".pth", ".ckpt"):
        raise InputError(
            "is neither the name of a run nor a .safetensors file",
            file=name,
            remedy="Other weights become a run with: medssl import PROJECT --from FILE --name RUN",
        )
    weights = project.run_folder(name) / WEIGHTS
    if not weights.exists():
        found = (
            "is not finished: it has no weights" if weights.parent.exists() else "does not exist"
        )
        raise InputError(
            f"run {name!r} {found}",
            file=str(project.folder),
            remedy="See `medssl runs PROJECT` for finished runs",
        )
    return weights


def adopt_network(ready: Preparation, init: Path | None) -> Preparation:
    """With widths and normalisation of the run whose encoder is taken over, so that the weights
    fit.
    """
    if init is None or not (init.parent / "config.json").exists():
        return ready
    theirs, own = read_config(init.parent).network, ready.config.network
    changes = {"network.widths": theirs.widths, "network.norm": theirs.norm}
    if (own.widths, own.norm) != (theirs.widths, theirs.norm):
        ready.events.emit(
            "metric",
            message=f"Network taken over from {init.parent.name!r}: widths "
            f"{list(theirs.widths)}, norm {theirs.norm}, not {list(own.widths)}, {own.norm}.",
        )
    return replace(ready, config=ready.config.override(changes))


def make_encoder(
    ready: Preparation, plan: Plan, init: Path | None
) -> tuple[Encoder, TransferReport | None]:
    """A new encoder, or one with transferred weights and the report of the transfer."""
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, ready.config.network)
    if init is None:
        return encoder, None
    tensors, _ = load_tensors(init)
    report = transfer(encoder, unprefixed("encoder", tensors) or tensors)
    if ready.fabric.is_global_zero:
        write_text(ready.folder / "transfer.txt", report.text())
    return encoder, report


def _require_same_data(folder: Path, facts: dict[str, Any]) -> None:
    before = read_run(folder)["data"]
    labels = [data.get("meta", {}) for data in (before, facts)]
    if "meta" in before and labels[0] != labels[1]:
        were, are = (
            ", ".join(f"{name} ({count} classes)" for name, count in one.items()) for one in labels
        )
        raise InputError(
            f"run {folder.name!r} cannot go on: its meta labels were {were}, and are "
            f"{are or 'none'}",
            file=str(folder),
            remedy="Restore the metadata, or start a new run without --resume",
        )
    if before.get("fingerprint", facts["fingerprint"]) == facts["fingerprint"]:
        return
    used = ("labelled", "validation", "unlabelled")
    then, now = ({name for key in used for name in data.get(key, ())} for data in (before, facts))
    what = (
        f"cannot be used any more: {', '.join(sorted(then - now))}"
        if then - now
        else (
            f"new since it began: {', '.join(sorted(now - then))}"
            if now - then
            else "images, labels or annotated slices have changed since it began"
        )
    )
    raise InputError(
        f"run {folder.name!r} cannot go on as it was; {what}",
        file=str(folder),
        remedy="Restore the files, or start a new run without --resume",
    )


def record(ready: Preparation, plan: Plan, facts: dict[str, Any]) -> None:
    """Write ``config.json`` on the first process; for a run that goes on, see that its data are the
    same.

    Raises:
        InputError: images or labels have changed, or can no longer be read.
    """
    if (ready.folder / "config.json").exists():
        _require_same_data(ready.folder, facts)
    elif ready.fabric.is_global_zero:
        seen = labels_seen(resolve_weights(ready.project, ready.config.origin))
        facts = {
            "classes": list(ready.project.classes),
            "values": list(ready.project.values),
            **facts,
        }
        if seen:
            facts["seen_before"] = sorted(seen)
        write_config(ready.folder, ready.config, plan, facts, ready.precision)


def with_options(ready: Preparation, options: BaseModel) -> Preparation:
    """With every option in the run's settings, also those left as they are, so that ``config.json``
    is complete.
    """
    return replace(
        ready, config=ready.config.override({"options": options.model_dump(mode="json")})
    )
