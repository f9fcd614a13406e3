"""Voxels between files and nodes. Another process opens the files; here they are mapped, a slab at a time."""

import os
import shutil
import tempfile
from contextlib import contextmanager

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util import numpy_support

from ..jobs import commands
from ..jobs.calls import CallError, answerSteps
from .grids import ijkToRas, slabs, storedFile
from .nodes import SceneError

_PLAIN = {"i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"}


@contextmanager
def _folder():
    path = tempfile.mkdtemp(prefix="voxels-", dir=slicer.app.temporaryPath)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Voxels:
    """What a file holds: `array` [k, j, i], its 4x4 IJK-to-RAS `matrix`, and the grey values to show it between."""

    def __init__(self, array, matrix, shown):
        self.array, self.matrix, self.shown = array, matrix, shown


def readSteps(files, grid=None):
    """{key: Voxels} of image files; files are (key, "image" or "label", path).

    Labels are brought onto `grid` (a volume node's shape and matrix), or onto the first image's grid.
    Raises SceneError with the library's words, which name the file.
    """
    for _key, _kind, path in files:
        if not os.path.exists(str(path)):
            raise SceneError(_("{path} does not exist any more.").format(path=path))
    result = {}
    with _folder() as folder:
        try:
            events = yield from answerSteps(
                _("Reading voxels"), commands.unpack(folder, files, grid)
            )
        except CallError as error:
            raise SceneError(str(error)) from error
        for event in events:
            if event["event"] == "image":
                array = np.load(event["file"], mmap_mode="r", allow_pickle=False)
                matrix = np.reshape(event["matrix"], (4, 4))
                result[event["key"]] = Voxels(array, matrix, (event["low"], event["high"]))
        yield
        # the mapped files vanish with the folder, so what is small is copied now (labels are uint8)
        for voxels in result.values():
            voxels.array = yield from _copySteps(voxels.array)
    return result


def _copySteps(mapped):
    result = np.empty(mapped.shape, mapped.dtype)
    for part in slabs(mapped.shape):
        result[part] = mapped[part]
        yield
    return result


def gridOf(volumeNode):
    """(shape [k, j, i], matrix) of a volume, its transforms included, as files hold it."""
    return volumeNode.GetImageData().GetDimensions()[::-1], ijkToRas(volumeNode)


def labelFileSteps(path, volumeNode):
    """Class values uint8 [k, j, i] of a label file on a volume's grid. Raises SceneError when it lies elsewhere."""
    found = yield from readSteps([("label", "label", path)], gridOf(volumeNode))
    return found["label"].array.astype(np.uint8, copy=False)


def writeSteps(path, array, matrix, classes=None):
    """Write `array` [k, j, i] with its 4x4 IJK-to-RAS matrix as the file type `path` names. Returns the path.

    classes: those of a segmentation (.seg.nrrd). Raises SceneError when it cannot be written.
    """
    if array.dtype.byteorder == ">" or array.dtype.str[1:] not in _PLAIN:
        array = array.astype(np.float32)
    with _folder() as folder:
        source = os.path.join(folder, "voxels.npy")
        target = np.lib.format.open_memmap(source, "w+", array.dtype, array.shape)
        for part in slabs(array.shape):
            target[part] = array[part]
            yield
        del target
        try:
            yield from answerSteps(
                _("Writing voxels"), commands.pack(source, path, matrix, classes)
            )
        except CallError as error:
            raise SceneError(str(error)) from error
    return str(path)


def volumeFileSteps(volumeNode, folder, name):
    """A file for a volume: the one it was read from, else a copy in `folder`. Returns its path."""
    matrix = ijkToRas(volumeNode)
    path = storedFile(volumeNode)
    if path:
        return path
    array = slicer.util.arrayFromVolume(volumeNode)
    return (yield from writeSteps(os.path.join(str(folder), f"{name}.nrrd"), array, matrix))


def newVolumeSteps(name, voxels, like=None):
    """A scalar volume node of voxels, filled a slab at a time and shown between `voxels.shown`.

    like: a volume whose grid and transform it takes; without one the matrix of the voxels counts.
    """
    import vtk

    image = vtk.vtkImageData()
    image.SetDimensions(*voxels.array.shape[::-1])
    kind = numpy_support.get_vtk_array_type(voxels.array.dtype)
    image.AllocateScalars(kind, 1)
    flat = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    target = flat.reshape(voxels.array.shape)
    for part in slabs(voxels.array.shape):
        target[part] = voxels.array[part]
        yield
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    # the display comes first and has its window, so that no histogram of all voxels is made
    display = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(*voxels.shown)
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    node.SetAndObserveDisplayNodeID(display.GetID())
    if like is not None:
        node.CopyOrientation(like)
        node.SetAndObserveTransformNodeID(like.GetTransformNodeID())
    else:
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(voxels.matrix))
    node.SetAndObserveImageData(image)
    yield
    return node
