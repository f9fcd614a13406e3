"""Structures must not get lost without a word: small ones in the cache, others in predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images.components import taken_away
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.inference.model import Model
from MedSSLLib.inference.predict import about_pieces
from MedSSLLib.project.manifest import Case
from Testing.lib.fidelity.files import save
from Testing.lib.fidelity.registry import WARNED, variant

COARSE = Geometry((48, 48, 10), (1.0, 1.0, 8.0))
FINE = np.diag([-0.4, -0.4, 8.0, 1.0])


def taught(folder: Path, label: np.ndarray, values: tuple[int, ...] = (0, 1)) -> str | None:
    """Every piece of the label [i, j, k] on a fine grid is on the coarse one, or unknown."""
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    paths = save(folder / "image.nii.gz", image, FINE), save(folder / "label.nii.gz", label, FINE)
    cache = Cache(folder / "cache", make_plan([COARSE], modality="MR"))
    case = Case("fine", images=(paths[0],), label=paths[1])
    cache.prepare([case], labels=True, values=values).require_all()
    found = cache.label("fine", (0, 0, 0), cache.shape("fine")[1:])
    source = label.transpose(2, 1, 0)
    for value in values[1:]:
        pieces, _ = ndimage.label(source == value, np.ones((3, 3, 3)))
        for place in ndimage.find_objects(pieces):
            near = (
                place[0],
                *(
                    slice(int(s.start * 0.4) - 1 if s.start > 3 else 0, int(s.stop * 0.4) + 2)
                    for s in place[1:]
                ),
            )
            assert np.isin(found[near], (value, IGNORE)).any(), f"a piece of {value} is background"
    return "; ".join(cache.small_structures(["fine"], [str(value) for value in values])) or None


def box(*size: int, start: tuple[int, int, int] = (41, 41, 4)) -> np.ndarray:
    label = np.zeros((96, 96, 10), np.uint8)
    label[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = 1
    return label


for shape in ((1, 1, 1), (2, 2, 1), (1, 30, 1), (30, 1, 1), (1, 1, 3)):
    words = " x ".join(map(str, shape))

    def check_box(folder: Path, size: tuple[int, ...] = shape) -> str | None:
        return taught(folder, box(*size))

    survives = shape == (2, 2, 1)
    variant("small structures", f"{words} voxels of 0.4 x 0.4 x 8 mm", WARNED)(check_box)


@variant("small structures", "3 x 3 x 1 voxels")
def nine_voxels(folder: Path) -> str | None:
    return taught(folder, box(3, 3, 1))


@variant("small structures", "specks of three classes, many in one voxel of the grid", WARNED)
def specks(folder: Path) -> str | None:
    rng = np.random.default_rng(0)
    label = np.where(rng.random((96, 96, 10)) < 0.02, rng.integers(1, 4, (96, 96, 10)), 0)
    return taught(folder, label.astype(np.uint8), (0, 1, 2, 3))


@variant("small structures", "at the corner of the scan", WARNED)
def corner(folder: Path) -> str | None:
    return taught(folder, box(1, 1, 1, start=(95, 95, 9)))


def kept(likely: np.ndarray, **facts: object) -> tuple[np.ndarray, str | None]:
    """Class map that a model with such labels writes, and what it says."""
    names = tuple(f"class {n}" for n in range(len(likely)))
    model = Model(
        network=None,  # type: ignore[arg-type]
        plan=None,  # type: ignore[arg-type]
        values=tuple(range(len(likely))),
        classes=names,
        device=torch.device("cpu"),
        precision="32",
        **facts,  # type: ignore[arg-type]
    )
    plain, written = model.class_map(likely, "all"), model.class_map(likely)
    taken = taken_away(plain, written)
    grid = Geometry(plain.shape[::-1])
    return written, about_pieces("t", taken, names, grid) if taken else None


def probabilities(*parts: tuple[int, tuple[slice, ...], float]) -> np.ndarray:
    likely = np.full((1 + max(value for value, _, _ in parts), 12, 40, 40), 0.0)
    for value, place, p in parts:
        likely[value][place] = p
    likely[0] = 1 - likely[1:].sum(0)
    return likely


def cube(n: int, k: int, j: int, i: int) -> tuple[slice, ...]:
    return slice(k, k + n), slice(j, j + n), slice(i, i + n)


FACTS = {
    "dense labels of one piece": {"single_component": (1,), "single_foreground": True},
    "of earlier runs": {"single_component": (1,)},
    "drawn slices": {"connected_on_slices": (1,)},
}
for origin, known in FACTS.items():

    def three_alike(folder: Path, facts: dict[str, object] = known) -> str | None:  # type: ignore[assignment]
        likely = probabilities(*((1, cube(5, 3, j, j), 0.97) for j in (2, 15, 30)))
        written, words = kept(likely, **facts)
        assert (written == 1).sum() == 3 * 125, "lesions are gone"
        return words

    def smaller(folder: Path, facts: dict[str, object] = known) -> str | None:  # type: ignore[assignment]
        likely = probabilities((1, cube(6, 3, 2, 2), 0.97), (1, cube(4, 3, 20, 20), 0.97))
        written, words = kept(likely, **facts)
        assert (written == 1).sum() == 216 + 64, "a lesion of a third of the other is gone"
        return words

    def unsure(folder: Path, facts: dict[str, object] = known) -> str | None:  # type: ignore[assignment]
        likely = probabilities((1, cube(6, 3, 2, 2), 0.97), (1, cube(6, 3, 20, 20), 0.52))
        written, words = kept(likely, **facts)
        assert (written == 1).sum() == 216 and words and "class 1 (0.216 ml)" in words
        return words

    variant("pieces", f"three lesions alike, {origin}")(three_alike)
    variant("pieces", f"a smaller lesion as sure, {origin}")(smaller)
    variant("pieces", f"an unsure piece, {origin}", WARNED)(unsure)


def heart(*more: tuple[int, tuple[slice, ...], float]) -> np.ndarray:
    return probabilities(
        (1, cube(5, 3, 2, 2), 0.97),
        (2, cube(5, 3, 2, 7), 0.97),
        (3, cube(5, 3, 2, 12), 0.97),
        *more,
    )


WHOLE = {"single_component": (1, 2, 3), "single_foreground": True}


@variant("pieces", "a large false piece of one class of three", WARNED)
def false_piece(folder: Path) -> str | None:
    written, words = kept(heart((1, cube(8, 2, 25, 25), 0.97)), **WHOLE)
    assert (written > 0).sum() == 3 * 125, "the false piece stays, or the true one is gone"
    return words


@variant("pieces", "a class that lies apart from the others")
def apart(folder: Path) -> str | None:
    likely = probabilities(
        (1, cube(5, 3, 25, 25), 0.97), (2, cube(5, 3, 2, 7), 0.97), (3, cube(5, 3, 2, 12), 0.97)
    )
    written, words = kept(likely, **WHOLE)
    assert (written > 0).sum() == 3 * 125, "the only piece of a class is gone"
    return words


@variant("pieces", "a second heart")
def second(folder: Path) -> str | None:
    likely = heart(
        (1, cube(5, 3, 25, 2), 0.97), (2, cube(5, 3, 25, 7), 0.97), (3, cube(5, 3, 25, 12), 0.97)
    )
    written, words = kept(likely, **WHOLE)
    assert (written > 0).sum() == 6 * 125, "the second is gone"
    return words
