"""Self-training in rounds: pseudo-labels from the last model, then joint training with the local
contrastive loss.

Chaitanya, Erdil, Karani, Konukoglu 2021 (arXiv 2112.09645). Stage 1 is a finished fine-tuning run
or is trained here; each round predicts pseudo-labels and trains jointly, with a new projection
head, from the round before; from stage 1's weights with `restart`, as the released code does. A run
that a guard stops keeps the last good model's weights.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MedSSLLib.config.commands import SelfTrainConfig, self_train_options
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import CancelledError, GuardError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json
from MedSSLLib.data.cache import Cache
from MedSSLLib.finetuning.finetune import make_task
from MedSSLLib.finetuning.labelled_data import LabelledData, make_sampler
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.inference.model import Model
from MedSSLLib.networks.unet import SegmentationNet, place
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS, begun
from MedSSLLib.selftraining.pseudo_labels import (
    ENTRIES,
    CollapsedError,
    PseudoOptions,
    absent,
    discard_entries,
    drift,
    pseudo_labelled,
    write_pseudo_labels,
)
from MedSSLLib.selftraining.round_tasks import RoundTask, round_cases, round_task
from MedSSLLib.selftraining.schedule import Schedule
from MedSSLLib.selftraining.soft_labels import SoftLabels
from MedSSLLib.selftraining.start import (
    adopt_heads,
    check_names,
    latest_pseudo_labels,
    require_all_classes,
    start_weights,
    warn_of_idle_settings,
    with_labels_of_start,
)
from MedSSLLib.training.checkpoint import load_stage, load_tensors, save_stage, save_tensors
from MedSSLLib.training.context import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    labelled_cases,
    prepare,
    record,
    resolve_weights,
    with_options,
)
from MedSSLLib.training.devices import precision_of
from MedSSLLib.training.holdout import hold_out
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.stages import build_network, finish, fit
from MedSSLLib.training.trainer import STOP_FILE


@dataclass
class _Job:
    """One self-training run: its data, its settings, and what it has reached.

    Attributes:
        start: weights of the run that stage 1 is taken from, None when it is trained here.
        init: weights the encoder starts from.
        one_piece, undivided: what the labels tell of pieces, as in RunData.
        first: steps and seconds of stage 1 where it is trained here.
        rows: figures of the finished rounds.
        good: the last model that is worth keeping.
    """

    ready: Preparation
    data: LabelledData
    options: SelfTrainConfig
    start: Path | None
    init: Path | None
    one_piece: tuple[int, ...] = ()
    undivided: tuple[int, ...] = ()
    first: dict[str, Any] = field(default_factory=lambda: {"steps": 0, "seconds": 0.0})
    rows: list[dict[str, Any]] = field(default_factory=list)
    good: SegmentationNet | None = None

    @property
    def targets(self) -> tuple[Case, ...]:
        """Unlabelled cases, and labelled ones with only some slices annotated."""
        return self.data.unlabelled + tuple(case for case in self.data.training if case.annotated)

    @property
    def pseudo(self) -> PseudoOptions:
        """What concerns the pseudo-labels; a person has looked at those of the run started from."""
        o = self.options
        looked_at = latest_pseudo_labels(self.start)
        return PseudoOptions(
            o.clean,
            o.filter,
            o.threshold,
            o.accept,
            o.reject,
            looked_at,
            o.start,
            o.likely,
            o.shapes,
        )

    @property
    def schedule(self) -> Schedule:
        """How the time is shared out."""
        first = 0.0 if self.start else self.options.first_share
        return Schedule(self.ready.config, self.options.rounds, first)

    @property
    def spent(self) -> float:
        """Seconds of training and of predicting pseudo-labels in the finished stages."""
        predicted = (row["pseudo"].get("seconds", 0.0) for row in self.rows)
        return float(sum(s["seconds"] for s in (self.first, *self.rows)) + sum(predicted))

    @property
    def figures(self) -> dict[str, Any]:
        """What goes into ``metrics.json``; the seconds are those of training and of predicting
        pseudo-labels.
        """
        return {
            "rounds": self.rows,
            "steps": sum(stage["steps"] for stage in (self.first, *self.rows)),
            "seconds": round(self.spent, 1),
        }


def run_selftrain(project: Project, config: RunConfig, events: Events) -> Path:
    """Self-train, keep the last round's weights, and write metrics and the model card; returns the
    run folder.

    Raises:
        InputError: nothing to train on, or settings that do not fit together.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the pseudo-labels are unusable, or a loss is not finite; the last good model is
            kept.
    """
    with ExitStack() as stack:
        config = with_labels_of_start(project, config, self_train_options(config).start)
        ready = prepare(project, config, events, stack)
        options = self_train_options(ready.config)
        ready = with_options(ready, options)
        start = start_weights(ready.project, options.start)
        ready = adopt_heads(ready, start)
        init = start or resolve_weights(project, ready.config.init)
        ready = adopt_network(ready, init)
        data = _data(ready, init)
        facts = data.facts(len(ready.project.classes))
        job = _Job(
            ready, data, options, start, init, tuple(facts["one_piece"]), tuple(facts["undivided"])
        )
        check_names(options, {case.name for case in job.targets})
        warn_of_idle_settings(ready, options)
        record(ready, data.plan, facts)
        net = first = _stage_one(job)
        try:
            for number in range(1, options.rounds + 1):
                net = _round(job, number, net, first)
                discard_entries(ready.folder / "pseudo")
        except GuardError as error:
            _keep_last_good(job, error)
            raise
        finish(ready, data.plan, net, job.figures)
        return ready.folder


def _data(ready: Preparation, init: Path | None) -> LabelledData:
    """Labelled, held-out and unlabelled cases in the cache.

    Raises:
        InputError: a class has no labelled voxel, or there is nothing to pseudo-label.
    """
    cases = labelled_cases(ready.project, ready.config)
    plan = choose_plan(ready, ready.project.pool, init, labelled=cases)
    cache, cases = fill_cache(ready, plan, cases, labels=True)
    training, held_out = hold_out(ready, cases, init)
    require_all_classes(ready.project, cache, training)
    names = {case.name for case in cases}
    others = tuple(case for case in ready.project.pool if case.name not in names)
    refused = cache.prepare(others)
    for _, error in refused:
        ready.events.emit("warning", message=str(error))
    bad = {case.name for case, _ in refused}
    # their labels, where they have some, stay closed
    others = tuple(
        replace(case, label=None, annotated=None) for case in others if case.name not in bad
    )
    if not others and not any(case.annotated for case in training):
        raise InputError(
            "there is no unlabelled case or slice to learn from",
            file=str(ready.project.folder),
            remedy="Add unlabelled cases, or use finetune",
        )
    return LabelledData(plan, cache, training, held_out, others)


def _stage_one(job: _Job) -> SegmentationNet:
    """The first model: that of the run started from, or one trained here on the labels alone."""
    ready, start = job.ready, job.start
    net = build_network(ready, job.data.plan, None if start else job.init)
    if start is not None:
        net.load_state_dict(load_tensors(start)[0])
        return net
    if (figures := _finished(ready, "stage-1", net)) is None:
        task = make_task(ready, job.data, net)
        figures = fit(ready, task, job.schedule.stage_one(), "stage-1")
        _keep(ready, "stage-1", net, figures)
    job.first = figures
    return net


def _round(
    job: _Job, number: int, teacher: SegmentationNet, first: SegmentationNet
) -> SegmentationNet:
    """One round: pseudo-labels from `teacher`, then joint training from the weights of `first`, or
    of `teacher`.
    """
    ready, name, folder = (
        job.ready,
        f"round-{number}",
        job.ready.folder / "pseudo" / f"round-{number}",
    )
    summary = _pseudo_labels(job, teacher, folder, number)
    job.good = teacher
    net = build_network(ready, job.data.plan, None)
    net.load_state_dict((first if job.options.restart else teacher).state_dict())
    if (figures := _finished(ready, name, net)) is None:
        predicted = summary.get("seconds", 0.0)
        budget = job.schedule.round(number, job.spent + predicted, predicted)
        task = _round_task(job, net, folder, summary, number)
        figures = fit(ready, task, budget, name)
        figures |= {key: float(value) for key, value in task.diagnostics().items()}
        _keep(ready, name, net, figures)
    known = ("steps", "seconds", "local_contrast", "separation")
    job.rows.append(
        {
            "round": number,
            "pseudo": summary,
            "dice": figures["best"],
            **{key: figures[key] for key in known if key in figures},
        }
    )
    ready.events.emit("metric", stage=name, kept=len(summary["kept"]), cases=len(summary["cases"]))
    return net


def _pseudo_labels(
    job: _Job, teacher: SegmentationNet, folder: Path, number: int
) -> dict[str, Any]:
    """This round's pseudo-labels, compared with those of the round before; returns their summary.

    Raises:
        CollapsedError: they show that `teacher` has failed.
        GuardError: none is left after the filter; `teacher` is still worth keeping.
    """
    ready = job.ready
    teacher.eval()
    model = Model(
        teacher,
        job.data.plan,
        ready.project.values,
        ready.project.classes,
        ready.device,
        precision_of(ready.fabric),
        job.one_piece,
        job.undivided,
    )

    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        taken = time.monotonic() - started
        whole = taken / done * total
        last = (job.rows or [job.first])[-1]
        step_time = last["seconds"] / last["steps"] if last["steps"] else None
        after = job.schedule.left_after_prediction(number, job.spent + whole, whole, step_time)
        left = None if after is None else whole - taken + after
        ready.events.progress(f"pseudo-{number}", done, total, seconds_left=left)
        if (ready.folder / STOP_FILE).exists():
            go_on = (
                f"go on: --resume --name {ready.folder.name}"
                if begun(ready.folder)
                else "start the run again"
            )
            raise CancelledError(f"Stopped after {done} of {total} pseudo-labels; {go_on}.")

    try:
        if ready.fabric.is_global_zero:
            write_pseudo_labels(ready.project, model, job.targets, folder, job.pseudo, progress)
        ready.fabric.barrier()
        summary = write_pseudo_labels(ready.project, model, (), folder, job.pseudo)
        warnings = drift(job.rows[-1]["pseudo"], summary) if job.rows else []
    except CollapsedError:
        raise
    except GuardError:
        job.good = teacher
        raise
    warnings += [
        f"The model predicts the class {name} in no case; look at the pseudo-labels, or annotate "
        "slices "
        "that show it."
        for name in absent(summary)
    ]
    for message in warnings:
        ready.events.emit("warning", message=message)
    return summary


def _keep_last_good(job: _Job, error: GuardError) -> None:
    """Keep the weights of the last good model of a run that a guard stopped, if there is one."""
    ready, net = job.ready, job.good
    if net is None or not ready.fabric.is_global_zero:
        return
    figures = {**job.figures, "stopped": str(error)}
    write_json(ready.folder / "metrics.json", figures)
    write_model_card(ready.folder, ready.project, ready.config, job.data.plan, figures)
    facts = {"classes": list(ready.project.classes), "kind": "segmentation"}
    save_tensors(ready.folder / WEIGHTS, net.state_dict(), facts)


def _round_task(
    job: _Job, net: SegmentationNet, folder: Path, summary: dict[str, Any], number: int
) -> RoundTask:
    """The task of a round over true labels and this round's pseudo-labels."""
    ready, data, options = job.ready, job.data, job.options
    pseudo = pseudo_labelled(job.targets, folder, summary["kept"])
    cache = Cache(ready.project.cache_folder, data.plan, folder / ENTRIES)
    whole = tuple(case for case in data.training if case.name not in summary["kept"])
    values, ignore = ready.project.values, ready.project.ignore_value
    for _, error in cache.prepare(whole + pseudo, labels=True, values=values, ignore=ignore):
        raise error
    held_out = tuple(case.name for case in data.held_out)
    labelled = SegmentationTask(
        net,
        make_sampler(ready, data.plan, data.cache, data.training),
        data.plan,
        ready.device,
        held_out,
        ready.config.freeze_encoder,
    )
    # the contrast needs structures (released code: slices with all classes), segmentation also what
    # is none
    share = ready.config.training.foreground if options.pseudo_weight else 1.0
    classes = len(ready.project.classes)
    soft = SoftLabels(folder, classes, frozenset(summary["kept"])) if options.likely else None
    partly = [case.name for case in data.training if case.annotated]
    cases = round_cases(options, whole, pseudo, partly)
    seed = ready.config.seed + number
    other = make_sampler(ready, data.plan, cache, cases, foreground=share, seed=seed, soft=soft)
    task = round_task(labelled, other, classes, options)
    place(task.module, ready.device, data.plan.dim)
    return task


def _finished(ready: Preparation, name: str, net: SegmentationNet) -> dict[str, Any] | None:
    """Load a finished stage of a resumed run; its figures, None where it is not finished."""
    return load_stage(ready.folder, name, net) if ready.config.resume else None


def _keep(ready: Preparation, name: str, net: SegmentationNet, figures: dict[str, Any]) -> None:
    if ready.fabric.is_global_zero:
        save_stage(ready.folder, name, net, figures)
