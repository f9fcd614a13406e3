"""A process that has imported the library and waits for a job: a click need not wait for PyTorch and MONAI.

It lives as long as the application, as the queue of jobs does, but ends by itself when it is not needed for a while.
"""

import contextlib
import json

import qt
import slicer

from . import processes

COMMANDS = ("pretrain", "finetune", "selftrain", "live", "suggest", "complete", "predict")
"""What it is kept for: the commands that import PyTorch."""
LEAST_FREE_GIB = 4.0
"""It takes 0.7 GiB; with less free memory than this there is none."""
IDLE_MINUTES = 10
_LIBRARY = ["-m", "MedSSLLib"]
_ARGUMENTS = [*_LIBRARY, "ready"]


class ReadyProcess:
    """At most one process that waits."""

    def __init__(self):
        self._process = None
        self._environment = []
        self._away = False
        self._idle = qt.QTimer()
        self._idle.setSingleShot(True)
        self._idle.timeout.connect(lambda: self.drop())

    def prepare(self):
        """See to it that one waits, where there is memory for it."""
        if self._away:
            return
        if self._process is None or self._process.state() == qt.QProcess.NotRunning:
            self._start()
        self._idle.start(1000 * 60 * IDLE_MINUTES)

    def take(self, arguments):
        """The process, told to run a job's arguments, or None: none waits, or it waits for other commands."""
        if arguments[:2] != _LIBRARY or arguments[2] not in COMMANDS or not self._isRunning():
            return None
        if self._environment != processes.jobEnvironment():
            self.drop()
            return None
        process, self._process = self._process, None
        self._idle.stop()
        process.readAllStandardOutput()
        process.readAllStandardError()
        process.write((json.dumps([str(word) for word in arguments[2:]]) + "\n").encode())
        return process

    def drop(self):
        """None waits any more."""
        process, self._process = self._process, None
        self._idle.stop()
        if not process:
            return
        if process.state() != qt.QProcess.NotRunning:
            processes.endTree(int(process.processId()))
            process.kill()
            process.waitForFinished(1000)
        process.deleteLater()

    @contextlib.contextmanager
    def away(self):
        """None waits meanwhile."""
        self.drop()
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def _isRunning(self):
        return self._process is not None and self._process.state() == qt.QProcess.Running

    def _start(self):
        self.drop()
        program = processes.pythonExecutable(slicer.app.slicerHome)
        if not program or _freeGiB() < LEAST_FREE_GIB:
            return
        self._environment = processes.jobEnvironment()
        process = qt.QProcess(slicer.app)
        process.setEnvironment(self._environment)
        self._process = process
        process.start(program, list(_ARGUMENTS))


def _freeGiB():
    """Free memory; none where psutil, which comes with what is installed, is missing."""
    try:
        import psutil
    except ImportError:
        return 0.0
    return psutil.virtual_memory().available / 2**30


def sharedReady():
    """The application's one waiting process; a reload of the module finds it again."""
    process = getattr(slicer.modules, "medsslReady", None)
    if process is None:
        process = ReadyProcess()
        slicer.modules.medsslReady = process
        slicer.app.aboutToQuit.connect(lambda: process.drop())
    return process
