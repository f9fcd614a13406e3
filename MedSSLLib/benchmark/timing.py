"""Timing a work and its reference in turn.

Whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Seconds of a work and of its reference, pair by pair.

    Attributes:
        part: what kind of work, 'step', 'predict' or 'views'.
        name: which one of them.
        ours: seconds of the work.
        reference: seconds of the reference, one for each of ``ours``.
        goal: what the ratio should be at most, or at least if ``faster``.
        faster: the ratio is reference / ours, how many times faster the work is; else ours /
            reference, its overhead.
        facts: sizes and the like, for the record.
    """

    part: str
    name: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    goal: float
    faster: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair."""
        found = []
        for own, theirs in zip(self.ours, self.reference, strict=True):
            found.append(theirs / own if self.faster else own / theirs)
        return found

    def record(self) -> dict[str, Any]:
        """What a result file keeps of a comparison.

        The median of the ratios decides, the extremes say how far to trust it.
        """
        ratio = statistics.median(self.ratios)
        return {
            "part": self.part,
            "name": self.name,
            "ratio": round(ratio, 3),
            "lowest": round(min(self.ratios), 3),
            "highest": round(max(self.ratios), 3),
            "goal": self.goal,
            "faster": self.faster,
            "met": ratio >= self.goal if self.faster else ratio <= self.goal,
            "ours_s": statistics.median(self.ours),
            "reference_s": statistics.median(self.reference),
            "ratios": [round(value, 3) for value in self.ratios],
            **self.facts,
        }


def in_turn(
    ours: Work, reference: Work, pairs: int, *, warm: int = 1, device: torch.device | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of ``pairs`` calls of the work, and of the reference, taken in turn.

    Args:
        ours: the work.
        reference: what it is compared with.
        pairs: how many of each are timed.
        warm: pairs before them that do not count.
        device: a CUDA device is waited for before the clock is read.
    """
    own, theirs = [], []
    for number in range(warm + pairs):
        times = seconds(ours, device), seconds(reference, device)
        if number >= warm:
            own.append(times[0])
            theirs.append(times[1])
    return tuple(own), tuple(theirs)


def seconds(work: Work, device: torch.device | None = None) -> float:
    """How long a call takes, with what it left running on the device."""
    begin = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
