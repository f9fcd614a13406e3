"""How well slices were predicted before they were drawn, from the events `score` of live training."""

from slicer.i18n import tr as _

from .curves import Curves


class Scores:
    """One entry a drawn slice, in the order of drawing; a slice that is drawn again keeps its first score.

    A later score would be that of a model which has learnt from the slice.
    """

    def __init__(self):
        self._entries = {}

    def add(self, event):
        """Take an event; False when the slice is known already or the event says nothing."""
        key = (event.get("case"), event.get("axis"), event.get("index"))
        dice, changed = event.get("dice"), event.get("changed")
        numbers = all(isinstance(value, (int, float)) for value in (dice, changed))
        if key in self._entries or not numbers:
            return False
        self._entries[key] = (float(dice), float(changed))
        return True

    def changed(self):
        """Share of the voxels, 0..1, that a person changed on each slice, oldest first."""
        return [changed for _dice, changed in self._entries.values()]

    def curves(self):
        """Dice of each slice before it was learnt from, over the number of the slice, from 1."""
        curves = Curves()
        for number, (dice, _changed) in enumerate(self._entries.values(), 1):
            curves.add({"event": "metric", "step": number, "dice": dice})
        return curves

    def sentence(self):
        """What the last slices say, "" before the first one."""
        from MedSSLLib.project.advice import ENOUGH_SLICES, drawing_pays_little

        changed = self.changed()
        last = changed[-ENOUGH_SLICES:]
        if not last:
            return ""
        share = round(100 * sum(last) / len(last))
        if len(last) == 1:
            return _("On the first slice you changed {share} % of the voxels.").format(share=share)
        text = _("Of the last {n} slices you changed {share} % of the voxels.")
        text = text.format(n=len(last), share=share)
        if drawing_pays_little(changed):
            text += " " + _("Drawing more slices like these pays little now.")
        return text
