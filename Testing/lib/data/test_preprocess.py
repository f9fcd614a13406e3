"""Preprocessed images against closed forms and naive loops; every voxel must stay where it is in
the patient.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.normalisation import normalise
from MedSSLLib.data.preprocessing.resampling import cubic
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import slice_axis
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import (
    GRIDS,
    SPACINGS,
    every_dim,
    every_grid,
    every_spacing,
    noise,
    plan_for,
    voxel_points,
)


@every_grid
@every_dim
@every_spacing
def test_intensities_stay_where_they_are(name, dim, spacing):
    """An image that is a linear function of the position in mm stays that function on the training
    grid.
    """
    source = GRIDS[name]
    slope = np.array([0.8, -0.5, 1.3])
    volume = Volume((voxel_points(source) @ slope).astype(np.float32), source)
    image, grid = preprocess_image(volume, plan_for(source, dim, SPACINGS[spacing]))
    assert image.dtype == np.float32 and image.shape == (1, *grid.shape)
    points = voxel_points(grid)
    reach = 2 * np.maximum(1, np.sort(grid.spacing).max() / np.array(source.spacing))
    index = source.indices(points)
    inner = ((index >= reach) & (index <= np.array(source.size) - 1 - reach)).all(-1)
    inner &= np.abs(image[0]) < 1  # away from the clipped ends
    assert inner.sum() > 150
    expected, found = (points @ slope)[inner], image[0][inner]
    fit = np.polyfit(expected, found, 1)
    assert fit[0] > 0
    shift = np.abs(np.polyval(fit, expected) - found).max() / fit[0] / np.linalg.norm(slope)
    assert shift < 0.05 * min(source.spacing)  # mm


@every_grid
@every_dim
@every_spacing
def test_grid_covers_the_source_and_its_axes_are_slice_first(name, dim, spacing):
    source = GRIDS[name]
    plan = plan_for(source, dim, SPACINGS[spacing])
    _, grid = preprocess_image(noise(source), plan)
    corners = grid.indices(source.corners())
    assert (corners >= -0.5).all() and (corners <= np.array(grid.size) - 0.5).all()
    directions = np.reshape(grid.direction, (3, 3))
    lead = np.abs(directions).argmax(0)[::-1]  # patient axis of d, h, w
    if name != "45 degrees":
        assert (directions.max(0) > -directions.min(0)).all()  # all towards L, P, S
        assert lead[1:].tolist() == [axis for axis in (2, 1, 0) if axis != lead[0]]
    if dim == "2d":
        own = np.reshape(source.direction, (3, 3))[:, slice_axis(source)]
        assert abs(directions[:, 2] @ own) == pytest.approx(1)
        assert grid.size[2] == source.size[slice_axis(source)]
        assert grid.spacing[2] == source.spacing[slice_axis(source)]
    else:
        assert lead[0] == plan.slice_axis or name == "45 degrees"


def test_2d_keeps_every_slice_as_it_is():
    source = GRIDS["sagittal"]
    volume = noise(source)
    image, grid = preprocess_image(volume, plan_for(source, "2d", None))
    axis = slice_axis(source)
    middle = voxel_points(source).take(0, 2 - axis).reshape(-1, 3).mean(0)
    number = int(np.rint(grid.indices(middle)[2]))
    theirs = np.sort(volume.array.take(0, 2 - axis).ravel())
    ours = np.sort(image[0, number].ravel())
    if image[0, number].size == theirs.size:
        assert np.corrcoef(theirs, ours)[0, 1] > 0.99
    assert len(image[0]) == source.size[axis]


def naive_resample(values, positions, ratio, kernel):
    """One axis by the definition: a sum over an infinite, edge-extended source."""
    width, n = max(ratio, 1.0), len(values)
    result = []
    for p in positions:
        total = weight = 0.0
        for index in range(-60, n + 60):
            k = float(kernel(np.array(abs(index - p) / width)))
            total, weight = total + k * values[min(max(index, 0), n - 1)], weight + k
        result.append(total / weight)
    return np.array(result)


@each("ratio", [0.55, 1.3, 2.7])
def test_resampling_equals_the_definition(ratio):
    source = Geometry((23, 1, 1), (1.0, 1.0, 1.0))
    n = int(np.ceil(23 * ratio**-1))
    plan = make_plan([Geometry((23, 23, 23))], modality="MR", dim="3d").model_copy(
        update={"spacing": (1.0, 1.0, ratio)}
    )
    raw = np.random.default_rng(1).normal(size=23)
    volume = Volume(raw.reshape(1, 1, 23).astype(np.float32), source)
    image, grid = preprocess_image(volume, plan)
    assert grid.size[0] == n
    positions = 11 + (np.arange(n) - (n - 1) / 2) * ratio
    expected = naive_resample(normalise(volume.array, "MR").ravel(), positions, ratio, cubic)
    np.testing.assert_allclose(image.ravel(), expected, atol=1e-5)


def test_cubic_kernel_interpolates_and_reproduces_parabolas():
    assert cubic(np.arange(4.0)).tolist() == [1, 0, 0, 0]
    offsets = np.arange(-2, 4)
    for t in (0.0, 0.3, 0.5, 0.9):
        weights = cubic(np.abs(offsets - t))
        assert [float(weights @ offsets**p) for p in (0, 1, 2)] == pytest.approx([1, t, t * t])


@each("ratio", [1.5, 2.0, 3.0])
def test_down_sampling_suppresses_what_the_grid_cannot_carry(ratio):
    n = 240
    plan = make_plan([Geometry((n, n, n))], modality="MR", dim="3d").model_copy(
        update={"spacing": (1.0, 1.0, ratio)}
    )

    def passed(cycles_per_voxel):
        wave = np.sin(2 * np.pi * cycles_per_voxel * np.arange(n) + 0.3).astype(np.float32)
        image, _ = preprocess_image(Volume(wave.reshape(1, 1, n), Geometry((n, 1, 1))), plan)
        return image[..., 5:-5].std() / normalise(wave, "MR").std()

    assert passed(0.1 / ratio) > 0.95
    assert passed(0.85 / ratio) < 0.25


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-4, 1e5), offset=st.floats(-10, 10))
def test_normalisation_ignores_the_grey_scale(scale, offset):
    raw = np.random.default_rng(0).gamma(2.0, size=(6, 20, 20))
    changed = (raw + offset) * scale
    np.testing.assert_allclose(normalise(changed, "MR"), normalise(raw, "MR"), atol=2e-3)


def test_normalised_values_and_outliers():
    raw = np.random.default_rng(0).normal(100, 10, size=(10, 40, 40))
    spiked = raw.copy()
    spiked[0, 0, :5] = 1e6
    for values in (normalise(raw, "MR"), normalise(spiked, "MR")):
        assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
        assert np.abs(values).max() < 4


def test_padding_does_not_change_the_values_inside():
    raw = np.random.default_rng(0).uniform(50, 200, size=(10, 40, 40))
    padded = np.pad(raw, ((0, 10), (40, 0), (0, 0)))
    np.testing.assert_allclose(normalise(padded, "MR")[:10, 40:], normalise(raw, "MR"), atol=0.02)


def test_ct_stored_with_an_offset_is_not_cut_to_one_value():
    hu = np.random.default_rng(0).uniform(-1000, 1000, size=(8, 20, 20))
    tissue = np.abs(hu) < 100
    assert normalise(hu + 1024, "CT")[tissue].std() > 0.05


def test_nearly_constant_images_stay_finite_in_half_precision():
    raw = np.zeros((20, 40, 40))
    raw[3, 4, 5] = 1e-3
    values = normalise(raw, "MR").astype(np.float16)
    assert np.isfinite(values).all() and values.max() > values.min()
    raw[raw == 0] = -1024
    raw[5:] = 40
    raw[6, 0, 0] = 300
    assert np.isfinite(normalise(raw, "CT").astype(np.float16)).all()


def test_constant_images_are_refused():
    with pytest.raises(InputError, match="constant"):
        normalise(np.full((4, 5, 6), 7.0), "MR")


def test_channels_are_normalised_each_by_itself():
    source = GRIDS["oblique"]
    first, second = noise(source, 0), Volume(noise(source, 1).array * 1000 + 5, source)
    plan = make_plan([source], modality=("MR", "CT"), channels=2)
    image, grid = preprocess_image([first, second], plan)
    assert image.shape == (2, *grid.shape)
    assert np.abs(image.mean((1, 2, 3))).max() < 0.3
    with pytest.raises(InputError, match="1 channels, expected 2"):
        preprocess_image(first, plan)
    with pytest.raises(InputError, match="channel 1 lies on another grid"):
        preprocess_image([first, noise(GRIDS["thick"])], plan)
