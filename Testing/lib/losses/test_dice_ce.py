"""Dice + cross-entropy and regression losses against naive loops, closed forms and numerical
gradients.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.dice_ce import (
    cosine_regression,
    dice_ce,
    dice_ce_soft,
    mixed_targets,
    one_hot,
)
from Testing.lib.case_helpers import each

SHAPES = [(2, 3, 5, 4), (1, 2, 3, 4, 2), (3, 4, 6)]


def make(shape, seed=0, ignore=0.3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=g, dtype=dtype)
    space = (shape[0], *shape[2:])
    labels = torch.randint(0, shape[1], space, generator=g).to(torch.uint8)
    labels = torch.where(
        torch.rand(space, generator=g) < ignore, torch.tensor(IGNORE, dtype=torch.uint8), labels
    )
    return logits, labels


def naive(logits, labels, first_class=1, smooth=1.0):
    """Voxel by voxel in Python floats."""
    k = logits.shape[1]
    rows = logits.movedim(1, -1).reshape(-1, k).tolist()
    overlap, predicted, reference, entropy, n = [0.0] * k, [0.0] * k, [0.0] * k, 0.0, 0
    for row, label in zip(rows, labels.flatten().tolist(), strict=True):
        if label == IGNORE:
            continue
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        n += 1
        entropy -= math.log(p[label])
        overlap[label] += p[label]
        reference[label] += 1
        for c in range(k):
            predicted[c] += p[c]
    terms = [
        1 - (2 * overlap[c] + smooth) / (predicted[c] + reference[c] + smooth)
        for c in range(first_class, k)
    ]
    return sum(terms) / len(terms) + entropy / n


@each("shape", SHAPES)
@each("background", [False, True])
@each("kind", [torch.uint8, torch.int64])
def test_equals_naive_loop(shape, background, kind):
    logits, labels = make(shape)
    expected = naive(logits, labels, 0 if background else 1)
    assert float(dice_ce(logits, labels.to(kind), background=background)) == pytest.approx(
        expected, rel=1e-12
    )


def test_uniform_logits_closed_form():
    labels = torch.tensor([[[0, 1], [1, IGNORE]]], dtype=torch.uint8)
    # p = 1/2 everywhere, three counted voxels, two of class 1: Dice = (2 * 1 + 1) / (1.5 + 2 + 1).
    assert float(dice_ce(torch.zeros(1, 2, 2, 2), labels)) == pytest.approx(
        math.log(2) + 1 - 3 / 4.5, rel=1e-6
    )


def test_perfect_prediction_costs_nothing():
    _, labels = make((2, 3, 5, 4))
    logits = 200 * one_hot(labels, 3, torch.float64)
    assert float(dice_ce(logits, labels, background=True)) == pytest.approx(0, abs=1e-12)


def test_absent_class_is_free_when_not_predicted_and_costs_when_predicted():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    none, some = torch.zeros(2, 1, 2, 4, 4, dtype=torch.float64)
    none[:, 0], some[:, 0], some[:, 1, 0] = 100, 100, 200
    assert float(dice_ce(none, labels)) == pytest.approx(0, abs=1e-12)
    some.requires_grad_(True)
    dice = dice_ce(some, labels) - F.cross_entropy(some, labels.long())
    assert float(dice.detach()) == pytest.approx(1 - 1 / 5)  # 4 voxels predicted, smoothing 1


def test_ignored_voxels_have_no_influence():
    logits, labels = make((2, 3, 5, 4))
    logits.requires_grad_(True)
    value = dice_ce(logits, labels)
    (grad,) = torch.autograd.grad(value, logits)
    ignored = (labels == IGNORE).unsqueeze(1).expand_as(grad)
    assert grad[ignored].abs().max() == 0
    changed = torch.where(ignored, torch.full_like(logits, 7.0), logits.detach())
    assert float(dice_ce(changed, labels)) == pytest.approx(float(value.detach()), rel=1e-14)


@each("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_counted_is_exactly_zero(dtype):
    logits = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    loss = dice_ce(logits, torch.full((2, 4, 4), IGNORE, dtype=torch.uint8), background=True)
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad.abs().max() == 0
    soft = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    loss = dice_ce_soft(soft, torch.zeros(2, 3, 4, 4))
    loss.backward()
    assert float(loss.detach()) == 0 and soft.grad.abs().max() == 0


def test_gradcheck():
    logits, labels = make((2, 3, 3, 2))
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: dice_ce(x, labels), logits)
    targets = torch.rand(2, 3, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dice_ce_soft(x, targets, background=True), logits)


def test_half_precision_is_computed_in_float32():
    logits, labels = make((2, 3, 8, 8), dtype=torch.float32)
    low = logits.bfloat16()
    assert dice_ce(low, labels).dtype == torch.float32
    assert float(dice_ce(low, labels)) == float(dice_ce(low.float(), labels))


def test_reduce_gives_the_loss_of_the_global_batch():
    """Two ranks simulated: each adds the other's sums; value and gradient are those of the whole
    batch.
    """
    logits, labels = make((4, 3, 5, 4))
    logits.requires_grad_(True)
    whole = dice_ce(logits, labels)
    (expected,) = torch.autograd.grad(whole, logits)
    kept = []
    for part in (slice(0, 2), slice(2, 4)):
        dice_ce(logits[part], labels[part], reduce=lambda sums: kept.append(sums) or sums)
    total = kept[0] + kept[1]
    halves = [
        dice_ce(logits[part], labels[part], reduce=lambda _: total)
        for part in (slice(0, 2), slice(2, 4))
    ]
    for half in halves:
        assert float(half.detach()) == pytest.approx(float(whole.detach()), rel=1e-13)
        (grad,) = torch.autograd.grad(half, logits, retain_graph=True)
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-14)


def test_soft_targets_equal_hard_ones_when_they_are_indicators():
    logits, labels = make((2, 3, 5, 4))
    assert float(dice_ce_soft(logits, one_hot(labels, 3))) == pytest.approx(
        float(dice_ce(logits, labels)), rel=1e-12
    )


def test_soft_cross_entropy_is_weighted_by_confidence():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    probabilities = torch.rand(2, 3, 4, generator=g, dtype=torch.float64).softmax(1)
    confidence = torch.rand(2, 1, 4, generator=g, dtype=torch.float64)
    per_voxel = F.cross_entropy(logits, probabilities, reduction="none")
    entropy = (per_voxel * confidence[:, 0]).sum() / confidence.sum()
    p, t = logits.softmax(1), probabilities * confidence
    dice = [
        (2 * (p * t)[:, c].sum() + 1) / ((p * confidence)[:, c].sum() + t[:, c].sum() + 1)
        for c in (1, 2)
    ]
    expected = entropy + 1 - sum(dice) / 2
    assert float(dice_ce_soft(logits, t)) == pytest.approx(float(expected), rel=1e-12)


def test_mixed_targets():
    first = torch.tensor([[0, 1, IGNORE, IGNORE]], dtype=torch.uint8)
    second = torch.tensor([[1, 1, 1, IGNORE]], dtype=torch.uint8)
    expected = torch.tensor([[[0.75, 0, 0, 0], [0.25, 1, 0.25, 0]]])
    assert torch.equal(mixed_targets(first, second, torch.tensor([0.75]), 2), expected)
    assert mixed_targets(
        first.view(1, 2, 2), second.view(1, 2, 2), torch.tensor([0.5]), 3
    ).shape == (
        1,
        3,
        2,
        2,
    )


def test_inputs_are_left_alone():
    logits, labels = make((2, 3, 5, 4))
    copies = logits.clone(), labels.clone()
    dice_ce(logits, labels)
    assert torch.equal(logits, copies[0]) and torch.equal(labels, copies[1])


def test_cosine_regression():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([[5.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = cosine_regression(x.requires_grad_(True), y)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64))
    loss.sum().backward()
    assert y.grad is None
    torch.testing.assert_close(
        cosine_regression(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3)), torch.zeros(2, 3, 3)
    )


@pytest.mark.parametrize("background", [False, True])
def test_meta_device(background):
    logits = torch.randn(2, 3, 8, 8, device="meta", requires_grad=True)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8, device="meta")
    targets = mixed_targets(labels, labels, torch.rand(2, device="meta"), 3)
    loss = dice_ce(logits, labels, background=background) + dice_ce_soft(logits, targets)
    (loss + cosine_regression(logits, logits).mean()).backward()
    assert logits.grad.is_meta
