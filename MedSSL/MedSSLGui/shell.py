"""Puts the panels together and follows the scene."""

import qt
import slicer
from slicer.util import VTKObservationMixin

from . import advice
from .caseview import forgetCases
from .jobbar import JobBar
from .panels.annotate import AnnotatePanel
from .panels.data import DataPanel
from .panels.pretrain import PretrainPanel
from .panels.review import ReviewPanel
from .panels.train import TrainPanel
from .session import Session

_PANELS = (
    ("data", DataPanel),
    ("pretrain", PretrainPanel),
    ("annotate", AnnotatePanel),
    ("train", TrainPanel),
    ("review", ReviewPanel),
)


class Shell(VTKObservationMixin):
    """The module's whole panel. `widget` is the loaded MedSSL.ui."""

    def __init__(self, widget, parameters):
        VTKObservationMixin.__init__(self)
        self.widget = widget
        self.ui = slicer.util.childWidgetVariables(widget)
        self.session = Session(parameters)
        self.bar = JobBar(self.session, self.ui)
        self.panels = {}
        for name, kind in _PANELS:
            panel = kind(self.session)
            self.panels[name] = panel
            layout = self.section(name).layout()
            layout.setContentsMargins(4, 4, 4, 4)
            layout.addWidget(panel.widget)
        self._refresh = qt.QTimer(widget)
        self._refresh.setSingleShot(True)
        self._refresh.setInterval(0)
        self._refresh.timeout.connect(lambda: self.refresh())
        self.session.projectChanged.connect(self._refreshSoon)
        self.session.queue.changed.connect(self._refreshSoon)
        self.session.queue.reported.connect(self._onEvent)
        self.session.projectLeaving.connect(self._onProjectLeaving)
        self.session.correctionWanted.connect(self._onCorrection)
        self._shortcuts, self._tag, self.sceneWasClosed = [], None, False
        self.addObserver(
            slicer.mrmlScene, slicer.vtkMRMLScene.StartCloseEvent, self._onSceneClosing
        )
        widget.setMRMLScene(slicer.mrmlScene)
        self.setParameters(parameters)

    def section(self, name):
        """The collapsible section of a panel."""
        return getattr(self.ui, f"{name}Section")

    def setParameters(self, parameters):
        """Connect the widgets to a parameter node (again, after the scene was closed)."""
        if self._tag is not None:
            self.session.parameters.disconnectGui(self._tag)
        self.session.parameters = parameters
        self._tag = parameters.connectGui(slicer.util.childWidgetVariables(self.widget))
        self.sceneWasClosed = False
        if parameters.projectPath and not self.session.store.isOpen():
            self.panels["data"].ui.projectPathEdit.setCurrentPath(parameters.projectPath)

    def _refreshSoon(self):
        self._refresh.start()

    def refresh(self):
        """Follow the project."""
        for panel in self.panels.values():
            panel.refresh()

    def open(self, name):
        """Open one section and close the others."""
        for other, _kind in _PANELS:
            self.section(other).collapsed = other != name

    def enter(self):
        """The module is shown."""
        if self.session.store.isOpen():
            self.session.guarded(self.session.store.refresh)
        for panel in self.panels.values():
            panel.enter()
        annotate = self.panels["annotate"]
        for keys, call in (
            ("Shift+M", annotate.markShown),
            ("Shift+N", lambda: annotate.step(1)),
            ("Shift+P", lambda: annotate.step(-1)),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), slicer.util.mainWindow() or self.widget)
            shortcut.activated.connect(call)
            self._shortcuts.append(shortcut)

    def exit(self):
        """The module is left."""
        for panel in self.panels.values():
            panel.exit()
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

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

    def _onEvent(self, event):
        job = self.session.queue.current
        kind = job.facts.get("kind") if job else ""
        if event["event"] in ("metric", "done") and kind == "suggest":
            self.panels["annotate"].takeSuggestion(event)
        elif event["event"] == "done" and kind == "complete" and event.get("path"):
            self.panels["annotate"].takeCompletion(event["path"], event.get("case"))

    def _onCorrection(self, wanted):
        self.open("annotate")
        self.panels["annotate"].takeCorrection(wanted)

    def _onProjectLeaving(self):
        """Write what was drawn into its own project; its nodes are no cases of the next one."""
        self.session.stepper.finish()
        self.panels["annotate"].onSceneClosing()
        self.panels["review"].onSceneClosing()
        self.panels["annotate"].log.forget()
        forgetCases()

    def _onSceneClosing(self, caller, event):
        self.sceneWasClosed = True
        self.panels["annotate"].onSceneClosing()
        self.panels["review"].onSceneClosing()
        self.session.say(advice.nextStep(self.session.store))
