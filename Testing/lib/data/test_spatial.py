"""Views: a linear volume seen through any box, flip, rotation and zoom has a closed form."""

import itertools

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data.spatial import (
    ViewGeometry,
    meeting_boxes,
    overlap_fraction,
    resample_boxes,
    resample_labels,
    resample_views,
    sample_boxes,
    sample_flips,
    sample_rotations,
    sample_segmentation_views,
    sampling_grid,
)
from MedSSLLib.images.labels import IGNORE
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import PLAIN

F64 = torch.float64


def positions(geometry, patch):
    """Where each voxel of each view lies, by the definition: centre + R (half * sign * u), ``[b, v,
    *patch, s]``.
    """
    axes = [2 * (torch.arange(n, dtype=F64) + 0.5) / n - 1 for n in patch]
    u = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    half, centre = (geometry.hi - geometry.lo) / 2, (geometry.hi + geometry.lo) / 2
    out = torch.empty(*geometry.lo.shape[:2], *patch, len(patch), dtype=F64)
    for b, v in np.ndindex(*geometry.lo.shape[:2]):
        local = u * half[b, v] * (1 - 2 * geometry.flip[b, v])
        if geometry.rotation is not None:
            local = local @ geometry.rotation[b, v].T
        out[b, v] = centre[b, v] + local
    return out


def ramp(window, b, slopes):
    """Windows ``[b, 1, *window]`` whose value at continuous position x is slopes . x."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=F64) + 0.5 for n in window], indexing="ij")
    return sum(s * a for s, a in zip(slopes, axes, strict=True)).expand(b, 1, *window)


@pytest.mark.parametrize("dim", [2, 3])
def test_every_box_and_flip_of_a_linear_volume_equals_the_closed_form(dim):
    window, patch, slopes = (
        (17, 23, 14)[:dim],
        (6, 8, 5)[:dim],
        torch.tensor([1.0, -0.7, 0.31][:dim], dtype=F64),
    )
    flips = torch.tensor(list(itertools.product([0.0, 1.0], repeat=dim)), dtype=F64)
    rng = np.random.default_rng(0)
    for _ in range(5):
        lo = torch.from_numpy(rng.uniform(0.5, 3, size=(len(flips), 2, dim)))
        hi = torch.from_numpy(rng.uniform(0.6, 0.9, size=(len(flips), 2, dim)) * np.asarray(window))
        geometry = ViewGeometry(lo, hi, flips[:, None].expand(-1, 2, -1).contiguous())
        seen = resample_views(
            ramp(window, 2 * len(flips), slopes), sampling_grid(geometry, window, patch)
        )[:, 0]
        torch.testing.assert_close(
            seen.unflatten(0, (-1, 2)), positions(geometry, patch) @ slopes, rtol=0, atol=1e-11
        )


@each("spacing", [(1.0, 1.0), (1.0, 2.0), (1.0, 1.0, 1.0), (1.7, 1.0, 0.9)])
def test_rotated_flipped_boxes_of_a_linear_volume_equal_the_closed_form(spacing):
    dim = len(spacing)
    window, patch = (41, 43, 39)[:dim], (7, 6, 5)[:dim]
    slopes = torch.tensor([1.0, -0.7, 0.31][:dim], dtype=F64)
    rng = np.random.default_rng(1)
    rotation = torch.from_numpy(sample_rotations(rng, 6, spacing, 40)).view(6, 1, dim, dim)
    centre = torch.from_numpy(rng.uniform(18, 22, (6, 1, dim)))
    half = torch.from_numpy(rng.uniform(3, 6, (6, 1, dim)))
    flip = torch.from_numpy(sample_flips(rng, (6, 1, dim), 0.5)).double()
    geometry = ViewGeometry(centre - half, centre + half, flip, rotation)
    seen = resample_views(ramp(window, 6, slopes), sampling_grid(geometry, window, patch))
    torch.testing.assert_close(seen, positions(geometry, patch) @ slopes, rtol=0, atol=1e-11)


@each("spacing", [(1.0, 1.0), (0.5, 0.9), (1.0, 1.0, 1.0), (1.9, 1.0, 1.3), (5.0, 1.0, 1.3)])
def test_rotations_are_rigid_in_millimetres_and_stay_in_plane_for_thick_slices(spacing):
    mm = np.asarray(spacing)
    matrices = sample_rotations(np.random.default_rng(2), 20, spacing, 30)
    rigid = np.diag(mm) @ matrices @ np.diag(1 / mm)
    np.testing.assert_allclose(
        rigid @ rigid.swapaxes(1, 2), np.tile(np.eye(len(mm)), (20, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rigid), 1, atol=1e-12)
    assert not np.allclose(rigid, np.eye(len(mm)))
    if spacing[0] == 5.0:
        np.testing.assert_array_equal(matrices[:, 0], np.tile([1, 0, 0], (20, 1)))


def test_rotation_angles_fill_the_range_and_no_more():
    matrices = sample_rotations(np.random.default_rng(3), 4000, (1.0, 1.0), 25)
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 24 < angles.max() <= 25 and -25 <= angles.min() < -24 and abs(angles.mean()) < 1


@pytest.mark.parametrize("dim", [2, 3])
def test_the_identity_view_is_the_exact_crop_of_image_and_label(dim):
    window, patch, lo = (
        (12, 14, 10)[:dim],
        (6, 6, 4)[:dim],
        torch.tensor([3.0, 5, 2])[:dim].view(1, 1, -1),
    )
    image = torch.randn(1, 2, *window)
    label = torch.randint(0, 5, (1, *window), dtype=torch.uint8)
    geometry = ViewGeometry(lo, lo + torch.tensor(patch), torch.zeros(1, 1, dim))
    grid = sampling_grid(geometry, window, patch)
    crop = tuple(slice(int(a), int(a) + n) for a, n in zip(lo.flatten(), patch, strict=True))
    torch.testing.assert_close(
        resample_views(image, grid)[0], image[0, :, *crop], rtol=0, atol=1e-5
    )
    assert torch.equal(resample_labels(label, grid)[0], label[0, *crop])


@each("axis", [0, 1, 2])
def test_a_flip_reverses_its_axis_alone(axis):
    image = torch.randn(1, 1, 6, 7, 8)
    flip = torch.zeros(1, 1, 3)
    flip[..., axis] = 1
    geometry = ViewGeometry(torch.zeros(1, 1, 3), torch.tensor([[[6.0, 7, 8]]]), flip)
    seen = resample_views(image, sampling_grid(geometry, (6, 7, 8), (6, 7, 8)))
    torch.testing.assert_close(seen, image.flip(axis + 2), rtol=0, atol=1e-5)


def test_label_and_image_agree_and_outside_is_ignored():
    """A smooth image carries its own class map: after any view the map is the image's threshold,
    but at the edge.
    """
    rng = np.random.default_rng(4)
    window, patch = (24, 26, 22), (12, 12, 12)
    image = ramp(window, 8, (1.0, 0.5, -0.25)).float()
    label = (image[:, 0] > image.mean()).to(torch.uint8) * 3
    geometry = sample_segmentation_views(
        rng, 8, window, patch, (1.0, 1.2, 1.5), AugmentConfig(affine=1, flip=0.5, elastic=1)
    )
    grid = sampling_grid(geometry, window, patch)
    seen, labels = resample_views(image, grid)[:, 0], resample_labels(label, grid)
    inside = (grid.abs() < 1 - 0.1).all(-1)
    clear = (
        seen - image.mean()
    ).abs() > 1.75 / 2  # further from the edge than nearest neighbour can be
    assert (inside & clear).float().mean() > 0.5
    assert torch.equal(
        labels[inside & clear], ((seen > image.mean()) * 3).to(torch.uint8)[inside & clear]
    )
    shifted = ViewGeometry(
        torch.full((1, 1, 3), -6.0), torch.full((1, 1, 3), 6.0), torch.zeros(1, 1, 3)
    )
    outside = resample_labels(
        torch.zeros(1, 24, 24, 24, dtype=torch.uint8), sampling_grid(shifted, (24,) * 3, (12,) * 3)
    )
    assert (outside[0, 6:, 6:, 6:] == 0).all() and (outside == 0).sum() == 6**3
    assert (outside[0, :6] == IGNORE).all()


def test_ignored_voxels_stay_ignored_and_no_class_is_invented():
    label = torch.from_numpy(
        np.random.default_rng(0).choice([0, 7, IGNORE], (2, 16, 16)).astype(np.uint8)
    )
    geometry = sample_segmentation_views(
        np.random.default_rng(1), 2, (16, 16), (10, 10), (1.0, 1.0), AugmentConfig(affine=1)
    )
    assert set(
        resample_labels(label, sampling_grid(geometry, (16, 16), (10, 10))).unique().tolist()
    ) <= {
        0,
        7,
        IGNORE,
    }


@pytest.mark.parametrize("dim", [2, 3])
def test_a_zero_elastic_field_is_the_identity_and_a_constant_one_a_shift(dim):
    window, patch, slopes = (
        (20, 22, 18)[:dim],
        (8, 10, 6)[:dim],
        torch.tensor([1.0, -0.7, 0.31][:dim], dtype=F64),
    )
    lo = torch.full((1, 1, dim), 4.0, dtype=F64)
    hi = lo + torch.tensor([9.0, 11, 7][:dim], dtype=F64)
    flip = torch.zeros(1, 1, dim, dtype=F64)
    field = torch.zeros(1, 1, dim, *(6,) * dim, dtype=F64)
    plain, zero = ViewGeometry(lo, hi, flip), ViewGeometry(lo, hi, flip, displacement=field)
    assert torch.equal(sampling_grid(zero, window, patch), sampling_grid(plain, window, patch))
    share = torch.tensor([0.1, -0.05, 0.02][:dim], dtype=F64)
    moved = ViewGeometry(lo, hi, flip, displacement=field + share.view(1, 1, dim, *(1,) * dim))
    image = ramp(window, 1, slopes)
    before, after = (resample_views(image, sampling_grid(g, window, patch)) for g in (plain, moved))
    torch.testing.assert_close(
        after - before,
        torch.full_like(before, float((share * (hi - lo)[0, 0]) @ slopes)),
        rtol=0,
        atol=1e-9,
    )


def test_a_batch_equals_its_items():
    rng = np.random.default_rng(5)
    window, patch = (20, 18, 16), (10, 10, 8)
    images = torch.randn(4, 2, *window)
    geometry = sample_segmentation_views(
        rng, 4, window, patch, (1.0, 1.0, 1.0), AugmentConfig(affine=1, elastic=1, flip=0.5)
    )
    whole = resample_views(images, sampling_grid(geometry, window, patch))
    for i in range(4):
        one = ViewGeometry(**{k: v[i : i + 1] for k, v in vars(geometry).items()})
        torch.testing.assert_close(
            resample_views(images[i : i + 1], sampling_grid(one, window, patch))[0], whole[i]
        )


def test_segmentation_views_without_augmentation_are_the_central_crop():
    geometry = sample_segmentation_views(
        np.random.default_rng(0), 3, (14, 16), (8, 10), (1.0, 1.0), PLAIN
    )
    assert torch.equal(geometry.lo, torch.full((3, 1, 2), 3.0)) and geometry.displacement is None
    assert torch.equal(geometry.hi - geometry.lo, torch.tensor([8.0, 10]).expand(3, 1, 2))
    assert torch.equal(geometry.rotation, torch.eye(2).expand(3, 1, 2, 2))


def test_boxes_lie_inside_have_their_sides_and_overlap():
    rng = np.random.default_rng(6)
    for extent in ((40, 40, 40), (400, 300, 200), (20, 500, 18)):
        shares = []
        for _ in range(300):
            lo, hi = sample_boxes(rng, extent, (16, 16, 16), (1.1, 1.4), 0.1, 2)
            assert (lo >= 0).all() and (hi <= np.asarray(extent) + 1e-9).all()
            side = np.minimum(extent, 22.4)
            assert ((hi - lo) <= side + 1e-9).all() and (
                (hi - lo) >= np.minimum(extent, 17.6) - 1e-9
            ).all()
            shares.append(overlap_fraction(lo, hi))
        assert min(shares) >= 0.1
        assert np.median(shares) < 0.75, "boxes of a large volume must not all be concentric"


@pytest.mark.parametrize("mirrored", [0, 1])
def test_boxes_are_drawn_anew_until_the_inner_parts_of_flipped_views_meet(mirrored):
    """By hand: of a view of 10 voxels the first 4 count, of a flipped one the last 4."""
    inner = np.array([[[0.0], [0.4]]])
    flip = np.array([[0], [mirrored]])
    pairs = [
        (np.array([[0.0], [low]]), np.array([[10.0], [low + 10]])) for low in (-7, -5, 5, 3, 1)
    ]
    met = (
        pairs[0] if mirrored else pairs[3]
    )  # -7: 3 voxels of -1..3 within 0..4; 3: one of 3..7; 1: 7..11
    order = (
        [pairs[1], pairs[2], met, pairs[4]] if not mirrored else [pairs[2], pairs[4], met, pairs[1]]
    )
    rest = iter(order[1:])
    assert meeting_boxes(order[0], flip, inner, lambda: next(rest)) is met and len(list(rest)) == 1


def test_boxes_that_meet_are_left_and_hopeless_ones_given_up():
    boxes, calls = (np.zeros((2, 3)), np.full((2, 3), 9.0)), []
    inner = np.array([[[0.1] * 3, [0.9] * 3], [[0.4] * 3, [0.6] * 3]])
    assert (
        meeting_boxes(boxes, np.zeros((2, 3)), inner, lambda: calls.append(1)) is boxes
        and not calls
    )
    apart = (
        np.array([[0.0, 0, 0], [5, 0, 0]]),
        np.array([[9.0, 9, 9], [14, 9, 9]]),
    )  # level 2 does not meet
    assert meeting_boxes(apart, np.zeros((2, 3)), inner, lambda: calls.append(1) or apart) is apart
    assert len(calls) == 50


def test_overlap_fraction_against_counting_voxels():
    lo, hi = np.array([[0, 0, 0], [2, 3, 1]]), np.array([[6, 6, 6], [9, 8, 5]])
    first, second = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    first[:6, :6, :6], second[2:9, 3:8, 1:5] = True, True
    assert overlap_fraction(lo, hi) == pytest.approx(
        (first & second).sum() / min(first.sum(), second.sum())
    )


def test_a_volume_smaller_than_the_patch_is_taken_whole():
    lo, hi = sample_boxes(np.random.default_rng(0), (5, 40), (16, 16), (1.1, 1.4), 0.1, 2)
    assert (lo[:, 0] == 0).all() and (hi[:, 0] == 5).all()


def test_zoom_range_and_probability():
    config = PLAIN.model_copy(update={"affine": 0.5, "rotation": 0.0, "scale": (0.5, 2.0)})
    geometry = sample_segmentation_views(
        np.random.default_rng(0), 2000, (40, 40), (10, 10), (1.0, 1.0), config
    )
    zoom = ((geometry.hi - geometry.lo)[:, 0] / 10).numpy()
    assert (
        np.allclose(zoom[:, 0], zoom[:, 1])
        and 0.5 - 1e-6 <= zoom.min() < 0.52
        and 1.95 < zoom.max() <= 2 + 1e-6
    )
    assert abs((zoom[:, 0] == 1).mean() - 0.5) < 0.05
    assert abs((zoom[:, 0] > 1).mean() - (zoom[:, 0] < 1).mean()) < 0.06, (
        "zooming in and out is equally likely"
    )


@each(
    ("window", "patch"),
    [
        ((14, 17), (9, 12)),
        ((11, 14, 13), (6, 9, 8)),
        ((1, 9), (4, 5)),
        ((1, 2, 9), (3, 4, 5)),
        ((7, 1, 1), (3, 4, 5)),
    ],
)
def test_separable_boxes_equal_the_sampling_grid(window, patch):
    """Boxes that also reach outside the window, flipped or not, windows of one voxel too, against
    grid_sample.
    """
    generator = torch.Generator().manual_seed(3)
    windows = torch.randn(4, 3, *window, generator=generator, dtype=torch.float64)
    lo = torch.rand(2, 2, len(patch), generator=generator, dtype=torch.float64) * 6 - 3
    hi = lo + 4 + torch.rand(lo.shape, generator=generator, dtype=torch.float64) * 12
    flip = (torch.rand(lo.shape, generator=generator) < 0.5).double()
    geometry = ViewGeometry(lo, hi, flip)
    expected = resample_views(windows, sampling_grid(geometry, window, patch))
    torch.testing.assert_close(
        resample_boxes(windows, geometry, patch), expected, rtol=0, atol=1e-12
    )
    single = ViewGeometry(lo.float(), hi.float(), flip.float())
    torch.testing.assert_close(
        resample_boxes(windows.float(), single, patch), expected.float(), rtol=0, atol=1e-5
    )


def test_boxes_and_grids_see_the_same_from_any_window():
    """A view moved into a window that starts elsewhere shows the same part of the volume."""
    volume = torch.randn(1, 1, 20, 22, 24, dtype=F64)
    lo, hi = (
        torch.tensor([[[6.3, 7.1, 5.2]]], dtype=F64),
        torch.tensor([[[12.1, 15.4, 13.0]]], dtype=F64),
    )
    geometry = ViewGeometry(lo, hi, torch.tensor([[[0.0, 1.0, 0.0]]], dtype=F64))
    corner = torch.tensor([[[5, 6, 4]]])
    window = volume[:, :, 5:14, 6:17, 4:15]
    seen = geometry.seen_from(corner)
    expected = resample_views(volume, sampling_grid(geometry, (20, 22, 24), (4, 5, 6)))
    grid = sampling_grid(seen, (9, 11, 11), (4, 5, 6))
    for found in (resample_boxes(window, seen, (4, 5, 6)), resample_views(window, grid)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
