"""The classes of the project: names, colours, terminology, the same in every case.

While a case is shown, the segment editor's own list shows them; the table here is for the time before, so that nobody
sees the same classes twice. What is renamed or recoloured there is taken over.
"""

import qt
import slicer
from slicer.i18n import tr as _

from ..project.store import COLOURS
from ..scene import segments
from ..signals import Signal
from .base import cell, selectedRows, setUpTable


class ClassTable:
    """Shows and edits the store's classes; signal `changed()` tells that they are others than before."""

    def __init__(self, session, ui, editor):
        self.changed = Signal()
        self.session, self.store, self.ui, self.editor = session, session.store, ui, editor
        self.table = ui.classTable
        setUpTable(self.table, [_("Colour"), _("Class"), _("Terminology")], 1)
        self.table.setColumnWidth(0, 54)
        self.table.itemChanged.connect(lambda item: self._onEdited())
        self.table.cellDoubleClicked.connect(lambda row, column: self._onClicked(row, column))
        ui.addClassButton.clicked.connect(lambda: self.add())
        ui.removeClassButton.clicked.connect(lambda: self.remove())

    def add(self, name=""):
        """Add a class to the project."""
        if not self.store.isOpen():
            return
        classes = self.takeOver()
        value = max([entry[0] for entry in classes], default=0) + 1
        colour = COLOURS[(value - 1) % len(COLOURS)]
        self._set(classes + [(value, name or _("class {n}").format(n=value), colour, "")])

    def remove(self):
        """Remove the selected class, as long as no label exists that may use it."""
        rows = selectedRows(self.table)
        if any(case.label for case in self.store.cases):
            text = _("Cases are labelled already; classes can be renamed, not removed.")
            self.session.say(text, "warning")
        elif self._edited() is not None:
            self.session.say(_("Leave the case first: classes are removed in the list."), "warning")
        elif rows:
            self._set([entry for n, entry in enumerate(self.store.classes()) if n not in rows])

    def setColour(self, row, colour):
        """Give a class another colour, (r, g, b) from 0 to 1."""
        classes = self.store.classes()
        value, name, _old, term = classes[row]
        classes[row] = (value, name, tuple(colour), term)
        self._set(classes)

    def _edited(self):
        """The segmentation in the editor, None without one."""
        return self.editor.widget.segmentationNode()

    def takeOver(self):
        """The classes with the names and colours that the segment editor's list has now; also written to the project."""
        classes, node = self.store.classes(), self._edited()
        if node is None:
            return classes
        found = list(classes)
        for identifier in segments.segmentIds(node):
            segment = node.GetSegmentation().GetSegment(identifier)
            value = segments.classOf(segment, classes)
            for number, (own, _name, _colour, _term) in enumerate(classes):
                if own == value:
                    colour = tuple(round(part, 4) for part in segment.GetColor())
                    term = segments.terminologyOf(segment)
                    found[number] = (own, segment.GetName(), colour, term)
        if found != classes and self._distinct(found):
            self.store.setClasses(found)
        return self.store.classes()

    def show(self, caseShown):
        """Follow the store; the table is hidden while a case is shown in the editor."""
        self.ui.classTable.setVisible(not caseShown)
        self.ui.removeClassButton.setVisible(not caseShown)
        classes = self.store.classes()
        self.table.blockSignals(True)
        self.table.setRowCount(len(classes))
        for row, (value, name, colour, term) in enumerate(classes):
            swatch = cell("", key=value)
            swatch.setBackground(qt.QBrush(qt.QColor.fromRgbF(*colour)))
            self.table.setItem(row, 0, swatch)
            self.table.setItem(row, 1, cell(name, True))
            words = term.split("~")[1].split("^")[-1] if term.count("~") else ""
            self.table.setItem(row, 2, cell(words))
        self.table.blockSignals(False)

    def _set(self, classes):
        if self.session.guarded(lambda: self.store.setClasses(classes)):
            self.changed.emit()

    @staticmethod
    def _distinct(classes):
        names = [entry[1].casefold() for entry in classes]
        return len(set(names)) == len(names)

    def _onEdited(self):
        classes = []
        for row, (value, name, colour, term) in enumerate(self.store.classes()):
            text = self.table.item(row, 1).text().strip() if self.table.item(row, 1) else name
            classes.append((value, text or name, colour, term))
        if not self._distinct(classes):
            self.session.say(_("Two classes cannot have the same name."), "warning")
            self.show(self._edited() is not None)
        elif classes != self.store.classes():
            self._set(classes)

    def _onClicked(self, row, column):
        if column == 0 and not slicer.app.testingEnabled():
            colour = qt.QColorDialog.getColor(qt.QColor.fromRgbF(*self.store.classes()[row][2]))
            if colour.isValid():
                self.setColour(row, (colour.redF(), colour.greenF(), colour.blueF()))
