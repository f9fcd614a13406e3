"""PGL against closed forms and a plain re-computation: its geometry, its switches, its loss and
gradients.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from MedSSLLib.data.batch import Batch
from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.pgl import PGL
from MedSSLLib.networks.alignment import WindowBoxes, align
from Testing.lib.case_helpers import each
from Testing.lib.pgl_helpers import PATCH, coordinate_batch, linear_pgl, random_batch, small_pgl

# ------------------------------------------------------------------------------- geometry, end to
# end


@each("dim", [2, 3])
def test_views_of_a_linear_volume_agree_at_every_place(dim: int) -> None:
    """All pairs of flips x random boxes through views, a strided encoder and the alignment: the
    loss vanishes.
    """
    flips = list(product(product((0, 1), repeat=dim), repeat=2))
    method = linear_pgl(dim, levels=(0, 1, 2))
    batch = coordinate_batch(dim, seed=0, flips=flips)
    levels = method.compared(batch)
    assert len(levels) == 3
    for compared in levels:
        difference = (compared.prediction - compared.target).abs() * compared.weight[:, None]
        assert difference.max() <= 1e-6
        assert compared.weight.flatten(1).sum(1).min() > 0
    assert all(loss <= 1e-12 for loss in method.losses(batch, 0.0).values())


@each("options", [{"use_flip_prior": False}, {"use_scale_prior": False}])
@each("dim", [2, 3])
def test_without_a_prior_places_do_not_agree(dim: int, options: dict[str, bool]) -> None:
    flips = list(product(product((0, 1), repeat=dim), repeat=2))[:8]
    (loss,) = linear_pgl(dim, **options).losses(coordinate_batch(dim, 1, flips), 0.0).values()
    assert loss > 1e-3


def test_ignoring_where_strided_features_lie_would_misplace_flipped_views() -> None:
    """The half-voxel shift of strided convolutions is real: with plain boxes the flipped views
    disagree.
    """
    method = linear_pgl(3)
    batch = coordinate_batch(3, 0, [((0, 0, 0), (1, 1, 1))] * 4)
    method.extents[:] = torch.tensor([[[0.0] * 3, [1.0] * 3], [[0.125] * 3, [0.875] * 3]])
    (compared,) = method.compared(batch)
    assert ((compared.prediction - compared.target).abs() * compared.weight[:, None]).max() > 1.0


@each("flips", [False, True])
@each("dim", [2, 3])
def test_without_scale_prior_whole_maps_are_compared_position_by_position(
    dim: int, flips: bool
) -> None:
    method, batch = (
        small_pgl(dim, use_scale_prior=False, use_flip_prior=flips).double(),
        random_batch(dim),
    )
    images = batch.images.flatten(0, 1)
    assert batch.geometry is not None
    with torch.no_grad():
        z = method.projectors([method.encoder(images)[-1]])[0]
        t = method.target_projectors([method.target_encoder(images)[-1]])[0]
        if flips:
            z, t = (
                torch.stack(
                    [_turn(x, f) for x, f in zip(y, batch.geometry.flip.flatten(0, 1), strict=True)]
                )
                for y in (z, t)
            )
        p = method.predictors[0](z)
        distance = 2 - 2 * torch.cosine_similarity(
            p, t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), dim=1
        )
    (loss,) = method.losses(batch, 0.0).values()
    torch.testing.assert_close(
        loss.detach(), distance[0::2].mean() + distance[1::2].mean(), atol=1e-9, rtol=0
    )


def _turn(x: Tensor, flip: Tensor) -> Tensor:
    return x.flip([a + 1 for a, f in enumerate(flip.tolist()) if f])


# ----------------------------------------------------------------------------- loss and gradients


def plain_loss(method: PGL, batch: Batch) -> Tensor:
    """The loss of a single-level method written out sample by sample; the target is treated as
    data.
    """
    images, geometry = batch.images.flatten(0, 1), batch.geometry
    assert geometry is not None
    level = method.levels[0]
    z = method.projectors([method.encoder(images)[level]])[0]
    t = method.target_projectors([method.target_encoder(images)[level]])[0].detach()
    aligned, targets, masks = [], [], []
    for i, v in product(range(len(geometry.lo)), range(2)):
        maps, centres = zip(
            *(_feature_box(geometry, i, w, z.shape[2:], images.shape[2:]) for w in (0, 1)),
            strict=True,
        )
        shared = WindowBoxes(
            torch.maximum(*(c[0] for c in centres))[None],
            torch.minimum(*(c[1] for c in centres))[None],
        )
        k, f = 2 * i + v, geometry.flip[i, v]
        box = WindowBoxes(*(edge[None] for edge in maps[v]))
        for x, found in ((z, aligned), (t, targets)):
            one = align(x[k : k + 1], box, shared, f[None], z.shape[2:], method.config.samples)
            found.append(one.features)
        masks.append(one.mask)
    predictions = method.predictors[0](torch.cat(aligned))
    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for k, prediction in enumerate(predictions):
        other = k + 1 - 2 * (k % 2)
        weight = (masks[k] * masks[other])[0, 0]
        distance = 2 - 2 * torch.cosine_similarity(prediction, targets[other][0], dim=0)
        sums[k % 2][0] = sums[k % 2][0] + (distance * weight).sum()
        sums[k % 2][1] = sums[k % 2][1] + weight.sum()
    return sums[0][0] / sums[0][1] + sums[1][0] / sums[1][1]


def _feature_box(
    geometry: ViewGeometry, i: int, v: int, size: Any, patch: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Box of a map whose voxels sit at image voxels 0, T, 2T ..., and the box of its outer voxel
    centres.
    """
    centres = []
    for a, (n, p) in enumerate(zip(size, patch, strict=True)):
        lo, hi = geometry.lo[i, v, a], geometry.hi[i, v, a]
        seen = (torch.arange(0, p, p // n, dtype=torch.float64) + 0.5) / p
        place = hi - seen * (hi - lo) if geometry.flip[i, v, a] else lo + seen * (hi - lo)
        centres.append((place.min(), place.max(), (place[1] - place[0]).abs()))
    low, high, step = (torch.stack(x) for x in zip(*centres, strict=True))
    return [low - step / 2, high + step / 2], [low, high]


@pytest.mark.parametrize("dim", [2, 3])
def test_loss_and_gradients_equal_the_formula_written_out(dim: int) -> None:
    method, batch = small_pgl(dim).double(), random_batch(dim)
    for parameter in method.target_encoder.parameters():
        parameter.data.add_(
            0.1 * torch.randn_like(parameter)
        )  # the target differs from the online branch
    trained = [p for p in method.parameters() if p.requires_grad]
    (loss,) = method.losses(batch, 0.0).values()
    want = plain_loss(method, batch)
    torch.testing.assert_close(loss, want, atol=1e-10, rtol=0)
    got = torch.autograd.grad(loss, trained)
    for a, b in zip(got, torch.autograd.grad(want, trained), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


def test_only_the_online_branch_learns() -> None:
    method = small_pgl(3)
    sum(method.losses(random_batch(3, dtype=torch.float32), 0.0).values()).backward()
    for name, parameter in method.named_parameters():
        if name.startswith("target"):
            assert not parameter.requires_grad and parameter.grad is None, name
        elif name.startswith("encoder.stages.0"):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    online = {id(p) for p in (*method.encoder.parameters(), *method.projectors.parameters())}
    target = {
        id(p) for p in (*method.target_encoder.parameters(), *method.target_projectors.parameters())
    }
    assert not online & target


def test_gradient_is_the_derivative_with_the_target_held_fixed() -> None:
    """A central difference over an online weight, in float64; a target that follows it would give
    another slope.
    """
    method, batch = small_pgl(2).double(), random_batch(2)
    weight = method.projectors[0][0].weight
    (loss,) = method.losses(batch, 0.0).values()
    slope = torch.autograd.grad(loss, weight)[0].flatten()[3]
    values = []
    for sign in (1, -1):
        weight.data.view(-1)[3] += sign * 1e-5
        values.append(method.losses(batch, 0.0)["consistency"].detach())
        weight.data.view(-1)[3] -= sign * 1e-5
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, slope, rtol=1e-5, atol=1e-9)


def test_losses_change_nothing_but_running_statistics_of_the_online_branch() -> None:
    method = small_pgl(3)
    before = deepcopy(method.state_dict())
    method.losses(random_batch(3, dtype=torch.float32), 0.5)
    for name, value in method.state_dict().items():
        if "running" not in name and "num_batches" not in name or name.startswith("target"):
            torch.testing.assert_close(value, before[name], atol=0, rtol=0, msg=name)


def test_samples_without_common_part_do_not_count() -> None:
    method, batch = small_pgl(2, norm="group").double(), random_batch(2, b=3)
    assert batch.geometry is not None
    (alone,) = method.losses(Batch(batch.images[:2], _first(batch.geometry, 2)), 0.0).values()
    batch.geometry.lo[2, 1] += 1000
    batch.geometry.hi[2, 1] += 1000
    (loss,) = method.losses(batch, 0.0).values()
    torch.testing.assert_close(loss, alone, atol=1e-10, rtol=0)
    far = ViewGeometry(
        *(x[2:] for x in (batch.geometry.lo, batch.geometry.hi, batch.geometry.flip))
    )
    (nothing,) = method.losses(Batch(batch.images[2:], far), 0.0).values()
    nothing.backward()
    assert nothing == 0 and all(
        p.grad is None or p.grad.isfinite().all() for p in method.parameters()
    )


def _first(geometry: ViewGeometry, n: int) -> ViewGeometry:
    return ViewGeometry(geometry.lo[:n], geometry.hi[:n], geometry.flip[:n])


def test_parts_of_a_batch_reduce_to_the_loss_of_the_whole() -> None:
    """Two processes that add up their sums see the loss of the global batch."""
    whole = small_pgl(2, norm="group").double()
    batch = random_batch(2, b=4)
    assert batch.geometry is not None
    (want,) = whole.losses(batch, 0.0).values()
    parts = [
        Batch(
            batch.images[i::2],
            ViewGeometry(
                *(x[i::2] for x in (batch.geometry.lo, batch.geometry.hi, batch.geometry.flip))
            ),
        )
        for i in (0, 1)
    ]
    seen: list[Tensor] = []
    context = MethodContext(2, 2, PATCH[2], reduce=lambda x: seen.append(x) or x)
    method = small_pgl(2, norm="group", context=context).double()
    method.load_state_dict(whole.state_dict())
    for part in parts:
        method.losses(part, 0.0)
    (total, count) = seen[0] + seen[1]
    torch.testing.assert_close(2 * total / count, want, atol=1e-10, rtol=0)


def test_prediction_may_be_aligned_instead_of_the_projection() -> None:
    torch.manual_seed(0)
    first = small_pgl(3).double()
    second = small_pgl(3, align_after="predictor").double()
    second.load_state_dict(first.state_dict())
    batch = random_batch(3)
    a, b = first.losses(batch, 0.0)["consistency"], second.losses(batch, 0.0)["consistency"]
    assert a.isfinite() and b.isfinite() and not torch.isclose(a, b)


def test_several_levels_give_one_term_each() -> None:
    method = small_pgl(3, levels=(-1, 1), bins=3)
    losses = method.losses(random_batch(3, dtype=torch.float32), 0.0)
    assert list(losses) == ["consistency_1", "consistency_2"]
    assert all(loss.dim() == 0 and 0 <= loss <= 8 for loss in losses.values())
    assert method.compared(random_batch(3, dtype=torch.float32))[0].weight.shape[1:] == (3, 3, 3)
