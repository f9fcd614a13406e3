"""Panel 5: predicting, looking, comparing, correcting, exporting."""

import qt
import slicer
from slicer.i18n import tr as _

from ..jobs import commands
from ..jobs.runner import Job
from ..project import words
from ..scene import annotation, grids, nodes, views, voxels
from ..scene.comparison import Comparison, agreeSteps
from ..scene.resultview import ResultView, exportAllSteps
from ..segmentvolume import VolumeSegmenter
from .base import Panel, cell, choose, chosen, fillCombo, selectedRows, setUpTable
from .pseudolabels import PseudoLabelList

_WITH_RESULT = ("compareButton", "correctButton", "exportButton")
_ENDING = ".nii.gz"


class ReviewPanel(Panel):
    """Model, cases, Predict; results, style, comparison, correction, export."""

    NAME = "Review"

    def __init__(self, session):
        super().__init__(session)
        self.result, self.comparison, self.rows = None, None, {}
        self._models, self._wanted = [], ""
        self._isOpen = self._isEntered = self._isLeft = False
        ui = self.ui
        setUpTable(
            ui.resultTable,
            [_("Case"), _("Predicted Dice"), _("Dice"), _("Uncertainty"), _("Volumes (ml)")],
        )
        ui.resultTable.resizeColumnsToContents()
        fillCombo(
            ui.compareModeComboBox, [(_("difference"), "difference"), (_("side by side"), "beside")]
        )
        kinds = [(_("Segmentation (.seg.nrrd)"), "seg"), (_("NIfTI (.nii.gz)"), "nifti")]
        fillCombo(ui.exportFormatComboBox, [*kinds, (_("Labelmap node"), "node")])
        self.volumes = VolumeSegmenter(session, lambda: self._isOpen and self._isEntered)
        self.pseudo = PseudoLabelList(session, ui, self.showPseudo)
        self._connect()
        session.queue.finished.connect(self._onFinished)
        self.refresh()

    def _connect(self):
        ui = self.ui
        ui.predictButton.clicked.connect(lambda: self.predict())
        ui.modelComboBox.currentIndexChanged.connect(lambda index: self.readResults())
        ui.resultTable.itemSelectionChanged.connect(lambda: self._onSelected())
        ui.resultTable.cellClicked.connect(lambda row, column: self._onClicked())
        for slider in (ui.opacitySlider, ui.outlineSlider, ui.uncertaintySlider):
            slider.valueChanged.connect(lambda value: self._style())
        ui.classVisibilityList.itemChanged.connect(lambda item: self._onVisibility(item))
        ui.compareButton.clicked.connect(lambda: self.compare())
        ui.correctButton.clicked.connect(lambda: self.correct())
        ui.exportButton.clicked.connect(lambda: self.export())
        ui.exportAllButton.clicked.connect(lambda: self.exportAll())
        ui.volumeSelector.setMRMLScene(slicer.mrmlScene)
        ui.volumeSelector.currentNodeChanged.connect(lambda node: self._enable())
        ui.segmentVolumeButton.clicked.connect(lambda: self.segmentVolume())

    # -- predicting -----------------------------------------------------------------------------------------------

    def _casesToPredict(self):
        key = chosen(self.ui.predictCasesComboBox)
        if key == "*":
            return [case.name for case in self.store.cases]
        if key in ("*unlabelled", "*test"):
            return [case.name for case in self.store.casesOf(key[1:])]
        return [key] if key else []

    def predict(self):
        """Queue the prediction of the chosen cases."""
        model, cases = chosen(self.ui.modelComboBox), self._casesToPredict()
        if not model or not cases:
            train, none = _("Train a model in panel 4 first."), _("There is no such case.")
            self.session.say(none if model else train, "warning")
            return
        settings = {
            "run": model,
            "out": self.store.resultsFolder(model),
            "cases": cases,
            "uncertainty": self.ui.uncertaintyCheckBox.checked,
            "quality": self.ui.qualityCheckBox.checked,
            "device": "auto",
        }
        title = _("Predicting {n} cases").format(n=len(cases))
        arguments = commands.predict(self.store.folder, settings)
        self.session.startJob(title, arguments, kind="predict", run=model, cases=cases)

    def _onFinished(self, outcome):
        kind = outcome.job.facts.get("kind")
        if kind == "predict" and outcome.state in ("done", "cancelled", "failed"):
            self.readResults()
        elif kind == "segment":
            self.volumes.take(outcome)

    def segmentVolume(self):
        """Segment the chosen volume of the scene with the chosen model; it does not become a case."""
        model, node = chosen(self.ui.modelComboBox), self.ui.volumeSelector.currentNode()
        if not model or node is None:
            self.session.say(_("Choose a model and a volume first."), "warning")
        else:
            self.volumes.segment(model, node)

    # -- results --------------------------------------------------------------------------------------------------

    def readResults(self):
        """Have the numbers of the model's predictions read by another process."""
        model = chosen(self.ui.modelComboBox)
        if not model or not self.store.resultsFolder(model).is_dir():
            self.rows = {}
            self._showRows()
            return
        found = {}

        def take(event):
            if event["event"] == "metric":
                found[event["case"]] = event

        def done(outcome):
            if chosen(self.ui.modelComboBox) == model:
                self.rows = found
                self._showRows()

        arguments = commands.results(self.store.folder, self.store.resultsFolder(model))
        self.session.readers.add(
            Job(_("Reading results"), arguments, {"event": take, "done": done})
        )

    def _showRows(self):
        table, selected = self.ui.resultTable, self._selectedCase()
        rows = sorted(self.rows.values(), key=words.leastSure)
        names = {value: name for value, name, _c, _t in self.store.classes()}
        table.blockSignals(True)
        table.clearSelection()
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(words.resultTexts(row, names)):
                table.setItem(number, column, cell(text))
            why = (row.get("quality") or {}).get("why")
            if why:
                table.item(number, 1).setToolTip(why)
            if row["case"] == selected:
                table.selectRow(number)
        table.blockSignals(False)
        table.resizeColumnsToContents()
        self._enable()

    def _selectedCase(self):
        rows = selectedRows(self.ui.resultTable)
        item = self.ui.resultTable.item(rows[0], 0) if rows else None
        return item.text() if item else ""

    # -- looking --------------------------------------------------------------------------------------------------

    def _onSelected(self):
        name = self._selectedCase()
        if name:
            self.showResult(name)

    def _onClicked(self):
        if self._wanted is self.result:  # else another one is on its way
            self._showAgain()

    def showResult(self, name):
        """Show a case's prediction over its image."""
        case, model = self.store.case(name), chosen(self.ui.modelComboBox)
        if case is not None and model:
            folder = self.store.resultsFolder(model)
            file = f"{name}{_ENDING}"
            files = (folder / file, folder / "uncertainty" / file)
            self._show(ResultView(case, model, files, self.store.classes()))

    def showPseudo(self, case, run, folder):
        """Show a pseudo-label of a round over its image, with the model's confidence."""
        found, file = self.store.case(case), f"{case}{_ENDING}"
        if found is not None:
            files = (folder / file, folder / "confidence" / file)
            self._show(ResultView(found, run, files, self.store.classes(), "pseudo"))

    def _show(self, result):
        self.endComparison()
        self._wanted, self._isLeft = result, False
        self.session.say(_("Showing {case} …").format(case=result.case.name), "busy")
        self.session.stepper.start(
            result.fillSteps(), lambda value: self._onShown(result), self.session.sayError
        )

    def _onShown(self, result):
        if result is not self._wanted or not result.isAlive():
            return  # another case was chosen meanwhile
        self.result = result
        if self._isLeft:  # another panel was opened meanwhile
            result.segmentation.GetDisplayNode().SetVisibility(False)
        else:
            self.bringUp()
        self._fillClasses()
        self._fillComparisons()
        self._enable()
        text = _("{case}: pseudo-label of {run}.") if result.role == "pseudo" else None
        text = text or _("{case}: prediction of {run}.")
        self.session.say(text.format(case=result.case.name, run=result.run))

    def bringUp(self):
        """The shown case's image and result, and no other, are in the views."""
        result = self.result
        nodes.showOnly(result.case.name, result.role)
        views.showVolume(result.image, result.uncertainty, self.ui.uncertaintySlider.value)
        self._style()

    def _alive(self):
        """Whether a result is shown whose nodes are still in the scene."""
        if self.result is not None and not self.result.isAlive():
            self.result = self.comparison = None
            text = _("The result's nodes were removed from the scene. Select the case again.")
            self.session.say(text, "warning")
            self._enable()
        return self.result is not None

    def _style(self):
        if self._alive():
            self.result.setStyle(self.ui.opacitySlider.value, self.ui.outlineSlider.value)
            shown = self.result.uncertainty
            if shown is not None and shown.GetScene() is not None:
                views.setMapOpacity(shown, self.ui.uncertaintySlider.value)

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
            value = int(item.data(qt.Qt.UserRole))
            self.result.setVisible(value, item.checkState() == qt.Qt.Checked)

    # -- comparing ------------------------------------------------------------------------------------------------

    def _fillComparisons(self):
        case = self.result.case
        entries = [(_("nothing"), "")]
        if case.label is not None:
            entries.append((_("annotation"), "label"))
        for run in self.store.models():
            there = (self.store.resultsFolder(run) / f"{case.name}{_ENDING}").is_file()
            if there and (run != self.result.run or self.result.role == "pseudo"):
                entries.append((run, run))
        fillCombo(self.ui.compareComboBox, entries)

    def endComparison(self):
        """The result alone again, layout and views as they were."""
        if self.comparison is not None:
            self.comparison.end()
            self.comparison = None

    def compare(self):
        """Show how the result differs from the chosen other one."""
        if not self._alive():
            return
        self.endComparison()
        other, case = chosen(self.ui.compareComboBox), self.store.case(self.result.case.name)
        if not other:
            self.bringUp()
            return
        path = case.label
        if other != "label":
            path = self.store.resultsFolder(other) / f"{case.name}{_ENDING}"
        self.comparison = Comparison(self.result)
        self.session.stepper.start(
            self._compareSteps(self.comparison, path, self.ui.compareComboBox.currentText),
            self._onCompared,
            self.session.sayError,
        )

    def _onCompared(self, count):
        if count is not None:
            self.session.say(_("They differ in {n} voxels.").format(n=count), "done")

    def _compareSteps(self, comparison, path, title):
        array = yield from voxels.labelFileSteps(path, comparison.result.image)
        if comparison.isOver:
            return None
        ignore = self.store.project.ignore_value
        if ignore is not None:
            yield from agreeSteps(comparison.result.label, array, ignore)
        beside = chosen(self.ui.compareModeComboBox) == "beside"
        steps = comparison.besideSteps if beside else comparison.differenceSteps
        return (yield from steps(array, title))

    # -- correcting, exporting --------------------------------------------------------------------------------------

    def correct(self):
        """Send the shown slice to the annotation."""
        if self._alive():
            self.endComparison()
            matrix = grids.ijkToRas(self.result.image)
            names = annotation.axisNames(matrix[:3, :3])
            wanted = {"case": self.result.case.name, "label": self.result.label, "names": names}
            self.session.correctionWanted.emit(wanted)

    def export(self):
        """Export the shown segmentation."""
        if self._alive():
            kind = chosen(self.ui.exportFormatComboBox)
            self.session.say(_("Exporting {n} cases …").format(n=1), "busy")
            self.session.stepper.start(
                self.result.exportSteps(kind, self.store.folder / "exports"),
                lambda made: self.session.say(_("Exported: {what}").format(what=made), "done"),
                self.session.sayError,
            )

    def exportAll(self):
        """Export the predictions of all cases in the table."""
        names = sorted(self.rows)
        if names:
            self.session.say(_("Exporting {n} cases …").format(n=len(names)), "busy")
            model, kind = chosen(self.ui.modelComboBox), chosen(self.ui.exportFormatComboBox)
            steps = exportAllSteps(self.store, names, model, kind)
            self.session.stepper.start(steps, self._onExported, self.session.sayError)

    def _onExported(self, found):
        made, failed = found
        folder = self.store.folder / "exports"
        text = _("{n} cases exported to {folder}. {problems}")
        text = text.format(n=made, folder=folder, problems=" ".join(failed[:3]))
        self.session.say(text, "warning" if failed else "done")

    # -- module ---------------------------------------------------------------------------------------------------

    def refresh(self):
        models, had = self.store.models(), chosen(self.ui.modelComboBox)
        fillCombo(self.ui.modelComboBox, [(name, name) for name in reversed(models)])
        if models and models[-1] not in self._models:
            choose(self.ui.modelComboBox, models[-1])  # a new model is what one wants to see
        self._models = models
        entries = [(_("All unlabelled cases"), "*unlabelled"), (_("All cases"), "*")]
        if self.store.casesOf("test"):
            entries.insert(1, (_("All test cases"), "*test"))
        entries += [(case.name, case.name) for case in self.store.cases]
        fillCombo(self.ui.predictCasesComboBox, entries)
        self.setHint(self.ui.reviewHint, "" if models else _("Train a model in panel 4 first."))
        self.ui.predictButton.setEnabled(bool(models))
        if chosen(self.ui.modelComboBox) != had:
            self.readResults()
        self.pseudo.refresh()
        self._enable()

    def _enable(self):
        ready, model = self.result is not None, bool(chosen(self.ui.modelComboBox))
        for name in (*_WITH_RESULT, "compareComboBox", "compareModeComboBox"):
            getattr(self.ui, name).setEnabled(ready)
        self.ui.exportAllButton.setEnabled(bool(self.rows))
        volume = self.ui.volumeSelector.currentNode()
        self.ui.segmentVolumeButton.setEnabled(model and volume is not None)

    def onOpened(self):
        self._isOpen, self._isLeft = True, False
        self._showAgain()

    def _showAgain(self):
        """The selected result is in the views again when something else was shown meanwhile."""
        hidden = self._alive() and not self.result.segmentation.GetDisplayNode().GetVisibility()
        if hidden and self.comparison is None:
            self.bringUp()

    def onFolded(self):
        """Layout and views as they were before a comparison."""
        self._isOpen, self._isLeft = False, True
        self.endComparison()

    def onSceneClosing(self):
        """The scene is about to be closed."""
        self.result = self.comparison = None
        self._wanted = ""
        self._enable()

    def enter(self):
        self._isEntered = True

    def exit(self):
        self._isEntered = False
        self.endComparison()

    def cleanup(self):
        self.session.queue.finished.disconnect(self._onFinished)
