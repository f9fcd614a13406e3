"""What a pseudo-label takes over of a prediction: pieces by evidence, without small holes.

A false piece that is taught grows from round to round, most where there is a single class, which
nothing else contradicts. A second lesion that is taught as background is lost. So pieces are judged
more strictly than where a prediction is shown to a person, and of the doubtful ones neither is
taught. Not from the paper, whose code smooths by a dense random field alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from MedSSLLib.images.geometry import Volume
from MedSSLLib.inference.model import Model
from MedSSLLib.selftraining.crf import mean_field

TAUGHT = 0.5
"""Least certainty of a piece, of the surest one's, that may be another piece of the structure. Of
the first pseudo-labels of 118 hearts, those below were the heart in 4 of 32 cases, those above in 7
of 19; not from the paper.
"""
HOLE_FRACTION = 0.05  # holes up to this fraction of a component are filled; not from the paper
# where a structure may be: its least probability, and voxels around; not from the paper
SURE, MARGIN = 0.01, 4


class Cleaned(NamedTuple):
    """A cleaned class map uint8 ``[d, h, w]``, and which of its voxels are in doubt, of its shape:
    those of further pieces of a structure that the training labels show in one piece.
    """

    classes: np.ndarray
    doubtful: np.ndarray


def cleaned(model: Model, classes: np.ndarray, likely: np.ndarray) -> Cleaned:
    """The pieces that a pseudo-label keeps, with their small holes filled.

    Args:
        model: knows which classes, or whether the whole foreground, training labels show in one
            piece.
        classes: most probable classes uint8 ``[d, h, w]``, left as they are.
        likely: their probabilities, same shape.
    """
    kept = model.kept(classes, likely, nearly=TAUGHT)
    surest = model.kept(kept, likely, nearly=1.0)
    filled = fill_small_holes(kept)
    doubtful = surest != kept
    if doubtful.any():
        doubtful = fill_small_holes(surest) != filled
    return Cleaned(filled, doubtful)


def fill_small_holes(classes: np.ndarray) -> np.ndarray:
    """Background holes enclosed by a class get its value where they are small against the class."""
    from scipy import ndimage

    result = classes.copy()
    for value in np.unique(classes[classes > 0]):
        mask = classes == value
        holes = ndimage.binary_fill_holes(mask) & (classes == 0)
        labelled, count = ndimage.label(holes)
        sizes = np.bincount(labelled.ravel(), minlength=count + 1)
        small = np.flatnonzero(sizes <= HOLE_FRACTION * mask.sum())
        result[np.isin(labelled, small[small > 0])] = value
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
