"""Notices which slices an edit changed, a little after the edit."""

import numpy as np
import qt
import slicer
import vtk

from ..signals import Signal
from . import annotation, grids, segments

_DELAY = 300
_EVENTS = ("SourceRepresentationModified", "MasterRepresentationModified")  # the latter before 5.3


def representationEvent():
    """The number of the event "what is drawn has changed", whose name differs between Slicer versions."""
    for name in _EVENTS:
        event = getattr(slicer.vtkSegmentation, name, None)
        if event is not None:
            return event
    raise AttributeError("vtkSegmentation." + _EVENTS[0])


class DrawingLog:
    """Watches one segmentation along one axis; `dirty` until it is saved.

    Signal: `edited(changes)` after each edit, {slice: (number before, number after)}; the numbers stand for what is
    drawn, 0.0 for nothing. An undo may change no slice. parent: the widget with which it ends.
    """

    def __init__(self, parent=None):
        self.edited = Signal()
        self.dirty = self.filling = False
        self._view, self._axis, self._tag, self._before = None, 2, None, None
        self._unsaved = set()
        self._timer = qt.QTimer(parent)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_DELAY)
        self._timer.timeout.connect(lambda: self._compare())

    def watch(self, view, axis):
        """Watch the annotation of a case view along an axis; what is not saved stays unsaved."""
        waiting = self.dirty or self._timer.isActive()
        unsaved = (view is self._view and waiting) or view.name in self._unsaved
        self._unsaved.discard(view.name)
        self.stop()
        self._view, self._axis, self.dirty = view, axis, unsaved
        segmentation = view.segmentation.GetSegmentation()
        tags = []
        # undo gives segments back without telling of their representation
        for number in (representationEvent(), slicer.vtkSegmentation.SegmentModified):
            tags.append(segmentation.AddObserver(number, lambda caller, event: self._later()))
        self._tag = (segmentation, tags)
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
            for tag in self._tag[1]:
                self._tag[0].RemoveObserver(tag)
        self._view, self._tag, self._before, self.dirty = None, None, None, False

    def flush(self):
        """Look at edits now that are still waiting to be looked at."""
        if self._timer.isActive():
            self._timer.stop()
            self._compare()

    def number(self, index):
        """What stood on a slice when it was looked at last, as a number; 0.0 for nothing."""
        return (self._before or {}).get(index, 0.0)

    def fill(self, call):
        """`call()` changes the drawing at once, and that is nobody's drawing, nor anything to be saved."""
        self.flush()
        self.filling, dirty = True, self.dirty
        try:
            call()
            self._timer.stop()
            self._compare()
        finally:
            self.filling, self.dirty = False, dirty

    def _later(self):
        self._timer.start()

    def _compare(self):
        if self._view is None or not self._view.isAlive():
            return
        before, now = self._before, self._signatures()
        self._before = now
        changes = {}
        for index in sorted(set(now) | set(before)):
            old, new = before.get(index, 0.0), now.get(index, 0.0)
            if not annotation.alike(old, new):
                changes[index] = (old, new)
        if changes:
            self.dirty = True
        if not self.filling and (changes or self._view.lostMarks()):
            self.edited.emit(changes)  # what the program fills in is nobody's drawing

    def _signatures(self):
        """{slice: number that changes with what is drawn on it}, from the cropped labelmaps Slicer keeps."""
        result = {}
        node, seen = self._view.segmentation, set()
        for identifier in segments.segmentIds(node):
            image = node.GetBinaryLabelmapInternalRepresentation(identifier)
            if image is None or image in seen or image.GetNumberOfPoints() == 0:
                continue
            seen.add(image)
            array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, identifier)
            numbers = annotation.sliceSignatures(array, self._axis, self._start(image))
            for index, number in numbers.items():
                result[index] = result.get(index, 0.0) + len(seen) * number
        return result

    def _start(self, image):
        """Where in the volume (i, j, k) a labelmap begins that may be cropped."""
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        extent = image.GetExtent()
        corner = slicer.util.arrayFromVTKMatrix(matrix) @ (extent[0], extent[2], extent[4], 1.0)
        ijk = np.linalg.inv(grids.localMatrix(self._view.image)) @ corner
        return tuple(int(round(float(n))) for n in ijk[:3])
