"""Panel 4: fine-tuning and self-training, live curves, the list of runs, models to share."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from ..jobs import commands
from ..jobs.runner import Job
from ..project import words
from ..project.curves import Curves
from .base import Panel, cell, choose, chosen, fillCombo, selectedRows, setUpTable
from .curveview import makeChart, makeCurveView, runWords

_TRAINING = ("pretrain", "finetune", "selftrain")
_REPAINT_MS = 250


class TrainPanel(Panel):
    """Initialisation, options, Fine-tune, Self-train, Resume, curves and runs."""

    NAME = "Train"

    def __init__(self, session):
        super().__init__(session)
        self.curves, self._shownRun, self._rows = Curves(), "", None
        ui = self.ui
        fillCombo(ui.trainPresetComboBox, [(name, key) for key, name in words.presets("finetune")])
        choose(ui.trainPresetComboBox, "standard")
        fillCombo(
            ui.semiComboBox,
            [
                (_("not used"), "none"),
                (_("Mean Teacher"), "mean-teacher"),
                (_("Mixing"), "mixing"),
            ],
        )
        setUpTable(ui.runsTable, [_("Run"), _("Kind"), _("State"), _("Dice"), _("Start")], 0)
        self.view = makeCurveView(ui.curvesHolder, runWords())
        ui.curvesHolder.layout().addWidget(self.view.widget)
        self._repaint = qt.QTimer(self.widget)
        self._repaint.setSingleShot(True)
        self._repaint.setInterval(_REPAINT_MS)
        self._repaint.timeout.connect(lambda: self._paint())
        self._connect()
        session.trainSettings = self.settings
        self.refresh()
        self._paint()

    def _connect(self):
        ui, queue = self.ui, self.session.queue
        ui.fineTuneButton.clicked.connect(lambda: self.fineTune())
        ui.selfTrainButton.clicked.connect(lambda: self.selfTrain())
        ui.resumeTrainButton.clicked.connect(lambda: self.resume())
        ui.plotButton.clicked.connect(lambda: self.openPlot())
        ui.reportButton.clicked.connect(lambda: self.report())
        ui.exportModelButton.clicked.connect(lambda: self._askExport())
        ui.importModelButton.clicked.connect(lambda: self._askImport())
        ui.runsTable.itemSelectionChanged.connect(lambda: self._onRunSelected())
        queue.started.connect(self._onStarted)
        queue.progress.connect(self._onProgress)
        queue.reported.connect(self._onEvent)

    def cleanup(self):
        self._repaint.stop()
        self.view.cleanup()
        queue = self.session.queue
        queue.started.disconnect(self._onStarted)
        queue.progress.disconnect(self._onProgress)
        queue.reported.disconnect(self._onEvent)

    # -- what the buttons do --------------------------------------------------------------------------------------

    def settings(self):
        """What the panel holds, for `commands`."""
        ui, models, picked = self.ui, self.store.models(), self.selectedRun()
        newest = models[-1] if models else ""
        return {
            "init": chosen(ui.initComboBox),
            "semi": chosen(ui.semiComboBox),
            "mixup": ui.mixupSpinBox.value,
            "freeze": ui.freezeCheckBox.checked,
            "preset": chosen(ui.trainPresetComboBox),
            "minutes": ui.trainMinutesSpinBox.value,
            "device": "auto",
            "rounds": ui.roundsSpinBox.value,
            "source": picked if picked in models else newest,
        }

    def fineTune(self):
        """Queue the fine-tuning."""
        self._start(_("Fine-tuning"), commands.finetune, "finetune")

    def selfTrain(self):
        """Queue the self-training."""
        self._start(_("Self-training"), commands.selftrain, "selftrain")

    def _start(self, title, build, kind):
        if self.store.isOpen():
            self.session.saveAll()
            self.session.stepper.whenIdle(lambda: self._startSaved(title, build, kind))

    def _startSaved(self, title, build, kind):
        if not self.store.labelledCases():
            self.session.say(_("No case is annotated yet: mark slices in panel 3."), "warning")
            return
        self.session.startJob(title, build(self.store.folder, self.settings()), kind=kind)

    def resume(self):
        """Go on with the latest unfinished training."""
        from MedSSLLib.project.advice import run_command

        run = self._unfinished()
        if run:
            arguments = commands.resume(self.store.folder, run)
            self.session.startJob(_("Training, resumed"), arguments, kind=run_command(run))

    def report(self):
        """Write the HTML report of the selected run beside its weights and show it."""
        run = self.selectedRun()
        if not run:
            self.session.say(_("Select a run in the table first."), "warning")
            return
        out = self.store.folder / "runs" / run / "report.html"
        self.session.say(_("Writing the report of {run} …").format(run=run), "busy")
        self._help(
            _("Writing the report"),
            commands.report(self.store.folder, run, out),
            lambda: self._openReport(out),
        )

    def _help(self, title, arguments, then):
        """A short job beside the queue; `then()` when it went well."""

        def done(outcome):
            if outcome.state == "done":
                then()

        self.session.runHelper(Job(title, arguments, {"done": done}))

    def _openReport(self, out):
        self.session.say(_("Report written: {path}").format(path=out), "done")
        if not slicer.app.testingEnabled():
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(out)))

    # -- models to share ------------------------------------------------------------------------------------------

    def exportModel(self, folder):
        """Write the selected model, else the newest one, with its card into a new folder."""
        models, run = self.store.models(), self.selectedRun()
        run = run if run in models else (models[-1] if models else "")
        if not run:
            self.session.say(_("There is no trained model yet."), "warning")
            return
        self.session.say(_("Exporting {run} …").format(run=run), "busy")
        text = _("{run} is exported to {path}: a MONAI bundle with its model card.")
        text = text.format(run=run, path=folder)
        arguments = commands.share(self.store.folder, run, folder)
        self._help(_("Exporting the model"), arguments, lambda: self.session.say(text, "done"))

    def importModel(self, path):
        """Take over an exported model (a folder), or the encoder of another program's weight file."""
        if not self.store.isOpen():
            self.session.say(_("Choose a project folder first."), "warning")
            return
        source = Path(path)
        taken = {run["name"].casefold() for run in self.store.runs()}
        name, number = source.stem, 2
        while name.casefold() in taken:
            name, number = f"{source.stem}-{number}", number + 1
        self.session.say(_("Importing {path} …").format(path=source.name), "busy")
        arguments = commands.take(self.store.folder, source, name)
        self._help(_("Importing the model"), arguments, lambda: self._onImported(name))

    def _onImported(self, name):
        self.store.changed.emit()
        if name in self.store.models():
            text = _(
                "{run} is imported. It segments in panel 5, and self-training can go on from it."
            )
        else:
            text = _("{run} is imported. Fine-tuning can start from it.")
        self.session.say(text.format(run=name), "done")

    def _askExport(self):
        parent = qt.QFileDialog.getExistingDirectory(self.widget, _("Export the model into"))
        if parent:
            run = self.selectedRun() or "model"
            folder, number = Path(parent) / run, 2
            while folder.exists():
                folder, number = Path(parent) / f"{run}-{number}", number + 1
            self.exportModel(folder)

    def _askImport(self):
        path = qt.QFileDialog.getExistingDirectory(self.widget, _("Import an exported model"))
        if path:
            self.importModel(path)

    # -- curves ---------------------------------------------------------------------------------------------------

    def _onStarted(self, job):
        if job.facts.get("kind") in _TRAINING:
            self.curves, self._shownRun = Curves(), job.title
            self._repaint.start()

    def _onProgress(self, event):
        self.curves.add(event)
        left = words.duration(event.get("seconds_left"))
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
        name = self.selectedRun()
        if name and self.session.queue.current is None:
            self.curves = Curves.ofRun(str(self.store.folder / "runs" / name))
            self._shownRun = name
            self._paint()

    def _paint(self):
        self.view.show(self.curves, self._shownRun or _("run"))

    def openPlot(self):
        """Hand the curves to a Slicer plot view."""
        if not self.curves.series:
            self.session.say(_("There are no curves yet."), "warning")
            return
        chart, _tables, _series = makeChart(
            self.curves, self._shownRun or _("run"), runWords().across
        )
        logic = slicer.modules.plots.logic()
        if hasattr(logic, "ShowChartInLayout"):
            logic.ShowChartInLayout(chart)

    # -- runs -----------------------------------------------------------------------------------------------------

    def _unfinished(self):
        if self.session.queue.current is not None:
            return None
        return self.store.unfinished("finetune", "selftrain")

    def selectedRun(self):
        """Name of the selected run, "" without one."""
        rows = selectedRows(self.ui.runsTable)
        item = self.ui.runsTable.item(rows[0], 0) if rows else None
        return item.text() if item else ""

    def _showRuns(self):
        table = self.ui.runsTable
        rows = [self._texts(run) for run in self.store.runs()]
        if rows == self._rows:
            return
        self._rows = rows
        table.blockSignals(True)
        table.setRowCount(len(rows))
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                table.setItem(row, column, cell(text))
        table.blockSignals(False)
        for column in (1, 2, 3):
            table.resizeColumnToContents(column)

    @staticmethod
    def _texts(run):
        from MedSSLLib.project.advice import run_config

        config = run_config(run)
        dice = (run["metrics"] or {}).get("dice")
        dice = dice.get("mean") if isinstance(dice, dict) else dice
        command = config.get("command", "")
        # only the start of self-training is among its options; GCL has another option `start`
        options = (config.get("options") or {}) if command == "selftrain" else {}
        start = options.get("start") or config.get("init", "none")
        if run["finished"]:
            state = _("done")
        else:
            state = _("can go on") if run["resumable"] else _("unfinished")
        return [
            run["name"],
            config.get("method", "") if command == "pretrain" else command,
            run["problem"] or state,
            f"{dice:.3f}" if isinstance(dice, float) else "",
            _("random") if start == "none" else str(start),
        ]

    def refresh(self):
        encoders = self.store.encoders()
        starts = [(_("Random weights"), "none"), *((name, name) for name in encoders)]
        had = self.ui.initComboBox.count
        fillCombo(self.ui.initComboBox, starts)
        if len(starts) > had and encoders:
            self.ui.initComboBox.setCurrentIndex(len(starts) - 1)
        self._showRuns()
        self._enable()

    def _enable(self):
        ui = self.ui
        ready, models = bool(self.store.labelledCases()), self.store.models()
        hint = "" if ready else _("Annotate at least one slice in panel 3, or add a label, first.")
        self.setHint(ui.trainHint, hint)
        unlabelled = len(self.store.casesOf("unlabelled"))
        if models:
            text = _("Improve {model} with {n} unlabelled scans.")
            tip = text.format(model=models[-1], n=unlabelled)
        else:
            tip = _("Trains a first model, then improves it with the unlabelled scans.")
        ui.fineTuneButton.setEnabled(ready)
        ui.selfTrainButton.setEnabled(ready)
        ui.selfTrainButton.setToolTip(tip)
        ui.resumeTrainButton.setEnabled(self._unfinished() is not None)
        ui.plotButton.setEnabled(bool(self.store.runs()))
        ui.reportButton.setEnabled(bool(self.store.runs()))
        ui.exportModelButton.setEnabled(bool(models))
        ui.importModelButton.setEnabled(self.store.isOpen())
