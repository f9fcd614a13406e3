"""Segmentations on a finer grid than their image lose no piece."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedSSLLib.images.finer import label_on_image
from MedSSLLib.images.geometry import Geometry, Volume, moved
from MedSSLLib.images.writing import resample_volume

GRID = Geometry((12, 10, 8), (3.0, 3.0, 3.0))


def finer(array: np.ndarray) -> Volume:
    """A label of voxels of 1 mm, three along each side of a voxel of GRID."""
    return Volume(array, Geometry((36, 30, 24), origin=(-1.0, -1.0, -1.0)))


def test_every_piece_has_a_voxel_where_most_of_it_lies() -> None:
    random = np.random.default_rng(0)
    array = np.zeros((24, 30, 36), np.uint8)
    for k, j, i in random.integers(0, (8, 10, 12), (60, 3)):
        array[3 * k, 3 * j, 3 * i : 3 * i + 2] = random.integers(1, 4)
    found = label_on_image(finer(array), GRID).array
    for value in (1, 2, 3):
        pieces, count = ndimage.label(array == value, np.ones((3, 3, 3)))
        for piece in range(1, count + 1):
            places = np.argwhere(pieces == piece) // 3
            held = found[tuple(places.T)]
            assert (held == value).any() or (held != 0).all()
    assert (found > 0).sum() > 40


def test_a_piece_takes_no_voxel_of_another() -> None:
    array = np.zeros((24, 30, 36), np.uint8)
    array[1::3, 1::3, 1::6] = 1  # at the middle of every other voxel
    array[3::6, 3::6, 2::6] = 2  # and specks beside some of them
    label = finer(array)
    plain = resample_volume(label, GRID, interpolation="nearest").array
    found = label_on_image(label, GRID).array
    assert np.array_equal(found[plain > 0], plain[plain > 0])


def test_what_the_nearest_voxels_show_is_not_changed() -> None:
    random = np.random.default_rng(1)
    coarse = random.integers(0, 3, (8, 10, 12)).astype(np.uint8)
    label = finer(coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2))
    assert np.array_equal(label_on_image(label, GRID).array, coarse)


def test_a_cropped_label_is_moved_exactly() -> None:
    array = np.random.default_rng(2).integers(0, 300, (4, 5, 6)).astype(np.int32)
    label = Volume(array, moved(GRID, (2, 3, 1), (6, 5, 4)))
    found = label_on_image(label, GRID).array
    assert np.array_equal(found[1:5, 3:8, 2:8], array)
    assert np.count_nonzero(found) == np.count_nonzero(array)
    assert np.array_equal(found, resample_volume(label, GRID, interpolation="nearest").array)
