"""Pieces against scipy's labelling and by hand: what labels tell of them, and which are kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from MedSSLLib.images import components
from MedSSLLib.images.components import (
    connected_on_slices,
    kept_pieces,
    largest_components,
    piece_facts,
    pieces_of,
    richest_components,
    surest_components,
    taken_away,
)
from MedSSLLib.images.labels import IGNORE
from Testing.lib.case_helpers import each


def random_map(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 4, shape) * (rng.random(shape) < density)).astype(np.uint8)


def numbered(found, shape):
    """The piece of every voxel, -1 for none."""
    result = np.full(shape, -1)
    for start, stop, _, piece in zip(*found, strict=True):
        result.reshape(-1)[start:stop] = piece
    return result


def pairs(first, second):
    """Distinct pairs of numbers at the same voxel."""
    return len(np.unique(np.stack([first, second]), axis=1).T)


@each("shape", [(7, 9, 11), (1, 5, 6), (8, 9), (13,), (6, 1, 4), (5, 6, 1)])
@each("density", [0.0, 0.1, 0.3, 0.7, 1.0])
@each("block", [2**24, 12])
def test_pieces_are_those_of_scipy(monkeypatch, shape, density, block):
    monkeypatch.setattr(components, "_BLOCK", block)
    classes = random_map(shape, density)
    found = pieces_of(classes)
    mine, total = numbered(found, shape), 0
    around = np.ones((3,) * classes.ndim)
    for value in (1, 2, 3):
        theirs, count = ndimage.label(classes == value, around)
        assert pairs(theirs[classes == value], mine[classes == value]) == count
        total += count
    assert len(found.sizes()) == total and found.sizes().sum() == (classes > 0).sum()
    assert sorted(found.classes) == sorted(
        classes.reshape(-1)[mine.reshape(-1) == p][0] for p in range(total)
    )
    whole = pieces_of(classes, across=True)
    theirs, count = ndimage.label(classes > 0, around)
    assert len(whole.sizes()) == count
    assert pairs(theirs[classes > 0], numbered(whole, shape)[classes > 0]) == count


@each("kind", [np.float32, np.float16, np.uint8])
@each("block", [2**24, 50])
def test_certainty_is_the_sum_of_probabilities_above_one_half(monkeypatch, kind, block):
    monkeypatch.setattr(components, "_BLOCK", block)
    classes = random_map((6, 7, 8), 0.4)
    likely = np.random.default_rng(1).random(classes.shape)
    stored = (likely * 255).round().astype(kind) if kind == np.uint8 else likely.astype(kind)
    found = pieces_of(classes)
    sums = np.bincount(found.piece, found.certainty(stored))
    mine = numbered(found, classes.shape)
    for piece, total in enumerate(sums):
        p = likely[mine == piece]
        expected = sum(max(x - 0.5, 0) for x in p) + 1e-6 * len(p)
        assert total == pytest.approx(expected, abs=4e-3 * len(p))


def test_largest_components_equal_a_loop():
    classes = random_map((9, 10, 11), 0.12, 3)
    expected = classes.copy()
    for value in (1, 3):
        labelled, count = ndimage.label(classes == value, np.ones((3, 3, 3)))
        sizes = [(labelled == n).sum() for n in range(1, count + 1)]
        expected[(labelled > 0) & (labelled != 1 + int(np.argmax(sizes)))] = 0
    assert np.array_equal(largest_components(classes, (1, 3)), expected)
    assert (classes == random_map((9, 10, 11), 0.12, 3)).all(), "the map given stays"


def test_what_dense_labels_tell_of_pieces():
    """Class 1 is one block, class 2 two equal ones; a sparse label says nothing."""
    dense = np.zeros((4, 9), np.uint8)
    dense[0, :4], dense[2, :2], dense[2, 5:7] = 1, 2, 2
    sparse = np.where(np.arange(4)[:, None] == 0, 2, IGNORE).repeat(9, 1).astype(np.uint8)
    assert piece_facts([dense, sparse], 4) == ([1], False)
    assert piece_facts([sparse], 4) == ([], False)
    kept = largest_components(dense, [1])
    assert (kept == dense).all()
    assert (largest_components(dense, [2]) == 2).sum() == 2
    joined = dense.copy()
    joined[1, 1], joined[1, 4:6] = 3, 3
    assert piece_facts([joined], 4) == ([1], True), "3 joins what it touches, itself in two pieces"
    specks = np.pad(np.ones((1, 30, 30), np.uint8), ((0, 0), (0, 0), (0, 3)))
    specks[0, 0, 32] = 1
    assert piece_facts([specks], 2) == ([1], True) and piece_facts([dense, specks], 4)[1] is False


def on_slices(volume, indices, axis=0):
    """The class map with IGNORE off some slices."""
    sparse = np.full_like(volume, IGNORE)
    place = tuple(list(indices) if axis == number else slice(None) for number in range(3))
    sparse[place] = volume[place]
    return sparse


def test_classes_that_annotated_slices_show_in_one_piece():
    """1 is a ball, 2 two of them side by side, 3 two of them in line; 4 is C-shaped, and no slice
    shows 5.
    """
    volume = np.zeros((9, 12, 12), np.uint8)
    volume[2:7, 0:3, 0:3] = 1
    volume[2:7, 4:7, 0:3] = volume[2:7, 4:7, 6:9] = 2
    volume[0:3, 8:11, 0:3] = volume[6:9, 8:11, 0:3] = 3
    volume[0:9, 9:12, 5:7] = volume[8, 9:12, 5:12] = volume[7:9, 9:12, 10:12] = 4
    assert connected_on_slices([on_slices(volume, (1, 4, 7))], 6) == [1]
    assert connected_on_slices([on_slices(volume, (1, 2, 3, 4, 5, 6, 7))], 6) == [1, 4], (
        "one slice of seven shows two"
    )
    assert connected_on_slices([on_slices(volume, (0, 5, 10), axis=1)], 6) == [1, 4], (
        "across it 3 is two"
    )
    assert connected_on_slices(
        [on_slices(volume, (1, 5, 9), axis=1), on_slices(volume, (2, 4, 6))], 6
    ) == [1, 4]
    assert connected_on_slices([], 3) == []


def test_the_surest_piece_is_kept_and_those_nearly_as_sure():
    """Class 1: a large unsure piece, a small sure one, one of a fifth of its certainty, one of
    less.
    """
    classes = np.zeros((1, 3, 30), np.uint8)
    likely = np.full((1, 3, 30), 0.9)
    pieces = {
        "large": (slice(0, 10), 0.505),
        "sure": (slice(12, 16), 0.95),
        "fifth": (slice(18, 19), 0.87),
        "less": (slice(21, 22), 0.85),
    }
    for where, probability in pieces.values():
        classes[..., where], likely[..., where] = 1, probability
    classes[..., 25:27], classes[..., 28:30] = 2, 2
    kept = surest_components(classes, likely, (1,))
    for name, (where, _) in pieces.items():
        assert (kept[..., where] == 1).all() == (name in ("sure", "fifth")), name
    assert (kept[..., 25:] == classes[..., 25:]).all(), "other classes stay"
    assert (surest_components(classes, likely, (1, 2))[..., 25:] == classes[..., 25:]).all(), (
        "both are as sure"
    )


def test_largest_components_by_hand():
    classes = np.zeros((3, 8, 8), int)
    classes[0, 0, :3], classes[0, 5, 5:7], classes[2, 2:4, 2:4], classes[2, 7, 7] = 1, 1, 2, 2
    kept = largest_components(classes)
    assert (
        (kept == 1).sum() == 3
        and kept[0, 0, :3].all()
        and (kept == 2).sum() == 4
        and kept[2, 7, 7] == 0
    )
    assert (largest_components(np.zeros((2, 2, 2), int)) == 0).all()


def test_a_class_that_the_richest_component_lacks_stays():
    """It would vanish otherwise, and nothing says that it is false."""
    classes = np.zeros((1, 20, 30), np.uint8)
    classes[0, 2:12, 2:12], classes[0, 2:12, 12:18] = 1, 2
    classes[0, 15:18, 22:26] = 3
    assert (richest_components(classes, np.ones(classes.shape)) == classes).all()


def test_the_richest_component_is_kept_and_not_the_largest_piece_of_a_class():
    """A heart of three classes, and far away a piece of class 1 twice as large as its own."""
    classes = np.zeros((4, 12, 40), np.uint8)
    classes[:, 2:8, 2:4], classes[:, 2:8, 4:7], classes[:, 2:8, 7:10] = 1, 2, 3
    classes[:, 2:8, 20:24] = 1
    likely = np.full(classes.shape, 0.95)
    kept = richest_components(classes, likely)
    assert (kept[..., :12] == classes[..., :12]).all() and not kept[..., 12:].any()
    assert (largest_components(classes)[..., 2:4] == 0).all(), "the rule before"
    everything = kept_pieces(classes, likely, (1, 2, 3), connected=True)
    assert np.array_equal(everything, kept)
    second = classes.copy()
    second[:, 2:8, 30:38] = classes[:, 2:8, 2:10]
    assert (richest_components(second, likely)[..., 25:] == second[..., 25:]).all(), "as rich"


@pytest.mark.parametrize("rule", [{"connected": True}, {"single": (1,)}])
def test_lesions_nearly_as_sure_stay_though_every_label_showed_one(rule):
    classes = np.zeros((6, 20, 40), np.uint8)
    classes[1:5, 2:8, 2:8] = classes[1:5, 10:16, 10:16] = classes[2:4, 2:6, 30:34] = 1
    classes[0, 18, 20] = 1
    likely = np.where(classes, 0.97, 0.99)
    kept = kept_pieces(classes, likely, **rule)
    assert ((kept > 0) == (classes > 0)).sum() == classes.size - 1 and not kept[0, 18, 20]
    assert taken_away(classes, kept) == {1: (1, 1)}
    assert kept_pieces(classes, likely) is classes


def test_what_was_taken_away_is_counted_by_class():
    before = random_map((5, 6, 7), 0.2, 5)
    after = np.where(before == 2, 0, before)
    labelled, count = ndimage.label(before == 2, np.ones((3, 3, 3)))
    assert taken_away(before, after) == {2: (count, int((labelled > 0).sum()))}
    assert taken_away(before, before) == {}


def test_empty_maps():
    nothing = np.zeros((2, 3, 4), np.uint8)
    assert not kept_pieces(nothing, np.ones(nothing.shape), (1, 2), connected=True).any()
    assert len(pieces_of(nothing).sizes()) == 0 and piece_facts([nothing], 3) == ([], False)
    assert not pieces_of(np.full((2, 3), IGNORE, np.uint8)).piece.size


@pytest.mark.parametrize("density", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_maps_of_specks_are_worked_on_voxel_by_voxel_to_the_same_end(monkeypatch, density, kind):
    classes = random_map((9, 14, 15), density, 2)
    classes[2:5, 2:6, 2:6] = 1
    likely = 0.4 + 0.6 * np.random.default_rng(1).random(classes.shape)
    likely = (likely * 255).round().astype(kind) if kind == np.uint8 else likely.astype(kind)

    def everything():
        rich = richest_components(classes, likely)
        sure = surest_components(classes, likely, (1, 3))
        large = largest_components(classes)
        few = largest_components(classes, (2,))
        return rich, sure, large, few, taken_away(classes, sure)

    first = everything()
    monkeypatch.setattr(components, "MOST_RUNS", 1)
    for one, other in zip(first, everything(), strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert (classes == 1).sum() > (first[2] == 1).sum() > 0
