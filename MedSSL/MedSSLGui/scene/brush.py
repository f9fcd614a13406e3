"""Partly drawn slices: what is painted counts, and a grey brush says where there is surely nothing.

The brush is a segment of its own, known by its tag. It is no class: no label, no list of classes and no export has it.
"""

import numpy as np
import vtk
from slicer.i18n import tr as _

from . import segments

_IDENTIFIER = "MedSSL_background"
_GREY = (0.55, 0.55, 0.55)


def isBrush(segment):
    """Whether a segment is the brush for background."""
    return segment.GetTag(segments.BRUSH, vtk.mutable(""))


def brushId(segmentationNode):
    """Identifier of the brush in a segmentation, None without one."""
    for identifier in segments.segmentIds(segmentationNode):
        if isBrush(segmentationNode.GetSegmentation().GetSegment(identifier)):
            return identifier
    return None


def ensureBrush(segmentationNode):
    """The brush's identifier; an empty one is added where there is none."""
    found = brushId(segmentationNode)
    if found is None:
        segmentation = segmentationNode.GetSegmentation()
        # in brackets, as no class is named: a class may well be called "background"
        found = segmentation.AddEmptySegment(_IDENTIFIER, _("(background)"), _GREY)
        segmentation.GetSegment(found).SetTag(segments.BRUSH, "background")
    return found


def brushSlices(view, axis, indices):
    """Those of the slices `indices` along an axis of a view on which background is painted."""
    painted = paintedBackground(view.segmentation, view.image)
    if painted is None:
        return []
    moved = np.moveaxis(painted, 2 - axis, 0)
    return [index for index in indices if moved[index].any()]


def paintedBackground(segmentationNode, volumeNode):
    """Boolean [k, j, i] on a volume's grid: where background is painted; None where nothing is."""
    identifier = brushId(segmentationNode)
    if identifier is None:
        return None
    mask, where = segments.segmentCrop(segmentationNode, identifier, volumeNode)
    if not mask.any():
        return None
    result = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    result[where] = mask
    return result


def leaveUnknown(label, painted, partly, ignore):
    """`label` [k, j, i] with the value `ignore` on the slices `partly` {axis: indices}, wherever nothing is said.

    painted: where background is painted, or None. `label` itself is changed, unless the value does not fit its type.
    """
    if ignore > np.iinfo(label.dtype).max:
        label = label.astype(np.uint32)
    for axis, indices in partly.items():
        moved = np.moveaxis(label, 2 - axis, 0)
        background = None if painted is None else np.moveaxis(painted, 2 - axis, 0)
        for index in indices:
            unknown = moved[index] == 0
            if background is not None:
                unknown &= ~background[index]
            moved[index][unknown] = ignore
    return label


def paintBackgroundSteps(view, label):
    """Give a fresh annotation the background that a stored `label` [k, j, i] has on partly drawn slices."""
    partly = view.partly()
    if not partly:
        return
    mask = np.zeros(label.shape, np.uint8)
    for axis, indices in partly.items():
        drawn, source = np.moveaxis(mask, 2 - axis, 0), np.moveaxis(label, 2 - axis, 0)
        for index in indices:
            np.equal(source[index], 0, out=drawn[index], casting="unsafe")
        yield
    identifier = ensureBrush(view.segmentation)
    yield from segments.replaceSteps(view.segmentation, identifier, view.image, mask)
