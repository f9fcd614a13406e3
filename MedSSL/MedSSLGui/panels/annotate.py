"""Panel 3: drawing on a few slices and saying which ones are complete."""

from slicer.i18n import tr as _

from ..jobs import commands
from ..project.annotations import saveSteps
from ..project.words import sliceNumber
from ..scene import annotation, brush, nodes, segments, views
from ..scene.caseview import caseViewSteps
from ..scene.drawinglog import DrawingLog
from ..scene.editor import EmbeddedEditor
from ..scene.proposals import Proposals
from .base import Panel, choose, chosen, fillCombo
from .classtable import ClassTable
from .fillin import FillIn
from .live import LivePart
from .slicelist import SliceList

_WITH_CASE = (
    "markSliceButton",
    "markPartlyButton",
    "previousSliceButton",
    "nextSliceButton",
    "completeButton",
    "saveAnnotationButton",
    "jumpSliceButton",
    "removeSliceButton",
    "directionComboBox",
)


class AnnotatePanel(Panel):
    """Case, classes, segment editor, slices."""

    NAME = "Annotate"

    def __init__(self, session):
        super().__init__(session)
        self.view = None
        self._wanted = ""  # the case that is being brought into the scene
        self.editor = EmbeddedEditor(self.ui.segmentEditor)
        self.log = DrawingLog(self.widget)
        self.log.edited.connect(self._onEdited)
        self.proposals = Proposals(self.log)
        self.slices = SliceList(session, self.ui, self.proposals)
        self.classes = ClassTable(session, self.ui, self.editor)
        self.classes.changed.connect(self._onClasses)
        self.fillIn, self.live = FillIn(self), LivePart(self)
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
        ui.markPartlyButton.clicked.connect(lambda: self.markShown(partly=True))
        ui.previousSliceButton.clicked.connect(lambda: self.step(-1))
        ui.nextSliceButton.clicked.connect(lambda: self.step(1))
        ui.jumpSliceButton.clicked.connect(lambda: self.jump())
        ui.slicesList.itemDoubleClicked.connect(lambda item: self.jump())
        ui.removeSliceButton.clicked.connect(lambda: self.unmark())
        ui.saveAnnotationButton.clicked.connect(lambda: self.save(aloud=True))
        ui.budgetSpinBox.valueChanged.connect(lambda value: self.slices.spread())
        ui.suggestButton.clicked.connect(lambda: self.suggest())
        ui.completeButton.clicked.connect(lambda: self.fillIn.complete())
        ui.suggestButton.setVisible(commands.offered("suggest"))
        ui.completeButton.setVisible(commands.offered("complete"))

    # -- the case -------------------------------------------------------------------------------------------------

    def showCase(self, name, walk=False, then=None):
        """Bring a case and its annotation into the scene and the editor.

        walk: with its first suggested slice. then: called when the case is shown.
        """
        case = self.store.case(name)
        if case is None:
            return
        self.save()
        if not self.store.classes():
            self.store.setClasses([(1, _("structure"), (0.90, 0.36, 0.30), "")])
        self._letGo()
        self._wanted = name
        self.session.say(_("Showing {case} …").format(case=name), "busy")
        self.session.stepper.start(
            caseViewSteps(case, self.store.classes()),
            lambda view: self._onLoaded(view, walk, then),
            self._onNotLoaded,
        )

    def _onNotLoaded(self, error):
        self._wanted = ""
        self.session.sayError(error)
        self.refresh()

    def _onLoaded(self, view, walk, then):
        if view.name != self._wanted or not view.isAlive():
            return  # another case was wanted meanwhile
        self._wanted, self.view = "", view
        choose(self.ui.annotateCaseComboBox, view.name)
        directions = [(view.names[axis].capitalize(), str(axis)) for axis in range(3)]
        fillCombo(self.ui.directionComboBox, directions, keep=False)
        if not self.live.isOn():  # it suggests slices itself
            self.slices.readSuggestions()
        self.slices.view = view
        asked, marked = self.slices.asked(), view.annotated()
        axis = next(iter(asked or marked), annotation.thickestAxis(view.spacing))
        choose(self.ui.directionComboBox, str(axis))
        self.bringUp()
        self._watch(axis)
        self.live.watch(view)
        self.refresh()
        self.session.say(_("{case}: draw on a slice, then mark it.").format(case=view.name))
        first = self.slices.first()
        if walk and axis in asked and first is not None:
            self.goTo(first)
        if then is not None:
            then()

    def _watch(self, axis):
        """Follow what is drawn on the shown case along an axis."""
        self.proposals.watch(self.view, axis)
        self.log.watch(self.view, axis)
        self.slices.show(self.view, axis)

    def bringUp(self):
        """The shown case's image, annotation and preview, and no other, are in the views; the editor edits it."""
        nodes.showOnly(self.view.name, "annotation", "preview")
        views.showVolume(self.view.image)
        self.editor.edit(self.view.segmentation, self.view.image)

    def _letGo(self):
        """No case is shown any more."""
        if self.view is not None and self.view.isAlive() and self.store.isOpen():
            self.session.guarded(self.classes.takeOver)
        self.proposals.watch(None, self.slices.axis)
        self.live.letGo()
        self.log.stop()
        self.editor.edit(None, None)
        self.view, self._wanted = None, ""
        self.slices.show(None, self.slices.axis)

    def goTo(self, index):
        """Show a suggested slice, and say why it was suggested."""
        self.view.jumpTo(self.axis(), index)
        reason = self.slices.reason(index)
        if reason:
            text = _("{case}, slice {n}: {reason}")
            self.session.say(text.format(case=self.view.name, n=sliceNumber(index), reason=reason))

    def alive(self):
        """Whether a case is shown whose nodes are still in the scene."""
        if self.view is not None and not self.view.isAlive():
            self._letGo()
            self.refresh()
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
            segments.syncClasses(self.view.segmentation, self.store.classes())

    def axis(self):
        """The axis whose slices are annotated."""
        return int(chosen(self.ui.directionComboBox) or 2)

    def _onDirection(self):
        if self.alive():
            self._watch(self.axis())

    # -- slices ---------------------------------------------------------------------------------------------------

    def markShown(self, partly=False):
        """Mark the slice that is shown as annotated, or as partly drawn."""
        index = self.shownSlice()
        if index is None:
            return
        if partly:
            self.proposals.withdraw()  # what counts then is what a person painted
            brush.ensureBrush(self.view.segmentation)
            text = _(
                "Slice {n} is partly drawn: what you paint on it counts, the rest stays unknown. Paint (background) "
                "where there is surely nothing."
            )
        else:
            text = _("Slice {n} is marked: what is not drawn on it is background.")
        self.mark(self.axis(), [index], partly)
        self.session.say(text.format(n=sliceNumber(index)), "done")
        self.session.sliceMarked.emit(index)

    def shownSlice(self):
        """Index of the shown slice along the annotated axis; None, with a message, where there is none."""
        if not self.alive():
            self.session.say(_("Show a case first."), "warning")
            return None
        index = self.view.shownSlice(self.axis())
        if index is None:
            text = _("No {direction} slice of this case is shown in any view.")
            direction = self.view.names[self.axis()]
            self.session.say(text.format(direction=direction), "warning")
        return index

    def mark(self, axis, indices, partly=False):
        """Mark slices as annotated, or as partly drawn."""
        self.slices.mark(axis, indices, partly)
        self.log.dirty = True
        self.live.saveNow()

    def unmark(self):
        """The selected slice no longer counts."""
        axis, index = self.slices.selected() if self.alive() else (None, None)
        if axis is not None:
            self.slices.unmark(axis, [index])
            self.log.dirty = True
            self.live.saveNow()

    def jump(self):
        """Show the selected slice."""
        axis, index = self.slices.selected() if self.alive() else (None, None)
        if axis is not None:
            self.view.jumpTo(axis, index)

    def step(self, direction):
        """Show the next (or previous) suggested slice that is not annotated; after a case's last one, the next case."""
        if not self.alive() or not self.slices.suggested:
            return
        if self.live.isOn() and direction > 0:
            return self.live.proposing.next()
        shown = self.view.shownSlice(self.axis())
        index = self.slices.beside(-1 if shown is None else shown, direction)
        if index is None and direction > 0:
            other = self.slices.nextCase()
            if other is not None:
                return self.showCase(other, walk=True)
        if index is None:
            index = self.slices.first()
        if index is None:
            text = _("All suggested slices of {case} are annotated.")
            return self.session.say(text.format(case=self.view.name), "done")
        self.goTo(index)

    def _onEdited(self, changes):
        """An edit changed these slices."""
        from MedSSLLib.project.advice import STROKE_SLICES

        if not self.alive():
            return
        stroke = len(changes) <= STROKE_SLICES
        for index in self.view.lostMarks().get(self.axis(), []):
            number = self.log.number(index)
            changes.setdefault(index, (number, number))  # marked without a change, and undone
        undone = self.slices.follow(changes, stroke and self.ui.autoMarkCheckBox.checked)
        self.view.writeTags()  # last: tags that are as they should be stay, and redo with them
        self.live.saveSoon()
        if undone:
            self.log.dirty = True
            text = _("Slice {n} is as before: it no longer counts as annotated.")
            self.session.say(text.format(n=sliceNumber(undone[0])))
        elif not stroke:
            text = _("{n} slices changed at once. Mark those that you checked.")
            self.session.say(text.format(n=len(changes)))

    # -- the library ----------------------------------------------------------------------------------------------

    def suggest(self):
        """Have the library choose the slices that are worth most."""
        if self.live.isOn():
            self.live.proposing.askMore()
        elif self.store.isOpen():
            runs = self.store.models() or self.store.encoders()
            arguments = commands.suggest(
                self.store.folder, self.ui.budgetSpinBox.value, runs[-1] if runs else None
            )
            self.session.startJob(_("Choosing slices"), arguments, kind="suggest", tells=True)

    def takeSuggestion(self, event):
        """Slices that the library suggests, in any case."""
        self.slices.wanted = event.get("slices") or []
        entries = self.slices.wanted
        if self.alive():
            choose(self.ui.directionComboBox, str(next(iter(self.slices.asked()), self.axis())))
            self.slices.spread()
        cases = list(dict.fromkeys(entry["case"] for entry in entries))
        if not cases:
            self.session.say(_("No slice is left to suggest."), "warning")
        elif self.alive() and self.view.name in cases:
            text = _("{n} slices are suggested in {m} cases. Next leads from one to the next.")
            self.session.say(text.format(n=len(entries), m=len(cases)), "done")
        else:
            text = _("{n} slices are suggested, in other cases. Show {case} to begin.")
            self.session.say(text.format(n=len(entries), case=cases[0]), "done")

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self, aloud=False):
        """Write the annotation of the shown case into the project, if it changed; `aloud`: say so."""
        if not self.alive() or not self.store.isOpen() or self.store.case(self.view.name) is None:
            return
        self.log.flush()
        self.session.guarded(self.classes.takeOver)
        if self.log.dirty:
            self.log.dirty, view = False, self.view
            self.session.stepper.start(
                saveSteps(self.session, view, self.proposals.waiting()),
                lambda marked: self._onSaved(view, marked, aloud),
                lambda error: self._onNotSaved(view, error),
            )
        elif aloud:
            text = _("{case}: nothing has changed since it was saved.")
            self.session.say(text.format(case=self.view.name))

    def _onSaved(self, view, marked, aloud):
        self.live.onSaved()
        count = sum(len(indices) for indices in marked.values())
        if aloud and count:
            text = _("{case} is saved, with {n} annotated slices.")
            self.session.say(text.format(case=view.name, n=count), "done")
        elif aloud:
            text = _("{case} is saved. No slice is marked yet, so nothing is learned from it.")
            self.session.say(text.format(case=view.name), "warning")

    def _onNotSaved(self, view, error):
        """What was drawn is still in the scene; the next save tries again."""
        self.log.keep(view)
        text = _("{case} is not saved yet: {error}").format(case=view.name, error=error)
        self.session.say(text, "error")

    # -- module ---------------------------------------------------------------------------------------------------

    def refresh(self):
        entries = [(case.name, case.name) for case in self.store.cases if case.role != "test"]
        fillCombo(self.ui.annotateCaseComboBox, entries)
        ready = self.view is not None
        self.classes.show(ready)
        hint = ""
        if not ready:
            pick, add = _("Choose a case and press Show."), _("Add volumes in panel 1 first.")
            hint = pick if entries else add
        self.setHint(self.ui.annotateHint, hint)
        self.ui.loadCaseButton.setEnabled(bool(entries))
        self.ui.suggestButton.setEnabled(bool(entries))
        self.ui.segmentEditor.setVisible(ready)
        for name in _WITH_CASE:
            getattr(self.ui, name).setEnabled(ready)
        self.live.refresh()

    def enter(self):
        self.editor.enter()

    def exit(self):
        self.save()
        self.editor.exit()

    def onOpened(self):
        """What another panel showed meanwhile goes: else one would draw unseen, over another case's image."""
        self.editor.use(True)
        if self.alive() and not self.view.segmentation.GetDisplayNode().GetVisibility():
            self.bringUp()

    def onFolded(self):
        """Another panel is used now: the mouse draws no more, and what was drawn counts there."""
        self.editor.endEffect()
        self.editor.use(False)
        self.save()

    def onSceneClosing(self):
        """The scene is about to be closed: write what was drawn, then let go of it."""
        self.save()
        self.session.stepper.finish()
        self.live.end()
        self._letGo()
        self.refresh()

    def cleanup(self):
        self.live.cleanup()
        self.log.stop()
        self.editor.cleanup()
