"""What every panel is made of."""

from pathlib import Path

import qt
import slicer

_UI = Path(__file__).resolve().parent.parent.parent / "Resources" / "UI"


class Panel(qt.QObject):
    """A .ui file and the code behind it. `widget` goes into the section of the module's panel."""

    NAME = ""

    def __init__(self, session, parent=None):
        super().__init__(parent)
        self.session = session
        self.store = session.store
        self.widget = slicer.util.loadUI(str(_UI / f"{self.NAME}.ui"))
        self.ui = slicer.util.childWidgetVariables(self.widget)

    def enter(self):
        """The module is shown."""

    def exit(self):
        """The module is left."""

    def refresh(self):
        """The project changed."""

    def cleanup(self):
        """The panel goes away."""

    def setHint(self, label, text):
        """What is missing for the next step; an empty text hides the line."""
        label.setText(text)
        label.setVisible(bool(text))


def fillCombo(combo, entries, keep=True):
    """Put (text, key) entries into a combo box; the chosen key stays if it is still there."""
    key = combo.itemData(combo.currentIndex)
    combo.blockSignals(True)
    combo.clear()
    for text, data in entries:
        combo.addItem(text, data)
    index = combo.findData(key) if keep and key is not None else -1
    combo.setCurrentIndex(max(index, 0) if entries else -1)
    combo.blockSignals(False)


def chosen(combo):
    """The key of the chosen entry, "" when there is none."""
    return combo.itemData(combo.currentIndex) or ""


def choose(combo, key):
    """Choose the entry with a key; False when there is none."""
    index = combo.findData(key)
    if index >= 0:
        combo.setCurrentIndex(index)
    return index >= 0


def cell(text, editable=False, key=None):
    """A table cell."""
    item = qt.QTableWidgetItem(text)
    flags = qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled
    item.setFlags(flags | qt.Qt.ItemIsEditable if editable else flags)
    if key is not None:
        item.setData(qt.Qt.UserRole, key)
    return item


def selectedRows(table):
    """Numbers of the selected rows, ascending."""
    return sorted({item.row() for item in table.selectedItems()})


def setUpTable(table, titles, stretch=0):
    """Columns and manners of a table that is read row by row."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(titles)
    table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
    table.setAlternatingRowColors(True)
    vertical = table.verticalHeader()
    vertical.setVisible(False)
    header = table.horizontalHeader()
    header.setHighlightSections(False)
    header.setSectionResizeMode(stretch, qt.QHeaderView.Stretch)
