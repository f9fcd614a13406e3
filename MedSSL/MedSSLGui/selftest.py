"""Checks that run inside any Slicer: they need no PyTorch, no network and no project."""

import tempfile
from pathlib import Path

import numpy as np
import slicer

from .jobs.stepper import runToEnd
from .project.store import ProjectStore
from .scene import annotation, segments


def run():
    """Run all checks; returns the names and messages of those that failed."""
    failed = []
    for name, check in sorted(globals().items()):
        if name.startswith("check"):
            try:
                check()
            except Exception as error:
                failed.append(f"{name}: {error!r}")
    return failed


def checkTagRoundTrip():
    names = ("sagittal", "coronal", "axial")
    marked = {0: [4], 2: [3, 9, 15]}
    _equal(annotation.readTag(annotation.writeTag(marked, names), names), marked)
    _equal(annotation.readTag("axial:3,9,x;nothing:1", names), {2: [3, 9]})


def checkAxisNames():
    _equal(annotation.axisNames(np.eye(3)), ("sagittal", "coronal", "axial"))
    _equal(annotation.axisNames(np.eye(3)[:, [2, 0, 1]]), ("axial", "sagittal", "coronal"))


def checkProjectWithStrangeName():
    with tempfile.TemporaryDirectory() as folder:
        store = ProjectStore()
        assert store.openOrCreate(Path(folder) / "pröject with space")
        store.setClasses([(1, "ventricle", (1.0, 0.0, 0.0), "")])
        again = ProjectStore()
        assert not again.openOrCreate(store.folder)
        _equal([entry[:2] for entry in again.classes()], [(1, "ventricle")])


def checkDrawnSlicesAreKept():
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MedSSL self test")
    slicer.util.updateVolumeFromArray(volume, np.zeros((5, 8, 9), np.float32))
    classes = [(1, "a", (1.0, 0.0, 0.0), "")]
    node = segments.makeSegmentation("self test", "selftest", volume, classes, "selftest")
    try:
        drawn = np.zeros((5, 8, 9), np.uint8)
        drawn[2, 3:5, 3:5] = 1
        runToEnd(segments.fillSteps(node, volume, drawn, classes, {}))
        runToEnd(segments.fillSteps(node, volume, np.ones_like(drawn), classes, {2: [2]}))
        label, shared = runToEnd(segments.labelSteps(node, volume, classes))
        assert (label[2] == drawn[2]).all() and label[1].all() and shared == 0
    finally:
        slicer.mrmlScene.RemoveNode(node)
        slicer.mrmlScene.RemoveNode(volume)


def _equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"
