"""Which pieces of a prediction a pseudo-label takes over, and which it leaves in doubt."""

import numpy as np
import pytest
import torch

from MedSSLLib.inference.model import Model
from MedSSLLib.selftraining.cleaning import cleaned, fill_small_holes

SHAPE = (9, 9, 40)
PLACES = {"first": 1, "second": 8, "third": 20, "last": 26}
LENGTHS = {"first": 5, "second": 10, "third": 4, "last": 9}


def model_of(**known):
    return Model(
        network=None,
        plan=None,
        values=(0, 1, 2),
        classes=("background", "a", "b"),
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


@pytest.mark.parametrize(
    "known",
    [{"single_component": (1,)}, {"connected_on_slices": (1,)}, {"single_foreground": True}],
)
def test_poor_pieces_go_and_those_half_as_sure_are_in_doubt(known):
    """All voxels are as likely, so that certainty is length: of 10 the half is 5."""
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
