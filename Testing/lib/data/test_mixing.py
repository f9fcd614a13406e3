"""Mixing of two images by a rectangle: against naive loops, and what must hold of any mix."""

import numpy as np
import pytest
import torch

from MedSSLLib.data.mixing import (
    label_targets,
    labelled_mask,
    mixed,
    prediction_targets,
    rectangle_mask,
    sample_rectangles,
    sample_roles,
)
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.dice_ce import dice_ce_soft

PATCHES = [(9, 12), (5, 8, 7)]
N, K = 6, 4


def drawn(patch, seed=0, n=N, share=(0.4, 0.8)):
    low, high = sample_rectangles(np.random.default_rng(seed), n, patch, share)
    outside, alone = sample_roles(n)
    return [torch.from_numpy(x) for x in (low, high, outside, alone)]


def images(patch, seed, channels=2):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(N, channels, *patch)))


def labels(patch, seed, unknown=True):
    values = np.random.default_rng(seed).integers(0, K + unknown, (N, *patch))
    return torch.from_numpy(np.where(values == K, IGNORE, values).astype(np.uint8))


def naive_mask(low, high, outside, alone, patch):
    """Voxel by voxel."""
    result = np.zeros((len(low), *patch), bool)
    for sample in range(len(low)):
        for place in np.ndindex(*patch):
            corners = zip(place, low[sample].tolist(), high[sample].tolist(), strict=True)
            inside = all(a <= x < b for x, a, b in corners)
            result[(sample, *place)] = not alone[sample] and inside != bool(outside[sample])
    return result


@pytest.mark.parametrize("patch", PATCHES)
def test_the_mask_is_that_of_a_loop_over_voxels(patch):
    facts = drawn(patch)
    np.testing.assert_array_equal(
        labelled_mask(*facts, patch), naive_mask(*[x.numpy() for x in facts], patch)
    )


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("share", [(0.4, 0.8), (0.01, 0.02), (1.0, 1.0)])
def test_rectangles_lie_in_the_patch_and_have_the_sides_asked_for(patch, share):
    low, high = sample_rectangles(np.random.default_rng(1), 2000, patch, share)
    sides = np.asarray(patch)
    assert (low >= 0).all() and (high <= sides).all() and (high > low).all()
    got = (high - low) / sides
    assert (got >= share[0] - 0.5 / sides).all()
    assert (got <= np.maximum(share[1] + 0.5 / sides, 1 / sides)).all()
    for axis, size in enumerate(patch):  # no place is left out, and none is preferred
        start = low[:, axis][(high - low)[:, axis] == (high - low)[0, axis]]
        room = size - (high - low)[0, axis] + 1
        counts = np.bincount(start, minlength=room)
        assert len(counts) == room and counts.min() > 0.6 * counts.mean()


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_roles_take_turns_and_every_fourth_sample_is_alone(batch):
    """Also where batches are smaller than the period."""
    parts = [sample_roles(batch, step * batch) for step in range(24 // batch)]
    outside, alone = (np.concatenate(x) for x in zip(*parts, strict=True))
    assert alone.tolist() == [int(i % 4 == 3) for i in range(24)]
    assert not outside[alone == 1].any()
    assert outside[alone == 0].tolist() == [i % 2 for i in range(18)]
    outside, alone = sample_roles(8, 0, 0)
    assert not alone.any() and outside.tolist() == [0, 1] * 4


@pytest.mark.parametrize("patch", PATCHES)
def test_an_image_mixed_with_itself_is_the_image(patch):
    mask, image = labelled_mask(*drawn(patch), patch), images(patch, 2)
    assert torch.equal(mixed(mask, image, image), image)
    label = labels(patch, 3)
    assert torch.equal(mixed(mask, label, label), label)


@pytest.mark.parametrize("patch", PATCHES)
def test_each_side_gives_as_many_voxels_as_its_rectangle_says(patch):
    low, high, outside, alone = drawn(patch)
    mask = labelled_mask(low, high, outside, alone, patch)
    volume, whole = (high - low).prod(1), int(np.prod(patch))
    expected = torch.where(outside > 0, whole - volume, volume) * (1 - alone)
    assert torch.equal(mask.flatten(1).sum(1), expected)
    ones = mixed(mask, torch.ones(N, 1, *patch), torch.zeros(N, 1, *patch))
    assert torch.equal(ones.flatten(1).sum(1).long(), expected)


@pytest.mark.parametrize("patch", PATCHES)
def test_labels_follow_images_under_every_flip(patch):
    """Mixing flipped images with a flipped rectangle is the flipped mix, of images and labels
    alike.
    """
    low, high, outside, alone = drawn(patch)
    pairs = [(images(patch, 4), images(patch, 5)), (labels(patch, 6), labels(patch, 7))]
    for code in range(2 ** len(patch)):
        flipped = [axis for axis in range(len(patch)) if code >> axis & 1]
        lo, hi = low.clone(), high.clone()
        for axis in flipped:
            lo[:, axis], hi[:, axis] = patch[axis] - high[:, axis], patch[axis] - low[:, axis]
        for first, second in pairs:
            axes = [first.ndim - len(patch) + axis for axis in flipped]
            plain = mixed(labelled_mask(low, high, outside, alone, patch), first, second)
            turned = labelled_mask(lo, hi, outside, alone, patch)
            assert torch.equal(mixed(turned, first.flip(axes), second.flip(axes)), plain.flip(axes))


@pytest.mark.parametrize("patch", PATCHES)
def test_a_voxel_keeps_the_target_of_the_image_it_comes_from(patch):
    """Image values say which image, sample and place they are of; the mixed targets must agree."""
    mask = labelled_mask(*drawn(patch), patch)
    truth, guess = labels(patch, 8), labels(patch, 9)
    image = mixed(mask, truth[:, None].double(), 1000 + guess[:, None].double())[:, 0]
    targets = mixed(mask, label_targets(truth, K), label_targets(guess, K, 0.5))
    for place in np.ndindex(*image.shape):
        value = float(image[place])
        weight = 1.0 if value < 1000 else 0.5
        value %= 1000
        expected = [weight * float(c == value) for c in range(K)]
        sample, *rest = place
        assert targets[(sample, slice(None), *rest)].tolist() == expected


def test_unknown_voxels_stay_unknown():
    patch = (9, 12)
    mask = labelled_mask(*drawn(patch), patch)
    truth = torch.full((N, *patch), IGNORE, dtype=torch.uint8)
    truth[:, 4] = 1
    targets = mixed(mask, label_targets(truth, K), label_targets(labels(patch, 1, False), K, 0.5))
    weight = targets.sum(1)
    unknown = mask & (truth == IGNORE)
    assert unknown.any() and (weight[unknown] == 0).all()
    assert (weight[mask & (truth != IGNORE)] == 1).all() and (weight[~mask] == 0.5).all()
    logits = torch.randn(N, K, *patch, requires_grad=True)
    dice_ce_soft(logits, targets).backward()
    assert (logits.grad.abs().sum(1)[unknown] == 0).all()
    assert (logits.grad.abs().sum(1)[~unknown] > 0).all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_targets_of_a_teacher_against_a_loop(threshold):
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3] * K, size=(2, 5, 6)).transpose(0, 3, 1, 2)
    hard, soft = (
        prediction_targets(torch.from_numpy(p), 0.5, threshold, kind) for kind in ("hard", "soft")
    )
    for sample, y, x in np.ndindex(2, 5, 6):
        row = p[sample, :, y, x]
        counts = row.max() >= threshold
        best = [0.5 * counts * float(c == row.argmax()) for c in range(K)]
        np.testing.assert_allclose(hard[sample, :, y, x], best)
        np.testing.assert_allclose(soft[sample, :, y, x], 0.5 * counts * row)


def test_a_voxel_without_weight_stays_without():
    for kind in ("hard", "soft"):
        assert not prediction_targets(torch.zeros(1, K, 3, 3), 1.0, 0.0, kind).any()


def test_an_empty_rectangle_is_no_mix():
    none = torch.zeros(1, 2, dtype=torch.int64)
    assert not rectangle_mask(none, none, (4, 5)).any()
