"""Connected components: which classes are one piece in the labels, and keeping that piece in
predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from scipy import ndimage

from MedSSLLib.images.labels import IGNORE

# mean share of a class's voxels in its largest component that counts as one piece;
# not from the paper
ONE_PIECE = 0.99
LEAST_SHARE = (
    0.9  # least share in any one label, and mean share on annotated slices; not from the paper
)
NEARLY_AS_SURE = 0.2  # of the surest component's certainty; not from the paper


def largest_components(classes: np.ndarray, chosen: Collection[int] | None = None) -> np.ndarray:
    """A class map in which the chosen classes keep their largest component, diagonals included.

    Args:
        classes: class map of any dimension.
        chosen: class indices; None = every foreground class.
    """
    result = classes.copy()
    for value in np.unique(classes[classes > 0]):
        if chosen is None or int(value) in chosen:
            components, sizes = _components(classes == value)
            result[(components > 0) & (components != 1 + int(sizes.argmax()))] = 0
    return result


def one_piece_classes(labels: Iterable[np.ndarray], classes: int) -> list[int]:
    """Foreground classes that are, but for specks, one piece in the labels that show them; []
    without a dense label.

    Args:
        labels: class maps; one that holds IGNORE anywhere (sparse annotation) says nothing about
            pieces.
        classes: number of classes with background.
    """
    shares: dict[int, list[float]] = {}
    for label in labels:
        if (label == IGNORE).any():
            continue
        for value in range(1, classes):
            if (label == value).any():
                _, sizes = _components(label == value)
                shares.setdefault(value, []).append(float(sizes.max() / sizes.sum()))
    whole = {
        value
        for value, found in shares.items()
        if np.mean(found) >= ONE_PIECE and min(found) >= LEAST_SHARE
    }
    return sorted(whole)


def undivided_on_slices(labels: Iterable[np.ndarray], classes: int) -> list[int]:
    """Foreground classes that annotated slices show in one piece, on average; [] without such a
    slice.

    On average 0.9 of a class's voxels on a slice are in its largest piece, where a slice without
    the class between two that show it counts 0. Such a class may still be in several pieces: slices
    through one kidney each do not tell.

    Args:
        labels: class maps ``[d, h, w]`` with IGNORE off the annotated slices, which lie across any
            axis.
        classes: number of classes with background.
    """
    shares: dict[int, list[float]] = {}
    for label in labels:
        for axis in range(3):
            counted = np.flatnonzero((label != IGNORE).all(tuple({0, 1, 2} - {axis})))
            planes = [label.take(index, axis) for index in counted]
            for value in range(1, classes):
                shares.setdefault(value, []).extend(_shares([plane == value for plane in planes]))
    return sorted(
        value for value, found in shares.items() if found and np.mean(found) >= LEAST_SHARE
    )


def _shares(masks: Sequence[np.ndarray]) -> list[float]:
    """Share of the largest piece of each mask from the first to the last that is not empty; 0 of
    empty ones.
    """
    shown = [index for index, mask in enumerate(masks) if mask.any()]
    between = masks[shown[0] : shown[-1] + 1] if shown else []
    return [
        float(sizes.max() / sizes.sum()) if len(sizes := _components(mask)[1]) else 0.0
        for mask in between
    ]


def surest_components(
    classes: np.ndarray, likely: np.ndarray, chosen: Collection[int]
) -> np.ndarray:
    """A class map in which the chosen classes keep their surest component and those that are nearly
    as sure.

    How sure a component is: the sum of its voxels' probabilities above one half. Kept are those
    with at least NEARLY_AS_SURE of the surest one's.

    Args:
        classes: class map ``[d, h, w]``.
        likely: probabilities ``[k, d, h, w]``.
        chosen: class indices.
    """
    result = classes.copy()
    for value in chosen:
        components, sizes = _components(classes == value)
        if len(sizes) < 2:
            continue
        above = np.maximum(likely[value] - 0.5, 0) + 1e-6  # no component has none
        sums = np.bincount(components.ravel(), above.ravel())[1:]
        result[
            (components > 0)
            & ~np.isin(components, 1 + np.flatnonzero(sums >= NEARLY_AS_SURE * sums.max()))
        ] = 0
    return result


def class_map(
    probabilities: np.ndarray, one_piece: Collection[int] = (), undivided: Collection[int] = ()
) -> np.ndarray:
    """Most probable classes uint8 ``[d, h, w]`` of ``[k, d, h, w]``, without the pieces that are
    likely wrong.

    Args:
        probabilities: of every class.
        one_piece: classes that keep their largest component.
        undivided: classes that keep their surest component and those nearly as sure.
    """
    classes = largest_components(probabilities.argmax(0).astype(np.uint8), one_piece)
    return surest_components(classes, probabilities, undivided)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return components, np.bincount(components.ravel())[1:]
