"""The conditional random field: a naive loop, closed forms, edges of the image, thick slices,
pseudo-labels.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.selftraining import crf
from MedSSLLib.selftraining.cleaning import smooth
from MedSSLLib.selftraining.crf import mean_field
from Testing.lib.case_helpers import each


def naive(probabilities, image, spacing, rounds):
    """Every voxel, every partner within the window, one update at a time."""
    image, finest = image / image.std(), min(spacing)
    voxels = list(itertools.product(*map(range, image.shape)))
    current = probabilities.copy()
    for _ in range(rounds):
        updated = np.empty_like(current)
        for a in voxels:
            message, total = np.zeros(len(probabilities)), 0.0
            for b in voxels:
                steps = [(p - q) * mm / finest for p, q, mm in zip(a, b, spacing, strict=True)]
                if a == b or max(map(abs, steps)) > crf.REACH * crf.FAR_WIDTH + 1e-6:
                    continue
                distance = sum(step**2 for step in steps)
                kernel = crf.SMOOTHNESS * math.exp(
                    -distance / (2 * crf.NEAR_WIDTH**2)
                ) + crf.APPEARANCE * math.exp(
                    -distance / (2 * crf.FAR_WIDTH**2)
                    - (image[a] - image[b]) ** 2 / (2 * crf.CONTRAST**2)
                )
                message, total = message + kernel * current[:, *b], total + kernel
            energy = np.log(probabilities[:, *a])
            if total:
                energy = energy + (crf.SMOOTHNESS + crf.APPEARANCE) * message / total
            updated[:, *a] = np.exp(energy) / np.exp(energy).sum()
        current = updated
    return current


def random_case(shape, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(classes), shape).transpose(3, 0, 1, 2), rng.normal(size=shape)


@each("spacing", [(1.0, 1.0, 1.0), (2.5, 0.8, 1.1), (9.0, 1.4, 1.4)])
@each("rounds", [1, 3])
def test_against_a_naive_loop(spacing, rounds):
    probabilities, image = random_case((4, 5, 6))
    found = mean_field(torch.from_numpy(probabilities), torch.from_numpy(image), spacing, rounds)
    np.testing.assert_allclose(
        found.numpy(), naive(probabilities, image, spacing, rounds), rtol=0, atol=2e-5
    )
    np.testing.assert_allclose(found.sum(0).numpy(), 1, atol=1e-5)


def test_two_voxels_in_closed_form():
    """Each gets the other's probability with the full weight: q ~ p exp(w p')."""
    p = np.array([[0.9, 0.3], [0.1, 0.7]])
    found = mean_field(
        torch.from_numpy(p).view(2, 1, 1, 2), torch.zeros(1, 1, 2), (1.0, 1.0, 1.0), 1
    ).view(2, 2)
    weight = crf.SMOOTHNESS + crf.APPEARANCE
    expected = p * np.exp(weight * p[:, ::-1])
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(0), atol=1e-6)


def test_mirrored_images_give_mirrored_results():
    probabilities, image = map(torch.from_numpy, random_case((4, 6, 5), seed=3))
    plain = mean_field(probabilities, image, (1.0, 1.0, 2.0))
    for axis in range(3):
        mirrored = mean_field(probabilities.flip(axis + 1), image.flip(axis), (1.0, 1.0, 2.0))
        torch.testing.assert_close(mirrored, plain.flip(axis + 1))


def test_a_speck_vanishes_and_a_border_moves_to_the_edge_of_the_image():
    image = torch.zeros(6, 12, 12)
    image[:, :, 6:] = 10.0
    sure = torch.full((6, 12, 12), 0.05)
    sure[:, :, 7:] = 0.8  # the network misses the first column of the bright half
    sure[:, :, 6] = 0.45
    sure[3, 5, 2] = 0.6
    classes = mean_field(torch.stack([1 - sure, sure]), image, (1.0, 1.0, 1.0)).argmax(0)
    assert (classes == (image > 5)).all()


def test_thick_slices_do_not_speak_to_each_other():
    probabilities, image = map(torch.from_numpy, random_case((3, 8, 8), seed=5))
    other = probabilities.clone()
    other[:, 2] = other[:, 2].flip(0)
    found, changed = (mean_field(x, image, (8.0, 1.0, 1.0)) for x in (probabilities, other))
    torch.testing.assert_close(found[:, :2], changed[:, :2])
    near = (
        mean_field(other, image, (1.0, 1.0, 1.0))[:, 1]
        - mean_field(probabilities, image, (1.0, 1.0, 1.0))[:, 1]
    )
    assert near.abs().max() > 0.01


def test_a_single_voxel_and_a_constant_image():
    one = mean_field(
        torch.tensor([0.2, 0.8]).view(2, 1, 1, 1), torch.ones(1, 1, 1), (1.0, 1.0, 1.0)
    )
    assert one.flatten().tolist() == pytest.approx([0.2, 0.8]), "nobody speaks to it"
    probabilities, _ = random_case((3, 4, 5))
    assert torch.isfinite(
        mean_field(torch.from_numpy(probabilities), torch.ones(3, 4, 5), (1.0, 1.0, 1.0))
    ).all()


def test_pseudo_labels_are_smoothed_before_their_pieces_are_counted():
    """Within the box that may show a structure; far background is left as it is."""
    probabilities = np.zeros((2, 16, 20, 20), np.float32)
    probabilities[0] = 1.0
    probabilities[:, 8:12, 6:12, 6:12] = np.array([0.1, 0.9], np.float32)[:, None, None, None]
    probabilities[:, 9, 8, 8] = (0.7, 0.3)  # a hole
    image = Volume(probabilities[1], Geometry((20, 20, 16), (1.0, 1.0, 1.0)))
    smoothed = smooth(probabilities, image)
    assert smoothed[1, 9, 8, 8] > 0.5 and smoothed.shape == probabilities.shape
    np.testing.assert_array_equal(smoothed[:, 0], probabilities[:, 0])
    np.testing.assert_allclose(smoothed.sum(0), 1, atol=1e-5)
    nothing = np.stack([np.ones((3, 4, 5), np.float32), np.zeros((3, 4, 5), np.float32)])
    np.testing.assert_array_equal(
        smooth(nothing, Volume(nothing[0], Geometry((5, 4, 3), (1.0, 1.0, 1.0)))), nothing
    )
