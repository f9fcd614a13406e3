"""Panel 2: learning from unlabelled scans."""

import qt
from slicer.i18n import tr as _

from .. import advice, commands
from .base import Panel, choose, chosen, fillCombo


class PretrainPanel(Panel):
    """Method, preset, device, estimate; Pretrain and Resume."""

    NAME = "Pretrain"

    def __init__(self, session, parent=None):
        super().__init__(session, parent)
        ui = self.ui
        self._touched = False
        fillCombo(ui.methodComboBox, [(name, key) for key, name, _text in advice.methods()])
        fillCombo(ui.pretrainPresetComboBox, [(name, key) for key, name in advice.presets()])
        choose(ui.pretrainPresetComboBox, "standard")
        fillCombo(
            ui.deviceComboBox,
            [(_("Automatic"), "auto"), (_("CPU"), "cpu"), (_("GPU (CUDA)"), "cuda")],
        )
        ui.methodComboBox.activated.connect(lambda index: self._onMethod())
        ui.methodComboBox.currentIndexChanged.connect(lambda index: self._describe())
        ui.pretrainPresetComboBox.currentIndexChanged.connect(lambda index: self._estimate())
        ui.pretrainMinutesSpinBox.valueChanged.connect(lambda value: self._estimate())
        ui.pretrainButton.clicked.connect(lambda: self.pretrain())
        ui.resumePretrainButton.clicked.connect(lambda: self.resume())
        self._soon = qt.QTimer(self.widget)
        self._soon.setSingleShot(True)
        self._soon.setInterval(150)
        self._soon.timeout.connect(lambda: self._recommend())
        self.store.factsChanged.connect(self._onFact)
        self.refresh()

    def _onMethod(self):
        self._touched = True
        self._describe()

    def _onFact(self, name):
        if not self._soon.isActive():
            self._soon.start()

    def cleanup(self):
        self._soon.stop()
        self.store.factsChanged.disconnect(self._onFact)

    def _recommend(self):
        method, self._why = advice.recommended(
            self.store.facts.values(), self.store.metadataColumns()
        )
        if not self._touched:
            choose(self.ui.methodComboBox, method)
        self._describe()

    def _describe(self):
        key = chosen(self.ui.methodComboBox)
        text = next((text for method, _name, text in advice.methods() if method == key), "")
        self.ui.methodLabel.setText(
            f"{text}<br><i>{self._why}</i>" if getattr(self, "_why", "") else text
        )
        self.ui.metaEdit.setEnabled(key == "gcl")
        self._estimate()

    def _estimate(self):
        minutes = self.ui.pretrainMinutesSpinBox.value
        history = [
            (
                run["config"].get("preset") or run["config"].get("config", {}).get("preset"),
                (run["metrics"] or {}).get("seconds"),
            )
            for run in self.store.runs()
            if run["config"] and (run["metrics"] or {}).get("seconds")
        ]
        self.ui.estimateLabel.setText(
            advice.estimate(
                self.store.facts.values(), chosen(self.ui.pretrainPresetComboBox), minutes, history
            )
        )

    def refresh(self):
        self._recommend()
        enough = len([case for case in self.store.cases if case.role != "test"])
        hint = "" if enough >= 2 else _("Add at least two volumes in panel 1 first.")
        self.setHint(self.ui.pretrainHint, hint)
        self.ui.pretrainButton.setEnabled(not hint)
        self.ui.resumePretrainButton.setEnabled(self._unfinished() is not None)

    def _unfinished(self):
        running = self.session.queue.current
        if running is not None:
            return None
        runs = [run for run in self.store.runs() if run["resumable"] and not run["finished"]]
        return next((run for run in reversed(runs) if advice.command(run) == "pretrain"), None)

    def settings(self):
        """What the panel holds, for `commands.pretrain`."""
        ui = self.ui
        return {
            "method": chosen(ui.methodComboBox),
            "meta": ui.metaEdit.text.strip(),
            "preset": chosen(ui.pretrainPresetComboBox),
            "minutes": ui.pretrainMinutesSpinBox.value,
            "device": chosen(ui.deviceComboBox),
            "name": ui.pretrainNameEdit.text.strip(),
        }

    def pretrain(self):
        """Queue the pre-training."""
        if self.store.isOpen():
            self.session.startJob(
                _("Pre-training"),
                commands.pretrain(self.store.folder, self.settings()),
                kind="pretrain",
            )

    def resume(self):
        """Go on with the latest unfinished pre-training."""
        run = self._unfinished()
        if run:
            self.session.startJob(
                _("Pre-training, resumed"), commands.resume(self.store.folder, run), kind="pretrain"
            )
