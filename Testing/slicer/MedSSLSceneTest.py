"""Run by Slicer itself: nodes, tags, projects."""

import unittest

import slicer


class MedSSLSceneTest(unittest.TestCase):
    """The checks that the module's own self test makes."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def test_checks_of_the_module(self):
        slicer.util.getModuleLogic("MedSSL")
        import MedSSL

        MedSSL._makeImportable()
        from MedSSLGui.selftest import run

        self.assertEqual(run(), [])
