"""How the time or the steps of self-training are shared out: first model, pseudo-labels, rounds."""

from __future__ import annotations

from dataclasses import dataclass

from MedSSLLib.config.run import RunConfig
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.stages import stage_budget

LEAST = 0.25  # of its equal share, that a round trains even where predictions take the rest


@dataclass(frozen=True)
class Schedule:
    """The budgets of a run's stages.

    With a time limit the prediction of pseudo-labels is part of it: what the first prediction took
    is kept free for the later ones, and the rounds share what is left.

    Attributes:
        config: of the run.
        rounds: how many.
        first: share of the run for the first model, 0 where it is not trained here.
    """

    config: RunConfig
    rounds: int
    first: float

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
            budget.after(steps=later * self._steps, seconds=later * predicted)
            return budget
        equal = (self._minutes - spent - later * predicted) / (later + 1)
        seconds = max(equal, LEAST * self.share * self._minutes)
        budget = Budget(seconds=seconds)
        budget.after(seconds=later * (seconds + predicted))
        return budget

    def left_after_prediction(
        self, number: int, spent: float, predicted: float, step_time: float | None
    ) -> float | None:
        """Seconds from the end of a prediction to the end of the run, None where a step's time is
        not known.

        Args:
            number: round whose pseudo-labels are made.
            spent: seconds until then.
            predicted: seconds that they take.
            step_time: seconds of a step.
        """
        later = self.rounds - number
        if self._minutes:
            least = LEAST * self.share * self._minutes * (later + 1)
            return max(self._minutes - spent, least + later * predicted)
        if step_time is None:
            return None
        return (later + 1) * self._steps * step_time + later * predicted

    @property
    def _steps(self) -> int:
        return max(1, round(self.config.training.steps * self.share))
