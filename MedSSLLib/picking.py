"""Which cases and slices make a pre-training batch: evenly, or balanced over meta labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from MedSSLLib.manifest import Case
from MedSSLLib.metalabels import MetaLabels
from MedSSLLib.sampling import CropReader, Pick, shuffled_order

PARTS = 4  # parts of the slice axis (GCL)
CASES_PER_PATIENT = 2  # most cases of a patient in one batch; not from the paper


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
        order = [shuffled_order(self.seed, step * self.samples + i, len(self.cases)) for i in range(self.samples)]
        names = [self.cases[i].name for i in order]
        return [Pick(name, int(rng.integers(self.reader.shape(name)[1])) if self.dim == 2 else 0) for name in names]


@dataclass(frozen=True)
class MetaPicker:
    """Patients x slice positions x cases, so that every anchor has positives under every meta label.

    From each of a few random patients at most `CASES_PER_PATIENT` cases (phases, visits) are drawn, and from each case
    one random slice of every position part; in 3D one sample a case. The composition is not from the paper.
    """

    reader: CropReader
    cases: Sequence[Case]
    samples: int
    meta: MetaLabels
    dim: int
    seed: int

    @cached_property
    def patients(self) -> list[list[int]]:
        """Case numbers of each patient."""
        groups: dict[str, list[int]] = {}
        for number, case in enumerate(self.cases):
            groups.setdefault(case.patient, []).append(number)
        return list(groups.values())

    def __call__(self, rng: np.random.Generator, step: int) -> list[Pick]:
        """The samples of a step's global batch."""
        parts = PARTS if self.dim == 2 else 1
        patients = max(2, self.samples // (parts * self._cases_per_patient))
        order = (shuffled_order(self.seed, step * patients + i, len(self.patients)) for i in range(patients))
        cases = [number for patient in order for number in self._some(rng, self.patients[patient])]
        picks = [self._pick(rng, number, part, parts) for number in cases for part in range(parts)]
        return picks[: max(self.samples, 2 * parts)]

    @cached_property
    def _cases_per_patient(self) -> int:
        return min(CASES_PER_PATIENT, round(len(self.cases) / len(self.patients)))

    def _some(self, rng: np.random.Generator, numbers: list[int]) -> list[int]:
        chosen = rng.permutation(len(numbers))[:CASES_PER_PATIENT]
        return [numbers[i] for i in chosen]

    def _pick(self, rng: np.random.Generator, number: int, part: int, parts: int) -> Pick:
        name = self.cases[number].name
        if self.dim == 3:
            return Pick(name, 0, self.meta.of(number))
        slices = self.reader.shape(name)[1]
        first, last = -(-part * slices // parts), -(-(part + 1) * slices // parts)
        index = int(rng.integers(min(first, slices - 1), max(last, min(first, slices - 1) + 1)))
        return Pick(name, index, self.meta.of(number, index))


def share_with_positive(picks: Sequence[Pick]) -> dict[str, float]:
    """Per meta label the share of samples that share their class with another sample of the batch."""
    shares = {}
    for name in picks[0].meta:
        values = np.asarray([pick.meta[name] for pick in picks])
        classes, counts = np.unique(values[values >= 0], return_counts=True)
        shares[name] = float(counts[counts > 1].sum() / len(values)) if len(classes) else 0.0
    return shares
