"""The prepared data of the tables: preprocessed images, and the labels of the chosen cases alone.

``arrays.npz`` has ``image/CASE``, uint8 ``[c, d, h, w]``, and ``label/CASE``, uint8 ``[d, h, w]``;
``facts.json`` everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_path, read_json, write_json
from MedSSLLib.data.plan import Plan
from MedSSLLib.project.manifest import Case
from Testing.lib.core_helpers import MemoryReader

ARRAYS, FACTS = "arrays.npz", "facts.json"
_FORMAT, _LEVELS = "medssl-gpu-data", 255


class RememberingReader(MemoryReader):
    """A reader that looks for the voxels of a structure once."""

    def __init__(self, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
        super().__init__(images, labels)
        self._places: dict[str, dict[int, np.ndarray]] = {}

    def foreground(self, name: str) -> dict[int, np.ndarray]:
        """Voxels of every class, as the cache has them."""
        if name not in self._places:
            self._places[name] = super().foreground(name)
        return self._places[name]

    def counts(self, name: str) -> dict[int, int]:
        """How many."""
        return {value: len(places) for value, places in self.foreground(name).items()}


@dataclass(frozen=True)
class Cohort:
    """Cases that are trained on and predicted.

    Attributes:
        folder: where they lie.
        facts: ``plan``, ``values``, ``classes``, ``pool``, ``test``, ``choices`` and ``cases``,
            which has the metadata, the scale of intensities and the grid of each.
    """

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Cohort:
        """Raises InputError where there is none."""
        return cls(folder, read_json(folder / FACTS, format_name=_FORMAT, newest_version=1))

    @property
    def plan(self) -> Plan:
        """The plan of all cases."""
        return Plan.model_validate(self.facts["plan"])

    @property
    def choices(self) -> list[list[str]]:
        """The labelled cases of every choice."""
        return self.facts["choices"]

    def cases(self, names: list[str]) -> list[Case]:
        """Cases with their metadata, which say whose they are."""
        return [Case(name, (), metadata=self.facts["cases"][name]["metadata"]) for name in names]

    @cached_property
    def reader(self) -> RememberingReader:
        """All images, float32, and the labels that are there."""
        images, labels = {}, {}
        with np.load(self.folder / ARRAYS, allow_pickle=False) as arrays:
            for key in arrays:
                kind, _, name = key.partition("/")
                if kind == "label":
                    labels[name] = arrays[key]
                    continue
                low, step = (
                    np.asarray(self.facts["cases"][name][part], np.float32)[:, None, None, None]
                    for part in ("low", "step")
                )
                images[name] = arrays[key] * step + low
        return RememberingReader(images, labels)


def quantised(image: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """An image ``[c, d, h, w]`` in 256 levels a channel: uint8, lowest value and step."""
    low = image.min((1, 2, 3)).astype(np.float32)
    step = (image.max((1, 2, 3)) - low) / np.float32(_LEVELS)
    step = np.where(step > 0, step, np.float32(1))
    levels = np.rint((image - low[:, None, None, None]) / step[:, None, None, None])
    return levels.astype(np.uint8), low.tolist(), step.tolist()


def write_cohort(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write both files."""
    write_arrays(folder / ARRAYS, arrays)
    write_json(folder / FACTS, {"format": _FORMAT, "format_version": 1, **facts})


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write compressed arrays, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def require_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises InputError where it is missing."""
    if not path.is_file():
        raise InputError("does not exist", file=path, remedy="Give the folder of a run's results")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
