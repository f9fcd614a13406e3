"""A case in the scene: its image, its annotation, the slice that is shown."""

import os

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import annotation, gridfile, scene


class CaseView:
    """Image and annotation nodes of one case. Nodes may vanish at any time: `isAlive` tells."""

    def __init__(self, case, classes):
        self.name = case.name
        self.image = scene.findNode(case.name, "image") or _loadImage(case)
        self.matrix = scene.ijkToRas(self.image)
        self.names = annotation.axisNames(self.matrix[:3, :3])
        self.size = self.image.GetImageData().GetDimensions()
        self.spacing = np.linalg.norm(self.matrix[:3, :3], axis=0)
        self.segmentation = scene.findNode(case.name, "annotation")
        self.isFresh = self.segmentation is None
        if self.isFresh:
            self.segmentation = scene.makeSegmentation(
                case.name, "annotation", self.image, classes, _("annotation")
            )
        else:
            scene.syncClasses(self.segmentation, classes)

    def isAlive(self):
        """Whether both nodes are still in the scene."""
        return all(node.GetScene() is not None for node in (self.image, self.segmentation))

    def fillSteps(self, case, classes):
        """Load the case's stored label into a fresh annotation."""
        if case.label is not None and self.isFresh:
            label = yield from labelFileSteps(case.label, self.image, classes)
            yield from scene.fillSteps(self.segmentation, self.image, label, classes, {})
        if self.isFresh and case.annotated is not None:
            scene.writeTags(self.segmentation, annotation.fromManifest(case.annotated), self.names)

    def localMatrix(self):
        """4x4 IJK to RAS of the image without its transforms, as labelmaps are kept."""
        matrix = vtk.vtkMatrix4x4()
        self.image.GetIJKToRASMatrix(matrix)
        return slicer.util.arrayFromVTKMatrix(matrix)

    def annotated(self):
        """Annotated slices {axis: indices} from the tags."""
        return scene.readTags(self.segmentation, self.names)

    def setAnnotated(self, annotated):
        scene.writeTags(self.segmentation, annotated, self.names)

    def viewOf(self, axis):
        """Name of the slice view that shows slices of an axis."""
        wanted = {"axial": "Red", "sagittal": "Yellow", "coronal": "Green"}[self.names[axis]]
        return wanted

    def shownSlice(self, axis):
        """Index of the slice that the view of an axis shows, None when it shows none of this image."""
        widget = slicer.app.layoutManager().sliceWidget(self.viewOf(axis))
        if widget is None:
            return None
        toRas = slicer.util.arrayFromVTKMatrix(widget.mrmlSliceNode().GetSliceToRAS())
        ijk = np.linalg.inv(self.matrix) @ toRas[:, 3]
        index = int(round(float(ijk[axis])))
        return index if 0 <= index < self.size[axis] else None

    def jumpTo(self, axis, index):
        """Show a slice in the view of its axis."""
        widget = slicer.app.layoutManager().sliceWidget(self.viewOf(axis))
        if widget is None:
            return
        ijk = np.array([(n - 1) / 2 for n in self.size] + [1.0])
        ijk[axis] = index
        ras = self.matrix @ ijk
        node = widget.mrmlSliceNode()
        node.RotateToVolumePlane(self.image)
        node.JumpSliceByOffsetting(*(float(v) for v in ras[:3]))


def labelFileSteps(path, imageNode, classes):
    """Class values uint8 [k, j, i] of a label file on an image's grid (its transforms included, as files hold it)."""
    text = str(path)
    if not os.path.isfile(text):
        raise scene.SceneError(_("The label {path} does not exist any more.").format(path=text))
    if text.lower().endswith(".seg.nrrd"):
        node = slicer.util.loadSegmentation(text)
        try:
            return (yield from scene.labelSteps(node, imageNode, classes))[0]
        finally:
            slicer.mrmlScene.RemoveNode(node)
    array, matrix = (yield from gridfile.readSteps(text)) or _readBySlicer(text)
    if array.shape != slicer.util.arrayFromVolume(imageNode).shape or not np.allclose(
        matrix, scene.ijkToRas(imageNode), atol=1e-2
    ):
        raise scene.SceneError(_("{path} lies on another grid than its image.").format(path=text))
    yield
    return array.astype(np.uint8, copy=False)


def forgetCases():
    """The nodes of all cases stay in the scene, but belong to no case any more."""
    for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"):
        if node.GetAttribute(scene.CASE):
            node.SetAttribute(scene.CASE, None)
            if node.GetAttribute(scene.ROLE) in ("image", "annotation"):
                node.SetAttribute(scene.ROLE, None)


def _readBySlicer(path):
    """(array, matrix) of a label file that `gridfile` does not read: in one go."""
    try:
        node = slicer.util.loadLabelVolume(path)
    except RuntimeError:
        raise scene.SceneError(_("{path} could not be loaded.").format(path=path)) from None
    try:
        return slicer.util.arrayFromVolume(node).copy(), scene.ijkToRas(node)
    finally:
        slicer.mrmlScene.RemoveNode(node)


def _loadImage(case):
    path = str(case.images[0])
    if not os.path.exists(path):
        raise scene.SceneError(_("{path} does not exist any more.").format(path=path))
    for node in scene.addableVolumes():
        if scene.storedFile(node) == os.path.abspath(path):
            scene.mark(node, case.name, "image")
            return node
    try:
        node = slicer.util.loadVolume(_firstFile(path))
    except RuntimeError as error:
        raise scene.SceneError(_("{path} could not be loaded.").format(path=path)) from error
    node.SetName(case.name)
    scene.mark(node, case.name, "image")
    return node


def _firstFile(path):
    """A DICOM folder is loaded through its first file."""
    if not os.path.isdir(path):
        return path
    files = sorted(name for name in os.listdir(path) if not name.startswith("."))
    return os.path.join(path, files[0]) if files else path
