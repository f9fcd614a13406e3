"""Puts the panels together and follows the scene."""

import qt
import slicer
from slicer.util import VTKObservationMixin

from .jobs.ready import sharedReady
from .panels.annotate import AnnotatePanel
from .panels.data import DataPanel
from .panels.jobbar import JobBar
from .panels.pretrain import PretrainPanel
from .panels.review import ReviewPanel
from .panels.train import TrainPanel
from .project import words
from .scene import nodes
from .session import Session

_PANELS = (
    ("data", DataPanel),
    ("pretrain", PretrainPanel),
    ("annotate", AnnotatePanel),
    ("train", TrainPanel),
    ("review", ReviewPanel),
)


class Shell(VTKObservationMixin):
    """The module's whole panel. `widget` is the loaded MedSSL.ui, `makeParameters()` gives the scene's settings."""

    def __init__(self, widget, makeParameters):
        VTKObservationMixin.__init__(self)
        self.widget, self._makeParameters = widget, makeParameters
        self.ui = slicer.util.childWidgetVariables(widget)
        self.session = Session(makeParameters(), widget)
        self.bar = JobBar(self.session, self.ui)
        self.panels = {}
        for name, kind in _PANELS:
            self._addPanel(name, kind)
        self._refresh = qt.QTimer(widget)
        self._refresh.setSingleShot(True)
        self._refresh.setInterval(0)
        self._refresh.timeout.connect(lambda: self.refresh())
        self._shortcuts, self._tag, self.entered, self.sceneWasClosed = [], None, False, False
        self._connect()
        widget.setMRMLScene(slicer.mrmlScene)
        self._bind(self.session.parameters)

    def _addPanel(self, name, kind):
        panel = kind(self.session)
        self.panels[name] = panel
        section = self.section(name)
        layout = section.layout()
        layout.setContentsMargins(2, 2, 2, 2)
        layout.addWidget(panel.widget)
        section.contentsCollapsed.connect(lambda collapsed: self._onFolded(name, collapsed))

    def _connect(self):
        self.session.projectChanged.connect(self._refreshSoon)
        self.session.queue.changed.connect(self._refreshSoon)
        self.session.queue.reported.connect(self._onEvent)
        self.session.projectLeaving.connect(self._onProjectLeaving)
        self.session.correctionWanted.connect(self._onCorrection)
        scene = slicer.vtkMRMLScene
        self.addObserver(slicer.mrmlScene, scene.StartCloseEvent, self._onSceneClosing)
        self.addObserver(slicer.mrmlScene, scene.EndCloseEvent, self._onSceneClosed)

    def section(self, name):
        """The collapsible section of a panel."""
        return getattr(self.ui, f"{name}Section")

    # -- settings ------------------------------------------------------------------------------------------------

    def _bind(self, parameters):
        """Connect the widgets to a parameter node (a new one, after the scene was closed)."""
        if self._tag is not None:
            self.session.parameters.disconnectGui(self._tag)
        self.session.parameters = parameters
        self._tag = parameters.connectGui(slicer.util.childWidgetVariables(self.widget))
        self.sceneWasClosed = False
        if self.session.store.isOpen():
            parameters.projectPath = str(self.session.store.folder)
        elif parameters.projectPath:
            # the path line may show this text already, and would then tell nothing of it
            self.session.openProject(parameters.projectPath)

    def _onSceneClosing(self, caller, event):
        self._letGo()
        self.sceneWasClosed = True
        self.session.say(words.nextStep(self.session.store))

    def _onSceneClosed(self, caller, event):
        if self.entered:
            self._bind(self._makeParameters())

    def _letGo(self):
        """The nodes of the shown cases are no longer ours: write what was drawn."""
        self.panels["annotate"].onSceneClosing()
        self.panels["review"].onSceneClosing()

    # -- sections ------------------------------------------------------------------------------------------------

    def open(self, name):
        """Open one section and close the others."""
        for other, _kind in _PANELS:
            self.section(other).collapsed = other != name

    def _onFolded(self, name, collapsed):
        """One section at a time: the panel stays short, and what belongs to a section ends with it."""
        if collapsed:
            self.panels[name].onFolded()
        else:
            self.open(name)
            self.panels[name].onOpened()
            self._getReady()
        self._followKeys()

    def _getReady(self):
        """The sections after the first are where jobs are started that take long to begin."""
        if self.entered and self.section("data").collapsed:
            self.session.getReady()

    # -- module --------------------------------------------------------------------------------------------------

    def _refreshSoon(self):
        self._refresh.start()

    def refresh(self):
        """Follow the project."""
        for panel in self.panels.values():
            panel.refresh()
        self._getReady()

    def enter(self):
        """The module is shown."""
        self.entered = True
        if self.sceneWasClosed:
            self._bind(self._makeParameters())
        if self.session.store.isOpen():
            self.session.guarded(self.session.store.refresh)
        for panel in self.panels.values():
            panel.enter()
        self._followKeys()
        self._getReady()

    def _followKeys(self):
        """The keys of the Annotate panel work while it is open: else they mark slices of a case that is not in view."""
        wanted = self.entered and not self.section("annotate").collapsed
        if wanted and not self._shortcuts:
            self._addShortcuts()
        elif not wanted:
            self._removeShortcuts()

    def _addShortcuts(self):
        annotate = self.panels["annotate"]
        for keys, call in (
            ("Shift+M", annotate.markShown),
            ("Shift+N", lambda: annotate.step(1)),
            ("Shift+P", lambda: annotate.step(-1)),
            ("Shift+A", annotate.live.proposing.accept),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), slicer.util.mainWindow() or self.widget)
            shortcut.activated.connect(call)
            self._shortcuts.append(shortcut)

    def _removeShortcuts(self):
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    def exit(self):
        """The module is left."""
        self.entered = False
        for panel in self.panels.values():
            panel.exit()
        self._removeShortcuts()
        sharedReady().drop()  # elsewhere packages may be changed, whose files it holds open

    def cleanup(self):
        """The panel goes away; a running job goes on."""
        self.exit()
        self.session.stepper.finish()
        self.removeObservers()
        self.session.projectChanged.disconnect(self._refreshSoon)
        self._refresh.stop()
        self.session.queue.changed.disconnect(self._refreshSoon)
        self.session.queue.reported.disconnect(self._onEvent)
        for panel in self.panels.values():
            panel.cleanup()
        self.bar.close()
        self.session.close()

    # -- events --------------------------------------------------------------------------------------------------

    def _onEvent(self, event):
        job = self.session.queue.current
        kind = job.facts.get("kind") if job else ""
        if event["event"] in ("metric", "done") and kind == "suggest":
            self.panels["annotate"].takeSuggestion(event)
        elif event["event"] == "done" and kind == "complete" and event.get("path"):
            self.panels["annotate"].fillIn.takeCompletion(event["path"], event.get("case"))

    def _onCorrection(self, wanted):
        # first, so that the panel does not open with the case that was annotated last
        self.panels["annotate"].fillIn.takeCorrection(wanted)
        self.open("annotate")

    def _onProjectLeaving(self):
        """Write what was drawn into its own project; its nodes are no cases of the next one."""
        self.session.stepper.finish()
        self._letGo()
        self.panels["annotate"].log.forget()
        nodes.forgetCases()
