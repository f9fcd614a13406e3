"""Structures too small for a coarser grid: none is taught as background."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.label import Small, label_on_grid
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.project.manifest import Case
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import GRIDS, every_dim, noise, plan_for


def on_coarse(array, spacing=(0.4, 0.4, 8.0), target=(8.0, 1.0, 1.0)):
    source = Geometry(array.shape[::-1], spacing)
    plan = plan_for(source, "3d", target)
    _, grid = preprocess_image(noise(source), plan)
    return label_on_grid(Volume(array, source), grid)


def label(*parts, shape=(6, 60, 60)):
    array = np.zeros(shape, np.uint8)
    for value, place in parts:
        array[place] = value
    return array


@each("size", [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 1, 30), (1, 30, 1), (2, 2, 1)])
@each("start", [(2, 20, 20), (3, 21, 22), (0, 0, 0), (4, 29, 29)])
def test_a_small_structure_survives_where_it_lies(size, start):
    place = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    array = label((1, place))
    found, small = on_coarse(array)
    assert (found == 1).any() and set(small) <= {1}
    here = np.argwhere(found == 1) * (8.0, 1.0, 1.0)
    there = np.argwhere(array == 1) * (8.0, 0.4, 0.4) + (0, -0.3, -0.3)
    assert np.abs(here.mean(0) - there.mean(0)).max() < 1.1, "within a voxel of its place"
    extent = np.ptp(here, axis=0)[1:] + 1
    assert (extent >= np.array(size[1:]) * 0.4 - 2.01).all(), "a long one stays long"


def test_every_piece_of_random_specks_survives_or_is_unknown():
    rng = np.random.default_rng(0)
    array = np.where(rng.random((6, 60, 60)) < 0.01, rng.integers(1, 4, (6, 60, 60)), 0)
    array = array.astype(np.uint8)
    found, small = on_coarse(array)
    for value in (1, 2, 3):
        pieces, count = ndimage.label(array == value, np.ones((3, 3, 3)))
        lost = 0
        for box in ndimage.find_objects(pieces):
            near = tuple(
                slice(max(0, int((s.start - 3) * f)), int((s.stop + 3) * f) + 2)
                for s, f in zip(box, (1, 0.4, 0.4), strict=True)
            )
            lost += not np.isin(found[near], (value, IGNORE)).any()
        assert lost == 0 and small[value].kept + small[value].unknown <= count
    assert not (found == 0).all() and sum(one.kept for one in small.values()) > 50


def test_where_two_meet_in_one_voxel_one_stays_and_the_other_is_unknown():
    """Two specks of different classes in the same coarse voxel."""
    array = label((1, (slice(2, 3), 20, 20)), (2, (slice(2, 3), 20, 21)), shape=(6, 60, 60))
    found, small = on_coarse(array, spacing=(0.2, 0.2, 8.0))
    total = Small(
        sum(one.kept for one in small.values()), sum(one.unknown for one in small.values())
    )
    assert total.kept + total.unknown == 2 and total.kept >= 1
    shown = {int(value) for value in np.unique(found)} - {0}
    assert shown in ({1, 2}, {1, IGNORE}, {2, IGNORE}) and found.max() > 0


@every_dim
@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_are_not_coarser_change_nothing(name, dim):
    source = GRIDS[name]
    rng = np.random.default_rng(0)
    array = (rng.random(source.shape) < 0.002).astype(np.uint8)
    _, grid = preprocess_image(noise(source), plan_for(source, dim, None))
    found, small = label_on_grid(Volume(array, source), grid)
    if sorted(source.spacing) == sorted(grid.spacing):
        assert small == {} and (found == 1).sum() == array.sum()


def test_unknown_voxels_stay_unknown():
    array = label((1, (slice(2, 3), slice(20, 22), slice(20, 22))))
    array[[0, 1, 3, 4, 5]] = IGNORE
    found, _ = on_coarse(array)
    assert (found[[0, 1, 3, 4, 5]] == IGNORE).all() and (found[2] == 1).any()


def test_the_cache_says_which_case_and_class_and_grid(tmp_path):
    source = Geometry((60, 60, 6), (0.4, 0.4, 8.0))
    array = label((1, (slice(2, 3), slice(20, 21), slice(20, 22))))
    image = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    io.write_image(tmp_path / "fine.nii.gz", Volume(image, source))
    io.write_image(tmp_path / "label.nii.gz", Volume(array, source))
    plan = make_plan([Geometry((48, 48, 10), (1.0, 1.0, 8.0))], modality="MR")
    cache = Cache(tmp_path / "cache", plan)
    case = Case("fine", images=(tmp_path / "fine.nii.gz",), label=tmp_path / "label.nii.gz")
    for _ in range(2):  # made, and read again
        assert not cache.prepare([case], labels=True, values=(0, 1)).refused
        assert cache.counts("fine")[1] >= 1
        (message,) = cache.small_structures(["fine"], ("background", "lesion"))
        assert all(word in message for word in ("fine", "lesion", "1 x 1 x 8 mm"))
        cache = Cache(tmp_path / "cache", plan)
