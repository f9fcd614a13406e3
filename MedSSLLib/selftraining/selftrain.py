"""Self-training in rounds: pseudo-labels from the last model, then joint training on them.

Chaitanya, Erdil, Karani, Konukoglu 2021 (arXiv 2112.09645). Stage 1 is a finished fine-tuning run
or is trained here; each round predicts pseudo-labels and trains jointly, with a new projection
head, from the round before; from stage 1's weights with `restart`, as the released code does. A run
that a guard stops keeps the last good model's weights.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedSSLLib.config.commands import self_train_options
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import CancelledError, GuardError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.cache import Cache
from MedSSLLib.finetuning.finetune import make_task
from MedSSLLib.finetuning.labelled_data import LabelledData, add_unlabelled, make_sampler
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.networks.unet import SegmentationNet, place
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import begun
from MedSSLLib.selftraining.best_round import best_of, in_words, judge, some
from MedSSLLib.selftraining.job import Job
from MedSSLLib.selftraining.pseudo_labels import (
    ENTRIES,
    CollapsedError,
    absent_classes,
    discard_entries,
    drift,
    leak_words,
    pseudo_labelled,
    taken_from,
    write_pseudo_labels,
)
from MedSSLLib.selftraining.round_tasks import RoundTask, round_cases, round_task
from MedSSLLib.selftraining.soft_labels import SoftLabels
from MedSSLLib.selftraining.start import (
    adopt_heads,
    check_names,
    find_model,
    require_all_classes,
    warn_of_idle_settings,
    with_labels_of_start,
)
from MedSSLLib.training.checkpoint import load_stage, save_stage
from MedSSLLib.training.context import (
    TrainingContext,
    fill_cache,
    labelled_cases,
    open_context,
    record,
)
from MedSSLLib.training.holdout import hold_out
from MedSSLLib.training.planning import choose_plan
from MedSSLLib.training.run_folder import find_start
from MedSSLLib.training.stages import (
    build_network,
    finish,
    fit,
    keep_segmentation,
)
from MedSSLLib.training.trainer import STOP_FILE


def run_selftrain(project: Project, config: RunConfig, events: Events) -> Path:
    """Self-train, keep the last round's weights, metrics and model card; returns the run folder.

    Raises:
        InputError: nothing to train on, or settings that do not fit together.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the pseudo-labels are unusable, or a loss is not finite; the last good model is
            kept.
    """
    with ExitStack() as stack:
        config = with_labels_of_start(project, config, self_train_options(config).start)
        context = open_context(project, config, events, stack)
        options = self_train_options(context.config)
        model = find_model(context.project, options.start)
        context = adopt_heads(context.with_options(options), model)
        context = context.starting_from(model or find_start(project, context.config.init))
        data = _prepare_data(context)
        facts = data.facts(len(context.project.classes))
        job = Job(
            context=context,
            data=data,
            options=options,
            model=model,
            single_component=tuple(facts["single_component"]),
            connected_on_slices=tuple(facts["connected_on_slices"]),
            single_foreground=facts["single_foreground"],
        )
        check_names(options, {case.name for case in job.targets})
        warn_of_idle_settings(context, options)
        record(context, data.plan, facts)
        net = first = _stage_one(job)
        nets = {"first": first}
        try:
            number = 0
            while (number := number + 1) <= job.rounds:
                net = nets[f"round-{number}"] = _round(job, number, net, first)
                discard_entries(context.folder / "pseudo")
        except GuardError as error:
            _keep_last_good(job, error)
            raise
        metrics = job.metrics
        if options.keep == "best":
            net, metrics["kept"], metrics["judged"] = _best(job, nets)
        finish(context, net, metrics)
        return context.folder


def _prepare_data(context: TrainingContext) -> LabelledData:
    """Labelled, held-out and unlabelled cases in the cache.

    Raises:
        InputError: a class has no labelled voxel, or there is nothing to pseudo-label.
    """
    cases = labelled_cases(context.project, context.config)
    plan = choose_plan(context, context.project.pool, labelled=cases)
    cache, cases = fill_cache(context, plan, cases, labels=True)
    training, held_out = hold_out(context, cache, cases)
    require_all_classes(context.project, cache, training)
    others = add_unlabelled(context, cache, cases)
    # their labels, where they have some, stay closed
    others = tuple(replace(case, label=None, annotated=None) for case in others)
    if not others and not any(case.annotated for case in training):
        raise InputError(
            "there is no unlabelled case or slice to learn from",
            file=str(context.project.folder),
            remedy="Add unlabelled cases, or use finetune",
        )
    return LabelledData(plan, cache, training, held_out, others)


def _stage_one(job: Job) -> SegmentationNet:
    """The first model: that of the run started from, or one trained here on the labels alone."""
    context, model = job.context, job.model
    if model is not None:
        net = build_network(context, job.data.plan, None)
        net.load_state_dict(model.tensors)
        return net
    net = build_network(context, job.data.plan, context.start)
    metrics = _finished(context, "stage-1", net)
    if metrics is None:
        task = make_task(context, job.data, net)
        metrics = fit(context, task, job.schedule.stage_one(), "stage-1")
        _keep(context, "stage-1", net, metrics)
    job.first = metrics
    return net


def _round(
    job: Job, number: int, teacher: SegmentationNet, first: SegmentationNet
) -> SegmentationNet:
    """Pseudo-labels from `teacher`, then joint training from its weights, or those of `first`."""
    context, name = job.context, f"round-{number}"
    folder = context.folder / "pseudo" / name
    summary = _pseudo_labels(job, teacher, folder, number)
    job.good = teacher
    if number == 1:
        job.fit_rounds(summary.get("seconds", 0.0))
    net = build_network(context, job.data.plan, None)
    net.load_state_dict((first if job.options.restart else teacher).state_dict())
    metrics = _finished(context, name, net)
    if metrics is None:
        task = _round_task(job, net, folder, summary, number)
        predicted = summary.get("seconds", 0.0)
        budget = job.schedule.round(number, job.spent + predicted, predicted)
        metrics = fit(context, task, budget, name)
        metrics |= {key: float(value) for key, value in task.diagnostics().items()}
        _keep(context, name, net, metrics)
    row = {"round": number, "pseudo": summary, "dice": metrics["best"]}
    for key in ("steps", "seconds", "local_contrast", "separation"):
        if key in metrics:
            row[key] = metrics[key]
    job.rows.append(row)
    kept, cases = len(summary["kept"]), len(summary["cases"])
    context.events.emit("metric", stage=name, kept=kept, cases=cases)
    if number == job.rounds and (words := leak_words(job.rows[0]["pseudo"], summary)):
        context.events.emit("warning", message=words)
    return net


def _pseudo_labels(job: Job, teacher: SegmentationNet, folder: Path, number: int) -> dict[str, Any]:
    """This round's pseudo-labels, compared with those of the round before; returns their summary.

    Raises:
        CollapsedError: they show that `teacher` has failed.
        GuardError: none is left after the filter; `teacher` is still worth keeping.
    """
    context = job.context
    project = context.project
    model = job.model_of(teacher)

    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        taken = time.monotonic() - started
        left = job.schedule.left(number, job.spent, taken, done / total, job.step_time)
        context.events.progress(f"pseudo-{number}", done, total, seconds_left=left)
        if (context.folder / STOP_FILE).exists():
            go_on = "start the run again"
            if begun(context.folder):
                go_on = f"go on: --resume --name {context.run.name}"
            raise CancelledError(f"Stopped after {done} of {total} pseudo-labels; {go_on}.")

    try:
        if context.is_first:
            write_pseudo_labels(project, model, job.targets, folder, job.pseudo, progress)
        context.fabric.barrier()
        summary = write_pseudo_labels(project, model, (), folder, job.pseudo)
        warnings = drift(job.rows[-1]["pseudo"], summary) if job.rows else []
    except CollapsedError:
        raise
    except GuardError:
        job.good = teacher
        raise
    for message in (*warnings, *absent_classes(summary), *taken_from(summary)):
        context.warn(message)
    return summary


def _best(
    job: Job, nets: dict[str, SegmentationNet]
) -> tuple[SegmentationNet, str, dict[str, Any]]:
    """The network to keep, its name, and what speaks for each."""
    data = job.data
    held_out = [case.name for case in data.held_out]
    training, unlabelled = some(data.training), some(job.targets)
    found = {}
    for name, net in nets.items():
        model = job.model_of(net)
        found[name] = judge(
            model, data.cache, held_out=held_out, labelled=training, unlabelled=unlabelled
        )
    kept = job.context.fabric.broadcast(best_of(found))
    if kept != list(nets)[-1]:
        job.context.warn(in_words(found, kept))
    return nets[kept], kept, {name: each.to_json() for name, each in found.items()}


def _keep_last_good(job: Job, error: GuardError) -> None:
    """Keep the weights of the last good model of a run that a guard stopped, if there is one."""
    if job.good is not None and job.context.is_first:
        keep_segmentation(job.context, job.good, {**job.metrics, "stopped": str(error)})


def _round_task(
    job: Job, net: SegmentationNet, folder: Path, summary: dict[str, Any], number: int
) -> RoundTask:
    """The task of a round over true labels and this round's pseudo-labels."""
    context, data, options = job.context, job.data, job.options
    project, kept = context.project, frozenset(summary["kept"])
    pseudo = pseudo_labelled(job.targets, folder, kept)
    whole = tuple(case for case in data.training if case.name not in kept)
    cache = Cache(project.cache_folder, data.plan, folder / ENTRIES)
    cache.prepare(
        whole + pseudo, labels=True, values=project.values, ignore=project.ignore_value
    ).require_all()
    labelled = SegmentationTask(
        module=net,
        sampler=make_sampler(context, data.plan, data.cache, data.training),
        plan=data.plan,
        device=context.device,
        validation=tuple(case.name for case in data.held_out),
        frozen=context.config.freeze_encoder,
    )
    # the contrast needs structures (released code: slices with all classes), segmentation also what
    # is none
    foreground = context.config.training.foreground if options.pseudo_weight else 1.0
    soft = SoftLabels(folder, len(project.classes), kept) if options.likely else None
    partly = [case.name for case in data.training if case.annotated]
    other = make_sampler(
        context,
        data.plan,
        cache,
        round_cases(options, whole, pseudo, partly),
        foreground=foreground,
        seed=context.config.seed + number,
        soft=soft,
    )
    # in a first round it pays more that structures grow: first models find too little of them
    plain_every = options.plain_every if number == job.rounds > 1 else 0
    task = round_task(labelled, other, len(project.classes), options, plain_every)
    place(task.module, context.device, data.plan.dim)
    return task


def _finished(context: TrainingContext, name: str, net: SegmentationNet) -> dict[str, Any] | None:
    """Load a finished stage of a resumed run; its metrics, None where it is not finished."""
    return load_stage(context.folder, name, net) if context.config.resume else None


def _keep(
    context: TrainingContext, name: str, net: SegmentationNet, metrics: dict[str, Any]
) -> None:
    if context.is_first:
        save_stage(context.folder, name, net, metrics)
