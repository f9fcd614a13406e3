"""Connected pieces: what labels tell of them, and which pieces of a prediction are kept.

Two facts of dense labels: which classes are one piece each, and whether the whole foreground is.
Where slices alone were annotated: which classes these show in one piece. Predictions keep pieces by
evidence: the surest one and those that are nearly as sure, so that a second lesion stays though
each label showed one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from MedSSLLib.images.labels import IGNORE
from MedSSLLib.images.noisy_pieces import (
    blank,
    blank_poor,
    label_sums,
    labelled_classes,
    many_runs,
)

# mean share of a class's voxels in its largest component that counts as one piece;
# not from the paper
ONE_PIECE = 0.99
SHARED_BY = (
    0.9  # least share in any one label, and mean share on annotated slices; not from the paper
)
NEARLY_AS_SURE = 0.2  # of the surest piece's certainty; not from the paper
MOST_RUNS = 2**22  # runs held; of more, pieces are found voxel by voxel, which is slower
_BLOCK = 2**24  # voxels looked through at a time


class Pieces(NamedTuple):
    """Connected pieces of a class map, diagonals included, as runs of one class along its last
    axis.

    Runs are sorted by place. Attributes:
        start, stop: places of each run in the flattened map, int64 ``[n]``.
        value: class of each run ``[n]``.
        piece: number of the piece that each run belongs to ``[n]``, from 0.
    """

    start: np.ndarray
    stop: np.ndarray
    value: np.ndarray
    piece: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """Class of each piece (of its first run)."""
        first = np.unique(self.piece, return_index=True)[1]
        return self.value[first]

    def sizes(self) -> np.ndarray:
        """Voxels of each piece."""
        return np.bincount(self.piece, self.stop - self.start)

    def certainty(self, likely: np.ndarray) -> np.ndarray:
        """How sure each run is: the sum of its voxels' probabilities above one half, never 0.

        Args:
            likely: probability of each voxel's class, of the map's shape; uint8 in 255ths.
        """
        flat, sums = likely.reshape(-1), np.empty(len(self.start))
        scale = 1 / 255 if likely.dtype == np.uint8 else 1.0
        cuts = np.flatnonzero(np.diff(self.start // _BLOCK)) + 1
        for runs in np.split(np.arange(len(self.start)), cuts):
            if not len(runs):
                continue
            first, last = int(self.start[runs[0]]), int(self.stop[runs[-1]])
            sure = np.zeros(last - first + 1, np.float32)  # one more, so that every end is a place
            np.multiply(flat[first:last], scale, out=sure[:-1], casting="unsafe")
            np.maximum(sure - 0.5, 0, out=sure)
            edges = np.stack([self.start[runs], self.stop[runs]], 1).reshape(-1) - first
            sums[runs] = np.add.reduceat(sure, edges, dtype=np.float64)[::2]
        return sums + 1e-6 * (self.stop - self.start)

    def remove(self, classes: np.ndarray, gone: np.ndarray) -> None:
        """Set the voxels of the runs that ``gone`` marks to background, in place."""
        start, length = self.start[gone], (self.stop - self.start)[gone]
        for first in range(0, len(start), 2**20):
            part, reach = start[first : first + 2**20], length[first : first + 2**20]
            steps = np.arange(reach.sum()) - np.repeat(reach.cumsum() - reach, reach)
            classes.reshape(-1)[np.repeat(part, reach) + steps] = 0


def pieces_of(classes: np.ndarray, *, across: bool = False) -> Pieces:
    """The pieces of every foreground class of a map of one to three axes, IGNORE left out.

    Runs along the last axis, joined where those of neighbouring rows touch. With ``across``, runs
    of different classes join too: the pieces of the whole foreground.
    """
    shape = (1,) * (3 - classes.ndim) + classes.shape
    start, stop, value = _runs(np.ascontiguousarray(classes).reshape(shape))
    if across:  # neighbours in a row are one run first
        fresh = np.ones(len(start), bool)
        fresh[1:] = (start[1:] != stop[:-1]) | (start[1:] % shape[2] == 0)
        last = np.append(fresh[1:], True)[: len(start)]
        joined = _joined(start[fresh], stop[last], shape)
        return Pieces(start, stop, value, joined[fresh.cumsum() - 1])
    piece, count = np.zeros(len(start), np.int64), 0
    for index in np.unique(value):
        own = np.flatnonzero(value == index)
        piece[own] = count + _joined(start[own], stop[own], shape)
        count = int(piece[own].max()) + 1
    return Pieces(start, stop, value, piece)


def _joined(start: np.ndarray, stop: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Number of the piece of each run, of runs that all count alike."""
    first, second = _touching(start, stop, shape)
    links = sparse.coo_matrix((np.ones(len(first), bool), (first, second)), (len(start),) * 2)
    return sparse.csgraph.connected_components(links, directed=False)[1].astype(np.int64)


def _runs(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the first voxel of each run of a foreground class along the last axis, of the voxel
    after it, and its class.
    """
    planes, rows, width = classes.shape
    step = max(1, _BLOCK // max(1, rows * width))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for plane in range(0, planes, step):
        block = classes[plane : plane + step]
        edge = np.ones((*block.shape[:2], width + 1), bool)
        edge[..., 1:-1] = block[..., 1:] != block[..., :-1]
        line, column = np.divmod(np.flatnonzero(edge), width + 1)
        starts = np.flatnonzero(line[1:] == line[:-1])  # from one edge to the next of its row
        place = line[starts] * width + column[starts]
        value = block.reshape(-1)[place]
        shown = (value != 0) & (value != IGNORE)
        end = line[starts] * width + column[starts + 1]
        offset = plane * rows * width
        found.append((place[shown] + offset, end[shown] + offset, value[shown]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, classes.dtype)
    start, stop, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return start, stop, value


def _touching(
    start: np.ndarray, stop: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs in neighbouring rows that touch, diagonals included."""
    _, rows, width = shape
    row, left = np.divmod(start, width)
    right = left + stop - start
    begins, ends = row * (width + 2) + left, row * (width + 2) + right
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64),) * 2]
    for plane, step in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):
        other = row + plane * rows + step
        exists = np.flatnonzero(
            (row % rows + step >= 0) & (row % rows + step < rows) & (other >= 0)
        )
        base = other[exists] * (width + 2)
        low = np.searchsorted(ends, base + left[exists])
        high = np.searchsorted(begins, base + right[exists], "right")
        count = np.maximum(high - low, 0)
        steps = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        pairs.append((np.repeat(exists, count), np.repeat(low, count) + steps))
    first, second = zip(*pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)


def largest_components(classes: np.ndarray, chosen: Collection[int] | None = None) -> np.ndarray:
    """A class map in which the chosen classes keep their largest component, diagonals included.

    Args:
        classes: class map of up to three axes.
        chosen: class indices; None = every foreground class.
    """
    result = classes.copy()
    if many_runs(classes, MOST_RUNS):
        for _, box, labels, count in labelled_classes(classes, chosen):
            largest = 1 + int(label_sums(labels, count, None)[1:].argmax())
            gone = np.ones(count + 1, bool)
            gone[0] = gone[largest] = False
            blank(result[box], labels, gone)
            del labels
        return result
    found = pieces_of(classes)
    sizes, owner = found.sizes(), found.classes
    gone = np.zeros(len(sizes), bool)
    for value in np.unique(owner):
        if chosen is None or int(value) in chosen:
            own = np.flatnonzero(owner == value)
            gone[own] = True
            gone[own[sizes[own].argmax()]] = False
    found.remove(result, gone[found.piece])
    return result


def piece_facts(labels: Iterable[np.ndarray], classes: int) -> tuple[list[int], bool]:
    """What dense labels tell: foreground classes that are, but for specks, one piece in the labels
    that show them, and whether the whole foreground is; ([], False) without a dense label.

    Args:
        labels: class maps; one that holds IGNORE anywhere (sparse annotation) says nothing about
            pieces.
        classes: number of classes with background.
    """
    shares: dict[int, list[float]] = {}
    for label in labels:
        if (label == IGNORE).any():
            continue
        found = pieces_of(label)
        sizes, owner = found.sizes(), found.classes
        for value in range(1, classes):
            if len(own := sizes[owner == value]):
                shares.setdefault(value, []).append(float(own.max() / own.sum()))
        if len(whole := pieces_of(label, across=True).sizes()):
            shares.setdefault(0, []).append(float(whole.max() / whole.sum()))
    single = {
        value
        for value, found in shares.items()
        if np.mean(found) >= ONE_PIECE and min(found) >= SHARED_BY
    }
    return sorted(single - {0}), 0 in single


def connected_on_slices(labels: Iterable[np.ndarray], classes: int) -> list[int]:
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
    return sorted(value for value, found in shares.items() if found and np.mean(found) >= SHARED_BY)


def _shares(masks: Sequence[np.ndarray]) -> list[float]:
    """Share of the largest piece of each mask from the first to the last that is not empty; 0 of
    empty ones.
    """
    shown = [index for index, mask in enumerate(masks) if mask.any()]
    between = masks[shown[0] : shown[-1] + 1] if shown else []
    return [
        float(sizes.max() / sizes.sum())
        if len(sizes := pieces_of(mask.astype(np.uint8)).sizes())
        else 0.0
        for mask in between
    ]


def richest_components(
    classes: np.ndarray, likely: np.ndarray, nearly: float = NEARLY_AS_SURE
) -> np.ndarray:
    """A class map in which the whole foreground keeps its richest component and those nearly as
    rich.

    How rich a component is: the sum over classes of its share of the class's certainty (see
    :meth:`Pieces.certainty`). Another one is nearly as rich if in more than half of the richest
    one's classes it has at least `nearly` of that one's certainty. So a second, false piece
    of one class goes, however large it is, unless that is the only class. Classes that would vanish
    stay.

    Args:
        classes: class map of up to three axes.
        likely: probability of each voxel's class, same shape.
        nearly: in (0, 1]; 1 keeps the richest alone.
    """
    if many_runs(classes, MOST_RUNS):
        result = classes.copy()
        blank_poor(result, likely, nearly)
        return result
    found = pieces_of(classes, across=True)
    if found.piece.max(initial=0) == 0:
        return classes.copy()
    shape = (int(found.piece.max()) + 1, int(found.value.max()) + 1)
    place = np.ravel_multi_index((found.piece, found.value.astype(np.intp)), shape)
    mass = np.bincount(place, found.certainty(likely), shape[0] * shape[1]).reshape(shape)
    richest = int((mass / np.maximum(mass.sum(0), 1e-30)).sum(1).argmax())
    shown = mass[richest] > 0
    near = (mass[:, shown] >= nearly * mass[richest, shown]).sum(1)
    gone = (near * 2 <= shown.sum()) | (nearly >= 1)
    gone[richest] = False
    result = classes.copy()
    found.remove(result, gone[found.piece] & shown[found.value])
    return result


def surest_components(
    classes: np.ndarray,
    likely: np.ndarray,
    chosen: Collection[int],
    nearly: float = NEARLY_AS_SURE,
) -> np.ndarray:
    """A class map in which the chosen classes keep their surest component and those that are nearly
    as sure: with at least `nearly` of the surest one's certainty.

    Args:
        classes: class map of up to three axes.
        likely: probability of each voxel's class, same shape.
        chosen: class indices.
        nearly: in (0, 1]; 1 keeps the surest alone.
    """
    result = classes.copy()
    if not len(chosen):
        return result
    if many_runs(classes, MOST_RUNS):
        for _, box, labels, count in labelled_classes(classes, chosen):
            sums = label_sums(labels, count, likely[box])
            gone = (sums < nearly * sums[1:].max()) | (nearly >= 1)
            gone[0] = gone[1 + int(sums[1:].argmax())] = False
            blank(result[box], labels, gone)
            del labels
        return result
    found = pieces_of(classes)
    sums, owner = np.bincount(found.piece, found.certainty(likely)), found.classes
    gone = np.zeros(len(sums), bool)
    for value in chosen:
        own = np.flatnonzero(owner == value)
        if len(own) > 1:
            gone[own] = (sums[own] < nearly * sums[own].max()) | (nearly >= 1)
            gone[own[sums[own].argmax()]] = False
    found.remove(result, gone[found.piece])
    return result


def kept_pieces(
    classes: np.ndarray,
    likely: np.ndarray,
    single: Collection[int] = (),
    *,
    connected: bool = False,
    nearly: float = NEARLY_AS_SURE,
) -> np.ndarray:
    """A class map without the pieces that are likely wrong.

    Args:
        classes: most probable classes uint8 ``[d, h, w]``.
        likely: their probabilities, same shape.
        single: classes that keep their surest component and those nearly as sure.
        connected: first the whole foreground keeps its richest component and those nearly as rich.
        nearly: least certainty of a further piece, of the surest one's, in (0, 1]; 1 keeps none.
    """
    if not (connected or len(single)):
        return classes
    if connected:
        classes = richest_components(classes, likely, nearly)
    return surest_components(classes, likely, single, nearly)


def class_map(
    probabilities: np.ndarray, single: Collection[int] = (), *, connected: bool = False
) -> np.ndarray:
    """Most probable classes uint8 ``[d, h, w]`` of ``[k, d, h, w]``, in the pieces of
    :func:`kept_pieces`.
    """
    classes = probabilities.argmax(0).astype(np.uint8)
    return kept_pieces(classes, probabilities.max(0), single, connected=connected)


def taken_away(before: np.ndarray, after: np.ndarray) -> dict[int, tuple[int, int]]:
    """Pieces and voxels of each class that are in the first map and not in the second."""
    gone = np.where(before != after, before, 0).astype(np.uint8)
    if not gone.any():
        return {}
    if many_runs(gone, MOST_RUNS):
        counts = {}
        for value, _, labels, count in labelled_classes(gone, None):
            counts[value] = (count, int(np.count_nonzero(labels)))
            del labels
        return counts
    found = pieces_of(gone)
    sizes, owner = found.sizes(), found.classes
    return {
        int(value): (int((owner == value).sum()), int(sizes[owner == value].sum()))
        for value in np.unique(owner)
    }
