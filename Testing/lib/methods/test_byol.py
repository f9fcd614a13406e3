"""BYOL against its formula written out; its target; a step without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.byol import BYOL, BYOLConfig
from MedSSLLib.networks.alignment import Aligned
from MedSSLLib.networks.unet import Encoder

PATCH = {2: (8, 12), 3: (4, 8, 8)}


def small_byol(dim: int, norm: str = "batch", **options: Any) -> BYOL:
    encoder = Encoder(dim, 1, (4, 8), ((1,) * dim, (2,) * dim), norm)
    config = BYOLConfig(**{"hidden": 16, "out": 8, "head_norm": norm, **options})
    return BYOL(encoder, config, MethodContext(dim, 1, PATCH[dim]))


def written_out(method: BYOL, batch: Batch) -> Tensor:
    """Sum over both directions of the batch mean of 2 - 2 cos, on vectors, with linear layers for
    1x1 convolutions.
    """

    def vectors(encoder: nn.Module, head: nn.Module) -> Tensor:
        maps = encoder(batch.images.flatten(0, 1))[-1]
        return mlp(maps.flatten(2).mean(2), head)

    def mlp(x: Tensor, head: nn.Module) -> Tensor:
        first, norm, _, last = head
        x = x @ first.weight.flatten(1).T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
        return x.relu() @ last.weight.flatten(1).T + last.bias

    p = mlp(vectors(method.encoder, method.projectors[0]), method.predictors[0]).unflatten(
        0, (-1, 2)
    )
    t = vectors(method.target_encoder, method.target_projectors[0]).detach().unflatten(0, (-1, 2))
    cosine = [torch.cosine_similarity(p[:, v], t[:, 1 - v], dim=1) for v in (0, 1)]
    return sum((2 - 2 * c).mean() for c in cosine)  # type: ignore[return-value]


@pytest.mark.parametrize("dim", [2, 3])
def test_loss_and_gradients_equal_the_formula_written_out(dim: int) -> None:
    method = small_byol(dim).double()
    for parameter in method.target_encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    batch = Batch(torch.randn(4, 2, 1, *PATCH[dim], dtype=torch.float64))
    (loss,) = method.losses(batch, 0.0).values()
    want = written_out(method, batch)
    torch.testing.assert_close(loss, want, atol=1e-9, rtol=0)
    trained = [p for p in method.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(want, trained), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-5)


def test_loss_does_not_depend_on_where_the_views_lie_or_which_comes_first() -> None:
    method = small_byol(2, norm="group").double()
    images = torch.randn(3, 2, 1, *PATCH[2], dtype=torch.float64)
    (loss,) = method.losses(Batch(images), 0.0).values()
    (swapped,) = method.losses(Batch(images.flip(1)), 0.0).values()
    (rolled,) = method.losses(Batch(images[[2, 0, 1]]), 0.0).values()
    torch.testing.assert_close(swapped, loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(rolled, loss, atol=1e-12, rtol=0)


def test_a_place_masked_in_either_view_does_not_count() -> None:
    method = small_byol(2, norm="group").double()
    images = torch.randn(3, 2, 1, *PATCH[2], dtype=torch.float64)
    (want,) = method.losses(Batch(images[1:]), 0.0).values()
    for hidden in (0, 1):
        mask = torch.ones(6, 1, 1, 1, dtype=torch.float64)
        mask[hidden] = 0
        method.places = lambda x, geometry, index, mask=mask: Aligned(x, mask)  # type: ignore[method-assign]
        (loss,) = method.losses(Batch(images), 0.0).values()
        torch.testing.assert_close(loss, want, atol=1e-12, rtol=0)


def test_only_the_online_branch_learns_and_the_target_follows() -> None:
    method = small_byol(3, momentum=0.5)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    before = {n: p.clone() for n, p in method.named_parameters()}
    method.losses(Batch(torch.randn(4, 2, 1, *PATCH[3])), 0.0)["consistency"].backward()
    assert all(p.grad is None for n, p in method.named_parameters() if n.startswith("target"))
    optimiser.step()
    method.after_step(0.0)
    for name, parameter in method.named_parameters():
        if name.startswith("target"):
            online = method.get_parameter(name.removeprefix("target_"))
            torch.testing.assert_close(parameter, 0.5 * before[name] + 0.5 * online)
    assert not torch.equal(
        before["encoder.stages.0.conv1.conv.weight"], method.encoder.stages[0].conv1.conv.weight
    )


def test_mismatched_cosine_is_that_of_another_sample() -> None:
    method = small_byol(2)
    method.projectors = method.target_projectors = _Pass()  # type: ignore[assignment]
    method.predictors = nn.ModuleList([nn.Identity()])  # type: ignore[assignment]
    images = torch.zeros(2, 2, 1, *PATCH[2])
    images[0] += torch.randn(PATCH[2])
    images[1] += torch.randn(PATCH[2])
    method.losses(Batch(images), 0.0)
    shown = method.diagnostics()
    assert shown["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert shown["cosine_mismatched"] < 0.999


class _Pass(nn.Module):
    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return list(maps)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_whole_step_on_the_meta_device(dim: int) -> None:
    with torch.device("meta"):
        method = small_byol(dim)
        batch = Batch(torch.randn(3, 2, 1, *PATCH[dim]))
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    (loss,) = method.losses(batch, 0.1).values()
    loss.backward()
    optimiser.step()
    method.after_step(0.1)
    assert loss.is_meta and all(value.is_meta for value in method.diagnostics().values())
