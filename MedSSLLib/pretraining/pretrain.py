"""Pre-training: an encoder from unlabelled images, by any method of METHODS."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.config.messages import chosen
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json
from MedSSLLib.data.batch_samplers import (
    MetaPicker,
    UniformPicker,
    share_in_another_patient,
    share_with_positive,
)
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.meta_labels import MetaLabels, build_metalabels, refuse_unknown
from MedSSLLib.data.patch_samplers import ViewSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.inference.embedding_map import FILE_NAME, map_slices
from MedSSLLib.methods import load_method, outside
from MedSSLLib.methods.base import Method, MethodConfig, MethodContext
from MedSSLLib.networks.unet import place
from MedSSLLib.pretraining.task import PretrainTask
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors, unprefixed
from MedSSLLib.training.context import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    make_encoder,
    prepare,
    record,
    resolve_weights,
    with_options,
)
from MedSSLLib.training.devices import gather_embeddings, seed_step, sum_over_processes
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.run_folder import read_run
from MedSSLLib.training.stages import loop_config, stage_budget
from MedSSLLib.training.trainer import Trainer

VIEW_VOXELS = {2: 96 * 96, 3: 32 * 32 * 32}  # voxels of a pre-training view; not from the paper
SAMPLES = {2: 32, 3: 8}  # samples a step, each with all its views; not from the paper


def run_pretrain(project: Project, config: RunConfig, events: Events) -> Path:
    """Pre-train on all cases but the test cases, reading no label; returns the run folder.

    Raises:
        InputError: the method, its options or the data do not fit.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: a loss is not finite or the features have collapsed.
    """
    with ExitStack() as stack:
        ready = prepare(project, config, events, stack)
        kind = method_of(ready)
        options = method_options(kind, ready.config)
        ready = with_options(ready, options)
        init = resolve_weights(project, ready.config.init)
        ready = adopt_network(ready, init)
        plan = choose_plan(ready, project.pool, init, kind.auto_dim)
        if plan.dim not in kind.dims:
            raise InputError(
                f"method {ready.config.method!r} does not work in {plan.dim}D",
                remedy=f"Use --dim {kind.dims[0]}d or another --method",
            )
        if kind.needs_meta:
            refuse_unknown(getattr(options, "meta", ()), project.pool)
        cache, cases = fill_cache(ready, plan, project.pool, labels=False)
        if len(cases) < 2:
            raise InputError(
                f"{len(cases)} usable case(s); pre-training needs at least 2", remedy="Add cases"
            )
        task, facts = build_task(ready, plan, cache, cases, init)
        record(
            ready,
            plan,
            {
                "unlabelled": [c.name for c in cases],
                "view": list(task.sampler.patch),
                "fingerprint": cache.fingerprint(),
                **({"method": origin} if (origin := outside.origin(ready.config.method)) else {}),
                **facts,
            },
        )
        trainer = Trainer(
            task,
            loop_config(ready.config, "pretrain", stage_budget(ready.config)),
            ready.fabric,
            ready.folder,
            ready.events,
        )
        if ready.config.resume:
            trainer.resume()
        weights = trainer.run()
        figures = {"steps": trainer.state.step, "seconds": round(trainer.state.elapsed, 1), **facts}
        keep(ready, plan, weights, figures)
        write_map(ready, task, weights, cache, cases, plan)
        if ready.fabric.is_global_zero:
            ready.events.emit(
                "done",
                run=ready.folder.name,
                folder=str(ready.folder),
                steps=figures["steps"],
                seconds=figures["seconds"],
            )
        return ready.folder


def method_of(ready: Preparation) -> type[Method]:
    """The run's method. For a run that goes on, a warning where it has changed since.

    Raises:
        InputError: there is no such method, or it is not the one that the run began with.
    """
    name = ready.config.method
    if (ready.folder / "config.json").exists():
        began = read_run(ready.folder)["data"].get("method", {})
        sentence = outside.compare_origins(ready.folder.name, began, outside.origin(name))
        if sentence:
            ready.events.emit("warning", message=sentence)
    return load_method(name)


def build_task(
    ready: Preparation, plan: Plan, cache: Cache, cases: Sequence[Case], init: Path | None
) -> tuple[PretrainTask, dict[str, Any]]:
    """The method on the device with its sampler, and facts about the meta labels."""
    kind = load_method(ready.config.method)
    options = method_options(kind, ready.config)
    patch = view_patch(plan, ready.config.training.voxels)
    pick, facts = make_picker(ready, plan, cache, cases, options)
    seed_step(ready.config.seed, 0)
    encoder, report = make_encoder(ready, plan, init)
    if report is not None:
        ready.events.emit(
            "metric", stage="transfer", tensors_loaded=len(report.loaded), report=report.text()
        )
    counts = pick.meta.counts if isinstance(pick, MetaPicker) else {}
    context = MethodContext(
        plan.dim,
        plan.channels,
        patch,
        counts,
        gather_embeddings,
        sum_over_processes,
        ready.config.seed,
    )
    method = kind(encoder, options, context)
    if ready.fabric.world_size > 1:
        share_batch_norm(method, ready.device, ready.events)
    tell_left_out(
        pick.samples, ready.fabric.world_size * ready.config.training.accumulate, ready.events
    )
    for event, sentence in method.remarks():
        ready.events.emit(event, message=sentence)
    place(method, ready.device, plan.dim)
    spacing = tuple(float(mm) for mm in plan.spacing[3 - plan.dim :] if mm)
    augment = ready.config.augment if kind.intensity else None
    sampler = ViewSampler(
        cache,
        pick,
        patch,
        spacing,
        augment,
        kind.views,
        options.view_scale,
        options.min_overlap,
        options.flip,
        options.rotation,
        ready.config.seed,
        options.view_of == "image",
        method.inner,
    )
    return PretrainTask(method, sampler, ready.device), facts


def tell_left_out(samples: int, parts: int, events: Events) -> None:
    """A warning where a batch cannot be split evenly: parts have one size, so that they count
    alike.
    """
    if samples >= parts and samples % parts:
        events.emit(
            "warning",
            message=f"A batch of {samples} in {parts} parts of one size uses "
            f"{samples - samples % parts} samples; choose a multiple of {parts}.",
        )


def share_batch_norm(method: nn.Module, device: torch.device, events: Events) -> None:
    """Batch norm over the batch of all processes, where PyTorch can (CUDA); elsewhere a warning.

    A contrast over all processes could tell apart the statistics of each.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules()):
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    else:
        events.emit(
            "warning",
            message="Batch norm sees each process's part of the batch alone on this device; "
            "network.norm=group does not depend on the batch.",
        )


def make_picker(
    ready: Preparation, plan: Plan, cache: Cache, cases: Sequence[Case], options: MethodConfig
) -> tuple[UniformPicker | MetaPicker, dict[str, Any]]:
    """What chooses cases and slices; for methods with meta labels balanced over them, with facts
    for the record.
    """
    samples, seed = ready.config.training.batch or SAMPLES[plan.dim], ready.config.seed
    if not load_method(ready.config.method).needs_meta:
        return UniformPicker(cache, cases, samples, plan.dim, seed), {}
    slices = [cache.shape(case.name)[1] for case in cases] if plan.dim == 2 else None
    meta: MetaLabels = build_metalabels(cases, slices, getattr(options, "meta", ()))
    for sentence in meta.describe():
        ready.events.emit("metric", message=sentence)
    picker = MetaPicker(cache, cases, samples, meta, plan.dim, seed)
    first = picker(np.random.default_rng([seed, 0, 3]), 0)
    return picker, {
        "meta": meta.counts,
        "dropped": meta.dropped,
        "anchors_with_positive": share_with_positive(first),
        "anchors_with_positive_in_another_patient": share_in_another_patient(first, cases),
    }


def method_options(kind: type[Method], config: RunConfig) -> MethodConfig:
    """The method's own configuration from ``options``. Raises InputError as
    :func:`~MedSSLLib.config.messages.chosen` does.
    """
    options = chosen(kind.Config, config.options)
    if options.view_of == "image" and max(options.view_scale) > 1:
        raise InputError(
            f"setting 'options.view_scale' is {list(options.view_scale)}, which is more than the "
            "image",
            remedy="Stay below 1, or set options.view_of=patch",
        )
    return options


def view_patch(plan: Plan, voxels: int | None) -> tuple[int, ...]:
    """Patch of a pre-training view: the plan's shape scaled to the voxel budget, in whole strides,
    at least two.
    """
    step = np.prod(plan.strides, axis=0).astype(int)
    patch = np.asarray(plan.patch)
    scale = min(1.0, ((voxels or VIEW_VOXELS[plan.dim]) / patch.prod()) ** (1 / plan.dim))
    whole = np.maximum(np.rint(patch * scale / step), np.minimum(2, patch // step)).astype(int)
    return tuple(int(n) for n in whole * step)


def write_map(
    ready: Preparation,
    task: PretrainTask,
    weights: dict[str, Tensor],
    cache: Cache,
    cases: Sequence[Case],
    plan: Plan,
) -> None:
    """Keep a map of the slices for the report, where slices have meta labels."""
    pick = task.sampler.pick
    if (
        plan.dim == 2
        and isinstance(pick, MetaPicker)
        and pick.meta.names
        and ready.fabric.is_global_zero
    ):
        task.module.load_state_dict(weights)
        try:
            content = map_slices(task.module.encoder, cache, cases, pick.meta, plan, ready.device)
        except (RuntimeError, MemoryError, np.linalg.LinAlgError) as error:  # only a picture
            ready.events.emit("warning", message=f"The map of slices could not be made: {error}")
        else:
            write_json(ready.folder / FILE_NAME, content)


def keep(
    ready: Preparation, plan: Plan, weights: dict[str, Tensor], figures: dict[str, Any]
) -> None:
    """Keep the encoder, metrics and model card."""
    if not ready.fabric.is_global_zero:
        return
    encoder = {f"encoder.{name}": tensor for name, tensor in unprefixed("encoder", weights).items()}
    write_json(ready.folder / "metrics.json", figures)
    write_model_card(ready.folder, ready.project, ready.config, plan, figures)
    save_tensors(
        ready.folder / WEIGHTS, encoder, {"kind": "encoder", "method": ready.config.method}
    )
