"""SimCLR against the softmax written out, its figures, gathering, a step without values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from MedSSLLib.data.batch import Batch
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.simclr import SimCLR, SimCLRConfig, partner_found
from MedSSLLib.networks.unet import Encoder

PATCH = {2: (8, 12), 3: (4, 8, 8)}


def small_simclr(dim: int, norm: str = "batch", **context: Any) -> SimCLR:
    encoder = Encoder(dim, 1, (4, 8), ((1,) * dim, (2,) * dim), norm)
    config = SimCLRConfig(hidden=16, out=8, head_norm=norm, temperature=0.2)
    return SimCLR(encoder, config, MethodContext(dim, 1, PATCH[dim], **context))


@pytest.mark.parametrize("dim", [2, 3])
def test_loss_equals_the_softmax_written_out(dim: int) -> None:
    method = small_simclr(dim).double()
    batch = Batch(torch.randn(3, 2, 1, *PATCH[dim], dtype=torch.float64))
    (loss,) = method.losses(batch, 0.0).values()
    with torch.no_grad():
        pooled = method.encoder(batch.images.flatten(0, 1))[-1].flatten(2).mean(2)
        z = method.projectors[0](pooled.view(6, 8, *(1,) * dim)).flatten(1)
        z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        partner = i + 1 - 2 * (i % 2)
        others = [math.exp(float(z[i] @ z[a]) / 0.2) for a in range(6) if a != i]
        total -= math.log(math.exp(float(z[i] @ z[partner]) / 0.2) / sum(others))
    assert float(loss.detach()) == pytest.approx(total / 6, abs=1e-9)


def test_gathered_embeddings_are_negatives() -> None:
    torch.manual_seed(0)
    alone = small_simclr(2, norm="group").double()
    images = torch.randn(4, 2, 1, *PATCH[2], dtype=torch.float64)
    (whole,) = alone.losses(Batch(images), 0.0).values()
    assert alone._last is not None
    elsewhere = alone._last[2:]
    part = small_simclr(2, norm="group", gather=lambda z: torch.cat([z, elsewhere])).double()
    part.load_state_dict(alone.state_dict())
    (gathered,) = part.losses(Batch(images[:2]), 0.0).values()
    torch.testing.assert_close(gathered, whole, atol=1e-10, rtol=0)


def test_figures_of_known_embeddings() -> None:
    method = small_simclr(2)
    assert method.diagnostics() == {}
    z = torch.eye(4).repeat_interleave(2, 0).view(4, 2, 4)
    method._last = z
    shown = {name: float(value) for name, value in method.diagnostics().items()}
    assert shown["cosine"] == pytest.approx(1.0) and shown["cosine_mismatched"] == pytest.approx(
        0.0
    )
    assert shown["retrieval"] == 1.0
    assert shown["feature_std"] == pytest.approx(math.sqrt(0.25 * 0.75) * 2)
    method._last = torch.ones(4, 2, 4)
    assert float(method.diagnostics()["feature_std"]) == pytest.approx(0.0, abs=1e-6)
    method._last = torch.randn(5, 3, 6)
    unit = torch.nn.functional.normalize(method._last, dim=2)
    same, other = _pair_cosines(unit)
    assert float(method.diagnostics()["cosine"]) == pytest.approx(same, abs=1e-5)
    assert float(method.diagnostics()["cosine_mismatched"]) == pytest.approx(other, abs=1e-5)


def _pair_cosines(z: Tensor) -> tuple[float, float]:
    same, other = [], []
    for i, v, j, w in torch.cartesian_prod(
        *(torch.arange(n) for n in (*z.shape[:2], *z.shape[:2]))
    ).tolist():
        if (i, v) != (j, w):
            (same if i == j else other).append(float(z[i, v] @ z[j, w]))
    return sum(same) / len(same), sum(other) / len(other)


def test_partner_is_found_only_when_nearest() -> None:
    z = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.95, 0.05], [-1.0, 0.0]]])
    assert float(partner_found(torch.nn.functional.normalize(z, dim=2))) == 0.0


@pytest.mark.parametrize("dim", [2, 3])
def test_a_whole_step_on_the_meta_device(dim: int) -> None:
    with torch.device("meta"):
        method = small_simclr(dim)
        batch = Batch(torch.randn(3, 2, 1, *PATCH[dim]))
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    (loss,) = method.losses(batch, 0.1).values()
    loss.backward()
    optimiser.step()
    method.after_step(0.1)
    assert loss.is_meta and all(value.is_meta for value in method.diagnostics().values())
