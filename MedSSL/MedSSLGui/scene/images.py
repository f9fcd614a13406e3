"""A case's image in the scene: as it is there, from its file, or a DICOM folder through Slicer's own plugins."""

import os

import slicer
from slicer.i18n import tr as _

from . import nodes, voxels
from .grids import storedFile
from .nodes import SceneError


def presentImage(case):
    """The scene's volume of a case, or None. A volume read from the case's file counts."""
    node = nodes.findNode(case.name, "image")
    if node is not None:
        return node
    path = os.path.abspath(str(case.images[0]))
    for node in nodes.addableVolumes():
        if storedFile(node) == path:
            nodes.mark(node, case.name, "image")
            return node
    return None


def imageSteps(case):
    """The volume node of a case, brought into the scene when it is not there. Raises SceneError."""
    node = presentImage(case)
    if node is not None:
        return node
    path = str(case.images[0])
    node = dicomVolume(path) if os.path.isdir(path) else None
    if node is None:
        found = yield from voxels.readSteps([("image", "image", path)])
        node = presentImage(case)  # another request may have brought it meanwhile
        if node is not None:
            return node
        node = yield from voxels.newVolumeSteps(case.name, found["image"])
    node.SetName(case.name)
    nodes.mark(node, case.name, "image")
    return node


def dicomVolume(folder):
    """The volume that Slicer's DICOM plugins make of a folder; None where there is no DICOM module.

    Raises SceneError when they find no volume.
    """
    try:
        from DICOMLib import DICOMUtils
    except ImportError:
        return None
    loaded = []
    with DICOMUtils.TemporaryDICOMDatabase() as database:
        DICOMUtils.importDicom(folder, database)
        for patient in database.patients():
            loaded += DICOMUtils.loadPatientByUID(patient)
    for identifier in loaded:
        node = slicer.mrmlScene.GetNodeByID(identifier)
        if node is not None and node.IsA("vtkMRMLScalarVolumeNode"):
            return node
    raise SceneError(
        _("{path} holds no series that Slicer's DICOM plugins load as a volume.").format(
            path=folder
        )
    )
