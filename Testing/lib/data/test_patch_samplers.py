"""Batches: a function of (seed, step), split over processes, centred on structures, true to sparse
labels.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data.batch import make_views
from MedSSLLib.data.patch_samplers import Pick, SegmentationSampler, ViewSampler
from MedSSLLib.data.random import shuffled_order
from MedSSLLib.data.spatial import ViewGeometry, resample_views, sampling_grid
from MedSSLLib.images.labels import IGNORE, Annotated, sparse_label
from MedSSLLib.losses.dice_ce import dice_ce
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import PLAIN, MemoryReader

CPU = torch.device("cpu")
RICH = AugmentConfig(flip=0.5, elastic=0.5, noise=0.5, low_resolution=0.5)


def reader(cases=3, shape=(14, 18, 16), channels=1, seed=0):
    rng = np.random.default_rng(seed)
    images, labels = {}, {}
    for index in range(cases):
        images[f"c{index}"] = rng.normal(size=(channels, *shape)).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[4:7, 5:9, 3:6] = 1
        label[10:11, 12, 12] = 2
        labels[f"c{index}"] = label
    return MemoryReader(images, labels)


def segmentation(source, patch, augment=PLAIN, **changes):
    values = {"batch": 4, "foreground": 0.5, "seed": 0} | changes
    return SegmentationSampler(
        reader=source,
        cases=tuple(source.images),
        patch=patch,
        spacing=(1.0,) * len(patch),
        augment=augment,
        **values,
    )


def views(source, patch, augment=RICH, samples=4, dim=3, **changes):
    def pick(rng, step):
        names = list(source.images)
        return [
            Pick(names[i % len(names)], int(rng.integers(14)), {"part": i % 3})
            for i in range(samples)
        ]

    values = {
        "views": 2,
        "scale": (1.1, 1.4),
        "min_overlap": 0.1,
        "flip": 0.5,
        "rotation": 0.0,
        "seed": 0,
    } | changes
    return ViewSampler(
        reader=source,
        pick=pick,
        patch=patch,
        spacing=(1.0,) * len(patch),
        augment=augment,
        **values,
    )


SAMPLERS = {
    "segmentation 2d": lambda **k: segmentation(reader(), (8, 8), RICH, **k),
    "segmentation 3d": lambda **k: segmentation(reader(channels=2), (8, 8, 8), RICH, **k),
    "views 2d": lambda **k: views(reader(), (8, 8), **k),
    "views 3d": lambda **k: views(reader(), (8, 8, 8), rotation=10.0, **k),
}


@each("kind", SAMPLERS)
def test_a_batch_is_a_function_of_seed_and_step(kind):
    one, two = SAMPLERS[kind](), SAMPLERS[kind]()
    two.sample(5), two.sample(1)  # other steps in between leave no trace
    first, second = (make_views(s.sample(3), s.patch, CPU) for s in (one, two))
    assert torch.equal(first.images, second.images)
    assert first.labels is None or torch.equal(first.labels, second.labels)
    for other in (
        make_views(one.sample(4), one.patch, CPU),
        make_views(SAMPLERS[kind](seed=1).sample(3), one.patch, CPU),
    ):
        assert not torch.equal(first.images, other.images)


@each("kind", SAMPLERS)
@each("parts", [2, 4])
def test_the_parts_of_a_batch_make_up_the_whole(kind, parts):
    sampler = SAMPLERS[kind]()
    for step in range(3):
        whole = make_views(sampler.sample(step), sampler.patch, CPU)
        for part in range(parts):
            mine = make_views(sampler.sample(step, part, parts), sampler.patch, CPU)
            torch.testing.assert_close(mine.images, whole.images[part::parts], rtol=1e-4, atol=1e-4)
            if whole.labels is not None:
                assert torch.equal(mine.labels, whole.labels[part::parts])
            for name, value in whole.meta.items():
                assert torch.equal(mine.meta[name], value[part::parts])


def test_parts_read_only_their_own_crops():
    sampler = segmentation(reader(), (8, 8, 8))
    sampler.sample(0, 1, 4)
    assert len(sampler.reader.read) == 1


@each("share", [0.0, 0.25, 0.5, 1.0])
def test_the_foreground_share_is_centred_on_structures(share):
    source = reader(shape=(40, 40, 40))
    sampler = segmentation(source, (4, 4, 4), foreground=share, batch=4)
    centred = Counter()
    for step in range(30):
        host = sampler.sample(step)
        labels = make_views(host, sampler.patch, CPU).labels[:, 0]
        for i, label in enumerate(labels):
            centred[i] += bool(((label > 0) & (label != IGNORE)).any())
    always = round(share * 4)
    assert all(centred[i] == 30 for i in range(always))
    assert all(centred[i] < 6 for i in range(always, 4)), "0.1 % of the voxels are foreground"


def test_classes_are_chosen_evenly_however_small():
    sampler = segmentation(reader(shape=(40, 40, 40)), (2, 2, 2), foreground=1.0, batch=8)
    seen = Counter()
    for step in range(40):
        for label in make_views(sampler.sample(step), sampler.patch, CPU).labels:
            seen[2 if (label == 2).any() else 1] += 1
    assert 0.35 < seen[2] / 320 < 0.65


def corners(sampler, steps=60):
    """Lower corners of the patches ``[n, 3]``."""
    found = []
    for step in range(steps):
        host = sampler.sample(step)
        found += [low for _, low in patch_corners(sampler.reader, host, sampler.batch)]
    return np.array(found)


def around_one_voxel(patch):
    """A sampler whose patches are all centred on one voxel, and that voxel."""
    middle = np.array([side // 2 + 3 for side in (1, *patch)[-3:]])
    label = np.zeros(2 * middle + 1, np.uint8)
    label[tuple(middle)] = 1
    source = MemoryReader({"c": np.zeros((1, *label.shape), np.float32)}, {"c": label})
    return segmentation(source, patch, foreground=1.0, batch=5), middle


@each("patch", [(3, 3, 3), (1, 3, 3), (3, 3), (1, 1)])
def test_an_odd_patch_has_its_voxel_in_the_middle(patch):
    """They are shifted by a tenth of a side: by less than half a voxel where they are small."""
    sampler, voxel = around_one_voxel(patch)
    half = [side // 2 for side in (1, *patch)[-3:]]
    assert (corners(sampler, 20) == voxel - half).all()


@each("patch", [(4, 4, 4), (4, 4)])
def test_an_even_patch_has_its_voxel_as_often_left_as_right_of_the_middle(patch):
    sampler, voxel = around_one_voxel(patch)
    before = (voxel - corners(sampler))[:, 3 - len(patch) :]
    assert set(before.ravel()) == {1, 2}
    np.testing.assert_allclose((before == 2).mean(0), 0.5, atol=0.08)


@each("patch", [(15, 15, 15), (15, 15), (1, 25, 25)])
def test_patches_are_shifted_evenly_by_a_tenth_of_their_side(patch):
    """15 voxels by up to 1.5: rounded, a third each of -1, 0 and 1; 25 voxels by up to 2.5."""
    sampler, voxel = around_one_voxel(patch)
    sides = np.array((1, *patch)[-3:])
    shift = corners(sampler) - (voxel - sides // 2)
    assert (shift[:, sides == 1] == 0).all(), "a slice stays the one that was drawn"
    free = shift[:, sides > 1]
    possible = list(range(-(patch[-1] // 10), patch[-1] // 10 + 1))
    for along in free.T:
        values, counts = np.unique(along, return_counts=True)
        assert values.tolist() == possible
        np.testing.assert_allclose(counts / len(along), 1 / len(possible), atol=0.08)
    together = len(possible) ** free.shape[1]
    assert len(np.unique(free, axis=0)) > 0.9 * together, "every axis by itself"


def test_samples_off_the_structures_lie_anywhere_that_counts():
    """400 voxels of background, 200 and 100 of the structures; 300 that nobody has looked at."""
    label = np.repeat([0, IGNORE, 1, 2], [400, 300, 200, 100]).astype(np.uint8).reshape(10, 10, 10)
    source = MemoryReader({"c": np.zeros((1, 10, 10, 10), np.float32)}, {"c": label})
    sampler = segmentation(source, (1, 1, 1), foreground=0.5, batch=8)
    middles = corners(sampler, 200).reshape(200, 8, 3)
    classes = label[tuple(np.moveaxis(middles, -1, 0))]
    for part, shares in (
        (classes[:, :4], {1: 1 / 2, 2: 1 / 2}),
        (classes[:, 4:], {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}),
    ):
        values, counts = np.unique(part, return_counts=True)
        assert values.tolist() == list(shares)
        np.testing.assert_allclose(counts / part.size, list(shares.values()), atol=0.05)


def test_cases_are_visited_equally_often():
    sampler = segmentation(reader(cases=5), (8, 8, 8), batch=4)
    counts = Counter(name for step in range(25) for name in sampler.sample(step).cases)
    assert set(counts.values()) == {20}


def test_shuffled_order_permutes_every_epoch_anew():
    orders = [[shuffled_order(0, epoch * 9 + i, 9) for i in range(9)] for epoch in range(20)]
    assert (
        all(sorted(order) == list(range(9)) for order in orders)
        and len({tuple(o) for o in orders}) > 15
    )


@pytest.mark.parametrize("axis", [0, 2])
def test_sparse_labels_sample_and_count_annotated_voxels_only(axis):
    """Annotated slices are along the slice axis (first array axis, k) or across it."""
    source = reader(shape=(16, 20, 18))
    annotated = Annotated.of([(axis, [5, 11])])
    full = {name: label.copy() for name, label in source.labels.items()}
    source.labels = {name: sparse_label(label, annotated) for name, label in full.items()}
    sampler = segmentation(source, (8, 8), RICH, batch=6, foreground=0.5)
    for step in range(15):
        host = sampler.sample(step)
        slices = [low[0] for _, low, _ in source.read[-6:]]
        if axis == 2:
            assert set(slices) <= {5, 11}
        batch = make_views(host, sampler.patch, CPU)
        assert (batch.labels != IGNORE).flatten(1).any(1).all(), "a sample in which nothing counts"


def test_voxels_that_do_not_count_have_no_gradient():
    source = reader()
    source.labels = {
        n: sparse_label(label, Annotated.of([(2, [5])])) for n, label in source.labels.items()
    }
    sampler = segmentation(source, (8, 8, 8), RICH)
    labels = make_views(sampler.sample(0), sampler.patch, CPU).labels[:, 0]
    logits = torch.randn(4, 3, 8, 8, 8, requires_grad=True)
    dice_ce(logits, labels).backward()
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert (
        (logits.grad[ignored] == 0).all()
        and (logits.grad[~ignored] != 0).all()
        and ignored.float().mean() > 0.5
    )


def test_an_unaugmented_sample_is_an_exact_crop():
    """Every voxel of a sample is a voxel of the volume: nothing is interpolated by half a voxel."""
    for patch in ((8, 8), (7, 9), (5, 6, 7), (6, 8, 4)):
        source = reader(shape=(14, 18, 16))
        sampler = segmentation(source, patch, batch=3)
        for step in range(5):
            host = sampler.sample(step)
            batch = make_views(host, patch, CPU)
            for index, (name, low) in enumerate(patch_corners(source, host, 3)):
                high = low + np.asarray((1, *patch)[-3:])
                np.testing.assert_allclose(
                    batch.images[index, 0, 0],
                    source.image(name, low, high)[0].reshape(patch),
                    atol=1e-4,
                )
                np.testing.assert_array_equal(
                    batch.labels[index, 0], source.label(name, low, high).reshape(patch)
                )


def patch_corners(source, host, samples):
    """Case and lower corner d, h, w of the patch of each sample: the window's, less where it lies
    in the patch.
    """
    found = []
    for (name, lo, _), corner in zip(source.read[-samples:], host.corner[:, 0], strict=True):
        offset = np.rint(np.asarray([0, *corner.tolist()])[-3:]).astype(int)
        found.append((name, np.asarray(lo) - offset))
    return found


WIDE = AugmentConfig(
    **(RICH.model_dump() | {"flip": 0.5, "rotation": 45.0, "scale": (0.65, 1.5), "affine": 1.0})
)


@pytest.mark.parametrize("patch", [(8, 8), (7, 8, 6)])
def test_windows_hold_all_that_a_view_looks_at(patch):
    """A batch made from whole volumes is the same."""
    source = reader(shape=(30, 40, 36))
    sampler = segmentation(source, patch, WIDE, batch=3)
    for step in range(20):
        host = sampler.sample(step)
        corners = patch_corners(source, host, 3)
        images, labels, corner = [], [], []
        for name, low in corners:
            planes = slice(low[0], low[0] + 1) if len(patch) == 2 else slice(None)
            images.append(source.images[name][:, planes].squeeze(1 if len(patch) == 2 else ()))
            labels.append(source.labels[name][planes].squeeze(0 if len(patch) == 2 else ()))
            corner.append(-low[-len(patch) :])
        whole = replace(
            host,
            windows=torch.from_numpy(np.stack(images)[:, None]),
            labels=torch.from_numpy(np.stack(labels)[:, None]),
            corner=torch.from_numpy(np.stack(corner)[:, None].astype(np.float32)),
        )
        mine, reference = (make_views(x, patch, CPU) for x in (host, whole))
        torch.testing.assert_close(mine.images, reference.images, rtol=1e-3, atol=2e-3)
        assert (mine.labels != reference.labels).float().mean() < 1e-3, "ties of rounding"


def test_voxels_anywhere_are_drawn_in_their_true_proportion():
    """The lists of places are capped: of a class of most voxels they hold as many as of a small
    one.
    """
    source = reader(shape=(14, 18, 16))
    listed = source.foreground
    source.foreground = lambda name: {c: xyz[:20] for c, xyz in listed(name).items()}
    sampler = segmentation(source, (3, 3, 3), batch=8, foreground=0.0)
    seen = Counter()
    rng = np.random.default_rng(0)
    for _ in range(2000):
        d, h, w = sampler._centre(rng, "c0", False)
        seen[int(source.labels["c0"][d, h, w])] += 1
    true = np.mean(source.labels["c0"] == 0)
    assert abs(seen[0] / 2000 - true) < 4 * (true * (1 - true) / 2000) ** 0.5


def test_patches_reach_every_voxel_of_a_volume_and_mostly_stay_inside():
    source = reader(cases=1, shape=(1, 24, 24))
    sampler = segmentation(source, (8, 8), batch=8, foreground=0.0)
    hits, inside = np.zeros((24, 24)), []
    for step in range(150):
        for _, (_, a, b) in patch_corners(source, sampler.sample(step), 8):
            hits[max(a, 0) : max(a + 8, 0), max(b, 0) : max(b + 8, 0)] += 1
            inside.append(min(a, b) >= 0 and max(a, b) <= 16)
    assert hits.min() > 0 and np.mean(inside) > 0.6


def test_volumes_smaller_than_the_patch_are_centred():
    sampler = segmentation(reader(cases=1, shape=(14, 18, 16)), (24, 24, 24), batch=2)
    labels = make_views(sampler.sample(0), sampler.patch, CPU).labels
    assert ((labels != IGNORE).flatten(1).sum(1) == 14 * 18 * 16).all()


def test_two_channels_stay_apart():
    source = reader(channels=2)
    for name in source.images:
        source.images[name][1] = 2 * source.images[name][0] + 1
    batch = make_views(
        segmentation(
            source,
            (8, 8, 8),
            AugmentConfig(
                affine=1,
                elastic=1,
                noise=0,
                blur=0,
                brightness=0,
                contrast=0,
                gamma=0,
                low_resolution=0,
            ),
        ).sample(0),
        (8, 8, 8),
        CPU,
    )
    torch.testing.assert_close(
        batch.images[:, :, 1], 2 * batch.images[:, :, 0] + 1, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_two_views_of_a_linear_volume_show_their_boxes(dim):
    """Windows of a batch share a size and boxes are relative to their own window: the closed form
    still holds.
    """
    shape, patch = (14, 40, 36), (8, 8, 8)[:dim]
    axes = np.meshgrid(*[np.arange(n) + 0.5 for n in shape], indexing="ij")
    slopes = np.array([100.0, 1.0, -0.7])
    ramp = sum(s * a for s, a in zip(slopes, axes, strict=True)).astype(np.float32)
    source = MemoryReader({f"c{i}": ramp[None] for i in range(3)})
    sampler = views(source, patch, PLAIN, dim=dim)
    for step in range(5):
        host = sampler.sample(step)
        batch = make_views(host, patch, CPU)
        corners = np.array([lo for _, lo, _ in source.read[-8:]]).reshape(4, 2, 3)
        frame = corners[..., 3 - dim :] - host.corner.numpy()
        assert (frame[:, 0] == frame[:, 1]).all(), "the views of a sample share a frame"
        centre = (host.geometry.lo + host.geometry.hi).numpy() / 2 + frame
        expected = centre @ slopes[3 - dim :]
        if dim == 2:
            expected = expected + (corners[..., 0] + 0.5) * 100
        found = (
            batch.images.flatten(2).mean(2).numpy()
        )  # the mean over a box of a linear function is its centre's value
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_meta_labels_come_in_order():
    host = views(reader(), (8, 8, 8), samples=5).sample(0)
    assert host.meta["part"].tolist() == [0, 1, 2, 0, 1] and host.meta["part"].dtype == torch.long


@pytest.mark.parametrize("shape", [(5, 60, 48), (5, 20, 90)])
def test_views_of_the_whole_image_scale_with_it(shape):
    """Boxes between 0.75 and 1 of the largest box of the patch's proportions, inside the slice."""
    patch = (16, 8)
    picks = [Pick("c0", 2)] * 50
    sampler = ViewSampler(
        reader=reader(1, shape),
        pick=lambda rng, step: picks,
        patch=patch,
        spacing=(1.0, 1.0),
        augment=None,
        views=2,
        scale=(0.75, 1.0),
        min_overlap=0.7,
        flip=0.0,
        rotation=0.0,
        seed=0,
        whole=True,
    )
    geometry = sampler.sample(0).geometry
    unit = min(shape[1] / 16, shape[2] / 8)
    sides = (geometry.hi - geometry.lo).numpy() / np.asarray(patch) / unit
    assert sides.min() >= 0.75 - 1e-6 and sides.max() <= 1 + 1e-6 and np.ptp(sides) > 0.2


@each("rotation", [0.0, 25.0])
@each("shape", [(20, 22, 24), (7, 22, 9)])
def test_windows_stay_inside_the_volume_where_it_is_large_enough(shape, rotation):
    """And views are those of the whole volume, whose edge continues: nothing is lost by a window of
    their own.
    """
    source = MemoryReader(
        {f"c{i}": np.random.default_rng(i).normal(size=(1, *shape)).astype("f4") for i in range(3)}
    )
    sampler = views(source, (8, 8, 8), PLAIN, rotation=rotation)
    for step in range(6):
        host = sampler.sample(step)
        reads = source.read[-8:]
        assert all(
            a >= 0 and (b <= n or a == 0)
            for _, lo, hi in reads
            for a, b, n in zip(lo, hi, shape, strict=True)
        )
        frame = torch.tensor([lo for _, lo, _ in reads]).view(4, 2, 3) - host.corner
        whole = torch.from_numpy(np.stack([source.images[name] for name, _, _ in reads])).double()
        doubled = {k: v.double() for k, v in vars(host.geometry).items() if v is not None}
        geometry = ViewGeometry(**doubled).seen_from(-frame)
        expected = (
            resample_views(whole, sampling_grid(geometry, shape, (8, 8, 8)))
            .float()
            .unflatten(0, (-1, 2))
        )
        torch.testing.assert_close(
            make_views(host, (8, 8, 8), CPU).images, expected, rtol=0, atol=2e-4
        )
