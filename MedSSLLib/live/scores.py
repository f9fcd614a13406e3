"""Prequential scores: a slice is predicted before it is learnt from, and compared with the drawing.

Each slice is a test of the model before it teaches it, so the scores are honest without a held-out
case (prequential evaluation; Dawid 1984, "Present position and potential developments: some
personal views: statistical theory: the prequential approach", J. R. Stat. Soc. A 147).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MedSSLLib.evaluation.metrics import dice_per_class
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.live.watch import Place

MOST_KEPT = 400  # predictions of slices kept, so that a correction is scored against the same one


def slice_score(predicted: np.ndarray, drawn: np.ndarray, classes: int) -> tuple[float, float]:
    """Dice and the share of voxels that the person changed, over counted voxels.

    Args:
        predicted: class map of the slice, 2D.
        drawn: class map of the same shape, IGNORE where nothing is drawn.
        classes: number of classes with background.

    Returns:
        The mean Dice over the classes that either shows, 1 where neither shows one; and of the
        voxels that are a structure in either the share whose class differs, 0 where there is none.
    """
    counted = drawn != IGNORE
    found = np.where(counted, predicted, 0)
    wanted = np.where(counted, drawn, 0)
    dice = np.asarray(dice_per_class(found, wanted, classes))
    known = dice[~np.isnan(dice)]
    structure = (found > 0) | (wanted > 0)
    differing = int((found != wanted).sum())
    share = differing / int(structure.sum()) if structure.any() else 0.0
    return (float(known.mean()) if len(known) else 1.0), share


@dataclass
class Scores:
    """The scores of a run.

    Attributes:
        rows: the latest of every slice, in the order in which they were first drawn.
    """

    rows: dict[tuple[str, Place], dict[str, Any]] = field(default_factory=dict)
    _learnt: set[tuple[str, Place]] = field(default_factory=set)
    _before: OrderedDict[tuple[str, Place], np.ndarray] = field(default_factory=OrderedDict)

    def is_new(self, case: str, place: Place) -> bool:
        """Whether a slice has never been learnt from."""
        return (case, place) not in self._learnt

    def learnt(self, case: str, places: Iterable[Place]) -> None:
        """Slices are learnt from, from now on."""
        self._learnt.update((case, place) for place in places)

    def predicted(self, case: str, place: Place) -> np.ndarray | None:
        """What was predicted of a slice before it was first learnt from."""
        return self._before.get((case, place))

    def keep(self, case: str, place: Place, predicted: np.ndarray) -> None:
        """Keep what is predicted of a slice that will be learnt from next."""
        self._before[case, place] = predicted
        while len(self._before) > MOST_KEPT:
            self._before.popitem(last=False)

    def note(
        self, case: str, place: Place, drawn: np.ndarray, classes: int, proposed: bool
    ) -> dict[str, Any] | None:
        """Score a slice against what was predicted of it; None where nothing was."""
        predicted = self.predicted(case, place)
        if predicted is None or predicted.shape != drawn.shape:
            return None
        dice, changed = slice_score(predicted, drawn, classes)
        first = self.rows.get((case, place), {"proposed": proposed})
        row = {
            "case": case,
            "axis": place[0],
            "index": place[1],
            "dice": round(dice, 4),
            "changed": round(changed, 4),
            "proposed": first["proposed"],
        }
        self.rows[case, place] = row
        return row

    def summary(self, last: int = 5) -> dict[str, Any]:
        """Means over the slices that were first drawn last, for ``metrics.json``."""
        rows = list(self.rows.values())[-last:]
        if not rows:
            return {}
        return {
            "slices": len(rows),
            "dice": round(float(np.mean([row["dice"] for row in rows])), 4),
            "changed": round(float(np.mean([row["changed"] for row in rows])), 4),
        }
