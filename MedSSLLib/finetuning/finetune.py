"""Fine-tuning: a segmentation network from labelled cases or slices, from scratch or on a
pre-trained encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.evaluation.calibration import calibration_of, sampled
from MedSSLLib.finetuning.labelled_data import (
    LabelledData,
    add_unlabelled,
    check_structures,
    make_sampler,
)
from MedSSLLib.finetuning.mean_teacher import MeanTeacherTask
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask, TeacherMixingTask
from MedSSLLib.finetuning.mixup import MixupTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.inference.sliding_window import predict_probabilities
from MedSSLLib.networks.unet import SegmentationNet
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.context import (
    Preparation,
    adopt_network,
    choose_plan,
    fill_cache,
    labelled_cases,
    prepare,
    record,
    resolve_weights,
)
from MedSSLLib.training.holdout import HOLDOUT_FROM, SLICES_TO_JUDGE, hold_out
from MedSSLLib.training.run_folder import labels_seen
from MedSSLLib.training.stages import build_network, finish, fit, stage_budget


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
        plan = choose_plan(ready, ready.project.pool, init, labelled=cases)
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


def _warn_of_idle_settings(
    ready: Preparation, training: Sequence[Case], held_out: Sequence[Case]
) -> None:
    """Say where cross-validation or early stopping was asked for and cannot take place."""
    settings = ready.config.training
    if settings.folds and len({case.patient for case in (*training, *held_out)}) < 2:
        ready.events.emit(
            "warning", message="training.folds does nothing: the labelled cases are of one patient."
        )
    if settings.patience and not held_out:
        ready.events.emit(
            "warning",
            message=(
                "training.patience does not stop the "
                f"{'last ' if settings.folds else ''}training early: no labelled case "
                f"is held out to judge it (that needs {HOLDOUT_FROM} labelled cases of "
                f"{SLICES_TO_JUDGE} annotated slices)."
            ),
        )


def make_task(
    ready: Preparation, data: LabelledData, net: SegmentationNet
) -> SegmentationTask | MeanTeacherTask | TeacherMixingTask:
    """The task that the configuration asks for: plain, with Mixup, with Mean Teacher, with both, or
    with mixing.

    Raises:
        InputError: Mixup and mixing together.
    """
    config = ready.config
    if config.mixup and config.semi == "mixing":
        raise InputError(
            "mixing puts two images together already, so Mixup cannot do it again",
            remedy="Use --semi mixing or --mixup, not both",
        )
    sampler = make_sampler(ready, data.plan, data.cache, data.training)
    held_out = tuple(case.name for case in data.held_out)
    facts = (net, sampler, data.plan, ready.device, held_out, config.freeze_encoder)
    labelled = MixupTask(*facts, alpha=config.mixup) if config.mixup else SegmentationTask(*facts)
    if config.semi == "none":
        return labelled
    pool = data.training + data.unlabelled
    unlabelled = make_sampler(
        ready, data.plan, data.cache, pool, labelled=False, seed=config.seed + 1
    )
    if config.semi == "mean-teacher":
        return MeanTeacherTask(labelled, unlabelled, config.consistency)
    classes, mix = len(ready.project.classes), Mix(threshold=config.confident)
    return TeacherMixingTask(MixingTask(*facts, other=unlabelled, classes=classes, mix=mix))


def cross_validate(
    ready: Preparation, data: LabelledData, init: Path | None
) -> list[dict[str, Any]]:
    """Held-out Dice of `training.folds` folds, each trained with an equal share of the budget; []
    without folds.

    Every patient is in one fold.
    """
    cases = data.training + data.held_out
    patients = sorted({case.patient for case in cases})
    folds = min(ready.config.training.folds, len(patients))
    if folds < 2:
        return []
    if labels_seen(init) & {case.name for case in cases}:
        ready.events.emit(
            "warning",
            message="The Dice of the folds will be too high: the run started from was "
            "trained on some of their cases.",
        )
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


def held_out_calibration(
    ready: Preparation, data: LabelledData, net: SegmentationNet
) -> dict[str, Any]:
    """Calibration on the held-out labelled cases, or why it was not measured.

    See :func:`~MedSSLLib.evaluation.calibration.calibration_of`.

    The same cases chose the step whose weights are kept, so the figures flatter a little.
    """
    if not data.held_out or not ready.fabric.is_global_zero:
        return {
            "measured": False,
            "why": f"no labelled case was held out (that needs {HOLDOUT_FROM} labelled cases "
            f"of {SLICES_TO_JUDGE} annotated slices, some of which did not train the "
            "run started from)",
        }
    net.eval()
    rows = []
    for number, case in enumerate(data.held_out):
        size = data.cache.shape(case.name)[1:]
        image, label = (
            data.cache.image(case.name, (0, 0, 0), size),
            data.cache.label(case.name, (0, 0, 0), size),
        )
        probabilities = predict_probabilities(net, image, data.plan, ready.device).numpy()
        rows.append(sampled(probabilities, label, IGNORE, ready.config.seed + number))
    return {"measured": True, **calibration_of(rows, [case.patient for case in data.held_out])}
