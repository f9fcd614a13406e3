"""Run by Slicer itself: the panel opens quickly, without PyTorch, and its main widgets have their names."""

import sys
import tempfile
import time
import unittest

import slicer

NAMES = (
    "pretrainButton",
    "fineTuneButton",
    "selfTrainButton",
    "cancelButton",
    "predictButton",
    "addVolumesButton",
    "markSliceButton",
    "projectPathEdit",
    "caseTable",
    "progressBar",
    "statusLabel",
)


class MedSSLPanelTest(unittest.TestCase):
    """Opening the module and a project."""

    def test_opens_without_torch(self):
        had = "torch" in sys.modules
        start = time.monotonic()
        widget = slicer.util.getModuleWidget("MedSSL")
        self.assertLess(time.monotonic() - start, 2.0)
        self.assertEqual("torch" in sys.modules, had)
        for name in NAMES:
            self.assertTrue(slicer.util.findChildren(widget.parent, name=name), name)

    def test_makes_a_project(self):
        widget = slicer.util.getModuleWidget("MedSSL")
        with tempfile.TemporaryDirectory() as folder:
            slicer.util.findChild(widget.parent, "projectPathEdit").currentPath = folder
            slicer.util.findChild(widget.parent, "openProjectButton").click()
            self.assertTrue(widget.shell.session.store.isOpen())
            widget.shell.session.store.close()
