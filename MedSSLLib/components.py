"""Connected components: which classes are one piece in the labels, and keeping that piece in predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from scipy import ndimage

from MedSSLLib.labels import IGNORE

ONE_PIECE = 0.99  # mean share of a class's voxels in its largest component that counts as one piece; not from the paper
LEAST_SHARE = 0.9  # least share in any one label; not from the paper


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
    """Foreground classes that are, but for specks, one piece in the labels that show them; [] without a dense label.

    Args:
        labels: class maps; one that holds IGNORE anywhere (sparse annotation) says nothing about pieces.
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
    whole = {value for value, found in shares.items() if np.mean(found) >= ONE_PIECE and min(found) >= LEAST_SHARE}
    return sorted(whole)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return components, np.bincount(components.ravel())[1:]
