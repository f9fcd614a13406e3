"""The process of `medssl live`: a model that learns while one draws, asked by lines on its standard input.

It lives as long as the application, as the queue of jobs does. The process gives itself a low priority.
"""

import qt
import slicer

from ..signals import Signal
from .runner import Runner

END_SECONDS = 180
"""What a process that was told to stop has for writing its run, before it is ended."""
_QUIT_SECONDS = 8


class LiveProcess:
    """At most one process that learns, and those that are writing their run after `stop`.

    Signals: `reported(event)` of the one that learns; `changed()`; `ended(outcome)` of each, whose job has the name of
    the run, "" when nothing was learnt, among its facts (`run`).
    """

    def __init__(self):
        self.reported, self.changed, self.ended = Signal(), Signal(), Signal()
        self._runner = None
        self._ending = []

    @property
    def job(self):
        """The job that learns, or None."""
        return self._runner.job if self._runner is not None else None

    def isOn(self):
        """Whether a process learns and answers."""
        return self._runner is not None

    def isEnding(self):
        """Whether a process that was told to stop is still writing its run."""
        return bool(self._ending)

    def start(self, job):
        """Start the process of a job. Nothing happens while one learns or is ending."""
        if self.isOn() or self.isEnding():
            return
        runner = Runner()
        runner.reported.connect(lambda event: self._onEvent(runner, event))
        runner.ended.connect(lambda outcome: self._onEnded(runner, outcome))
        self._runner = runner
        runner.start(job)
        self.changed.emit()

    def ask(self, *words):
        """Send a request, its words one by one ("show", case, axis, index); False when no process learns."""
        if self._runner is None:
            return False
        return self._runner.send(" ".join(str(word) for word in words))

    def stop(self):
        """Let the process write its run and end; `ended` tells when it has."""
        runner = self._runner
        if runner is None:
            return
        self.ask("stop")
        runner.endInput()
        self._runner = None
        self._ending.append(runner)
        qt.QTimer.singleShot(1000 * END_SECONDS, lambda: self._endLate(runner))
        self.changed.emit()

    def _endLate(self, runner):
        if runner in self._ending:
            runner.cancel()

    def stopNow(self):
        """The application ends: the run is written if that takes seconds, else it can be gone on with."""
        self.stop()
        for runner in list(self._ending):
            if not runner.wait(_QUIT_SECONDS):
                runner.stopAndWait(1.0)

    def _onEvent(self, runner, event):
        if event["event"] == "done":
            runner.job.facts["run"] = event.get("run") or ""
        if runner is self._runner:
            self.reported.emit(event)

    def _onEnded(self, runner, outcome):
        if runner is self._runner:
            self._runner = None
        if runner in self._ending:
            self._ending.remove(runner)
        self.ended.emit(outcome)
        self.changed.emit()


def sharedLive():
    """The application's one live process; a reload of the module finds it again."""
    process = getattr(slicer.modules, "medsslLive", None)
    if process is None:
        process = LiveProcess()
        slicer.modules.medsslLive = process
        slicer.app.aboutToQuit.connect(lambda: process.stopNow())
    return process
