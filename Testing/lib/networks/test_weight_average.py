"""The moving average of weights against the recursion written out."""

import pytest
import torch
from torch import nn

from MedSSLLib.networks.ema import WeightAverage
from Testing.lib.case_helpers import each


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))


def wander(module, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    module.train()(torch.randn(4, 1, 8, 8) * seed)


@each("decay", [0.0, 0.5, 0.999])
def test_weights_and_buffers_follow_the_recursion(decay):
    module = net()
    average = WeightAverage(module, decay)
    expected = {n: t.clone() for n, t in module.state_dict().items() if t.is_floating_point()}
    for n in range(30):
        wander(module, n + 1)
        average.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = {k: d * v + (1 - d) * module.state_dict()[k] for k, v in expected.items()}
    live = {n: t.clone() for n, t in module.state_dict().items()}
    with average.applied():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(value, live[name]), "counters are not averaged"
    assert "1.running_var" in expected
    assert all(torch.equal(t, live[n]) for n, t in module.state_dict().items()), (
        "the live weights come back exactly"
    )


def test_the_live_weights_come_back_after_an_error():
    module = net()
    average = WeightAverage(module, 0.9)
    wander(module, 1)
    live = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert all(torch.equal(t, live[n]) for n, t in module.state_dict().items())


def test_a_restored_average_goes_on_the_same():
    module, other = net(), net()
    first = WeightAverage(module, 0.9)
    for n in range(5):
        wander(module, n + 1)
        first.update()
    other.load_state_dict(module.state_dict())
    second = WeightAverage(other, 0.9)
    second.load_state_dict({n: t.clone() for n, t in first.state_dict().items()})
    for average, m in ((first, module), (second, other)):
        wander(m, 9)
        average.update()
    assert first.updates == second.updates == 6
    assert all(torch.equal(a, second.state_dict()[n]) for n, a in first.state_dict().items())
