"""Annotated slices: between views, segment tags ("axial:3,9,15") and the manifest. Axes 0, 1, 2 are i, j, k."""

import itertools

import numpy as np

TAG = "MedSSL.AnnotatedSlices"
PARTLY = "MedSSL.PartlyDrawnSlices"
"""Tag of those annotated slices on which only what is painted counts, written alike."""
DIRECTIONS = ("sagittal", "coronal", "axial")


def axisNames(directions):
    """Names of the axes i, j, k from the 3x3 matrix whose columns are their directions in RAS.

    Every name is given once: the assignment that follows the anatomy best as a whole.
    """
    weight = np.abs(np.asarray(directions, float))
    best, largest = (0, 1, 2), -1.0
    for order in itertools.permutations(range(3)):
        total = weight[order[0], 0] + weight[order[1], 1] + weight[order[2], 2]
        if total > largest:
            best, largest = order, total
    return tuple(DIRECTIONS[row] for row in best)


def writeTag(annotated, names):
    """The tag's text for {axis: indices}: "axial:3,9,15" with ";" between axes."""
    parts = []
    for axis, indices in sorted(annotated.items()):
        if indices:
            numbers = ",".join(str(index) for index in sorted(set(indices)))
            parts.append(f"{names[axis]}:{numbers}")
    return ";".join(parts)


def readTag(text, names):
    """{axis: sorted indices} of a tag's text; parts that cannot be understood are left out."""
    result = {}
    for part in (text or "").split(";"):
        name, _, numbers = part.partition(":")
        if name.strip() not in names:
            continue
        indices = {int(number) for number in numbers.split(",") if number.strip().isdigit()}
        if indices:
            result[names.index(name.strip())] = sorted(indices)
    return result


def toManifest(annotated, partly):
    """MedSSLLib.images.labels.Annotated of {axis: indices}, and of those of them that are partly drawn."""
    from MedSSLLib.images.labels import Annotated

    return Annotated.of(list(annotated.items()), list(partly.items()))


def fromManifest(annotated):
    """{axis: indices} of MedSSLLib.images.labels.Annotated; {} for None."""
    return {axis: list(indices) for axis, indices in annotated.slices} if annotated else {}


def partlyFromManifest(annotated):
    """{axis: indices} of the slices that are partly drawn; {} for None."""
    return {axis: list(indices) for axis, indices in annotated.partly} if annotated else {}


def thickestAxis(spacing):
    """The axis with the largest spacing, the last one when there is no single one (within 0.1 %)."""
    largest = [axis for axis in range(3) if spacing[axis] >= 0.999 * max(spacing)]
    return largest[0] if len(largest) == 1 else 2


def sliceSignatures(array, axis, start=(0, 0, 0)):
    """{slice: number} for slices of `array` [k, j, i] along `axis` that are not empty; numbers change with content.

    `start` (i, j, k) is where the array lies in the volume, so a larger crop of the same drawing gives the same numbers.
    """
    moved = np.moveaxis(array, 2 - axis, 0)
    rows, columns = (start[other] for other in (2, 1, 0) if other != axis)
    down, across = _weights(moved.shape[1], rows), _weights(moved.shape[2], columns)
    result = {}
    for offset, plane in enumerate(moved):
        if plane.any():
            result[start[axis] + offset] = float(down @ plane.astype(np.float64) @ across)
    return result


def alike(first, second):
    """Whether two numbers stand for the same drawing; another crop adds it up in another order."""
    return abs(first - second) <= 1e-9 * max(abs(first), abs(second), 1.0)


_RANDOM = np.random.RandomState(0).uniform(0.5, 1.5, 8192)


def _weights(count, start):
    return _RANDOM[(np.arange(count) + start) % _RANDOM.size]
