"""One process of the library: lines in, events out as signals. Nothing here blocks."""

from dataclasses import dataclass, field

import qt
import slicer
from slicer.i18n import tr as _

from ..signals import Signal
from . import processes
from .lines import LineSplitter, parseEvent
from .ready import sharedReady

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


class Runner:
    """Runs one process. Signals: `reported(event)`, `line(text)`, `ended(outcome)`."""

    def __init__(self):
        self.reported, self.line, self.ended = Signal(), Signal(), Signal()
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
        waiting = sharedReady().take(list(job.arguments))
        # owned by the application: Python would delete it inside its own last signal
        process = waiting or qt.QProcess(slicer.app)
        process.readyReadStandardOutput.connect(lambda: self._readOutput())
        process.readyReadStandardError.connect(lambda: self._readErrors())
        # the arguments of `finished` differ between Qt versions
        process.finished.connect(lambda: self._onFinished())
        process.errorOccurred.connect(lambda error: self._onProcessError(error))
        self._process = process
        if not waiting:
            process.setEnvironment(processes.jobEnvironment())
            process.start(program, list(job.arguments))

    def send(self, text):
        """Write a line to the job's standard input; False when no job runs."""
        if not self._process:
            return False
        self._process.write(f"{text}\n".encode())
        return True

    def endInput(self):
        """Nothing more will be written: the job reads the end of its standard input."""
        if self._process:
            self._process.closeWriteChannel()

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
        qt.QTimer.singleShot(int(1000 * delay), lambda: self._killLate(process))

    def _killLate(self, process):
        if self._process is process:
            self.kill()

    def wait(self, seconds):
        """Block until the process ends, at most for so long. For work that must not be put off.

        Returns whether it has ended.
        """
        return not self._process or self._process.waitForFinished(int(1000 * seconds))

    def drop(self):
        """End the job; nobody is told of it any more."""
        for signal in (self.reported, self.line, self.ended):
            signal.clear()
        self.kill()
        self.job = None

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
        exitCode = int(self._process.exitCode())
        crashed = self._process.exitStatus() == qt.QProcess.CrashExit
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
