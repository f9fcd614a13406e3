"""One slice of an annotation as an array and back: fast enough for a key, and undone as one step."""

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from . import brush, segments


def readSlice(view, axis, index, classes):
    """(class values uint8, where background is painted, boolean) of a slice of a view's annotation."""
    shape = _shape(view, axis)
    values, background = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for identifier, segment in _each(view.segmentation):
        value = segments.classOf(segment, classes)
        if value is None and not brush.isBrush(segment):
            continue
        mask = _maskOn(view, identifier, axis, index, shape)
        if value is None:
            background |= mask
        else:
            values[mask] = value
    return values, background


def writeSlice(view, axis, index, values, classes):
    """Make class values uint8 the content of a slice; no background is painted on it any more.

    Whoever wants it undone saves the editor's state before.
    """
    wasModifying = view.segmentation.StartModify()
    try:
        new = []
        for identifier, segment in _each(view.segmentation):
            value = segments.classOf(segment, classes)
            if value is None and not brush.isBrush(segment):
                continue
            wanted = np.zeros(values.shape, bool) if value is None else values == value
            drawn = _maskOn(view, identifier, axis, index, values.shape)
            if (drawn & ~wanted).any():
                _merge(view, identifier, axis, index, wanted, "MODE_MERGE_MIN")
            if (wanted & ~drawn).any():
                new.append((identifier, wanted))
        for identifier, wanted in new:  # nothing lies under them any more
            _merge(view, identifier, axis, index, wanted, "MODE_MERGE_MASK")
    finally:
        view.segmentation.EndModify(wasModifying)


def clearSlice(view, axis, index):
    """Nothing is drawn on a slice any more, by no segment."""
    shape = _shape(view, axis)
    for identifier in segments.segmentIds(view.segmentation):
        if _maskOn(view, identifier, axis, index, shape).any():
            _merge(view, identifier, axis, index, np.zeros(shape, bool), "MODE_MERGE_MIN")


def _shape(view, axis):
    """[rows, columns] of a slice across an axis."""
    return tuple(size for number, size in enumerate(view.size[::-1]) if number != 2 - axis)


def _each(segmentationNode):
    segmentation = segmentationNode.GetSegmentation()
    return [(each, segmentation.GetSegment(each)) for each in segments.segmentIds(segmentationNode)]


def _maskOn(view, identifier, axis, index, shape):
    """Boolean: where a segment lies on a slice."""
    result = np.zeros(shape, bool)
    values, value, where = segments.segmentValues(view.segmentation, identifier, view.image)
    along = where[2 - axis]
    first, last, _step = along.indices(view.size[axis])
    if values.size and first <= index < last:
        others = tuple(part for number, part in enumerate(where) if number != 2 - axis)
        result[others] = np.moveaxis(values, 2 - axis, 0)[index - first] == value
    return result


def _merge(view, identifier, axis, index, mask, mode):
    extent = []
    for number, size in enumerate(view.size):
        extent += [index, index] if number == axis else [0, size - 1]
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*extent)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.ravel()
    geometry = vtk.vtkMatrix4x4()
    view.image.GetIJKToRASMatrix(geometry)
    image.SetGeometryFromImageToWorldMatrix(geometry)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetBinaryLabelmapToSegment(
        image, view.segmentation, identifier, getattr(logic, mode), extent
    )
