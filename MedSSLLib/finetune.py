"""Fine-tuning: a segmentation network from labelled cases or slices, from scratch or on a pre-trained encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.cache import Cache
from MedSSLLib.calibration import calibration_of, sampled
from MedSSLLib.checkpoint import save_tensors
from MedSSLLib.components import one_piece_classes, undivided_on_slices
from MedSSLLib.config import RunConfig
from MedSSLLib.device import seed_step
from MedSSLLib.errors import InputError
from MedSSLLib.events import Events
from MedSSLLib.files import write_json
from MedSSLLib.holdout import HOLDOUT_FROM, SLICES_TO_JUDGE, hold_out
from MedSSLLib.inference import predict_probabilities
from MedSSLLib.labels import IGNORE
from MedSSLLib.manifest import Case
from MedSSLLib.model_card import write_model_card
from MedSSLLib.networks import SegmentationNet, place
from MedSSLLib.planning import Plan
from MedSSLLib.preparation import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    labelled_cases,
    make_encoder,
    prepare,
    record,
    resolve_weights,
)
from MedSSLLib.project import Project
from MedSSLLib.runfolder import WEIGHTS, labels_seen
from MedSSLLib.sampling import SegmentationSampler
from MedSSLLib.schedule import Budget
from MedSSLLib.segmentation import SegmentationTask
from MedSSLLib.semi import MeanTeacherTask, MixupTask
from MedSSLLib.trainer import LoopConfig, Task, Trainer


@dataclass(frozen=True)
class LabelledData:
    """The preprocessed labelled cases: those trained on and those held out."""

    plan: Plan
    cache: Cache
    training: tuple[Case, ...]
    held_out: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()

    def facts(self, classes: int) -> dict[str, Any]:
        """Names, annotated slices and what the labels tell of pieces, for the record."""
        cases = self.training + self.held_out
        annotated = {c.name: c.annotated.to_json() for c in cases if c.annotated}
        slices_alone = len(annotated) == len(cases)
        return {"labelled": [c.name for c in self.training], "validation": [c.name for c in self.held_out],
                "unlabelled": [c.name for c in self.unlabelled], "annotated": annotated,
                "fingerprint": self.cache.fingerprint(),
                "one_piece": one_piece_classes(self.labels(whole=True), classes),
                "undivided": undivided_on_slices(self.labels(whole=False), classes) if slices_alone else []}

    def labels(self, *, whole: bool) -> Iterator[np.ndarray]:
        """Class maps of the cases with a label, of those annotated as a whole or of those with annotated slices."""
        for case in self.training + self.held_out:
            if whole == (not case.annotated):
                yield self.cache.label(case.name, (0, 0, 0), self.cache.shape(case.name)[1:])


def run_finetune(project: Project, config: RunConfig, events: Events) -> Path:
    """Train, keep the weights, and write metrics and the model card; returns the run folder.

    Raises:
        InputError: nothing to train on, or settings that do not fit together.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: a guard stopped the run.
    """
    with ExitStack() as stack:
        ready = prepare(project, config, events, stack)
        init = resolve_weights(project, ready.config.init)
        ready = adopt_network(ready, init)
        cases = labelled_cases(ready.project, ready.config)
        plan = choose_plan(ready, ready.project.pool, init)
        cache, cases = fill_cache(ready, plan, cases, labels=True)
        training, held_out = hold_out(ready, cases, init)
        check_structures(ready, cache, training)
        _warn_of_idle_settings(ready, training, held_out)
        unlabelled = () if ready.config.semi == "none" else add_unlabelled(ready, cache, cases)
        data = LabelledData(plan, cache, training, held_out, unlabelled)
        record(ready, plan, data.facts(len(ready.project.classes)))
        scores = cross_validate(ready, data, init)
        net = build_network(ready, plan, init)
        budget = stage_budget(ready.config, 1 - sum(row["share"] for row in scores))
        figures = fit(ready, make_task(ready, data, net), budget)
        figures["calibration"] = held_out_calibration(ready, data, net)
        finish(ready, plan, net, {**figures, "cross_validation": scores} if scores else figures)
        return ready.folder


def check_structures(ready: Preparation, cache: Cache, training: Sequence[Case]) -> None:
    """Warn of classes that no label shows where it counts: a network cannot learn them.

    Raises:
        InputError: there is no structure at all.
    """
    shown = {value for case in training for value in cache.counts(case.name)}
    unseen = [name for index, name in enumerate(ready.project.classes) if index and index not in shown]
    if not shown - {0}:
        raise InputError(f"the labels of {', '.join(case.name for case in training[:5])} show background alone",
                         file=str(ready.project.folder), remedy="Label cases, or mark slices, that show structures")
    if unseen:
        ready.events.emit("warning", message=f"No labelled case that is trained on shows {', '.join(unseen)}: "
                                             "the model will not find it.")


def _warn_of_idle_settings(ready: Preparation, training: Sequence[Case], held_out: Sequence[Case]) -> None:
    """Say where cross-validation or early stopping was asked for and cannot take place."""
    settings = ready.config.training
    if settings.folds and len({case.patient for case in (*training, *held_out)}) < 2:
        ready.events.emit("warning", message="training.folds does nothing: the labelled cases are of one patient.")
    if settings.patience and not held_out:
        ready.events.emit("warning", message=(
            f"training.patience does not stop the {'last ' if settings.folds else ''}training early: no labelled case "
            f"is held out to judge it (that needs {HOLDOUT_FROM} labelled cases of {SLICES_TO_JUDGE} annotated slices)."
        ))


def add_unlabelled(ready: Preparation, cache: Cache, labelled: Sequence[Case]) -> tuple[Case, ...]:
    """Images of the pool's other cases, added to the cache; no label is read.

    Raises:
        InputError: there is none.
    """
    names = {case.name for case in labelled}
    others = tuple(case for case in ready.project.pool if case.name not in names)
    refused = {case.name for case, _ in cache.prepare(others)}
    usable = tuple(case for case in others if case.name not in refused)
    if not usable:
        raise InputError("no unlabelled case can be used", file=str(ready.project.folder),
                         remedy="Add unlabelled cases, or leave out --semi")
    return usable


def build_network(ready: Preparation, plan: Plan, init: Path | None) -> SegmentationNet:
    """The network on the device, seeded, with a transferred encoder when there is one; the transfer is reported."""
    seed_step(ready.config.seed, 0)
    encoder, report = make_encoder(ready, plan, init)
    if report is not None:
        ready.events.emit("metric", stage="transfer", tensors_loaded=len(report.loaded), report=report.text())
    net = SegmentationNet(encoder, len(ready.project.classes), ready.config.network.deep_supervision)
    if ready.config.freeze_encoder:
        net.encoder.requires_grad_(False)
    place(net, ready.device, plan.dim)
    return net


def stage_budget(config: RunConfig, share: float = 1.0) -> Budget:
    """The budget of one stage that may use `share` of the run's steps or minutes."""
    training = config.training
    if training.minutes:
        return Budget(seconds=training.minutes * 60 * share)
    return Budget(steps=max(1, round(training.steps * share)))


def make_sampler(
    ready: Preparation, plan: Plan, cache: Cache, cases: Sequence[Case], **changes: Any
) -> SegmentationSampler:
    """The sampler of patches for a plan; `changes` replace its other attributes."""
    config = ready.config
    spacing = tuple(float(mm) for mm in plan.spacing[3 - plan.dim :] if mm)
    sampler = SegmentationSampler(
        cache, tuple(c.name for c in cases), plan.patch, spacing, config.augment, ready.batch(plan),
        config.training.foreground, config.seed,
    )
    return replace(sampler, **changes)


def make_task(ready: Preparation, data: LabelledData, net: SegmentationNet) -> SegmentationTask | MeanTeacherTask:
    """The task that the configuration asks for: plain, with Mixup, with Mean Teacher, or with both."""
    config = ready.config
    sampler = make_sampler(ready, data.plan, data.cache, data.training)
    held_out = tuple(case.name for case in data.held_out)
    facts = (net, sampler, data.plan, ready.device, held_out, config.freeze_encoder)
    labelled = MixupTask(*facts, alpha=config.mixup) if config.mixup else SegmentationTask(*facts)
    if config.semi == "none":
        return labelled
    pool = data.training + data.unlabelled
    unlabelled = make_sampler(ready, data.plan, data.cache, pool, labelled=False, seed=config.seed + 1)
    return MeanTeacherTask(labelled, unlabelled, config.consistency)


def fit(ready: Preparation, task: Task, budget: Budget, stage: str = "finetune") -> dict[str, Any]:
    """Train a task's module in place (it ends with the weights to keep); returns what is worth recording."""
    trainer = Trainer(task, loop_config(ready.config, stage, budget), ready.fabric, ready.folder, ready.events)
    if ready.config.resume:
        trainer.resume()
    task.module.load_state_dict(trainer.run())
    state = trainer.state
    return {"steps": state.step, "seconds": round(state.elapsed, 1), "validation": state.scores,
            "best": state.best, "best_step": state.best_step}


def loop_config(config: RunConfig, stage: str, budget: Budget) -> LoopConfig:
    """The trainer's numbers for one stage of a run."""
    training = config.training
    factor = config.optimiser.encoder_lr if config.init not in ("", "none") else 1.0
    return LoopConfig(
        stage, config.seed, budget, config.optimiser, factor, training.accumulate, training.ema,
        training.validate_every, training.patience,
    )


def cross_validate(ready: Preparation, data: LabelledData, init: Path | None) -> list[dict[str, Any]]:
    """Held-out Dice of `training.folds` folds, each trained with an equal share of the budget; [] without folds.

    Every patient is in one fold.
    """
    cases = data.training + data.held_out
    patients = sorted({case.patient for case in cases})
    folds = min(ready.config.training.folds, len(patients))
    if folds < 2:
        return []
    if labels_seen(init) & {case.name for case in cases}:
        ready.events.emit("warning", message="The Dice of the folds will be too high: the run started from was "
                                             "trained on some of their cases.")
    rows, share = [], 1 / (folds + 1)
    order = np.random.default_rng([ready.config.seed, 6]).permutation(patients)
    for fold in range(folds):
        held_out = tuple(case for case in cases if case.patient in order[fold::folds])
        rest = tuple(case for case in cases if case not in held_out)
        net = build_network(ready, data.plan, init)
        task = make_task(ready, LabelledData(data.plan, data.cache, rest, held_out), net)
        figures = fit(ready, task, stage_budget(ready.config, share), f"fold-{fold + 1}")
        names = [case.name for case in held_out]
        rows.append({"fold": fold + 1, "cases": names, "dice": figures["best"], "share": share})
    return rows


def held_out_calibration(ready: Preparation, data: LabelledData, net: SegmentationNet) -> dict[str, Any]:
    """Calibration on the held-out labelled cases, or why it was not measured.

    See :func:`~MedSSLLib.calibration.calibration_of`.

    The same cases chose the step whose weights are kept, so the figures flatter a little.
    """
    if not data.held_out or not ready.fabric.is_global_zero:
        return {"measured": False, "why": f"no labelled case was held out (that needs {HOLDOUT_FROM} labelled cases "
                                          f"of {SLICES_TO_JUDGE} annotated slices, some of which did not train the "
                                          "run started from)"}
    net.eval()
    rows = []
    for number, case in enumerate(data.held_out):
        size = data.cache.shape(case.name)[1:]
        image, label = data.cache.image(case.name, (0, 0, 0), size), data.cache.label(case.name, (0, 0, 0), size)
        probabilities = predict_probabilities(net, image, data.plan, ready.device).numpy()
        rows.append(sampled(probabilities, label, IGNORE, ready.config.seed + number))
    return {"measured": True, **calibration_of(rows, [case.patient for case in data.held_out])}


def finish(ready: Preparation, plan: Plan, net: SegmentationNet, figures: dict[str, Any], **told: Any) -> None:
    """Keep the weights, then metrics and the model card; `told` joins the last event."""
    if not ready.fabric.is_global_zero:
        return
    state = net.state_dict()
    write_json(ready.folder / "metrics.json", figures)
    write_model_card(ready.folder, ready.project, ready.config, plan, figures)
    save_tensors(ready.folder / WEIGHTS, state, {"classes": list(ready.project.classes), "kind": "segmentation"})
    ready.events.emit("done", run=ready.folder.name, folder=str(ready.folder), **_plain(figures), **told)


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float | str)}
