"""How the time or the steps of self-training are shared out: first model, pseudo-labels, rounds."""

from __future__ import annotations

from dataclasses import dataclass

from MedSSLLib.config.run import RunConfig
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.stages import stage_budget

LEAST_OF_ROUND = (
    0.25  # of its equal share, that a round trains even where predictions take the rest
)
MOST_PREDICTING = 0.5  # share of a time limit that predictions may take; not from the paper


@dataclass(frozen=True)
class Schedule:
    """The budgets of a run's stages.

    With a time limit the prediction of pseudo-labels is part of it: what the first prediction took
    is kept free for the later ones, and the rounds share what is left.

    Attributes:
        config: of the run.
        rounds: how many.
        first: share of the run for the first model, 0 where it is not trained here.
        closing: seconds after the last round, in times of a prediction of all pseudo-labels.
    """

    config: RunConfig
    rounds: int
    first: float
    closing: float = 0.0

    @property
    def share(self) -> float:
        """Share of a round where predictions took no time."""
        return (1 - self.first) / self.rounds

    @property
    def _minutes(self) -> float:
        return 60 * (self.config.training.minutes or 0)

    def stage_one(self) -> Budget:
        """The budget of the first model; the time left is that of the whole run."""
        budget = stage_budget(self.config, self.first)
        if self._minutes:
            budget.after(seconds=(1 - self.first) * self._minutes)
        else:
            budget.after(steps=self.rounds * self._steps)
        return budget

    def affordable(self, spent: float, predicted: float) -> int:
        """How many rounds there is time for: predictions take at most half of what is left.

        Args:
            spent: seconds before the first prediction of pseudo-labels.
            predicted: seconds that it took.
        """
        if not self._minutes or not predicted:
            return self.rounds
        room = MOST_PREDICTING * (self._minutes - spent) / predicted - self.closing
        return max(1, min(self.rounds, int(room)))

    def round(self, number: int, spent: float, predicted: float) -> Budget:
        """The budget of a round whose pseudo-labels have been made.

        Args:
            number: from 1.
            spent: seconds so far, of training and of predictions.
            predicted: seconds that the last prediction took.
        """
        later = self.rounds - number
        if not self._minutes:
            budget = stage_budget(self.config, self.share)
            budget.after(steps=later * self._steps, seconds=(later + self.closing) * predicted)
            return budget
        equal = (self._minutes - spent - (later + self.closing) * predicted) / (later + 1)
        seconds = max(equal, LEAST_OF_ROUND * self.share * self._minutes)
        budget = Budget(seconds=seconds)
        budget.after(seconds=later * (seconds + predicted) + self.closing * predicted)
        return budget

    def left(
        self, number: int, spent: float, taken: float, done: float, step_time: float | None
    ) -> float | None:
        """Seconds to the end of the run while pseudo-labels are predicted.

        None where the time of a step is not known and steps are counted.

        Args:
            number: round whose pseudo-labels are made.
            spent: seconds before them.
            taken: seconds that they have taken so far.
            done: fraction of them that is made, > 0.
            step_time: seconds of a step.
        """
        predicted, later = taken / done, self.rounds - number
        rest = predicted - taken + (later + self.closing) * predicted
        if self._minutes:
            least = LEAST_OF_ROUND * self.share * self._minutes * (later + 1)
            return max(self._minutes - spent - taken, rest + least)
        if step_time is None:
            return None
        return rest + (later + 1) * self._steps * step_time

    @property
    def _steps(self) -> int:
        return max(1, round(self.config.training.steps * self.share))
