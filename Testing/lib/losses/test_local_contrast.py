"""The local contrastive loss against a naive loop, closed forms and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.local_contrast import class_means, local_contrast, sample_anchors
from Testing.lib.case_helpers import each

TAU = 0.1


def make(n=4, d=5, space=(6, 7), classes=4, seed=0, missing=((1, 2), (3, 1))):
    """Features, labels in which class c is missing in image i, and drawn anchors."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, *space, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (n, *space), generator=g)
    labels = torch.where(torch.rand(labels.shape, generator=g) < 0.2, IGNORE, labels).to(
        torch.uint8
    )
    for i, c in missing:
        labels[i][labels[i] == c] = 0
    anchors = sample_anchors(labels, classes, torch.rand(n, classes - 1, 3, generator=g))
    return features, labels, anchors


def naive_parts(features, labels, classes):
    """Per image the pixels' features, and the class means as lists of tensors."""
    flat = features.flatten(2)
    means = []
    for image, label in zip(flat, labels.flatten(1), strict=True):
        places = {
            c: [p for p, value in enumerate(label.tolist()) if value == c]
            for c in range(1, classes)
        }
        means.append({c: sum(image[:, p] for p in ps) / len(ps) for c, ps in places.items() if ps})
    return flat, means


def naive(features, labels, anchors, partner=None):
    """Pair by pair, class by class, pixel by pixel; in torch scalars, so that it can be
    differentiated.
    """
    flat, means = naive_parts(features, labels, anchors.shape[1] + 1)
    terms = []
    for i, own in enumerate(means):
        others = means[partner[i]] if partner is not None else {}
        for c in own:
            for p in anchors[i, c - 1].tolist():
                z = flat[i, :, p]
                up = [F.cosine_similarity(z, m[c], 0) for m in (own, others) if c in m]
                down = [
                    F.cosine_similarity(z, mean, 0) for m in (own, others) for mean in m.values()
                ]
                top = sum((s / TAU).exp() for s in up)
                terms.append(-(top / sum((s / TAU).exp() for s in down)).log())
    return sum(terms) / len(terms)


PARTNER = torch.tensor([2, 3, 0, 1])


@each("partner", [None, PARTNER, torch.tensor([1, 2, 3, 0])])
@each("space", [(6, 7), (3, 4, 5)])
def test_equals_naive_loop(partner, space):
    features, labels, anchors = make(space=space)
    expected = naive(features, labels, anchors, None if partner is None else partner.tolist())
    torch.testing.assert_close(local_contrast(features, labels, anchors, partner, TAU), expected)


@pytest.mark.parametrize("partner", [None, PARTNER])
def test_gradient_equals_naive_loop(partner):
    """Through the class means too."""
    features, labels, anchors = make()
    features.requires_grad_(True)
    loss = local_contrast(features, labels, anchors, partner, TAU)
    expected = naive(features, labels, anchors, None if partner is None else partner.tolist())
    torch.testing.assert_close(
        torch.autograd.grad(loss, features)[0], torch.autograd.grad(expected, features)[0]
    )


@pytest.mark.parametrize("partner", [None, PARTNER])
def test_gradcheck(partner):
    features, labels, anchors = make(d=3, space=(3, 3))
    features.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda f: local_contrast(f, labels, anchors, partner, 0.5), features
    )


@pytest.mark.parametrize("partner", [None, PARTNER])
def test_closed_forms(partner):
    _, labels, anchors = make(missing=())
    equal = torch.ones(4, 5, 6, 7, dtype=torch.float64)
    assert float(local_contrast(equal, labels, anchors, partner, TAU)) == pytest.approx(math.log(3))
    apart = torch.eye(5, dtype=torch.float64)[labels.long().clamp_max(4)].movedim(-1, 1)
    expected = math.log(1 + 2 * math.exp(-1 / TAU))
    assert float(local_contrast(apart, labels, anchors, partner, TAU)) == pytest.approx(expected)


def test_background_and_uncounted_pixels_have_no_influence():
    features, labels, anchors = make()
    outside = ((labels == 0) | (labels == IGNORE)).unsqueeze(1)
    changed = torch.where(outside, torch.randn_like(features), features)
    assert torch.equal(
        local_contrast(features, labels, anchors, PARTNER),
        local_contrast(changed, labels, anchors, PARTNER),
    )


def test_swapping_partners_changes_nothing():
    features, labels, anchors = make()
    first = local_contrast(features, labels, anchors, PARTNER)
    swapped = local_contrast(features[PARTNER], labels[PARTNER], anchors[PARTNER], PARTNER)
    torch.testing.assert_close(first, swapped)


def test_every_pair_counts_the_same():
    """The plain mean over pairs: two pairs apart give the mean of both, weighted by their
    anchors.
    """
    features, labels, anchors = make(missing=())
    whole = local_contrast(features, labels, anchors, PARTNER)
    apart = [
        local_contrast(features[i], labels[i], anchors[i], torch.tensor([1, 0]))
        for i in ([0, 2], [1, 3])
    ]
    torch.testing.assert_close(whole, sum(apart) / 2)
    assert abs(float(apart[0] - apart[1])) > 1e-3


@pytest.mark.parametrize("partner", [None, PARTNER])
def test_absent_classes(partner):
    features, labels, anchors = make()
    features.requires_grad_(True)
    for empty in (labels * 0, torch.full_like(labels, IGNORE)):
        loss = local_contrast(features, empty, anchors, partner)
        assert float(loss.detach()) == 0
        assert torch.autograd.grad(loss, features)[0].abs().max() == 0
    half = labels.clone()
    half[0] = 0  # one image of a pair shows nothing
    loss = local_contrast(features, half, anchors, partner)
    assert torch.isfinite(torch.autograd.grad(loss, features)[0]).all()


def test_a_single_class_gives_nothing_to_tell_apart():
    features, labels, anchors = make(classes=2, missing=())
    assert float(local_contrast(features, labels, anchors, PARTNER)) == pytest.approx(0, abs=1e-12)


def test_reduce_gives_the_mean_of_the_global_batch():
    features, labels, anchors = make()
    whole = local_contrast(features, labels, anchors)
    kept = []
    for part in (slice(0, 1), slice(1, 4)):
        local_contrast(
            features[part], labels[part], anchors[part], reduce=lambda s: kept.append(s) or s
        )
    torch.testing.assert_close(
        local_contrast(features, labels, anchors, reduce=lambda _: kept[0] + kept[1]), whole
    )


def test_class_means():
    features, labels, _ = make()
    means, present = class_means(features, labels, 4)
    _, expected = naive_parts(features, labels, 4)
    for i, own in enumerate(expected):
        assert present[i].tolist() == [c in own for c in (1, 2, 3)]
        for c, mean in own.items():
            torch.testing.assert_close(means[i, c - 1], mean)


def test_anchors_lie_in_their_class_and_reach_every_pixel():
    labels = torch.tensor([[[0, 1, 1], [2, IGNORE, 1]], [[2, 2, 0], [0, 0, 0]]], dtype=torch.uint8)
    noise = torch.rand(2, 2, 500, generator=torch.Generator().manual_seed(0))
    anchors = sample_anchors(labels, 3, noise)
    assert set(anchors[0, 0].tolist()) == {1, 2, 5} and set(anchors[0, 1].tolist()) == {3}
    assert set(anchors[1, 1].tolist()) == {0, 1} and set(anchors[1, 0].tolist()) <= set(range(6))
    share = (anchors[0, 0] == 2).double().mean()
    assert 0.25 < float(share) < 0.42
    edge = sample_anchors(labels, 3, torch.tensor([0.0, 1 - 2**-24]).expand(2, 2, 2))
    assert edge[0, 0].tolist() == [1, 5]


@pytest.mark.parametrize("paired", [False, True])
def test_meta_device(paired):
    features = torch.randn(4, 5, 6, 7, device="meta", requires_grad=True)
    labels = torch.zeros(4, 6, 7, dtype=torch.uint8, device="meta")
    anchors = sample_anchors(labels, 4, torch.rand(4, 3, 3, device="meta"))
    partner = torch.arange(4, device="meta").roll(2) if paired else None
    local_contrast(features, labels, anchors, partner).backward()
    assert features.grad.is_meta
