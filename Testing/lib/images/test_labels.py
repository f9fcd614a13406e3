"""Sparse annotation against naive loops, and label values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import (
    IGNORE,
    Annotated,
    class_indices,
    counted_mask,
    label_values,
    simulate_annotation,
    slice_axis,
    sparse_label,
)
from Testing.lib.case_helpers import each

SHAPE = (5, 4, 3)  # k, j, i


class TestAnnotated:
    def test_pairs_are_merged_and_sorted(self) -> None:
        assert Annotated.of([(2, [9, 3]), (0, [1]), (2, [3])]).slices == ((0, (1,)), (2, (3, 9)))
        assert Annotated.of([(2, [9, 3]), (0, [1])]).count == 3
        assert Annotated.of([(1, [])]) == Annotated(())

    def test_json_round_trip(self) -> None:
        annotated = Annotated.of([(2, [9, 3]), (0, [1])])
        assert annotated.to_json() == [{"axis": 0, "indices": [1]}, {"axis": 2, "indices": [3, 9]}]
        assert Annotated.from_json(annotated.to_json()) == annotated

    @each(
        "entries",
        [
            3,
            "x",
            [1],
            [{"axis": 2}],
            [{"axis": 3, "indices": [1]}],
            [{"axis": 2, "indices": [-1]}],
            [{"axis": 2, "indices": [1.5]}],
            [{"axis": "2", "indices": [1]}],
            [{"axis": 2, "indices": [True]}],
            [{"axis": None, "indices": ["a"]}],
            {"axis": 2},
        ],
    )
    def test_malformed_json(self, entries: object) -> None:
        with pytest.raises(InputError):
            Annotated.from_json(entries)


slices = st.dictionaries(st.integers(0, 2), st.sets(st.integers(0, 2)), max_size=3)


@given(slices)
def test_counted_mask_against_a_loop(chosen: dict[int, set[int]]) -> None:
    mask = counted_mask(SHAPE, Annotated.of(chosen.items()))
    for k, j, i in np.ndindex(SHAPE):
        expected = any((i, j, k)[axis] in indices for axis, indices in chosen.items())
        assert mask[k, j, i] == expected


def test_without_a_record_everything_counts() -> None:
    assert counted_mask(SHAPE, None).all()
    assert np.array_equal(sparse_label(np.ones(SHAPE, np.uint8), None), np.ones(SHAPE))


def test_background_counts_on_annotated_slices_and_nothing_elsewhere() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[2, 1, 1] = 2
    sparse = sparse_label(label, Annotated.of([(2, [2])]))
    assert (sparse[2] == label[2]).all()
    assert (np.delete(sparse, 2, axis=0) == IGNORE).all()
    assert label[0, 0, 0] == 0  # the input is left alone


def test_slices_outside_the_volume_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[3, 8\] lie outside.*axis i has 3"):
        counted_mask(SHAPE, Annotated.of([(0, [2, 3, 8])]))


class TestSimulateAnnotation:
    def test_slices_are_the_middles_of_equal_parts(self) -> None:
        label = np.zeros((30, 4, 4), np.uint8)
        label[6:18, 1, 1] = 1  # 12 slices: thirds are 6-9, 10-13, 14-17
        assert simulate_annotation(label, 3, 2).slices == ((2, (8, 12, 16)),)
        assert simulate_annotation(label, 1, 2).slices == ((2, (12,)),)

    @given(st.integers(0, 10), st.integers(1, 12), st.integers(1, 15), st.integers(0, 2))
    def test_properties(self, start: int, extent: int, n: int, axis: int) -> None:
        label = np.zeros((23, 23, 23), np.uint8)
        np.moveaxis(label, 2 - axis, 0)[start : start + extent, 3, 4] = 3
        ((found, indices),) = simulate_annotation(label, n, axis).slices
        gaps = np.diff(indices)
        assert found == axis
        assert len(indices) == min(n, extent)
        assert start <= min(indices) and max(indices) < start + extent
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
        assert abs((indices[0] - start) - (start + extent - 1 - indices[-1])) <= 1

    def test_ignored_voxels_are_no_foreground(self) -> None:
        label = np.full((6, 3, 3), IGNORE, np.uint8)
        label[3] = 1
        assert simulate_annotation(label, 5, 2).slices == ((2, (3,)),)

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="empty"):
            simulate_annotation(np.zeros(SHAPE), 3, 2)
        with pytest.raises(InputError, match="0 annotated slices"):
            simulate_annotation(np.ones(SHAPE), 0, 2)


@each(
    ("spacing", "axis"),
    [
        ((1, 1, 1), 2),
        ((1, 1, 5), 2),
        ((4, 1, 1), 0),
        ((1, 3, 1), 1),
        ((2, 2, 1), 2),
        ((2, 1, 2), 2),
        ((0.5, 0.7, 0.6), 1),
        ((1.0000001, 1, 1), 2),
    ],
)
def test_slice_axis(spacing: tuple[float, float, float], axis: int) -> None:
    assert slice_axis(Geometry((4, 4, 4), spacing)) == axis


class TestClassIndices:
    @given(
        hnp.arrays(
            st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.int64]),
            (3, 2, 2),
            elements=st.sampled_from([0, 2, 7, 100]),
        )
    )
    def test_position_in_sorted_values(self, label: np.ndarray) -> None:
        classes = class_indices(label, [7, 0, 100, 2])
        assert classes.dtype == np.uint8
        assert classes.shape == label.shape
        assert all(classes[at] == [0, 2, 7, 100].index(label[at]) for at in np.ndindex(label.shape))

    def test_values_far_apart(self) -> None:
        label = np.array([[[0, 2_000_000_000, 5]]], np.int64)
        assert class_indices(label, [0, 5, 2_000_000_000]).tolist() == [[[0, 2, 1]]]

    def test_ignored_value(self) -> None:
        label = np.array([[[0, 1, 4, 255]]], np.uint8)
        assert class_indices(label[..., :3], [0, 1], ignore=4).tolist() == [[[0, 1, IGNORE]]]
        assert class_indices(label, [0, 1, 4], ignore=255).tolist() == [[[0, 1, 2, IGNORE]]]

    def test_unknown_values_are_named(self) -> None:
        with pytest.raises(InputError, match=r"unknown values \[-1, 3\], known are \[0, 1\]"):
            class_indices(np.array([[[0, 1, 3, -1]]]), [0, 1])

    @each("bad", [0.5, np.nan, np.inf])
    def test_fractions_are_refused(self, bad: float) -> None:
        with pytest.raises(InputError, match="not whole numbers"):
            class_indices(np.array([[[0, bad]]]), [0, 1])

    def test_too_many_classes(self) -> None:
        with pytest.raises(InputError, match="256 classes"):
            class_indices(np.zeros((1, 1, 1), int), list(range(256)))


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.bool_, np.float32]),
        (2, 3, 4),
        elements=st.integers(0, 1),
    )
)
def test_label_values(label: np.ndarray) -> None:
    assert label_values(label) == tuple(sorted({int(value) for value in label.ravel()}))


@each(
    ("n", "kept"),
    [
        (1, ((2, (9,)),)),
        (2, ((2, (5, 11)),)),
        (4, ((0, (4,)), (2, (5, 9, 11)))),
        (9, ((0, (4,)), (2, (5, 9, 11)))),
    ],
)
def test_fewer_slices_are_some_of_those_that_were_drawn(n: int, kept: tuple) -> None:
    """Of the slices i4, k5, k9, k11: the middle ones of n equal parts, never a slice between
    them.
    """
    assert Annotated.of([(2, [5, 9, 11]), (0, [4])]).thinned(n).slices == kept


def test_partly_drawn_slices_are_among_the_annotated_ones_and_come_back():
    some = Annotated.of([(2, [3, 9])], [(2, [9, 4]), (0, [1])])
    assert some.slices == ((0, (1,)), (2, (3, 4, 9))) and some.partly == ((0, (1,)), (2, (4, 9)))
    assert some.count == 4 and some.whole == Annotated.of([(2, [3])])
    written = [
        {"axis": 0, "indices": [1], "partly": [1]},
        {"axis": 2, "indices": [3, 4, 9], "partly": [4, 9]},
    ]
    assert some.to_json() == written and Annotated.from_json(written) == some
    plain = [{"axis": 2, "indices": [3]}]
    assert Annotated.from_json(plain).to_json() == plain, "older projects are written unchanged"
    assert Annotated.from_json(plain).partly == ()


def test_thinned_slices_stay_partly_drawn():
    some = Annotated.of([(2, [1, 3, 5, 7])], [(2, [3])])
    assert some.thinned(2) == Annotated.of([(2, [3, 7])], [(2, [3])])


@each(
    "entries",
    [
        [{"axis": 2, "indices": [1], "partly": "x"}],
        [{"axis": 2, "indices": [1], "partly": [True]}],
        ["x"],
    ],
)
def test_malformed_records_of_partly_drawn_slices_are_refused(entries):
    with pytest.raises(InputError, match="malformed"):
        Annotated.from_json(entries)
