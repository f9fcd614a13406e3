"""Slices that were filled in with the model's prediction: they count for nothing until a person accepts or changes them."""

from . import annotation, slicecopy


class Proposals:
    """The proposals on one CaseView along one axis.

    A proposal is known by what was filled in, so that undo and redo may take it away and bring it back.
    """

    def __init__(self, log):
        self._log, self._view, self._axis = log, None, 2
        self._offered = {}  # index: number of what was filled in

    def watch(self, view, axis):
        """Follow a case along an axis; without one `view` is None. Nothing is proposed on it yet."""
        if view is not self._view or axis != self._axis:
            self.withdraw()
            self._view, self._axis, self._offered = view, axis, {}

    def offer(self, index, values, classes):
        """Fill an empty slice that does not count yet with class values; False where it is not such a slice."""
        self._log.flush()
        if index in self._view.annotated().get(self._axis, []) or self._log.number(index) != 0.0:
            return False
        self._log.fill(lambda: slicecopy.writeSlice(self._view, self._axis, index, values, classes))
        self._offered[index] = self._log.number(index)
        return True

    def isWaiting(self, index):
        """Whether a slice holds a proposal as it was filled in, and does not count."""
        return index in self.waiting().get(self._axis, [])

    def waiting(self):
        """Slices {axis: indices} whose proposals nobody has accepted or changed."""
        marked = self._view.annotated().get(self._axis, []) if self._view else []
        found = []
        for index in self._offered:
            if index not in marked and self.isAsOffered(index, self._log.number(index)):
                found.append(index)
        return {self._axis: sorted(found)} if found else {}

    def isAsOffered(self, index, number):
        """Whether `number` stands for the proposal that was made on a slice."""
        offered = self._offered.get(index, 0.0)
        return offered != 0.0 and annotation.alike(offered, number)

    def isOffered(self, index):
        """Whether something was proposed on a slice."""
        return self._offered.get(index, 0.0) != 0.0

    def withdraw(self):
        """Take the proposals away that nobody has accepted or changed."""
        if self._view is None or not self._view.isAlive():
            return
        self._log.flush()
        for axis, indices in self.waiting().items():
            for index in indices:
                self._log.fill(lambda i=index, a=axis: slicecopy.clearSlice(self._view, a, i))
