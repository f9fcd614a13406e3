"""PGL's moving-average target, figures, refusals; steps without values and under autocast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.batch import Batch, make_views
from MedSSLLib.data.patch_samplers import Pick, ViewSampler
from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.heads import spread
from MedSSLLib.methods.pgl import PGLConfig
from MedSSLLib.networks.ema import ema_update, frozen_copy, momentum_at
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import MemoryReader
from Testing.lib.pgl_helpers import PATCH, coordinate_batch, linear_pgl, random_batch, small_pgl

# --------------------------------------------------------------------------------- moving average


def test_momentum_schedule_in_closed_form() -> None:
    assert momentum_at(0.0, 0.996) == pytest.approx(0.996)
    assert momentum_at(0.5, 0.996) == pytest.approx(0.998)
    assert momentum_at(1.0, 0.996) == pytest.approx(1.0)
    assert momentum_at(1 / 3, 0.9) == pytest.approx(1 - 0.1 * 0.75)
    values = [momentum_at(t, 0.9) for t in np.linspace(0, 1, 50)]
    assert values == sorted(values)


def test_target_follows_weights_and_buffers_exactly() -> None:
    method = small_pgl(2, momentum=0.9).double()
    start = {n: p.clone() for n, p in method.state_dict().items() if n.startswith("target")}
    for tensor in (*method.encoder.state_dict().values(), *method.projectors.state_dict().values()):
        tensor.add_(1 if not tensor.is_floating_point() else torch.randn_like(tensor))
    online = {n: p.clone() for n, p in method.state_dict().items()}
    remaining = 1.0
    for progress in (0.0, 0.25, 0.5):
        method.after_step(progress)
        remaining *= 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
    for name, value in method.state_dict().items():
        if name.startswith("target"):
            new = online[name.removeprefix("target_")]
            want = (
                remaining * start[name] + (1 - remaining) * new
                if value.is_floating_point()
                else new
            )
            torch.testing.assert_close(value, want, atol=1e-12, rtol=1e-12, msg=name)
            assert not torch.equal(value, start[name]), f"{name} did not move"
        else:
            torch.testing.assert_close(value, online[name], atol=0, rtol=0, msg=name)


def test_target_batch_norm_uses_its_batch_and_keeps_its_buffers() -> None:
    online = nn.BatchNorm2d(3)
    target = frozen_copy(online)
    x = torch.randn(4, 3, 5, 5) * 3 + 2
    torch.testing.assert_close(target(x), online(x))
    assert target.running_mean.eq(0).all() and not online.running_mean.eq(0).all()
    ema_update(target, online, 0.25)
    torch.testing.assert_close(target.running_mean, 0.75 * online.running_mean)


# ----------------------------------------------------------------------------------- diagnostics,
# guards, devices


def test_diagnostics_tell_collapse_and_places_apart() -> None:
    method = linear_pgl(3, momentum=0.996)
    flips = [((0, 0, 0), (1, 0, 1))] * 4
    method.losses(coordinate_batch(3, 0, flips), 0.0)
    method.after_step(0.0)
    shown = method.diagnostics()
    assert shown["cosine"] == pytest.approx(1.0, abs=1e-9)
    assert shown["cosine_mismatched"] < 0.999
    assert float(shown["ema_momentum"]) == pytest.approx(0.996, abs=1e-6)
    assert all(value.dim() == 0 and not value.requires_grad for value in shown.values())
    constant = coordinate_batch(3, 0, flips)
    collapsed = Batch(torch.ones_like(constant.images), constant.geometry)
    healthy = float(shown["feature_std"])
    method.losses(collapsed, 0.0)
    assert float(method.diagnostics()["feature_std"]) < 1e-6 < healthy


def test_figures_are_not_rounded_in_half_precision() -> None:
    """In bfloat16 a momentum of 0.9985 would be told as 1, and cosines to two digits."""
    method, batch = small_pgl(3, momentum=0.997), random_batch(3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method.losses(batch, 0.0)
    method.after_step(0.5)
    shown = method.diagnostics()
    assert float(shown["ema_momentum"]) == pytest.approx(0.9985, abs=1e-6)
    assert {value.dtype for value in shown.values()} == {torch.float32}


@each("far", [0, 1, 3])
def test_the_share_of_places_that_both_views_show_is_told(far: int) -> None:
    method, batch = linear_pgl(3), coordinate_batch(3, 0, [((0, 0, 0), (1, 0, 1))] * 4)
    assert method.diagnostics() == {} and batch.geometry is not None
    method.losses(batch, 0.0)
    alike = float(method.diagnostics()["shared"])
    batch.geometry.lo[:far, 1] += 1000
    batch.geometry.hi[:far, 1] += 1000
    method.losses(batch, 0.0)
    counted = method._last[0].weight.flatten(1).mean(1)
    assert float(method.diagnostics()["shared"]) == pytest.approx(float(counted.sum()) / 8)
    assert counted[: 2 * far].sum() == 0 and alike > 0.9


@pytest.mark.parametrize("dim", [2, 3])
def test_every_sample_of_a_large_volume_has_places_to_compare(dim: int) -> None:
    """Drawn once, some of the samples would compare nothing; where all meet, no draw changes."""
    method = small_pgl(dim)

    def batch(shape: tuple[int, ...], inner: np.ndarray | None) -> Batch:
        reader = MemoryReader(
            {"c": np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)}, {}
        )
        sampler = ViewSampler(
            reader=reader,
            pick=lambda rng, step: [Pick("c", 3)] * 60,
            patch=PATCH[dim],
            spacing=(1.0,) * dim,
            augment=None,
            views=2,
            scale=(1.1, 1.4),
            min_overlap=0.1,
            flip=0.5,
            rotation=0.0,
            seed=0,
            inner=inner,
        )
        return make_views(sampler.sample(0), PATCH[dim], torch.device("cpu"))

    def empty(batch: Batch) -> float:
        method.losses(batch, 0.0)
        return float((method._last[0].weight.flatten(1).sum(1) == 0).float().mean())

    large, tight = (60, 100, 120), (9, 18, 34)
    assert method.inner is not None and small_pgl(dim, use_scale_prior=False).inner is None
    assert empty(batch(large, None)) > 0.05 and empty(batch(large, method.inner)) == 0
    assert empty(batch(tight, None)) == 0
    torch.testing.assert_close(
        batch(tight, method.inner).images, batch(tight, None).images, rtol=0, atol=0
    )


def test_spread_in_closed_form_whatever_the_lengths() -> None:
    """Collapse is that of directions: vectors of one direction and many lengths have collapsed,
    short ones have not.
    """
    x = torch.cat([torch.eye(4), -torch.eye(4)])[..., None].double()
    lengths = torch.logspace(-3, 2, 8, dtype=torch.float64)[:, None, None]
    assert float(spread(x * lengths)) == pytest.approx(
        1.0
    )  # each channel: two of 8 are +-1, so 1/2, times sqrt(4)
    assert float(spread(torch.ones(8, 4, 1, dtype=torch.float64) * lengths)) == pytest.approx(
        0.0, abs=1e-7
    )


def test_refuses_what_cannot_be_aligned() -> None:
    with pytest.raises(InputError, match="do not exist"):
        small_pgl(3, levels=(3,))
    with pytest.raises(InputError, match="too small to align"):
        small_pgl(3, context=MethodContext(3, 2, (2, 16, 16)))
    with pytest.raises(ValidationError):
        PGLConfig(rotation=10.0)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_whole_step_on_the_meta_device(dim: int) -> None:
    with torch.device("meta"):
        method = small_pgl(dim, levels=(1, 2))
        shape = (3, 2, dim)
        geometry = ViewGeometry(torch.zeros(shape), torch.ones(shape), torch.zeros(shape))
        batch = Batch(torch.randn(3, 2, 2, *PATCH[dim]), geometry)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    losses = method.losses(batch, 0.1)
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    method.after_step(0.1)
    assert all(value.is_meta for value in (*losses.values(), *method.diagnostics().values()))


def test_runs_under_autocast() -> None:
    method, batch = small_pgl(3), random_batch(3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (loss,) = method.losses(batch, 0.0).values()
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
