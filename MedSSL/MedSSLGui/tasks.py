"""Long work in the application's own thread, in small steps between which the windows stay alive.

Python threads stand still while Qt waits for events in Slicer, so work that must touch the scene is written as a
generator that yields often; a timer runs it for a few milliseconds at a time.
"""

import logging
import time

import qt

BUDGET_SECONDS = 0.02


class Stepper(qt.QObject):
    """Runs generators one after the other. `done` and `failed` callbacks tell how each ended."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._tasks = []
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._tick)

    def start(self, steps, done=None, failed=None):
        """Queue a generator; `done(result)` gets its return value, `failed(error)` the exception."""
        self._tasks.append((steps, done, failed))
        self._timer.start()

    def isBusy(self):
        return bool(self._tasks)

    def stop(self):
        """Drop everything that waits."""
        tasks, self._tasks = self._tasks, []
        self._timer.stop()
        for steps, _done, _failed in tasks:
            steps.close()

    def finish(self):
        """Run everything that waits to its end, now (before a job that needs it, and when Slicer closes)."""
        while self._tasks:
            self._advance(float("inf"))

    def _tick(self):
        self._advance(BUDGET_SECONDS)

    def _advance(self, seconds):
        if not self._tasks:
            self._timer.stop()
            return
        steps, done, failed = self._tasks[0]
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                next(steps)
            return
        except StopIteration as finished:
            outcome, argument = done, finished.value
        except Exception as error:
            logging.debug("step failed", exc_info=True)
            outcome, argument = failed, error
        if self._tasks and self._tasks[0][0] is steps:
            self._tasks.pop(0)
        if outcome:
            outcome(argument)
