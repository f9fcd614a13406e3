"""What every panel is made of."""

from pathlib import Path

import qt
import slicer

INK = {
    "light": {"done": "#1e6e34", "warning": "#7a4f00", "error": "#b3261e"},
    "dark": {"done": "#86d796", "warning": "#f2c566", "error": "#ffa097"},
}
"""Colours of messages with a contrast of at least 4.5 on the panel's background (WCAG 2)."""
_UI = Path(__file__).resolve().parent.parent.parent / "Resources" / "UI"


class Panel:
    """A .ui file and the code behind it. `widget` goes into the section of the module's panel."""

    NAME = ""

    def __init__(self, session):
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

    def onOpened(self):
        """The panel's section was opened."""

    def onFolded(self):
        """The panel's section was closed."""

    def cleanup(self):
        """The panel goes away."""

    def setHint(self, label, text):
        """What is missing for the next step; an empty text hides the line."""
        label.setText(text)
        label.setVisible(bool(text))


_WORD = 22  # characters that fit beside each other in the narrowest panel, whatever the font


def breakable(text):
    """`text` with places (zero-width spaces) where words that are too long for a narrow panel may be broken."""
    pieces = []
    for word in text.split(" "):
        if len(word) > _WORD:
            word = "\u200b".join(word[n : n + _WORD // 2] for n in range(0, len(word), _WORD // 2))
        pieces.append(word)
    return " ".join(pieces)


def isDark(widget):
    """Whether the application's colours are light on dark."""
    return widget.palette.color(qt.QPalette.Window).lightness() < 128


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
    item.setToolTip(text)
    flags = qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled
    item.setFlags(flags | qt.Qt.ItemIsEditable if editable else flags)
    if key is not None:
        item.setData(qt.Qt.UserRole, key)
    return item


def selectedRows(table):
    """Numbers of the selected rows, ascending."""
    return sorted({item.row() for item in table.selectedItems()})


def setUpTable(table, titles, stretch=None):
    """Columns and manners of a table that is read row by row; stretch: the column that takes what room is left."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(titles)
    table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
    table.setAlternatingRowColors(True)
    vertical = table.verticalHeader()
    vertical.setVisible(False)
    header = table.horizontalHeader()
    header.setHighlightSections(False)
    if stretch is not None:
        header.setSectionResizeMode(stretch, qt.QHeaderView.Stretch)
