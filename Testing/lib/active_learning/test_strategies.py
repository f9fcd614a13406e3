"""Choice of slices: limits, greedy facility location against brute force, even order; slices on
awkward grids.
"""

import itertools

import numpy as np
import pytest
import torch

from MedSSLLib.active_learning import strategies
from MedSSLLib.active_learning.strategies import (
    Candidates,
    doubt_weights,
    even_order,
    evenly,
    most,
    patient_weights,
    representative,
)
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.slices import (
    annotated_along,
    annotation_axis,
    not_empty,
    slice_operator,
    slice_spread,
)
from MedSSLLib.images.labels import Annotated
from MedSSLLib.inference import slice_features
from MedSSLLib.inference.slice_features import combined_profiles, slice_profiles
from MedSSLLib.project.manifest import Case
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import GRIDS, plan_for


def free(n):
    """A room of n rows, each a case of its own."""
    none = np.zeros(n, bool)
    return Candidates(np.arange(n), np.zeros(n, int), ~none, none, 1)


def value(features, weights, chosen):
    """F of the facility location function by plain loops."""
    total = 0.0
    for x, w in zip(features, weights / weights.sum(), strict=True):
        cosines = [
            float(x @ features[j] / np.linalg.norm(x) / np.linalg.norm(features[j])) for j in chosen
        ]
        total += w * max([0.0, *cosines])
    return total


@each("seed", range(4))
def test_greedy_choice_is_greedy_and_near_the_best(seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(9, 3)), rng.uniform(0.1, 1, 9)
    picks = representative(features, weights, free(9), np.zeros(9, bool), 3)
    chosen: list[int] = []
    for pick in picks:
        gains = [
            value(features, weights, [*chosen, j]) - value(features, weights, chosen)
            for j in range(9)
        ]
        assert pick.row == int(np.argmax(gains)) and pick.gain == pytest.approx(
            max(gains), abs=1e-5
        )
        chosen.append(pick.row)
    best = max(value(features, weights, subset) for subset in itertools.combinations(range(9), 3))
    assert value(features, weights, chosen) >= (1 - 1 / np.e) * best


def test_drawn_slices_count_as_chosen_and_near_duplicates_are_left_out():
    features = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 1e-4]])
    drawn = np.array([True, False, False, False, False])
    picks = representative(features, np.ones(5), free(5), drawn, 5)
    assert [pick.row for pick in picks] == [2], "1 and 4 look like 0, 3 looks like 2"
    assert set(picks[0].stands_for) == {2, 3}
    all_drawn = representative(features, np.ones(5), free(5), np.ones(5, bool), 5)
    assert all_drawn == []


def test_weights_decide_what_is_represented():
    features = np.eye(3)[[0, 0, 0, 1, 2]]
    assert representative(features, np.ones(5), free(5), np.zeros(5, bool), 1)[0].row == 0
    assert (
        representative(features, np.array([1, 1, 1, 9, 1.0]), free(5), np.zeros(5, bool), 1)[0].row
        == 3
    )


def test_patients_count_alike():
    usable = np.array([1, 1, 1, 1, 0, 1], bool)
    weights = patient_weights(["a", "a", "a", "b", "b", "c"], usable)
    np.testing.assert_allclose(weights, [1 / 9, 1 / 9, 1 / 9, 1 / 3, 0, 1 / 3])


@each("seed", range(5))
def test_a_case_always_has_room_for_its_share_and_no_more(seed):
    rng = np.random.default_rng(seed)
    case, place = np.repeat([0, 1], 20), np.tile(np.arange(20), 2)
    drawn = np.zeros(40, bool)
    room = Candidates(case, place, np.ones(40, bool), drawn, 3)
    rows = most(rng.uniform(0.1, 1, 40), room, 100)
    assert np.bincount(case[rows]).tolist() == [3, 3]
    for own in (0, 1):
        assert np.diff(np.sort(place[[r for r in rows if case[r] == own]])).min() >= 20 / 6


@each("per_case", range(1, 8))
@each("share", [0, 0.1, 0.5])
def test_a_short_case_has_room_for_its_share_too(per_case, share):
    """Few slices, some empty or drawn, in the worst order: as many as are asked for, or all that
    are left.
    """
    rng = np.random.default_rng(per_case)
    for n, step in itertools.product(
        range(1, 21), (1, 3, 5)
    ):  # every third first: two neighbours of each are closed
        usable, drawn = rng.random(n) >= share, rng.random(n) < share
        room = Candidates(np.zeros(n, int), np.arange(n), usable, drawn, per_case)
        rows = most(rng.uniform(0.1, 1, n) + (np.arange(n) % step == step // 2), room, 100)
        assert len(set(rows)) == len(rows) == min(per_case, int((usable & ~drawn).sum()))
        assert not room.open.any() and not (drawn[rows] | ~usable[rows]).any()


def test_the_distance_shrinks_only_when_there_is_no_other_room():
    def room(per_case):
        return Candidates(
            np.zeros(9, int), np.arange(9), np.ones(9, bool), np.zeros(9, bool), per_case
        )

    peak = np.array([1, 2, 3, 4, 9, 8, 7, 6, 5.0])
    assert most(peak, room(3), 9) == [4, 6, 8], "a gap of 9 / 6 leaves one out between two"
    thirds = np.array([1, 9, 2, 3, 9, 4, 5, 9, 6.0])
    assert most(thirds, room(4), 9) == [1, 4, 7, 8], (
        "1, 4, 7 close all others, of which 8 is then the best"
    )
    features = np.random.default_rng(0).normal(size=(9, 20))
    weights = np.where(np.isin(np.arange(9), [1, 4, 7]), 10, 1.0)
    rows = [pick.row for pick in representative(features, weights, room(4), np.zeros(9, bool), 9)]
    assert sorted(rows[:3]) == [1, 4, 7] and len(rows) == 4


@pytest.mark.parametrize("drawn", [[], [2, 5]])
def test_a_pick_knows_how_like_those_before_it_is(drawn, monkeypatch):
    monkeypatch.setattr(strategies, "MOST_CLIENTS", 1 if drawn else 3000)  # compared in parts
    rng = np.random.default_rng(3)
    features, known = rng.normal(size=(20, 3)) + [0.7, 0, 0], np.isin(np.arange(20), drawn)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    monkeypatch.setattr(strategies, "_sample", lambda rng, rows, most_rows: rows)
    before, picks = list(drawn), representative(features, np.ones(20), free(20), known, 6)
    for pick in picks:
        assert pick.similarity == pytest.approx(
            max([0.0, *(unit[before] @ unit[pick.row])]), abs=1e-5
        )
        before.append(pick.row)
    assert len(picks) > 3


def test_neighbours_of_drawn_slices_are_closed_and_empty_ones_never_open():
    drawn, usable = np.zeros(20, bool), np.ones(20, bool)
    drawn[10], usable[:3] = True, False
    room = Candidates(np.zeros(20, int), np.arange(20), usable, drawn, 1)
    assert np.flatnonzero(room.open).tolist() == [3, 4, 5, *range(15, 20)], "17 slices, gap 17 / 4"


def test_most_takes_no_slice_without_doubt():
    assert most(np.array([0.0, 2, 0, 1]), free(4), 4) == [1, 3]


def test_even_spacing_by_hand():
    assert evenly(range(9), 3) == [1, 4, 7] and evenly([5, 6], 4) == [5, 6] and evenly([], 2) == []
    assert even_order([False] * 4, ["a", "a", "b", "c"], 1) == [2, 0, 3, 1], (
        "the middle patient first"
    )
    assert even_order([True, False, False], ["a", "a", "b"], 1)[0] == 2, (
        "patients without drawn slices first"
    )


def test_doubt_by_a_naive_loop():
    """Scan after scan, row after row, as the docstring has it."""
    rng = np.random.default_rng(3)
    case, patients = np.repeat([0, 1, 2, 3], 6), np.repeat(["a", "a", "b", "c"], 6).tolist()
    usable = (rng.random(24) < 0.8) & (case != 2)  # a scan shows nothing at all
    uncertain, found = rng.gamma(2, 50, 24), rng.gamma(2, 200, 24)
    weights = doubt_weights(patients, case, usable, uncertain, found)
    means = {n: found[usable & (case == n)].mean() for n in (0, 1, 3)}
    for row in range(24):
        n = case[row]
        if not usable[row]:
            assert weights[row] == 0
            continue
        own = [r for r in range(24) if usable[r] and patients[r] == patients[row]]
        area = uncertain[usable & (case == n)].mean()
        doubt = area / (area + means[n] + 0.1 * np.median(list(means.values())))
        expected = doubt * uncertain[row] / area / len(own) / 2
        assert weights[row] == pytest.approx(expected, rel=1e-12), row


@pytest.mark.parametrize("empty", [4, 6, 9])
def test_scans_that_are_surely_empty_hardly_count(empty):
    """However many there are: softmax is never quite sure."""
    case, patients = np.repeat(np.arange(10), 3), np.repeat(list("abcdefghij"), 3).tolist()
    none = case < empty
    uncertain, found = np.where(none, 0.01, 40.0), np.where(none, 0.0, 300.0)
    weights = doubt_weights(patients, case, np.ones(30, bool), uncertain, found)
    assert weights[none].max() < 0.01 * weights[~none].min()


def test_where_nothing_is_found_anywhere_the_uncertain_area_decides():
    uncertain = np.array([1.0, 2, 3, 4])
    weights = doubt_weights(
        ["a", "a", "b", "b"], np.arange(4), np.ones(4, bool), uncertain, 0 * uncertain
    )
    np.testing.assert_allclose(weights, uncertain / 4)


def test_a_failure_counts_more_than_a_large_structure():
    """Two scans of one structure each: a large one outlined well, and one that is hardly found."""
    patients, case, usable = ["a"] * 5 + ["b"] * 5, np.repeat([0, 1], 5), np.ones(10, bool)
    uncertain = np.repeat([300.0, 100.0], 5)
    found = np.repeat([5000.0, 20.0], 5)
    weights = doubt_weights(patients, case, usable, uncertain, found)
    assert weights[5:].sum() > 4 * weights[:5].sum(), "the uncertain area alone names the large one"
    sure, none = np.repeat([300.0, 1.0], 5), np.repeat([5000.0, 0.0], 5)
    nothing = doubt_weights(patients, case, usable, sure, none)
    assert 0 < nothing[5:].sum() < nothing[:5].sum(), "surely without a structure"
    assert not doubt_weights(patients, case, usable, np.zeros(10), found).any()
    assert not doubt_weights(patients, case, ~usable, uncertain, found).any()


@pytest.mark.parametrize("count", [4, 5, 6, 10])
def test_phases_take_turns(count):
    """Two phases of every patient: whatever number is drawn, half of the cases are of each."""
    patients = [f"p{number // 2}" for number in range(20)]
    first = even_order([False] * 20, patients, count)[:count]
    late = sum(position % 2 for position in first)
    assert late in (count // 2, -(-count // 2)), "both phases"
    assert len({patients[position] for position in first}) == count, "a patient each"


@pytest.mark.parametrize("single", ["before", "between"])
@pytest.mark.parametrize("count", [6, 10, 20])
def test_patients_with_one_scan_leave_no_phase_out(single, count):
    """Ten patients with one scan and ten with three phases."""
    singles, pairs = [[f"s{n}"] for n in range(10)], [[f"p{n}"] * 3 for n in range(10)]
    between = [group for both in zip(singles, pairs, strict=True) for group in both]
    groups = singles + pairs if single == "before" else between
    patients = list(itertools.chain(*groups))
    phases = [n for group in groups for n in range(len(group))]
    first = even_order([False] * 40, patients, count)[:count]
    given = np.bincount([phases[p] for p in first if patients[p][0] == "p"], minlength=3)
    assert given.max() - given.min() <= 1, "phases in turns"


def test_the_order_of_very_many_scans_of_one_patient_takes_no_time():
    assert even_order([False] * 20_000, ["a"] * 20_000, 3)[:4] == [0, 1, 2, 3]


def test_phases_drawn_so_far_count():
    """Three first phases are drawn: the second phase of other patients comes next."""
    patients = [f"p{number // 2}" for number in range(12)]
    drawn = [position in (0, 2, 4) for position in range(12)]
    assert even_order(drawn, patients, 3)[:3] == [7, 9, 11]
    drawn = [position in (0, 2, 4, 7, 9, 11) for position in range(12)]
    assert even_order(drawn, patients, 2)[:2] == [3, 8], "then cases without a drawn slice"


@each("name", GRIDS)
@each("dim", ["2d", "3d"])
@each("spacing", [None, (1.9, 1.6, 1.6), (0.8, 0.7, 0.7)])
def test_slices_of_the_source_are_found_on_the_training_grid(name, dim, spacing):
    """An image that is its own slice index, seen through the training grid, gives the index
    back.
    """
    source = GRIDS[name]
    _, grid = preprocess_image([_noise(source)], plan_for(source, dim, spacing))
    k, j, i = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    indices = source.indices(
        grid.points(np.stack([i, j, k], -1))
    )  # of every training voxel, in the source
    for axis in range(3):
        along, rows = slice_operator(source, grid, axis)
        within = tuple(other for other in range(3) if other != along)
        assert rows.shape == (source.size[axis], grid.shape[along])
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
        assert indices[..., axis].std(within).max() < 1e-6, "one slice is one slice"
        seen = rows @ indices[..., axis].mean(within)
        inner = slice(3, -3) if source.size[axis] > 8 else slice(2, -2)
        np.testing.assert_allclose(seen[inner], np.arange(source.size[axis])[inner], atol=0.15)


def _noise(geometry):
    from MedSSLLib.images.geometry import Volume

    return Volume(np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32), geometry)


class Plain(torch.nn.Module):
    """An 'encoder' that gives the image, and every second voxel of it."""

    def __init__(self, dim):
        super().__init__()
        self.widths, self.strides = (1, 1), ((1,) * dim, (2,) * dim)

    def forward(self, x):
        return [x, x[(..., *(slice(None, None, 2) for _ in range(x.dim() - 2)))]]


@each("dim", [2, 3])
@each("axis", range(3))
@each("tile", [None, 60])
def test_profiles_are_means_within_slices(dim, axis, tile, monkeypatch):
    plan = plan_for(GRIDS["axial"], f"{dim}d", None)
    if tile:
        monkeypatch.setattr(slice_features, "TILE_VOXELS", {2: tile, 3: tile})
        plan = plan.model_copy(update={"patch": (2, 4, 3)[-dim:]})
    image = np.random.default_rng(1).normal(size=(1, 7, 6, 9)).astype(np.float32)
    fine, _ = slice_profiles(Plain(dim), image, plan, torch.device("cpu"), axis)
    expected = [float(np.take(image[0], n, axis).mean()) for n in range(image.shape[1 + axis])]
    np.testing.assert_allclose(fine[:, 0], expected, atol=1e-5)
    ramp = np.moveaxis(np.broadcast_to(np.arange(9.0), (9, 9, 9)), 2, axis)[None].astype(np.float32)
    if not tile:
        _, coarse = slice_profiles(Plain(dim), ramp, plan, torch.device("cpu"), axis)
        np.testing.assert_allclose(
            coarse[:, 0], np.arange(9), atol=1e-4, err_msg="coarse levels lie where they were"
        )


def test_levels_weigh_the_same_and_constant_channels_nothing():
    rng = np.random.default_rng(0)
    wide, narrow = 50 * rng.normal(size=(30, 8)), rng.normal(size=(30, 2)) + 3
    table = combined_profiles([np.c_[wide, np.full(30, 7.0)], narrow])
    assert table.shape == (30, 11) and (table[:, 8] == 0).all()
    np.testing.assert_allclose(table.mean(0), 0, atol=1e-6)
    assert (table[:, 9:] ** 2).sum(1).mean() == pytest.approx(1, abs=1e-5)
    assert (table[:, :9] ** 2).sum(1).mean() == pytest.approx(8 / 9, abs=1e-5)


def test_empty_slices_do_not_count_in_the_features():
    """Three kinds of slices, five of each, and as many empty ones as all these together."""
    usable = np.arange(30) < 15
    level = np.eye(3)[np.arange(30) % 3] + np.random.default_rng(0).normal(0, 0.02, (30, 3))
    few = combined_profiles([level[usable]])
    level[~usable] = -20
    table = combined_profiles([level], usable)
    np.testing.assert_allclose(table[usable], few, atol=1e-5)
    room = Candidates(np.arange(30), np.zeros(30, int), usable, ~np.ones(30, bool), 1)
    picks = representative(table, usable / 15, room, np.zeros(30, bool), 3)
    assert [len(pick.stands_for) for pick in picks] == [5, 5, 5]
    assert np.isfinite(combined_profiles([level], np.zeros(30, bool))).all(), "no slice is usable"


def test_axis_and_drawn_slices_of_a_case():
    thick = GRIDS["sagittal"]
    own = int(np.argmax(thick.spacing))
    plain = Case("a", (), role="unlabelled", annotated=Annotated.of([(1, [2])]))
    assert annotation_axis(plain, thick) == own and not annotated_along(plain, own, 5).any()
    drawn = Case(
        "a", (), label="x", role="labelled", annotated=Annotated.of([(0, [2]), (1, [1, 3])])
    )
    assert annotation_axis(drawn, thick) == 1
    assert np.flatnonzero(annotated_along(drawn, 1, 5)).tolist() == [1, 3]
    assert annotated_along(Case("a", (), label="x", role="labelled"), 2, 5).all(), "a dense label"
    assert not annotated_along(Case("a", (), label="x", role="unlabelled"), 2, 5).any(), (
        "a label that is not read"
    )


def test_empty_slices_are_those_that_hardly_vary():
    image = (
        np.random.default_rng(0).normal(size=(1, 6, 8, 8))
        * np.array([0, 1, 1, 1, 0.02, 1])[:, None, None]
    )
    assert not_empty(slice_spread(image, 0)).tolist() == [False, True, True, True, False, True]
    assert not_empty(slice_spread(np.zeros((1, 3, 4, 4)), 0)).tolist() == [False] * 3
