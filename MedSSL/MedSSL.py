"""MedSSL: learn from unlabelled scans, annotate a few slices, segment the rest."""

import os
import sys

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

_TUTORIAL = (
    "https://github.example/MedSSL/SlicerMedSSL/blob/main/Resources/Documentation/Tutorial.md"
)
_HERE = os.path.dirname(os.path.abspath(__file__))


class MedSSL(ScriptedLoadableModule):
    """Describes the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MedSSL")
        parent.categories = ["Segmentation"]
        parent.dependencies = []
        parent.contributors = ["The MedSSL contributors"]
        parent.helpText = _(
            "Segmentation with few labels. 1 Data: choose a project folder and add volumes. 2 Pre-train (optional): "
            "the network learns from all scans without labels. 3 Annotate: draw on a few slices and mark them; with Live, a model "
            "learns meanwhile and proposes the next slices. 4 Train: fine-tune, then self-train. 5 Review: predict, "
            "correct, export. Everything stays on this computer."
        )
        parent.helpText += f'<p><a href="{_TUTORIAL}">' + _("Tutorial") + "</a></p>"
        parent.acknowledgementText = _(
            "Implements PGL (Xie et al. 2020), gradient-guided contrastive learning with multi-perspective meta labels "
            "(Wu et al. 2023) and local contrastive self-training (Chaitanya et al. 2023)."
        )
        if hasattr(slicer.app, "startupCompleted"):
            slicer.app.startupCompleted.connect(registerSampleData)


def registerSampleData():
    """Offer the sample cohort in the Sample Data module."""
    _makeImportable()
    from MedSSLGui.project.sampledata import register

    register()


def _makeImportable():
    """The module's own folder holds MedSSLGui, also when the module is loaded from source."""
    if _HERE not in sys.path:
        sys.path.append(_HERE)


class MedSSLWidget(ScriptedLoadableModuleWidget):
    """Holds the panel; everything in it is in MedSSLGui."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic = None
        self.shell = None

    def setup(self):
        """Load the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        _makeImportable()
        from MedSSLGui.jobs.processes import makeLibraryImportable
        from MedSSLGui.shell import Shell

        makeLibraryImportable()
        self.logic = MedSSLLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/MedSSL.ui"))
        self.layout.addWidget(widget)
        self.shell = Shell(widget, self.logic.parameters)

    def enter(self):
        """The module is shown."""
        if self.shell:  # after a reload, Slicer may call the old widget once more
            self.shell.enter()

    def exit(self):
        """The module is left."""
        if self.shell:
            self.shell.exit()

    def cleanup(self):
        """The panel goes away; jobs go on."""
        if self.shell:
            self.shell.cleanup()
            self.shell = None


class MedSSLLogic(ScriptedLoadableModuleLogic):
    """The parameter node, and a trained model on any volume. Never opens a dialog."""

    def process(self, volumeNode, segmentationNode, model):
        """Segment a volume with a trained model; returns the segmentation node (a new one for None).

        The volume need not be a case of a project. model: folder of a finished run (PROJECT/runs/RUN).
        Waits for the result. Raises RuntimeError with what is wrong and what to do.
        """
        _makeImportable()
        from MedSSLGui.segmentvolume import process

        return process(volumeNode, segmentationNode, model)

    def parameters(self):
        """The scene's settings of this module."""
        from MedSSLGui.parameters import MedSSLParameters

        return MedSSLParameters(self.getParameterNode())


class MedSSLTest(ScriptedLoadableModuleTest):
    """Self tests, run inside Slicer."""

    def runTest(self):
        """Run every test of Testing/slicer that needs no network and no installation."""
        _makeImportable()
        from MedSSLGui.selftest import run

        self.assertEqual(run(), [])
