"""What suits a project's data, what comes next and what it takes, for command line and panels.

Nothing here needs more than the standard library and numpy. The texts are English for the command
line; the panels translate by the keys.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from MedSSLLib.config.lengths import PRESET_STEPS, Preset
from MedSSLLib.project.manifest import Case

COMPLETE_MINUTES = 3.0
"""Time limit of `complete` from the panel: somebody waits for it. Not from a paper."""
THICK = 3.0
"""Slices so many times thicker than pixels call for slice-wise learning. Not from the paper."""
UNEVEN = 1.5
"""From this ratio on, metadata that say which slices are alike decide. Not from the paper."""
STROKE_SLICES = 3
"""An edit of at most so many slices is a person's drawing, not a tool's. Not from a paper."""
ENOUGH_SLICES = 5
"""Slices drawn last from which live training says whether drawing more pays. Not from a paper."""
ENOUGH_CHANGED = 0.05
"""Where a person changed at most this share of their voxels, it pays little. Not from a paper."""
LEAST_SCANS = 2
"""Scans that pre-training needs at least."""
BASE_GIB = 1.5
"""Working memory of a training process beside its data (measured on CPU, 3D U-Net)."""
BYTES_A_VOXEL = 4
_HELD = 3  # copies of the largest volume while it is preprocessed
_SEGMENTING = ("finetune", "selftrain", "live")

NEXT_LINES = {
    "open": "medssl init PROJECT --images DIR",
    "add": "medssl add PROJECT PATH...",
    "annotate": "medssl suggest PROJECT --budget 3",
    "finetune": "medssl finetune PROJECT",
    "selftrain": "medssl selftrain PROJECT --from RUN",
    "predict": "medssl predict PROJECT --run RUN --out DIR",
}
"""The command of each step that `next_step` names."""


@dataclass(frozen=True)
class Recommendation:
    """A pre-training method for the data, and why.

    Attributes:
        method: its key ("pgl", "gcl").
        reason: "unknown" (no spacing was read), "thick", "metadata" or "even".
        ratio: slice thickness over pixel size (median over cases), 0 when unknown.
        columns: metadata columns that say which slices are alike.
    """

    method: str
    reason: str
    ratio: float = 0.0
    columns: tuple[str, ...] = ()


def drawing_pays_little(changed: Sequence[float]) -> bool:
    """Whether so little of the last proposals had to be changed that drawing more pays little.

    Args:
        changed: share of the voxels, 0..1, that a person changed on each slice drawn, oldest first.
    """
    last = changed[-ENOUGH_SLICES:]
    return len(last) == ENOUGH_SLICES and statistics.fmean(last) <= ENOUGH_CHANGED


def recommended_method(
    spacings: Iterable[Sequence[float]], columns: Iterable[str] = ()
) -> Recommendation:
    """PGL for volumes with nearly equal spacing, GCL for thick slices or telling metadata.

    Args:
        spacings: mm along i, j, k of each case, in any order.
        columns: names of the metadata columns; patients are in every project and do not count.
    """
    ratios = []
    for spacing in spacings:
        ordered = sorted(spacing)
        ratios.append(ordered[2] / ordered[1])
    if not ratios:
        return Recommendation("pgl", "unknown")
    ratio = statistics.median_high(ratios)
    if ratio >= THICK:
        return Recommendation("gcl", "thick", ratio)
    useful = tuple(name for name in columns if name.lower() not in ("patient", "patient_id"))
    if useful and ratio > UNEVEN:
        return Recommendation("gcl", "metadata", ratio, useful)
    return Recommendation("pgl", "even", ratio)


@dataclass(frozen=True)
class Needs:
    """Working memory and disk space of a training, in GiB."""

    memory: float
    disk: float


def needs(voxels: Sequence[int]) -> Needs:
    """What a project with volumes of so many voxels takes, whatever the number of scans.

    Cases are preprocessed one after the other and read from disk in patches, so that the memory
    follows the largest volume, the disk space the sum.
    """
    gib = BYTES_A_VOXEL / 2**30
    memory = BASE_GIB + (max(voxels) * gib * _HELD if voxels else 0.0)
    return Needs(memory, max(sum(voxels) * gib, 0.1))


def seconds_before(
    runs: Iterable[Mapping[str, Any]], command: str, preset: Preset, method: str = ""
) -> float | None:
    """Seconds that the latest comparable finished run took; None without one.

    Comparable: the same command, method and preset, with its number of steps and no time limit.
    """
    usual = PRESET_STEPS[command].get(preset)
    found = None
    for run in runs:
        seconds = (run.get("metrics") or {}).get("seconds")
        config = run_config(run)
        training = config.get("training") or {}
        alike = (config.get("command"), config.get("preset")) == (command, preset)
        own_length = training.get("minutes") or training.get("steps") != usual
        if seconds and alike and not own_length and method in ("", config.get("method")):
            found = float(seconds)
    return found


def run_config(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, from its summary (see `runs.summary`); {} where they are missing."""
    config = run.get("config") or {}
    return dict(config.get("config", config))


def run_command(run: Mapping[str, Any]) -> str:
    """The command that made a run: "pretrain", "finetune" or "selftrain"; "" when unknown."""
    return str(run_config(run).get("command", ""))


def models(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the finished runs that segment, oldest first."""
    return [run["name"] for run in runs if run["finished"] and run_command(run) in _SEGMENTING]


def encoders(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the finished pre-trainings, oldest first."""
    return [run["name"] for run in runs if run["finished"] and run_command(run) == "pretrain"]


def unfinished(
    runs: Iterable[Mapping[str, Any]], commands: Sequence[str]
) -> Mapping[str, Any] | None:
    """The latest run of these commands that can be resumed, None without one."""
    found = None
    for run in runs:
        if run["resumable"] and not run["finished"] and run_command(run) in commands:
            found = run
    return found


def teaches(case: Case) -> bool:
    """Whether training may learn from a case's label: labelled, with at least one counted slice."""
    counted = case.annotated is None or case.annotated.count > 0
    return case.role == "labelled" and case.label is not None and counted


def next_step(cases: Sequence[Case], runs: Sequence[Mapping[str, Any]]) -> str:
    """A key of `NEXT_LINES`: what to do next.

    Pre-training is none: it has gained less than drawn slices and self-training (see
    Testing/bench/NOTES.md), and a person can draw meanwhile.
    """
    if not cases:
        return "add"
    if not any(teaches(case) for case in cases):
        return "annotate"
    if not models(runs):
        return "finetune"
    return "selftrain" if worth_self_training(cases, runs) else "predict"


def worth_self_training(cases: Sequence[Case], runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest model has learnt from labels alone, and more scans lack one than have one.

    With one or two labelled volumes self-training gains most, with eight little (0.003 on the
    hippocampus, 0.044 on the heart, see Testing/bench/NOTES.md); with all there is nothing to learn
    from.
    """
    newest = [run for run in runs if run["finished"] and run_command(run) in _SEGMENTING][-1:]
    return few_labelled(cases) and any(run_command(run) == "finetune" for run in newest)


def few_labelled(cases: Iterable[Case]) -> bool:
    """Whether more cases of the pool lack a label than have one."""
    pool = [teaches(case) for case in cases if case.role != "test"]
    return len(pool) > 2 * sum(pool)
