"""What the model would draw, over the shown case while one draws: outlines of its own, which nobody edits or saves."""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import grids, nodes, segments

ROLE = "preview"
_OUTLINE, _THICKNESS, _PALER = 0.9, 1, 0.45


class Preview:
    """The preview of one CaseView; its node comes with the first prediction.

    All classes lie in one labelmap, so that a changed slice is written once and in place.
    """

    def __init__(self, view, classes, values):
        """classes: as the store gives them; values: label value of each class index of a prediction."""
        self.view, self._classes, self.values = view, classes, tuple(values)
        self.node = self._labelmap = self._array = None
        self._known, self._isOver = [], False

    def isAlive(self):
        """Whether there is a node, and it is still in the scene."""
        return self.node is not None and self.node.GetScene() is not None

    def takeSteps(self, path, axis=None, extent=None):
        """Show what a file of class indices [k, j, i] holds, in pieces; `extent`: the slices (first, last) that count.

        Raises SceneError for another grid than the case's. Returns whether anything is another than before.
        """
        if self._isOver or not self.view.isAlive():
            return False  # another case is shown meanwhile
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = tuple(self.view.size[::-1])
        if found.shape != shape or found.dtype != np.uint8:
            text = _("The preview lies on another grid than {name}.")
            raise nodes.SceneError(text.format(name=self.view.name))
        if not self.isAlive():
            self._make()
        table = np.zeros(256, np.uint8)
        table[: len(self.values)] = self.values
        where = _part(shape, axis, extent)
        source, target, changed = found[where], self._array[where], False
        for part in grids.slabs(source.shape):
            new = table[source[part]]
            if not np.array_equal(new, target[part]):
                target[part] = new
                changed = True
            yield
        self._remember(axis, extent)
        if changed and self.isAlive():
            with grids.quietViews():
                self._labelmap.Modified()
                self.node.Modified()  # a labelmap that is shared tells nobody
        return changed

    def plane(self, axis, index):
        """Class values uint8 of a slice, a copy; None where nothing was predicted yet."""
        if not self.isAlive() or not self._known[axis][index]:
            return None
        return np.moveaxis(self._array, 2 - axis, 0)[index].copy()

    def remove(self):
        """Take the node out of the scene, for good."""
        self._isOver = True
        if self.isAlive():
            slicer.mrmlScene.RemoveNode(self.node)
        self.node = self._labelmap = self._array = None

    def _remember(self, axis, extent):
        if extent is None:
            for known in self._known:
                known[:] = True
        else:
            self._known[axis][extent[0] : extent[1] + 1] = True

    def _make(self):
        view = self.view
        paler = []
        for value, name, colour, terminology in self._classes:
            mixed = tuple(part + _PALER * (1 - part) for part in colour)
            paler.append((value, name, mixed, terminology))
        nodes.remove(view.name, ROLE)
        shown = view.segmentation.GetDisplayNode().GetVisibility()
        node = segments.makeSegmentation(view.name, ROLE, view.image, paler, _("preview"))
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetSelectable(False)
        self._style(node, bool(shown))
        self._fill(node)
        self.node = node
        self._known = [np.zeros(size, bool) for size in view.size]

    @staticmethod
    def _style(node, visible):
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetVisibility(visible)
        display.SetVisibility3D(False)
        display.SetVisibility2DFill(False)
        display.SetVisibility2DOutline(True)
        display.SetOpacity2DOutline(_OUTLINE)
        display.SetSliceIntersectionThickness(_THICKNESS)

    def _fill(self, node):
        """One empty labelmap on the case's grid, shared by all segments, whose values are those of the classes."""
        size = self.view.size
        labelmap = slicer.vtkOrientedImageData()
        labelmap.SetExtent(0, size[0] - 1, 0, size[1] - 1, 0, size[2] - 1)
        labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        flat = numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())
        flat[:] = 0
        geometry = vtk.vtkMatrix4x4()
        self.view.image.GetIJKToRASMatrix(geometry)
        labelmap.SetGeometryFromImageToWorldMatrix(geometry)
        name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
        segmentation = node.GetSegmentation()
        for identifier in segments.segmentIds(node):
            segment = segmentation.GetSegment(identifier)
            segment.SetLabelValue(segments.classOf(segment, self._classes))
            segment.AddRepresentation(name, labelmap)
        self._labelmap, self._array = labelmap, flat.reshape(size[::-1])


def _part(shape, axis, extent):
    """Where in an array [k, j, i] the slices from the first to the last of `extent` lie."""
    result = [slice(None)] * len(shape)
    if extent is not None:
        result[2 - axis] = slice(extent[0], extent[1] + 1)
    return tuple(result)
