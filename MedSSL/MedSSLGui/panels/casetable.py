"""The table of cases: one row a case, metadata columns editable. Rows are filled a few at a time."""

import qt
from slicer.i18n import tr as _

from .. import advice
from .base import cell, selectedRows, setUpTable

_FIXED = 6


class CaseTable(qt.QObject):
    """Shows the store's cases. Only rows that changed are touched, so 200 volumes stay responsive."""

    def __init__(self, session, parent=None):
        super().__init__(parent)
        self.session, self.store = session, session.store
        self.widget = qt.QTableWidget()
        self.widget.setObjectName("caseTable")
        self.widget.setToolTip(
            _(
                "Cases of the project. Double-click a metadata cell to edit it. Drop files here to add them."
            )
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
        return [
            "",
            _("Case"),
            _("Size"),
            _("Spacing (mm)"),
            _("Annotated"),
            _("Role"),
        ] + self.columns

    def _layOut(self):
        setUpTable(self.widget, self._titles(), 1)
        self.widget.horizontalHeader().setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)
        self.widget.setColumnWidth(0, 48)
        for column, width in ((2, 92), (3, 104), (4, 96), (5, 76)):
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
        part, self._waiting = self._waiting[:8], self._waiting[8:]
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
            self.widget.setItem(
                row, column, cell(text, column >= _FIXED, name if column == 0 else None)
            )
        if fact.get("thumbnail"):
            self.widget.item(row, 0).setIcon(qt.QIcon(fact["thumbnail"]))
        if fact.get("problem"):
            self.widget.item(row, 1).setToolTip(fact["problem"])
            self.widget.item(row, 1).setForeground(qt.QBrush(qt.QColor("#c05a50")))
        self.widget.setRowHeight(row, 44)
        self._filling = False

    def _texts(self, case, fact):
        size = (
            " × ".join(str(n) for n in fact["size"])
            if fact.get("size")
            else ("!" if fact.get("problem") else "…")
        )
        spacing = " × ".join(f"{s:.3g}" for s in fact["spacing"]) if fact.get("spacing") else ""
        roles = {"labelled": _("training"), "unlabelled": _("unlabelled"), "test": _("test")}
        names = fact.get("axes") or self.session.axisNames(case.name)
        return [
            "",
            case.name,
            size,
            spacing,
            advice.annotationText(case, names),
            roles[case.role],
        ] + [case.metadata.get(column, "") for column in self.columns]

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
        if self._filling or item.column() < _FIXED:
            return
        name, key = list(self._rows)[item.row()], self.columns[item.column() - _FIXED]
        self.session.guarded(lambda: self.store.setMetadata(name, key, item.text().strip()))
