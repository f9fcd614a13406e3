"""Short jobs beside the queue, one after the other: reading facts and results, adding files, reports."""

from ..signals import Signal
from .runner import Runner


class Helpers:
    """Runs jobs in order. A job's facts may hold `event(event)` and `done(outcome)`, which are called.

    Signal: `ended(outcome)`, before the job's own `done`.
    """

    def __init__(self):
        self.ended = Signal()
        self._runner = Runner()
        self._runner.reported.connect(self._onEvent)
        self._runner.ended.connect(self._onEnded)
        self._waiting = []

    def add(self, job):
        """Run a job, now or when those before it have ended."""
        self._waiting.append(job)
        self._start()

    def isBusy(self):
        return self._runner.isRunning() or bool(self._waiting)

    def drop(self):
        """Nobody waits for the answers any more."""
        self._waiting.clear()
        self._runner.drop()

    def _start(self):
        if self._waiting and not self._runner.isRunning():
            self._runner.start(self._waiting.pop(0))

    def _onEvent(self, event):
        take = self._runner.job.facts.get("event")
        if take:
            take(event)

    def _onEnded(self, outcome):
        self.ended.emit(outcome)
        done = outcome.job.facts.get("done")
        if done:
            done(outcome)
        self._start()
