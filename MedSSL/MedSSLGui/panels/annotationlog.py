"""Notices which slices an edit changed, a little after the edit, a few slices at a time."""

import numpy as np
import qt
import slicer
import vtk

from .. import annotation, scene

_DELAY = 300


class AnnotationLog(qt.QObject):
    """Watches one segmentation along one axis. `edited(indices)` after each edit; `dirty` until it is saved."""

    edited = qt.Signal(object)

    def __init__(self, session, parent=None):
        super().__init__(parent)
        self.session = session
        self.dirty = self.filling = False
        self._view, self._axis, self._tag, self._before = None, 2, None, None
        self._unsaved = set()
        self._timer = qt.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_DELAY)
        self._timer.timeout.connect(lambda: self._compare())

    def watch(self, view, axis):
        """Watch the annotation of a case view along an axis; what is not saved stays unsaved."""
        unsaved = (
            view is self._view
            and (self.dirty or self._timer.isActive())
            or view.name in self._unsaved
        )
        self._unsaved.discard(view.name)
        self.stop()
        self._view, self._axis, self.dirty = view, axis, unsaved
        segmentation = view.segmentation.GetSegmentation()
        event = slicer.vtkSegmentation.SourceRepresentationModified
        self._tag = (segmentation, segmentation.AddObserver(event, lambda *_: self._onModified()))
        self._before = self._signatures()

    def keep(self, view):
        """This view could not be saved: it is dirty, now or when it is watched again."""
        if view is self._view:
            self.dirty = True
        else:
            self._unsaved.add(view.name)

    def forget(self):
        """The cases are those of another project now."""
        self._unsaved = set()

    def stop(self):
        """Watch nothing."""
        self._timer.stop()
        if self._tag:
            self._tag[0].RemoveObserver(self._tag[1])
        self._view, self._tag, self._before, self.dirty = None, None, None, False

    def flush(self):
        """Look at edits now that are still waiting to be looked at."""
        if self._timer.isActive():
            self._timer.stop()
            self._compare()

    def _onModified(self):
        self._timer.start()

    def _compare(self):
        if self._view is None or not self._view.isAlive():
            return
        now = self._signatures()
        changed = sorted(
            i for i in set(now) | set(self._before) if now.get(i) != self._before.get(i)
        )
        self._before = now
        if changed:
            self.dirty = True
            if not self.filling:  # what the program fills in is nobody's drawing
                self.edited.emit(changed)

    def _signatures(self):
        """{slice: number that changes with what is drawn on it}, from the cropped labelmaps Slicer keeps."""
        result = {}
        node, seen = self._view.segmentation, set()
        for identifier in scene.segmentIds(node):
            image = node.GetBinaryLabelmapInternalRepresentation(identifier)
            if image is None or image in seen or image.GetNumberOfPoints() == 0:
                continue
            seen.add(image)
            array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, identifier)
            for index, number in annotation.sliceSignatures(
                array, self._axis, self._start(image)
            ).items():
                result[index] = result.get(index, 0.0) + len(seen) * number
        return result

    def _start(self, image):
        """Where in the volume (i, j, k) a labelmap begins that may be cropped."""
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        extent = image.GetExtent()
        corner = np.array([extent[0], extent[2], extent[4], 1.0])
        ijk = (
            np.linalg.inv(self._view.localMatrix())
            @ slicer.util.arrayFromVTKMatrix(matrix)
            @ corner
        )
        return tuple(int(round(float(n))) for n in ijk[:3])
