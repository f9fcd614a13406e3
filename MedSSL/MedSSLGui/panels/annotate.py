"""Panel 3: drawing on a few slices and saying which ones are complete."""

import qt
from slicer.i18n import tr as _

from .. import advice, annotation, commands, scene
from ..annotationsteps import completionSteps, correctionSteps, saveSteps
from ..caseview import CaseView
from .annotationlog import AnnotationLog
from .base import Panel, choose, chosen, fillCombo
from .classtable import ClassTable
from .embeddededitor import EmbeddedEditor


class AnnotatePanel(Panel):
    """Case, classes, segment editor, slices."""

    NAME = "Annotate"

    def __init__(self, session, parent=None):
        super().__init__(session, parent)
        self.view = None
        self.suggested, self.wanted = [], []
        self.editor = EmbeddedEditor(self.ui.segmentEditor)
        self.log = AnnotationLog(session, self.widget)
        self.log.edited.connect(self._onEdited)
        self.classes = ClassTable(session, self.ui)
        self.classes.changed.connect(self._onClasses)
        self._connect()
        session.savers.append(self.save)
        session.caseWanted.connect(lambda name: self.showCase(name))
        self.refresh()

    def _connect(self):
        ui = self.ui
        ui.loadCaseButton.clicked.connect(
            lambda: self.showCase(chosen(ui.annotateCaseComboBox), walk=True)
        )
        ui.directionComboBox.currentIndexChanged.connect(lambda index: self._onDirection())
        ui.markSliceButton.clicked.connect(lambda: self.markShown())
        ui.previousSliceButton.clicked.connect(lambda: self.step(-1))
        ui.nextSliceButton.clicked.connect(lambda: self.step(1))
        ui.jumpSliceButton.clicked.connect(lambda: self.jump())
        ui.slicesList.itemDoubleClicked.connect(lambda item: self.jump())
        ui.removeSliceButton.clicked.connect(lambda: self.unmark())
        ui.saveAnnotationButton.clicked.connect(lambda: self.save())
        ui.budgetSpinBox.valueChanged.connect(lambda value: self._suggestEvenly())
        ui.suggestButton.clicked.connect(lambda: self.suggest())
        ui.completeButton.clicked.connect(lambda: self.complete())
        ui.suggestButton.setVisible(commands.offered("suggest"))
        ui.completeButton.setVisible(commands.offered("complete"))

    # -- the case -------------------------------------------------------------------------------------------------

    def showCase(self, name, walk=False):
        """Bring a case and its annotation into the scene and the editor; `walk`: with its first suggested slice."""
        case = self.store.case(name)
        if case is None:
            return
        self.save()
        if not self.store.classes():
            self.store.setClasses([(1, _("structure"), (0.90, 0.36, 0.30), "")])
        if not self.session.guarded(lambda: self._makeView(case)):
            return
        self.wanted = annotation.readSuggestions(self.store.folder)
        choose(self.ui.annotateCaseComboBox, name)
        self.session.showVolume(self.view.image)
        steps = self.view.fillSteps(case, self.store.classes())
        self.session.stepper.start(
            steps, lambda result: self._onFilled(walk), self.session.sayError
        )

    def _makeView(self, case):
        self.log.stop()
        self.view = CaseView(case, self.store.classes())

    def _onFilled(self, walk):
        if not self.alive():
            return
        view = self.view
        fillCombo(
            self.ui.directionComboBox,
            [(view.names[axis].capitalize(), str(axis)) for axis in range(3)],
            keep=False,
        )
        marked = view.annotated()
        asked = annotation.suggestedSlices(self.wanted, view.name)
        axis = next(iter(asked or marked), annotation.thickestAxis(view.spacing))
        choose(self.ui.directionComboBox, str(axis))
        self.editor.edit(view.segmentation, view.image)
        self.log.watch(view, axis)
        self._suggestEvenly()
        self._showSlices()
        self.refresh()
        self.session.say(_("{case}: draw on a slice, then mark it.").format(case=view.name))
        if walk and self.axis() in asked:
            done = marked.get(self.axis(), [])
            self._goTo(
                next((index for index in self.suggested if index not in done), self.suggested[0])
            )

    def _goTo(self, index):
        """Show a suggested slice, and say why it was suggested."""
        self.view.jumpTo(self.axis(), index)
        if reason := annotation.reason(self.wanted, self.view.name, self.axis(), index):
            self.session.say(
                _("{case}, slice {n}: {reason}").format(case=self.view.name, n=index, reason=reason)
            )

    def alive(self):
        if self.view is not None and not self.view.isAlive():
            self.log.stop()
            self.editor.edit(None, None)
            self.view = None
            self.session.say(
                _(
                    "The case's nodes were removed from the scene. Show the case again to go on; what was "
                    "saved is kept."
                ),
                "warning",
            )
        return self.view is not None

    def _onClasses(self):
        if self.alive():
            scene.syncClasses(self.view.segmentation, self.store.classes())

    def axis(self):
        """The axis whose slices are annotated."""
        return int(chosen(self.ui.directionComboBox) or 2)

    def _onDirection(self):
        if self.alive():
            self.log.watch(self.view, self.axis())
            self._suggestEvenly()
            self._showSlices()

    # -- slices ---------------------------------------------------------------------------------------------------

    def markShown(self):
        """Mark the slice that is shown as annotated."""
        if not self.alive():
            return self.session.say(_("Show a case first."), "warning")
        index = self.view.shownSlice(self.axis())
        if index is None:
            return self.session.say(
                _("No slice of this case is shown in the {view} view.").format(
                    view=self.view.viewOf(self.axis())
                ),
                "warning",
            )
        self.mark(self.axis(), [index])
        self.session.sliceMarked.emit(index)

    def mark(self, axis, indices):
        """Mark slices as annotated."""
        marked = self.view.annotated()
        marked[axis] = sorted(set(marked.get(axis, [])) | set(indices))
        self.view.setAnnotated(marked)
        self.log.dirty = True
        self._showSlices()

    def unmark(self):
        """The selected slice no longer counts."""
        axis, index = self._selectedSlice()
        if axis is None:
            return
        marked = self.view.annotated()
        marked[axis] = [each for each in marked.get(axis, []) if each != index]
        self.view.setAnnotated(marked)
        self.log.dirty = True
        self._showSlices()

    def jump(self):
        """Show the selected slice."""
        axis, index = self._selectedSlice()
        if axis is not None:
            self.view.jumpTo(axis, index)

    def _selectedSlice(self):
        item = self.ui.slicesList.currentItem() if self.alive() else None
        return (
            tuple(int(part) for part in item.data(qt.Qt.UserRole).split(":"))
            if item is not None
            else (None, None)
        )

    def step(self, direction):
        """Show the next (or previous) suggested slice; after a case's last one, the next case with suggestions."""
        if not self.alive() or not self.suggested:
            return
        shown = self.view.shownSlice(self.axis())
        shown = -1 if shown is None else shown
        ahead = [i for i in self.suggested if (i > shown if direction > 0 else i < shown)]
        other = (
            annotation.nextCase(self.wanted, self.view.name)
            if direction > 0 and not ahead
            else None
        )
        if other is not None and self.store.case(other) is not None:
            return self.showCase(other, walk=True)
        index = (
            (ahead[0] if direction > 0 else ahead[-1])
            if ahead
            else self.suggested[0 if direction > 0 else -1]
        )
        self._goTo(index)

    def _suggestEvenly(self):
        if self.alive():
            mine = annotation.suggestedSlices(self.wanted, self.view.name).get(self.axis())
            self.suggested = mine or annotation.evenSlices(
                self.view.size[self.axis()], self.ui.budgetSpinBox.value
            )
            self._showProgress()

    def suggest(self):
        """Have the library choose the slices that are worth most."""
        if self.store.isOpen():
            self.session.startJob(
                _("Choosing slices"),
                commands.suggest(
                    self.store.folder,
                    self.ui.budgetSpinBox.value,
                    self._latestModel() or self._latestModel(("pretrain",)),
                ),
                kind="suggest",
            )

    def takeSuggestion(self, event):
        """Slices that the library suggests, in any case."""
        self.wanted = event.get("slices") or []
        if self.alive():
            asked = annotation.suggestedSlices(self.wanted, self.view.name)
            choose(self.ui.directionComboBox, str(next(iter(asked), self.axis())))
            self._suggestEvenly()
        cases = [entry["case"] for entry in self.wanted]
        if cases and not (self.alive() and self.view.name in cases):
            self.session.say(
                _("{n} slices are suggested, in other cases. Show {case} to begin.").format(
                    n=len(cases), case=cases[0]
                )
            )

    def complete(self):
        """Have the slices between the annotated ones filled in."""
        if not self.alive() or not self.view.annotated():
            self.session.say(_("Mark at least one annotated slice first."), "warning")
            return
        self.session.startJob(
            _("Completing {case}").format(case=self.view.name),
            commands.complete(
                self.store.folder, self.view.name, self._latestModel(("pretrain",)), "auto"
            ),
            kind="complete",
        )

    def takeCorrection(self, wanted):
        """Copy the shown slice of a prediction into the case's annotation and mark it."""
        if self.view is None or self.view.name != wanted["case"]:
            self.showCase(wanted["case"])
        self.session.stepper.start(correctionSteps(self, wanted), None, self.session.sayError)

    def takeCompletion(self, path, case=None):
        """Fill in what the library completed; annotated slices stay as drawn."""
        if case is not None and (self.view is None or self.view.name != case):
            self.showCase(case)
        if self.alive():
            self.session.stepper.start(
                completionSteps(self.log, self.view, path), None, self.session.sayError
            )

    def _latestModel(self, kinds=("finetune", "selftrain")):
        finished = [
            run["name"]
            for run in self.store.runs()
            if run["finished"] and advice.command(run) in kinds
        ]
        return finished[-1] if finished else None

    def _onEdited(self, indices):
        """An edit changed these slices."""
        if not self.alive():
            return
        if self.ui.autoMarkCheckBox.checked and 0 < len(indices) <= 3:
            self.mark(self.axis(), indices)
        elif len(indices) > 3:
            self.session.say(
                _("{n} slices changed at once. Mark those that you checked.").format(n=len(indices))
            )

    def _showSlices(self):
        widget = self.ui.slicesList
        widget.clear()
        for axis, indices in self.view.annotated().items():
            for index in indices:
                item = qt.QListWidgetItem(
                    _("{direction} slice {n}").format(
                        direction=self.view.names[axis].capitalize(), n=index
                    )
                )
                item.setData(qt.Qt.UserRole, f"{axis}:{index}")
                widget.addItem(item)
        self._showProgress()

    def _showProgress(self):
        bar = self.ui.annotationProgressBar
        marked = len(self.view.annotated().get(self.axis(), []))
        wanted = max(len(set(self.suggested) | set(self.view.annotated().get(self.axis(), []))), 1)
        bar.setMaximum(wanted)
        bar.setValue(marked)
        bar.setFormat(_("{done} of {all} slices").format(done=marked, all=wanted))

    def save(self):
        """Write the annotation of the shown case into the project, if it changed."""
        if not self.alive() or not self.store.isOpen() or self.store.case(self.view.name) is None:
            return
        self.log.flush()
        if self.log.dirty:
            self.log.dirty, view = False, self.view
            self.session.stepper.start(
                saveSteps(self.session, view), None, lambda error: self._onNotSaved(view, error)
            )

    def _onNotSaved(self, view, error):
        """What was drawn is still in the scene; the next save tries again."""
        self.log.keep(view)
        self.session.say(
            _("{case} is not saved yet: {error}").format(case=view.name, error=error), "error"
        )

    # -- module ---------------------------------------------------------------------------------------------------

    def refresh(self):
        entries = [(case.name, case.name) for case in self.store.cases if case.role != "test"]
        fillCombo(self.ui.annotateCaseComboBox, entries)
        self.classes.show()
        ready = self.view is not None
        hint = (
            ""
            if ready
            else (
                _("Choose a case and press Show.")
                if entries
                else _("Add volumes in panel 1 first.")
            )
        )
        self.setHint(self.ui.annotateHint, hint)
        self.ui.loadCaseButton.setEnabled(bool(entries))
        self.ui.suggestButton.setEnabled(bool(entries))
        for name in (
            "markSliceButton",
            "previousSliceButton",
            "nextSliceButton",
            "completeButton",
            "saveAnnotationButton",
            "jumpSliceButton",
            "removeSliceButton",
        ):
            getattr(self.ui, name).setEnabled(ready)

    def enter(self):
        self.editor.enter()

    def exit(self):
        self.save()
        self.editor.exit()

    def onSceneClosing(self):
        """The scene is about to be closed: write what was drawn, then let go of it."""
        self.save()
        self.session.stepper.finish()
        self.log.stop()
        self.editor.edit(None, None)
        self.view = None
        self.refresh()

    def cleanup(self):
        self.log.stop()
        self.editor.cleanup()
