"""The table of cases: one row a case, metadata columns editable. Rows are filled a few at a time."""

import qt
from slicer.i18n import tr as _

from ..project import words
from .base import INK, cell, isDark, selectedRows, setUpTable

_FIXED = 4
"""Columns before those of the metadata; size and spacing come after them."""
_ROWS_AT_ONCE = 8


class CaseTable:
    """Shows the store's cases. Only rows that changed are touched, so 200 volumes stay responsive."""

    def __init__(self, session):
        self.session, self.store = session, session.store
        self.widget = qt.QTableWidget()
        self.widget.setObjectName("caseTable")
        self.widget.setToolTip(
            _("Cases of the project. Double-click a metadata cell to edit it. Drop files to add.")
        )
        self.widget.setIconSize(qt.QSize(40, 40))
        self.widget.setMinimumHeight(220)
        self.columns = []
        self._extra = []
        self._rows = {}
        self._shown = {}
        self._filling = False
        self._waiting = []
        self._timer = qt.QTimer(self.widget)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._fillSome)
        self.widget.itemChanged.connect(lambda item: self._onEdited(item))
        self.store.factsChanged.connect(self._update)
        self._layOut()

    def _titles(self):
        fixed = ["", _("Case"), _("Annotated"), _("Role")]
        return [*fixed, *self.columns, _("Size"), _("Spacing (mm)")]

    def _layOut(self):
        setUpTable(self.widget, self._titles(), 1)
        header = self.widget.horizontalHeader()
        header.setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)
        self.widget.setColumnWidth(0, 46)
        last = len(self._titles()) - 1
        for column, width in ((2, 80), (3, 80), (last - 1, 96), (last, 112)):
            self.widget.setColumnWidth(column, width)

    def refresh(self):
        """Follow the store."""
        columns = self.store.metadataColumns()
        columns += [name for name in self._extra if name not in columns]
        names = [case.name for case in self.store.cases]
        if columns != self.columns or names != list(self._rows):
            self.columns = columns
            self._rows = {name: row for row, name in enumerate(names)}
            self._shown = {}
            self._filling = True
            self.widget.setRowCount(0)
            self._layOut()
            self.widget.setRowCount(len(names))
            self._filling = False
        self._waiting = names
        if names:
            self._timer.start()

    def _fillSome(self):
        part, self._waiting = self._waiting[:_ROWS_AT_ONCE], self._waiting[_ROWS_AT_ONCE:]
        for name in part:
            self._update(name)
        if not self._waiting:
            self._timer.stop()

    def _update(self, name):
        case, row = self.store.case(name), self._rows.get(name)
        if case is None or row is None:
            return
        fact = self.store.facts.get(name, {})
        texts = self._texts(case, fact)
        state = (tuple(texts), fact.get("thumbnail"))
        if self._shown.get(name) == state:
            return
        self._shown[name] = state
        self._filling = True
        for column, text in enumerate(texts):
            editable = _FIXED <= column < _FIXED + len(self.columns)
            item = cell(text, editable, name if column == 0 else None)
            self.widget.setItem(row, column, item)
        case_ = self.widget.item(row, 1)
        case_.setToolTip(
            _("{name}\n{size}, {spacing} mm").format(name=name, size=texts[-2], spacing=texts[-1])
        )
        if fact.get("thumbnail"):
            self.widget.item(row, 0).setIcon(qt.QIcon(fact["thumbnail"]))
        if fact.get("problem"):
            case_.setToolTip(fact["problem"])
            ink = INK["dark" if isDark(self.widget) else "light"]["error"]
            case_.setForeground(qt.QBrush(qt.QColor(ink)))
        self.widget.setRowHeight(row, 44)
        self._filling = False

    def _texts(self, case, fact):
        if fact.get("size"):
            size = " × ".join(str(n) for n in fact["size"])
        else:
            size = "!" if fact.get("problem") else "…"
        spacing = " × ".join(f"{s:.3g}" for s in fact["spacing"]) if fact.get("spacing") else ""
        roles = {"labelled": _("training"), "unlabelled": _("unlabelled"), "test": _("test")}
        names = fact.get("axes") or self.session.axisNames(case.name)
        fixed = ["", case.name, words.annotationText(case, names), roles[case.role]]
        return [*fixed, *(case.metadata.get(column, "") for column in self.columns), size, spacing]

    def close(self):
        """The panel goes away: touch no widget any more."""
        self._timer.stop()
        self._waiting = []
        self.store.factsChanged.disconnect(self._update)

    def addColumn(self, name):
        """Show a metadata column, empty until cells are filled in."""
        if name and name not in self.columns:
            self._extra.append(name)
            self.refresh()

    def selectedCases(self):
        """Names of the selected cases."""
        names = list(self._rows)
        return [names[row] for row in selectedRows(self.widget) if row < len(names)]

    def _onEdited(self, item):
        if self._filling or not _FIXED <= item.column() < _FIXED + len(self.columns):
            return
        name, key = list(self._rows)[item.row()], self.columns[item.column() - _FIXED]
        self.session.guarded(lambda: self.store.setMetadata(name, key, item.text().strip()))
