"""Choosing slices: limits that every strategy keeps, and the strategies as pure functions.

They are representative, uncertain, even and random choice.

A slice is a row of a table: which case it belongs to (``case``, an index), its place in it
(``place``, an integer).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from MedSSLLib.data.random import Stream, random_stream

Item = TypeVar("Item")

# rows compared; a seeded sample of more; not from the paper
MOST_CLIENTS, MOST_CANDIDATES = 3000, 10_000
LEAST_GAIN = 1e-4  # fraction of the weight that a further slice must add; not from the paper
SMALL = 0.1  # structures of this part of the usual size are next to none; not from a paper
ALIKE_SLICES = 0.5  # similarity from which a slice is said to be like another; not from the paper


class Candidates:
    """Which slices may still be chosen.

    At most `per_case` a case, none too near one that is chosen or drawn.

    Too near is closer than half the distance that `per_case` new and all drawn slices of a case
    would have if they were spread evenly over its slices; not from the paper. Where that leaves
    none before there are `per_case`, the distance of that case shrinks to that of its farthest
    slice, so that `per_case` slices always find room.

    Attributes:
        free: slices that are neither empty nor drawn, boolean ``[rows]``.
        open: those of them that may be chosen now, boolean ``[rows]``.
    """

    def __init__(
        self,
        case: np.ndarray,
        place: np.ndarray,
        usable: np.ndarray,
        drawn: np.ndarray,
        per_case: int,
    ) -> None:
        cases = int(case.max()) + 1 if case.size else 0
        wanted = per_case + np.bincount(case[drawn], minlength=cases)
        self._case, self._place, self._left, self._taken = (
            case,
            place,
            np.full(cases, per_case),
            drawn.copy(),
        )
        self._gap = np.bincount(case[usable | drawn], minlength=cases) / (2 * wanted)
        self.free = usable & ~drawn
        self.open = self.free.copy()
        for number in np.unique(case[drawn]):
            self._update(int(number))

    def take(self, row: int) -> None:
        """Choose a row."""
        self._taken[row] = True
        self._left[self._case[row]] -= 1
        self._update(int(self._case[row]))

    def _update(self, case: int) -> None:
        rows = np.flatnonzero(self._case == case)
        taken, free = self._taken[rows], self.free[rows] & ~self._taken[rows]
        if self._left[case] <= 0 or not free.any():
            self.open[rows] = False
            return
        place = self._place[rows]
        distance = np.abs(place[:, None] - place[taken]).min(1)
        self._gap[case] = min(self._gap[case], distance[free].max())
        self.open[rows] = free & (distance >= self._gap[case])


@dataclass(frozen=True)
class ChosenSlice:
    """A chosen row, and what it adds.

    Attributes:
        row: which one.
        gain: fraction of the total weight that it newly represents.
        stands_for: rows (of those compared) that it is now the nearest choice for.
        similarity: to the nearest slice drawn or chosen before it, 0 without any.
    """

    row: int
    gain: float
    stands_for: np.ndarray
    similarity: float


def representative(
    features: np.ndarray,
    weights: np.ndarray,
    candidates: Candidates,
    drawn: np.ndarray,
    budget: int,
    seed: int = 0,
) -> list[ChosenSlice]:
    """Slices that together represent all slices best, by greedy maximisation.

    What is maximised is the facility location function

    ``F(S) = sum over slices i of w_i max over j in S of max(0, cos(x_i, x_j))``,

    as suggestive annotation does (Yang, Zhang, Chen, Zhang, Chen 2017, arXiv 1706.04737, with w =
    1); F is monotone and submodular, so the greedy choice reaches 1 - 1/e of the best value where
    only the budget limits it (Nemhauser, Wolsey, Fisher 1978), and half of it with at most so many
    slices a case (Fisher, Nemhauser, Wolsey 1978). With the distance that `candidates` keep as well
    there is no such bound. Drawn slices are in S from the start. It ends early when no further
    slice adds a 10,000th of the total weight: what is left looks like what was chosen.

    Args:
        features: ``[rows, f]``, centred; compared by their cosine.
        weights: ``[rows]``, >= 0: how much it counts that a slice is represented.
        candidates: which rows may be chosen; changed.
        drawn: boolean ``[rows]``.
        budget: most rows chosen.
        seed: of the samples of very many rows.
    """
    rng = random_stream(seed, Stream.CLIENT_SLICES)
    clients = _sample(rng, np.flatnonzero(weights > 0), MOST_CLIENTS)
    rows = _sample(rng, np.flatnonzero(candidates.free), MOST_CANDIDATES)
    if not len(clients) or not len(rows):
        return []
    length = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    unit = (features / length).astype(np.float32)
    weight = weights[clients] / weights[clients].sum()
    before = np.flatnonzero(drawn)
    nearest, known = _similarity(unit, clients, before), _similarity(unit, rows, before)
    similarity = unit[rows] @ unit[clients].T
    chosen: list[ChosenSlice] = []
    while len(chosen) < budget:
        gains = np.where(candidates.open[rows], np.maximum(similarity - nearest, 0) @ weight, -1.0)
        best = int(gains.argmax())
        if gains[best] < LEAST_GAIN:
            break
        closer = (similarity[best] > nearest) & (similarity[best] >= ALIKE_SLICES)
        row = int(rows[best])
        chosen.append(ChosenSlice(row, float(gains[best]), clients[closer], float(known[best])))
        nearest = np.maximum(nearest, similarity[best])
        known = np.maximum(known, unit[rows] @ unit[row])
        candidates.take(row)
    return chosen


def most(scores: np.ndarray, candidates: Candidates, budget: int) -> list[int]:
    """Rows of the largest positive scores that may be chosen, largest first.

    Of equal ones the first comes first.
    """
    chosen: list[int] = []
    while len(chosen) < budget and candidates.open.any():
        row = int(np.where(candidates.open, scores, -np.inf).argmax())
        if scores[row] <= 0:
            break
        chosen.append(row)
        candidates.take(row)
    return chosen


def evenly(rows: Sequence[Item], count: int) -> list[Item]:
    """`count` of the rows, in the middle of `count` equal parts; all when there are no more."""
    count = min(count, len(rows))
    return [rows[(2 * part + 1) * len(rows) // (2 * count)] for part in range(count)]


def even_order(drawn: Sequence[bool], patients: Sequence[str], count: int) -> list[int]:
    """Positions of cases in the order in which evenly spaced slices are put into them.

    The first `count` matter most.

    Patients without drawn slices come first, one case of each patient before a second one; of the
    group in which the `count`-th falls, an evenly spaced part. Cases of a patient (phases, visits)
    take turns: each patient gives its first, second, ... case, whichever patients with as many
    cases have given least often, drawn ones included. So no phase is left out where the order of a
    patient's cases is that of phases, as by names that end in them. Not from a paper.
    """
    cases: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        cases.setdefault(patient, []).append(position)
    turn = {position: (len(own), nth) for own in cases.values() for nth, position in enumerate(own)}
    given = Counter(turn[position] for position, has in enumerate(drawn) if has)
    busy = {patient for patient, has in zip(patients, drawn, strict=True) if has}
    left = {patient: set(own) for patient, own in cases.items()}
    order: list[int] = []
    for is_busy in (False, True):
        group = [patient for patient in cases if (patient in busy) == is_busy]
        while group and len(order) < count:
            for patient in evenly(group, count - len(order)):
                position = min(left[patient], key=lambda p: (drawn[p], given[turn[p]], p))
                left[patient].remove(position)
                given[turn[position]] += 1
                order.append(position)
            group = [patient for patient in group if left[patient]]
    rest = set().union(*left.values())
    return order + sorted(rest, key=lambda p: (patients[p] in busy, drawn[p], turn[p][1], p))


def patient_weights(patients: Sequence[str], usable: np.ndarray) -> np.ndarray:
    """Weights ``[rows]`` that make every patient count alike; they sum to 1.

    They are 0 where a row is not usable, whatever the number of scans and slices.
    """
    weights = np.zeros(len(usable))
    if usable.any():
        _, which, counts = np.unique(
            np.asarray(patients)[usable], return_inverse=True, return_counts=True
        )
        weights[usable] = 1.0 / (counts[which] * len(counts))
    return weights


def doubt_weights(
    patients: Sequence[str],
    case: np.ndarray,
    usable: np.ndarray,
    uncertain: np.ndarray,
    found: np.ndarray,
) -> np.ndarray:
    """Weights ``[rows]`` of slices by how little a model knows about them; 0 where not usable.

    A scan counts by its doubt, ``U / (U + F + SMALL median F)`` with U the uncertain area and F
    the area of the structures found in it, means over its usable rows, the median over scans in
    which anything is found; and each of its rows by its part of U. The uncertain area alone would
    name large structures instead of failures, and where a model finds nothing it is small. Where
    nothing is found in any scan, it decides alone all the same. Before doubt every patient counts
    alike. Structures count together: one that is missed beside another that is found well shows
    little. Not from a paper.

    Args:
        patients: of the rows.
        case: scan of the rows.
        usable: boolean ``[rows]``.
        uncertain: uncertain area of the rows, mm2.
        found: area of the structures that are found on the rows, mm2.
    """
    weights = patient_weights(patients, usable)
    scans = [np.flatnonzero(usable & (case == number)) for number in np.unique(case)]
    scans = [rows for rows in scans if len(rows)]
    areas = [found[rows].mean() for rows in scans]
    positive = [area for area in areas if area > 0]
    if not positive:
        return weights * uncertain
    for rows, area in zip(scans, areas, strict=True):
        known = area + SMALL * np.median(positive)
        weights[rows] *= uncertain[rows] / (uncertain[rows].mean() + known)
    return weights


def _similarity(unit: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of every row its similarity to the nearest of the chosen rows, at least 0."""
    nearest = np.zeros(len(rows), np.float32)
    for start in range(0, len(chosen), MOST_CLIENTS):
        some = unit[chosen[start : start + MOST_CLIENTS]]
        nearest = np.maximum(nearest, (unit[rows] @ some.T).max(1))
    return nearest


def _sample(rng: np.random.Generator, rows: np.ndarray, most_rows: int) -> np.ndarray:
    return rows if len(rows) <= most_rows else np.sort(rng.choice(rows, most_rows, replace=False))
