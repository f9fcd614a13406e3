"""Which node belongs to which case, and what it is.

A node's role is kept in its attributes `MedSSL.Case` (the case it belongs to) and `MedSSL.Role` (image, annotation,
prediction, uncertainty ...), so that nodes may be renamed or deleted at any time.
"""

import re

import slicer

CASE, ROLE = "MedSSL.Case", "MedSSL.Role"
GUEST = "guest"
"""Role of the segmentation of a volume that is no case."""
SEGMENTATIONS = ("annotation", "preview", "prediction", "difference", "comparison", "pseudo", GUEST)
"""Roles of segmentations, of which exactly those of the shown case are visible."""


class SceneError(Exception):
    """Something in the scene cannot be used; the text says what and what to do."""


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


def remove(case, role):
    """Take a case's node of a role out of the scene, if there is one."""
    node = findNode(case, role)
    if node is not None:
        slicer.mrmlScene.RemoveNode(node)


def scalarVolumes():
    """Loaded scalar volumes but those that MedSSL made as results."""
    found = []
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        labels = node.IsA("vtkMRMLLabelMapVolumeNode")
        result = node.GetAttribute(ROLE) not in (None, "image")
        if not (labels or result or node.GetHideFromEditors()):
            found.append(node)
    return found


def addableVolumes():
    """Loaded scalar volumes that are no case yet and were not made by MedSSL."""
    return [node for node in scalarVolumes() if not node.GetAttribute(ROLE)]


def segmentationsOf(volumeNode):
    """Segmentations drawn on a volume (their reference geometry), MedSSL's own results left out."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    found = []
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        drawn = node.GetAttribute(ROLE) in (None, "annotation")
        if drawn and node.GetNodeReference(role) is volumeNode:
            found.append(node)
    return found


def caseName(text, taken):
    """A case name made of a node name: letters, digits, space, dot, dash, underscore; not one of `taken`."""
    name = re.sub(r"[^\w .\-]", "_", text).strip(" .-_") or "case"
    base, number = name[:100], 2
    while name.casefold() in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def forgetCases():
    """The nodes of all cases stay in the scene, hidden, and belong to no case any more."""
    showOnly(None)
    for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"):
        if node.GetAttribute(CASE):
            node.SetAttribute(CASE, None)
            if node.GetAttribute(ROLE) in ("image", "annotation"):
                node.SetAttribute(ROLE, None)


def showOnly(case, *roles):
    """Of all of MedSSL's segmentations, exactly those of the case in these roles are visible.

    Slicer hides nothing by itself: another patient's segmentation would lie over this one's image.
    """
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        role, display = node.GetAttribute(ROLE), node.GetDisplayNode()
        if role in SEGMENTATIONS and display is not None:
            wanted = node.GetAttribute(CASE) == case and role in roles
            if bool(display.GetVisibility()) != wanted:
                display.SetVisibility(wanted)
