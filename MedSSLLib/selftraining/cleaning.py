"""What a pseudo-label takes over of a prediction: pieces by evidence, without small holes.

A false piece that is taught grows from round to round, most where there is a single class, which
nothing else contradicts. So pieces are judged more strictly than where a prediction is shown to a
person. But a second lesion that is taught as background is lost: pieces with much evidence, yet not
the most, are left in doubt. Not from the paper, whose code smooths by a dense random field alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from MedSSLLib.images import components
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.images.noisy_pieces import labelled_classes, many_runs
from MedSSLLib.inference.model import Model
from MedSSLLib.selftraining.crf import mean_field

TAUGHT = 0.5
"""Least certainty (its size, times how sure) of a piece that is left in doubt, of the surest one's.
Of predictions of 59 hearts by four models, pieces below were mostly heart in 8 of 73 cases, above
in 12 of 38; no lesion was tried. Not from the paper.
"""
HOLE_FRACTION = 0.05  # holes up to this fraction of a class are filled; not from the paper
# where a structure may be: its least probability, and voxels around; not from the paper
SURE, MARGIN = 0.01, 4


class Cleaned(NamedTuple):
    """A cleaned class map uint8 ``[d, h, w]``, and which of its voxels are in doubt, bool of its
    shape: those of further pieces of a structure that the training labels show in one piece.
    """

    classes: np.ndarray
    doubtful: np.ndarray


def cleaned(
    model: Model, classes: np.ndarray, likely: np.ndarray, drawn: np.ndarray | None = None
) -> Cleaned:
    """The pieces that a pseudo-label keeps, with their small holes filled.

    Args:
        model: knows which classes, or whether the whole foreground, training labels show in one
            piece.
        classes: most probable classes uint8 ``[d, h, w]``, left as they are.
        likely: their probabilities, same shape.
        drawn: what a person has said, same shape, IGNORE elsewhere. A piece that goes on from a
            drawn one is kept without a doubt.
    """
    kept = model.kept(classes, likely, nearly=TAUGHT)
    surest = model.kept(kept, likely, nearly=1.0)
    if drawn is not None and surest is not classes:
        by_person = drawn != IGNORE
        shown = _pieces_at(np.where(by_person, drawn, classes), by_person)
        kept, surest = (np.where(shown > 0, shown, each) for each in (kept, surest))
    filled = fill_small_holes(kept)
    doubtful = surest != kept
    if doubtful.any():
        doubtful = fill_small_holes(surest) != filled
    return Cleaned(filled, doubtful)


def _pieces_at(classes: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """A class map of the pieces that hold a marked voxel alone.

    Args:
        classes: class map of up to three axes.
        marked: bool, same shape; what is background in the map marks nothing.
    """
    places = np.flatnonzero(marked & (classes > 0))
    result = np.zeros_like(classes)
    if not len(places):
        return result
    if many_runs(classes, components.MOST_RUNS):
        for value, box, labels, count in labelled_classes(classes, None):
            held = np.zeros(count + 1, bool)
            held[labels[marked[box]]] = True
            held[0] = False
            result[box][held[labels]] = value
            del labels
        return result
    found = components.pieces_of(classes)
    held = np.zeros(int(found.piece.max()) + 1, bool)
    held[found.piece[np.searchsorted(found.start, places, "right") - 1]] = True
    result[:] = classes
    found.remove(result, ~held[found.piece])
    return result


def fill_small_holes(classes: np.ndarray) -> np.ndarray:
    """Background holes enclosed by a class get its value where they are small against the class.

    Args:
        classes: class map uint8 ``[d, h, w]``.
    """
    result = classes.copy()
    for value, box in enumerate(ndimage.find_objects(classes), 1):
        if box is None:
            continue
        mask = classes[box] == value  # what the class encloses lies in its box
        holes = ndimage.binary_fill_holes(mask) & (classes[box] == 0)
        if not holes.any():
            continue
        labelled, count = ndimage.label(holes)
        sizes = np.bincount(labelled.ravel(), minlength=count + 1)
        small = np.flatnonzero(sizes <= HOLE_FRACTION * mask.sum())
        result[box][np.isin(labelled, small[small > 0])] = value
    return result


def smooth(probabilities: np.ndarray, image: Volume) -> np.ndarray:
    """The conditional random field of an image where a structure may be.

    Args:
        probabilities: ``[k, d, h, w]`` on the image's grid.
        image: one channel.

    Returns:
        Probabilities like those given.
    """
    possible = probabilities[0] < 1 - SURE
    if not possible.any():
        return probabilities
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        places = np.flatnonzero(possible.any(others))
        box.append(slice(max(places[0] - MARGIN, 0), places[-1] + MARGIN + 1))
    result = probabilities.copy()
    inside = torch.from_numpy(np.ascontiguousarray(probabilities[:, *box]))
    seen = torch.from_numpy(np.ascontiguousarray(image.array[*box]).astype(np.float32))
    result[:, *box] = mean_field(inside, seen, image.geometry.spacing[::-1]).numpy()
    return result
