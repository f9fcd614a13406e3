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
    matched_fraction,
    matched_in_another_patient,
)
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.meta_labels import build_metalabels, refuse_unknown_labels
from MedSSLLib.data.plan import Plan
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.inference.embedding_map import MAP_FILE, map_slices
from MedSSLLib.methods import load_method, outside
from MedSSLLib.methods.base import Method, MethodConfig, MethodContext
from MedSSLLib.networks.unet import place
from MedSSLLib.pretraining.task import PretrainTask, view_sampler
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors, unprefixed
from MedSSLLib.training.context import (
    TrainingContext,
    fill_cache,
    make_encoder,
    open_context,
    record,
)
from MedSSLLib.training.devices import gather_embeddings, seed_step, sum_over_processes
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.planning import choose_plan
from MedSSLLib.training.run_folder import find_start
from MedSSLLib.training.stages import make_trainer, stage_budget

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
        context = open_context(project, config, events, stack)
        kind = method_of(context)
        options = method_options(kind, context.config)
        context = context.with_options(options)
        context = context.starting_from(find_start(project, context.config.init))
        plan, cache, cases = _prepare_data(context, kind, options)
        task, facts = build_task(context, plan, cache, cases)
        own = {
            "unlabelled": [case.name for case in cases],
            "view": list(task.sampler.patch),
            "fingerprint": cache.fingerprint(),
        }
        origin = outside.origin(context.config.method)
        if origin:
            own["method"] = origin
        record(context, plan, {**own, **facts})
        trainer = make_trainer(context, task, stage_budget(context.config), "pretrain")
        weights = trainer.run()
        taken = {"steps": trainer.state.step, "seconds": round(trainer.state.elapsed, 1)}
        keep_encoder(context, weights, {**taken, **facts})
        write_map(context, task, weights, cache, cases, plan)
        if context.is_first:
            name, folder = context.run.name, str(context.folder)
            context.events.emit("done", run=name, folder=folder, **taken)
        return context.folder


def _prepare_data(
    context: TrainingContext, kind: type[Method], options: MethodConfig
) -> tuple[Plan, Cache, tuple[Case, ...]]:
    """The plan, the cache, and at least two cases in it."""
    pool = context.project.pool
    plan = choose_plan(context, pool, kind.auto_dim)
    if plan.dim not in kind.dims:
        raise InputError(
            f"method {context.config.method!r} does not work in {plan.dim}D",
            remedy=f"Use --dim {kind.dims[0]}d or another --method",
        )
    if kind.needs_meta:
        refuse_unknown_labels(getattr(options, "meta", ()), pool)
    cache, cases = fill_cache(context, plan, pool, labels=False)
    if len(cases) < 2:
        raise InputError(
            f"{len(cases)} usable case(s); pre-training needs at least 2", remedy="Add cases"
        )
    return plan, cache, cases


def method_of(context: TrainingContext) -> type[Method]:
    """The run's method. For a run that goes on, a warning where it has changed since.

    Raises:
        InputError: there is no such method, or it is not the one that the run began with.
    """
    name = context.config.method
    if context.config.resume:
        began = context.run.record["data"].get("method", {})
        sentence = outside.compare_origins(context.run.name, began, outside.origin(name))
        if sentence:
            context.warn(sentence)
    return load_method(name)


def build_task(
    context: TrainingContext, plan: Plan, cache: Cache, cases: Sequence[Case]
) -> tuple[PretrainTask, dict[str, Any]]:
    """The method on the device with its sampler, and facts about the meta labels."""
    config = context.config
    kind = load_method(config.method)
    options = method_options(kind, config)
    patch = view_patch(plan, config.training.voxels)
    pick, facts = make_picker(context, plan, cache, cases, options)
    seed_step(config.seed, 0)
    encoder = make_encoder(context, plan, context.start)
    counts = pick.meta.counts if isinstance(pick, MetaPicker) else {}
    surroundings = MethodContext(
        plan.dim,
        plan.channels,
        patch,
        counts,
        gather=gather_embeddings,
        reduce=sum_over_processes,
        seed=config.seed,
    )
    method = kind(encoder, options, surroundings)
    if context.fabric.world_size > 1:
        synchronise_batch_norm(method, context.device, context.events)
    micro_batches = context.fabric.world_size * config.training.accumulate
    tell_left_out(pick.samples, micro_batches, context.events)
    for event, sentence in method.notices():
        context.events.emit(event, message=sentence)
    place(method, context.device, plan.dim)
    spacing = tuple(float(mm) for mm in plan.spacing[3 - plan.dim :] if mm)
    sampler = view_sampler(
        method,
        config=config,
        reader=cache,
        pick=pick,
        patch=patch,
        spacing=spacing,
    )
    return PretrainTask(method, sampler, context.device), facts


def tell_left_out(samples: int, micro_batches: int, events: Events) -> None:
    """A warning where a batch cannot be split evenly.

    Micro-batches have one size, so that they count alike.
    """
    left_out = samples % micro_batches
    if samples >= micro_batches and left_out:
        events.emit(
            "warning",
            message=f"A batch of {samples} in {micro_batches} parts of one size uses "
            f"{samples - left_out} samples; choose a multiple of {micro_batches}.",
        )


def synchronise_batch_norm(method: nn.Module, device: torch.device, events: Events) -> None:
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
    context: TrainingContext,
    plan: Plan,
    cache: Cache,
    cases: Sequence[Case],
    options: MethodConfig,
) -> tuple[UniformPicker | MetaPicker, dict[str, Any]]:
    """What chooses cases and slices, and facts about the meta labels for the record.

    For methods with meta labels the choice is balanced over them.
    """
    config = context.config
    samples, seed = config.training.batch or SAMPLES[plan.dim], config.seed
    if not load_method(config.method).needs_meta:
        return UniformPicker(cache, cases, samples, plan.dim, seed), {}
    slices = [cache.shape(case.name)[1] for case in cases] if plan.dim == 2 else None
    meta = build_metalabels(cases, slices, getattr(options, "meta", ()))
    for sentence in meta.describe():
        context.events.emit("metric", message=sentence)
    picker = MetaPicker(cache, cases, samples, meta, plan.dim, seed)
    first = picker(random_stream(seed, 0, Stream.VIEW_BATCH), 0)
    return picker, {
        "meta": meta.counts,
        "dropped": meta.dropped,
        "anchors_with_positive": matched_fraction(first),
        "anchors_with_positive_in_another_patient": matched_in_another_patient(first, cases),
    }


def method_options(kind: type[Method], config: RunConfig) -> MethodConfig:
    """The method's own configuration from ``options``.

    Raises InputError as :func:`~MedSSLLib.config.messages.chosen` does.
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
    """Patch of a pre-training view: the plan's shape scaled to the voxel budget.

    Every side is a whole number of strides, at least two where the plan's patch has as many.
    """
    step = np.prod(plan.strides, axis=0).astype(int)
    patch = np.asarray(plan.patch)
    budget = voxels or VIEW_VOXELS[plan.dim]
    scale = min(1.0, (budget / patch.prod()) ** (1 / plan.dim))
    least = np.minimum(2, patch // step)
    whole = np.maximum(np.rint(patch * scale / step), least).astype(int)
    return tuple(int(n) for n in whole * step)


def write_map(
    context: TrainingContext,
    task: PretrainTask,
    weights: dict[str, Tensor],
    cache: Cache,
    cases: Sequence[Case],
    plan: Plan,
) -> None:
    """Keep a map of the slices for the report, where slices have meta labels."""
    pick = task.sampler.pick
    has_labels = plan.dim == 2 and isinstance(pick, MetaPicker) and bool(pick.meta.names)
    if not (has_labels and context.is_first):
        return
    assert isinstance(pick, MetaPicker)
    task.module.load_state_dict(weights)
    try:
        content = map_slices(task.module.encoder, cache, cases, pick.meta, plan, context.device)
    except (RuntimeError, MemoryError, np.linalg.LinAlgError) as error:  # only a picture
        context.warn(f"The map of slices could not be made: {error}")
    else:
        write_json(context.folder / MAP_FILE, content)


def keep_encoder(
    context: TrainingContext, weights: dict[str, Tensor], metrics: dict[str, Any]
) -> None:
    """Keep metrics, model card and the encoder, on the first process."""
    if not context.is_first:
        return
    encoder = {f"encoder.{name}": tensor for name, tensor in unprefixed("encoder", weights).items()}
    write_json(context.folder / "metrics.json", metrics)
    write_model_card(context.run, context.project, metrics)
    facts = {"kind": "encoder", "method": context.config.method}
    save_tensors(context.folder / WEIGHTS, encoder, facts)
