"""Segments and class values: between a segmentation node and an array on its volume's grid. Every long step is a
generator for `stepper.Stepper`; messages are for people.
"""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import annotation
from .grids import localMatrix, quietViews, slabs
from .nodes import SceneError, mark

CLASS = "MedSSL.Class"
BRUSH = "MedSSL.Brush"
"""Tag of a segment that is no class but says what is surely background (see `brush`)."""


def segmentIds(segmentationNode):
    """Identifiers of the segments, in order."""
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def classOf(segment, classes):
    """The class value of a segment: its tag, else the class of the same name; None for an unknown one and for the
    brush for background.
    """
    text = vtk.mutable("")
    if segment.GetTag(BRUSH, text):
        return None
    values = {value for value, _name, _colour, _term in classes}
    if segment.GetTag(CLASS, text) and str(text).isdigit() and int(str(text)) in values:
        return int(str(text))
    return next(
        (
            value
            for value, name, _c, _t in classes
            if name.casefold() == segment.GetName().casefold()
        ),
        None,
    )


def classesWith(segmentationNode, classes):
    """`classes` and the segments of a segmentation that are none of them yet, as new classes."""
    result = list(classes)
    for identifier in segmentIds(segmentationNode):
        segment = segmentationNode.GetSegmentation().GetSegment(identifier)
        if classOf(segment, result) is None and not segment.GetTag(BRUSH, vtk.mutable("")):
            value = max([entry[0] for entry in result], default=0) + 1
            colour = tuple(segment.GetColor())
            result.append((value, segment.GetName(), colour, terminologyOf(segment)))
    return result


def terminologyOf(segment):
    """The terminology entry of a segment, "" without one."""
    text = vtk.mutable("")
    return str(text) if segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text) else ""


def labelSteps(segmentationNode, volumeNode, classes):
    """Class values uint8 [k, j, i] of a segmentation on its volume's grid, and how many voxels segments share.

    Where segments overlap, the later one counts.
    """
    if segmentationNode.GetParentTransformNode() is not volumeNode.GetParentTransformNode():
        raise SceneError(
            _(
                "{name} is not under the same transform as its volume. Harden the transforms first."
            ).format(name=segmentationNode.GetName())
        )
    shape = volumeNode.GetImageData().GetDimensions()[::-1]
    result, shared = np.zeros(shape, np.uint8), 0
    for identifier in segmentIds(segmentationNode):
        value = classOf(segmentationNode.GetSegmentation().GetSegment(identifier), classes)
        if value is None:
            continue
        mask, where = segmentCrop(segmentationNode, identifier, volumeNode)
        yield
        part = result[where]
        shared += int(np.count_nonzero(part[mask]))
        part[mask] = value
        yield
    return result, shared


def segmentCrop(segmentationNode, identifier, volumeNode):
    """(mask, where): a segment's content and the part of its volume's [k, j, i] grid that it is about.

    Both must be under the same transform. A segment on another grid is resampled, the slow way.
    """
    values, value, where = segmentValues(segmentationNode, identifier, volumeNode)
    return values == value, where


def segmentValues(segmentationNode, identifier, volumeNode):
    """(values, value, where): as `segmentCrop`, not compared yet; voxels with `value` are the segment's."""
    shape = volumeNode.GetImageData().GetDimensions()[::-1]
    nothing = np.zeros((0, 0, 0), np.uint8), 1, (slice(0, 0),) * 3
    image = segmentationNode.GetBinaryLabelmapInternalRepresentation(identifier)
    if image is not None and image.GetNumberOfPoints() == 0:
        return nothing
    start = _startOnGrid(image, volumeNode) if image is not None else None
    if start is None:
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, identifier, volumeNode)
        usable = mask is not None and mask.shape == tuple(shape)
        return ((mask > 0).view(np.uint8), 1, (slice(None),) * 3) if usable else nothing
    scalars = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    values = scalars.reshape(image.GetDimensions()[::-1])
    inner, where = [], []
    for begin, size, count in zip(start, values.shape, shape):
        first = max(0, begin)
        last = max(first, min(count, begin + size))
        inner.append(slice(first - begin, last - begin))
        where.append(slice(first, last))
    label = segmentationNode.GetSegmentation().GetSegment(identifier).GetLabelValue()
    return values[tuple(inner)], label, tuple(where)


def _startOnGrid(image, volumeNode):
    """[k, j, i] of a labelmap's first voxel in a volume, None when their voxels do not coincide."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    between = np.linalg.inv(localMatrix(volumeNode)) @ slicer.util.arrayFromVTKMatrix(matrix)
    extent = image.GetExtent()
    start = (between @ (extent[0], extent[2], extent[4], 1))[:3]
    turned = np.abs(between[:3, :3] - np.eye(3)).max() > 1e-4
    if turned or np.abs(start - np.round(start)).max() > 1e-2:
        return None
    return [int(round(float(n))) for n in start[::-1]]


def makeSegmentation(case, role, volumeNode, classes, suffix):
    """A new segmentation on a volume's grid with one empty segment a class."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{case} {suffix}")
    node.CreateDefaultDisplayNodes()
    # the transform first: the geometry is relative to it
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    mark(node, case, role)
    syncClasses(node, classes)
    return node


def syncClasses(segmentationNode, classes):
    """Give a segmentation the project's classes: names, colours, terminology; missing segments are added empty."""
    segmentation = segmentationNode.GetSegmentation()
    present = {}
    for identifier in segmentIds(segmentationNode):
        present[classOf(segmentation.GetSegment(identifier), classes)] = identifier
    for value, name, colour, terminology in classes:
        if value not in present:
            present[value] = segmentation.AddEmptySegment(f"class_{value}", name, colour)
        segment = segmentation.GetSegment(present[value])
        segment.SetName(name)
        segment.SetColor(*colour)
        segment.SetTag(CLASS, str(value))
        if terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)


def fillSteps(segmentationNode, volumeNode, label, classes, keep):
    """Put class values `label` [k, j, i] into a segmentation; slices in `keep` ({axis: indices}) stay as drawn.

    Until all classes are in, the segmentation is not drawn and tells its observers nothing.
    """
    if label.shape != tuple(volumeNode.GetImageData().GetDimensions()[::-1]):
        raise SceneError(
            _("The result lies on another grid than {name}.").format(name=volumeNode.GetName())
        )
    syncClasses(segmentationNode, classes)
    display = segmentationNode.GetDisplayNode()
    shown = bool(display and display.GetVisibility())
    if shown:
        display.SetVisibility(False)
    wasModifying = segmentationNode.StartModify()
    try:
        for identifier in segmentIds(segmentationNode):
            segment = segmentationNode.GetSegmentation().GetSegment(identifier)
            value = classOf(segment, classes)
            if value is not None:
                mask = yield from _maskSteps(label, value)
                if any(keep.values()):
                    yield from _keepSteps(segmentationNode, identifier, volumeNode, mask, keep)
                yield from replaceSteps(segmentationNode, identifier, volumeNode, mask)
    finally:
        with quietViews():
            segmentationNode.EndModify(wasModifying)
            if shown and segmentationNode.GetScene() is not None:
                display.SetVisibility(True)


def _maskSteps(label, value):
    mask = np.zeros(label.shape, np.uint8)
    for part in slabs(label.shape):
        np.equal(label[part], value, out=mask[part], casting="unsafe")
        yield
    return mask


def _keepSteps(segmentationNode, identifier, volumeNode, mask, keep):
    """Put what is drawn on the kept slices back into `mask`."""
    old = np.zeros(mask.shape, np.uint8)
    drawn, where = segmentCrop(segmentationNode, identifier, volumeNode)
    old[where] = drawn
    yield
    for axis, indices in keep.items():
        source, target = np.moveaxis(old, 2 - axis, 0), np.moveaxis(mask, 2 - axis, 0)
        for index in indices:
            target[index] = source[index]
        yield


def replaceSteps(segmentationNode, identifier, volumeNode, mask):
    """Make `mask` [k, j, i] the content of a segment, a slab at a time and only where it is not empty."""
    segmentationNode.GetSegmentation().ClearSegment(identifier)
    geometry = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(geometry)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for part in slabs(mask.shape):
        rows, columns = mask[part].any((0, 2)).nonzero()[0], mask[part].any((0, 1)).nonzero()[0]
        yield
        if not len(rows):
            continue
        first, last = (int(columns[0]), int(rows[0])), (int(columns[-1]), int(rows[-1]))
        box = mask[part, first[1] : last[1] + 1, first[0] : last[0] + 1]
        image = slicer.vtkOrientedImageData()
        image.SetExtent(first[0], last[0], first[1], last[1], part.start, part.stop - 1)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = box.ravel()
        image.SetGeometryFromImageToWorldMatrix(geometry)
        logic.SetBinaryLabelmapToSegment(image, segmentationNode, identifier, logic.MODE_MERGE_MASK)
        yield


def readTags(segmentationNode, names, tag=annotation.TAG):
    """Annotated slices {axis: indices} kept in a segmentation's tags; with `annotation.PARTLY` the partly drawn ones."""
    result = {}
    for identifier in segmentIds(segmentationNode):
        text = vtk.mutable("")
        if segmentationNode.GetSegmentation().GetSegment(identifier).GetTag(tag, text):
            for axis, indices in annotation.readTag(str(text), names).items():
                result[axis] = sorted(set(result.get(axis, [])) | set(indices))
    return result


def readPartly(segmentationNode, names):
    """Those annotated slices {axis: indices} that are partly drawn."""
    found, result = readTags(segmentationNode, names, annotation.PARTLY), {}
    for axis, indices in readTags(segmentationNode, names).items():
        some = [index for index in indices if index in found.get(axis, ())]
        if some:
            result[axis] = some
    return result


def writeTags(segmentationNode, annotated, names, tag=annotation.TAG):
    """Keep annotated (or partly drawn) slices in the tags of every segment."""
    text = annotation.writeTag(annotated, names)
    for identifier in segmentIds(segmentationNode):
        segmentationNode.GetSegmentation().GetSegment(identifier).SetTag(tag, text)
