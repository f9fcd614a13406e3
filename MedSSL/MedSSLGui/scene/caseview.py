"""A case for annotation: its image, what is drawn on it, the slice that is shown."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import annotation, brush, grids, images, nodes, segments, views, voxels


class CaseView:
    """Image and annotation nodes of one case. Nodes may vanish at any time: `isAlive` tells."""

    def __init__(self, case, image, classes):
        self.name, self.image = case.name, image
        self.matrix = grids.ijkToRas(image)
        self.names = annotation.axisNames(self.matrix[:3, :3])
        self.size = image.GetImageData().GetDimensions()
        self.spacing = np.linalg.norm(self.matrix[:3, :3], axis=0)
        self.segmentation = nodes.findNode(case.name, "annotation")
        self.isFresh = self.segmentation is None
        if self.isFresh:
            self.segmentation = segments.makeSegmentation(
                case.name, "annotation", image, classes, _("annotation")
            )
        else:
            segments.syncClasses(self.segmentation, classes)
        self._annotated = segments.readTags(self.segmentation, self.names)
        self._partly = segments.readPartly(self.segmentation, self.names)

    def isAlive(self):
        """Whether both nodes are still in the scene."""
        return all(node.GetScene() is not None for node in (self.image, self.segmentation))

    def fillSteps(self, case, classes):
        """Load the case's stored label into a fresh annotation."""
        if not self.isFresh:
            return
        if case.annotated is not None:
            self.setAnnotated(annotation.fromManifest(case.annotated))
            self.setPartly(annotation.partlyFromManifest(case.annotated))
        if case.label is not None:
            label = yield from voxels.labelFileSteps(case.label, self.image)
            yield from segments.fillSteps(self.segmentation, self.image, label, classes, {})
            yield from brush.paintBackgroundSteps(self, label)

    def annotated(self):
        """Annotated slices {axis: indices}; kept in the tags of the segments."""
        return {axis: list(indices) for axis, indices in self._annotated.items() if indices}

    def setAnnotated(self, annotated):
        """Record which slices count; those that no longer do are not partly drawn either."""
        self._annotated = {axis: sorted(set(indices)) for axis, indices in annotated.items()}
        self.writeTags()

    def partly(self):
        """Those annotated slices on which only what is painted counts, {axis: indices}."""
        result = {}
        for axis, indices in self.annotated().items():
            some = [index for index in indices if index in self._partly.get(axis, ())]
            if some:
                result[axis] = some
        return result

    def setPartly(self, partly):
        """Record which of the annotated slices are partly drawn."""
        self._partly = {axis: sorted(set(indices)) for axis, indices in partly.items()}
        self.writeTags()

    def lostMarks(self):
        """Annotated slices {axis: indices} that the tags do not have: an undo went back to before they were marked."""
        tags, lost = segments.readTags(self.segmentation, self.names), {}
        for axis, indices in self.annotated().items():
            missing = [index for index in indices if index not in tags.get(axis, ())]
            if missing:
                lost[axis] = missing
        return lost

    def writeTags(self):
        """Bring the tags in line with what was marked: undo gives segments back with the tags they had."""
        self._partly = self.partly()
        node, names = self.segmentation, self.names
        if segments.readTags(node, names) != self.annotated():
            segments.writeTags(node, self.annotated(), names)
        if segments.readTags(node, names, annotation.PARTLY) != self._partly:
            segments.writeTags(node, self._partly, names, annotation.PARTLY)

    def viewNode(self, axis):
        """The slice view that shows slices along an axis, None without one."""
        return views.viewOf(self.matrix[:3, axis])

    def shownSlice(self, axis):
        """Index of the slice that the view of an axis shows, None when it shows none of this image."""
        node = self.viewNode(axis)
        if node is None:
            return None
        toRas = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        ijk = np.linalg.inv(self.matrix) @ toRas[:, 3]
        index = int(round(float(ijk[axis])))
        return index if 0 <= index < self.size[axis] else None

    def jumpTo(self, axis, index):
        """Show a slice in the view of its axis."""
        node = self.viewNode(axis)
        if node is None:
            return
        ijk = np.array([(n - 1) / 2 for n in self.size] + [1.0])
        ijk[axis] = index
        ras = self.matrix @ ijk
        node.RotateToVolumePlane(self.image)
        node.JumpSliceByOffsetting(*(float(v) for v in ras[:3]))


def caseViewSteps(case, classes):
    """The CaseView of a case with its image and stored label, filled. Raises SceneError."""
    image = yield from images.imageSteps(case)
    view = CaseView(case, image, classes)
    try:
        yield from view.fillSteps(case, classes)
    except Exception:
        if view.isFresh and view.segmentation.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(view.segmentation)  # half filled, it would be saved
        raise
    return view
