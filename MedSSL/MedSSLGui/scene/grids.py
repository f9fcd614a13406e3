"""Where volumes lie: their matrices, the files they came from, renders held back."""

import os
from contextlib import contextmanager

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from .nodes import SceneError

_READABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SLAB_VOXELS = 1 << 20
"""What one step of a generator works on."""


def slabs(shape):
    """Slices of the first axis that together cover `shape`, none much larger than a million voxels."""
    step = max(1, SLAB_VOXELS // max(1, shape[1] * shape[2]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def localMatrix(volumeNode):
    """4x4 IJK to RAS of a volume without its transforms, as labelmaps are kept."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def ijkToRas(volumeNode):
    """4x4 of a volume in the world, its linear transforms included.

    Raises SceneError for an empty volume, a warp, or axes that are not perpendicular.
    """
    name, image = volumeNode.GetName(), volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise SceneError(_("{name} holds no image.").format(name=name))
    if min(image.GetDimensions()) < 2 or image.GetNumberOfScalarComponents() != 1:
        raise SceneError(_("{name} is not a scalar 3D volume.").format(name=name))
    result = localMatrix(volumeNode)
    transform = volumeNode.GetParentTransformNode()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            raise SceneError(
                _(
                    "{name} is under a transform that bends it. Harden the transform first "
                    "(Transforms module)."
                ).format(name=name)
            )
        matrix = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToWorld(matrix)
        result = slicer.util.arrayFromVTKMatrix(matrix) @ result
    axes = result[:3, :3] / np.linalg.norm(result[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise SceneError(
            _(
                "{name} has axes that are not perpendicular. Resample it first (Resample Scalar/Vector/DWI "
                "Volume module)."
            ).format(name=name)
        )
    return result


def storedFile(volumeNode):
    """The file a volume was read from, if the volume is still exactly what is in it; else ""."""
    storage = volumeNode.GetStorageNode()
    path = storage.GetFileName() if storage else None
    if not path or volumeNode.GetParentTransformNode() is not None:
        return ""
    if storage.GetNumberOfFileNames() > 1 or volumeNode.GetModifiedSinceRead():
        return ""
    if not path.lower().endswith(_READABLE) or not os.path.isfile(path):
        return ""
    return os.path.abspath(path)


@contextmanager
def quietViews():
    """Views are drawn once at the end, not after every change inside."""
    pause = getattr(slicer.app, "pauseRender", None)
    if pause is not None:
        pause()
    try:
        yield
    finally:
        if pause is not None:
            slicer.app.resumeRender()
