"""Optimisers and the schedule's factor against naive loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from MedSSLLib.config.run import OptimiserConfig
from MedSSLLib.training.optimisers import LARS, build_optimiser, set_rate, warmup_cosine
from Testing.lib.case_helpers import each


def test_lars_equals_a_naive_loop_in_float64():
    rng = np.random.default_rng(0)
    lr, m, decay, trust = 0.3, 0.9, 0.05, 1e-2
    weight, bias = rng.normal(size=(3, 4, 2)), rng.normal(size=5)
    params = [nn.Parameter(torch.from_numpy(x.copy())) for x in (weight, bias)]
    optimiser = LARS(
        [{"params": params[:1], "weight_decay": decay}, {"params": params[1:]}], lr, m, trust=trust
    )
    v = [np.zeros_like(weight), np.zeros_like(bias)]
    for _ in range(7):
        g, h = rng.normal(size=weight.shape), rng.normal(size=bias.shape)
        params[0].grad, params[1].grad = torch.from_numpy(g.copy()), torch.from_numpy(h.copy())
        optimiser.step()
        local = (
            trust
            * math.sqrt((weight**2).sum())
            / (math.sqrt((g**2).sum()) + decay * math.sqrt((weight**2).sum()))
        )
        v[0] = m * v[0] + lr * local * (g + decay * weight)
        v[1] = m * v[1] + lr * h
        weight, bias = weight - v[0], bias - v[1]
    np.testing.assert_allclose(params[0].detach(), weight, rtol=1e-12)
    np.testing.assert_allclose(params[1].detach(), bias, rtol=1e-12)


def test_the_first_lars_step_has_the_length_lr_trust_weight_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
        before = weight.detach().clone()
        weight.grad = scale * torch.randn(6, 5, dtype=torch.float64)
        LARS([weight], lr=0.5, trust=1e-3).step()
        assert float((weight.detach() - before).norm()) == pytest.approx(
            0.5 * 1e-3 * float(before.norm()), rel=1e-9
        )


def test_lars_moves_zero_weights_and_skips_parameters_without_gradient():
    zero, idle = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.ones(2, 2))
    zero.grad = torch.ones(3, 3)
    LARS([zero, idle], lr=0.1).step()
    assert torch.allclose(zero, torch.full((3, 3), -0.1)) and torch.equal(idle, torch.ones(2, 2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 4, 3)
        self.my_encoder_like = nn.Linear(3, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


@each("name", ["adamw", "sgd", "lars"])
def test_rates_and_decay_go_by_the_place_and_kind_of_a_parameter(name):
    net = Net()
    config = OptimiserConfig(name=name, lr=0.5, weight_decay=0.1)
    optimiser = build_optimiser(net, config, encoder_factor=0.2)
    found = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]
    }
    expected = {
        "encoder.0.weight": (0.1, 0.1),
        "encoder.0.bias": (0.1, 0.0),
        "encoder.1.weight": (0.1, 0.0),
        "encoder.1.bias": (0.1, 0.0),
        "decoder.weight": (0.5, 0.1),
        "decoder.bias": (0.5, 0.0),
        "my_encoder_like.weight": (0.5, 0.1),
        "my_encoder_like.bias": (0.5, 0.0),
    }
    assert {n: found[id(p)] for n, p in net.named_parameters() if p.requires_grad} == {
        n: (pytest.approx(a), b) for n, (a, b) in expected.items()
    }
    assert len(found) == len(expected)
    set_rate(optimiser, 0.25)
    set_rate(optimiser, 0.5)  # relative to the base, not to the last one
    assert sorted({g["lr"] for g in optimiser.param_groups}) == [
        pytest.approx(0.05),
        pytest.approx(0.25),
    ]


def test_the_schedule_warms_up_linearly_and_falls_as_a_cosine_to_zero():
    assert warmup_cosine(0.025, 0.05) == pytest.approx(0.5)
    assert warmup_cosine(0.05, 0.05) == pytest.approx(1)
    assert warmup_cosine(0.525, 0.05) == pytest.approx(0.5)
    assert warmup_cosine(1.0, 0.05) == pytest.approx(0, abs=1e-12)
    assert warmup_cosine(0.0, 0.05) > 0 and warmup_cosine(0.0, 0.0) == 1
    factors = [warmup_cosine(p, 0.1) for p in np.linspace(0, 1, 101)]
    assert (
        np.all(np.diff(factors[:11]) > 0)
        and np.all(np.diff(factors[11:]) < 0)
        and max(factors) <= 1
    )
