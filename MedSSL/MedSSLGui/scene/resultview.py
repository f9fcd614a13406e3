"""A class map of a case over its image: a prediction or a pseudo-label, with a map of how sure the model is; exports."""

import os

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import grids, images, nodes, segments, voxels

MAP_COLOURS = (
    "vtkMRMLColorTableNodeInferno",
    "vtkMRMLPETProceduralColorNodePET-Heat",
    "vtkMRMLColorTableNodeIron",
)


class ResultView:
    """One case's result. `fillSteps` must be run to the end before it shows anything.

    role: "prediction" or "pseudo"; its map is a node of the role "uncertainty".
    """

    def __init__(self, case, run, files, classes, role="prediction"):
        self.case, self.run, self.classes, self.role = case, run, classes, role
        self._label, self._map = files
        self.image = self.segmentation = self.uncertainty = self.label = None
        self.comparison = None

    def fillSteps(self):
        """Load the class map, and the map of the model's doubts if there is one."""
        self.image = yield from images.imageSteps(self.case)
        files = [("label", "label", self._label)]
        if self._map is not None and os.path.isfile(str(self._map)):
            files.append(("map", "image", self._map))
        found = yield from voxels.readSteps(files, voxels.gridOf(self.image))
        self.label = found["label"].array.astype(np.uint8, copy=False)
        node = fresh(self.case.name, self.role, self.image, self.classes, self.run)
        yield from segments.fillSteps(node, self.image, self.label, self.classes, {})
        self.segmentation = node
        nodes.remove(self.case.name, "uncertainty")
        if "map" in found:
            yield from self._mapSteps(found["map"])

    def _mapSteps(self, found):
        if found.array.shape != self.label.shape:
            return
        found.shown = (0.0, 1.0)
        name = _("{case} uncertainty").format(case=self.case.name)
        self.uncertainty = yield from voxels.newVolumeSteps(name, found, like=self.image)
        nodes.mark(self.uncertainty, self.case.name, "uncertainty")
        display = self.uncertainty.GetDisplayNode()
        for identifier in MAP_COLOURS:
            if slicer.mrmlScene.GetNodeByID(identifier):
                display.SetAndObserveColorNodeID(identifier)
                break
        display.SetApplyThreshold(1)
        display.SetThreshold(0.05, 1.0)

    def isAlive(self):
        """Whether the shown nodes are still in the scene."""
        shown = (self.image, self.segmentation)
        return all(node is not None and node.GetScene() is not None for node in shown)

    def setStyle(self, opacity, outline):
        """Opacity of the fill and of the outline in slice views."""
        display = self.segmentation.GetDisplayNode()
        display.SetOpacity2DFill(opacity)
        display.SetOpacity2DOutline(outline)

    def setVisible(self, value, visible):
        """Show or hide one class."""
        for identifier in segments.segmentIds(self.segmentation):
            segment = self.segmentation.GetSegmentation().GetSegment(identifier)
            if segments.classOf(segment, self.classes) == value:
                self.segmentation.GetDisplayNode().SetSegmentVisibility(identifier, visible)

    def exportSteps(self, kind, folder):
        """Write the shown segmentation (see `exportArraySteps`); returns the file, or the name of the node."""
        array, _shared = yield from segments.labelSteps(self.segmentation, self.image, self.classes)
        found = voxels.Voxels(array, grids.ijkToRas(self.image), (0, 1))
        names = (self.case.name, self.run)
        return (yield from exportArraySteps(names, found, kind, folder, self.classes))


def exportAllSteps(store, cases, run, kind):
    """Export the predictions of a run from their files, without their images; as `exportArraySteps`.

    Returns (how many, what went wrong with the others).
    """
    made, failed = 0, []
    for case in cases:
        path = store.resultsFolder(run) / f"{case}.nii.gz"
        try:
            found = yield from voxels.readSteps([("label", "image", path)])
            yield from exportArraySteps(
                (case, run), found["label"], kind, store.folder / "exports", store.classes()
            )
            made += 1
        except nodes.SceneError as error:
            failed.append(str(error))
    return made, failed


def exportArraySteps(names, found, kind, folder, classes):
    """Write a class map as "seg" or "nifti", or put it into the scene as a labelmap node ("node").

    names: (case, run). Returns the file, or the name of the node.
    """
    case, run = names
    if kind == "node":
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", f"{case} {run}")
        nodes.mark(node, case, "export")
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(found.matrix))
        slicer.util.updateVolumeFromArray(node, found.array)
        node.CreateDefaultDisplayNodes()
        return node.GetName()
    os.makedirs(folder, exist_ok=True)
    ending, named = {"seg": (".seg.nrrd", classes), "nifti": (".nii.gz", None)}[kind]
    path = os.path.join(str(folder), case + ending)
    return (yield from voxels.writeSteps(path, found.array, found.matrix, named))


def fresh(case, role, image, classes, title):
    """A new, empty segmentation in place of an older one of the same case and role."""
    nodes.remove(case, role)
    return segments.makeSegmentation(case, role, image, classes, title)
