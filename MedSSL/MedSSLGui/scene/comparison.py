"""A result beside or against another class map of the same case."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import nodes, segments, views
from .grids import slabs
from .resultview import fresh


class Comparison:
    """What a comparison added to the scene and changed in the views; `end` takes all of it back.

    Steps that still run then change nothing any more and return None.
    """

    def __init__(self, result):
        self.result = result
        self._beside, self.isOver = None, False

    def differenceSteps(self, other, title):
        """A segmentation of the voxels where another class map differs; returns how many there are."""
        result = self.result
        parts = [
            (1, _("only {run}").format(run=result.run), (0.93, 0.78, 0.20), ""),
            (2, _("only {other}").format(other=title), (0.30, 0.75, 0.93), ""),
            (3, _("another class"), (0.85, 0.35, 0.75), ""),
        ]
        difference, count = np.zeros(result.label.shape, np.uint8), 0
        for part in slabs(result.label.shape):
            mine, its = result.label[part], other[part]
            unlike = mine != its
            difference[part][unlike] = 3
            difference[part][unlike & (its == 0)] = 1
            difference[part][unlike & (mine == 0)] = 2
            count += int(np.count_nonzero(unlike))
            yield
        node = fresh(result.case.name, "difference", result.image, parts, _("difference"))
        yield from segments.fillSteps(node, result.image, difference, parts, {})
        if self._isLate(node):
            return None
        nodes.showOnly(result.case.name, "difference")
        return count

    def besideSteps(self, other, title):
        """Show another class map in a second view beside this one; returns the differing voxels."""
        result = self.result
        node = fresh(result.case.name, "comparison", result.image, result.classes, title)
        yield from segments.fillSteps(node, result.image, other, result.classes, {})
        if self._isLate(node):
            return None
        self._beside = views.SideBySide()
        first, second = (view.GetID() for view in self._beside.nodes)
        views.showIn(result.segmentation, [first])
        views.showIn(node, [second])
        nodes.showOnly(result.case.name, result.role, "comparison")
        count = 0
        for part in slabs(other.shape):
            count += int(np.count_nonzero(result.label[part] != other[part]))
            yield
        return count

    def _isLate(self, node):
        """Whether the comparison has ended meanwhile; the node that was made for it goes."""
        if self.isOver and node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(node)
        return self.isOver

    def end(self):
        """Remove what was added, show the result alone, put layout and views back."""
        self.isOver = True
        case = self.result.case.name
        for role in ("difference", "comparison"):
            nodes.remove(case, role)
        if self._beside is not None:
            self._beside.end()
            self._beside = None
        if self.result.isAlive():
            views.showIn(self.result.segmentation, [])
            nodes.showOnly(case, self.result.role)


def agreeSteps(label, other, ignore):
    """Where `other` [k, j, i] has the value to be ignored, it takes what `label` has: nothing is known there."""
    for part in slabs(other.shape):
        unknown = other[part] == ignore
        other[part][unknown] = label[part][unknown]
        yield
