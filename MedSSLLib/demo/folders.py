"""Simulated subjects as a data folder: images, labels, metadata, splits and a dataset.json."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.files import atomic_path, write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume


@dataclass(frozen=True)
class Subject:
    """One simulated scan, its label (uint8) on the same grid, and its metadata.

    The metadata name at least the ``scanner``.
    """

    image: Volume
    label: Volume
    metadata: dict[str, str]


@dataclass(frozen=True)
class About:
    """What a set is called and shows.

    Attributes:
        name: as in ``dataset.json``.
        description: a line.
        modality: MR or CT.
        classes: names by label value, without the background.
        subjects: how many there are.
    """

    name: str
    description: str
    modality: str
    classes: dict[str, str]
    subjects: int


def write_folder(
    folder: Path,
    about: About,
    made: Iterable[tuple[str, Subject]],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write named subjects as they are made; the last quarter of them is for testing.

    Labelled subjects are drawn with ``seed`` so that scanners take turns.
    """
    rows = []
    for name, subject in made:
        io.write_image(folder / "images" / f"{name}.nii.gz", subject.image)
        io.write_image(folder / "labels" / f"{name}.nii.gz", subject.label)
        rows.append({"case": name, "patient": name, **subject.metadata})
        if progress is not None:
            progress(len(rows), about.subjects)
    with (
        atomic_path(folder / "metadata.csv") as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    splits = {**_splits(rows, seed), "classes": about.classes}
    write_json(folder / "splits.json", splits)
    write_json(folder / "dataset.json", _dataset(about, splits))


def _splits(rows: list[dict[str, str]], seed: int) -> dict[str, Any]:
    """Last quarter for testing; of the rest, five choices of 1, 2 and 8 labelled."""
    generator = np.random.default_rng([seed, len(rows), 1])
    pool, test = rows[: -(len(rows) // 4)], rows[-(len(rows) // 4) :]
    labelled = {}
    for count in (1, 2, 8):
        if count <= len(pool):
            labelled[str(count)] = [_choice(pool, count, generator) for _ in range(5)]
    return {
        "unit": "case",
        "test": [row["case"] for row in test],
        "pool": [row["case"] for row in pool],
        "labelled": labelled,
    }


def _dataset(about: About, splits: dict[str, Any]) -> dict[str, Any]:
    """The set in the Decathlon's form, so that class names are known to whoever reads it."""

    def entries(names: list[str]) -> list[dict[str, str]]:
        files = [f"{name}.nii.gz" for name in names]
        return [{"image": f"images/{file}", "label": f"labels/{file}"} for file in files]

    return {
        "name": about.name,
        "description": about.description,
        "modality": {"0": about.modality},
        "labels": {"0": "background", **about.classes},
        "training": entries(splits["pool"]),
        "test": entries(splits["test"]),
    }


def _choice(pool: list[dict[str, str]], n: int, generator: np.random.Generator) -> list[str]:
    """Names of ``n`` random subjects; scanners, in random order, take turns."""
    queues: dict[str, list[str]] = {}
    for index in generator.permutation(len(pool)):
        queues.setdefault(pool[index]["scanner"], []).append(pool[index]["case"])
    turns: list[str] = []
    for group in zip_longest(*queues.values()):
        turns += [name for name in group if name is not None]
    return sorted(turns[:n])
