"""Which slices of the shown case are annotated, which ones are suggested, and the way from one to the next."""

import qt
from slicer.i18n import tr as _

from ..project import suggestions
from ..project.words import sliceNumber
from ..scene import annotation, brush


class SliceList:
    """The list of annotated slices of a CaseView along one axis, and the suggestions of the library.

    `show(view, axis)` begins; without a case `view` is None.
    """

    def __init__(self, session, ui, proposals):
        self.session, self.store, self.ui = session, session.store, ui
        self._proposals = proposals
        self.view, self.axis = None, 2
        self.wanted, self.suggested = [], []
        self._drawn = {}  # slices that were marked because of a drawing: what was on them before
        self._partlyBefore = set()  # those of them that were partly drawn before

    # -- what is shown --------------------------------------------------------------------------------------------

    def show(self, view, axis):
        """Follow a case along an axis."""
        if view is not self.view or axis != self.axis:
            self._drawn = {}
        self.view, self.axis = view, axis
        self.spread()

    def readSuggestions(self):
        """What the library suggested last, in any case."""
        self.wanted = suggestions.readSuggestions(self.store.folder)

    def asked(self):
        """{axis: indices} suggested by the library in the shown case."""
        return suggestions.suggestedSlices(self.wanted, self.view.name) if self.view else {}

    def spread(self):
        """Take the library's suggestions for the shown case and axis, else slices evenly spread."""
        if self.view is not None:
            even = suggestions.evenSlices(self.view.size[self.axis], self.ui.budgetSpinBox.value)
            self.suggested = self.asked().get(self.axis) or even
        self.refresh()

    def annotated(self):
        """Annotated indices along the axis."""
        return self.view.annotated().get(self.axis, []) if self.view else []

    def refresh(self):
        """Fill the list and the bar."""
        widget, bar = self.ui.slicesList, self.ui.annotationProgressBar
        widget.clear()
        bar.setVisible(self.view is not None)
        if self.view is None:
            return
        partly = self.view.partly()
        for axis, indices in self.view.annotated().items():
            for index in indices:
                some = index in partly.get(axis, ())
                text = _("{direction} slice {n}, partly") if some else _("{direction} slice {n}")
                text = text.format(
                    direction=self.view.names[axis].capitalize(), n=sliceNumber(index)
                )
                item = qt.QListWidgetItem(text)
                item.setData(qt.Qt.UserRole, f"{axis}:{index}")
                widget.addItem(item)
        marked = self.annotated()
        done = len([index for index in self.suggested if index in marked])
        bar.setMaximum(max(len(self.suggested), 1))
        bar.setValue(done)
        text = _("{done} of {all} suggested slices, {n} annotated")
        bar.setFormat(text.format(done=done, all=len(self.suggested), n=len(marked)))

    def selected(self):
        """(axis, index) of the chosen line, (None, None) without one."""
        item = self.ui.slicesList.currentItem() if self.view else None
        if item is None:
            return None, None
        axis, index = item.data(qt.Qt.UserRole).split(":")
        return int(axis), int(index)

    # -- marking --------------------------------------------------------------------------------------------------

    def mark(self, axis, indices, partly=False):
        """Slices count as annotated, or as partly drawn, until they are unmarked."""
        marked = self.view.annotated()
        marked[axis] = sorted(set(marked.get(axis, [])) | set(indices))
        for index in indices:
            self._forget(axis, index)
        self.view.setAnnotated(marked)
        some = self.view.partly()
        others = set(some.get(axis, [])) - set(indices)
        some[axis] = sorted(others | set(indices)) if partly else sorted(others)
        self.view.setPartly(some)
        self.refresh()

    def markDrawn(self, axis, index, before):
        """A slice counts as annotated because of what was drawn on it; once undone, it is as it was.

        before: the DrawingLog's number of the slice as it was.
        """
        partly = index in self.view.partly().get(axis, ())
        self.mark(axis, [index])
        self._drawn[axis, index] = before
        if partly:
            self._partlyBefore.add((axis, index))

    def unmark(self, axis, indices):
        """Slices no longer count."""
        marked = self.view.annotated()
        marked[axis] = [index for index in marked.get(axis, []) if index not in indices]
        for index in indices:
            self._forget(axis, index)
        self.view.setAnnotated(marked)
        self.refresh()

    def _forget(self, axis, index):
        self._drawn.pop((axis, index), None)
        self._partlyBefore.discard((axis, index))

    def follow(self, changes, marking):
        """Unmark slices whose drawing was undone and, if `marking`, mark those that were drawn on. Returns the former.

        changes: see DrawingLog. A slice that is as it was before it was drawn on would teach that all of it is
        background. Where background was painted, a slice is partly drawn.
        """
        axis, marked, proposals = self.axis, self.annotated(), self._proposals
        undone, drawn = [], []
        for index, (before, now) in changes.items():
            earlier = self._drawn.get((axis, index))
            gone = proposals.isOffered(index) and now == 0.0  # undo took the proposal away as well
            if (earlier is not None and annotation.alike(earlier, now)) or (
                gone and index in marked
            ):
                undone.append(index)
            elif gone or proposals.isAsOffered(index, now):
                continue  # no person's drawing
            elif marking and index not in marked:
                drawn.append((index, before))
        again = [index for index in undone if (axis, index) in self._partlyBefore]
        if undone:
            self.unmark(axis, undone)
        if again:
            self.mark(axis, again, partly=True)
        self._markDrawn(axis, drawn)
        return undone

    def _markDrawn(self, axis, drawn):
        """Mark slices that a person drew on; drawn: [(index, number before)]."""
        indices = [index for index, _before in drawn]
        partly = brush.brushSlices(self.view, axis, indices)
        whole = [index for index in indices if index not in partly]
        if whole:
            self.mark(axis, whole)
        if partly:
            self.mark(axis, partly, partly=True)
        for index, before in drawn:
            self._drawn[axis, index] = before

    def nextWanted(self, skipped):
        """The next slice that the library suggests and that is not annotated, as (case, axis, index), None without one.

        Those of the shown case come first; skipped: slices that one has left without drawing on them.
        """
        own = self.view.name
        for entry in sorted(self.wanted, key=lambda entry: entry["case"] != own):
            found = (entry["case"], int(entry["axis"]), int(entry["index"]))
            if found not in skipped and not self._isDone(*found):
                return found
        return None

    # -- walking --------------------------------------------------------------------------------------------------

    def first(self):
        """The first suggested slice that is not annotated yet, None when all are."""
        marked = self.annotated()
        return next((index for index in self.suggested if index not in marked), None)

    def beside(self, shown, direction):
        """The next suggested slice from `shown` in a direction that is not annotated yet, None when there is none."""
        marked = self.annotated()
        open_ = [index for index in self.suggested if index not in marked]
        if direction > 0:
            return next((index for index in open_ if index > shown), None)
        return next((index for index in reversed(open_) if index < shown), None)

    def nextCase(self):
        """Another case with suggested slices that are not annotated yet, None without one."""
        return suggestions.nextCase(self.wanted, self.view.name, self._isDone)

    def _isDone(self, name, axis, index):
        if name == self.view.name:
            return index in self.view.annotated().get(axis, [])
        case = self.store.case(name)
        if case is None:
            return True
        return index in annotation.fromManifest(case.annotated).get(axis, [])

    def reason(self, index):
        """Why a slice was suggested, "" where the library did not."""
        return suggestions.reason(self.wanted, self.view.name, self.axis, index)
