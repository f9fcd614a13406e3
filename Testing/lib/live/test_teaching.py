"""Scores of slices before they are learnt from, when the loss is flat, and which cases may mix."""

import numpy as np
import pytest

from MedSSLLib.core.events import Events
from MedSSLLib.images.labels import IGNORE, Annotated
from MedSSLLib.live.learner import Plateau
from MedSSLLib.live.teaching import MOST_KEPT, Scores, Teaching, slice_score
from MedSSLLib.live.watch import Watch
from Testing.lib.core_helpers import tiny_project


def test_dice_and_changed_share_by_hand():
    drawn = np.array([[1, 1, 0, 0], [2, 2, 0, 0]], np.uint8)
    found = np.array([[1, 0, 0, 0], [2, 2, 2, 0]], np.uint8)
    score = slice_score(found, drawn, 3)
    assert score.dice == pytest.approx((2 * 1 / 3 + 2 * 2 / 5) / 2)
    assert score.changed == pytest.approx(2 / 5)  # of five voxels of a structure in either, two
    assert (score.wrong, score.drawn) == (2, 4)


def test_what_is_not_drawn_does_not_count():
    drawn = np.array([[1, IGNORE, 0, IGNORE]], np.uint8)
    assert slice_score(np.array([[1, 1, 0, 1]], np.uint8), drawn, 2) == (1.0, 0.0, 0, 1)
    assert slice_score(np.array([[1, 0, 1, 0]], np.uint8), drawn, 2) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 2),
        1,
        1,
    )


def test_an_empty_slice_that_is_left_empty_is_right():
    empty = np.zeros((2, 2), np.uint8)
    assert slice_score(empty, empty, 3) == (1.0, 0.0, 0, 0)
    assert slice_score(empty + 1, empty, 3) == (0.0, 1.0, 4, 0)


def test_a_class_that_neither_shows_does_not_count():
    one = np.array([[1, 0]], np.uint8)
    assert slice_score(one, one, 5) == (1.0, 0.0, 0, 1)


def test_a_slice_keeps_the_prediction_from_before_it_was_first_drawn():
    scores, place = Scores(), (2, 5)
    drawn = np.array([[1, 0]], np.uint8)
    assert (
        scores.is_new("a", place)
        and scores.note("a", place, drawn, 2, proposed=False, step=0) is None
    )
    scores.keep("a", place, drawn)
    row = scores.note("a", place, drawn, 2, proposed=True, step=3)
    assert (row["dice"], row["changed"], row["proposed"], row["step"]) == (1.0, 0.0, True, 3)
    scores.learnt("a", [place])
    assert not scores.is_new("a", place) and scores.is_new("b", place)
    other = np.array([[0, 1]], np.uint8)
    row = scores.note("a", place, other, 2, proposed=False, step=9)
    assert (row["dice"], row["changed"], row["proposed"], row["step"]) == (0.0, 1.0, True, 3)
    assert scores.summary() == {"slices": 1, "dice": 0.0, "changed": 1.0}


def test_proposals_pay_once_correcting_them_is_less_work_than_drawing():
    scores, drawn = Scores(), np.array([[1, 1, 0, 0]], np.uint8)

    def note(index, *predicted):
        scores.keep("a", (2, index), np.array([predicted], np.uint8))
        scores.note("a", (2, index), drawn, 2, proposed=False, step=10)
        return scores.proposals_pay(20)

    assert not scores.proposals_pay(20), "nothing is known yet"
    assert not note(0, 0, 0, 1, 1), "four voxels to correct, two to draw"
    assert not note(1, 1, 0, 0, 0) and note(2, 1, 1, 0, 0)
    assert [note(index, 0, 0, 1, 1) for index in (3, 4, 5, 6)] == [False] * 4
    assert [note(index, 1, 1, 0, 0) for index in (7, 8, 9)] == [False, False, True], "the last five"
    assert [note(index, 0, 0, 1, 1) for index in (10, 11, 12)] == [True, True, False]
    assert not scores.proposals_pay(20) and scores.proposals_pay(21), "trained twice as long since"
    scores.rows = {("a", (2, 0)): {"dice": 1.0, "changed": 0.0}}  # written by an earlier version
    assert not scores.proposals_pay(20)


def test_predictions_that_are_kept_are_bounded():
    scores = Scores()
    for index in range(MOST_KEPT + 5):
        scores.keep("a", (2, index), np.zeros((1, 1), np.uint8))
    kept = [scores.predicted("a", (2, index)) is not None for index in range(MOST_KEPT + 5)]
    assert kept == [False] * 5 + [True] * MOST_KEPT


def plateau(losses, **changes):
    made = Plateau(**({"window": 5, "gain": 0.02, "least": 10, "most": 50} | changes))
    found = []
    for loss in losses:
        made.note(loss)
        found.append(made.flat)
    return found


def test_the_loss_is_flat_where_it_no_longer_falls_and_not_before_there_was_time():
    assert plateau([1.0] * 12) == [False] * 9 + [True] * 3
    assert not any(plateau([0.9**step for step in range(45)]))
    assert plateau([0.9**step for step in range(60)]).index(True) == 49, "not for ever"
    assert not any(plateau([1.0] * 30, least=40))
    assert not any(plateau([1.0] * 5 + [0.9] * 5)) and any(plateau([1.0] * 5 + [0.99] * 5))


def test_a_change_begins_anew():
    made = Plateau(5, 0.02, 10, 50)
    for _ in range(20):
        made.note(1.0)
    made.reset()
    assert not made.flat and made.steps == 0


def test_cases_that_mix_are_never_test_cases_and_partly_drawn_ones_come_first(tmp_path):
    project = tiny_project(tmp_path, cases=8)
    project.set_roles(labelled="case0,case1,case2", test="case6,case7")
    project.set_annotated("case0", Annotated.of([(2, [4])]))
    project.set_annotated("case2", Annotated.of([(2, [4])]))
    project.save()
    watch = Watch(project, print)
    names = [case.name for case in Teaching(watch, None, Events(), 1, 4).others]
    assert names == ["case0", "case2", "case3", "case5"], "spread over the project"
    names = [case.name for case in Teaching(watch, None, Events(), 1, 20).others]
    assert names == ["case0", "case2", "case3", "case4", "case5"]
    names = [case.name for case in Teaching(watch, None, Events(), 1, 1).others]
    assert names == ["case4"]


def test_cases_that_mix_are_of_different_patients_and_phases(tmp_path):
    project = tiny_project(tmp_path, cases=8)
    for number in range(8):
        project.set_metadata(f"case{number}", {"patient": f"p{number // 2}"})
    project.set_roles(labelled="", test="")
    project.save()
    found = Teaching(Watch(project, print), None, Events(), 1, 4).others
    assert len({case.patient for case in found}) == 4
    assert sorted(int(case.name[4:]) % 2 for case in found) == [0, 0, 1, 1]
