"""The classes of the project: names, colours, terminology, the same in every case."""

import qt
from slicer.i18n import tr as _

from ..store import COLOURS
from .base import cell, selectedRows, setUpTable


class ClassTable(qt.QObject):
    """Shows and edits the store's classes; `changed` tells that they are others than before."""

    changed = qt.Signal()

    def __init__(self, session, ui, parent=None):
        super().__init__(parent)
        self.session, self.store = session, session.store
        self.table = ui.classTable
        setUpTable(self.table, [_("Colour"), _("Class"), _("Terminology")], 1)
        self.table.itemChanged.connect(lambda item: self._onEdited())
        self.table.cellDoubleClicked.connect(
            lambda row, column: self._askColour(row) if column == 0 else None
        )
        ui.addClassButton.clicked.connect(lambda: self.add())
        ui.removeClassButton.clicked.connect(lambda: self.remove())

    def add(self, name=""):
        """Add a class to the project."""
        if not self.store.isOpen():
            return
        classes = self.store.classes()
        value = max([entry[0] for entry in classes], default=0) + 1
        colour = COLOURS[(value - 1) % len(COLOURS)]
        self._set(classes + [(value, name or _("class {n}").format(n=value), colour, "")])

    def remove(self):
        """Remove the selected class, as long as no label exists that may use it."""
        rows = selectedRows(self.table)
        if rows and any(case.label for case in self.store.cases):
            self.session.say(
                _("Cases are labelled already; classes can be renamed, not removed."), "warning"
            )
        elif rows:
            self._set([entry for n, entry in enumerate(self.store.classes()) if n not in rows])

    def setColour(self, row, colour):
        """Give a class another colour, (r, g, b) from 0 to 1."""
        classes = self.store.classes()
        value, name, _old, term = classes[row]
        classes[row] = (value, name, tuple(colour), term)
        self._set(classes)

    def show(self):
        """Follow the store."""
        classes = self.store.classes()
        self.table.blockSignals(True)
        self.table.setRowCount(len(classes))
        for row, (value, name, colour, term) in enumerate(classes):
            swatch = cell("", key=value)
            swatch.setBackground(qt.QBrush(qt.QColor.fromRgbF(*colour)))
            self.table.setItem(row, 0, swatch)
            self.table.setItem(row, 1, cell(name, True))
            self.table.setItem(
                row, 2, cell(term.split("~")[1].split("^")[-1] if term.count("~") else "")
            )
        self.table.blockSignals(False)

    def _set(self, classes):
        if self.session.guarded(lambda: self.store.setClasses(classes)):
            self.changed.emit()

    def _onEdited(self):
        classes = []
        for row, (value, name, colour, term) in enumerate(self.store.classes()):
            text = self.table.item(row, 1).text().strip() if self.table.item(row, 1) else name
            classes.append((value, text or name, colour, term))
        names = [entry[1].casefold() for entry in classes]
        if len(set(names)) < len(names):
            self.session.say(_("Two classes cannot have the same name."), "warning")
            self.show()
        elif classes != self.store.classes():
            self._set(classes)

    def _askColour(self, row):
        colour = qt.QColorDialog.getColor(qt.QColor.fromRgbF(*self.store.classes()[row][2]))
        if colour.isValid():
            self.setColour(row, (colour.redF(), colour.greenF(), colour.blueF()))
