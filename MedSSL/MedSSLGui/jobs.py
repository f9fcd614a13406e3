"""Jobs: one command of the library each, in its own process. Events come back as signals; nothing here blocks.

The queue lives as long as the application: a reload of the module finds it again (`sharedQueue`).
"""

import time
from dataclasses import dataclass, field

import qt
import slicer
from slicer.i18n import tr as _

from . import processes
from .lines import LineSplitter, parseEvent

ASK_SECONDS = 30.0
_LOG_LINES = 400
_MESSAGES = {1: "failed", 2: "failed", 3: "cancelled", 4: "stopped"}


@dataclass
class Job:
    """What to run: arguments of `PythonSlicer`, a title for people, and facts for whoever asked."""

    title: str
    arguments: list
    facts: dict = field(default_factory=dict)


@dataclass
class Outcome:
    """How a job ended. state: done, failed, cancelled, stopped (by a guard) or crashed."""

    job: Job
    state: str
    exitCode: int
    message: str
    log: list


class Runner(qt.QObject):
    """Runs one process: lines in, events out."""

    reported = qt.Signal(object)
    line = qt.Signal(object)
    ended = qt.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._process = None
        self.job = None
        self._reset()

    def _reset(self):
        self.log, self._error, self._cancelled, self._finished = [], "", False, False
        self._out, self._errors = LineSplitter(), LineSplitter()

    def isRunning(self):
        return self._process is not None

    def start(self, job):
        """Start a job. A program that cannot be started ends at once, with a message."""
        self._reset()
        self.job = job
        program = processes.pythonExecutable(slicer.app.slicerHome)
        if not program:
            self._error = _("PythonSlicer was not found beside the application.")
            self._end("failed", -1)
            return
        process = qt.QProcess(
            self
        )  # owned by Qt: Python would delete it inside its own last signal
        process.setEnvironment(processes.jobEnvironment())
        process.readyReadStandardOutput.connect(self._readOutput)
        process.readyReadStandardError.connect(self._readErrors)
        process.finished.connect(
            lambda: self._onFinished()
        )  # its arguments differ between Qt versions
        process.errorOccurred.connect(self._onProcessError)
        self._process = process
        process.start(program, list(job.arguments))

    def cancel(self, seconds=None):
        """Ask the job to stop; after `seconds` (ASK_SECONDS) end it and everything it started."""
        if not self._process or self._cancelled:
            return
        self._cancelled = True
        process = self._process
        if not processes.ask(int(process.processId())):
            self.kill()
            return
        delay = ASK_SECONDS if seconds is None else seconds
        qt.QTimer.singleShot(
            int(1000 * delay), lambda: self.kill() if self._process is process else None
        )

    def kill(self):
        """End the job's whole process tree now."""
        if self._process:
            processes.endTree(int(self._process.processId()))
            if self._process:
                self._process.kill()

    def stopAndWait(self, seconds=4.0):
        """For the application's end: ask, wait a little, then end the tree."""
        process = self._process
        if not process:
            return
        self.cancel(seconds)
        if not process.waitForFinished(int(1000 * seconds)):
            self.kill()
            process.waitForFinished(1000)

    def _readOutput(self):
        if self._process:
            self._take(self._out.feed(bytes(self._process.readAllStandardOutput().data())))

    def _readErrors(self):
        if self._process:
            self._take(self._errors.feed(bytes(self._process.readAllStandardError().data())))

    def _take(self, lines):
        for text in lines:
            event = parseEvent(text)
            if event is None:
                self._remember(text)
                continue
            self._finished = event["event"] == "done"
            if event["event"] == "error":
                self._error = str(event.get("message", "")) or self._error
            if event["event"] in ("error", "warning"):
                self._remember(str(event.get("message", "")))
            self.reported.emit(event)

    def _remember(self, text):
        if text.strip():
            self.log = self.log[1 - _LOG_LINES :] + [text]
            self.line.emit(text)

    def _onFinished(self):
        if not self._process:
            return
        exitCode, crashed = (
            int(self._process.exitCode()),
            self._process.exitStatus() == qt.QProcess.CrashExit,
        )
        self._readOutput()
        self._readErrors()
        self._take(self._out.finish() + self._errors.finish())
        if not crashed and (exitCode == 0 or (exitCode == 1 and self._finished)):
            state = "done"  # with 1 some cases could not be used; the warnings name them
        elif self._cancelled or (exitCode == 3 and not crashed):
            state = "cancelled"
        elif crashed or exitCode not in _MESSAGES:
            state = "crashed"
        else:
            state = _MESSAGES[exitCode]
        self._end(state, exitCode)

    def _onProcessError(self, error):
        if error == qt.QProcess.FailedToStart and self._process:
            self._error = _("The program could not be started: {text}").format(
                text=self._process.errorString()
            )
            self._end("failed", -1)

    def _end(self, state, exitCode):
        process, self._process = self._process, None
        if process:
            process.deleteLater()
        message = self._error or (self.log[-1] if self.log else "")
        if state == "crashed":
            message = _("The job ended unexpectedly (exit code {code}). {last}").format(
                code=exitCode, last=self._error or " ".join(self.log[-3:])
            )
        self.ended.emit(Outcome(self.job, state, exitCode, message, list(self.log)))


class JobQueue(qt.QObject):
    """One running job, one waiting. Progress is handed on at most ten times a second."""

    WAITING = 1
    changed = qt.Signal()
    started = qt.Signal(object)
    progress = qt.Signal(object)
    reported = qt.Signal(object)
    line = qt.Signal(object)
    finished = qt.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.waiting = []
        self.runner = Runner()
        self.runner.reported.connect(self._onEvent)
        self.runner.line.connect(self._onLine)
        self.runner.ended.connect(self._onEnded)
        self._lastProgress = None
        self._lastTime = 0.0
        self._flush = qt.QTimer()
        self._flush.setInterval(100)
        self._flush.timeout.connect(self._emitProgress)

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
        following = (
            self.waiting.pop(0)
            if self.waiting and outcome.state in ("done", "failed", "stopped")
            else None
        )
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
        slicer.app.aboutToQuit.connect(queue.stopNow)
    return queue
