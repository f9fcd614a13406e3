"""What the panels share: the project, the queue, messages. Panels talk to each other only through this."""

import os

from slicer.i18n import tr as _

from .jobs import commands
from .jobs.helpers import Helpers
from .jobs.install import Installer, seemsMissing, soundsLikeMissing
from .jobs.jobqueue import sharedQueue
from .jobs.liveprocess import sharedLive
from .jobs.ready import sharedReady
from .jobs.runner import Job
from .jobs.stepper import Stepper
from .project import words
from .project.store import ProjectStore
from .scene import annotation, grids, nodes
from .signals import Signal


class Session:
    """One per panel.

    Signals: `said(text, kind)`, kind is info, busy, done, warning or error; `installNeeded(problem)`;
    `projectChanged()`, `projectLeaving()`; `caseWanted(name)`, `correctionWanted(what)`, `sliceMarked(index)`;
    `imageShown(case)` when a panel shows a case's image.
    """

    def __init__(self, parameters, widget=None):
        self.said, self.installNeeded = Signal(), Signal()
        self.projectChanged, self.projectLeaving = Signal(), Signal()
        self.caseWanted, self.sliceMarked, self.correctionWanted = Signal(), Signal(), Signal()
        self.parameters = parameters
        self.store = ProjectStore()
        self.queue = sharedQueue()
        self.stepper = Stepper(widget)
        self.installer = Installer()
        self.savers = []
        self.trainSettings = dict  # the Train panel's settings, for who trains from elsewhere
        self.helpers, self.readers = Helpers(), Helpers()
        self.helpers.ended.connect(self._onHelperEnded)
        self.readers.ended.connect(self._onHelperEnded)
        self._pending = None
        self.store.changed.connect(self._onStoreChanged)
        self.queue.finished.connect(self._onFinished)
        self.installer.checked.connect(self._onChecked)

    def close(self):
        """The panel goes away; jobs go on."""
        self.saveAll()
        self.stepper.finish()
        self.queue.finished.disconnect(self._onFinished)
        for part in (self.helpers, self.readers, self.installer):
            part.drop()
        for signal in vars(self).values():
            if isinstance(signal, Signal):
                signal.clear()  # the widgets behind it go away

    # -- messages -----------------------------------------------------------------------------------------------

    def say(self, text, kind="info"):
        """Show a message above the panels, in Slicer's status bar and in the log."""
        self.said.emit(str(text), kind)

    def sayError(self, error):
        """Show what went wrong."""
        self.say(error, "error")

    def guarded(self, call):
        """`call()` with the library's and the scene's errors shown instead of raised; True when it went well."""
        from MedSSLLib.core.errors import MedSSLError

        try:
            call()
        except (MedSSLError, nodes.SceneError, OSError) as error:
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
        advice = words.nextStep(self.store)
        if made[0]:
            self.say(_("New project. {advice}").format(advice=advice), "done")
        else:
            self.say(advice)
        self.readFacts()
        return True

    def axisNames(self, name):
        """Anatomical names of a case's axes, when it is in the scene; None before."""
        node = nodes.findNode(name, "image")
        try:
            return annotation.axisNames(grids.ijkToRas(node)[:3, :3]) if node else None
        except nodes.SceneError:
            return None

    def readFacts(self, cases=()):
        """Have sizes and thumbnails read by another process."""
        missing = [case.name for case in self.store.cases if case.name not in self.store.facts]
        wanted = list(cases) or missing
        if wanted:
            names = wanted if len(wanted) <= 200 else []
            arguments = commands.facts(self.store.folder, names)
            self.readers.add(Job(_("Reading headers"), arguments, {"event": self._takeFact}))

    def _takeFact(self, event):
        if event["event"] == "image" and self.store.isOpen():
            self.store.setFact(event)

    def runHelper(self, job):
        """Run a short job beside the queue, one after the other."""
        self.helpers.add(job)

    def isHelperBusy(self):
        return self.helpers.isBusy() or self.readers.isBusy() or self.stepper.isBusy()

    def _onHelperEnded(self, outcome):
        if outcome.state not in ("done", "cancelled"):
            failed = _("{title} failed.").format(title=outcome.job.title)
            self.sayError(outcome.message or failed)
        if self.store.isOpen():
            self.guarded(self.store.refresh)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def saveAll(self):
        """Have every panel write what it holds."""
        for saver in self.savers:
            saver()

    def startJob(self, title, arguments, **facts):
        """Queue a job of the library, once the annotation is saved. False when there is no project.

        facts: kind says what the panels do with its events; tells=True: the panel itself says how it ended.
        """
        if not self.store.isOpen():
            self.say(_("Choose a project folder first."), "warning")
            return False
        job = Job(title, arguments, {"project": str(self.store.folder), **facts})
        self.saveAll()
        self.stepper.whenIdle(lambda: self._takeJob(job))
        return True

    def getReady(self):
        """Have a process wait for the next job, which then begins at once; not while one computes."""
        computes = self.queue.current or sharedLive().isOn()
        if self.store.isOpen() and self.store.cases and not computes and not seemsMissing():
            sharedReady().prepare()

    def _takeJob(self, job):
        if seemsMissing() and not self.installer.verified:
            self._pending = job
            self.say(_("Checking the installation …"), "busy")
            self.installer.verify()
        else:
            self._queueJob(job)

    def _queueJob(self, job):
        if not self.queue.add(job):
            self.say(_("One job runs and one waits already. Cancel one of them first."), "warning")
        elif job in self.queue.waiting:
            self.say(_("{title} will start when the running job ends.").format(title=job.title))

    def _onChecked(self, problem):
        job, self._pending = self._pending, None
        if problem:
            self.installNeeded.emit(problem)
            self.sayError(
                _("Not ready to compute: {problem}. Press Install.").format(problem=problem)
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
