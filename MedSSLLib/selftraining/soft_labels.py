"""Soft pseudo-labels: the probabilities behind a round's class maps, read by crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.data.array_store import Handles, write_entry
from MedSSLLib.images.labels import IGNORE

_FULL = 255  # what a probability of 1 is stored as


def write_probabilities(
    folder: Path, name: str, probabilities: np.ndarray, own: np.ndarray, dim: int
) -> None:
    """Store a case's probabilities in steps of 1/255, and what of the class map they stand for.

    Args:
        folder: the round's.
        name: the case.
        probabilities: ``[k, d, h, w]`` in [0, 1] on the training grid.
        own: class map ``[d, h, w]``, as training reads it, where the model decides; IGNORE
            elsewhere.
        dim: 2 or 3, what is read at once.

    Raises:
        MedSSLError: the disk is full or the folder may not be written.
    """
    stored = np.concatenate([np.rint(probabilities * _FULL), own[None]]).astype(np.uint8)
    write_entry(_entry(folder, name), stored, dim, {})


@dataclass(frozen=True)
class SoftLabels:
    """Targets of the segmentation loss on pseudo-labels.

    They are probabilities times the largest of them, the confidence. Not from the paper. A voxel
    that a person has drawn or accepted, or whose class clean-up or a person has changed, is
    certain; so are all voxels of the cases that were not predicted. Those of pieces in doubt count
    for no class.

    Attributes:
        folder: the round's, ``RUN/pseudo/round-N``.
        classes: k, with background.
        cases: names of the cases with probabilities.
    """

    folder: Path
    classes: int
    cases: frozenset[str]
    _handles: Handles = field(default_factory=Handles, repr=False, compare=False)

    def targets(self, name: str, lo: Sequence[int], label: np.ndarray) -> np.ndarray:
        """Targets of a region for :func:`~MedSSLLib.losses.dice_ce.dice_ce_soft`.

        Args:
            name: a case.
            lo: lower corner d, h, w of the region, which may reach beyond the volume.
            label: its class map uint8 ``[d, h, w]``, IGNORE where a voxel does not count.

        Returns:
            float32 ``[k, d, h, w]``; the sum over classes is the voxel's weight, 0 where it does
            not count.

        Raises:
            InputError: the file of the case is missing or damaged.
        """
        certain = (label == np.arange(self.classes)[:, None, None, None]).astype(np.float32)
        if name not in self.cases:
            return certain
        low = np.asarray(lo, int)
        high = low + label.shape
        found = self._read(name, tuple(map(slice, low.clip(min=0), high.clip(min=0))))
        first = (-low).clip(min=0)  # where the volume begins in the region
        inside = tuple(map(slice, first, first + found.shape[1:]))
        probabilities, classes = found[:-1] / np.float32(_FULL), found[-1]
        own = (classes == label[inside]) & (classes != IGNORE)
        soft = probabilities * probabilities.max(0)
        certain[:, *inside] = np.where(own, soft, certain[:, *inside])
        return certain

    def _read(self, name: str, region: tuple[slice, ...]) -> np.ndarray:
        entry = _entry(self.folder, name)
        try:
            return self._handles.read(entry, (slice(None), *region))
        except MedSSLError as error:
            raise InputError(
                "the probabilities of the pseudo-label are missing or damaged",
                case=name,
                file=str(entry),
                remedy=f"Remove {self.folder} and resume, so that the round is made again",
            ) from error


def _entry(folder: Path, name: str) -> Path:
    return folder / "probabilities" / name
