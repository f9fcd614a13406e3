"""The queue of jobs: one runs, one waits. It lives as long as the application, so a reload of the module finds it."""

import time

import qt
import slicer

from ..signals import Signal
from .runner import Runner


class JobQueue:
    """One running job, one waiting. Progress is handed on at most ten times a second.

    Signals: `changed()`, `started(job)`, `progress(event)`, `reported(event)`, `line(text)`, `finished(outcome)`.
    """

    WAITING = 1

    def __init__(self):
        self.changed, self.started, self.finished = Signal(), Signal(), Signal()
        self.progress, self.reported, self.line = Signal(), Signal(), Signal()
        self.waiting = []
        self.runner = Runner()
        self.runner.reported.connect(self._onEvent)
        self.runner.line.connect(self._onLine)
        self.runner.ended.connect(self._onEnded)
        self._lastProgress = None
        self._lastTime = 0.0
        self._flush = qt.QTimer()
        self._flush.setInterval(100)
        self._flush.timeout.connect(lambda: self._emitProgress())

    @property
    def current(self):
        """The running job, or None."""
        return self.runner.job if self.runner.isRunning() else None

    def add(self, job):
        """Run the job, now or next. Returns False when one runs and one waits already."""
        if self.current is None:
            self._start(job)
        elif len(self.waiting) < self.WAITING:
            self.waiting.append(job)
            self.changed.emit()
        else:
            return False
        return True

    def cancel(self, seconds=None):
        """Drop the waiting job and ask the running one to stop."""
        self.waiting.clear()
        self.runner.cancel(seconds)
        self.changed.emit()

    def stopNow(self):
        """The application ends."""
        self.waiting.clear()
        self._flush.stop()
        self.runner.stopAndWait()

    def _start(self, job):
        self._lastProgress = None
        self._flush.start()
        self.started.emit(job)
        self.runner.start(job)
        self.changed.emit()

    def _onEvent(self, event):
        if event["event"] != "progress":
            self._emitProgress()
            self.reported.emit(event)
            return
        self._lastProgress = event
        if time.monotonic() - self._lastTime > 0.1:
            self._emitProgress()

    def _onLine(self, text):
        self.line.emit(text)

    def _emitProgress(self):
        event, self._lastProgress = self._lastProgress, None
        if event is not None:
            self._lastTime = time.monotonic()
            self.progress.emit(event)

    def _onEnded(self, outcome):
        self._emitProgress()
        self._flush.stop()
        following = None
        if self.waiting and outcome.state in ("done", "failed", "stopped"):
            following = self.waiting.pop(0)
        self.finished.emit(outcome)
        if following:
            self._start(following)
        self.changed.emit()


def sharedQueue():
    """The application's one queue. It outlives the panel, so a reload finds running jobs again."""
    queue = getattr(slicer.modules, "medsslJobQueue", None)
    if queue is None:
        queue = JobQueue()
        slicer.modules.medsslJobQueue = queue
        slicer.app.aboutToQuit.connect(lambda: queue.stopNow())
    return queue
