"""GradMitigator against a naive loop over vectors, its closed form, and plain training."""

import math
import random

import pytest
import torch
from torch import nn

from MedSSLLib.losses.gradient_rules import (
    GradMitigator,
    SumGradients,
    gram_matrix,
    measure,
    mitigate,
    mitigation_weight,
)
from Testing.lib.case_helpers import each


def identity(x):
    return x


def cosine(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def vectors(count, size=20, seed=0):
    return torch.randn(
        count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def mitigate_vectors(gradients, target, pairs, beta=0.5):
    """Modified gradients of one tensor, through the Gram matrix."""
    coefficients, target = mitigate(gram_matrix(gradients)[None], target[None], pairs, beta)
    return coefficients[0] @ gradients, target[0]


def naive(gradients, target, pairs, beta=0.5):
    """Algorithm 1 on the vectors themselves, in Python floats."""
    running, target = [g.clone() for g in gradients], [row[:] for row in target.tolist()]
    for i, j in pairs:
        phi, goal = cosine(running[i], gradients[j]), target[i][j]
        if phi < goal:
            a = running[i].norm() * (goal * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - goal**2))
            running[i] += a / (gradients[j].norm() * math.sqrt(1 - goal**2)) * gradients[j]
        target[i][j] = (1 - beta) * goal + beta * phi
    return torch.stack(running), torch.tensor(target, dtype=torch.float64)


def all_pairs(count, seed=0):
    rng = random.Random(seed)
    return [(i, j) for i in range(count) for j in rng.sample(range(count), count) if i != j]


@each("count", [2, 3, 5])
@each("seed", range(5))
def test_equals_naive_loop(count, seed):
    gradients, pairs = vectors(count, seed=seed), all_pairs(count, seed)
    target = torch.rand(count, count, dtype=torch.float64) * 1.6 - 0.8
    modified, after = mitigate_vectors(gradients, target, pairs, 0.3)
    expected, expected_after = naive(gradients, target, pairs, 0.3)
    torch.testing.assert_close(modified, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after, expected_after, rtol=1e-9, atol=1e-12)


@each("goal", [-0.5, 0.0, 0.3, 0.5])
def test_new_cosine_is_the_target(goal):
    """cos(g_i', g_j) = phi_T wherever it acted, else g_i is untouched: all kinds of relation are
    met.
    """
    acted = set()
    for seed in range(40):
        g = vectors(2, size=4, seed=seed)
        phi = cosine(g[0], g[1])
        target = torch.tensor([[0, goal], [0, 0]], dtype=torch.float64)
        modified, _ = mitigate_vectors(g, target, [(0, 1)])
        if phi < goal:
            assert cosine(modified[0], g[1]) == pytest.approx(goal, abs=1e-10)
            assert torch.equal(modified[1], g[1])
        else:
            assert torch.equal(modified, g)
        acted.add("conflicting" if phi < 0 else "slightly" if phi < goal else "non")
    assert acted == ({"conflicting", "slightly", "non"} if goal > 0 else {"conflicting", "non"})


def test_new_cosine_in_single_precision():
    g = vectors(2, size=5000).float()
    target = torch.tensor([[0, 0.4], [0, 0]])
    modified, _ = mitigate_vectors(g, target, [(0, 1)])
    assert cosine(modified[0].double(), g[1].double()) == pytest.approx(0.4, abs=1e-5)


def test_weight_by_hand():
    """Orthogonal gradients, target cos 60 deg: g_i must be raised by |g_i| / tan 60 along g_j /
    |g_j|.
    """
    phi, goal, size, other = (torch.tensor(x, dtype=torch.float64) for x in (0.0, 0.5, 2.0, 5.0))
    assert float(mitigation_weight(phi, goal, size, other)) == pytest.approx(
        2 / math.tan(math.pi / 3) / 5
    )
    # PCGrad's projection is the case phi_T = 0: a = -cos |g_i| / |g_j|.
    expected = 0.6 * 2 / 5
    zero = torch.tensor(0.0, dtype=torch.float64)
    assert float(mitigation_weight(zero - 0.6, zero, size, other)) == pytest.approx(expected)


def test_target_follows_every_step():
    g = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    target = torch.zeros(2, 2, dtype=torch.float64)
    for step in range(1, 5):
        modified, target = mitigate_vectors(g, target, [(0, 1), (1, 0)], beta=0.25)
        assert float(target[0, 1]) == pytest.approx(0.6 * (1 - 0.75**step))
        assert torch.equal(
            modified, g
        )  # 0.6 stays above its target: nothing acts, the target moves
    g[1] = torch.tensor([-0.6, 0.8])
    before = float(target[0, 1])
    _, target = mitigate_vectors(g, target, [(0, 1)], beta=0.25)
    assert float(target[0, 1]) == pytest.approx(0.75 * before + 0.25 * -0.6)


def test_running_gradient_meets_original_partners():
    """With i first mitigated by j, its cosine with k is that of the modified one."""
    g = torch.tensor([[1.0, 0, 0], [-1, 1, 0], [0, 1, 1]], dtype=torch.float64)
    _, target = mitigate_vectors(
        g, torch.zeros(3, 3, dtype=torch.float64), [(0, 1), (0, 2)], beta=1.0
    )
    # g_0 + 0.5 g_1 = (0.5, 0.5, 0), whose cosine with g_2 is 1/2; that of the original was 0.
    assert float(target[0, 2]) == pytest.approx(0.5)


def test_scale_and_tensors_are_independent():
    g, pairs = vectors(3), all_pairs(3)
    target = torch.full((3, 3), 0.2, dtype=torch.float64)
    one, _ = mitigate_vectors(g, target, pairs)
    large, _ = mitigate_vectors(g * 1e6, target, pairs)
    torch.testing.assert_close(large, one * 1e6)
    grams = torch.stack([gram_matrix(g), gram_matrix(vectors(3, seed=9)), gram_matrix(g)])
    coefficients, after = mitigate(grams, target.expand(3, 3, 3), pairs, 0.5)
    torch.testing.assert_close(coefficients[0] @ g, one)
    assert torch.equal(coefficients[0], coefficients[2]) and not torch.equal(after[0], after[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_gradients(dtype):
    g = vectors(2).to(dtype)
    target = torch.full((2, 2), 0.5, dtype=dtype)
    for bad in (torch.stack([g[0], g[1] * 0]), torch.stack([g[0] * 0, g[1]])):
        modified, after = mitigate_vectors(bad, target, [(0, 1), (1, 0)])
        assert torch.equal(modified, bad) and torch.equal(after, target)
    for other in (g[0], -g[0]):  # parallel, opposite
        modified, after = mitigate_vectors(torch.stack([g[0], other]), target * 0, [(0, 1), (1, 0)])
        assert torch.isfinite(modified).all() and (after.abs() <= 1).all()
    infinite = torch.stack([g[0], g[1] / 0])
    assert torch.equal(mitigate_vectors(infinite, target, [(0, 1), (1, 0)])[1], target)


def test_opposite_gradients_cancel_and_are_left_alone_after():
    g = torch.stack([vectors(1)[0], -3 * vectors(1)[0], vectors(1, seed=3)[0]])
    modified, after = mitigate_vectors(g, torch.zeros(3, 3, dtype=torch.float64), [(0, 1), (0, 2)])
    assert modified[0].norm() < 3e-3 * g[0].norm() and torch.isfinite(after).all()


def test_measure():
    g = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    target = torch.full((1, 3, 3), 0.7, dtype=torch.float64)
    found = measure(gram_matrix(g)[None], target, ("a", "b", "c"))
    assert float(found["cosine/a-b"]) == pytest.approx(0.6)
    assert float(found["cosine/a-c"]) == pytest.approx(-1) and float(
        found["cosine/b-c"]
    ) == pytest.approx(-0.6)
    assert float(found["slightly_conflicting"]) == pytest.approx(1 / 3)
    assert (
        float(found["conflicting"]) == pytest.approx(2 / 3) and float(found["non_conflicting"]) == 0
    )
    assert float(found["cosine"]) == pytest.approx(-1 / 3) and float(
        found["target_cosine"]
    ) == pytest.approx(0.7)
    assert float(
        measure(gram_matrix(g)[None], target * 0, "abc")["non_conflicting"]
    ) == pytest.approx(1 / 3)
    assert float(measure(gram_matrix(g * 0)[None], target, "abc")["cosine"]) == 0


# ------------------------------------------------------------------------------------------ rules


class Tiny(nn.Module):
    """Two shared tensors a layer and a head, with one loss per output."""

    def __init__(self, outputs=3, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).to(dtype)
        self.head = nn.Linear(6, outputs).to(dtype)
        self.x = torch.randn(16, 4, dtype=dtype)
        self.y = torch.randn(16, outputs, dtype=dtype)

    def losses(self, count=3):
        error = (self.head(self.encoder(self.x)) - self.y).square().mean(0)
        return {f"loss {i}": error[i] for i in range(count)}

    def apply(self, rule, count=3, reduce=identity):
        rule(
            self.losses(count),
            list(self.encoder.parameters()),
            list(self.head.parameters()),
            reduce,
        )
        return [p.grad for p in self.parameters()]


@each("rule", [SumGradients(), SumGradients(average=True), GradMitigator()])
@each("dtype", [torch.float32, torch.float64])
def test_one_loss_is_plain_training_bit_for_bit(rule, dtype):
    net = Tiny(dtype=dtype)
    net.losses()["loss 0"].backward()
    expected = [p.grad.clone() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(net.apply(rule, 1), expected, strict=True))


def test_sum_and_average():
    net = Tiny()
    sum(net.losses().values()).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    torch.testing.assert_close(net.apply(SumGradients()), expected)
    torch.testing.assert_close(net.apply(SumGradients(average=True)), [g / 3 for g in expected])


def test_without_conflict_it_is_the_average():
    net, rule = Tiny(), GradMitigator()
    loss = net.losses(1)["loss 0"]
    rule(
        {"a": loss, "b": 3 * loss},
        list(net.encoder.parameters()),
        list(net.head.parameters()),
        identity,
    )
    expected = torch.autograd.grad(2 * net.losses(1)["loss 0"], list(net.parameters()))
    torch.testing.assert_close([p.grad for p in net.parameters()], list(expected))


def test_rule_equals_naive_loop_over_tensors():
    """Every tensor on its own, several steps, the generator's order; the head takes the average."""
    net, rule = Tiny(), GradMitigator(beta=0.4, seed=3)
    orders = torch.Generator().manual_seed(3)
    targets = [torch.zeros(3, 3, dtype=torch.float64) for _ in net.encoder.parameters()]
    acted = 0
    for _ in range(4):
        per_loss = [
            torch.autograd.grad(v, list(net.parameters()), retain_graph=True)
            for v in net.losses().values()
        ]
        order = [torch.randperm(3, generator=orders).tolist() for _ in range(3)]
        pairs = [(i, j) for i in range(3) for j in order[i] if i != j]
        got = net.apply(rule)
        for t in range(4):
            g = torch.stack([grads[t].flatten() for grads in per_loss])
            modified, targets[t] = naive(g, targets[t], pairs, 0.4)
            acted += int(not torch.equal(modified, g))
            torch.testing.assert_close(got[t].flatten(), modified.mean(0), rtol=1e-9, atol=1e-12)
        for t in (4, 5):
            torch.testing.assert_close(got[t], sum(grads[t] for grads in per_loss) / 3)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    assert acted > 4
    assert set(rule.diagnostics()) >= {
        "cosine",
        "target_cosine",
        "conflicting",
        "cosine/loss 0-loss 1",
    }


@pytest.mark.parametrize("rule", [SumGradients(), GradMitigator()])
def test_unused_parameters_have_no_gradient_and_old_ones_are_replaced(rule):
    net = Tiny()
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    unused.grad = torch.ones(3, dtype=torch.float64)
    first = [
        g.clone() for g in net.apply(rule if isinstance(rule, SumGradients) else GradMitigator())
    ]
    rule(net.losses(), list(net.encoder.parameters()), [*net.head.parameters(), unused], identity)
    assert unused.grad is None
    torch.testing.assert_close([p.grad for p in net.parameters()], first)


def test_a_loss_that_misses_a_tensor_counts_as_zero_there():
    net, rule = Tiny(), GradMitigator()
    first, last = net.encoder[0].weight, net.encoder[2].weight
    losses = {"both": (first.sum() + last.sum()).square(), "one": first.square().sum()}
    rule(losses, [first, last], [], identity)
    expected = torch.autograd.grad((first.sum() + last.sum()).square(), last)[0] / 2
    torch.testing.assert_close(last.grad, expected)


def test_reduction_comes_before_the_rule():
    """Two processes: gradients are averaged first, then mitigated, in one message."""
    parts = [Tiny(), Tiny()]
    parts[1].x, parts[1].y = -parts[1].x.flip(0), parts[1].y * 2
    messages = []
    for net in parts:
        net.apply(GradMitigator(), reduce=lambda g: messages.append(g.clone()) or g)
    assert len(messages) == 2
    mean = (messages[0] + messages[1]) / 2
    got = parts[0].apply(GradMitigator(), reduce=lambda g: mean)
    whole = Tiny()
    whole.x, whole.y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])
    torch.testing.assert_close(got, whole.apply(GradMitigator()))


def test_state_resumes_exactly():
    def run(net, rule, steps):
        for _ in range(steps):
            net.apply(rule)
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
        return [p.detach().clone() for p in net.parameters()]

    through = run(Tiny(), GradMitigator(seed=5), 6)
    net, rule = Tiny(), GradMitigator(seed=5)
    run(net, rule, 3)
    state = {name: value.clone() for name, value in rule.state_dict().items()}
    assert state["target"].shape == (4, 3, 3) and state["generator"].dtype == torch.uint8
    fresh = GradMitigator(seed=0)
    fresh.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(run(net, fresh, 3), through, strict=True))
    assert set(GradMitigator().state_dict()) == {"generator"}


def test_state_of_another_network_is_refused():
    rule, net = GradMitigator(), Tiny()
    net.apply(rule)
    with pytest.raises(ValueError, match="do not fit"):
        net.apply(rule, 2)


def test_memory_layout_follows_the_parameter():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    out = conv(torch.randn(1, 3, 5, 5))
    GradMitigator()(
        {"a": out.sum(), "b": out.square().sum()}, list(conv.parameters()), [], identity
    )
    assert conv.weight.grad.stride() == conv.weight.stride()
    (grad,) = torch.autograd.grad(conv(torch.ones(1, 3, 5, 5)).sum(), conv.weight)
    GradMitigator()(
        {"a": conv(torch.ones(1, 3, 5, 5)).sum()}, list(conv.parameters()), [], identity
    )
    assert torch.equal(conv.weight.grad, grad)


@pytest.mark.parametrize("rule", [SumGradients(), GradMitigator()])
def test_meta_device(rule):
    net = Tiny(dtype=torch.float32).to("meta")
    net.x, net.y = net.x.to("meta"), net.y.to("meta")
    for _ in range(2):
        assert all(g.is_meta for g in net.apply(rule))
    assert all(value.is_meta and value.ndim == 0 for value in rule.diagnostics().values())
