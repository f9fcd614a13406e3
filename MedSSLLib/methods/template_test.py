"""Tests of the method Template: ``python -m pytest test_template.py``.

Expected values come from elsewhere than the code: a loop over the formula, or a case that is known
by thought.
"""

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.data.batch import Batch
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.template import Template, TemplateConfig, low_variance
from MedSSLLib.networks.unet import build_encoder


def small_model(dim: int) -> Template:
    """The method on a tiny encoder for images of one channel and 16 voxels a side."""
    torch.manual_seed(0)
    encoder = build_encoder(dim, 1, [(1,) * dim, (2,) * dim], NetworkConfig(widths=(4, 8)))
    config = TemplateConfig(hidden=16, out=8)
    return Template(encoder, config, MethodContext(dim, 1, (16,) * dim))


def test_low_variance_is_equation_1_written_as_a_loop() -> None:
    z = np.random.default_rng(0).normal(0, 0.5, (6, 3))
    expected = 0.0
    for channel in z.T:
        expected += max(0.0, 1 - np.sqrt(np.var(channel, ddof=1) + 1e-4)) / 3
    assert np.isclose(float(low_variance(torch.tensor(z))), expected)


def test_only_a_collapsed_batch_is_punished_fully() -> None:
    alike, apart = torch.ones(4, 3), torch.tensor([[2.0], [-2.0]])
    assert np.isclose(float(low_variance(alike)), 0.99), "1 - sqrt(1e-4)"
    assert float(low_variance(apart)) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_a_step_lowers_the_loss_and_reaches_the_encoder(dim: int) -> None:
    model = small_model(dim)
    batch = Batch(torch.randn(4, 2, 1, *[16] * dim))
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    before = torch.stack([*model.losses(batch, 0.0).values()]).sum()
    before.backward()
    optimiser.step()
    after = torch.stack([*model.losses(batch, 0.0).values()]).sum()
    assert float(after) < float(before)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())
