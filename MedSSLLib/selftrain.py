"""Self-training in rounds: pseudo-labels from the last model, then joint training with the local contrastive loss.

Chaitanya, Erdil, Karani, Konukoglu 2021 (arXiv 2112.09645). Stage 1 is a finished fine-tuning run or is trained here;
each round predicts pseudo-labels, starts again from stage 1's weights with a new projection head, as the released code
does, and trains jointly.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from MedSSLLib.cache import Cache
from MedSSLLib.checkpoint import load_tensors, save_tensors
from MedSSLLib.config import Frozen, RunConfig
from MedSSLLib.device import resolve_precision
from MedSSLLib.errors import InputError
from MedSSLLib.events import Events
from MedSSLLib.finetune import (
    LabelledData,
    build_network,
    finish,
    fit,
    make_sampler,
    make_task,
    split_holdout,
    stage_budget,
)
from MedSSLLib.joint import JointTask
from MedSSLLib.manifest import Case
from MedSSLLib.networks import SegmentationNet, place
from MedSSLLib.predict import Model
from MedSSLLib.preparation import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    labelled_cases,
    prepare,
    record,
    resolve_weights,
)
from MedSSLLib.project import Project
from MedSSLLib.pseudo import Filter, PseudoOptions, drift, pseudo_labelled, write_pseudo_labels
from MedSSLLib.runfolder import read_config
from MedSSLLib.segmentation import SegmentationTask

STAGE_ONE = 0.4  # share of the budget for stage 1 when it is trained here; not from the paper


class SelfTrainConfig(Frozen):
    """Settings of self-training."""

    start: str = Field("", description="Finished fine-tuning run to start from; empty = stage 1 is trained here.")
    rounds: int = Field(3, ge=1, description="Rounds of pseudo-labels and joint training (released code: 3).")
    matching: Literal["inter", "intra"] = Field("inter", description="Pairs of images, or two views of one image.")
    weight: float = Field(0.1, ge=0, description="Lambda, the weight of the contrast. Not from the paper.")
    temperature: float = Field(0.1, gt=0, description="Temperature (released code: 0.1).")
    pseudo_weight: float = Field(0.5, ge=0, description="Segmentation loss on pseudo-labels. Not from the paper.")
    clean: Literal["none", "components"] = Field("components", description="Clean-up. Not from the paper.")
    filter: Filter = Field("none", description="Which pseudo-labels are used; the paper found no gain from a filter.")
    threshold: float = Field(0.8, ge=0, le=1, description="Least agreement or confidence (paper tried 0.7 and 0.8).")
    accept: tuple[str, ...] = Field((), description="Cases whose pseudo-labels are always used.")
    reject: tuple[str, ...] = Field((), description="Cases whose pseudo-labels are never used.")

    @property
    def pseudo(self) -> PseudoOptions:
        """What concerns the pseudo-labels."""
        return PseudoOptions(self.clean, self.filter, self.threshold, self.accept, self.reject)


@dataclass(frozen=True)
class _Job:
    """One self-training run: its data, its settings and the cases that get pseudo-labels."""

    ready: Preparation
    data: LabelledData
    options: SelfTrainConfig
    init: Path | None

    @property
    def targets(self) -> tuple[Case, ...]:
        """Unlabelled cases, and labelled ones with only some slices annotated."""
        return self.data.unlabelled + tuple(case for case in self.data.training if case.annotated)


def run_selftrain(project: Project, config: RunConfig, events: Events) -> Path:
    """Self-train, keep the last round's weights, and write metrics and the model card; returns the run folder.

    Raises:
        InputError: nothing to train on, or settings that do not fit together.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: the pseudo-labels are unusable, or a loss is not finite; the last good model is kept.
    """
    with ExitStack() as stack:
        ready = prepare(project, config, events, stack)
        options = self_train_options(ready.config)
        start = _start_weights(project, options.start)
        init = start or resolve_weights(project, ready.config.init)
        ready = adopt_network(ready, init)
        job = _Job(ready, _data(ready, init), options, init)
        record(ready, job.data.plan, job.data.facts())
        first = _stage_one(job, start)
        net = first
        rows: list[dict[str, Any]] = []
        for number in range(1, options.rounds + 1):
            net, row = _round(job, number, net, first, rows)
            rows.append(row)
        finish(ready, job.data.plan, net, {"rounds": rows, "steps": rows[-1]["steps"],
                                           "seconds": round(sum(row["seconds"] for row in rows), 1)})
        return ready.folder


def self_train_options(config: RunConfig) -> SelfTrainConfig:
    """The settings from ``options``.

    Raises:
        InputError: an option that does not exist, or a value that does not fit.
    """
    try:
        return SelfTrainConfig(**config.options)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"option {'.'.join(map(str, first['loc']))!r} of selftrain: {first['msg']}",
                         remedy=f"Known options: {', '.join(SelfTrainConfig.model_fields)}") from None


def _start_weights(project: Project, run: str) -> Path | None:
    weights = resolve_weights(project, run)
    if weights is not None and read_config(weights.parent).command == "pretrain":
        raise InputError(f"run {run!r} is a pre-trained encoder", remedy=f"Use --init {run} instead of --from")
    return weights


def _data(ready: Preparation, init: Path | None) -> LabelledData:
    """Labelled, held-out and unlabelled cases in the cache.

    Raises:
        InputError: a class has no labelled voxel, or there is nothing to pseudo-label.
    """
    cases = labelled_cases(ready.project, ready.config)
    plan = choose_plan(ready, ready.project.pool, init)
    cache, cases = fill_cache(ready, plan, cases, labels=True)
    training, held_out = split_holdout(cases, ready.config)
    _require_all_classes(ready.project, cache, training)
    names = {case.name for case in cases}
    others = tuple(case for case in ready.project.pool if case.name not in names)
    refused = {case.name for case, error in cache.prepare(others)}
    others = tuple(case for case in others if case.name not in refused)
    if not others and not any(case.annotated for case in training):
        raise InputError("there is no unlabelled case or slice to learn from", file=str(ready.project.folder),
                         remedy="Add unlabelled cases, or use finetune")
    if len(ready.project.classes) == 2:
        ready.events.emit("warning", message="With one foreground class the contrastive loss is zero; only the "
                                             "pseudo-labels themselves teach.")
    return LabelledData(plan, cache, training, held_out, others)


def _require_all_classes(project: Project, cache: Cache, cases: Sequence[Case]) -> None:
    found = {value for case in cases for value, places in cache.foreground(case.name).items() if len(places)}
    missing = [name for index, name in enumerate(project.classes) if index and index not in found]
    if missing:
        raise InputError(f"the class {', '.join(missing)} has no labelled voxel in the chosen cases",
                         file=str(project.folder), remedy="Annotate slices that show it, or add a case to --labelled")


def _stage_one(job: _Job, start: Path | None) -> SegmentationNet:
    """The first model: that of the run started from, or one trained here on the labels alone."""
    ready, plan = job.ready, job.data.plan
    net = build_network(ready, plan, None if start else job.init)
    if start is not None:
        net.load_state_dict(load_tensors(start)[0])
        return net
    if not _load_stage(ready, "stage-1", net):
        fit(ready, make_task(ready, job.data, net), stage_budget(ready.config, STAGE_ONE), "stage-1")
        _save_stage(ready, "stage-1", net)
    return net


def _round(
    job: _Job, number: int, teacher: SegmentationNet, first: SegmentationNet, rows: list[dict[str, Any]]
) -> tuple[SegmentationNet, dict[str, Any]]:
    """One round: pseudo-labels from `teacher`, then joint training from the weights of `first`."""
    ready, plan = job.ready, job.data.plan
    folder = ready.folder / "pseudo" / f"round-{number}"
    summary = _pseudo_labels(job, teacher, folder, number)
    if rows:
        for message in drift(rows[-1]["pseudo"], summary):
            ready.events.emit("warning", message=message)
    net = build_network(ready, plan, None)
    net.load_state_dict(first.state_dict())
    name = f"round-{number}"
    figures: dict[str, Any] = {"steps": 0, "seconds": 0.0, "best": None}
    if not _load_stage(ready, name, net):
        share = (1.0 if job.options.start else 1 - STAGE_ONE) / job.options.rounds
        figures = fit(ready, _joint_task(job, net, folder, summary, number), stage_budget(ready.config, share), name)
        _save_stage(ready, name, net)
    row = {"round": number, "pseudo": summary, "steps": figures["steps"], "seconds": figures["seconds"],
           "dice": figures["best"]}
    ready.events.emit("metric", stage=name, kept=len(summary["kept"]), cases=len(summary["cases"]))
    return net, row


def _pseudo_labels(job: _Job, teacher: SegmentationNet, folder: Path, number: int) -> dict[str, Any]:
    ready = job.ready
    teacher.eval()
    model = Model(teacher, job.data.plan, ready.project.values, ready.device,
                  resolve_precision(ready.config.precision, ready.device))
    if ready.fabric.is_global_zero:
        write_pseudo_labels(ready.project, model, job.targets, folder, job.options.pseudo,
                            lambda done, total: ready.events.progress(f"pseudo-{number}", done, total))
    ready.fabric.barrier()
    return write_pseudo_labels(ready.project, model, (), folder, job.options.pseudo)


def _joint_task(job: _Job, net: SegmentationNet, folder: Path, summary: dict[str, Any], number: int) -> JointTask:
    """The joint task of a round over true labels and this round's pseudo-labels."""
    ready, data, options = job.ready, job.data, job.options
    pseudo = pseudo_labelled(job.targets, folder, summary["kept"])
    cache = Cache(ready.project.cache_folder, data.plan)
    drawn = tuple(case for case in data.training if not case.annotated)
    values, ignore = ready.project.values, ready.project.ignore_value
    cache.prepare(drawn + pseudo, labels=True, values=values, ignore=ignore)
    held_out = tuple(case.name for case in data.held_out)
    labelled = SegmentationTask(net, make_sampler(ready, data.plan, data.cache, data.training), data.plan,
                                ready.device, held_out, ready.config.freeze_encoder)
    contrast = make_sampler(ready, data.plan, cache, drawn + pseudo, foreground=1.0, seed=ready.config.seed + number)
    task = JointTask(labelled, contrast, len(ready.project.classes), options.matching, options.weight,
                     options.pseudo_weight, options.temperature)
    place(task.module, ready.device, data.plan.dim)
    return task


def _stage_file(ready: Preparation, name: str) -> Path:
    return ready.folder / "stages" / f"{name}.safetensors"


def _save_stage(ready: Preparation, name: str, net: SegmentationNet) -> None:
    if ready.fabric.is_global_zero:
        save_tensors(_stage_file(ready, name), net.state_dict(), {"stage": name})


def _load_stage(ready: Preparation, name: str, net: SegmentationNet) -> bool:
    """Load a finished stage of a resumed run."""
    path = _stage_file(ready, name)
    if not ready.config.resume or not path.exists():
        return False
    net.load_state_dict(load_tensors(path)[0])
    return True
