"""Image and pixel contrast, pool and GradFilter: naive loops, closed forms, numerical gradients."""

import math

import pytest
import torch

from MedSSLLib.losses.contrastive import (
    choose_partner,
    filter_positives,
    info_nce,
    pixel_contrast,
    positive_gradients,
    positive_pairs,
    positive_pool,
    positives_in_use,
    retrieval,
    supervised_contrast,
)
from Testing.lib.case_helpers import each

TAU = 0.1


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


# ----------------------------------------------------------------------------------------- images


def naive_image_loss(z, labels, tau):
    """Eq. 1, term by term."""
    n, views, _ = z.shape
    rows = [(i, z[i, v].tolist()) for i in range(n) for v in range(views)]
    total = 0.0
    for a, (i, zi) in enumerate(rows):
        similar = {b: math.exp(cosine(zi, zb) / tau) for b, (_, zb) in enumerate(rows) if b != a}
        same = [
            b
            for b in similar
            if rows[b][0] == i or (labels[i] >= 0 and labels[rows[b][0]] == labels[i])
        ]
        total -= sum(math.log(similar[b] / sum(similar.values())) for b in same) / len(same)
    return total / len(rows)


@each("labels", [[0, 1, 0, 2, 1], [0, 0, 0, 0, 0], [-1, 0, -1, 0, 1], [-1] * 5])
@each("views", [2, 3])
def test_image_loss_equals_naive_loop(labels, views):
    z = randn(5, views, 6)
    expected = naive_image_loss(z, labels, TAU)
    assert float(supervised_contrast(z, torch.tensor(labels), TAU)) == pytest.approx(
        expected, rel=1e-12
    )


def test_missing_labels_are_plain_simclr():
    z = randn(5, 2, 6)
    plain = info_nce(z, TAU)
    assert float(plain) == pytest.approx(naive_image_loss(z, range(5), TAU), rel=1e-12)
    torch.testing.assert_close(
        supervised_contrast(z, torch.full((5,), -1), TAU), plain, rtol=1e-14, atol=0
    )


def test_image_loss_closed_forms():
    same = torch.ones(4, 2, 3, dtype=torch.float64)
    assert float(info_nce(same, TAU)) == pytest.approx(math.log(7))
    assert float(supervised_contrast(same, torch.tensor([0, 0, 1, 1]), TAU)) == pytest.approx(
        math.log(7)
    )
    # Two groups of two images, orthogonal: 3 positives at cosine 1, 4 negatives at cosine 0.
    groups = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]].unsqueeze(1).expand(4, 2, 2)
    expected = math.log(3 + 4 * math.exp(-1 / TAU))
    assert float(supervised_contrast(groups, torch.tensor([5, 5, 9, 9]), TAU)) == pytest.approx(
        expected
    )


def test_image_loss_has_the_floor_of_log_positives():
    """The documents: two phases over 64 views cannot fall below log 31."""
    groups = torch.eye(2, dtype=torch.float64)[torch.arange(32) % 2].unsqueeze(1).expand(32, 2, 2)
    assert float(supervised_contrast(groups, torch.arange(32) % 2, 0.01)) == pytest.approx(
        math.log(31)
    )


def test_image_loss_ignores_length_and_is_symmetric():
    z, labels = randn(6, 2, 5), torch.tensor([0, 1, 0, -1, 2, 1])
    expected = supervised_contrast(z, labels, TAU)
    scale = torch.rand(6, 2, 1, dtype=torch.float64) * 9 + 0.1
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(supervised_contrast(z * scale, labels, TAU), expected)
    torch.testing.assert_close(supervised_contrast(z[order], labels[order], TAU), expected)
    torch.testing.assert_close(supervised_contrast(z.flip(1), labels, TAU), expected)
    torch.testing.assert_close(
        supervised_contrast(z, labels * 7, TAU), supervised_contrast(z, labels, TAU)
    )


def test_image_loss_gradcheck():
    z = randn(3, 2, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x: supervised_contrast(x, torch.tensor([0, 1, 0]), 0.5), z
    )


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        info_nce(randn(4, 1, 3))


def test_half_precision_and_autocast_are_computed_in_float32():
    z, labels = randn(8, 2, 16), torch.arange(8) % 3
    expected = float(supervised_contrast(z, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(supervised_contrast(z.float(), labels)) == pytest.approx(expected, rel=1e-6)
    low = z.bfloat16()
    assert float(supervised_contrast(low, labels)) == pytest.approx(
        float(supervised_contrast(low.double(), labels))
    )


def test_retrieval():
    z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]).unsqueeze(1).expand(4, 2, 2)
    assert float(retrieval(z, torch.tensor([0, 0, 1, 1]))) == 1
    assert float(retrieval(z, torch.tensor([0, 1, 0, 1]))) == 0
    # The unlabelled second image neither counts nor answers: image 0 finds image 3 (label 1).
    assert float(retrieval(z, torch.tensor([0, -1, 1, 1]))) == pytest.approx(2 / 3)
    assert float(retrieval(z, torch.full((4,), -1))) == 0


# ----------------------------------------------------------------------------------------- pixels


def test_partner_is_a_positive_and_every_positive_can_be_drawn():
    positive = positive_pairs(torch.tensor([0, 1, 0]), 3, 2, torch.device("cpu"))
    drawn = [choose_partner(positive, torch.rand(6, 6)) for _ in range(100)]
    for i in range(6):
        allowed = [
            j for j in range(6) if j != i and (j // 2 == i // 2 or {i // 2, j // 2} == {0, 2})
        ]
        assert {int(partner[i]) for partner in drawn} == set(allowed)


def naive_pixel_loss(anchors, partners, kept, dropped, tau):
    total, count = 0.0, 0
    for n in range(len(anchors)):
        for a in range(anchors.shape[1]):
            e = [math.exp(cosine(anchors[n, a].tolist(), p.tolist()) / tau) for p in partners[n]]
            omega, out = kept[n, a].tolist(), dropped[n, a].tolist()
            negatives = [s for s in range(len(e)) if s not in omega and s not in out]
            bottom = sum(e[p] for p in omega) + sum(e[s] for s in negatives)
            total -= sum(math.log(e[p] / bottom) for p in omega) / len(omega)
            count += 1
    return total / count


def pixel_case(kept=2, pool=4):
    anchors, partners = randn(3, 5, 6), randn(3, 9, 6, seed=1)
    chosen = positive_pool(randn(3, 5, 4, seed=2), randn(3, 9, 4, seed=3), pool)
    return anchors, partners, chosen[..., :kept], chosen[..., kept:]


@each(("kept", "pool"), [(1, 1), (2, 4), (4, 4), (3, 9), (9, 9)])
def test_pixel_loss_equals_naive_loop(kept, pool):
    case = pixel_case(kept, pool)
    assert float(pixel_contrast(*case, TAU)) == pytest.approx(
        naive_pixel_loss(*case, TAU), rel=1e-12
    )


def test_pixel_loss_closed_forms():
    index = torch.tensor([[[0, 1]]])
    same = torch.ones(1, 6, 3, dtype=torch.float64)
    assert float(pixel_contrast(same[:, :1], same, index, index[..., :0], TAU)) == pytest.approx(
        math.log(6)
    )
    assert float(pixel_contrast(same[:, :1], same, index, index + 2, TAU)) == pytest.approx(
        math.log(4)
    )
    apart = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1, 1]].unsqueeze(0)
    expected = math.log(2 + 3 * math.exp(-1 / TAU))
    assert float(pixel_contrast(apart[:, :1], apart, index, index[..., :0], TAU)) == pytest.approx(
        expected
    )


def test_dropped_positives_have_no_influence():
    anchors, partners, kept, dropped = pixel_case()
    anchors, partners, kept, dropped = anchors[:, :1], partners, kept[:, :1], dropped[:, :1]
    partners.requires_grad_(True)
    (grad,) = torch.autograd.grad(pixel_contrast(anchors, partners, kept, dropped, TAU), partners)
    index = dropped.flatten(1).unsqueeze(2).expand(-1, -1, 6)
    assert grad.gather(1, index).abs().max() == 0
    assert (grad.norm(dim=2) > 0).sum() == 3 * (9 - 2)


def test_pixel_loss_gradcheck():
    anchors, partners, kept, dropped = pixel_case()
    inputs = (anchors.requires_grad_(True), partners.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda a, p: pixel_contrast(a, p, kept, dropped, 0.5), inputs)


def test_pool_is_the_most_similar():
    u, v = randn(2, 3, 5), randn(2, 8, 5, seed=1)
    pool = positive_pool(u * 100, v * torch.rand(2, 8, 1, dtype=torch.float64), 3)
    for n in range(2):
        for a in range(3):
            order = sorted(range(8), key=lambda s: -cosine(u[n, a].tolist(), v[n, s].tolist()))
            assert set(pool[n, a].tolist()) == set(order[:3])


def test_analytic_gradient_equals_autograd():
    """Eq. 7: per positive, and its mean that of the whole loss; raw projections of any length."""
    anchors, partners, pool, _ = pixel_case(4, 4)
    anchors = (anchors * torch.rand(3, 5, 1, dtype=torch.float64) * 3).requires_grad_(True)
    analytic = positive_gradients(anchors, partners, pool, TAU)
    none = pool[..., :0]
    (whole,) = torch.autograd.grad(pixel_contrast(anchors, partners, pool, none, TAU) * 15, anchors)
    torch.testing.assert_close(analytic.mean(2), whole, rtol=1e-10, atol=1e-12)
    for p in range(4):  # the term of one positive, the softmax over all pixels as in the whole loss
        (term,) = torch.autograd.grad(
            pixel_contrast(anchors, partners, pool[..., p : p + 1], none, TAU) * 15, anchors
        )
        torch.testing.assert_close(analytic[:, :, p], term, rtol=1e-10, atol=1e-12)


def test_gradient_of_normalised_anchor_is_the_formula():
    """Eq. 7 as printed: (1/tau) (sum_a P_a v_a - v_p), when the normalisation is left out."""
    v = torch.nn.functional.normalize(randn(1, 1, 6), dim=2)
    others = torch.nn.functional.normalize(randn(1, 7, 6, seed=1), dim=2)
    free = v.clone().requires_grad_(True)
    s = (free @ others.mT)[0, 0] / TAU
    (grad,) = torch.autograd.grad(s.logsumexp(0) - s[2], free)
    tangent = grad - (grad * v).sum(2, keepdim=True) * v
    pool = torch.tensor([[[2]]])
    torch.testing.assert_close(positive_gradients(v, others, pool, TAU)[:, :, 0], tangent)


def test_filter_keeps_the_lowest_gradients():
    pool = torch.tensor([[[7, 3, 5, 1]]])
    gradients = torch.tensor([4.0, 0.5, 3.0, 1.0]).view(1, 1, 4, 1) * torch.tensor([0.6, -0.8])
    kept, dropped = filter_positives(pool, gradients, 2)
    assert kept.tolist() == [[[3, 1]]] and dropped.tolist() == [[[5, 7]]]
    kept, dropped = filter_positives(pool, gradients, 4)
    assert sorted(kept[0, 0].tolist()) == [1, 3, 5, 7] and dropped.shape == (1, 1, 0)


@each("pace", ["linear", "root"])
@each("start", [0.0, 0.3, 1.0])
@each("largest", [1, 5, 8])
def test_pool_size_grows_from_its_start_to_all(pace, start, largest):
    sizes = [positives_in_use(largest, t / 1000, start, pace) for t in range(1001)]
    assert sizes == sorted(sizes)
    assert sizes[0] == max(1, math.ceil(largest * start)) and sizes[-1] == largest
    assert set(sizes) == set(range(sizes[0], largest + 1))


def test_pool_size_values():
    assert [positives_in_use(8, t) for t in (0, 0.125, 0.126, 0.5, 0.999)] == [1, 1, 2, 4, 8]
    assert [positives_in_use(8, t, 0, "root") for t in (0, 0.25, 0.26, 0.999)] == [1, 4, 5, 8]


def test_meta_device():
    z = torch.randn(4, 2, 8, device="meta", requires_grad=True)
    labels = torch.zeros(4, dtype=torch.long, device="meta")
    loss = supervised_contrast(z, labels) + info_nce(z) + retrieval(z, labels)
    partner = choose_partner(
        positive_pairs(labels, 4, 2, z.device), torch.rand(8, 8, device="meta")
    )
    v = torch.randn(8, 12, 8, device="meta", requires_grad=True)
    pool = positive_pool(v[:, :5], v[partner], 4)
    kept, dropped = filter_positives(pool, positive_gradients(v[:, :5], v[partner], pool), 2)
    (loss + pixel_contrast(v[:, :5], v[partner], kept, dropped)).backward()
    assert z.grad.is_meta and v.grad.is_meta
