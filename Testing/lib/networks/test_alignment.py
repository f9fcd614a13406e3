"""Alignment against closed forms, a naive loop over bins, and `grid_sample`."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from MedSSLLib.networks.alignment import Aligned, WindowBoxes, align, common_box
from Testing.lib.case_helpers import each

FLIPS = {dim: list(product((0.0, 1.0), repeat=dim)) for dim in (2, 3)}
PATCH = {2: (16, 24), 3: (16, 24, 32)}
POOL = {2: (2, 4), 3: (2, 4, 4)}


def random_views(dim: int, n: int, seed: int) -> WindowBoxes:
    """Two boxes each of n samples, 110-140 % of the patch, near enough to overlap."""
    rng = np.random.default_rng(seed)
    patch = np.array(PATCH[dim], float)
    side = rng.uniform(1.1, 1.4, (n, 2, dim)) * patch
    lo = rng.uniform(0, 0.5, (n, 2, dim)) * patch
    return WindowBoxes(torch.tensor(lo), torch.tensor(lo + side))


def linear_view(lo: torch.Tensor, hi: torch.Tensor, flip: torch.Tensor, dim: int) -> torch.Tensor:
    """A view of a volume whose channel a holds the coordinate a of every position."""
    patch = PATCH[dim]
    axes = []
    for a, size in enumerate(patch):
        index = torch.arange(size, dtype=torch.float64)
        index = torch.where(flip[:, a, None] > 0, size - 1 - index, index)
        axes.append(lo[:, a, None] + (index + 0.5) / size * (hi - lo)[:, a, None])
    grids = [
        x.reshape(len(lo), *(size if k == a else 1 for k, size in enumerate(patch)))
        for a, x in enumerate(axes)
    ]
    return torch.stack([g.expand(len(lo), *patch) for g in grids], 1)


def view_of(views: WindowBoxes, v: int) -> WindowBoxes:
    return WindowBoxes(views.lo[:, v], views.hi[:, v])


def naive_align(
    features: np.ndarray, view: tuple, region: tuple, flip: np.ndarray, bins: tuple, r: int
) -> tuple:
    """One item, point by point; on a flipped axis b' = (S - b_hi, S - b_lo) and bins are walked
    backwards.
    """
    sizes, dim = features.shape[1:], len(bins)
    out, mask = np.zeros((features.shape[0], *bins)), np.zeros(bins)
    for k in np.ndindex(*bins):
        values, inside = [], True
        for sub in np.ndindex(*(r,) * dim):
            corners = []
            for a in range(dim):
                scale = sizes[a] / (view[1][a] - view[0][a])
                b_lo, b_hi = (
                    (region[0][a] - view[0][a]) * scale,
                    (region[1][a] - view[0][a]) * scale,
                )
                step, part = k[a], sub[a]
                if flip[a]:
                    b_lo, b_hi = sizes[a] - b_hi, sizes[a] - b_lo
                    step, part = bins[a] - 1 - k[a], r - 1 - sub[a]
                p = b_lo + (step + (part + 0.5) / r) / bins[a] * (b_hi - b_lo)
                inside &= 0.5 - 1e-9 <= p <= sizes[a] - 0.5 + 1e-9
                q = min(max(p, 0.5), sizes[a] - 0.5) - 0.5
                base = min(int(np.floor(q)), sizes[a] - 1)
                corners.append([(base, 1 - (q - base)), (min(base + 1, sizes[a] - 1), q - base)])
            terms = [
                (np.prod([w for _, w in c]), tuple(i for i, _ in c)) for c in product(*corners)
            ]
            values.append(sum(weight * features[(slice(None), *index)] for weight, index in terms))
        out[(slice(None), *k)], mask[k] = np.mean(values, axis=0), inside
    return out, mask * float(all(h > low for low, h in zip(*region, strict=True)))


@each("samples", [1, 2, 3])
@each("pool", [False, True], ids=["identity", "average"])
@each("dim", [2, 3])
def test_linear_volume_aligns_exactly_for_every_pair_of_flips(
    dim: int, pool: bool, samples: int
) -> None:
    pairs = list(product(FLIPS[dim], repeat=2))
    views = random_views(dim, len(pairs), seed=dim)
    flips = torch.tensor(pairs, dtype=torch.float64)
    bins = (5, 7, 6)[:dim]
    region = common_box(views)
    maps = []
    for v in (0, 1):
        x = linear_view(views.lo[:, v], views.hi[:, v], flips[:, v], dim)
        if pool:
            x = (functional.avg_pool2d if dim == 2 else functional.avg_pool3d)(x, POOL[dim])
        maps.append(align(x, view_of(views, v), region, flips[:, v], bins, samples))
    both = maps[0].mask * maps[1].mask
    assert both.flatten(1).sum(1).min() > 0, "every pair keeps some bins"
    assert ((maps[0].features - maps[1].features) * both).abs().max() <= 1e-9
    for a in range(dim):  # and the value is the position of the bin's centre in the source window
        centre = (torch.arange(bins[a], dtype=torch.float64) + 0.5) / bins[a]
        centre = region.lo[:, a, None] + centre * (region.hi - region.lo)[:, a, None]
        centre = centre.reshape(len(pairs), *(bins[a] if k == a else 1 for k in range(dim)))
        assert ((maps[0].features[:, a] - centre) * both[:, 0]).abs().max() <= 1e-9


@each("samples", [1, 2])
@each("dim", [2, 3])
def test_equals_naive_loop_over_bins(dim: int, samples: int) -> None:
    views = random_views(dim, 3, seed=7)
    flip = torch.tensor([(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)], dtype=torch.float64)[
        :, :dim
    ]
    region = common_box(views)
    region = WindowBoxes(
        region.lo - 3.0, region.hi + 2.0
    )  # wider than the views: some bins must be masked
    x = torch.randn(3, 2, *(4, 5, 3)[:dim], dtype=torch.float64)
    bins = (3, 4, 5)[:dim]
    got = align(x, view_of(views, 0), region, flip, bins, samples)
    masked = 0.0
    for i in range(3):
        box = (views.lo[i, 0].numpy(), views.hi[i, 0].numpy())
        want, mask = naive_align(
            x[i].numpy(),
            box,
            (region.lo[i].numpy(), region.hi[i].numpy()),
            flip[i].numpy(),
            bins,
            samples,
        )
        np.testing.assert_allclose(got.features[i].numpy(), want, atol=1e-12)
        np.testing.assert_array_equal(got.mask[i, 0].numpy(), mask)
        masked += (1 - mask).sum()
    assert masked > 0


@pytest.mark.parametrize("dim", [2, 3])
def test_equals_grid_sample_and_pooling(dim: int) -> None:
    views, r, bins = random_views(dim, 4, seed=11), 3, (4, 3, 5)[:dim]
    region, x = common_box(views), torch.randn(4, 3, *(6, 5, 8)[:dim], dtype=torch.float64)
    lo, hi = views.lo[:, 1], views.hi[:, 1]
    axes = []
    for a, n in enumerate(bins):
        t = (torch.arange(n * r, dtype=torch.float64) + 0.5) / (n * r)
        p = (region.lo[:, a, None] + t * (region.hi - region.lo)[:, a, None] - lo[:, a, None]) / (
            hi - lo
        )[:, a, None]
        axes.append((2 * p - 1).reshape(4, *(n * r if k == a else 1 for k in range(dim))))
    grid = torch.stack(torch.broadcast_tensors(*reversed(axes)), -1)
    fine = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    want = (functional.avg_pool2d if dim == 2 else functional.avg_pool3d)(fine, r)
    got = align(x, view_of(views, 1), region, torch.zeros(4, dim), bins, r).features
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_whole_view_without_flip_is_the_identity_and_a_flip_reverses() -> None:
    x = torch.randn(2, 4, 5, 3, 6)
    box = WindowBoxes(
        torch.full((2, 3), 10.3), torch.tensor([[27.1, 41.7, 33.9], [20.0, 20.0, 20.0]])
    )
    same = align(x, box, box, torch.zeros(2, 3), x.shape[2:], samples=1)
    torch.testing.assert_close(same.features, x, atol=1e-5, rtol=1e-5)
    assert same.mask.min() == 1, "rounding must not mask the outer voxels"
    flip = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    turned = align(x, box, box, flip, x.shape[2:], samples=1).features
    torch.testing.assert_close(
        turned, torch.stack([x[0].flip(1), x[1].flip(2, 3)]), atol=1e-5, rtol=1e-5
    )


def test_mask_in_closed_form() -> None:
    """View [0, 8) as 4 features, region [-1, 7) in 8 bins: centres k / 2 - 1/4, valid in [1/2,
    7/2].
    """
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    view, region = WindowBoxes(zeros, zeros + 8), WindowBoxes(zeros - 1, zeros + 7)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    along = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(
        align(x, view, region, zeros, (8, 8), 1).mask[0, 0], along[:, None] * along
    )
    turned = align(x, view, region, torch.tensor([[1.0, 0.0]]), (8, 8), 1).mask[0, 0]
    torch.testing.assert_close(
        turned, along[:, None] * along
    )  # bins follow the source: a flip moves nothing
    wide = align(x, view, WindowBoxes(zeros, zeros + 8), zeros, (4, 4), 2).mask[0, 0]
    torch.testing.assert_close(
        wide, torch.tensor([0.0, 1, 1, 0], dtype=torch.float64).outer(wide[1])
    )


def test_views_that_do_not_meet_are_masked() -> None:
    views = WindowBoxes(
        torch.tensor([[[0.0, 0.0], [4.0, 9.0]]]), torch.tensor([[[8.0, 8.0], [12.0, 17.0]]])
    )
    region = common_box(views)
    out = align(torch.randn(1, 2, 8, 8), view_of(views, 0), region, torch.zeros(1, 2), (4, 4))
    assert out.mask.sum() == 0 and out.features.isfinite().all()


def test_items_are_independent_of_their_batch() -> None:
    views, flip = random_views(3, 4, seed=5), torch.tensor(FLIPS[3][:4])
    region, x = common_box(views), torch.randn(4, 2, 4, 4, 4, dtype=torch.float64)
    whole = align(x, view_of(views, 0), region, flip, (3, 3, 3))
    for i in range(4):
        one = WindowBoxes(views.lo[i : i + 1, 0], views.hi[i : i + 1, 0])
        alone = align(
            x[i : i + 1],
            one,
            WindowBoxes(region.lo[i : i + 1], region.hi[i : i + 1]),
            flip[i : i + 1],
            (3, 3, 3),
        )
        torch.testing.assert_close(alone.features[0], whole.features[i], atol=1e-14, rtol=0)


def test_gradcheck() -> None:
    views = random_views(3, 2, seed=3)
    region, flip = common_box(views), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    x = torch.randn(2, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda t: align(t, view_of(views, 0), region, flip, (2, 3, 2)).features, (x,)
    )


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    views = random_views(2, 2, seed=1)
    views = WindowBoxes(views.lo + 300, views.hi + 300)
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    args = (view_of(views, 0), common_box(views), torch.zeros(2, 2), (3, 3))
    out = align(x, *args)
    assert out.features.dtype == out.mask.dtype == dtype
    wide = x.to(torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(out.features, align(wide, *args).features.to(dtype), atol=0, rtol=0)


def test_is_not_rounded_by_autocast() -> None:
    views, x = random_views(2, 2, seed=1), torch.randn(2, 3, 4, 4)
    args = (view_of(views, 0), common_box(views), torch.zeros(2, 2), (3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = align(x, *args).features
    torch.testing.assert_close(mixed, align(x, *args).features, atol=0, rtol=0)


def test_runs_without_values_on_the_meta_device() -> None:
    meta = torch.device("meta")
    box = WindowBoxes(torch.zeros(2, 3, device=meta), torch.ones(2, 3, device=meta))
    x = torch.randn(2, 4, 3, 3, 3, device=meta, requires_grad=True)
    out = align(x, box, box, torch.zeros(2, 3, device=meta), (2, 2, 2))
    out.features.sum().backward()
    assert (
        isinstance(out, Aligned)
        and out.features.shape == (2, 4, 2, 2, 2)
        and out.mask.shape == (2, 1, 2, 2, 2)
    )


def test_agrees_with_the_views_that_are_made() -> None:
    """End to end with the data side: a coordinate volume, its views by `views.py`, aligned."""
    from MedSSLLib.data.spatial import ViewGeometry, resample_views, sampling_grid

    size, patch, n = (20, 26, 30), (12, 14, 16), 8
    rng = np.random.default_rng(0)
    side = rng.uniform(0.6, 0.8, (n, 2, 3)) * size
    lo = 0.5 + rng.uniform(size=(n, 2, 3)) * (np.array(size) - 1 - side)
    lo, hi = torch.tensor(lo), torch.tensor(lo + side)
    flip = torch.tensor(rng.random((n, 2, 3)) < 0.5, dtype=torch.float64)
    axes = torch.meshgrid(
        *(torch.arange(s, dtype=torch.float64) + 0.5 for s in size), indexing="ij"
    )
    volume = torch.stack(axes)[None].expand(n, -1, -1, -1, -1)
    grid = sampling_grid(ViewGeometry(lo, hi, flip), size, patch)
    images = resample_views(volume.repeat_interleave(2, 0), grid).unflatten(0, (-1, 2))
    views = WindowBoxes(lo, hi)
    a, b = (
        align(images[:, v], view_of(views, v), common_box(views), flip[:, v], (5, 5, 5))
        for v in (0, 1)
    )
    both = a.mask * b.mask
    assert both.sum() > 0 and ((a.features - b.features) * both).abs().max() <= 1e-6


@pytest.mark.parametrize("dim, layout", [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_aligned_features_are_channels_last(dim, layout):
    """The heads' convolutions would otherwise copy every map to and fro."""
    size = (6,) * dim
    box = WindowBoxes(torch.zeros(2, dim), torch.full((2, dim), 6.0))
    found = align(torch.randn(2, 8, *size), box, box, torch.zeros(2, dim), size)
    assert found.features.is_contiguous(memory_format=layout)
