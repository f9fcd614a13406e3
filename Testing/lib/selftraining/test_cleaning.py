"""Which pieces of a prediction a pseudo-label takes over, and which it leaves in doubt."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from MedSSLLib.images import components
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.inference.model import Model
from MedSSLLib.selftraining.cleaning import cleaned, fill_small_holes

SHAPE = (9, 9, 40)
PLACES = {"first": 1, "second": 8, "third": 20, "last": 26}
LENGTHS = {"first": 5, "second": 10, "third": 4, "last": 9}


def model_of(**known):
    return Model(
        network=None,
        plan=None,
        values=(0, 1, 2, 3),
        classes=("background", "a", "b", "c"),
        device=torch.device("cpu"),
        precision="32",
        **known,
    )


def pieces(*names, value=1):
    """Boxes of 5x5 voxels, apart from each other along the last axis."""
    classes = np.zeros(SHAPE, np.uint8)
    for name in names:
        classes[2:7, 2:7, PLACES[name] : PLACES[name] + LENGTHS[name]] = value
    return classes


@pytest.mark.parametrize("most_runs", [components.MOST_RUNS, 1])
@pytest.mark.parametrize(
    "known",
    [{"single_component": (1,)}, {"connected_on_slices": (1,)}, {"single_foreground": True}],
)
def test_poor_pieces_go_and_those_half_as_sure_are_in_doubt(known, most_runs, monkeypatch):
    """All voxels are as likely, so that certainty is length: of 10 the half is 5."""
    monkeypatch.setattr(components, "MOST_RUNS", most_runs)
    classes = pieces(*PLACES)
    found = cleaned(model_of(**known), classes, np.full(SHAPE, 0.9))
    assert np.array_equal(found.classes, pieces("first", "second", "last"))
    assert np.array_equal(found.doubtful, pieces("first", "last") > 0)
    assert np.array_equal(classes, pieces(*PLACES)), "left as it was"


def test_the_surest_piece_is_not_the_largest():
    likely = np.full(SHAPE, 0.6)
    likely[pieces("third") > 0] = 0.95  # 4 * 0.45 against 10 * 0.1
    found = cleaned(model_of(single_component=(1,)), pieces(*PLACES), likely)
    assert np.array_equal(found.classes, pieces("second", "third", "last"))
    assert np.array_equal(found.doubtful, pieces("second", "last") > 0)


def test_what_the_labels_do_not_show_in_one_piece_stays_without_a_doubt():
    for known in ({}, {"single_component": (2,)}):
        found = cleaned(model_of(**known), pieces(*PLACES), np.full(SHAPE, 0.9))
        assert np.array_equal(found.classes, pieces(*PLACES)) and not found.doubtful.any()


def test_each_class_has_its_own_surest_piece():
    classes = pieces("second", "third") + pieces("first", "last", value=2)
    found = cleaned(model_of(single_component=(1, 2)), classes, np.full(SHAPE, 0.9))
    assert np.array_equal(found.classes, pieces("second") + pieces("first", "last", value=2))
    assert np.array_equal(found.doubtful, pieces("first") > 0)


@pytest.mark.parametrize("most_runs", [components.MOST_RUNS, 1])
def test_a_whole_that_is_richer_in_most_classes_is_in_doubt_beside_the_richest(
    most_runs, monkeypatch
):
    """`first` has the greater sum of shares, `last` more of two classes in three."""
    monkeypatch.setattr(components, "MOST_RUNS", most_runs)
    classes = np.zeros(SHAPE, np.uint8)
    for first, widths in ((1, (10, 2, 2)), (20, (2, 3, 3))):
        for value, width in enumerate(widths, 1):
            classes[2:7, 2:7, first : first + width] = value
            first += width
    model = model_of(single_foreground=True)
    found = cleaned(model, classes, np.full(SHAPE, 0.9))
    assert np.array_equal(found.classes, classes)
    assert np.array_equal(found.doubtful, (classes > 0) & (np.arange(SHAPE[2]) >= 20))


@pytest.mark.parametrize("most_runs", [components.MOST_RUNS, 1])
def test_pieces_that_go_on_from_a_drawn_one_stay_without_a_doubt(most_runs, monkeypatch):
    """A person has drawn one slice through two of them, and erased a third there."""
    monkeypatch.setattr(components, "MOST_RUNS", most_runs)
    drawn = np.full(SHAPE, IGNORE, np.uint8)
    drawn[4] = pieces("third", "last")[4]
    found = cleaned(model_of(single_component=(1,)), pieces(*PLACES), np.full(SHAPE, 0.9), drawn)
    assert (found.classes == pieces(*PLACES)).all(), "what is erased is put back by the caller"
    assert np.array_equal(found.doubtful, pieces("first") > 0)
    nothing = np.full(SHAPE, IGNORE, np.uint8)
    nothing[4] = 0
    found = cleaned(model_of(single_component=(1,)), pieces(*PLACES), np.full(SHAPE, 0.9), nothing)
    assert np.array_equal(found.doubtful, pieces("first", "last") > 0)


def test_what_is_drawn_where_nothing_was_found_brings_its_piece():
    drawn = np.full(SHAPE, IGNORE, np.uint8)
    drawn[1, 2:7, PLACES["third"]] = 1  # beside the piece, which is too poor to stay by itself
    found = cleaned(
        model_of(single_component=(1,)), pieces("second", "third"), np.full(SHAPE, 0.9), drawn
    )
    assert (found.classes[pieces("third") > 0] == 1).all() and not found.doubtful.any()


def test_holes_are_filled_as_in_the_whole_volume():
    """The definition, class by class in the volume; done is it in the box of each class."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = ndimage.gaussian_filter(rng.normal(size=(3, 12, 16, 20)), (0, 1, 1, 1))
        classes = (noise.argmax(0) * (noise.max(0) > 0.05)).astype(np.uint8)
        expected = classes.copy()
        for value in (1, 2):
            mask = classes == value
            holes = ndimage.binary_fill_holes(mask) & (classes == 0)
            labelled, count = ndimage.label(holes)
            for index in range(1, count + 1):
                if (labelled == index).sum() <= 0.05 * mask.sum():
                    expected[labelled == index] = value
        assert np.array_equal(fill_small_holes(classes), expected)


def test_a_hole_in_a_doubtful_piece_is_filled_and_in_doubt():
    classes = pieces("second", "last")
    classes[4, 4, PLACES["last"] + 4] = classes[4, 4, PLACES["second"] + 4] = 0
    found = cleaned(model_of(single_component=(1,)), classes, np.full(SHAPE, 0.9))
    assert np.array_equal(found.classes, pieces("second", "last"))
    assert np.array_equal(found.doubtful, pieces("last") > 0)


def test_holes_that_are_large_open_or_filled_by_another_class_stay():
    classes = np.zeros((7, 7, 7), np.uint8)
    classes[1:6, 1:6, 1:6] = 1
    large, open_, other = classes.copy(), classes.copy(), classes.copy()
    large[2:5, 2:5, 2:5] = 0  # 27 of 98 voxels
    open_[3, 3, :] = 0
    other[3, 3, 3] = 2
    for made in (large, open_, other):
        assert np.array_equal(fill_small_holes(made), made)
    small = classes.copy()
    small[3, 3, 3] = 0
    assert np.array_equal(fill_small_holes(small), classes)
