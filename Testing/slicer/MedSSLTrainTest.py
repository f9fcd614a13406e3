"""Run by Slicer itself, by ctest or as a script: trains a tiny model and predicts inside the application.

    Slicer --no-splash --no-main-window --python-script Testing/slicer/MedSSLTrainTest.py

The exit code is 0 when all is well, 77 when PyTorch and the other packages are not installed, else 1. No network.
"""

import os
import shutil
import sys
import tempfile
import traceback
import unittest

import slicer

SECONDS = 6
SKIPPED = 77


class MedSSLTrainTest(unittest.TestCase):
    """Phantoms, a project, some steps of training, and the logic's `process` on a volume of the scene."""

    def setUp(self):
        makeImportable()
        from MedSSLGui.jobs.install import seemsMissing

        missing = seemsMissing()
        if missing:
            self.skipTest("not installed: " + ", ".join(missing))
        slicer.mrmlScene.Clear(0)
        self.folder = tempfile.mkdtemp(prefix="medssl-")

    def tearDown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def test_trains_and_predicts(self):
        from MedSSLGui.jobs import commands
        from MedSSLGui.segmentvolume import process

        sample, project = os.path.join(self.folder, "sample"), os.path.join(self.folder, "project")
        self.run_(commands.phantoms(sample, "heart", 2))
        images, labels = os.path.join(sample, "images"), os.path.join(sample, "labels")
        start = ["-m", "MedSSLLib", "init", project, "--images", images, "--labels", labels]
        self.run_([*start, "--events", "-"])
        train = ["-m", "MedSSLLib", "finetune", project, "--name", "tiny", "--preset", "quick"]
        events = self.run_([*train, "--minutes", str(SECONDS / 60), "--events", "-"])
        self.assertEqual(events[-1]["event"], "done")
        volume = slicer.util.loadVolume(os.path.join(images, "heart_01.nii.gz"))
        made = process(volume, None, os.path.join(project, "runs", "tiny"))
        self.assertGreaterEqual(made.GetSegmentation().GetNumberOfSegments(), 3)
        self.assertIs(
            made.GetNodeReference(
                slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
            ),
            volume,
        )

    def run_(self, arguments):
        from MedSSLGui.jobs.calls import answerSteps
        from MedSSLGui.jobs.stepper import runToEnd

        return runToEnd(answerSteps("test", arguments))


def makeImportable():
    """The module's own folder, whether it is installed or beside this file in the source tree."""
    here = os.path.dirname(os.path.abspath(__file__))
    source = os.path.join(here, os.pardir, os.pardir, "MedSSL")
    found = getattr(slicer.modules, "medssl", None)
    folder = os.path.dirname(found.path) if found is not None else source
    if folder not in sys.path:
        sys.path.insert(0, os.path.abspath(folder))
    from MedSSLGui.jobs.processes import makeLibraryImportable

    makeLibraryImportable()


def main():
    """Run the tests; returns the exit code."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(MedSSLTrainTest)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    if not result.wasSuccessful():
        return 1
    return SKIPPED if result.skipped else 0


if __name__ == "__main__":
    # an exception that leaves a script would keep the application running for ever
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    slicer.util.exit(code)
