"""The lines above the panels, always in view: what goes on, how far it is, Cancel, the log, what is not installed."""

import time

import ctk
import slicer
from slicer.i18n import tr as _

from ..jobs.install import question, seemsMissing
from ..project import words
from .base import INK, breakable, isDark

_STATUS_MS = 8000


class JobBar:
    """Binds the queue and the session's messages to the widgets of MedSSL.ui."""

    def __init__(self, session, ui):
        self.session, self.ui, self.queue = session, ui, session.queue
        self._slots = [
            (self.queue.started, self._onStarted),
            (self.queue.progress, self._onProgress),
            (self.queue.reported, self._onEvent),
            (self.queue.finished, self._onFinished),
            (self.queue.changed, self._show),
            (self.queue.line, self._onLine),
        ]
        for signal, slot in self._slots:
            signal.connect(slot)
        session.said.connect(self._say)
        session.installNeeded.connect(self._onInstallNeeded)
        ui.cancelButton.clicked.connect(lambda: self.cancel())
        ui.logButton.toggled.connect(lambda shown: ui.logEdit.setVisible(shown))
        ui.installButton.clicked.connect(lambda: self.install())
        ui.verifyButton.clicked.connect(lambda: self.verify())
        ui.offlineCheckBox.toggled.connect(lambda on: ui.wheelFolderEdit.setVisible(on))
        ui.wheelFolderEdit.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable
        ui.logEdit.setMaximumBlockCount(500)
        missing = seemsMissing()
        ui.installFrame.setVisible(bool(missing))
        ui.installLabel.setText(
            _(
                "To compute, MedSSL needs Python packages that Slicer does not have yet: {names}. "
                "Everything else works."
            ).format(names=", ".join(missing))
        )
        self._show()

    def close(self):
        for signal, slot in self._slots:
            signal.disconnect(slot)

    def cancel(self):
        """Ask the running job to stop; the waiting one is dropped."""
        self._say(_("Stopping at the next safe place …"), "busy")
        self.ui.cancelButton.setEnabled(False)
        self.queue.cancel()

    # -- messages -------------------------------------------------------------------------------------------------

    def _say(self, text, kind):
        """One message: above the panels until the next one; but for work in progress also in Slicer's status bar and
        under Log.
        """
        label = self.ui.statusLabel
        label.setText(breakable(text))
        label.setToolTip(text)
        label.setStyleSheet("")  # else the palette stays that of an earlier theme
        colour = INK["dark" if isDark(label) else "light"].get(kind)
        label.setStyleSheet(f"color: {colour}" if colour else "")
        if kind != "busy":
            self._log(f"{time.strftime('%H:%M:%S')}  {text}")
            slicer.util.showStatusMessage(text, _STATUS_MS)

    def _log(self, text):
        self.ui.logEdit.appendPlainText(text)

    def _onStarted(self, job):
        self._log(f"— {job.title}")
        self._say(_("{title}: starting …").format(title=job.title), "busy")
        self.ui.progressBar.setMaximum(0)

    def _onProgress(self, event):
        steps, step = int(event.get("steps") or 0), int(event.get("step") or 0)
        self.ui.progressBar.setMaximum(steps)
        self.ui.progressBar.setValue(step)
        losses = []
        for name, value in list((event.get("losses") or {}).items())[:3]:
            if isinstance(value, (int, float)):
                losses.append(f"{name} {value:.3f}")
        left = words.duration(event.get("seconds_left"))
        parts = [
            _("{title}: {stage} {step} of {steps}").format(
                title=self.queue.current.title if self.queue.current else "",
                stage=event.get("stage", ""),
                step=step,
                steps=steps,
            ),
            ", ".join(losses),
            _("{time} left").format(time=left) if left else "",
        ]
        self._say(" · ".join(part for part in parts if part), "busy")

    def _onEvent(self, event):
        if event["event"] == "start" and event.get("device"):
            self._log(_("Computing on {device}.").format(device=event["device"]))

    def _onLine(self, text):
        self._log(text)

    def _onFinished(self, outcome):
        title = outcome.job.title
        if outcome.state == "done":
            # a panel that says what came out is not talked over
            if not outcome.job.facts.get("tells"):
                advice = words.nextStep(self.session.store)
                self._say(_("{title}: done. {next}").format(title=title, next=advice), "done")
        elif outcome.state == "cancelled":
            kept = _("{title}: cancelled. What was learnt so far is kept; Resume goes on.")
            plain = _("{title}: cancelled.")
            trained = outcome.job.facts.get("kind") in ("pretrain", "finetune", "selftrain")
            self._say((kept if trained else plain).format(title=title), "warning")
        else:
            text = _("{title} failed: {message} (more under Log)")
            self._log("\n".join(outcome.log[-20:]))
            self._say(text.format(title=title, message=outcome.message), "error")

    def _show(self):
        """What runs and what waits; without a job there is neither bar nor Cancel."""
        running = self.queue.current is not None
        for widget in (self.ui.progressBar, self.ui.cancelButton):
            widget.setVisible(running)
        self.ui.cancelButton.setEnabled(running)
        waiting = self.queue.waiting
        text = _("Next: {title}").format(title=waiting[0].title) if waiting else ""
        self.ui.queueLabel.setText(text)
        self.ui.queueLabel.setVisible(bool(text))

    # -- installing -----------------------------------------------------------------------------------------------

    def _onInstallNeeded(self, problem):
        self.ui.installFrame.setVisible(bool(problem))
        if problem:
            text = _("Not ready to compute: {problem}").format(problem=problem)
            self.ui.installLabel.setText(breakable(text))

    def verify(self):
        """Check the installation in a separate process."""
        self._say(_("Checking the installation …"), "busy")
        self.session.installer.verify()

    def install(self):
        """Ask, install, and let a separate process decide whether it worked."""
        import sys

        wheels = self.ui.wheelFolderEdit.currentPath if self.ui.offlineCheckBox.checked else ""
        if not slicer.util.confirmOkCancelDisplay(question(sys.prefix, wheels)):
            self._say(_("Nothing was installed."), "info")
            return
        self._say(_("Installing; Slicer answers again when it is done …"), "busy")
        slicer.app.processEvents()
        try:
            self.session.installer.install(wheels)
        except Exception as error:
            # pip and the PyTorch extension raise many kinds; all end in a message
            self._say(_("The installation failed: {error}").format(error=error), "error")
            return
        self.verify()
