"""Which cases and slices make a pre-training batch: evenly, or balanced over meta labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.batch import CropReader
from MedSSLLib.data.meta_labels import MISSING, PATIENT, MetaLabels
from MedSSLLib.data.patch_samplers import Pick
from MedSSLLib.data.random import shuffled_order
from MedSSLLib.project.manifest import Case

POSITIONS = 4  # parts of the slice axis (GCL)
# cases of a patient in one batch, more where patients are few; not from the paper
CASES_PER_PATIENT = 2
LEAST = {2: 4, 3: 2}  # samples that hold two patients, in 2D with two parts each


@dataclass(frozen=True)
class UniformPicker:
    """Every case equally often, in random order; in 2D a random slice of it."""

    reader: CropReader
    cases: Sequence[Case]
    samples: int
    dim: int
    seed: int

    def __call__(self, rng: np.random.Generator, step: int) -> list[Pick]:
        """The samples of a step's global batch."""
        picks = []
        for place in range(step * self.samples, (step + 1) * self.samples):
            name = self.cases[shuffled_order(self.seed, place, len(self.cases))].name
            index = int(rng.integers(self.reader.shape(name)[1])) if self.dim == 2 else 0
            picks.append(Pick(name, index))
        return picks


@dataclass
class _Draw:
    """A batch being drawn.

    Attributes:
        rng: the generator.
        positions: parts of the slice axis that each case gives a slice of.
        found: what it holds, as (case number, slice).
        used: what it shall not hold again.
    """

    rng: np.random.Generator
    positions: np.ndarray
    found: list[tuple[int, int]] = field(default_factory=list)
    used: set[tuple[int, int]] = field(default_factory=set)

    def add(self, number: int, index: int) -> None:
        self.found.append((number, index))
        self.used.add((number, index))


@dataclass(frozen=True)
class MetaPicker:
    """Patients x slice positions x cases: every anchor has positives and negatives.

    Patient after patient gives at most `CASES_PER_PATIENT` cases (phases, visits) that differ in
    their meta labels, and each case one random slice of every position part (a volume in 3D), until
    the batch is full: at least two patients, of fewer cases or parts where the batch is small, and
    no slice twice while there are others. The composition is not from the paper. The samples are in
    random order, so that every micro-batch sees all positions.

    Raises:
        InputError: fewer samples than `LEAST`.
    """

    reader: CropReader
    cases: Sequence[Case]
    samples: int
    meta: MetaLabels
    dim: int
    seed: int

    def __post_init__(self) -> None:
        least = LEAST[self.dim]
        if self.samples < least:
            slices = " with two slices each" if self.dim == 2 else ""
            raise InputError(
                f"a batch of {self.samples} cannot hold two patients{slices}, which meta labels "
                "need",
                remedy=f"Use --batch {least} or more",
            )

    @cached_property
    def patients(self) -> list[list[int]]:
        """Case numbers of each patient."""
        groups: dict[str, list[int]] = {}
        for number, case in enumerate(self.cases):
            groups.setdefault(case.patient, []).append(number)
        return list(groups.values())

    def __call__(self, rng: np.random.Generator, step: int) -> list[Pick]:
        """The samples of a step's global batch."""
        width = min(POSITIONS, self.samples // 2) if self.dim == 2 else 1
        draw = _Draw(rng, rng.permutation(self._positions)[:width])
        before = 0
        for turn, patient in enumerate(self._order(step, width)):
            second = width if turn == 0 else 0  # room for another patient
            self._add_patient(draw, self.patients[patient], self.samples - second)
            if len(draw.found) == self.samples:
                break
            if (turn + 1) % len(self.patients) == 0:
                if len(draw.found) == before:
                    self._allow_more(draw)
                before = len(draw.found)
        return [self._pick(*draw.found[i]) for i in rng.permutation(self.samples)]

    @property
    def _positions(self) -> int:
        return POSITIONS if self.dim == 2 else 1

    def _order(self, step: int, width: int) -> Iterator[int]:
        """Patients from the step's place in the endless sequence, each once in a round."""
        most = min(CASES_PER_PATIENT, max(map(len, self.patients)))
        position = step * max(2, -(-self.samples // (width * most)))
        seen: set[int] = set()
        while True:
            patient = shuffled_order(self.seed, position, len(self.patients))
            position += 1
            if patient not in seen:
                seen.add(patient)
                yield patient
            if len(seen) == len(self.patients):
                seen.clear()

    def _add_patient(self, draw: _Draw, numbers: list[int], limit: int) -> None:
        """Cases of a patient, until the batch holds `limit` samples.

        None is left over for another patient alone.
        """
        order = self._by_difference(draw, numbers)
        for number in order[:CASES_PER_PATIENT]:
            self._add_case(draw, number, limit)
        for number in (*order[CASES_PER_PATIENT:], *order[:CASES_PER_PATIENT]):
            if len(draw.found) == limit - 1 == self.samples - 1:
                self._add_case(draw, number, limit)

    def _by_difference(self, draw: _Draw, numbers: list[int]) -> list[int]:
        """A random case, then those whose known meta labels differ most from its own.

        Those in the batch come last.
        """
        busy = {number for number, _ in draw.used}
        order = [numbers[i] for i in draw.rng.permutation(len(numbers))]
        order.sort(key=lambda number: number in busy)
        first = self.meta.of(order[0])

        def alike(number: int) -> tuple[bool, int]:
            other = self.meta.of(number)
            differences = 0
            for name, value in first.items():
                differences += MISSING != value != other[name] != MISSING
            return number in busy, -differences

        return [order[0], *sorted(order[1:], key=alike)]

    def _add_case(self, draw: _Draw, number: int, limit: int) -> None:
        """A slice of each part that has one left, in random order of the parts."""
        slices = self.reader.shape(self.cases[number].name)[1] if self.dim == 2 else 1
        for position in draw.rng.permutation(draw.positions).tolist():
            first = min(-(-position * slices // self._positions), slices - 1)
            last = max(-(-(position + 1) * slices // self._positions), first + 1)
            free = [index for index in range(first, last) if (number, index) not in draw.used]
            if free and len(draw.found) < limit:
                draw.add(number, free[draw.rng.integers(len(free))])

    def _allow_more(self, draw: _Draw) -> None:
        """Other parts where all slices of some are in the batch; then slices again."""
        if len(draw.positions) < self._positions:
            draw.positions = np.arange(self._positions)
        else:
            draw.used.clear()

    def _pick(self, number: int, index: int) -> Pick:
        return Pick(self.cases[number].name, index, self.meta.of(number, index))


def matched_fraction(picks: Sequence[Pick]) -> dict[str, float]:
    """Per meta label the fraction of samples that share their class with another of the batch."""
    others = ~np.eye(len(picks), dtype=bool)
    return {name: _fraction(_same(picks, name) & others) for name in picks[0].meta}


def matched_in_another_patient(picks: Sequence[Pick], cases: Sequence[Case]) -> dict[str, float]:
    """Per meta label but the patient the fraction of samples matched by another patient's.

    Matched are samples of the same class.
    """
    patient_of = {case.name: case.patient for case in cases}
    patients = np.asarray([patient_of[pick.name] for pick in picks])
    others = patients[:, None] != patients
    names = [name for name in picks[0].meta if name != PATIENT]
    return {name: _fraction(_same(picks, name) & others) for name in names}


def _same(picks: Sequence[Pick], name: str) -> np.ndarray:
    """Which samples have the same known class, ``[n, n]``."""
    values = np.asarray([pick.meta[name] for pick in picks])
    return (values[:, None] == values) & (values != MISSING)


def _fraction(matched: np.ndarray) -> float:
    return float(matched.any(1).mean())
