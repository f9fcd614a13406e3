"""How long a training stage lasts: a number of steps, or a time limit the schedule is fitted to."""

from __future__ import annotations

import math
import time


class Budget:
    """Progress from 0 to 1 over a run of fixed steps or fixed time.

    With a time limit the number of remaining steps is the time left over the measured time of a
    step, so the schedule always ends annealed: ``p += (1 - p) / remaining``. With fixed steps the
    same formula gives ``step / steps``.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None) -> None:
        if (steps is None) == (seconds is None):
            raise ValueError("give either steps or seconds")
        self._steps, self._seconds = steps, seconds
        self.step, self.progress, self._elapsed, self._paused = 0, 0.0, 0.0, 0.0
        self._step_time: float | None = None
        self._later = 0, 0.0
        self._begin = self._last = time.monotonic()

    def start(self, step: int = 0, progress: float = 0.0, elapsed: float = 0.0) -> None:
        """Begin, or continue from a checkpoint."""
        self.step, self.progress, self._elapsed = step, progress, elapsed
        self._begin = self._last = time.monotonic()

    def after(self, steps: int = 0, seconds: float = 0.0) -> None:
        """What comes after this stage: steps that take as long as its own, and seconds. It counts
        for the time left alone.
        """
        self._later = steps, seconds

    @property
    def elapsed(self) -> float:
        """Seconds used so far, over all sessions of the run."""
        return self._elapsed + time.monotonic() - self._begin

    def pause(self, seconds: float) -> None:
        """Do not count `seconds`, of a validation, say, as part of a step.

        They still count against the limit.
        """
        self._last += seconds

    def advance(self) -> tuple[int, float, float]:
        """One step is done: (step, progress, elapsed seconds)."""
        now = time.monotonic()
        taken, self._last = now - self._last, now
        if self.step and self._step_time is None:
            self._step_time = taken
        elif self._step_time is not None:
            self._step_time = 0.9 * self._step_time + 0.1 * taken
        self.step += 1
        self.progress = self.step / self._steps if self._steps else self._fitted()
        return self.step, self.progress, self.elapsed

    def _fitted(self) -> float:
        if self._step_time is None:
            return self.progress
        remaining = self._remaining()
        return self.progress + (1 - self.progress) / (remaining + 1) if remaining else 1.0

    def _remaining(self) -> int:
        """Steps still to come."""
        if self._steps:
            return max(0, self._steps - self.step)
        assert self._seconds is not None
        step_time = self._step_time or self._seconds / 1000
        return max(0, math.floor((self._seconds - self.elapsed) / step_time))

    @property
    def steps(self) -> int:
        """Steps in all, as far as known now."""
        return self.step + self._remaining() if self._seconds else int(self._steps or 0)

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds to the end, with what comes after; None before the second step."""
        if self._step_time is None:
            return None
        steps, seconds = self._later
        return (self._remaining() + steps) * self._step_time + seconds

    @property
    def rate(self) -> float:
        """Steps per second; 0 before the second step."""
        return 1 / self._step_time if self._step_time else 0.0

    @property
    def finished(self) -> bool:
        """Whether the budget is used up: the progress, and so the schedule, has reached its end."""
        return self.progress >= 1


class EndlessBudget(Budget):
    """No end: progress rises to the end of the warm-up within some steps and stays there.

    So :func:`~MedSSLLib.training.optimisers.warmup_cosine` rises to 1 and stays.
    """

    def __init__(self, warmup: float, rising: int) -> None:
        """With the share `warmup` of the schedule that the first `rising` steps run through."""
        super().__init__(seconds=math.inf)
        self._warmup, self._rising = warmup, rising

    def _fitted(self) -> float:
        return self._warmup * min(1.0, self.step / self._rising) if self._rising else self._warmup

    @property
    def steps(self) -> int:
        """0: there is no last step."""
        return 0

    @property
    def seconds_left(self) -> float | None:
        """None: there is no end."""
        return None

    @property
    def finished(self) -> bool:
        """Never."""
        return False
