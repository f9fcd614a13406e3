"""Soft pseudo-labels: the probabilities behind a round's class maps, on the training grid, read by crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from MedSSLLib.store import Handles, write_entry

_FULL = 255  # what a probability of 1 is stored as


def write_probabilities(folder: Path, name: str, probabilities: np.ndarray, dim: int) -> None:
    """Store a case's probabilities ``[k, d, h, w]`` in [0, 1] on the training grid, in steps of 1/255.

    Raises:
        MedSSLError: the disk is full or the folder may not be written.
    """
    write_entry(_entry(folder, name), np.rint(probabilities * _FULL).astype(np.uint8), dim, {})


@dataclass(frozen=True)
class SoftLabels:
    """Targets of the segmentation loss on pseudo-labels: probabilities times the largest of them, the confidence.

    Not from the paper. A voxel whose class is not the likeliest one, since clean-up or a person changed it, is as
    certain as a drawn one; so are the voxels of cases that were drawn and not predicted.

    Attributes:
        folder: the round's, ``RUN/pseudo/round-N``.
        classes: k, with background.
    """

    folder: Path
    classes: int
    _handles: Handles = field(default_factory=Handles, repr=False, compare=False)

    def targets(self, name: str, lo: Sequence[int], label: np.ndarray) -> np.ndarray:
        """Targets of a region for :func:`~MedSSLLib.losses.dice_ce_soft`.

        Args:
            name: a case.
            lo: lower corner d, h, w of the region, which may reach beyond the volume.
            label: its class map uint8 ``[d, h, w]``, IGNORE where a voxel does not count.

        Returns:
            float32 ``[k, d, h, w]``; the sum over classes is the voxel's weight, 0 where it does not count.

        Raises:
            MedSSLError: the file of the case is damaged.
        """
        certain = (label == np.arange(self.classes)[:, None, None, None]).astype(np.float32)
        entry = _entry(self.folder, name)
        if not entry.exists():
            return certain
        found = self._handles.read(entry, (slice(None), *(slice(max(a, 0), max(a + n, 0))
                                                          for a, n in zip(lo, label.shape, strict=True))))  # fmt: skip
        first = [max(-a, 0) for a in lo]
        target = tuple(slice(a, a + n) for a, n in zip(first, found.shape[1:], strict=True))
        probabilities = np.zeros_like(certain)
        probabilities[:, *target] = found / np.float32(_FULL)
        agrees = probabilities.argmax(0) == label
        return np.where(agrees, probabilities * probabilities.max(0), certain)


def _entry(folder: Path, name: str) -> Path:
    return folder / "probabilities" / name
