"""Shapes between drawn slices: closed forms, invariance, and what is drawn stays drawn."""

import numpy as np
import pytest

from MedSSLLib.images.labels import IGNORE, Annotated, sparse_label
from MedSSLLib.images.shape_interpolation import (
    TAPER,
    Softness,
    log_prior,
    shape_distances,
    signed_distance,
    with_known_shapes,
    with_shapes,
)
from Testing.lib.case_helpers import each

SOFT = Softness()


def disc(radius, centre=(32, 32), size=65, spacing=(1.0, 1.0)):
    y, x = np.ogrid[:size, :size]
    return ((y - centre[0]) * spacing[0]) ** 2 + ((x - centre[1]) * spacing[1]) ** 2 <= radius**2


def stack(slices, count, spacing=(1.0, 1.0, 1.0), classes=2):
    """Interpolated class map and distances of class maps drawn at given k."""
    label = np.zeros((count, *next(iter(slices.values())).shape), np.uint8)
    for z, drawn in slices.items():
        label[z] = drawn
    annotated = Annotated.of([(2, slices)])
    distances, gap = shape_distances(sparse_label(label, annotated), annotated, spacing, classes)
    return distances.argmax(0), distances, gap


def radius(mask, spacing=1.0):
    return np.sqrt(mask.sum() / np.pi) * spacing


def test_the_signed_distance_is_that_to_a_circle_and_to_a_half_plane():
    y, x = np.ogrid[:65, :65]
    exact = 20 - np.hypot(y - 32, x - 32)
    assert np.abs(signed_distance(disc(20), (1, 1)) - exact).max() < 0.8, "within a pixel's width"
    half = np.arange(10) < 4
    plane = signed_distance(np.tile(half, (5, 1)), (1.0, 2.5))
    assert np.allclose(
        np.diff(plane[0]), [-2.5, -2.5, -2.5, -4, -2.5, -2.5, -2.5, -2.5, -2.5], atol=1.6
    )
    assert (plane[0] > 0).tolist() == half.tolist()


def test_two_discs_give_the_mean_radius_half_way_and_every_radius_between():
    shapes, _, gap = stack({0: disc(10), 10: disc(26)}, 11)
    assert radius(shapes[5]) == pytest.approx(18, abs=0.35)
    for z in range(11):
        assert radius(shapes[z]) == pytest.approx(10 + 1.6 * z, abs=0.5)
    sizes = shapes.sum((1, 2))
    assert (np.diff(sizes) > 0).all(), "concentric shapes grow monotonically"
    assert gap[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]


def test_the_same_shape_on_two_slices_stays_that_shape():
    rng = np.random.default_rng(0)
    blob = disc(12) | disc(9, (40, 44)) | (rng.random((65, 65)) > 0.999)
    shapes, _, _ = stack({1: blob, 6: blob}, 8)
    assert all(np.array_equal(shapes[z], blob) for z in range(1, 7))


def test_a_tilted_tube_keeps_its_section_and_follows_its_axis():
    """Two discs that do not overlap: plain interpolation of distances would leave nothing between
    them.
    """
    shapes, _, _ = stack({0: disc(6, (16, 20)), 8: disc(6, (48, 44))}, 9)
    for z in range(9):
        middle = np.argwhere(shapes[z]).mean(0)
        assert np.allclose(middle, (16 + 4 * z, 20 + 3 * z), atol=0.3)
        assert radius(shapes[z]) == pytest.approx(6, abs=0.5)


def test_a_class_on_one_of_two_slices_tapers_off_half_way():
    """(1 - t)(r - rho) - t r = 0: its radius at share t is r (1 - 2 t) / (1 - t)."""
    for slices, shares in (
        ({0: disc(24), 12: disc(0) & False}, np.arange(13) / 12),
        ({0: disc(0) & False, 12: disc(24)}, 1 - np.arange(13) / 12),
    ):
        shapes, _, _ = stack(slices, 13)
        for z, t in enumerate(shares):
            expected = 24 * (1 - 2 * t) / (1 - t) if t < 0.5 else 0
            assert radius(shapes[z]) == pytest.approx(expected, abs=0.6)


def test_beyond_the_last_slice_the_outline_shrinks_by_the_taper_in_mm():
    shapes, _, gap = stack({4: disc(20)}, 20, spacing=(1.0, 1.0, 3.0))
    for z in range(20):
        away = abs(z - 4) * 3.0
        assert gap[z, 0, 0] == away
        assert radius(shapes[z]) == pytest.approx(max(0.0, 20 - TAPER * away), abs=0.6)


@each("axis", [0, 1, 2])
def test_drawn_slices_are_reproduced_on_every_axis_with_many_classes(axis):
    rng = np.random.default_rng(axis)
    label = np.kron(rng.integers(0, 4, (4, 5, 6)), np.ones((3, 3, 3), int)).astype(np.uint8)
    annotated = Annotated.of([(axis, [1, 6, 10])])
    distances, gap = shape_distances(sparse_label(label, annotated), annotated, (0.7, 1.2, 4.0), 4)
    drawn = gap == 0
    assert drawn.sum() == 3 * label.size / label.shape[2 - axis]
    assert np.array_equal(distances.argmax(0)[drawn], label[drawn])
    assert np.array_equal(log_prior(distances, gap, SOFT).argmax(0)[drawn], label[drawn])


def test_slices_on_two_axes_are_both_reproduced():
    label = np.zeros((12, 14, 16), np.uint8)
    label[3:9, 4:11, 5:12] = 1
    annotated = Annotated.of([(2, [2, 5, 8]), (0, [7])])
    distances, gap = shape_distances(sparse_label(label, annotated), annotated, (1.0, 1.0, 1.0), 2)
    assert np.array_equal(distances.argmax(0)[gap == 0], label[gap == 0])
    naive = np.minimum(
        np.abs(np.arange(12)[:, None] - [2, 5, 8]).min(1)[:, None], np.abs(np.arange(16) - 7)
    )
    assert np.array_equal(gap, np.broadcast_to(naive[:, None], label.shape).astype(np.float32))


def test_reversing_or_transposing_the_volume_reverses_or_transposes_the_answer():
    rng = np.random.default_rng(5)
    label = np.kron(rng.integers(0, 3, (5, 4, 4)), np.ones((2, 4, 4), int)).astype(np.uint8)
    annotated, spacing = Annotated.of([(2, [1, 5, 8])]), (0.8, 1.1, 2.0)
    sparse = sparse_label(label, annotated)
    plain, _ = shape_distances(sparse, annotated, spacing, 3)
    back, _ = shape_distances(sparse[::-1], Annotated.of([(2, [1, 4, 8])]), spacing, 3)
    assert np.allclose(back[:, ::-1], plain, atol=1e-3)
    turned, _ = shape_distances(
        np.moveaxis(sparse, 0, 2), Annotated.of([(0, [1, 5, 8])]), (2.0, 0.8, 1.1), 3
    )
    assert np.allclose(np.moveaxis(turned, 3, 1), plain, atol=1e-3)


def test_pixels_that_do_not_count_on_a_drawn_slice_take_the_nearest_class():
    drawn = disc(20).astype(np.uint8)
    holed = drawn.copy()
    holed[30:34, 30:34] = IGNORE
    annotated = Annotated.of([(2, [1])])
    label = np.full((3, 65, 65), IGNORE, np.uint8)
    label[1] = holed
    distances, _ = shape_distances(label, annotated, (1.0, 1.0, 1.0), 2)
    assert np.array_equal(distances.argmax(0)[1], drawn)


def test_a_slice_that_one_class_fills_and_a_class_never_drawn_are_finite():
    full = np.ones((9, 9), np.uint8)
    shapes, distances, gap = stack({0: full, 4: full}, 6, classes=3)
    assert np.isfinite(distances).all() and np.isfinite(log_prior(distances, gap, SOFT)).all()
    assert (shapes[:5] == 1).all()


def test_probabilities_are_normalised_and_soften_away_from_drawn_slices():
    """Of two classes, p = 1 / (1 + exp(-2 d / (edge + spread gap))), the distances being d and
    -d.
    """
    _, distances, gap = stack({0: disc(20), 20: disc(20)}, 21)
    soft = Softness(edge=1.5, spread=0.3)
    p = np.exp(log_prior(distances, gap, soft))
    assert np.allclose(p.sum(0), 1, atol=1e-5)
    expected = 1 / (1 + np.exp(-2 * distances[1] / (1.5 + 0.3 * gap)))
    assert np.allclose(p[1], expected, atol=1e-5)
    assert p[1, 10, 32, 32] < p[1, 0, 32, 32] and p[1, 10, 32, 0] > p[1, 0, 32, 0]


def two_balls():
    """Two balls, left and right of the middle plane i = 20, as two classes."""
    k, j, i = np.ogrid[:33, :33, :41]
    ball = lambda x: (k - 16) ** 2 + (j - 16) ** 2 + (i - x) ** 2 <= 81  # noqa: E731
    return (ball(10) + 2 * ball(30)).astype(np.uint8)


@pytest.mark.parametrize("sagittal", [20, 10])
def test_a_slice_without_a_structure_does_not_erase_it_elsewhere(sagittal):
    label, axial = two_balls(), (2, [8, 12, 16, 20, 24])
    shapes = []
    for drawn in ([axial], [axial, (0, [sagittal])]):
        annotated = Annotated.of(drawn)
        distances, gap = shape_distances(
            sparse_label(label, annotated), annotated, (1.0, 1.0, 1.0), 3
        )
        shapes.append(distances.argmax(0))
        away = gap > 0
    for value in (1, 2):
        one, two, truth = (((x == value) & away).sum() for x in (*shapes, label))
        assert abs(int(two) - int(truth)) <= 0.15 * truth and abs(int(two) - int(one)) <= 0.15 * one


def test_no_voxel_is_further_inside_a_structure_than_a_slice_without_it_is_away():
    """Two pieces of one class at different heights: interpolation alone bridges them, the slice
    between forbids it.
    """
    label = np.zeros((13, 33, 33), np.uint8)
    label[2], label[10] = disc(6, (16, 8), 33), disc(6, (16, 24), 33)
    drawn = (Annotated.of([(2, [2, 10])]), Annotated.of([(2, [2, 10]), (0, [16])]))
    found = [shape_distances(sparse_label(label, a), a, (1.0, 1.0, 1.0), 2)[0][1] for a in drawn]
    away = np.abs(np.arange(33) - 16) - 0.5
    assert (found[0] > away).any() and (found[1] <= away).all()


def test_beyond_a_slice_without_it_a_structure_is_unlikely_not_impossible():
    label = np.zeros((12, 33, 33), np.uint8)
    label[2] = disc(8, (16, 16), 33)
    annotated = Annotated.of([(2, [2, 5])])
    distances, gap = shape_distances(sparse_label(label, annotated), annotated, (1.0, 1.0, 3.0), 2)
    prior = log_prior(distances, gap, SOFT)[1]
    assert (prior[6:] < np.log(0.4)).all() and (prior[7:] > np.log(0.01)).all()


@each("drawn", [{4: 1, 12: 1}, {4: 0, 12: 0}, {4: 1, 12: 2}])
def test_outside_the_shapes_a_class_that_no_slice_shows_is_as_likely_as_the_network_says(drawn):
    """Where all classes are shown this is the product alone, where none is the network alone."""
    rng = np.random.default_rng(0)
    network = np.moveaxis(rng.dirichlet([1, 1, 1], (40, 33, 33)), 3, 0).astype(np.float32)
    label, annotated = np.full((40, 33, 33), IGNORE, np.uint8), Annotated.of([(2, drawn)])
    for z, value in drawn.items():
        label[z] = value * disc(8, (16, 16), 33)
    label[30] = 2  # not on a drawn slice
    known, plain = (
        how(network, label, annotated, (1.0, 1.0, 3.0)) for how in (with_known_shapes, with_shapes)
    )
    unseen = {1, 2} - set(drawn.values())
    assert np.allclose(known.sum(0), 1, atol=1e-5)
    if len(unseen) == 1:
        assert np.allclose(known[2] * network[0], known[0] * network[2], atol=1e-4)
        merged = np.stack([network[0] + network[2], network[1]])
        apart = with_shapes(merged, np.where(label == 2, 0, label), annotated, (1.0, 1.0, 3.0))
        assert np.allclose(known[1], apart[1], atol=1e-3)
        far = (slice(None), slice(20, None), 0, 0)
        odds = [values[far][2] / values[far][0] for values in (plain, network)]
        assert (odds[0] < 0.2 * odds[1]).all(), "which the product alone would hide"
    else:
        assert np.allclose(known, network if unseen else plain, atol=1e-5)
