"""The slices of a source image as the training grid sees them: axis, weights, empty ones."""

from __future__ import annotations

import numpy as np

from MedSSLLib.data.preprocessing.resampling import axis_operators, linear
from MedSSLLib.images.geometry import Geometry, oriented
from MedSSLLib.images.labels import slice_axis
from MedSSLLib.project.manifest import Case

# fraction of its case's median spread below which a slice is empty; not from the paper
EMPTY = 0.1


def annotation_axis(case: Case, geometry: Geometry) -> int:
    """The axis to annotate along: 0 i, 1 j, 2 k.

    The one with most annotated slices, else the slice axis.
    """
    drawn = case.annotated.slices if case.annotated and case.role == "labelled" else ()
    if drawn:
        return max(drawn, key=lambda axis_and_slices: len(axis_and_slices[1]))[0]
    return slice_axis(geometry)


def annotated_along(case: Case, axis: int, count: int) -> np.ndarray:
    """Boolean ``[count]``: slices along `axis` whose annotation may be read.

    Without a record of slices: all or none. A label of a case that is not labelled is not read, so
    its slices are not drawn.
    """
    drawn = np.zeros(count, bool)
    if case.role != "labelled" or case.label is None:
        return drawn
    if case.annotated is None:
        return ~drawn
    for along, indices in case.annotated.slices:
        if along == axis:
            drawn[[index for index in indices if index < count]] = True
    return drawn


def slice_operator(source: Geometry, grid: Geometry, axis: int) -> tuple[int, np.ndarray]:
    """How slices of the source lie on its training grid.

    Args:
        source: the source image's own grid.
        grid: its training grid, parallel to the source, see
            :func:`MedSSLLib.data.preprocessing.image.preprocess_image`.
        axis: axis of the source, 0 i, 1 j, 2 k.

    Returns:
        The array axis of ``[d, h, w]`` that runs along it, and weights float32 ``[source slices,
        grid slices]``: row s weighs the grid slices that source slice s covers, and sums to 1.
    """
    turned = oriented(source, grid.code)
    corner, *ends = source.indices(turned.points(np.vstack([np.zeros(3), np.eye(3)])))
    steps = np.array(ends)[:, axis] - corner[axis]
    along = int(np.argmax(np.abs(steps)))
    matrix = axis_operators(grid, turned, linear)[2 - along]
    if matrix is None:
        matrix = np.eye(turned.size[along], dtype=np.float32)
    return 2 - along, matrix[::-1].copy() if steps[along] < 0 else matrix


def slice_spread(image: np.ndarray, axis: int) -> np.ndarray:
    """Standard deviation within every slice of ``[c, d, h, w]``, of the channel with most, ``[n]``.

    Slices lie along array axis 0, 1 or 2 of d, h, w.
    """
    within = ((2, 3), (1, 3), (1, 2))[axis]
    return image.std(axis=within, dtype=np.float64).max(0)


def not_empty(spread: np.ndarray) -> np.ndarray:
    """Boolean ``[n]``: slices that show something.

    `spread` is :func:`slice_spread` of all slices of a case.
    """
    if not (spread > 0).any():
        return np.zeros(len(spread), bool)
    return spread > EMPTY * float(np.median(spread[spread > 0]))
