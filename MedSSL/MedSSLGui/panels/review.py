"""Panel 5: predicting, looking, comparing, correcting, exporting."""

import qt
import slicer
from slicer.i18n import tr as _

from .. import advice, annotation, caseview, commands, scene
from ..jobs import Job
from ..resultview import ResultView
from .base import Panel, cell, chosen, fillCombo, selectedRows, setUpTable


class ReviewPanel(Panel):
    """Model, cases, Predict; results, style, comparison, correction, export."""

    NAME = "Review"

    def __init__(self, session, parent=None):
        super().__init__(session, parent)
        self.result, self.figures = None, {}
        ui = self.ui
        setUpTable(ui.resultTable, [_("Case"), _("Uncertainty (0 to 1)"), _("Volumes (ml)")], 2)
        fillCombo(
            ui.compareModeComboBox, [(_("difference"), "difference"), (_("side by side"), "beside")]
        )
        fillCombo(
            ui.exportFormatComboBox,
            [
                (_("Segmentation (.seg.nrrd)"), "seg"),
                (_("NIfTI (.nii.gz)"), "nifti"),
                (_("Labelmap node"), "node"),
            ],
        )
        ui.predictButton.clicked.connect(lambda: self.predict())
        ui.modelComboBox.currentIndexChanged.connect(lambda index: self.readFigures())
        ui.resultTable.itemSelectionChanged.connect(lambda: self._onSelected())
        for slider in (ui.opacitySlider, ui.outlineSlider, ui.uncertaintySlider):
            slider.valueChanged.connect(lambda value: self._style())
        ui.classVisibilityList.itemChanged.connect(lambda item: self._onVisibility(item))
        ui.compareButton.clicked.connect(lambda: self.compare())
        ui.correctButton.clicked.connect(lambda: self.correct())
        ui.exportButton.clicked.connect(lambda: self.export())
        session.queue.finished.connect(self._onFinished)
        self.refresh()

    # -- predicting -----------------------------------------------------------------------------------------------

    def _models(self):
        return [
            run["name"]
            for run in self.store.runs()
            if run["finished"] and advice.command(run) in ("finetune", "selftrain")
        ]

    def _casesToPredict(self):
        key = chosen(self.ui.predictCasesComboBox)
        if key == "*":
            return [case.name for case in self.store.cases]
        if key == "*unlabelled":
            return [case.name for case in self.store.cases if case.role == "unlabelled"]
        return [key] if key else []

    def predict(self):
        """Queue the prediction of the chosen cases."""
        model, cases = chosen(self.ui.modelComboBox), self._casesToPredict()
        if not model or not cases:
            self.session.say(
                _("Train a model in panel 4 first.") if not model else _("There is no such case."),
                "warning",
            )
            return
        arguments = commands.predict(
            self.store.folder,
            model,
            self.store.resultsFolder(model),
            cases,
            self.ui.uncertaintyCheckBox.checked,
            "auto",
        )
        self.session.startJob(
            _("Predicting {n} cases").format(n=len(cases)),
            arguments,
            kind="predict",
            run=model,
            cases=cases,
        )

    def _onFinished(self, outcome):
        if outcome.job.facts.get("kind") == "predict" and outcome.state in (
            "done",
            "cancelled",
            "failed",
        ):
            self.readFigures()

    def readFigures(self):
        """Have the figures of the model's predictions read by another process."""
        self.figures = {}
        model = chosen(self.ui.modelComboBox)
        if model and self.store.resultsFolder(model).is_dir():
            script = commands.Path(commands.__file__).with_name("results.py")
            arguments = [str(script), str(self.store.resultsFolder(model))]
            self.session.runHelper(
                Job(
                    _("Reading results"),
                    arguments,
                    {"event": self._takeFigure, "done": lambda outcome: self._showFigures()},
                )
            )
        else:
            self._showFigures()

    def _takeFigure(self, event):
        self.figures[event["case"]] = event

    def _showFigures(self):
        table = self.ui.resultTable
        names = {value: name for value, name, _c, _t in self.store.classes()}
        rows = sorted(
            self.figures.values(),
            key=lambda f: -(f["uncertainty"] if f["uncertainty"] is not None else -1),
        )
        table.blockSignals(True)
        table.clearSelection()
        table.setRowCount(len(rows))
        for row, figure in enumerate(rows):
            doubt = "" if figure["uncertainty"] is None else f"{figure['uncertainty']:.3f}"
            volumes = ", ".join(
                f"{names.get(int(v), v)} {ml:.1f}" for v, ml in figure["volumes_ml"].items()
            )
            for column, text in enumerate((figure["case"], doubt, figure["problem"] or volumes)):
                table.setItem(row, column, cell(text))
        table.blockSignals(False)
        table.resizeColumnToContents(1)
        table.resizeRowsToContents()
        self._enable()

    # -- looking --------------------------------------------------------------------------------------------------

    def _onSelected(self):
        rows = selectedRows(self.ui.resultTable)
        if rows:
            self.showResult(self.ui.resultTable.item(rows[0], 0).text())

    def showResult(self, name):
        """Show a case's prediction over its image."""
        case, model = self.store.case(name), chosen(self.ui.modelComboBox)
        if case is None or not model:
            return
        if self.result is not None:
            self.result.endComparison()

        def make():
            self.result = ResultView(
                case, model, self.store.resultsFolder(model), self.store.classes()
            )

        if self.session.guarded(make):
            self.session.stepper.start(
                self.result.fillSteps(), lambda value: self._onShown(), self.session.sayError
            )

    def _onShown(self):
        self._hideOtherSegmentations()
        self.session.showVolume(
            self.result.image, self.result.uncertainty, self.ui.uncertaintySlider.value
        )
        self._style()
        self._fillClasses()
        self._fillComparisons()
        self._enable()
        self.session.say(
            _("{case}: prediction of {run}.").format(
                case=self.result.case.name, run=self.result.run
            )
        )

    def _hideOtherSegmentations(self):
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if (
                node.GetAttribute(scene.ROLE)
                and node is not self.result.segmentation
                and node.GetDisplayNode()
            ):
                node.GetDisplayNode().SetVisibility(False)

    def _alive(self):
        if (
            self.result is not None
            and self.result.segmentation is not None
            and not self.result.isAlive()
        ):
            self.result = None
            self.session.say(
                _("The result's nodes were removed from the scene. Select the case again."),
                "warning",
            )
            self._enable()
        return self.result is not None and self.result.segmentation is not None

    def _style(self):
        if self._alive():
            self.result.setStyle(self.ui.opacitySlider.value, self.ui.outlineSlider.value)
            if (
                self.result.uncertainty is not None
                and self.result.uncertainty.GetScene() is not None
            ):
                slicer.util.setSliceViewerLayers(
                    foreground=self.result.uncertainty,
                    foregroundOpacity=self.ui.uncertaintySlider.value,
                )

    def _fillClasses(self):
        widget = self.ui.classVisibilityList
        widget.blockSignals(True)
        widget.clear()
        for value, name, colour, _term in self.store.classes():
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, value)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsSelectable)
            item.setCheckState(qt.Qt.Checked)
            pixmap = qt.QPixmap(12, 12)
            pixmap.fill(qt.QColor.fromRgbF(*colour))
            item.setIcon(qt.QIcon(pixmap))
            widget.addItem(item)
        widget.blockSignals(False)

    def _onVisibility(self, item):
        if self._alive():
            self.result.setVisible(
                int(item.data(qt.Qt.UserRole)), item.checkState() == qt.Qt.Checked
            )

    # -- comparing, correcting, exporting -------------------------------------------------------------------------

    def _fillComparisons(self):
        name = self.result.case.name
        entries = [(_("nothing"), "")]
        if self.result.case.label is not None:
            entries.append((_("annotation"), "label"))
        entries += [
            (run, run)
            for run in self._models()
            if run != self.result.run
            and (self.store.resultsFolder(run) / f"{name}.nii.gz").is_file()
        ]
        fillCombo(self.ui.compareComboBox, entries)

    def compare(self):
        """Show how the result differs from the chosen other one."""
        if not self._alive():
            return
        self.result.endComparison()
        other, case = chosen(self.ui.compareComboBox), self.store.case(self.result.case.name)
        if not other:
            self._onShown()
            return
        path = (
            case.label
            if other == "label"
            else self.store.resultsFolder(other) / f"{case.name}.nii.gz"
        )
        self.session.stepper.start(
            self._compareSteps(path, self.ui.compareComboBox.currentText),
            lambda count: self.session.say(_("They differ in {n} voxels.").format(n=count), "done"),
            self.session.sayError,
        )

    def _compareSteps(self, path, title):
        array = yield from caseview.labelFileSteps(path, self.result.image, self.store.classes())
        steps = (
            self.result.besideSteps
            if chosen(self.ui.compareModeComboBox) == "beside"
            else self.result.differenceSteps
        )
        return (yield from steps(array, title))

    def correct(self):
        """Send the shown slice to the annotation."""
        if self._alive():
            matrix = scene.ijkToRas(self.result.image)
            self.session.correctionWanted.emit(
                {
                    "case": self.result.case.name,
                    "label": self.result.label,
                    "names": annotation.axisNames(matrix[:3, :3]),
                }
            )

    def export(self):
        """Export the shown segmentation."""
        if not self._alive():
            return
        kind, result = chosen(self.ui.exportFormatComboBox), self.result
        self.session.stepper.start(
            result.exportSteps(kind, self.store.folder / "exports"),
            lambda made: self._onExported(kind, made, result.case.name),
            self.session.sayError,
        )

    def _onExported(self, kind, made, name):
        if kind != "nifti":
            self.session.say(_("Exported: {what}").format(what=made), "done")
            return
        target = self.store.folder / "exports" / f"{name}.nii.gz"

        def done(outcome):
            commands.Path(made).unlink(missing_ok=True)
            if outcome.state == "done":
                self.session.say(_("Exported: {what}").format(what=target), "done")

        self.session.runHelper(
            Job(
                _("Exporting {case}").format(case=name),
                commands.convert(made, target),
                {"done": done},
            )
        )

    # -- module ---------------------------------------------------------------------------------------------------

    def refresh(self):
        models = self._models()
        had = chosen(self.ui.modelComboBox)
        fillCombo(self.ui.modelComboBox, [(name, name) for name in reversed(models)])
        entries = [(_("All unlabelled cases"), "*unlabelled"), (_("All cases"), "*")]
        fillCombo(
            self.ui.predictCasesComboBox,
            entries + [(case.name, case.name) for case in self.store.cases],
        )
        self.setHint(self.ui.reviewHint, "" if models else _("Train a model in panel 4 first."))
        self.ui.predictButton.setEnabled(bool(models))
        if chosen(self.ui.modelComboBox) != had:
            self.readFigures()
        self._enable()

    def _enable(self):
        ready = self.result is not None and self.result.segmentation is not None
        for name in (
            "compareButton",
            "correctButton",
            "exportButton",
            "compareComboBox",
            "compareModeComboBox",
        ):
            getattr(self.ui, name).setEnabled(ready)

    def onSceneClosing(self):
        """The scene is about to be closed."""
        self.result = None
        self._enable()

    def cleanup(self):
        self.session.queue.finished.disconnect(self._onFinished)
