"""Probabilities of whole cases with networks whose answer is known."""

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference

from MedSSLLib.data.plan import Plan
from MedSSLLib.inference import sliding_window
from MedSSLLib.inference.sliding_window import (
    predict_probabilities,
    probability_slabs,
    tile_size,
    uncertainty,
)
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import lone_fabric

CPU = lone_fabric().device


def plan(dim, patch, levels=2):
    strides = ((1,) * dim, *((2,) * dim for _ in range(levels)))
    return Plan(
        dim=dim,
        spacing=(1.0, 1.0, 1.0),
        slice_axis=2,
        modality=("MR",),
        channels=1,
        patch=patch,
        strides=strides,
    )


def per_voxel(x):
    """Logits of two classes from the voxel alone: tiling, padding and flipping must not show."""
    return torch.cat([-x, x], 1)


@each("dim", [2, 3])
@each("size", [(5, 9, 7), (8, 8, 8), (1, 30, 21), (13, 3, 2)])
@each("budget", [2**21, 600])
@each("flips", [False, True])
def test_a_voxelwise_network_gives_its_own_answer_everywhere(monkeypatch, dim, size, budget, flips):
    monkeypatch.setattr(sliding_window, "TILE_VOXELS", {2: budget // 8, 3: budget})
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    found = predict_probabilities(per_voxel, image, plan(dim, (8,) * dim), CPU, flips=flips)
    assert found.shape == (2, *size) and found.dtype == torch.float32
    np.testing.assert_allclose(found[1], 1 / (1 + np.exp(-2 * image[0])), atol=1e-5)


def test_tiles_equal_the_whole_volume_away_from_borders(monkeypatch):
    """A small receptive field: tiles differ from the whole only near the seams, and blending hides
    those.
    """
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)
    )
    net.eval()
    image = np.random.default_rng(1).normal(size=(1, 16, 40, 36)).astype(np.float32)
    whole = predict_probabilities(net, image, plan(3, (16, 16, 16)), CPU)
    monkeypatch.setattr(sliding_window, "TILE_VOXELS", {2: 0, 3: 16 * 16 * 32})
    tiled = predict_probabilities(net, image, plan(3, (16, 16, 16)), CPU)
    difference = (tiled - whole).abs().amax(0)
    assert (difference < 1e-4).float().mean() > 0.6, (
        "beyond the receptive field of a seam nothing changes"
    )
    assert difference.max() < 0.2 and difference.max() > 0, "the tiles were not used"


@each("size", [(40, 24, 30), (17, 33, 20), (9, 40, 41)])
@each("slab, halved", [(2**23, 2**27), (3000, 12000)])
def test_slabs_of_tiles_are_those_of_monai(monkeypatch, size, slab, halved):
    """The same tiles, weights and blending of logits, without the volume of all logits."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 3, padding=1)
    ).eval()
    made = plan(3, (8, 8, 8))
    monkeypatch.setattr(sliding_window, "TILE_VOXELS", {2: 0, 3: 8 * 16 * 16})
    monkeypatch.setattr(sliding_window, "SLAB", slab)
    monkeypatch.setattr(sliding_window, "HALVED", halved)
    image = np.random.default_rng(1).normal(size=(1, *size)).astype(np.float32)
    slabs = list(probability_slabs(net, image, made, CPU))
    assert len(slabs) > 1 and max(part.shape[1] for part in slabs) <= 8
    padded = [-(-n // 4) * 4 for n in size]
    whole = sliding_window._pad(torch.from_numpy(image)[None], padded)
    tile = tile_size(padded, (8, 8, 8), 8 * 16 * 16)
    with torch.inference_mode():
        logits = sliding_window_inference(whole, tile, 1, net, overlap=0.125, mode="gaussian")
    expected = logits[0].softmax(0)[:, : size[0], : size[1], : size[2]]
    kinds = 1e-5 if halved == 2**27 else 2e-3  # many logits are held in half precision
    torch.testing.assert_close(torch.cat(slabs, 1), expected, atol=kinds, rtol=0)


@each("size, tile", [(64, 16), (65, 16), (30, 16), (17, 16), (16, 16), (9, 16)])
def test_tiles_begin_where_those_of_monai_do(size, tile):
    step = max(1, int(tile * (1 - sliding_window.OVERLAP)))
    theirs = dense_patch_slices((size,), (min(tile, size),), (step,))
    assert sliding_window.tile_starts(size, tile) == [part[0].start for part in theirs]


@pytest.mark.parametrize("dim", [2, 3])
def test_flips_average_over_all_axes(dim):
    """A network that answers by position: averaged over flips, the answer is symmetric."""
    torch.manual_seed(0)
    weight = torch.randn(1, 2, 8, 8) if dim == 2 else torch.randn(1, 2, 8, 8, 8)
    image = np.zeros((1, 8, 8, 8), np.float32)
    found = predict_probabilities(
        lambda x: weight.expand(x.shape[0], *weight.shape[1:]),
        image,
        plan(dim, (8,) * dim),
        CPU,
        flips=True,
    )
    p = weight.softmax(1)[0]
    expected = sum(p.flip(axes) for axes in ([], [1], [2], [1, 2])) / 4
    if dim == 3:
        expected = (expected + expected.flip(3)) / 2
        torch.testing.assert_close(found, expected)
    else:
        torch.testing.assert_close(found[:, 3], expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_images_are_padded_to_whole_strides_with_their_edge(dim):
    seen = []

    def network(x):
        seen.append(x)
        return per_voxel(x)

    image = np.random.default_rng(0).normal(size=(1, 3, 9, 6)).astype(np.float32)
    predict_probabilities(network, image, plan(dim, (8,) * dim), CPU)
    assert all(n % 4 == 0 for n in seen[0].shape[2:])
    assert torch.equal(seen[0][..., 9:, :6], seen[0][..., 8:9, :6].expand_as(seen[0][..., 9:, :6]))


@each(
    ("size", "patch", "budget", "expected"),
    [
        ((64, 64, 64), (32, 32, 32), 64**3, (64, 64, 64)),
        ((64, 64, 64), (32, 32, 32), 32**3, (32, 32, 32)),
        ((16, 256, 256), (32, 64, 64), 16 * 64 * 128, (16, 64, 128)),
        ((16, 100, 40), (32, 64, 64), 10**9, (16, 100, 40)),
    ],
)
def test_tile_sizes(size, patch, budget, expected):
    found = tile_size(size, patch, budget)
    assert sorted(found) == sorted(expected) and np.prod(found) <= budget


def test_uncertainty_is_the_normalised_entropy():
    p = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])
    torch.testing.assert_close(uncertainty(p), torch.tensor([0.0, 1.0, 0.5]))


def test_where_tiles_overlap_the_answer_goes_over_from_one_to_the_next(monkeypatch):
    """A voxel near the border of a tile believes the tile it lies deeper in, instead of an equal
    mean of both.
    """
    monkeypatch.setattr(sliding_window, "TILE_VOXELS", {2: 8 * 32, 3: 0})
    calls = []

    def network(x):
        calls.append(len(calls))
        return torch.cat([0 * x, 0 * x + len(calls)], 1)

    found = predict_probabilities(
        network, np.zeros((1, 1, 8, 88), np.float32), plan(2, (8, 8)), CPU
    )
    across = found[1, 0, 4, 26:34].numpy()  # tiles begin at voxels 0, 28 and 56 and share four
    assert len(calls) == 3 and (np.diff(across[1:7]) > 1e-4).all()
    np.testing.assert_allclose(
        across[[0, -1]], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))], atol=1e-4
    )
