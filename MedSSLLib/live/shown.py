"""The case that is looked at, its previews, and the proposals for suggested slices."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.cache import Cache
from MedSSLLib.live.learner import Learner
from MedSSLLib.live.previews import Pass, begin_pass
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.project.manifest import Case

REFRESH_STEPS = 60  # steps after which a preview of the shown case is made anew; not from a paper
MOST_HELD = 4  # cases whose last preview is held in memory


class Shown:
    """Makes previews: first of what is asked for, then of what the weights know newly.

    Attributes:
        case: the case that is looked at.
        place: the slice of it.
    """

    def __init__(self, folder: Path, events: Events) -> None:
        """With the folder that previews are written into."""
        self.case: Case | None = None
        self.place: SlicePlace | None = None
        self._folder, self._events = folder, events
        self._pass: Pass | None = None
        self._held: OrderedDict[str, Pass] = OrderedDict()
        self._changed: dict[str, float] = {}
        self._asked = 0.0

    @property
    def urgent(self) -> bool:
        """Whether the shown slice itself is still to be predicted."""
        return self._pass is not None and self._pass.high == self._pass.low

    def holds(self, name: str) -> Callable[[SlicePlace], bool]:
        """Whether a slice of a case has been shown or offered as a proposal."""
        held = self._held.get(name)
        return lambda place: held is not None and held.has_shown(place)

    def forget(self) -> None:
        """Drop all previews: the classes have changed."""
        self._pass = None
        self._held.clear()

    def note_change(self, name: str, since: float) -> None:
        """A case was drawn on then; the next preview that knows it is timed from there."""
        self._changed[name] = since

    def ask(
        self, case: Case, place: SlicePlace | None, learner: Learner | None, knows: int
    ) -> None:
        """Look at a slice of a case from now on. Raises InputError when it cannot be read."""
        self.case, self.place = case, place
        self._asked = time.time()
        if learner is None or not learner.taught:
            self._pass = None
            return
        held = self._held.get(case.name)
        current = held is not None and (held.knows, held.step) == (knows, learner.step)
        if held is not None and current and held.holds(place):
            self._tell(held, learner)
            return
        try:
            self._begin(case, place, learner, knows, self._asked)
        except InputError:
            self.case = self._pass = None
            raise

    def _begin(
        self, case: Case, place: SlicePlace | None, learner: Learner, knows: int, since: float
    ) -> None:
        cache = learner.labels.cache
        _prepare(cache, case)
        self._pass = begin_pass(case, cache, place, self._held.get(case.name))
        self._pass.knows, self._pass.step, self._pass.since = knows, learner.step, since

    def advance(self, learner: Learner | None, knows: int, *, settled: bool) -> bool:
        """Predict the next slices of the shown case; whether there were any.

        While something drawn is not known yet (not `settled`), only the shown slice: the others
        would hold up the training.
        """
        if self._pass is None or learner is None or not (settled or self.urgent):
            return False
        current = self._pass
        if current.knows < knows and current.high == current.low:
            current.knows, current.step = knows, learner.step
        with learner.predicting() as model:
            current.advance(model, learner.labels.cache)
        self._hold(current)
        if current.due:
            self._tell(current, learner)
        if current.whole:
            self._pass = None
        return True

    def plan_next(self, learner: Learner | None, knows: int, *, settled: bool, rests: bool) -> None:
        """Begin a new preview where the weights know something that the last one did not, after
        some steps, or when training has come to rest; not while something drawn is not known yet.

        A case that cannot be read any more is named, and looked at again once it is asked for.
        """
        try:
            self._plan_next(learner, knows, settled=settled, rests=rests)
        except InputError as error:
            self.case = self._pass = None
            self._events.emit("warning", message=str(error))

    def _plan_next(
        self, learner: Learner | None, knows: int, *, settled: bool, rests: bool
    ) -> None:
        if self.case is None or learner is None or not learner.taught or not settled:
            return
        held = self._held.get(self.case.name)
        if held is None:
            if self._pass is None:
                since = self._changed.pop(self.case.name, self._asked)
                self._begin(self.case, self.place, learner, knows, since)
            return
        newly = held.knows < knows
        if self._pass is not None and not newly:
            return
        steps = learner.step - held.step
        if newly or steps >= REFRESH_STEPS or (rests and steps > 0):
            since = self._changed.pop(self.case.name, time.time())
            self._begin(self.case, self.place, learner, knows, since)

    def propose(self, case: Case, place: SlicePlace, learner: Learner, knows: int) -> bool:
        """Make a preview of one slice of any case; whether a preview holds it then."""
        held = self._held.get(case.name)
        if held is not None and held.holds(place) and learner.step - held.step < REFRESH_STEPS:
            return True
        cache = learner.labels.cache
        _prepare(cache, case)
        made = begin_pass(case, cache, place, held)
        made.knows, made.step = knows, learner.step
        with learner.predicting() as model:
            made.advance(model, cache)
        self._hold(made)
        self._tell(made, learner)
        return made.holds(place)

    def _hold(self, made: Pass) -> None:
        self._held[made.layout.name] = made
        self._held.move_to_end(made.layout.name)
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)

    def _tell(self, made: Pass, learner: Learner) -> None:
        path = made.write(self._folder)
        self._events.emit(
            "preview",
            case=made.layout.name,
            knows=made.knows,
            path=path,
            axis=made.layout.axis,
            slices=made.slices,
            whole=made.whole,
            step=made.step,
            seconds=round(max(0.0, time.time() - made.since), 2),
        )


def _prepare(cache: Cache, case: Case) -> None:
    cache.prepare([case]).require_all()
