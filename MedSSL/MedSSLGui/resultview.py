"""Results in the scene: a prediction with its uncertainty, comparisons, exports."""

import os

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import caseview, gridfile, scene


class ResultView:
    """One case's prediction over its image. `fillSteps` must be run to the end before it shows anything."""

    def __init__(self, case, run, folder, classes):
        self.case, self.run, self.folder, self.classes = case, run, folder, classes
        self.image = scene.findNode(case.name, "image") or caseview._loadImage(case)
        self.segmentation = self.uncertainty = self.label = None

    def fillSteps(self):
        """Load the prediction, and the uncertainty map if there is one."""
        path = self.folder / f"{self.case.name}.nii.gz"
        self.label = yield from caseview.labelFileSteps(path, self.image, self.classes)
        self.segmentation = _fresh(self.case.name, "prediction", self.image, self.classes, self.run)
        yield from scene.fillSteps(self.segmentation, self.image, self.label, self.classes, {})
        path = self.folder / "uncertainty" / f"{self.case.name}.nii.gz"
        old = scene.findNode(self.case.name, "uncertainty")
        if old is not None:
            slicer.mrmlScene.RemoveNode(old)
        if path.is_file():
            read = yield from gridfile.readSteps(path)
            self.uncertainty = (
                self._uncertaintyNode(read[0]) if read else slicer.util.loadVolume(str(path))
            )
            self.uncertainty.SetName(f"{self.case.name} uncertainty")
            scene.mark(self.uncertainty, self.case.name, "uncertainty")
            _heatColours(self.uncertainty)

    def _uncertaintyNode(self, array):
        """A volume on the image's grid, under its transform; the display comes first, so that no histogram is made."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "uncertainty")
        display = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.SetAutoWindowLevel(0)
        node.SetAndObserveDisplayNodeID(display.GetID())
        node.CopyOrientation(self.image)
        slicer.util.updateVolumeFromArray(node, array)
        node.SetAndObserveTransformNodeID(self.image.GetTransformNodeID())
        return node

    def isAlive(self):
        """Whether the shown nodes are still in the scene."""
        return all(
            node is not None and node.GetScene() is not None
            for node in (self.image, self.segmentation)
        )

    def setStyle(self, opacity, outline):
        """Opacity of the fill and of the outline in slice views."""
        display = self.segmentation.GetDisplayNode()
        display.SetOpacity2DFill(opacity)
        display.SetOpacity2DOutline(outline)

    def setVisible(self, value, visible):
        """Show or hide one class."""
        for identifier in scene.segmentIds(self.segmentation):
            segment = self.segmentation.GetSegmentation().GetSegment(identifier)
            if scene.classOf(segment, self.classes) == value:
                self.segmentation.GetDisplayNode().SetSegmentVisibility(identifier, visible)

    # -- comparison -----------------------------------------------------------------------------------------------

    def differenceSteps(self, other, title):
        """A segmentation of the voxels where another class map differs; returns how many there are."""
        parts = [
            (1, _("only {run}").format(run=self.run), (0.93, 0.78, 0.20), ""),
            (2, _("only {other}").format(other=title), (0.30, 0.75, 0.93), ""),
            (3, _("another class"), (0.85, 0.35, 0.75), ""),
        ]
        difference, count = np.zeros(self.label.shape, np.uint8), 0
        for part in scene.slabs(self.label.shape):
            mine, its = self.label[part], other[part]
            difference[part] = np.where(
                mine == its, 0, np.where(its == 0, 1, np.where(mine == 0, 2, 3))
            )
            count += int(np.count_nonzero(difference[part]))
            yield
        node = _fresh(self.case.name, "difference", self.image, parts, _("difference"))
        yield from scene.fillSteps(node, self.image, difference, parts, {})
        showIn(self.segmentation, [])
        self.segmentation.GetDisplayNode().SetVisibility(False)
        return count

    def besideSteps(self, other, title):
        """Show another class map in the Yellow view beside this one in the Red view; returns the differing voxels."""
        node = _fresh(self.case.name, "comparison", self.image, self.classes, title)
        yield from scene.fillSteps(node, self.image, other, self.classes, {})
        manager = slicer.app.layoutManager()
        views = [manager.sliceWidget(name).mrmlSliceNode() for name in ("Red", "Yellow")]
        views[1].SetOrientation(views[0].GetOrientation())
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        self.segmentation.GetDisplayNode().SetVisibility(True)
        showIn(self.segmentation, [views[0].GetID()])
        showIn(node, [views[1].GetID()])
        count = 0
        for part in scene.slabs(other.shape):
            count += int(np.count_nonzero(self.label[part] != other[part]))
            yield
        return count

    def endComparison(self):
        """Remove what comparisons added."""
        for role in ("difference", "comparison"):
            node = scene.findNode(self.case.name, role)
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        if self.isAlive():
            self.segmentation.GetDisplayNode().SetVisibility(True)
            showIn(self.segmentation, [])

    # -- export ---------------------------------------------------------------------------------------------------

    def exportSteps(self, kind, folder):
        """Write the shown segmentation; returns the file, or for "node" the name of the labelmap node.

        "nifti" gives an intermediate NRRD file, which another process turns into NIfTI.
        """
        array, _shared = yield from scene.labelSteps(self.segmentation, self.image, self.classes)
        if kind == "node":
            return self._labelmapNode(array).GetName()
        os.makedirs(folder, exist_ok=True)
        matrix, name = scene.ijkToRas(self.image), self.case.name
        if kind == "nifti":
            return (
                yield from scene.nrrdSteps(
                    os.path.join(str(folder), f".{name}.nrrd"), array, matrix, False
                )
            )
        fields = gridfile.segmentFields(self.classes, array.shape)
        return (
            yield from scene.nrrdSteps(
                os.path.join(str(folder), f"{name}.seg.nrrd"), array, matrix, True, fields
            )
        )

    def _labelmapNode(self, array):
        node = slicer.mrmlScene.AddNewNodeByClass(
            "vtkMRMLLabelMapVolumeNode", f"{self.case.name} {self.run}"
        )
        scene.mark(node, self.case.name, "export")
        node.CopyOrientation(self.image)
        slicer.util.updateVolumeFromArray(node, array)
        node.SetAndObserveTransformNodeID(self.image.GetTransformNodeID())
        node.CreateDefaultDisplayNodes()
        return node


def showIn(node, viewIds):
    """Show a node in some views only; an empty list means in all."""
    display = node.GetDisplayNode()
    display.RemoveAllViewNodeIDs()
    for identifier in viewIds:
        display.AddViewNodeID(identifier)


def _fresh(case, role, image, classes, title):
    old = scene.findNode(case, role)
    if old is not None:
        slicer.mrmlScene.RemoveNode(old)
    return scene.makeSegmentation(case, role, image, classes, title)


def _heatColours(volume):
    """From transparent-looking black through red to yellow, 0 to 1."""
    display = volume.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileHotToColdRainbow.txt")
    for identifier in (
        "vtkMRMLColorTableNodeInferno",
        "vtkMRMLPETProceduralColorNodePET-Heat",
        "vtkMRMLColorTableNodeIron",
    ):
        if slicer.mrmlScene.GetNodeByID(identifier):
            display.SetAndObserveColorNodeID(identifier)
            break
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetApplyThreshold(1)
    display.SetThreshold(0.05, 1.0)
