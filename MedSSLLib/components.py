"""Connected components: which classes are one piece in the labels, and keeping that piece in predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from scipy import ndimage

from MedSSLLib.labels import IGNORE

ONE_PIECE = 0.99  # share of a class's voxels in its largest component that counts as one piece; not from the paper


def largest_components(classes: np.ndarray, chosen: Collection[int] | None = None) -> np.ndarray:
    """A class map in which the chosen classes keep their largest face-connected component.

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
    """Foreground classes that are one piece in every label that shows them; [] without a dense label.

    Args:
        labels: class maps; one that holds IGNORE anywhere (sparse annotation) says nothing about pieces.
        classes: number of classes with background.
    """
    shares: dict[int, float] = {}
    for label in labels:
        if (label == IGNORE).any():
            continue
        for value in range(1, classes):
            if (label == value).any():
                _, sizes = _components(label == value)
                shares[value] = min(shares.get(value, 1.0), float(sizes.max() / sizes.sum()))
    return [value for value, share in sorted(shares.items()) if share >= ONE_PIECE]


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    components, _ = ndimage.label(mask)
    return components, np.bincount(components.ravel())[1:]
