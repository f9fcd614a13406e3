"""Panel 4: fine-tuning and self-training, live curves, the list of runs."""

import qt
import slicer
from slicer.i18n import tr as _

from .. import advice, commands
from ..curves import Curves, paint, toPlotView
from ..jobs import Job
from .base import Panel, cell, choose, chosen, fillCombo, selectedRows, setUpTable


class TrainPanel(Panel):
    """Initialisation, options, Fine-tune, Self-train, Resume, curves and runs."""

    NAME = "Train"

    def __init__(self, session, parent=None):
        super().__init__(session, parent)
        self.curves, self._shownRun = Curves(), ""
        ui = self.ui
        fillCombo(ui.trainPresetComboBox, [(name, key) for key, name in advice.presets()])
        choose(ui.trainPresetComboBox, "standard")
        fillCombo(
            ui.semiComboBox,
            [(_("not used by fine-tuning"), "none"), (_("Mean Teacher"), "mean-teacher")],
        )
        fillCombo(
            ui.matchingComboBox, [(_("across scans"), "inter"), (_("within a scan"), "intra")]
        )
        setUpTable(ui.runsTable, [_("Run"), _("Kind"), _("Start"), _("State"), _("Dice")], 0)
        ui.fineTuneButton.clicked.connect(lambda: self.fineTune())
        ui.selfTrainButton.clicked.connect(lambda: self.selfTrain())
        ui.resumeTrainButton.clicked.connect(lambda: self.resume())
        ui.plotButton.clicked.connect(lambda: self.openPlot())
        ui.reportButton.clicked.connect(lambda: self.report())
        ui.runsTable.itemSelectionChanged.connect(lambda: self._onRunSelected())
        session.queue.started.connect(self._onStarted)
        session.queue.progress.connect(self._onProgress)
        session.queue.reported.connect(self._onEvent)
        self._repaint = qt.QTimer(self.widget)
        self._repaint.setSingleShot(True)
        self._repaint.setInterval(250)
        self._repaint.timeout.connect(lambda: self._paint())
        self.refresh()
        self._paint()

    # -- what the buttons do --------------------------------------------------------------------------------------

    def settings(self):
        """What the panel holds, for `commands`."""
        ui = self.ui
        models = [
            run["name"]
            for run in self._finished()
            if advice.command(run) in ("finetune", "selftrain")
        ]
        picked = self._selectedRun()
        source = picked if picked in models else (models[-1] if models else "")
        return {
            "init": chosen(ui.initComboBox),
            "semi": chosen(ui.semiComboBox),
            "mixup": ui.mixupSpinBox.value,
            "freeze": ui.freezeCheckBox.checked,
            "preset": chosen(ui.trainPresetComboBox),
            "minutes": ui.trainMinutesSpinBox.value,
            "device": "auto",
            "rounds": ui.roundsSpinBox.value,
            "matching": chosen(ui.matchingComboBox),
            "source": source,
        }

    def fineTune(self):
        """Queue the fine-tuning."""
        self._start(_("Fine-tuning"), commands.finetune, "finetune")

    def selfTrain(self):
        """Queue the self-training."""
        self._start(_("Self-training"), commands.selftrain, "selftrain")

    def _start(self, title, build, kind):
        if not self.store.isOpen():
            return
        self.session.saveAll()
        self.session.stepper.finish()
        if not self.store.labelledCases():
            self.session.say(_("No case is annotated yet: mark slices in panel 3."), "warning")
            return
        self.session.startJob(title, build(self.store.folder, self.settings()), kind=kind)

    def resume(self):
        """Go on with the latest unfinished training."""
        run = self._unfinished()
        if run:
            self.session.startJob(
                _("Training, resumed"),
                commands.resume(self.store.folder, run),
                kind=advice.command(run),
            )

    def report(self):
        """Write the HTML report of the selected run beside its weights and show it."""
        run = self._selectedRun()
        if not run:
            self.session.say(_("Select a run in the table first."), "warning")
            return
        out = self.store.folder / "runs" / run / "report.html"
        self.session.runHelper(
            Job(
                _("Writing the report"),
                commands.report(self.store.folder, run, out),
                {"done": lambda outcome: self._openReport(outcome, out)},
            )
        )

    def _openReport(self, outcome, out):
        if outcome.state == "done":
            self.session.say(_("Report written: {path}").format(path=out), "done")
            if not slicer.app.testingEnabled():
                qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(out)))

    # -- curves ---------------------------------------------------------------------------------------------------

    def _onStarted(self, job):
        if job.facts.get("kind") in ("pretrain", "finetune", "selftrain"):
            self.curves, self._shownRun = Curves(), job.title
            self._repaint.start()

    def _onProgress(self, event):
        self.curves.add(event)
        left = advice.duration(event.get("seconds_left"))
        self.ui.timeLeftLabel.setText(_("{time} left").format(time=left) if left else "")
        if not self._repaint.isActive():
            self._repaint.start()

    def _onEvent(self, event):
        if event["event"] == "metric":
            self.curves.add(event)
            self._repaint.start()
        elif event["event"] in ("done", "error"):
            self.ui.timeLeftLabel.setText("")

    def _onRunSelected(self):
        name = self._selectedRun()
        if name and self.session.queue.current is None:
            self.curves, self._shownRun = Curves.ofRun(str(self.store.folder / "runs" / name)), name
            self._paint()

    def _paint(self):
        label = self.ui.curvesLabel
        dark = label.palette.color(qt.QPalette.Window).lightness() < 128
        label.setPixmap(paint(self.curves, label.width, 150, dark))

    def openPlot(self):
        """Hand the curves to a Slicer plot view."""
        if not self.curves.series:
            self.session.say(_("There are no curves yet."), "warning")
            return
        chart = toPlotView(self.curves, self._shownRun or "run")
        logic = slicer.modules.plots.logic()
        if hasattr(logic, "ShowChartInLayout"):
            logic.ShowChartInLayout(chart)

    # -- runs -----------------------------------------------------------------------------------------------------

    def _finished(self):
        return [run for run in self.store.runs() if run["finished"]]

    def _unfinished(self):
        if self.session.queue.current is not None:
            return None
        runs = [run for run in self.store.runs() if run["resumable"] and not run["finished"]]
        return next(
            (run for run in reversed(runs) if advice.command(run) in ("finetune", "selftrain")),
            None,
        )

    def _selectedRun(self):
        rows = selectedRows(self.ui.runsTable)
        item = self.ui.runsTable.item(rows[0], 0) if rows else None
        return item.text() if item else ""

    def _showRuns(self):
        table, runs = self.ui.runsTable, self.store.runs()
        rows = [self._texts(run) for run in runs]
        if rows == getattr(self, "_rows", None):
            return
        self._rows = rows
        table.blockSignals(True)
        table.setRowCount(len(rows))
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                table.setItem(row, column, cell(text))
        table.blockSignals(False)

    @staticmethod
    def _texts(run):
        config = run["config"] or {}
        config = config.get("config", config)
        dice = (run["metrics"] or {}).get("dice")
        dice = dice.get("mean") if isinstance(dice, dict) else dice
        options = (
            config.get("options") if config.get("command") == "selftrain" else None
        )  # GCL has another `start`
        start = (options or {}).get("start") or config.get("init", "none")
        state = (
            _("done")
            if run["finished"]
            else (_("can be resumed") if run["resumable"] else _("unfinished"))
        )
        return [
            run["name"],
            config.get("method", "")
            if config.get("command") == "pretrain"
            else config.get("command", ""),
            _("random") if start == "none" else str(start),
            run["problem"] or state,
            f"{dice:.3f}" if isinstance(dice, float) else "",
        ]

    def refresh(self):
        starts = [(_("Random weights"), "none")]
        starts += [
            (f"{run['name']}", run["name"])
            for run in self._finished()
            if advice.command(run) == "pretrain"
        ]
        had = self.ui.initComboBox.count
        fillCombo(self.ui.initComboBox, starts)
        if len(starts) > had and len(starts) > 1:
            self.ui.initComboBox.setCurrentIndex(len(starts) - 1)
        self._showRuns()
        ready = bool(self.store.labelledCases())
        hint = "" if ready else _("Annotate at least one slice in panel 3, or add a label, first.")
        self.setHint(self.ui.trainHint, hint)
        models = [
            run for run in self._finished() if advice.command(run) in ("finetune", "selftrain")
        ]
        unlabelled = [case for case in self.store.cases if case.role == "unlabelled"]
        self.ui.fineTuneButton.setEnabled(self.store.isOpen())
        self.ui.selfTrainButton.setEnabled(ready)
        self.ui.selfTrainButton.setToolTip(
            _("Improve {model} with {n} unlabelled scans.").format(
                model=models[-1]["name"], n=len(unlabelled)
            )
            if models
            else _("Trains a first model, then improves it with the unlabelled scans.")
        )
        self.ui.resumeTrainButton.setEnabled(self._unfinished() is not None)

    def cleanup(self):
        self._repaint.stop()
        for signal, slot in (
            (self.session.queue.started, self._onStarted),
            (self.session.queue.progress, self._onProgress),
            (self.session.queue.reported, self._onEvent),
        ):
            signal.disconnect(slot)
