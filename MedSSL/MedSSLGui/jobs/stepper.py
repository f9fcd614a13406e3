"""Long work in the application's own thread, in small steps between which the windows stay alive.

Python threads stand still while Qt waits for events in Slicer, so work that must touch the scene is written as a
generator that yields often; a timer runs it for a few milliseconds at a time. A generator that waits for a process
yields the process's runner (see `calls.py`): it is then asked again a little later.
"""

import logging
import time

import qt

BUDGET_SECONDS = 0.015
_WAITING_MS = 15


class Stepper:
    """Runs generators one after the other. `done` and `failed` callbacks tell how each ended.

    parent: the widget with which it ends.
    """

    def __init__(self, parent=None):
        self._tasks = []
        self._timer = qt.QTimer(parent)
        self._timer.setInterval(0)
        self._timer.timeout.connect(lambda: self._tick())

    def start(self, steps, done=None, failed=None):
        """Queue a generator; `done(result)` gets its return value, `failed(error)` the exception."""
        self._tasks.append((steps, done, failed))
        self._timer.start()

    def whenIdle(self, call):
        """`call()` once everything that waits now has ended: at once when nothing does."""
        if self._tasks:
            self.start(iter(()), lambda result: call())
        else:
            call()

    def isBusy(self):
        return bool(self._tasks)

    def stop(self):
        """Drop everything that waits."""
        tasks, self._tasks = self._tasks, []
        self._timer.stop()
        for steps, _done, _failed in tasks:
            if hasattr(steps, "close"):
                steps.close()

    def finish(self):
        """Run everything that waits to its end, now (when the scene or Slicer closes)."""
        while self._tasks:
            runner = self._advance(float("inf"))
            if runner is not None:
                runner.wait(0.05)

    def _tick(self):
        runner = self._advance(BUDGET_SECONDS)
        self._timer.setInterval(0 if runner is None else _WAITING_MS)
        if not self._tasks:
            self._timer.stop()

    def _advance(self, seconds):
        """Go on with the first task; returns the runner that it waits for, if any."""
        if not self._tasks:
            return None
        steps, done, failed = self._tasks[0]
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                runner = next(steps)
                if runner is not None:
                    return runner
            return None
        except StopIteration as finished:
            outcome, argument = done, finished.value
        except Exception as error:
            logging.debug("step failed", exc_info=True)
            outcome, argument = failed, error
        if self._tasks and self._tasks[0][0] is steps:
            self._tasks.pop(0)
        if outcome:
            outcome(argument)
        return None


def runToEnd(steps):
    """The return value of a generator of steps, run in one go: for scripts and tests without a window."""
    while True:
        try:
            runner = next(steps)
        except StopIteration as finished:
            return finished.value
        if runner is not None:
            runner.wait(0.05)
