"""Which slices of the shown case are annotated, which ones are suggested, and the way from one to the next."""

import qt
from slicer.i18n import tr as _

from ..project import suggestions
from ..project.words import sliceNumber
from ..scene import annotation
from ..scene.drawinglog import alike


class SliceList:
    """The list of annotated slices of a CaseView along one axis, and the suggestions of the library.

    `show(view, axis)` begins; without a case `view` is None.
    """

    def __init__(self, session, ui):
        self.session, self.store, self.ui = session, session.store, ui
        self.view, self.axis = None, 2
        self.wanted, self.suggested = [], []
        self._drawn = {}  # slices that were marked because of a drawing: what was on them before

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
        for axis, indices in self.view.annotated().items():
            for index in indices:
                text = _("{direction} slice {n}").format(
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

    def mark(self, axis, indices):
        """Slices count as annotated, until they are unmarked."""
        marked = self.view.annotated()
        marked[axis] = sorted(set(marked.get(axis, [])) | set(indices))
        for index in indices:
            self._drawn.pop((axis, index), None)
        self.view.setAnnotated(marked)
        self.refresh()

    def unmark(self, axis, indices):
        """Slices no longer count."""
        marked = self.view.annotated()
        marked[axis] = [index for index in marked.get(axis, []) if index not in indices]
        for index in indices:
            self._drawn.pop((axis, index), None)
        self.view.setAnnotated(marked)
        self.refresh()

    def follow(self, changes):
        """Mark slices that were drawn on; unmark those whose drawing was undone. changes: see DrawingLog.

        A slice that is as it was before it was drawn on would teach that all of it is background.
        """
        axis, marked = self.axis, self.annotated()
        undone, drawn = [], []
        for index, (before, now) in changes.items():
            earlier = self._drawn.get((axis, index))
            if earlier is not None and alike(earlier, now):
                undone.append(index)
            elif index not in marked:
                drawn.append((index, before))
        if undone:
            self.unmark(axis, undone)
        if drawn:
            self.mark(axis, [index for index, _before in drawn])
            for index, before in drawn:
                self._drawn[axis, index] = before
        return undone

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
