"""Corruptions by what they must keep and change, the loss by its formula, a step without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from MedSSLLib.data.batch import Batch
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.restoration import (
    CURVE,
    Corruption,
    Restoration,
    RestorationConfig,
    corrupt,
    look_up,
    sample_corruption,
)
from MedSSLLib.networks.unet import Encoder
from Testing.lib.case_helpers import each

PATCH = {2: (24, 40), 3: (8, 16, 24)}
OFF = {"shuffle": 0.0, "intensity": 0.0, "paint": 0.0}


def drawn(dim: int, n: int = 6, seed: int = 0, **options: float) -> tuple[torch.Tensor, Corruption]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 2, *PATCH[dim], generator=generator, dtype=torch.float64)
    return images, sample_corruption(images, RestorationConfig(**{**OFF, **options}), generator)


def small_restoration(dim: int) -> Restoration:
    encoder = Encoder(dim, 2, (4, 6, 8), ((1,) * dim, (2,) * dim, (2,) * dim))
    return Restoration(encoder, RestorationConfig(width=4), MethodContext(dim, 2, PATCH[dim]))


@pytest.mark.parametrize("dim", [2, 3])
def test_nothing_changes_when_everything_is_off(dim: int) -> None:
    images, corruption = drawn(dim)
    torch.testing.assert_close(corrupt(images, corruption), images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_shuffling_permutes_voxels_within_small_blocks(dim: int) -> None:
    images, corruption = drawn(dim, shuffle=1.0, block=0.2)
    size = PATCH[dim]
    n = corruption.order.shape[1]
    assert torch.equal(corruption.order.sort(1).values, torch.arange(n).expand(6, -1)), (
        "a permutation"
    )
    assert (corruption.order != torch.arange(n)).double().mean() > 0.5
    came = torch.stack(torch.unravel_index(corruption.order, size))
    stays = torch.stack(torch.unravel_index(torch.arange(n), size))
    for axis in range(dim):
        assert (came[axis] - stays[axis]).abs().max() < max(2, int(0.2 * size[axis]))
    changed = corrupt(images, corruption)
    torch.testing.assert_close(changed.flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    moved = images.flatten(2)[2][:, corruption.order[2]]
    torch.testing.assert_close(changed[2].flatten(1), moved)  # channels move together


def test_every_order_within_a_block_is_as_likely() -> None:
    """Blocks of two voxels: half of them are exchanged."""
    images = torch.zeros(4000, 1, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    order = sample_corruption(images, RestorationConfig(**{**OFF, "shuffle": 1.0}), generator).order
    straight = (order == torch.arange(4)).all(1).double().mean()
    # offset 0: two blocks, both straight with 1/4; offset 1: one inner block, straight with 1/2
    assert float(straight) == pytest.approx(0.5 * 0.25 + 0.5 * 0.5, abs=0.03)


def test_intensity_curves_are_monotone_and_keep_range_and_order() -> None:
    images, corruption = drawn(2, n=64, intensity=1.0)
    step = corruption.curve.diff(dim=1)
    rising, falling = (step >= 0).all(1), (step <= 0).all(1)
    assert (rising | falling).all() and rising.sum() > 16 and falling.sum() > 16
    assert corruption.curve.min() >= 0 and corruption.curve.max() <= 1
    assert corruption.curve.amax(1).min() > 0.99 and corruption.curve.amin(1).max() < 0.01
    changed = corrupt(images, corruption)
    assert (changed.amax((2, 3)) <= images.amax((2, 3)) + 1e-9).all()
    assert (changed.amin((2, 3)) >= images.amin((2, 3)) - 1e-9).all()
    i = int(rising.nonzero()[0])
    order = images[i, 0].flatten().argsort()
    assert (changed[i, 0].flatten()[order].diff() >= -1e-9).all()
    assert not torch.allclose(changed[i], images[i])


def test_curves_are_bezier_curves() -> None:
    """A curve with its points swapped in x and y mirrors it: rising curves scatter evenly about the
    diagonal.
    """
    _, corruption = drawn(2, n=4000, intensity=1.0)
    middle = corruption.curve[:, CURVE // 2]
    assert float(middle.mean()) == pytest.approx(0.5, abs=0.02)
    assert 0.1 < float(middle.std()) < 0.3


def test_look_up_is_linear_between_entries() -> None:
    curve = torch.tensor([[0.0, 1.0, 4.0]], dtype=torch.float64)
    x = torch.tensor([[[0.0, 0.25, 0.5, 0.75, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        look_up(curve, x), torch.tensor([[[0.0, 0.5, 1.0, 2.5, 4.0]]], dtype=torch.float64)
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_painting_replaces_boxes_or_all_but_boxes(dim: int) -> None:
    images, inside = drawn(dim, n=200, paint=1.0, outside=0.0)
    _, outside = drawn(dim, n=200, paint=1.0, outside=1.0)
    axes = list(range(1, dim + 2))
    low, high = (1 / 6) ** dim * 0.3, 5 * (1 / 3) ** dim * 1.5
    assert inside.painted.mean(axes).min() > low and inside.painted.mean(axes).max() < high
    assert outside.painted.mean(axes).max() < 1 - (3 / 7) ** dim * 0.5
    assert inside.painted.mean() < 0.5
    middle = (slice(None), 0, *(n // 2 for n in PATCH[dim]))
    corner = (slice(None), 0, *(0 for _ in PATCH[dim]))
    assert outside.painted[corner].mean() > 0.8 > 0.4 > outside.painted[middle].mean()
    changed = corrupt(images, inside)
    kept = inside.painted.expand_as(images) == 0
    torch.testing.assert_close(changed[kept], images[kept])
    assert not torch.allclose(changed[~kept], images[~kept])
    assert (changed.amax(axes) <= images.amax(axes) + 1e-9).all()
    assert (changed.amin(axes) >= images.amin(axes) - 1e-9).all()


def test_the_share_of_views_that_are_painted_outside_boxes_holds() -> None:
    """Five boxes of a third of each side fill less than a quarter of a volume; what is left around
    five boxes of about half a side is more.
    """
    for share in (0.8, 0.3):
        _, corruption = drawn(3, n=600, paint=1.0, outside=share)
        around = corruption.painted.mean((1, 2, 3, 4)) > 0.25
        assert float(around.double().mean()) == pytest.approx(share, abs=0.05)


@each(("name", "field"), [("shuffle", "order"), ("intensity", "curve"), ("paint", "painted")])
def test_probabilities_hold(name: str, field: str) -> None:
    _, corruption = drawn(2, n=400, **{name: 0.3})
    _, untouched = drawn(2, n=1)
    changed = (
        (getattr(corruption, field) != getattr(untouched, field)[:1])
        .flatten(1)
        .any(1)
        .double()
        .mean()
    )
    assert float(changed) == pytest.approx(0.3, abs=0.08)


def test_same_seed_same_corruption() -> None:
    options: dict[str, Any] = {"shuffle": 0.5, "intensity": 0.5, "paint": 0.5}
    first, second, third = (drawn(3, seed=seed, **options)[1] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.noise, third.noise)


@pytest.mark.parametrize("dim", [2, 3])
def test_loss_is_the_mean_square_to_the_clean_view(dim: int) -> None:
    method = small_restoration(dim).double()
    batch = Batch(torch.randn(3, 1, 2, *PATCH[dim], dtype=torch.float64))
    torch.manual_seed(5)
    (loss,) = method.losses(batch, 0.0).values()
    torch.manual_seed(5)
    clean = batch.images[:, 0]
    corrupted = corrupt(clean, sample_corruption(clean, method.config))
    restored = method.decoder(method.encoder(corrupted))
    assert restored.shape == clean.shape and not torch.allclose(corrupted, clean)
    torch.testing.assert_close(
        loss, ((restored - clean) ** 2).sum() / clean.numel(), atol=1e-9, rtol=0
    )
    explained = 1 - loss.detach() / clean.var(correction=0)
    torch.testing.assert_close(method.diagnostics()["explained"], explained)


def test_gradients_reach_encoder_and_decoder() -> None:
    method = small_restoration(3)
    method.losses(Batch(torch.randn(2, 1, 2, *PATCH[3])), 0.0)["restoration"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert method.encoder.stages[-1].conv1.conv.weight.grad.abs().sum() > 0


def test_constant_and_thin_views_stay_finite() -> None:
    config = RestorationConfig(shuffle=1.0, intensity=1.0, paint=1.0)
    for images in (torch.ones(4, 1, 8, 8), torch.randn(4, 1, 1, 8, 8)):
        assert corrupt(images, sample_corruption(images, config)).isfinite().all()


@pytest.mark.parametrize("dim", [2, 3])
def test_a_whole_step_on_the_meta_device(dim: int) -> None:
    with torch.device("meta"):
        method = small_restoration(dim)
        batch = Batch(torch.randn(3, 1, 2, *PATCH[dim]))
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    (loss,) = method.losses(batch, 0.1).values()
    loss.backward()
    optimiser.step()
    method.after_step(0.1)
    assert loss.is_meta and all(value.is_meta for value in method.diagnostics().values())


def test_asks_for_one_view_with_its_own_intensities() -> None:
    assert Restoration.views == 1 and not Restoration.intensity
