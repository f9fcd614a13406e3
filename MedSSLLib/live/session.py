"""The loop of live training: hear, look, show, train, keep; none of these takes long at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from MedSSLLib.config.commands import LiveConfig
from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.images import io
from MedSSLLib.live.keeping import Keeper
from MedSSLLib.live.learner import LIVE_STAGE, Learner
from MedSSLLib.live.pseudo import PseudoLabels
from MedSSLLib.live.requests import Request, RequestSource, parse_request
from MedSSLLib.live.shown import Shown
from MedSSLLib.live.suggestions import suggest_live
from MedSSLLib.live.teaching import Teaching
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.training.trainer import STOP_FILE

CHECKPOINT_EVERY = 30.0  # seconds of training between two checkpoints
TELL_EVERY = {"training": 1.0}  # seconds between two progress events of a state
TELL_OTHERWISE = 10.0
RENEW_EVERY = 25  # steps between two pseudo-labels; not from a paper
NAP = 0.1  # seconds to wait for a request where there is nothing to do


@dataclass(kw_only=True)
class Session:
    """One live training process between its start and its end.

    Attributes:
        events: where to tell.
        options: own settings.
        source: of requests.
        teaching: what is drawn and the model that learns it.
        shown: the case that is looked at and its preview.
        keeper: checkpoints, weights and runs.
        seconds: time limit; None for none.
        steps: after which it ends as well, those of an earlier process counted; None for none.
    """

    events: Events
    options: LiveConfig
    source: RequestSource
    teaching: Teaching
    shown: Shown
    keeper: Keeper
    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._next_look = 0.0
        self._last_told = ("", 0.0)
        self._loss: float | None = None
        self._paused = self._stopped = False
        self._answers: list[Iterator[None]] = []
        self._pseudo: PseudoLabels | None = None
        self._renewal: Iterator[None] | None = None
        self._next_renewal = 0
        self._sizes: dict[Path, tuple[int, ...]] = {}

    @property
    def learner(self) -> Learner | None:
        """The model; None before there is anything to learn."""
        return self.teaching.learner

    @property
    def state(self) -> str:
        """training, idle, paused, or waiting for a first drawn slice."""
        if self.learner is None or not self.learner.labels.names:
            return "waiting"
        if self._paused:
            return "paused"
        return "idle" if self._rests else "training"

    @property
    def _rests(self) -> bool:
        """Whether the loss is flat, and unlabelled scans have had their turn."""
        assert self.learner is not None
        return self.learner.plateau.flat and not self.teaching.fresh and not self._may_mix

    @property
    def _settled(self) -> bool:
        """Whether training has nothing newly drawn to get through first."""
        return not self.teaching.fresh or self.state != "training"

    @property
    def _may_mix(self) -> bool:
        """Whether unlabelled scans may come in: labels of a poor model would teach its errors."""
        if not self.options.mixing or self._pseudo is not None:
            return False
        recent, least = self.teaching.scores.recent_dice, self.options.mixing_dice
        good = not least or (recent is not None and recent >= least)
        return good and self.teaching.has_others

    @property
    def _time_to_mix(self) -> bool:
        """Whether unlabelled scans come in now, as what is drawn has been learnt."""
        assert self.learner is not None
        if self.teaching.fresh or not self._may_mix:
            return False
        steps = self.learner.step - self.learner.first_step
        return self.learner.plateau.flat or steps >= self.options.mixing_after

    def run(self) -> None:
        """Until a request, the time limit or the end of the requests says so.

        Raises:
            CancelledError: a signal or a stop file asked for it; the checkpoint is kept.
            GuardError: the loss or a weight is not finite.
        """
        while not self._stopped:
            self._hear()
            if time.monotonic() >= self._next_look:
                self.look()
            knows, settled = self.teaching.knows, self._settled
            busy = self.shown.advance(self.learner, knows, settled=settled)
            busy |= self._answer()
            busy |= self.train()
            knows, settled, rests = self.teaching.knows, self._settled, self.state != "training"
            self.shown.plan_next(self.learner, knows, settled=settled, rests=rests)
            self._tell()
            if self.state == "training" and self.keeper.age > CHECKPOINT_EVERY:
                self.keeper.checkpoint(self.teaching)
            self._heed_signals()
            if self._over:
                return
            if not busy:
                self.source.wait(NAP)

    @property
    def _over(self) -> bool:
        """Whether a limit is reached."""
        if self.seconds is not None and time.monotonic() - self._began >= self.seconds:
            return True
        learner = self.learner
        return self.steps is not None and learner is not None and learner.step >= self.steps

    def _heed_signals(self) -> None:
        if not interrupts.requested() and not (self.keeper.folder / STOP_FILE).exists():
            return
        if self.learner is None:
            raise CancelledError("Stopped; nothing had been drawn.")
        self.keeper.checkpoint(self.teaching)
        raise CancelledError(
            f"Stopped at step {self.learner.step}; go on: --resume --name "
            f"{self.keeper.folder.name}."
        )

    def _hear(self) -> None:
        """Take all requests; of several to show the last one that can be shown counts."""
        show: Request | None = None
        for line in self.source.lines():
            try:
                request = parse_request(line)
                if request.kind == "show":
                    self._check_shown(request)
                    show = request
                else:
                    self._obey(request)
            except InputError as error:
                self.events.emit("warning", message=str(error))
        if show is not None:
            self.show(show.name, show.place)

    def _check_shown(self, request: Request) -> None:
        """Raises InputError where the case or the slice does not exist."""
        case = self.teaching.watch.project.case(request.name)
        if request.place is not None:
            axis, index = request.place
            image = case.images[0]
            if image not in self._sizes:  # of DICOM this takes longer than a scroll should
                self._sizes[image] = io.read_header(image, case=case.name).size
            count = self._sizes[image][axis]
            if index >= count:
                raise InputError(
                    f"has no slice {index} along axis {axis}",
                    case=case.name,
                    remedy=f"Slices are 0 to {count - 1} there.",
                )

    def _obey(self, request: Request) -> None:
        if request.kind == "suggest":
            self._answers.append(self._suggest(request.count))
        elif request.kind == "refresh":
            self._next_look = 0.0
        elif request.kind == "resume":
            self._paused = False
        elif request.kind == "stop":
            self._stopped = True
        elif request.kind == "pause":
            self._paused = True
            self.keeper.keep_weights(self.teaching)
        elif request.kind == "save":
            self.keeper.save_as(request.name, self.teaching)

    def show(self, name: str, place: SlicePlace | None) -> None:
        """Look at a slice of a case from now on."""
        try:
            case = self.teaching.watch.project.case(name)
            self.shown.ask(case, place, self.learner, self.teaching.knows)
        except InputError as error:
            self.events.emit("warning", message=str(error))

    def look(self) -> None:
        """Look at the files, and take in what has changed."""
        for change in self.teaching.watch.look():
            before = self.learner
            self.teaching.take_in(change, self.shown.holds(change.name))
            if before is not None and before is not self.learner:  # the classes have changed
                before.close()
                self.shown.forget()
                self._pseudo = self._renewal = None
            self.shown.note_change(change.name, change.since)
            self._next_renewal = 0
        self._next_look = time.monotonic() + self.options.look_every

    def _answer(self) -> bool:
        """A piece of the work on the oldest open question; whether there was one."""
        if not self._answers or self.shown.urgent:
            return False
        if next(self._answers[0], self) is self:
            self._answers.pop(0)
        return True

    def _suggest(self, count: int) -> Iterator[None]:
        project, learner = self.teaching.watch.project, self.learner
        try:
            for found in suggest_live(project, learner, count, self.events):
                if found is None:
                    yield
                    continue
                for item in found:
                    place = (item.axis, item.index)
                    held = pays = False
                    if learner is not None and learner.taught:
                        pays = self.teaching.scores.proposals_pay(learner.step)
                    if learner is not None and pays:
                        case, knows = project.case(item.case), self.teaching.knows
                        held = self.shown.propose(case, place, learner, knows)
                    self.events.emit(
                        "suggestion",
                        case=item.case,
                        axis=item.axis,
                        index=item.index,
                        why=item.reason,
                        proposal=held,
                        proposals_pay=pays,
                    )
                    yield
                if len(found) < count:
                    self.events.emit("warning", message=_few(len(found), count))
        except InputError as error:
            self.events.emit("warning", message=str(error))

    def train(self) -> bool:
        """A step, where there is anything to learn; whether there was."""
        learner = self.learner
        if learner is None or self.state != "training" or self.shown.urgent:
            return False
        if self._time_to_mix:
            self._pseudo = PseudoLabels(learner, self.teaching.others)
            learner.plateau.reset()
        if self._pseudo is not None and not self.teaching.fresh:
            self._renew(learner, self._pseudo)
        self._loss = learner.advance()
        self.teaching.count_step()
        return True

    def _renew(self, learner: Learner, pseudo: PseudoLabels) -> None:
        """A piece of the work on the next pseudo-label, when it is time for one."""
        if self._renewal is None:
            if learner.step < self._next_renewal and pseudo.complete:
                return
            self._renewal = pseudo.renew()
        if next(self._renewal, self) is self:
            self._renewal = None
            self._next_renewal = learner.step + RENEW_EVERY
            if pseudo.complete:
                learner.mix_with(pseudo.sampler())

    def _tell(self) -> None:
        state, (before, when) = self.state, self._last_told
        every = TELL_EVERY.get(state, TELL_OTHERWISE)
        if state == before and time.monotonic() - when < every:
            return
        learner = self.learner
        step = 0 if learner is None else learner.step
        if not self.events.due(LIVE_STAGE, step, 0):  # it would be dropped: the next round tells
            return
        self._last_told = (state, time.monotonic())
        if state == "idle" and before == "training":
            self.keeper.checkpoint(self.teaching)
        loss = {} if self._loss is None else {"segmentation": self._loss}
        self.events.progress(
            LIVE_STAGE,
            step,
            0,
            loss,
            state=state,
            mixing=learner is not None and learner.mixes,
            slices=self.teaching.slices,
            cases=len(self.teaching.watch.digests),
            resident_mib=round(psutil.Process().memory_info().rss / 2**20),
        )


def _few(found: int, asked: int) -> str:
    """Why there are fewer suggestions than asked for."""
    if not found:
        return "No slice is left to suggest."
    return (
        f"{found} of {asked} slices are suggested: from the scans that were looked at, and not too "
        "near to each other. Ask again once these are drawn."
    )
