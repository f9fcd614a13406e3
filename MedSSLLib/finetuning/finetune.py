"""Fine-tuning: a segmentation network from labelled cases or slices.

From scratch, or on a pre-trained encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.random import Stream, random_stream
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
    TrainingContext,
    fill_cache,
    labelled_cases,
    open_context,
    record,
)
from MedSSLLib.training.holdout import HOLDOUT_FROM, SLICES_TO_JUDGE, hold_out
from MedSSLLib.training.planning import choose_plan
from MedSSLLib.training.run_folder import find_start
from MedSSLLib.training.stages import build_network, finish, fit, stage_budget

NOT_MEASURED = {
    "measured": False,
    "why": f"no labelled case was held out (that needs {HOLDOUT_FROM} labelled cases of "
    f"{SLICES_TO_JUDGE} annotated slices, some of which did not train the run started from)",
}
"""What is recorded instead of a calibration."""


def run_finetune(project: Project, config: RunConfig, events: Events) -> Path:
    """Train, keep the weights, and write metrics and the model card; returns the run folder.

    Raises:
        InputError: nothing to train on, or settings that do not fit together.
        CancelledError: stopped by the user; the checkpoint is kept.
        GuardError: a guard stopped the run.
    """
    with ExitStack() as stack:
        context = open_context(project, config, events, stack)
        context = context.starting_from(find_start(project, context.config.init))
        data = _prepare_data(context)
        record(context, data.plan, data.facts(len(context.project.classes)))
        folds = cross_validate(context, data)
        net = build_network(context, data.plan, context.start)
        budget = stage_budget(context.config, 1 - sum(row["share"] for row in folds))
        metrics = fit(context, make_task(context, data, net), budget)
        metrics["calibration"] = held_out_calibration(context, data, net)
        if folds:
            metrics["cross_validation"] = folds
        finish(context, net, metrics)
        return context.folder


def _prepare_data(context: TrainingContext) -> LabelledData:
    """Labelled cases in the cache, those held out, and unlabelled ones where they teach too."""
    cases = labelled_cases(context.project, context.config)
    plan = choose_plan(context, context.project.pool, labelled=cases)
    cache, cases = fill_cache(context, plan, cases, labels=True)
    training, held_out = hold_out(context, cache, cases)
    check_structures(context, cache, training)
    _warn_of_idle_settings(context, training, held_out)
    unlabelled: tuple[Case, ...] = ()
    if context.config.semi != "none":
        unlabelled = add_unlabelled(context, cache, cases)
        if not unlabelled:
            raise InputError(
                "no unlabelled case can be used",
                file=str(context.project.folder),
                remedy="Add unlabelled cases, or leave out --semi",
            )
    return LabelledData(plan, cache, training, held_out, unlabelled)


def _warn_of_idle_settings(
    context: TrainingContext, training: Sequence[Case], held_out: Sequence[Case]
) -> None:
    """Say where cross-validation or early stopping was asked for and cannot take place."""
    settings = context.config.training
    if settings.folds and len({case.patient for case in (*training, *held_out)}) < 2:
        context.warn("training.folds does nothing: the labelled cases are of one patient.")
    if settings.patience and not held_out:
        last = "last " if settings.folds else ""
        context.warn(
            f"training.patience does not stop the {last}training early: no labelled case is held "
            f"out to judge it (that needs {HOLDOUT_FROM} labelled cases of {SLICES_TO_JUDGE} "
            "annotated slices)."
        )


def make_task(
    context: TrainingContext, data: LabelledData, net: SegmentationNet
) -> SegmentationTask | MeanTeacherTask | TeacherMixingTask:
    """The task that the settings ask for: plain, with Mixup, Mean Teacher or both, or with mixing.

    Raises:
        InputError: Mixup and mixing together.
    """
    config = context.config
    if config.mixup and config.semi == "mixing":
        raise InputError(
            "mixing puts two images together already, so Mixup cannot do it again",
            remedy="Use --semi mixing or --mixup, not both",
        )
    given: dict[str, Any] = {
        "module": net,
        "sampler": make_sampler(context, data.plan, data.cache, data.training),
        "plan": data.plan,
        "device": context.device,
        "validation": tuple(case.name for case in data.held_out),
        "frozen": config.freeze_encoder,
    }
    labelled = MixupTask(alpha=config.mixup, **given) if config.mixup else SegmentationTask(**given)
    if config.semi == "none":
        return labelled
    everything = data.training + data.unlabelled
    unlabelled = make_sampler(
        context, data.plan, data.cache, everything, labelled=False, seed=config.seed + 1
    )
    if config.semi == "mean-teacher":
        return MeanTeacherTask(labelled, unlabelled, config.consistency)
    classes, mix = len(context.project.classes), Mix(threshold=config.confident)
    return TeacherMixingTask(MixingTask(**given, other=unlabelled, classes=classes, mix=mix))


def cross_validate(context: TrainingContext, data: LabelledData) -> list[dict[str, Any]]:
    """Held-out Dice of `training.folds` folds, every patient in one of them; [] without folds.

    Each fold and the training that follows have an equal fraction of the budget.
    """
    cases = data.training + data.held_out
    patients = sorted({case.patient for case in cases})
    folds = min(context.config.training.folds, len(patients))
    if folds < 2:
        return []
    seen = context.start.labels_seen if context.start else frozenset()
    if seen & {case.name for case in cases}:
        context.warn(
            "The Dice of the folds will be too high: the run started from was trained on some of "
            "their cases."
        )
    order = random_stream(context.config.seed, Stream.FOLDS).permutation(patients)
    fraction = 1 / (folds + 1)
    rows = []
    for fold in range(folds):
        left_out = set(order[fold::folds])
        held_out = tuple(case for case in cases if case.patient in left_out)
        rest = tuple(case for case in cases if case.patient not in left_out)
        net = build_network(context, data.plan, context.start)
        task = make_task(context, LabelledData(data.plan, data.cache, rest, held_out), net)
        budget = stage_budget(context.config, fraction)
        metrics = fit(context, task, budget, f"fold-{fold + 1}")
        names = [case.name for case in held_out]
        rows.append({"fold": fold + 1, "cases": names, "dice": metrics["best"], "share": fraction})
    return rows


def held_out_calibration(
    context: TrainingContext, data: LabelledData, net: SegmentationNet
) -> dict[str, Any]:
    """Calibration on the held-out labelled cases, or why it was not measured.

    See :func:`~MedSSLLib.evaluation.calibration.calibration_of`. The same cases chose the step
    whose weights are kept, so the metrics flatter a little.
    """
    if not data.held_out or not context.is_first:
        return dict(NOT_MEASURED)
    net.eval()
    rows = []
    for number, case in enumerate(data.held_out):
        size = data.cache.shape(case.name)[1:]
        image = data.cache.image(case.name, (0, 0, 0), size)
        label = data.cache.label(case.name, (0, 0, 0), size)
        probabilities = predict_probabilities(net, image, data.plan, context.device).numpy()
        rows.append(sampled(probabilities, label, IGNORE, context.config.seed + number))
    return {"measured": True, **calibration_of(rows, [case.patient for case in data.held_out])}
