"""A trained model on any loaded volume, without a project's panel: `process` for scripts and other modules."""

import os
import shutil
import tempfile
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from .jobs import commands
from .jobs.calls import CallError, answerSteps
from .jobs.stepper import runToEnd
from .scene import grids, nodes, segments, views, voxels
from .scene.nodes import SceneError


class VolumeFile:
    """A volume on disk, as long as it takes to segment it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="segment-", dir=slicer.app.temporaryPath)
        self.path = os.path.join(self.folder, "volume.nrrd")
        self.out = os.path.join(self.folder, "out")

    def result(self):
        """The segmentation that `predict` wrote."""
        return os.path.join(self.out, "volume.nii.gz")

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def volumeFile(volumeNode):
    """Steps: a VolumeFile of a volume. Raises SceneError."""
    file = VolumeFile()
    try:
        array, matrix = slicer.util.arrayFromVolume(volumeNode), grids.ijkToRas(volumeNode)
        yield from voxels.writeSteps(file.path, array, matrix)
    except Exception:
        file.remove()
        raise
    return file


def importSteps(volumeNode, segmentationNode, file, classes):
    """Steps: bring a result into the scene, into `segmentationNode` or a new one; returns the node."""
    try:
        label = yield from voxels.labelFileSteps(file.result(), volumeNode)
    finally:
        file.remove()
    node = segmentationNode
    if node is None:
        name = _("{name} segmentation").format(name=volumeNode.GetName())
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    yield from segments.fillSteps(node, volumeNode, label, classes, {})
    return node


class VolumeSegmenter:
    """The same from the panel: the model runs as a job of the queue, the result comes into the scene.

    mayShow(): whether the result may come into the views, which somebody may be drawing in meanwhile.
    """

    def __init__(self, session, mayShow):
        self.session, self._mayShow = session, mayShow

    def segment(self, model, node):
        """Segment a volume with a run of the open project."""
        self.session.say(_("Segmenting {name} …").format(name=node.GetName()), "busy")
        self.session.stepper.start(
            volumeFile(node), lambda file: self._start(model, node, file), self.session.sayError
        )

    def _start(self, model, node, file):
        arguments = commands.predictFile(self.session.store.folder, model, file.path, file.out)
        title = _("Segmenting {name}").format(name=node.GetName())
        self.session.startJob(title, arguments, kind="segment", node=node, file=file, tells=True)

    def take(self, outcome):
        """The job ended."""
        node, file = outcome.job.facts["node"], outcome.job.facts["file"]
        if outcome.state != "done" or node.GetScene() is None:
            file.remove()
            return
        steps = importSteps(node, None, file, self.session.store.classes())
        self.session.stepper.start(
            steps, lambda made: self._onImported(node, made), self.session.sayError
        )

    def _onImported(self, node, made):
        made.SetAttribute(nodes.ROLE, nodes.GUEST)
        if self._mayShow():
            nodes.showOnly(None)
            views.showVolume(node)
            text = _("{name} is segmented: {result} in the scene.")
        else:
            text = _("{name} is segmented: {result} in the scene, hidden for now.")
        made.GetDisplayNode().SetVisibility(self._mayShow())
        self.session.say(text.format(name=node.GetName(), result=made.GetName()), "done")


def process(volumeNode, segmentationNode, model):
    """Segment a volume with a trained model and wait for it; returns the segmentation node.

    volumeNode: any scalar volume; it does not become a case of a project.
    segmentationNode: receives one segment a class; None makes a new node.
    model: folder of a finished fine-tuning or self-training run (PROJECT/runs/RUN).

    Raises RuntimeError with what is wrong and what to do. No dialog, no events are processed meanwhile.
    """
    from .jobs.processes import makeLibraryImportable
    from .project.store import ProjectStore

    makeLibraryImportable()
    from MedSSLLib.core.errors import MedSSLError

    run = Path(os.path.abspath(str(model)))
    store = ProjectStore()
    try:
        store.open(run.parent.parent)
        return runToEnd(_processSteps(volumeNode, segmentationNode, run, store.classes()))
    except (MedSSLError, SceneError, CallError) as error:
        raise RuntimeError(str(error)) from error


def _processSteps(volumeNode, segmentationNode, run, classes):
    file = yield from volumeFile(volumeNode)
    arguments = commands.predictFile(run.parent.parent, run.name, file.path, file.out)
    try:
        yield from answerSteps(_("Segmenting"), arguments)
    except CallError:
        file.remove()
        raise
    return (yield from importSteps(volumeNode, segmentationNode, file, classes))
