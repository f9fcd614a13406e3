"""Preprocessed labels against the definition; what counts stays exactly what was annotated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.label import label_on_grid, preprocess_label
from MedSSLLib.data.preprocessing.resampling import linear
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume, orient
from MedSSLLib.images.labels import IGNORE
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import (
    GRIDS,
    ORIGIN,
    SPACINGS,
    every_dim,
    every_grid,
    every_spacing,
    noise,
    plan_for,
    rotation,
    three_blobs,
    voxel_points,
)


@every_grid
@every_dim
@every_spacing
def test_labels_stay_where_they_are(name, dim, spacing):
    source = GRIDS[name]
    volume = three_blobs(source)
    _, grid = preprocess_image(noise(source), plan_for(source, dim, SPACINGS[spacing]))
    label = preprocess_label(volume, grid)
    assert label.dtype == np.uint8 and label.shape == grid.shape
    tolerance = 0.2 * max(*source.spacing, *grid.spacing)
    for value in (1, 2, 3):
        there = voxel_points(source)[volume.array == value].mean(0)
        here = voxel_points(grid)[label == value].mean(0)
        assert np.linalg.norm(there - here) < tolerance
    back = io.resample_volume(Volume(label, grid), source, interpolation="nearest").array
    inside = volume.array > 0
    overlap = 2 * np.sum((back == volume.array) & inside) / (inside.sum() + np.sum(back > 0))
    unchanged = sorted(source.spacing) == sorted(grid.spacing)
    assert overlap == 1 if unchanged else overlap > 0.85


@each("angles", [(45, 0, 0), (0, 45, 0), (0, 0, 45)])
def test_labels_find_their_grid_where_two_orientations_are_equally_near(angles):
    source = Geometry((15, 14, 13), (1.0, 1.2, 0.9), ORIGIN, rotation(*angles))
    letters = itertools.product("LR", "PA", "SI")
    for code in ("".join(order) for signs in letters for order in itertools.permutations(signs)):
        stored = orient(three_blobs(source), code)
        _, grid = preprocess_image(noise(stored.geometry), plan_for(stored.geometry, "2d", None))
        back = io.resample_volume(
            Volume(preprocess_label(stored, grid), grid), source, interpolation="nearest"
        ).array
        assert np.mean(back == three_blobs(source).array) > 0.97


def naive_label(volume, grid):
    """Class map by the definition, voxel by voxel, for grids with the directions of the source."""
    source, array = volume.geometry, volume.array
    result = np.full(grid.shape, IGNORE, np.uint8)
    ratio = np.array(grid.spacing) / source.spacing
    axes = [np.arange(n) for n in source.size]
    for k, j, i in np.ndindex(*grid.shape):
        p = source.indices(grid.points(np.array([i, j, k])))
        clipped = np.clip(p, 0, np.array(source.size) - 1)
        near = [np.abs(axis - x) <= r / 2 + 1e-6 for axis, x, r in zip(axes, p, ratio, strict=True)]
        for axis in range(3):
            near[axis][int(np.rint(clipped[axis]))] = True
        inside = near[2][:, None, None] & near[1][:, None] & near[0]
        if (array[inside] == IGNORE).all():
            continue
        weights = []
        for axis in range(3):
            indices = np.arange(-40, source.size[axis] + 40)
            k_1d = linear(np.abs(indices - p[axis]) / max(ratio[axis], 1))
            row = np.zeros(source.size[axis])
            np.add.at(row, indices.clip(0, source.size[axis] - 1), k_1d)
            weights.append(row)
        weight = weights[2][:, None, None] * weights[1][:, None] * weights[0]
        shares = [weight[array == value].sum() for value in range(4)]
        result[k, j, i] = int(np.argmax(np.round(shares, 9)))
    return result


@each("spacing", [(1.0, 1.0, 1.0), (0.71, 0.637, 0.813), (2.13, 1.71, 1.437), (0.613, 1.91, 1.0)])
@each("sparse", [False, True])
def test_label_resampling_equals_the_definition(spacing, sparse):
    rng = np.random.default_rng(3)
    source = Geometry((9, 5, 7), (1.0, 1.0, 1.0), ORIGIN, rotation(4, 5, 6))
    array = rng.integers(0, 4, source.shape).astype(np.uint8)
    if sparse:
        array[rng.random(source.shape) < 0.4] = IGNORE
        array[1] = array[4:6] = IGNORE
    plan = plan_for(source, "3d", spacing)
    volume = Volume(array, source)
    _, grid = preprocess_image(noise(source), plan)
    expected, (found, small) = naive_label(volume, grid), label_on_grid(volume, grid)
    assert (found[expected == IGNORE] == IGNORE).all()
    lost = sum(one.kept + one.unknown for one in small.values())
    ties = 0.005 * found.size  # exact ones may fall either way
    assert np.sum(expected != found) <= ties + 2 * lost and lost < 20


def test_annotated_slices_stay_exact_on_the_same_slices():
    source = GRIDS["thick"]
    volume = three_blobs(source)
    array = volume.array.copy()
    array[[0, 1, 3, 4, 6, 7]] = IGNORE
    _, grid = preprocess_image(noise(source), plan_for(source, "2d", (0.0, 0.6, 0.6)))
    label = preprocess_label(Volume(array, source), grid)
    full = preprocess_label(volume, grid)
    assert (label == IGNORE).all((1, 2)).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert (label[[2, 5]] != IGNORE).all()
    np.testing.assert_array_equal(label[[2, 5]], full[[2, 5]])


@each("number", range(12))
def test_no_annotated_slice_is_lost_on_a_coarser_grid(number):
    source = Geometry((20, 20, 12), (1.0, 1.0, 1.0))
    array = np.full(source.shape, IGNORE, np.uint8)
    array[number] = 0
    array[number, 5:15, 5:15] = 1
    _, grid = preprocess_image(noise(source), plan_for(source, "3d", (3.0, 1.0, 1.0)))
    label = preprocess_label(Volume(array, source), grid)
    annotated = [k for k in range(4) if (label[k] != IGNORE).any()]
    assert annotated == [number // 3]
    np.testing.assert_array_equal(label[number // 3], array[number])


def test_finer_slices_count_only_next_to_an_annotated_one():
    source = Geometry((20, 20, 9), (1.0, 1.0, 3.0))
    array = np.full(source.shape, IGNORE, np.uint8)
    array[4] = 1
    _, grid = preprocess_image(noise(source), plan_for(source, "3d", (1.0, 1.0, 1.0)))
    label = preprocess_label(Volume(array, source), grid)
    assert np.flatnonzero((label != IGNORE).any((1, 2))).tolist() == [12, 13, 14]
    assert (label[12:15] == 1).all()


def test_a_label_of_another_direction_is_a_mistake():
    _, grid = preprocess_image(noise(GRIDS["oblique"]), plan_for(GRIDS["oblique"], "3d", None))
    with pytest.raises(ValueError, match="directions"):
        preprocess_label(three_blobs(GRIDS["axial"]), grid)
