"""Changes of intensity against closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data import intensity
from MedSSLLib.data.intensity import Change, apply_intensity, sample_intensity
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import PLAIN

KINDS = {
    "blur": (0.5, 1.0),
    "low_resolution": (1.0, 2.0),
    "noise": (0.0, 0.1),
    "brightness": (0.75, 1.25),
    "contrast": (0.7, 1.3),
    "gamma": (0.7, 1.5),
}


def change(kind, strength, samples=(1,), seeds=(3,)):
    return {
        kind: Change(
            np.asarray(samples), np.full(len(samples), strength, np.float32), np.asarray(seeds)
        )
    }


def changed(images, changes):
    after = images.clone()
    apply_intensity(after, changes)
    return after


@pytest.fixture(params=[False, True], ids=["together", "one by one"], autouse=True)
def large(request, monkeypatch):
    """Large samples are changed one at a time, small ones together: both ways must pass every
    test.
    """
    if request.param:
        monkeypatch.setattr(intensity, "LARGE", 1)


@pytest.fixture(params=[(9, 11), (7, 9, 8)], ids=["2d", "3d"])
def images(request):
    return torch.randn(3, 2, *request.param, generator=torch.Generator().manual_seed(0))


@each("kind", KINDS)
def test_only_the_chosen_samples_change(images, kind):
    before = images.clone()
    after = changed(images, change(kind, 1.5 if kind == "low_resolution" else 0.8))
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])


def test_brightness_multiplies(images):
    torch.testing.assert_close(changed(images, change("brightness", 1.2))[1], images[1] * 1.2)


def test_contrast_stretches_about_the_mean(images):
    x = images[1]
    axes = tuple(range(1, x.dim()))
    mean, low, high = (
        x.mean(axes, keepdim=True),
        x.amin(axes, keepdim=True),
        x.amax(axes, keepdim=True),
    )
    torch.testing.assert_close(changed(images, change("contrast", 0.7))[1], mean + 0.7 * (x - mean))
    wide = changed(images, change("contrast", 1.3))[1]
    torch.testing.assert_close(wide, (mean + 1.3 * (x - mean)).clamp(low, high))


def test_gamma_keeps_both_ends_and_follows_the_power_law(images):
    x = images[1]
    axes = tuple(range(1, x.dim()))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    after = changed(images, change("gamma", 0.7))[1]
    torch.testing.assert_close(after, low + (high - low) * ((x - low) / (high - low)) ** 0.7)


def test_gamma_of_a_constant_image_changes_nothing():
    flat = torch.full((1, 1, 6, 6), 3.0)
    assert torch.equal(changed(flat, change("gamma", 1.4, samples=(0,))), flat)


def test_noise_has_the_variance_and_each_sample_its_own_seed():
    images = torch.zeros(4, 1, 80, 80)
    noisy = changed(images, change("noise", 0.09, samples=(0, 2), seeds=(5, 6)))
    assert abs(noisy[0].var() - 0.09) < 0.005 and abs(noisy[0].mean()) < 0.02
    assert not torch.equal(noisy[0], noisy[2])
    alone = changed(images[:1], change("noise", 0.09, samples=(0,), seeds=(6,)))
    assert torch.equal(alone[0], noisy[2]), (
        "noise must not depend on the other samples of the batch"
    )


@each("sigma", [0.5, 0.73, 1.0])
def test_blur_equals_scipy(images, sigma):
    expected = images[1:2].numpy().copy()
    for axis in range(2, images.dim()):
        expected = ndimage.gaussian_filter1d(expected, sigma, axis=axis, mode="nearest", radius=4)
    np.testing.assert_allclose(
        changed(images, change("blur", sigma))[1:2].numpy(), expected, atol=1e-6
    )


@each("factor", [1.0, 1.2, 1.5, 2.0])
def test_low_resolution_is_linear_interpolation_down_and_up(images, factor):
    mode = "bilinear" if images.dim() == 4 else "trilinear"
    few = [round(n / factor) for n in images.shape[2:]]
    small = F.interpolate(images[1:2], few, mode=mode, align_corners=False)
    expected = F.interpolate(small, list(images.shape[2:]), mode=mode, align_corners=False)
    found = changed(images, change("low_resolution", factor))[1:2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_every_sample_has_its_own_width(images):
    for kind, strength in (("blur", [0.5, 1.0]), ("low_resolution", [1.2, 2.0])):
        both = changed(
            images, {kind: Change(np.array([0, 2]), np.float32(strength), np.array([0, 0]))}
        )
        for sample, value in zip((0, 2), strength, strict=True):
            torch.testing.assert_close(
                both[sample], changed(images, change(kind, value, (sample,)))[sample]
            )


def test_blurring_comes_before_the_noise_and_the_scale_of_intensities_last(images):
    kinds = ["blur", "low_resolution", "noise", "brightness", "contrast", "gamma"]
    strength = {"noise": 0.05, "low_resolution": 1.5, "gamma": 1.4}
    changes = {kind: change(kind, strength.get(kind, 0.8))[kind] for kind in kinds}
    expected = images
    for kind in kinds:
        expected = changed(expected, {kind: changes[kind]})
    assert torch.equal(changed(images, dict(reversed(changes.items()))), expected)
    assert list(sample_intensity(np.random.default_rng(0), 2, PLAIN)) == kinds


@each("factor", [1.3, 1.5, 2.0])
@each("axis", [0, 1, 2])
def test_low_resolution_does_not_move_anything(factor, axis):
    """A linear ramp stays itself away from the edges: any shift would add a constant."""
    shape = [24, 24, 24]
    ramp = (
        torch.arange(24.0)
        .view([-1 if k == axis else 1 for k in range(3)])
        .expand(1, 1, *shape)
        .contiguous()
    )
    after = changed(ramp, change("low_resolution", factor, samples=(0,)))
    inner = (slice(3, -3),) * 3
    torch.testing.assert_close(after[0, 0][inner], ramp[0, 0][inner], rtol=0, atol=1e-4)


def test_low_resolution_smooths(images):
    assert changed(images, change("low_resolution", 2.0))[1].var() < 0.8 * images[1].var()


@each("kind", KINDS)
def test_strengths_and_probabilities_are_as_configured(kind):
    config = PLAIN.model_copy(update={kind: 0.3})
    changes = sample_intensity(np.random.default_rng(0), 20000, config)
    assert all(not c for name, c in changes.items() if name != kind)
    low, high = KINDS[kind]
    strength = changes[kind].strength
    assert abs(len(strength) / 20000 - 0.3) < 0.015
    assert low <= strength.min() < low + 0.01 and high - 0.01 < strength.max() <= high


def test_selecting_samples_equals_selecting_results():
    changes = sample_intensity(
        np.random.default_rng(1), 12, AugmentConfig(noise=0.6, blur=0.6, low_resolution=0.6)
    )
    images = torch.randn(12, 1, 10, 12)
    kept = np.array([1, 4, 5, 11])
    mine = {name: c.only(kept) for name, c in changes.items()}
    torch.testing.assert_close(changed(images[kept], mine), changed(images, changes)[kept])
