"""Connected pieces of class maps that are all specks, where runs along an axis would not fit into
memory: labelled voxel by voxel, class by class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from scipy import ndimage

RICHEST = 1000  # pieces that are compared class by class; not from the paper


def many_runs(classes: np.ndarray, most: int) -> bool:
    """Whether a map ``[d, h, w]`` has more than so many runs of a foreground class along its last
    axis.
    """
    found = 0
    for plane in classes:
        begins = plane != 0
        begins[..., 1:] &= plane[..., 1:] != plane[..., :-1]
        found += int(np.count_nonzero(begins))
        if found > most:
            return True
    return False


def labelled_classes(
    classes: np.ndarray, chosen: Collection[int] | None
) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray, int]]:
    """Per class that occurs: its value, the box that holds it, the pieces in there by number from
    1, and how many there are.

    The numbers take four bytes a voxel: whoever asks lets go of those of one class before the next.
    """
    around = np.ones((3,) * classes.ndim)
    for value, box in enumerate(ndimage.find_objects(classes), 1):
        if box is not None and (chosen is None or value in chosen):
            labels, count = ndimage.label(classes[box] == value, around)
            yield value, box, labels, count
            del labels


def certainty_of(likely: np.ndarray) -> np.ndarray:
    """Probability above one half of each voxel's class, never 0; uint8 in 255ths."""
    scale = 1 / 255 if likely.dtype == np.uint8 else 1.0
    return np.maximum(likely.astype(np.float32) * scale - 0.5, 0) + 1e-6


def label_sums(labels: np.ndarray, count: int, likely: np.ndarray | None) -> np.ndarray:
    """Certainty, or without `likely` voxels, of each piece; of what is none at place 0."""
    sums = np.zeros(count + 1)
    for index, own in enumerate(labels):
        weights = None if likely is None else certainty_of(likely[index]).ravel()
        sums += np.bincount(own.ravel(), weights, count + 1)
    return sums


def blank(classes: np.ndarray, labels: np.ndarray, gone: np.ndarray) -> None:
    """Set the voxels of pieces that ``gone`` marks to background, in place."""
    for plane, own in zip(classes, labels, strict=True):
        plane[gone[own]] = 0


def blank_poor(classes: np.ndarray, likely: np.ndarray, nearly: float) -> None:
    """The rule of ``richest_components``, in place."""
    labels, count = ndimage.label(classes > 0, np.ones((3,) * classes.ndim))
    totals, scores = np.zeros(256), np.zeros(count + 1)
    for plane, p in zip(classes, likely, strict=True):
        totals += np.bincount(plane.ravel(), certainty_of(p).ravel(), 256)
    totals[0] = np.inf
    for plane, own, p in zip(classes, labels, likely, strict=True):
        share = certainty_of(p) / np.maximum(totals[plane], 1e-30)
        scores += np.bincount(own.ravel(), share.ravel(), count + 1)
    order = np.argsort(scores[1:])[::-1][:RICHEST] + 1
    rank = np.full(count + 1, RICHEST, np.int32)
    rank[order] = np.arange(len(order))
    flat = np.zeros((RICHEST + 1) * 256)
    for plane, own, p in zip(classes, labels, likely, strict=True):
        place = rank[own].ravel() * 256 + plane.ravel()
        flat += np.bincount(place, certainty_of(p).ravel(), len(flat))
    mass = flat.reshape(RICHEST + 1, 256)
    mass[:, 0] = 0
    shown = mass[0] > 0
    near = (mass[:, shown] >= nearly * mass[0, shown]).sum(1)
    poor = (near * 2 <= shown.sum()) | (nearly >= 1)
    poor[0], poor[RICHEST] = False, True
    gone = poor[rank]
    gone[0] = False
    for plane, own in zip(classes, labels, strict=True):
        plane[gone[own] & shown[plane]] = 0
