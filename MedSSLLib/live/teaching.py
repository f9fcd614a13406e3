"""Taking in what a person has drawn: score it, then learn from it.

Each slice is a test of the model before it teaches it, so the scores are honest without a held-out
case (prequential evaluation; Dawid 1984, "Present position and potential developments: some
personal views: statistical theory: the prequential approach", J. R. Stat. Soc. A 147).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from MedSSLLib.active_learning.strategies import even_order
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.evaluation.metrics import dice_per_class
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.live.labels import FreshSlice
from MedSSLLib.live.learner import Learner
from MedSSLLib.live.previews import layout_of, predicted_slices
from MedSSLLib.live.watch import DrawingChange, DrawnCase, SlicePlace, Watch
from MedSSLLib.project.manifest import Case

SCORED_AT_ONCE = 8  # new slices of a change that are predicted before they are learnt from
MOST_KEPT = 400  # predictions of slices kept, so that a correction is scored against the same one
LAST = 5  # slices that tell how good the model is by now
FRESH_AT_ONCE = 24  # new slices that are favoured; of more, those that came last

# makes the model when there is something to learn, or anew where the classes have changed
MakeLearner = Callable[[Learner | None, DrawnCase | None], Learner]


class SliceScore(NamedTuple):
    """How a prediction of a slice compares with what was drawn there, over counted voxels.

    Attributes:
        dice: mean over the classes that either shows, 1 where neither shows one.
        changed: of the voxels that are a structure in either the share whose class differs, 0 where
            there is none.
        wrong: voxels whose class differs: the work of correcting the prediction.
        drawn: voxels of structures as drawn: the work of drawing them from nothing.
    """

    dice: float
    changed: float
    wrong: int
    drawn: int


def slice_score(predicted: np.ndarray, drawn: np.ndarray, classes: int) -> SliceScore:
    """Compare a prediction with what a person has drawn.

    Args:
        predicted: class map of the slice, 2D.
        drawn: class map of the same shape, IGNORE where nothing is drawn.
        classes: number of classes with background.
    """
    counted = drawn != IGNORE
    found = np.where(counted, predicted, 0)
    wanted = np.where(counted, drawn, 0)
    dice = np.asarray(dice_per_class(found, wanted, classes))
    known = dice[~np.isnan(dice)]
    structure = int(((found > 0) | (wanted > 0)).sum())
    wrong = int((found != wanted).sum())
    return SliceScore(
        dice=float(known.mean()) if len(known) else 1.0,
        changed=wrong / structure if structure else 0.0,
        wrong=wrong,
        drawn=int((wanted > 0).sum()),
    )


@dataclass
class Scores:
    """The scores of a run.

    Attributes:
        rows: the latest of every slice, in the order in which they were first drawn.
    """

    rows: dict[tuple[str, SlicePlace], dict[str, Any]] = field(default_factory=dict)
    _learnt: set[tuple[str, SlicePlace]] = field(default_factory=set)
    _before: OrderedDict[tuple[str, SlicePlace], np.ndarray] = field(default_factory=OrderedDict)

    def is_new(self, case: str, place: SlicePlace) -> bool:
        """Whether a slice has never been learnt from."""
        return (case, place) not in self._learnt

    def learnt(self, case: str, places: Iterable[SlicePlace]) -> None:
        """Slices are learnt from, from now on."""
        self._learnt.update((case, place) for place in places)

    def predicted(self, case: str, place: SlicePlace) -> np.ndarray | None:
        """What was predicted of a slice before it was first learnt from."""
        return self._before.get((case, place))

    def keep(self, case: str, place: SlicePlace, predicted: np.ndarray) -> None:
        """Keep what is predicted of a slice that will be learnt from next."""
        self._before[case, place] = predicted
        while len(self._before) > MOST_KEPT:
            self._before.popitem(last=False)

    def note(
        self,
        case: str,
        place: SlicePlace,
        drawn: np.ndarray,
        classes: int,
        *,
        proposed: bool,
        step: int,
    ) -> dict[str, Any] | None:
        """Score a slice against what was predicted of it; None where nothing was.

        `step` is the model's when it was predicted; a slice that is corrected keeps its first one.
        """
        predicted = self.predicted(case, place)
        if predicted is None or predicted.shape != drawn.shape:
            return None
        score = slice_score(predicted, drawn, classes)
        first = {"proposed": proposed, "step": step} | self.rows.get((case, place), {})
        row = {
            "case": case,
            "axis": place[0],
            "index": place[1],
            "dice": round(score.dice, 4),
            "changed": round(score.changed, 4),
            "wrong": score.wrong,
            "drawn": score.drawn,
            "step": first["step"],
            "proposed": first["proposed"],
        }
        self.rows[case, place] = row
        return row

    def proposals_pay(self, step: int) -> bool:
        """Whether correcting the predictions of the last slices took fewer voxels than drawing them
        from nothing; not before there is one. Not from a paper.

        A model that has trained twice as long since, up to `step`, is another one, and is given the
        benefit of the doubt.
        """
        # rows of earlier versions do not say
        rows = [row for row in self.rows.values() if "wrong" in row][-LAST:]
        telling = [row for row in rows if 2 * row["step"] >= step]
        wrong, drawn = (sum(row[key] for row in telling) for key in ("wrong", "drawn"))
        return bool(rows) and wrong <= drawn

    @property
    def recent_dice(self) -> float | None:
        """Mean Dice of the last slices; None before there are enough of them."""
        rows = list(self.rows.values())[-LAST:]
        return float(np.mean([row["dice"] for row in rows])) if len(rows) == LAST else None

    def summary(self) -> dict[str, Any]:
        """Means over the slices that were first drawn last, for ``metrics.json``."""
        rows = list(self.rows.values())[-LAST:]
        if not rows:
            return {}
        return {
            "slices": len(rows),
            "dice": round(float(np.mean([row["dice"] for row in rows])), 4),
            "changed": round(float(np.mean([row["changed"] for row in rows])), 4),
        }


@dataclass
class _Fresh:
    """A slice that has not been learnt from for long enough."""

    place: SlicePlace
    item: FreshSlice
    until: int  # the step at which it is known


class Teaching:
    """What is drawn, and the model that learns it.

    Attributes:
        watch: notices what is drawn.
        learner: the model; None before the first drawn slice.
        scores: how well slices were predicted before they were drawn.
        epoch: counts changes of any case.
        knows: the newest of them that the weights have learnt from for long enough.
    """

    def __init__(
        self,
        watch: Watch,
        make: MakeLearner,
        events: Events,
        known_after: int,
        mixing_cases: int,
    ) -> None:
        self.watch = watch
        self.learner: Learner | None = None
        self.scores = Scores()
        self.epoch = self.knows = 0
        self._make, self._events = make, events
        self._known_after, self._mixing_cases = known_after, mixing_cases
        self._fresh: list[_Fresh] = []
        self._epochs: list[tuple[int, int]] = []

    def take_up(self, epoch: int, digests: Mapping[str, Iterable[SlicePlace]]) -> None:
        """Go on from what an earlier process had learnt from."""
        self.epoch = self.knows = epoch
        for name, places in digests.items():
            self.scores.learnt(name, places)

    @property
    def fresh(self) -> bool:
        """Whether there is something that is not known yet."""
        return bool(self._epochs)

    @property
    def slices(self) -> int:
        """Drawn slices of all cases."""
        return sum(len(places) for places in self.watch.digests.values())

    @property
    def has_others(self) -> bool:
        """Whether there is any of :attr:`others`."""
        pool = self.watch.project.pool
        return any(case.role == "unlabelled" or case.annotated for case in pool)

    @property
    def others(self) -> list[Case]:
        """Cases whose pseudo-labels may teach: partly drawn ones first, then others, of as many
        patients as there are, their phases in turns. Test cases are never among them.
        """
        pool = self.watch.project.pool
        partly = [case for case in pool if case.role == "labelled" and case.annotated]
        rest = [case for case in pool if case.role == "unlabelled"]
        half = min(len(partly), max(self._mixing_cases - len(rest), self._mixing_cases // 2))
        room = self._mixing_cases - half
        known = [case.role == "labelled" for case in pool]
        order = even_order(known, [case.patient for case in pool], room)
        spread = [pool[place] for place in order if pool[place].role == "unlabelled"][:room]
        return [*partly[-half:], *spread] if half else spread

    def take_in(self, change: DrawingChange, proposed: Callable[[SlicePlace], bool]) -> None:
        """Tell of a change, score its new slices with weights that have not seen them, and teach.

        Args:
            change: what has changed of a case.
            proposed: whether a slice was shown as a proposal.
        """
        if not change.changed and not change.removed:  # as an earlier process has left it
            if change.drawn is not None and self._prepared(change.drawn):
                assert self.learner is not None
                self.learner.labels.put(change.drawn)
                self._teach()
            return
        self.epoch += 1
        self._events.emit(
            "annotation",
            case=change.name,
            version=change.version,
            epoch=self.epoch,
            slices=0 if change.drawn is None else len(change.drawn.places),
            changed=[list(place) for place in change.changed],
            removed=[list(place) for place in change.removed],
        )
        gone = {*change.changed, *change.removed}
        self._fresh = [
            one for one in self._fresh if one.item.case != change.name or one.place not in gone
        ]
        if change.drawn is None:
            if self.learner is not None:
                self.learner.labels.drop(change.name)
        elif not self._prepared(change.drawn):
            return
        else:
            self._learn(change, change.drawn, proposed)
        self._retell()

    def _prepared(self, drawn: DrawnCase) -> bool:
        """Make what is needed to learn from a case; whether there is all."""
        project = self.watch.project
        try:
            stale = self.learner is not None and (
                (self.learner.classes, self.learner.values) != (project.classes, project.values)
            )
            if self.learner is None or stale:
                self.learner = self._make(self.learner, drawn)
            self.learner.labels.cache.prepare([drawn.case]).require_all()
        except InputError as error:
            self._events.emit("warning", message=str(error.for_case(drawn.case.name)))
            return False
        return True

    def _learn(
        self, change: DrawingChange, drawn: DrawnCase, proposed: Callable[[SlicePlace], bool]
    ) -> None:
        assert self.learner is not None
        if self.learner.taught:
            self._score(self.learner, drawn, change.changed, proposed)
        self.scores.learnt(drawn.case.name, change.changed)
        labels = self.learner.labels
        labels.put(drawn)
        until = self.learner.step + self._known_after
        for place in change.changed[-FRESH_AT_ONCE:]:
            item = FreshSlice(drawn.case.name, labels.on_slice(drawn, place))
            self._fresh.append(_Fresh(place, item, until))

    def _score(
        self,
        learner: Learner,
        drawn: DrawnCase,
        places: tuple[SlicePlace, ...],
        proposed: Callable[[SlicePlace], bool],
    ) -> None:
        """Predict slices that were not drawn before, and score all that changed against what was
        predicted before they were first learnt from.
        """
        name, cache = drawn.case.name, learner.labels.cache
        layout = layout_of(drawn.case, cache)
        new = [p for p in places if p[0] == layout.axis and self.scores.is_new(name, p)]
        with learner.predicting() as model:
            for place in new[:SCORED_AT_ONCE]:
                at = layout.turned(place[1])
                plane = predicted_slices(model, cache, layout, at, at)
                self.scores.keep(name, place, layout.in_source(plane, place))
        for place in places:
            row = self.scores.note(
                name,
                place,
                drawn.plane(place),
                len(learner.classes),
                proposed=proposed(place),
                step=learner.step,
            )
            if row is not None:
                pays = self.scores.proposals_pay(learner.step)
                self._events.emit("score", **row, proposals_pay=pays)

    def _retell(self) -> None:
        """Let the model train on what is drawn now."""
        if self.learner is None:
            return
        self._epochs.append((self.epoch, self.learner.step + self._known_after))
        self.learner.plateau.reset()
        self._teach()

    def _teach(self) -> None:
        assert self.learner is not None
        self.learner.teach([one.item for one in self._fresh[-FRESH_AT_ONCE:]])

    def count_step(self) -> None:
        """After a step: which slices and changes are known now."""
        assert self.learner is not None
        step = self.learner.step
        while self._epochs and self._epochs[0][1] <= step:
            self.knows = self._epochs.pop(0)[0]
        left = [one for one in self._fresh if one.until > step]
        if len(left) < len(self._fresh):
            self._fresh = left
            self._teach()

    def close(self) -> None:
        """Let the model's threads end."""
        if self.learner is not None:
            self.learner.close()
