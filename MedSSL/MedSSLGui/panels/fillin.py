"""What the library fills in for the shown case, and the slices that are copied over to be corrected."""

from slicer.i18n import tr as _

from ..jobs import commands
from ..project.annotations import completionSteps, correctionSteps
from ..project.words import sliceNumber


class FillIn:
    """Part of the Annotate panel: completing a volume, taking a slice over from a result."""

    def __init__(self, panel):
        self.panel, self.session, self.store = panel, panel.session, panel.store

    def complete(self):
        """Have the slices between the annotated ones filled in."""
        panel = self.panel
        if not panel.alive() or not panel.view.annotated():
            self.session.say(_("Mark at least one annotated slice first."), "warning")
            return
        encoders = self.store.encoders()
        arguments = commands.complete(
            self.store.folder, panel.view.name, encoders[-1] if encoders else None, "auto"
        )
        title = _("Completing {case}").format(case=panel.view.name)
        self.session.startJob(title, arguments, kind="complete", tells=True)

    def takeCompletion(self, path, case=None):
        """Fill in what the library completed; annotated slices stay as drawn."""
        panel = self.panel

        def fill():
            steps = completionSteps(panel.log, self.session, panel.view, path)
            self.session.stepper.start(steps, None, self.session.sayError)

        self._whenShown(case or (panel.view.name if panel.view else ""), fill)

    def takeCorrection(self, wanted):
        """Copy the shown slice of a class map ("label") into the annotation of "case" and mark it."""
        panel = self.panel

        def copy():
            axis = panel.axis()
            steps = correctionSteps(
                panel.log, panel.view, wanted["label"], self.store.classes(), axis
            )
            self.session.stepper.start(
                steps, lambda index: self._onCorrected(axis, index), self.session.sayError
            )

        self._whenShown(wanted["case"], copy)

    def _onCorrected(self, axis, index):
        if self.panel.alive():
            self.panel.mark(axis, [index])
            text = _("Slice {n} is in the annotation now: correct it, then fine-tune again.")
            self.session.say(text.format(n=sliceNumber(index)), "done")

    def _whenShown(self, name, call):
        """`call()` with that case shown, now or when it has been brought into the scene."""
        panel = self.panel
        if panel.alive() and panel.view.name == name:
            panel.proposals.withdraw()
            panel.bringUp()
            call()
        else:
            panel.showCase(name, then=call)
