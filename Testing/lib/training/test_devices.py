"""Devices and precision without a GPU: clear refusals; single-process collectives are
identities.
"""

import pytest
import torch

from MedSSLLib.core.errors import InputError
from MedSSLLib.training import devices
from MedSSLLib.training.devices import (
    average_gradient,
    average_gradients,
    from_first_process,
    gather_embeddings,
    make_fabric,
    resolve_device,
    resolve_precision,
    seed_step,
    sum_over_processes,
    training_precision,
)
from Testing.lib.core_helpers import tiny_config

CPU = torch.device("cpu")


def test_auto_is_the_card_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU and resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda" and resolve_device("cuda:1").index == 1
    with pytest.raises(InputError, match="'cuda:2' does not exist: 2 CUDA"):
        resolve_device("cuda:2")


def test_a_missing_card_is_said_clearly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, words in ((None, "built without CUDA"), ("12.1", "no CUDA driver or card")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(InputError, match=words):
            resolve_device("cuda")
    with pytest.raises(InputError, match="'gpu' is not known"):
        resolve_device("gpu")


def test_auto_precision_is_float32_on_the_cpu_and_half_on_cards(monkeypatch):
    assert resolve_precision("auto", CPU) == "32" and resolve_precision("bf16", CPU) == "bf16"
    for has, expected in ((True, "bf16"), (False, "16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert resolve_precision("auto", torch.device("cuda")) == expected


@pytest.fixture
def fresh_capabilities():
    """What the processor can do is asked anew in the test and after it."""
    devices._multiplies_bfloat16.cache_clear()
    yield
    devices._multiplies_bfloat16.cache_clear()


@pytest.mark.usefixtures("fresh_capabilities")
@pytest.mark.parametrize(
    ("feature", "expected"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("avx2", "32")]
)
def test_training_is_in_bfloat16_where_the_processor_multiplies_it(monkeypatch, feature, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True}, raising=False)
    devices._multiplies_bfloat16.cache_clear()
    assert training_precision("auto", CPU) == expected
    assert training_precision("32", CPU) == "32" and resolve_precision("auto", CPU) == "32"
    assert (
        make_fabric(tiny_config())._precision.precision
        == {"bf16": "bf16-mixed", "32": "32-true"}[expected]
    )


def test_a_lone_fabric_runs_on_the_cpu():
    fabric = make_fabric(tiny_config(precision="32"))
    assert (
        fabric.device == CPU and fabric.world_size == 1 and fabric._precision.precision == "32-true"
    )


def test_collectives_of_one_process_are_identities():
    x = torch.randn(3, requires_grad=True)
    assert gather_embeddings(x) is x and sum_over_processes(x) is x and average_gradient(x) is x
    assert from_first_process([1.0, 2.5]) == [1.0, 2.5]
    x.grad = torch.ones(3)
    average_gradients([x])
    assert torch.equal(x.grad, torch.ones(3)) and not devices._distributed()


def test_random_numbers_are_a_function_of_seed_and_step():
    def draw(seed, step):
        seed_step(seed, step)
        return torch.rand(4).tolist()

    assert draw(1, 2) == draw(1, 2)
    draws = [tuple(draw(s, t)) for s in (0, 1, 2**31, 2**40) for t in (0, 1, 2)]
    assert len(set(draws)) >= 10
