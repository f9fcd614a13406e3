"""Live: a model learns while one draws and shows what it would draw."""

import qt
from slicer.i18n import tr as _

from ..jobs import commands
from ..jobs.install import seemsMissing
from ..jobs.liveprocess import sharedLive
from ..jobs.runner import Job
from ..project.livescores import Scores
from ..scene.preview import Preview
from .curveview import CurveWords, makeCurveView
from .proposing import Proposing

_LOOK_MS = 300
_QUIET_MS = 3000  # a stroke is seldom the last one: what is half drawn should not be learnt


class LivePart:
    """Part of the Annotate panel: the switch, the preview, and how well the model did before it learnt."""

    def __init__(self, panel):
        self.panel, self.session, self.store, self.ui = (
            panel,
            panel.session,
            panel.store,
            panel.ui,
        )
        self.process = sharedLive()
        self.preview, self.scores = None, Scores()
        self._files, self._state, self._asked = {}, {}, None
        self._isPaused = False
        self._takes = False  # whether a preview is being read
        self.proposing = Proposing(self)
        self._timers()
        words = CurveWords(
            "liveCurvesWidget",
            _("Dice of each slice that you drew, predicted before the model learnt from it"),
            _("slices drawn"),
            "",
            110,
        )
        self.curves = makeCurveView(self.ui.liveCurvesHolder, words)
        self.ui.liveCurvesHolder.layout().addWidget(self.curves.widget)
        self._connect()
        self._show()

    def _timers(self):
        self._look, self._quiet = qt.QTimer(self.panel.widget), qt.QTimer(self.panel.widget)
        self._look.setInterval(_LOOK_MS)
        self._look.timeout.connect(lambda: self.askShown())
        self._quiet.setSingleShot(True)
        self._quiet.setInterval(_QUIET_MS)
        self._quiet.timeout.connect(lambda: self.saveNow())

    def _connect(self):
        self.ui.liveCheckBox.toggled.connect(lambda on: self.switch(on))
        self.ui.acceptSliceButton.clicked.connect(lambda: self.proposing.accept())
        self.process.reported.connect(self._onEvent)
        self.process.changed.connect(self._show)
        self.process.ended.connect(self._onEnded)
        self.session.queue.changed.connect(self._onQueue)

    def cleanup(self):
        """The panel goes away, and the process with it."""
        self.end()
        self.letGo()
        self.curves.cleanup()
        self.process.reported.disconnect(self._onEvent)
        self.process.changed.disconnect(self._show)
        self.process.ended.disconnect(self._onEnded)
        self.session.queue.changed.disconnect(self._onQueue)

    # -- the switch -----------------------------------------------------------------------------------------------

    def isOn(self):
        """Whether a process learns from this project."""
        return self.process.isOn()

    def switch(self, on):
        """Start the process, or let it write its run and end; what was drawn is saved first."""
        if on == self.isOn():
            return
        self.panel.proposals.withdraw()
        self.panel.save()
        self.session.stepper.whenIdle(self._start if on else self.end)

    def _start(self):
        missing = seemsMissing()
        if missing and not self.session.installer.verified:
            self.session.installNeeded.emit(", ".join(missing))
            self.session.say(_("Live needs more Python packages: press Install."), "warning")
        elif self.store.isOpen() and not self.process.isEnding():
            encoders, before = self.store.encoders(), self.store.unfinished("live")
            name = before["name"] if before else None
            arguments = commands.live(self.store.folder, encoders[-1] if encoders else None, name)
            self._forget()
            self.process.start(Job(_("Live"), arguments, {"project": str(self.store.folder)}))
            self._look.start()
            if self.panel.alive():
                self.watch(self.panel.view)
            self._onQueue()
        self._show()

    def _forget(self):
        """What an earlier process said."""
        self.scores, self._files, self._state = Scores(), {}, {}
        self._isPaused = False
        self.proposing.forget()

    def end(self):
        """Let the process write its run and end; no preview is shown any more."""
        self._quiet.stop()
        self._look.stop()
        self._files = {}
        self.letGo()
        self.process.stop()

    def _onEnded(self, outcome):
        self.end()
        project = outcome.job.facts.get("project")
        if not self.store.isOpen() or project != str(self.store.folder):
            return
        if not self.store.refresh():
            self.store.changed.emit()
        if outcome.state == "done":
            run = outcome.job.facts.get("run")
            text = _("Live has ended. {run} is a model like any other: predict with it in panel 5.")
            nothing = _("Live has ended. No slice was marked, so nothing was learnt.")
            self.session.say(text.format(run=run) if run else nothing, "done")
        elif outcome.state == "cancelled":
            self.session.say(_("Live was interrupted. Switch it on again to go on."), "warning")
        else:
            text = _("Live has ended: {message}")
            self.session.say(text.format(message=outcome.message), "error")

    def _onQueue(self):
        """A job and Live would only slow each other down: Live waits."""
        busy = self.session.queue.current is not None
        if self.isOn() and busy != self._isPaused:
            self._isPaused = busy
            self.process.ask("pause" if busy else "resume")
        self._show()

    # -- what the process says ------------------------------------------------------------------------------------

    def _onEvent(self, event):
        take = {
            "progress": self._onProgress,
            "score": self._onScore,
            "preview": self._onPreview,
            "suggestion": self.proposing.onSuggestion,
            "warning": lambda event: self.session.say(event.get("message", ""), "warning"),
        }.get(event["event"])
        if take is not None:
            take(event)

    def _onProgress(self, event):
        known = {name: event.get(name) for name in ("state", "slices", "cases")}
        if known != self._state:
            self._state = known
            self._show()

    def _onScore(self, event):
        self.proposing.note(event)
        if self.scores.add(event):
            self._show()

    def _onPreview(self, event):
        """A new prediction of a case: it is shown now where that case is, else when it is brought up."""
        waiting = self._files.setdefault(event["case"], [])
        if event.get("slices") is None:
            waiting.clear()  # the whole case: what came before is in it
        waiting.append(event)
        if self.preview is not None and self.preview.view.name == event["case"]:
            self._showPreview(self.preview)

    def _showPreview(self, preview):
        waiting = self._files.get(preview.view.name)
        if waiting and not self._takes:
            event, self._takes = waiting.pop(0), True
            steps = preview.takeSteps(event["path"], event.get("axis"), event.get("slices"))
            self.session.stepper.start(
                steps, lambda changed: self._onShown(preview), self._onNotShown
            )

    def _onShown(self, preview):
        self._takes = False
        if preview is self.preview:
            self.proposing.fillWanted()
        if self.preview is not None:
            self._showPreview(self.preview)

    def _onNotShown(self, error):
        """The file was taken away meanwhile, or the case lies on another grid: then it has no preview."""
        self._takes = False
        if not isinstance(error, OSError):
            self.letGo()
            self.session.sayError(error)

    # -- the case -------------------------------------------------------------------------------------------------

    def watch(self, view):
        """A case is shown: have it predicted."""
        self.letGo()
        if self.isOn():
            self.preview = Preview(view, self.store.classes(), self.store.project.values)
            self.askShown()
            self._showPreview(self.preview)

    def letGo(self):
        """No case is shown any more."""
        self._asked = None
        self.proposing.letGo()
        if self.preview is not None:
            self.preview.remove()
            self.preview = None

    def refresh(self):
        """The project changed: a case that is no longer in it has no preview, and other classes make another one."""
        if self.preview is not None and self.store.isOpen():
            if self.store.case(self.preview.view.name) is None:
                self.letGo()
            elif self.preview.values != tuple(self.store.project.values):
                self.watch(self.preview.view)
        self._show()

    def askShown(self):
        """Have the slice predicted first that one looks at."""
        view = self.panel.view
        if self.preview is None or view is None or not view.isAlive():
            return
        axis = self.panel.axis()
        index = view.shownSlice(axis)
        asked = (view.name, axis, index)
        if index is not None and asked != self._asked:
            self._asked = asked
            self.process.ask("show", *asked)

    # -- saving ---------------------------------------------------------------------------------------------------

    def saveNow(self):
        """While Live is on: what is marked is saved at once, so that it is learnt."""
        self._quiet.stop()
        if self.isOn():
            self.panel.save()

    def saveSoon(self):
        """Somebody drew: it is saved once the hand rests."""
        if self.isOn():
            self._quiet.start()

    def onSaved(self):
        """The label file and the record of annotated slices are written."""
        self.process.ask("refresh")

    # -- what the panel shows -------------------------------------------------------------------------------------

    def _show(self):
        """The switch, what Live does, and what its scores say."""
        ui, on, ending = self.ui, self.isOn(), self.process.isEnding()
        box = ui.liveCheckBox
        box.setVisible(commands.offered("live"))
        box.blockSignals(True)
        box.setChecked(on)
        box.blockSignals(False)
        box.setEnabled(on or (bool(self.store.cases) and not ending))
        self.panel.setHint(ui.liveLabel, self._words(on, ending))
        ui.acceptSliceButton.setVisible(on)
        ui.acceptSliceButton.setEnabled(self.panel.view is not None)
        sentence = self.scores.sentence() if on else ""
        self.panel.setHint(ui.liveScoreLabel, sentence)
        ui.liveCurvesHolder.setVisible(bool(sentence))
        if sentence:
            self.curves.show(self.scores.curves(), _("before it was learnt"))

    def _words(self, on, ending):
        if ending:
            return _("Live is writing its run …")
        if not on:
            return ""
        job = self.session.queue.current
        if job is not None:
            return _("Live waits while this runs: {title}.").format(title=job.title)
        learns = _("Learning from {slices} slices in {cases} cases.")
        words = {
            "waiting": _("Live begins with the first slice that you mark."),
            "training": learns,
            "idle": _("What you drew is learnt ({slices} slices). Draw on, or press Next."),
        }.get(self._state.get("state"), _("Live is starting …"))
        return words.format(slices=self._state.get("slices"), cases=self._state.get("cases"))
