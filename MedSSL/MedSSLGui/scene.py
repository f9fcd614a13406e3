"""Nodes to files and back. Every long step is a generator for `tasks.Stepper`; messages are for people.

A node's role is kept in its attribute `MedSSL.Case` (the case it belongs to) and `MedSSL.Role` (image, annotation,
prediction, uncertainty ...), so that nodes may be renamed or deleted at any time.
"""

import os
import re

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import annotation
from .gridfile import WRITABLE, SceneError, nrrdSteps

CASE, ROLE, CLASS = "MedSSL.Case", "MedSSL.Role", "MedSSL.Class"
_READABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_SLAB_VOXELS = 2 << 20


def findNode(case, role):
    """The scene's node of a case and role, or None."""
    for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"):
        if node.GetAttribute(CASE) == case and node.GetAttribute(ROLE) == role:
            return node
    return None


def mark(node, case, role):
    """Remember what a node is."""
    node.SetAttribute(CASE, case)
    node.SetAttribute(ROLE, role)


def addableVolumes():
    """Loaded scalar volumes that are no case yet and were not made by MedSSL."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [
        node
        for node in nodes
        if node.IsA("vtkMRMLScalarVolumeNode")
        and not node.GetHideFromEditors()
        and not node.IsA("vtkMRMLLabelMapVolumeNode")
        and not node.GetAttribute(ROLE)
    ]


def segmentationsOf(volumeNode):
    """Segmentations drawn on a volume (their reference geometry), MedSSL's own results left out."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        if node.GetNodeReference(role) is volumeNode
        and node.GetAttribute(ROLE) in (None, "annotation")
    ]


def caseName(text, taken):
    """A case name made of a node name: letters, digits, space, dot, dash, underscore; not one of `taken`."""
    name = re.sub(r"[^\w .\-]", "_", text).strip(" .-_") or "case"
    base, number = name[:100], 2
    while name.casefold() in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def ijkToRas(volumeNode):
    """4x4 of a volume in the world, its linear transforms included.

    Raises SceneError for an empty volume, a warp, or axes that are not perpendicular.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise SceneError(_("{name} holds no image.").format(name=volumeNode.GetName()))
    if min(image.GetDimensions()) < 2 or image.GetNumberOfScalarComponents() != 1:
        raise SceneError(_("{name} is not a scalar 3D volume.").format(name=volumeNode.GetName()))
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    result = slicer.util.arrayFromVTKMatrix(matrix)
    transform = volumeNode.GetParentTransformNode()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            raise SceneError(
                _(
                    "{name} is under a transform that bends it. Harden the transform first "
                    "(Transforms module)."
                ).format(name=volumeNode.GetName())
            )
        transform.GetMatrixTransformToWorld(matrix)
        result = slicer.util.arrayFromVTKMatrix(matrix) @ result
    axes = result[:3, :3] / np.linalg.norm(result[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise SceneError(
            _(
                "{name} has axes that are not perpendicular. Resample it first (Resample Scalar/Vector/DWI "
                "Volume module)."
            ).format(name=volumeNode.GetName())
        )
    return result


def storedFile(volumeNode):
    """The file a volume was read from, if the volume is still exactly what is in it; else ""."""
    storage = volumeNode.GetStorageNode()
    path = storage.GetFileName() if storage else None
    if (
        not path
        or volumeNode.GetParentTransformNode() is not None
        or storage.GetNumberOfFileNames() > 1
    ):
        return ""
    if (
        not path.lower().endswith(_READABLE)
        or not os.path.isfile(path)
        or volumeNode.GetModifiedSinceRead()
    ):
        return ""
    return os.path.abspath(path)


def volumeSteps(volumeNode, folder, name):
    """A file for a volume: the one it was read from, else a copy in `folder`. Returns its path."""
    matrix = ijkToRas(volumeNode)
    path = storedFile(volumeNode)
    if path:
        return path
    array = slicer.util.arrayFromVolume(volumeNode)
    if array.dtype.byteorder == ">" or array.dtype.str[1:] not in WRITABLE:
        array = array.astype(np.float32)
    return (yield from nrrdSteps(os.path.join(str(folder), f"{name}.nrrd"), array, matrix, False))


def segmentIds(segmentationNode):
    """Identifiers of the segments, in order."""
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def classOf(segment, classes):
    """The class value of a segment: its tag, else the class of the same name; None for an unknown one."""
    text = vtk.mutable("")
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
        if classOf(segment, result) is None:
            value = max([entry[0] for entry in result], default=0) + 1
            result.append(
                (value, segment.GetName(), tuple(segment.GetColor()), terminologyOf(segment))
            )
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
    shape = slicer.util.arrayFromVolume(volumeNode).shape
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
    shape = slicer.util.arrayFromVolume(volumeNode).shape
    nowhere = (slice(0, 0),) * 3
    image = segmentationNode.GetBinaryLabelmapInternalRepresentation(identifier)
    if image is not None and image.GetNumberOfPoints() == 0:
        return np.zeros((0, 0, 0), bool), nowhere
    start = _startOnGrid(image, volumeNode) if image is not None else None
    if start is None:
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, identifier, volumeNode)
        usable = mask is not None and mask.shape == shape
        return (mask > 0, (slice(None),) * 3) if usable else (np.zeros((0, 0, 0), bool), nowhere)
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(
        image.GetDimensions()[::-1]
    )
    first = [max(0, begin) for begin in start]
    last = [
        max(low, min(count, begin + size))
        for low, begin, size, count in zip(first, start, values.shape, shape)
    ]
    inner = values[
        tuple(slice(low - begin, high - begin) for low, high, begin in zip(first, last, start))
    ]
    label = segmentationNode.GetSegmentation().GetSegment(identifier).GetLabelValue()
    return inner == label, tuple(slice(low, high) for low, high in zip(first, last))


def _startOnGrid(image, volumeNode):
    """[k, j, i] of a labelmap's first voxel in a volume, None when their voxels do not coincide."""
    matrices = [vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()]
    image.GetImageToWorldMatrix(matrices[0])
    volumeNode.GetIJKToRASMatrix(matrices[1])
    own, grid = (slicer.util.arrayFromVTKMatrix(matrix) for matrix in matrices)
    between = np.linalg.inv(grid) @ own
    extent = image.GetExtent()
    start = (between @ (extent[0], extent[2], extent[4], 1))[:3]
    if (
        np.abs(between[:3, :3] - np.eye(3)).max() > 1e-4
        or np.abs(start - np.round(start)).max() > 1e-2
    ):
        return None
    return [int(round(float(n))) for n in start[::-1]]


def makeSegmentation(case, role, volumeNode, classes, suffix):
    """A new segmentation on a volume's grid with one empty segment a class."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{case} {suffix}")
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(
        volumeNode.GetTransformNodeID()
    )  # first: the geometry is relative to it
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


def slabs(shape):
    """Slices of the first axis that together cover `shape`, none much larger than two million voxels."""
    step = max(1, _SLAB_VOXELS // max(1, shape[1] * shape[2]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def fillSteps(segmentationNode, volumeNode, label, classes, keep):
    """Put class values `label` [k, j, i] into a segmentation; slices in `keep` ({axis: indices}) stay as drawn."""
    if label.shape != slicer.util.arrayFromVolume(volumeNode).shape:
        raise SceneError(
            _("The result lies on another grid than {name}.").format(name=volumeNode.GetName())
        )
    syncClasses(segmentationNode, classes)
    for identifier in segmentIds(segmentationNode):
        value = classOf(segmentationNode.GetSegmentation().GetSegment(identifier), classes)
        if value is None:
            continue
        mask = np.zeros(label.shape, np.uint8)
        for part in slabs(label.shape):
            np.equal(label[part], value, out=mask[part], casting="unsafe")
            yield
        if any(keep.values()):
            old = np.zeros(label.shape, np.uint8)
            drawn, where = segmentCrop(segmentationNode, identifier, volumeNode)
            old[where] = drawn
            yield
            for axis, indices in keep.items():
                np.moveaxis(mask, 2 - axis, 0)[list(indices)] = np.moveaxis(old, 2 - axis, 0)[
                    list(indices)
                ]
            yield
        yield from _replaceSteps(segmentationNode, identifier, volumeNode, mask)


def _replaceSteps(segmentationNode, identifier, volumeNode, mask):
    """Make `mask` [k, j, i] the content of a segment, a slab at a time and only where it is not empty."""
    segmentationNode.GetSegmentation().ClearSegment(identifier)
    geometry = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(geometry)
    for part in slabs(mask.shape):
        rows, columns = mask[part].any((0, 2)).nonzero()[0], mask[part].any((0, 1)).nonzero()[0]
        yield
        if not len(rows):
            continue
        box = mask[part, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        image = slicer.vtkOrientedImageData()
        image.SetExtent(
            int(columns[0]),
            int(columns[-1]),
            int(rows[0]),
            int(rows[-1]),
            part.start,
            part.stop - 1,
        )
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = box.ravel()
        image.SetGeometryFromImageToWorldMatrix(geometry)
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(
            image,
            segmentationNode,
            identifier,
            slicer.vtkSlicerSegmentationsModuleLogic.MODE_MERGE_MASK,
        )
        yield


def readTags(segmentationNode, names):
    """Annotated slices {axis: indices} kept in a segmentation's tags."""
    result = {}
    for identifier in segmentIds(segmentationNode):
        text = vtk.mutable("")
        if segmentationNode.GetSegmentation().GetSegment(identifier).GetTag(annotation.TAG, text):
            for axis, indices in annotation.readTag(str(text), names).items():
                result[axis] = sorted(set(result.get(axis, [])) | set(indices))
    return result


def writeTags(segmentationNode, annotated, names):
    """Keep annotated slices in the tags of every segment."""
    text = annotation.writeTag(annotated, names)
    for identifier in segmentIds(segmentationNode):
        segmentationNode.GetSegmentation().GetSegment(identifier).SetTag(annotation.TAG, text)
