"""The list of pseudo-labels of a self-training: looking at them, accepting, rejecting, going on."""

import qt
from slicer.i18n import tr as _

from ..jobs import commands
from ..project import pseudolabels
from ..project.pseudolabels import Decisions
from .base import cell, choose, chosen, fillCombo, selectedRows, setUpTable


class PseudoLabelList:
    """Part of the Review panel. `showLabel(case, run, folder)` brings a pseudo-label into the views."""

    def __init__(self, session, ui, showLabel):
        self.session, self.store, self.ui, self._showLabel = session, session.store, ui, showLabel
        self._rows = []
        titles = [_("Case"), _("Confidence"), _("Looked at"), _("Decision"), _("Used")]
        setUpTable(ui.pseudoTable, titles)
        ui.pseudoRunComboBox.currentIndexChanged.connect(lambda index: self._onRun())
        ui.pseudoRoundComboBox.currentIndexChanged.connect(lambda index: self.show())
        ui.pseudoTable.itemSelectionChanged.connect(lambda: self._onSelected())
        ui.acceptPseudoButton.clicked.connect(lambda: self.decide("accept"))
        ui.rejectPseudoButton.clicked.connect(lambda: self.decide("reject"))
        ui.forgetPseudoButton.clicked.connect(lambda: self.decide(""))
        ui.continueSelfTrainButton.clicked.connect(lambda: self.goOn())

    def refresh(self):
        """Follow the project: runs that have pseudo-labels, the newest first."""
        runs = []
        for run in reversed(self.store.runs()):
            if pseudolabels.rounds(self.store.folder / "runs" / run["name"]):
                runs.append((run["name"], run["name"]))
        self.ui.pseudoBox.setVisible(bool(runs))
        had = chosen(self.ui.pseudoRunComboBox)
        fillCombo(self.ui.pseudoRunComboBox, runs)
        if chosen(self.ui.pseudoRunComboBox) != had:
            self._onRun()
        else:
            self._fillRounds()

    def _folder(self):
        run = chosen(self.ui.pseudoRunComboBox)
        return self.store.folder / "runs" / run if run else None

    def _onRun(self):
        self._fillRounds()
        count = self.ui.pseudoRoundComboBox.count
        self.ui.pseudoRoundComboBox.setCurrentIndex(count - 1)  # the last round counts
        self.show()

    def _fillRounds(self):
        folder, entries = self._folder(), []
        for path in pseudolabels.rounds(folder) if folder else []:
            entries.append((path.name[len("round-") :], path.name))
        had = chosen(self.ui.pseudoRoundComboBox)
        fillCombo(self.ui.pseudoRoundComboBox, entries)
        if had and not choose(self.ui.pseudoRoundComboBox, had):
            self.show()

    def show(self):
        """Fill the table with the round's pseudo-labels."""
        folder, name = self._folder(), chosen(self.ui.pseudoRoundComboBox)
        self._rows = pseudolabels.entries(folder / "pseudo" / name) if folder and name else []
        decisions = Decisions(folder) if folder else None
        words = {"accept": _("accepted"), "reject": _("rejected")}
        table, selected = self.ui.pseudoTable, self.selected()
        table.blockSignals(True)
        table.setRowCount(len(self._rows))
        for number, (case, confidence, used) in enumerate(self._rows):
            looked = cell("")
            looked.setCheckState(qt.Qt.Checked if case in decisions.seen else qt.Qt.Unchecked)
            decision = words.get(decisions.chosen.get(case), "")
            items = [cell(case), cell(f"{confidence:.3f}"), looked, cell(decision)]
            for column, item in enumerate([*items, cell(_("yes") if used else _("no"))]):
                table.setItem(number, column, item)
        for number, (case, _confidence, _used) in enumerate(self._rows):
            if case in selected:
                table.selectRow(number)
        table.blockSignals(False)
        table.resizeColumnsToContents()
        self._enable()

    def selected(self):
        """Names of the selected cases."""
        names = []
        for row in selectedRows(self.ui.pseudoTable):
            item = self.ui.pseudoTable.item(row, 0)
            if item is not None:
                names.append(item.text())
        return names

    def _onSelected(self):
        names, folder = self.selected(), self._folder()
        if len(names) == 1 and folder:
            Decisions(folder).look(names[0])
            row = selectedRows(self.ui.pseudoTable)[0]
            self.ui.pseudoTable.item(row, 2).setCheckState(qt.Qt.Checked)
            name = chosen(self.ui.pseudoRoundComboBox)
            self._showLabel(names[0], folder.name, folder / "pseudo" / name)
        self._enable()

    def decide(self, word):
        """Accept ("accept"), reject ("reject") or leave open ("") the selected pseudo-labels."""
        names, folder = self.selected(), self._folder()
        if names and folder and self.session.guarded(lambda: Decisions(folder).choose(names, word)):
            self.show()

    def goOn(self):
        """Self-training from this run, with what was decided."""
        folder = self._folder()
        if folder is None:
            return
        decisions, ui = Decisions(folder), self.ui
        settings = {"rounds": 1, "preset": "standard", "minutes": None}
        settings.update(self.session.trainSettings())
        arguments = commands.goOn(
            self.store.folder,
            folder.name,
            decisions.of("accept"),
            decisions.of("reject"),
            settings,
        )
        title = _("Self-training from {run}").format(run=folder.name)
        if self.session.startJob(title, arguments, kind="selftrain"):
            ui.continueSelfTrainButton.setEnabled(False)

    def _enable(self):
        some = bool(self.selected())
        for name in ("acceptPseudoButton", "rejectPseudoButton", "forgetPseudoButton"):
            getattr(self.ui, name).setEnabled(some)
        folder = self._folder()
        decided = bool(folder and Decisions(folder).chosen)
        self.ui.continueSelfTrainButton.setEnabled(decided)
