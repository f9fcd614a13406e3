"""Which labelled cases are held out: whole patients, none of whom trained the starting weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.context import TrainingContext
from MedSSLLib.training.run_folder import RunFolder

HOLDOUT_FROM = 10  # labelled cases from which some are held out; not from the paper
HOLDOUT_MOST = 8  # held-out cases at most; not from the paper
# annotated slices from which a sparsely annotated case may be held out; not from the paper
SLICES_TO_JUDGE = 5
KNOWN_TO_JUDGE = 0.1  # share of its voxels that a label file must know; not from the paper

Split = tuple[tuple[Case, ...], tuple[Case, ...]]  # training and held-out cases


def hold_out(context: TrainingContext, cache: Cache, cases: Sequence[Case]) -> Split:
    """Split the labelled cases of a run into training and held-out ones.

    A case whose label trained the weights that the run starts from would flatter the validation,
    the choice of the best step and the predicted quality. Where none is left to hold out, a warning
    says so. A run that goes on keeps its split.

    Args:
        context: of the run.
        cache: which has their labels.
        cases: the labelled cases.
    """
    if context.config.resume:
        return _parted(cases, context.run.data.validation)
    start = context.start
    seen = _patients_seen(context, start) if start else set()
    config, strokes = context.config, strokes_alone(cache, cases)
    split = split_holdout(cases, config, seen, _held_out_before(cases, start), strokes)
    if split[1]:
        return split
    if strokes and split_holdout(cases, config, seen)[1]:
        context.warn(
            f"No labelled case is held out: the labels of {len(strokes)} cases know less than "
            f"{KNOWN_TO_JUDGE:.0%} of their voxels, as strokes do, and cannot judge a model. The "
            "last weights are kept rather than the best. Label whole slices or scans to have some "
            "held out."
        )
    elif start is not None and seen and split_holdout(cases, config, strokes=strokes)[1]:
        context.warn(
            f"No labelled case is held out: run {start.name!r}, from which this one starts, was "
            "trained on all of their patients, so they cannot judge it. The last weights are kept "
            "rather than the best, and predicted quality has no interval. Label further cases to "
            "have some held out."
        )
    return split


def _patients_seen(context: TrainingContext, start: RunFolder) -> set[str]:
    """Patients whose labels have trained the weights of the start."""
    patients = {case.name: case.patient for case in context.project.cases}
    return {patients.get(name, name) for name in start.labels_seen}


def strokes_alone(cache: Cache, cases: Sequence[Case]) -> set[str]:
    """Names of cases whose label file has an ignore value in nine of ten voxels, and no record of
    slices: strokes.
    """
    found = set()
    for case in cases:
        known = sum(cache.counts(case.name).values())
        if case.annotated is None and known < KNOWN_TO_JUDGE * np.prod(cache.shape(case.name)[1:]):
            found.add(case.name)
    return found


def split_holdout(
    cases: Sequence[Case],
    config: RunConfig,
    seen: Collection[str] = (),
    before: Collection[str] = (),
    strokes: Collection[str] = (),
) -> Split:
    """Training and held-out cases, every patient on one side.

    With fewer than 10 labelled cases none is held out. Cases with only a few annotated slices, or
    with strokes alone, neither count nor are held out: a handful of slices, some without any
    structure, cannot tell good weights from bad ones, and training needs them more; strokes leave
    out the borders. Slices that are partly drawn do not count for this.

    Args:
        cases: the labelled cases.
        config: of the run.
        seen: patients who are never held out.
        before: names of the cases to hold out again where none of their patients is seen; else
            others are drawn.
        strokes: names of the cases whose label is strokes, see :func:`strokes_alone`.
    """
    sparse = set()
    for case in cases:
        few = case.annotated and case.annotated.whole.count < SLICES_TO_JUDGE
        if few or case.name in strokes:
            sparse.add(case.patient)
    telling = [case for case in cases if case.patient not in sparse]
    patients = sorted({case.patient for case in telling})
    count = min(HOLDOUT_MOST, round(config.training.holdout * len(patients)))
    if len(telling) < HOLDOUT_FROM or count == 0:
        return tuple(cases), ()
    again = {case.patient for case in telling if case.name in before}
    if not again or again & set(seen):
        unseen = [patient for patient in patients if patient not in seen]
        order = random_stream(config.seed, Stream.HELD_OUT_CASES).permutation(unseen)
        again = set(order[:count])
    return _parted(cases, {case.name for case in cases if case.patient in again})


def _held_out_before(cases: Sequence[Case], start: RunFolder | None) -> set[str]:
    """Held-out cases of the run started from where all of them are still labelled."""
    if start is None or not start.recorded:
        return set()
    before = set(start.data.validation)
    return before if before <= {case.name for case in cases} else set()


def _parted(cases: Sequence[Case], held_out: Collection[str]) -> Split:
    training = tuple(case for case in cases if case.name not in held_out)
    return training, tuple(case for case in cases if case.name in held_out)
