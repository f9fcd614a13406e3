"""Which labelled cases are held out: whole patients, none of whom trained the weights that a run
starts from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.context import Preparation
from MedSSLLib.training.run_folder import labels_seen, read_run

HOLDOUT_FROM = 10  # labelled cases from which some are held out; not from the paper
HOLDOUT_MOST = 8  # held-out cases at most; not from the paper
SLICES_TO_JUDGE = (
    5  # annotated slices from which a sparsely annotated case may be held out; not from the paper
)

Split = tuple[tuple[Case, ...], tuple[Case, ...]]  # training and held-out cases


def hold_out(ready: Preparation, cases: Sequence[Case], start: Path | None) -> Split:
    """Split the labelled cases of a run that starts from the weights `start`; a run that goes on
    keeps its split.

    A case whose label trained those weights would flatter the validation, the choice of the best
    step and the predicted quality. Where none is left to hold out, a warning says so.
    """
    if (ready.folder / "config.json").exists():
        return _parted(cases, set(read_run(ready.folder)["data"].get("validation", ())))
    patients = {case.name: case.patient for case in ready.project.cases}
    seen = {patients.get(name, name) for name in labels_seen(start)}
    split = split_holdout(cases, ready.config, seen, _held_out_before(cases, start))
    if start is not None and seen and not split[1] and split_holdout(cases, ready.config)[1]:
        ready.events.emit(
            "warning",
            message=(
                f"No labelled case is held out: run {start.parent.name!r}, from which this one "
                "starts, was trained on "
                "all of their patients, so they cannot judge it. The last weights are kept "
                "rather than the best, and "
                "predicted quality has no interval. Label further cases to have some held out."
            ),
        )
    return split


def split_holdout(
    cases: Sequence[Case],
    config: RunConfig,
    seen: Collection[str] = (),
    before: Collection[str] = (),
) -> Split:
    """Training and held-out cases: every patient on one side; none held out with fewer than 10
    labelled cases.

    Cases with only a few annotated slices neither count nor are held out: a handful of slices, some
    without any structure, cannot tell good weights from bad ones, and training needs them more.

    Args:
        cases: the labelled cases.
        config: of the run.
        seen: patients who are never held out.
        before: names of the cases to hold out again where none of their patients is seen; else
            others are drawn.
    """
    sparse = {
        case.patient for case in cases if case.annotated and case.annotated.count < SLICES_TO_JUDGE
    }
    telling = [case for case in cases if case.patient not in sparse]
    patients = sorted({case.patient for case in telling})
    count = min(HOLDOUT_MOST, round(config.training.holdout * len(patients)))
    if len(telling) < HOLDOUT_FROM or count == 0:
        return tuple(cases), ()
    again = {case.patient for case in telling if case.name in before}
    if not again or again & set(seen):
        unseen = [patient for patient in patients if patient not in seen]
        again = set(np.random.default_rng([config.seed, 5]).permutation(unseen)[:count])
    return _parted(cases, {case.name for case in cases if case.patient in again})


def _held_out_before(cases: Sequence[Case], start: Path | None) -> set[str]:
    """Held-out cases of the run started from where all of them are still labelled."""
    if start is None or not (start.parent / "config.json").exists():
        return set()
    before = set(read_run(start.parent)["data"].get("validation", ()))
    return before if before <= {case.name for case in cases} else set()


def _parted(cases: Sequence[Case], held_out: Collection[str]) -> Split:
    return tuple(c for c in cases if c.name not in held_out), tuple(
        c for c in cases if c.name in held_out
    )
