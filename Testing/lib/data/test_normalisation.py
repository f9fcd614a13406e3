"""Normalised intensities of the anatomy do not change with what surrounds it: property tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from MedSSLLib.data.plan import COMPRESSED_CT, CROPPED_CT, LINEAR_CT, make_plan
from MedSSLLib.data.preprocessing.normalisation import (
    HU_CENTRE,
    HU_SCALE,
    HU_WIDTH,
    GreyScale,
    grey_scale,
    normalise,
)
from MedSSLLib.images.geometry import Geometry
from Testing.lib.case_helpers import each

SHAPE = (24, 48, 44)


def scans():
    """Anatomy and scans of it: masked, masked and stored in few levels, in air, cut to tissue;
    CT in air, in air stored as one value, with an offset, and masked.
    """
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    centre = (np.array(SHAPE) - 1) / 2
    distance = np.linalg.norm((places - centre) / (0.85, 1.5, 1.4), axis=-1)
    body = distance < 13
    core = np.linalg.norm((places - centre - (1, 4, 3)) / (0.8, 1, 1), axis=-1) < 6
    texture = gaussian_filter(rng.normal(size=SHAPE), 1.2)
    texture /= texture.std()
    tissue = np.where(core, 150, 100) + 12 * texture
    noise = rng.normal(0, 4, (2, *SHAPE))
    hu = np.where(body, np.where(core, 120, 40) + 20 * texture, -1000 + rng.normal(0, 15, SHAPE))
    hu[(distance >= 13) & (distance < 14)] = -100
    found = {
        "MR masked": np.where(body, tissue, 0).astype(np.float32),
        "MR masked, integers": np.where(body, np.rint(tissue * 8), 0).astype(np.int16),
        "MR masked, 8 bit": np.where(body, np.rint(tissue), 0).clip(0, 255).astype(np.uint8),
        "MR masked, about zero": np.where(body, (tissue - 110) / 20, 0).astype(np.float32),
        "MR masked, not quite": np.where(body, tissue, rng.normal(0, 0.01, SHAPE)),
        "MR in air": np.hypot(np.where(body, tissue, 0) + noise[0], noise[1]).astype(np.float32),
        "MR of tissue": tissue.astype(np.float32),
        "MR of tissue, 8 bit": np.rint(tissue).clip(0, 255).astype(np.uint8),
        "CT in air": np.rint(hu).clip(-1024).astype(np.int16),
        "CT in one value": np.rint(np.where(hu > -500, hu, -1000)).astype(np.int16),
        "CT with an offset": (np.rint(hu).clip(-1024) + 1024).astype(np.int16),
        "CT masked": np.where(body, np.rint(30 + 8 * texture + 10 * core), 0).astype(np.int16),
    }
    return body, found


BODY, SCANS = scans()
every_scan = pytest.mark.parametrize("name", SCANS)
AROUND = ((3, 3), (6, 6), (5, 5))
INSIDE = tuple(slice(a, a + n) for (a, _), n in zip(AROUND, SHAPE, strict=True))


def changed(name, array, inside=(), *, but=60):
    """How far the anatomy's values are from those of the scan as it is, a few voxels left out."""
    modality = name[:2]
    base, now = normalise(SCANS[name], modality), normalise(array, modality)[inside]
    return np.sort(np.abs(now - base)[BODY])[:-but].max()


@every_scan
@each(("count", "amount"), [(1, -1.0), (1, -5000.0), (1, 50000.0), (5, -7.0), (20, -50.0)])
def test_stray_voxels(name, count, amount):
    array = SCANS[name].astype(np.float32)
    places = np.random.default_rng(1).choice(array.size, count, replace=False)
    places[0] = 0
    array.reshape(-1)[places] = (array.min() if amount < 0 else array.max()) + amount
    assert changed(name, array) < (0.05 if count == 1 else 0.15)


@every_scan
@each("value", [-3024, -2000, -1024, -1, 0, 55, 100, 4095, 32767])
def test_padding_of_any_value(name, value):
    array = np.pad(SCANS[name].astype(np.float32), AROUND, constant_values=value)
    alike = value == 100 and "8 bit" in name  # tissue of that value counts no more
    assert changed(name, array, INSIDE) < (0.1 if alike else 0.05)
    values = normalise(array, name[:2])
    around = np.ones(array.shape, bool)
    around[INSIDE] = False
    assert np.ptp(values[around]) == 0 and values[around][0] <= values.min() + 1e-6, "dark"


@every_scan
@each("value", [-2000, 3000])
def test_padding_of_one_side(name, value):
    array = np.pad(SCANS[name].astype(np.float32), ((0, 0), (0, 20), (0, 0)), constant_values=value)
    assert changed(name, array, (slice(None), slice(0, SHAPE[1]), slice(None))) < 0.05


@each("name", [name for name in SCANS if "tissue" not in name])
@each("value", [-3024, 5000])
def test_a_round_field_of_view(name, value):
    """The corners of CT reconstructions; the anatomy lies within."""
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    array = SCANS[name].astype(np.float32)
    array[:, ((rows - 23.5) / 24) ** 2 + ((columns - 21.5) / 22) ** 2 > 1] = value
    noisy = "in air" in name or "offset" in name  # noise counts, and less of it is left
    assert changed(name, array) < (0.35 if noisy else 0.05)


@every_scan
@each("border", [1, 20])
def test_empty_borders(name, border):
    least = float(SCANS[name].min()) if "masked" not in name else float(SCANS[name][0, 0, 0])
    array = np.pad(SCANS[name].astype(np.float32), border, constant_values=least)
    assert changed(name, array, (slice(border, -border),) * 3) < 0.05


@each("name", [name for name in SCANS if name.startswith("MR")])
@each(("scale", "offset"), [(7.0, 100.0), (0.01, -3.0), (1e4, 0.0)])
def test_positive_scaling_and_offset(name, scale, offset):
    assert changed(name, SCANS[name].astype(np.float64) * scale + offset, but=1) < 0.01


@each(
    ("name", "least"),
    [
        (name, 0.05 if "masked" in name else 0.01)
        for name in SCANS
        if name[:2] == "CT" and "offset" not in name
    ]
    + [(name, 0.1) for name in SCANS if name.startswith("MR masked")],
)
def test_a_cropped_field_of_view(name, least):
    """Where noise counts, as in MR in air, a crop that leaves less of it moves the values."""
    part = (slice(2, -2), slice(5, -5), slice(4, -4))
    base, now = (normalise(a, name[:2]) for a in (SCANS[name], SCANS[name][part]))
    assert np.sort(np.abs(now - base[part])[BODY[part]])[:-25].max() < least


def test_scans_without_background_keep_theirs():
    """A bright structure in tissue of one grey: the tissue is no background."""
    rng = np.random.default_rng(0)
    values = 100 + rng.normal(0, 6, (20, 30, 30))
    values[5:12, 8:16, 8:16] += 120
    low, high = np.percentile(values, (0.5, 99.5))
    clipped = values.clip(low, high)
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(normalise(values, "MR"), expected, atol=1e-4)
    whole = np.rint(values)
    assert grey_scale(whole, "MR").mean == pytest.approx(grey_scale(values, "MR").mean, abs=0.1)


def test_noise_around_a_scan_counts():
    """Of noise in whole numbers 0 is the most frequent, but not by far."""
    decaying = np.random.default_rng(3).exponential(4, SHAPE).astype(int)
    scan = np.where(BODY, np.rint(SCANS["MR of tissue"]), decaying)
    clipped = scan.clip(*np.percentile(scan, (0.5, 99.5)))
    scale = grey_scale(scan, "MR")
    assert (scale.mean, scale.deviation) == pytest.approx((clipped.mean(), clipped.std()), abs=0.01)


def test_tissue_of_the_value_of_padding_stays():
    """Padding of 100 around tissue that has voxels of 100 too."""
    body = np.rint(SCANS["MR of tissue"])
    values = normalise(np.pad(body, 4, constant_values=100.0), "MR")
    inner = values[4:-4, 4:-4, 4:-4][2:-2, 2:-2, 2:-2]
    own = inner[body[2:-2, 2:-2, 2:-2] == 100]
    assert np.mean(own > values.min() + 0.5) > 0.9 and values[0, 0, 0] == values.min()


def test_ct_is_scaled_alike_in_every_scan():
    hu = np.concatenate([np.full(500, -1000.0), np.linspace(-200, 300, 3000), np.full(500, 2500.0)])
    shuffled = np.random.default_rng(0).permutation(hu)
    array = shuffled.reshape(10, 20, 20)
    linear = (shuffled.clip(-1024, 325) + 200) / 300
    np.testing.assert_allclose(normalise(array, "CT", LINEAR_CT).ravel(), linear, atol=1e-6)
    soft = (shuffled - HU_CENTRE) / HU_WIDTH  # arcsinh as a logarithm, in float64
    expected = (np.log(soft + np.sqrt(soft**2 + 1)) - HU_SCALE[0]) / HU_SCALE[1]
    np.testing.assert_allclose(normalise(array, "CT").ravel(), expected, atol=1e-5)


def test_tissues_of_ct_stay_apart():
    """Fluid, white and grey matter, fat, lung, air, trabecular and cortical bone, metal."""
    tissues = np.array([-1024, -1000, -850, -100, 0, 8, 29, 37, 60, 150, 325, 700, 1500, 3000.0])
    array = np.random.default_rng(0).permutation(np.tile(tissues, 64)).reshape(8, 8, -1)
    first = [np.flatnonzero(array == tissue)[0] for tissue in tissues]
    old, new = (normalise(array, "CT", rule).ravel()[first] for rule in (LINEAR_CT, COMPRESSED_CT))
    assert (np.diff(new) > 0).all() and np.abs(new).max() < 3.5
    brain = (tissues >= 8) & (tissues <= 37)
    assert np.ptp(new[brain]) > 4 * np.ptp(old[brain])
    assert np.diff(new)[[1, 9, 10]].min() > 0.05, "air, lung and bone too"


@each("stray", [-1, -500])
def test_ct_with_an_offset_does_not_become_hounsfield_units_by_a_stray_voxel(stray):
    """Most of it is air, so that it is not taken for bone either."""
    scan = SCANS["CT with an offset"]
    air = np.random.default_rng(2).normal(24, 15, (60, *SHAPE[1:])).clip(0).astype(scan.dtype)
    array = np.concatenate([scan, air])
    array[3, 4, 5] = stray
    scale = grey_scale(array, "CT")
    assert scale.high > 900 and not scale.compressed
    assert grey_scale(SCANS["CT in air"], "CT").compressed


@each("fat", [0.0, 0.002, 0.02])
def test_crops_of_ct_with_little_fat_are_scaled_as_others(fat):
    """Tissue of an abdomen, a part of it fat; some fluid is noisy enough to lie below water."""
    rng = np.random.default_rng(3)
    array = rng.normal(20, 10, SHAPE)
    array[rng.random(SHAPE) < fat] = -100
    array[..., :4] = rng.normal(3, 8, (*SHAPE[:2], 4))
    array = array.round().astype(np.int16)
    assert grey_scale(array, "CT") == grey_scale(SCANS["CT in air"], "CT")
    before = grey_scale(array, "CT", COMPRESSED_CT)
    assert before.compressed == (fat > 0.005), "models of before see what they were trained on"
    plan = make_plan([Geometry((8, 8, 8))], modality="CT")
    assert plan.intensities == CROPPED_CT


def test_what_is_applied_to_parts_is_applied_to_the_whole():
    array = np.pad(SCANS["MR masked"], AROUND, constant_values=9000)
    scale = grey_scale(array, "MR")
    padding = scale.padding(array)
    parts = [scale.apply(array[n : n + 7], padding[n : n + 7]) for n in range(0, len(array), 7)]
    assert isinstance(scale, GreyScale) and scale.painted == ((9000.0, 9000.0),)
    np.testing.assert_array_equal(np.concatenate(parts), normalise(array, "MR"))
