"""What the panels share: the project, the queue, messages. Panels talk to each other only through this."""

import os

import qt
import slicer
from slicer.i18n import tr as _

from . import advice, annotation, commands, scene
from .install import Installer, seemsMissing, soundsLikeMissing
from .jobs import Job, Runner, sharedQueue
from .store import ProjectStore
from .tasks import Stepper


class Session(qt.QObject):
    """One per panel. `said(text, kind)`, kind is info, busy, done, warning or error."""

    said = qt.Signal(object, object)
    installNeeded = qt.Signal(object)
    projectChanged = qt.Signal()
    projectLeaving = qt.Signal()
    caseWanted = qt.Signal(object)
    sliceMarked = qt.Signal(object)
    correctionWanted = qt.Signal(object)

    def __init__(self, parameters, parent=None):
        super().__init__(parent)
        self.parameters = parameters
        self.store = ProjectStore()
        self.queue = sharedQueue()
        self.stepper = Stepper()
        self.installer = Installer()
        self.savers = []
        self._helper = Runner()
        self._helper.reported.connect(self._onHelperEvent)
        self._helper.ended.connect(self._onHelperEnded)
        self._helperJobs = []
        self._pending = None
        self.store.changed.connect(self._onStoreChanged)
        self.queue.finished.connect(self._onFinished)
        self.installer.checked.connect(self._onChecked)

    def close(self):
        """The panel goes away; jobs go on."""
        self.saveAll()
        self.stepper.finish()
        self.queue.finished.disconnect(self._onFinished)
        self._helper.kill()

    # -- messages -----------------------------------------------------------------------------------------------

    def say(self, text, kind="info"):
        """Show a message in the status line."""
        self.said.emit(str(text), kind)

    def sayError(self, error):
        """Show what went wrong."""
        self.say(error, "error")

    def guarded(self, call):
        """`call()` with the library's and the scene's errors shown instead of raised; True when it went well."""
        from MedSSLLib.core.errors import MedSSLError

        try:
            call()
        except (MedSSLError, scene.SceneError, OSError) as error:
            self.sayError(error)
            return False
        return True

    def _onStoreChanged(self):
        self.projectChanged.emit()

    # -- project ------------------------------------------------------------------------------------------------

    def openProject(self, path):
        """Open or make the project at `path` and read its cases; True on success."""
        made = []
        if self.store.isOpen() and os.path.abspath(str(path)) != str(self.store.folder):
            self.projectLeaving.emit()
        if not self.guarded(lambda: made.append(self.store.openOrCreate(path))):
            return False
        self.parameters.projectPath = str(self.store.folder)
        self.say(
            _("New project. ") + advice.nextStep(self.store)
            if made[0]
            else advice.nextStep(self.store),
            "done" if made[0] else "info",
        )
        self.readFacts()
        return True

    def axisNames(self, name):
        """Anatomical names of a case's axes, when it is in the scene; None before."""
        node = scene.findNode(name, "image")
        try:
            return annotation.axisNames(scene.ijkToRas(node)[:3, :3]) if node else None
        except scene.SceneError:
            return None

    def readFacts(self, cases=()):
        """Have sizes and thumbnails read by another process."""
        missing = [case.name for case in self.store.cases if case.name not in self.store.facts]
        wanted = list(cases) or missing
        if wanted:
            names = wanted if len(wanted) <= 200 else []
            self.runHelper(Job("facts", commands.facts(self.store.folder, names)))

    def runHelper(self, job):
        """Run a short job beside the queue, one after the other."""
        self._helperJobs.append(job)
        self._startHelper()

    def _startHelper(self):
        if self._helperJobs and not self._helper.isRunning():
            self._helper.start(self._helperJobs.pop(0))

    def isHelperBusy(self):
        return self._helper.isRunning() or bool(self._helperJobs) or self.stepper.isBusy()

    def _onHelperEvent(self, event):
        take = self._helper.job.facts.get("event")
        if take and event["event"] == "result":
            take(event)
        elif event["event"] == "fact" and self.store.isOpen():
            self.store.setFact(event)

    def _onHelperEnded(self, outcome):
        done = outcome.job.facts.get("done")
        if outcome.state != "done":
            self.say(
                outcome.message or _("{title} failed.").format(title=outcome.job.title), "error"
            )
        self.guarded(self.store.refresh) if self.store.isOpen() else None
        if done:
            done(outcome)
        self._startHelper()

    # -- jobs ---------------------------------------------------------------------------------------------------

    def saveAll(self):
        """Have every panel write what it holds."""
        for saver in self.savers:
            saver()

    def startJob(self, title, arguments, **facts):
        """Queue a job of the library; the annotation is saved first. Returns True when it was taken."""
        if not self.store.isOpen():
            self.say(_("Choose a project folder first."), "warning")
            return False
        self.saveAll()
        self.stepper.finish()
        job = Job(title, arguments, {"project": str(self.store.folder), **facts})
        if seemsMissing() and not self.installer.verified:
            self._pending = job
            self.say(_("Checking the installation …"), "busy")
            self.installer.verify()
            return True
        return self._queueJob(job)

    def _queueJob(self, job):
        if not self.queue.add(job):
            self.say(_("One job runs and one waits already. Cancel one of them first."), "warning")
            return False
        if self.queue.current is not job and job in self.queue.waiting:
            self.say(
                _("{title} will start when the running job ends.").format(title=job.title), "info"
            )
        return True

    def _onChecked(self, problem):
        job, self._pending = self._pending, None
        if problem:
            self.installNeeded.emit(problem)
            self.say(
                _("Not ready to compute: {problem}. Press Install.").format(problem=problem),
                "error",
            )
        elif job:
            self._queueJob(job)
        else:
            self.installNeeded.emit("")
            self.say(_("The installation works."), "done")

    def _onFinished(self, outcome):
        if soundsLikeMissing(outcome.message):
            self.installNeeded.emit(outcome.message)
        if self.store.isOpen() and outcome.job.facts.get("project") == str(self.store.folder):
            if not self.store.refresh():
                self.store.changed.emit()

    # -- views --------------------------------------------------------------------------------------------------

    def showVolume(self, volumeNode, foreground=None, opacity=0.0):
        """Show a volume in all slice views, fitted, with an optional map over it."""
        slicer.util.setSliceViewerLayers(
            background=volumeNode, foreground=foreground, foregroundOpacity=opacity, fit=True
        )
