"""Panel 2: learning from unlabelled scans."""

import qt
from slicer.i18n import tr as _

from ..jobs import commands
from ..project import words
from .base import Panel, choose, chosen, fillCombo


class PretrainPanel(Panel):
    """Method, preset, device, estimate; Pretrain and Resume."""

    NAME = "Pretrain"

    def __init__(self, session):
        super().__init__(session)
        ui = self.ui
        self._touched, self._why = False, ""
        self._methods = words.methods()
        fillCombo(ui.methodComboBox, [(name, key) for key, name, _text in self._methods])
        fillCombo(
            ui.pretrainPresetComboBox, [(name, key) for key, name in words.presets("pretrain")]
        )
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
        facts, columns = self.store.facts.values(), self.store.metadataColumns()
        method, self._why = words.recommended(facts, columns)
        if not self._touched:
            choose(self.ui.methodComboBox, method)
        self._describe()

    def _describe(self):
        key = chosen(self.ui.methodComboBox)
        text = next((text for method, _name, text in self._methods if method == key), "")
        self.ui.methodLabel.setText(f"{text}<br><i>{self._why}</i>" if self._why else text)
        self.ui.metaEdit.setEnabled(key == "gcl")
        self._estimate()

    def _estimate(self):
        facts, runs = self.store.facts.values(), self.store.runs()
        self.ui.estimateLabel.setText(words.estimate(facts, self.settings(), runs))

    def refresh(self):
        from MedSSLLib.project.advice import LEAST_SCANS

        self._recommend()
        usable = [case for case in self.store.cases if case.role != "test"]
        few = _("Add at least two volumes in panel 1 first.")
        hint = "" if len(usable) >= LEAST_SCANS else few
        self.setHint(self.ui.pretrainHint, hint)
        self.ui.pretrainButton.setEnabled(not hint)
        self.ui.resumePretrainButton.setEnabled(self._unfinished() is not None)

    def _unfinished(self):
        if self.session.queue.current is not None:
            return None
        return self.store.unfinished("pretrain")

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
            arguments = commands.pretrain(self.store.folder, self.settings())
            self.session.startJob(_("Pre-training"), arguments, kind="pretrain")

    def resume(self):
        """Go on with the latest unfinished pre-training."""
        run = self._unfinished()
        if run:
            arguments = commands.resume(self.store.folder, run)
            self.session.startJob(_("Pre-training, resumed"), arguments, kind="pretrain")
