"""Slice views: found by what they show, not by their names; comparing side by side, and putting all back."""

import numpy as np
import slicer
import vtk

_ALIKE = (
    0.7  # cosine between a view's normal and an axis, from which on the view shows slices along it
)


def sliceNodes():
    """Slice nodes of the layout, those on the screen first."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return []
    nodes = [manager.sliceWidget(name).mrmlSliceNode() for name in manager.sliceViewNames()]
    return sorted(nodes, key=lambda node: not node.IsMappedInLayout())


def viewOf(direction):
    """The slice node that shows slices along a direction (RAS), None without one."""
    best, likeness = None, _ALIKE
    for node in sliceNodes():
        normal = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())[:3, 2]
        found = abs(float(normal @ direction)) / np.linalg.norm(direction)
        if found > likeness + 1e-6:
            best, likeness = node, found
    return best


def showVolume(volumeNode, foreground=None, opacity=0.0):
    """Show a volume in all slice views, with an optional map over it.

    The views are fitted to it, unless they show it already: then they stay where the user put them.
    """
    slicer.util.setSliceViewerLayers(
        background=volumeNode,
        foreground=foreground,
        foregroundOpacity=opacity,
        fit=not _isShown(volumeNode),
    )


def _isShown(volumeNode):
    """Whether every view on the screen shows a volume."""
    manager = slicer.app.layoutManager()
    for name in manager.sliceViewNames() if manager is not None else ():
        widget = manager.sliceWidget(name)
        background = widget.sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID()
        if widget.mrmlSliceNode().IsMappedInLayout() and background != volumeNode.GetID():
            return False
    return True


def setMapOpacity(volumeNode, opacity):
    """How much of a map over the image is seen."""
    slicer.util.setSliceViewerLayers(foreground=volumeNode, foregroundOpacity=opacity)


def showIn(node, viewIds):
    """Show a node in some views only; an empty list means in all."""
    display = node.GetDisplayNode()
    display.RemoveAllViewNodeIDs()
    for identifier in viewIds:
        display.AddViewNodeID(identifier)


class SideBySide:
    """Two views with the same slice of the same orientation and zoom. `end` puts layout and views back."""

    def __init__(self):
        manager = slicer.app.layoutManager()
        self._layout = manager.layout
        self._before = [(node, _stateOf(node)) for node in sliceNodes()]
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        self.nodes = sliceNodes()[:2]
        if len(self.nodes) == 2:
            _setState(self.nodes[1], _stateOf(self.nodes[0]))

    def end(self):
        """As it was before."""
        slicer.app.layoutManager().setLayout(self._layout)
        for node, state in self._before:
            if node.GetScene() is not None:
                _setState(node, state)


def _stateOf(node):
    """Orientation and place, and what part of it is seen."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(node.GetSliceToRAS())
    return matrix, node.GetFieldOfView(), node.GetXYZOrigin()


def _setState(node, state):
    matrix, view, origin = state
    node.GetSliceToRAS().DeepCopy(matrix)
    node.SetFieldOfView(*view)
    node.SetXYZOrigin(*origin)
    node.UpdateMatrices()
