"""Accept and Next of Live: taking over what the model would draw, and the next slice filled in with it."""

import time

import numpy as np
from slicer.i18n import tr as _

from ..project.words import sliceNumber
from ..scene import slicecopy
from .base import choose

_PATIENCE_SECONDS = 20.0


class Proposing:
    """Part of Live: a preview is copied into the annotation only here, on a person's request."""

    def __init__(self, live):
        self.live, self.panel, self.session = live, live.panel, live.session
        self.store, self.ui = live.store, live.ui
        self._wanted = None  # (case, axis, index) that is filled in once it is predicted
        self.forget()

    def forget(self):
        """What an earlier process suggested."""
        self._skipped, self._shown, self._askedAt = set(), None, -_PATIENCE_SECONDS
        self._walks = self._tells = False
        self._pays = True  # whether correcting what the model would draw is less work than drawing
        self.panel.slices.wanted = []

    def letGo(self):
        """No case is shown any more."""
        self._wanted = None

    def accept(self):
        """Copy the preview of the shown slice into the annotation and mark it; what a person drew there stays."""
        panel = self.panel
        if not self.live.isOn():
            return self.session.say(_("Switch Live on first."), "warning")
        index = panel.shownSlice()
        if index is None:
            return None
        axis, n = panel.axis(), sliceNumber(index)
        panel.log.flush()
        values = self._accepted(axis, index)
        if values is None:
            return None
        panel.editor.saveState()
        before = panel.log.number(index)
        panel.log.fill(
            lambda: slicecopy.writeSlice(panel.view, axis, index, values, self.store.classes())
        )
        panel.slices.markDrawn(axis, index, before)
        panel.log.dirty = True
        self.live.saveNow()
        return self.session.say(_("Slice {n} is accepted.").format(n=n), "done")

    def _accepted(self, axis, index):
        """What a slice is to hold when the preview is accepted; None, with the reason, where it stays as it is."""
        panel, n = self.panel, sliceNumber(index)
        partly = index in panel.view.partly().get(axis, ())
        if index in panel.view.annotated().get(axis, ()) and not partly:
            text = _("Slice {n} is annotated already and stays as you drew it.")
            self.session.say(text.format(n=n))
            return None
        plane = self.live.preview.plane(axis, index) if self.live.preview is not None else None
        if plane is None:
            self.session.say(_("The preview has not reached slice {n} yet.").format(n=n), "warning")
            return None
        if panel.proposals.isWaiting(index):
            return plane
        values, background = slicecopy.readSlice(panel.view, axis, index, self.store.classes())
        if panel.proposals.isOffered(index) and values.any():
            return values  # a proposal that was corrected
        return np.where((values > 0) | background, values, plane)

    def next(self):
        """Show the next suggested slice, filled in with the prediction; without one, have more suggested."""
        panel = self.panel
        panel.proposals.withdraw()
        self.live.saveNow()
        if self._shown is not None:
            self._skipped.add(self._shown)
        if not self._openNext():
            self._walks, self._skipped = True, {self._shown}
            self.askMore(tells=False)

    def _openNext(self):
        """Show the next suggested slice; False when there is none left."""
        panel = self.panel
        found = panel.slices.nextWanted(self._skipped)
        if found is None:
            return False
        if found[0] == panel.view.name:
            self._open(found)
        else:
            panel.showCase(found[0], then=lambda: self._open(found))
        return True

    def _open(self, found):
        case, axis, index = found
        panel = self.panel
        if not panel.alive() or panel.view.name != case:
            return
        self._shown = self._wanted = found
        choose(self.ui.directionComboBox, str(axis))
        panel.slices.spread()
        panel.goTo(index)
        self.live.askShown()
        self.fillWanted()

    def fillWanted(self):
        """Fill the slice in that Next has opened, once it is predicted, as long as it is shown and empty."""
        if self._wanted is None or self.live.preview is None:
            return
        panel, (case, axis, index) = self.panel, self._wanted
        plane = self.live.preview.plane(axis, index)
        if plane is None:
            return
        self._wanted = None
        here = panel.view.name == case and panel.axis() == axis
        if not here or panel.view.shownSlice(axis) != index:
            return
        if not self._pays:
            text = _(
                "Draw slice {n}: on the last slices the model would have been more work to correct than to draw."
            )
            self.session.say(text.format(n=sliceNumber(index)))
        elif not plane.any():
            text = _("The model finds nothing on slice {n}. Mark it, if that is right, or draw.")
            self.session.say(text.format(n=sliceNumber(index)))
        elif panel.proposals.offer(index, plane, self.store.classes()):
            text = _(
                "Slice {n} is filled in with what the model would draw. It counts once you change or accept it."
            )
            self.session.say(text.format(n=sliceNumber(index)))

    def askMore(self, tells=True):
        """Have slices suggested by the model as it is now, and say how many; an open question is not asked twice."""
        self._tells = tells
        if time.monotonic() - self._askedAt > _PATIENCE_SECONDS:
            self._askedAt = time.monotonic()
            self.panel.slices.wanted = []
            self.live.process.ask("suggest", self.ui.budgetSpinBox.value)
        self.session.say(_("Choosing slices …"), "busy")

    def note(self, event):
        """Take from an event whether proposals save work by now."""
        self._pays = event.get("proposals_pay", self._pays)

    def onSuggestion(self, event):
        """One of the slices that were asked for; Next opens the first one."""
        panel = self.panel
        self.note(event)
        self._askedAt = -_PATIENCE_SECONDS
        panel.slices.wanted.append({**event, "reason": event.get("why", "")})
        panel.slices.spread()
        if self._walks and panel.alive() and self._openNext():
            self._walks = False
        elif self._tells:
            text = _("{n} slices are suggested. Next leads from one to the next.")
            self.session.say(text.format(n=len(panel.slices.wanted)), "done")
