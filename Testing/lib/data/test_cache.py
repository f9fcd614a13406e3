"""The cache: crops equal the whole, labels count where they should, memory and room are bounded."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSSLLib.core import hashes
from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.data import array_store
from MedSSLLib.data import cache as cache_module
from MedSSLLib.data.cache import MOST_PLACES, Cache, clear_cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.label import preprocess_label
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE, Annotated
from MedSSLLib.project.manifest import Case
from Testing.lib.cache_helpers import GRID, PLAN, VALUES, contents, never, whole, write_case


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def case(source):
    return write_case(source, "one")


@pytest.fixture(scope="module")
def filled(case, tmp_path_factory):
    """A cache with one labelled case."""
    cache = Cache(tmp_path_factory.mktemp("filled"), PLAN)
    assert not cache.prepare([case], labels=True, values=VALUES).refused
    return cache


# -- reading
# ------------------------------------------------------------------------------------------------


def test_image_is_the_preprocessed_one(filled, case):
    expected, geometry = preprocess_image(io.read_image(case.images[0]), PLAN)
    assert filled.shape("one") == expected.shape
    assert filled.geometry("one") == geometry
    found = whole(filled, "one")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


bounds = st.integers(-40, 60)
box = st.tuples(*[st.tuples(bounds, st.integers(1, 50))] * 3)


@pytest.fixture(scope="module")
def padded(filled):
    """Image and class map of the case in a wide frame."""
    label = filled.label("one", (0, 0, 0), filled.shape("one")[1:])
    image = np.pad(whole(filled, "one"), ((0, 0), *[(40, 120)] * 3), mode="edge")
    return image, np.pad(label, ((40, 120),) * 3, constant_values=IGNORE)


@settings(max_examples=150, deadline=None)
@given(box=box)
def test_any_crop_equals_numpys_padding(filled, padded, box):
    lo, hi = [a for a, _ in box], [a + n for a, n in box]
    image, label = padded
    expected = image[:, *[slice(a + 40, b + 40) for a, b in zip(lo, hi, strict=True)]]
    found = filled.image("one", np.array(lo), hi)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable and found.flags.c_contiguous

    expected = label[tuple(slice(a + 40, b + 40) for a, b in zip(lo, hi, strict=True))]
    found = filled.label("one", lo, np.array(hi))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("dim", "shape"), [("2d", (12, 530, 70)), ("3d", (70, 75, 140))])
def test_crops_across_chunks(tmp_path, dim, shape):
    spacing = (1.0, 1.0, 4.0) if dim == "2d" else (1.0, 1.0, 1.0)
    geometry = Geometry(shape[::-1], spacing)
    case = write_case(tmp_path, "big", geometry)
    plan = make_plan([geometry], modality="MR", dim=dim)
    cache = Cache(tmp_path / "cache", plan)
    cache.prepare([case], labels=True, values=VALUES)
    expected = preprocess_image(io.read_image(case.images[0]), plan)[0].astype(np.float16)
    rng = np.random.default_rng(0)
    for _ in range(20):
        lo = rng.integers(0, shape)
        hi = np.minimum(lo + rng.integers(1, 100, 3), shape)
        region = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        np.testing.assert_array_equal(
            cache.image("big", lo, hi), expected[:, *region].astype(np.float32)
        )


def test_two_channels(tmp_path):
    first, second = write_case(tmp_path, "a", seed=1), write_case(tmp_path, "b", seed=2)
    plan = PLAN.model_copy(update={"channels": 2, "modality": ("MR", "MR")})
    cache = Cache(tmp_path / "cache", plan)
    assert not cache.prepare([replace(first, images=(*first.images, *second.images))]).refused
    assert cache.shape("a")[0] == 2
    single = Cache(tmp_path / "cache", PLAN)
    single.prepare([first, second])
    np.testing.assert_array_equal(whole(cache, "a")[0], whole(single, "a")[0])
    np.testing.assert_array_equal(whole(cache, "a")[1], whole(single, "b")[0])


def test_threads_and_pickles_read_the_same(filled):
    rng = np.random.default_rng(0)
    full = whole(filled, "one")
    corners = [rng.integers(0, np.array(full.shape[1:]) - 8) for _ in range(200)]
    copied = pickle.loads(pickle.dumps(filled))  # noqa: S301
    with ThreadPoolExecutor(8) as pool:
        crops = list(pool.map(lambda lo: filled.image("one", lo, lo + 8), corners))
    for lo, crop in zip(corners, crops, strict=True):
        np.testing.assert_array_equal(crop, full[:, *[slice(a, a + 8) for a in lo]])
    np.testing.assert_array_equal(whole(copied, "one"), full)


# -- labels
# ------------------------------------------------------------------------------------------------


def test_label_and_foreground(filled, case):
    classes = np.searchsorted(VALUES, io.read_label(case.label, GRID).array).astype(np.uint8)
    expected = preprocess_label(Volume(classes, GRID), filled.geometry("one"))
    np.testing.assert_array_equal(filled.label("one", (0, 0, 0), expected.shape), expected)
    places = filled.foreground("one")
    assert sorted(places) == [0, 1, 2]
    for value, voxels in places.items():
        count = int((expected == value).sum())
        assert filled.counts("one")[value] == count
        assert voxels.dtype == np.int32 and voxels.shape == (min(count, MOST_PLACES), 3)
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        assert (expected[tuple(voxels.T)] == value).all()
    assert len(places[0]) == MOST_PLACES


def test_places_are_drawn_evenly():
    label = np.zeros((60, 60, 60), np.uint8)
    _, _, places = cache_module.class_places(label)
    assert len(places) == MOST_PLACES
    assert np.abs(places.mean(0) - 29.5).max() < 1
    assert np.abs(places.std(0) - 60 / np.sqrt(12)).max() < 0.5


def test_only_annotated_slices_count(case, tmp_path):
    axis, index = 1, 9
    sparse = replace(case, annotated=Annotated.of([(axis, [index])]))
    cache = Cache(tmp_path, PLAN)
    cache.prepare([sparse], labels=True, values=VALUES)
    geometry = cache.geometry("one")
    for voxels in cache.foreground("one").values():
        distance = np.abs(GRID.indices(geometry.points(voxels[:, ::-1]))[:, axis] - index)
        assert distance.max() <= max(0.5, geometry.spacing[0] / GRID.spacing[axis] / 2) + 1e-6
    counted = cache.label("one", (0, 0, 0), cache.shape("one")[1:]) != IGNORE
    assert sum(cache.counts("one").values()) == counted.sum() > 0


def test_sparse_and_full_labels_are_different_entries(case, tmp_path):
    sparse = replace(case, name="sparse", annotated=Annotated.of([(2, [9])]))
    cache = Cache(tmp_path, PLAN)
    cache.prepare([case, sparse], labels=True, values=VALUES)
    assert sum(cache.counts("sparse").values()) < sum(cache.counts("one").values())
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert len(list((tmp_path / "labels").iterdir())) == 2


def test_values_that_do_not_count(case, tmp_path):
    cache = Cache(tmp_path, PLAN)
    cache.prepare([case], labels=True, values=(0, 3), ignore=7)
    assert sorted(cache.counts("one")) == [0, 1]
    assert (cache.label("one", (0, 0, 0), cache.shape("one")[1:]) == IGNORE).any()


def test_labels_are_not_opened_unless_asked_for(case, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "read_label", never)
    opened = []
    real = hashes.content_hash
    monkeypatch.setattr(hashes, "content_hash", lambda path: opened.append(path) or real(path))
    cache = Cache(tmp_path, PLAN)
    assert not cache.prepare([case]).refused
    assert opened == list(case.images)
    assert not (tmp_path / "labels").exists()
    with pytest.raises(KeyError):
        cache.label("one", (0, 0, 0), (1, 1, 1))


# -- memory and room
# ------------------------------------------------------------------------------------------------


def test_open_files_are_bounded(case, tmp_path, monkeypatch):
    monkeypatch.setattr(array_store, "MOST_HANDLES", 5)
    cases = [write_case(tmp_path / "source", f"case{n}", seed=n) for n in range(8)]
    cache = Cache(tmp_path / "cache", PLAN)
    cache.prepare(cases, labels=True, values=VALUES)
    for entry in cases * 2:
        cache.image(entry.name, (0, 0, 0), (4, 4, 4))
        cache.label(entry.name, (0, 0, 0), (4, 4, 4))
        cache.foreground(entry.name)
        assert len(cache._handles) <= 5
    monkeypatch.setattr(array_store, "MOST_MAPPED", 1)
    cache.image("case0", (0, 0, 0), (4, 4, 4))
    assert len(cache._handles) == 1


def test_clear(case, tmp_path):
    cache = Cache(tmp_path / "cache", PLAN)
    cache.prepare([case], labels=True, values=VALUES)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*/*"))
    assert cache.clear() == size > 0
    assert contents(tmp_path / "cache") == ["notes.txt"]
    assert clear_cache(tmp_path / "nothing") == 0
    assert not cache.prepare([case], labels=True, values=VALUES).refused
    clear_cache(tmp_path / "cache")
    cache._handles.close()
    with pytest.raises(MedSSLError, match="Run the command again"):
        whole(cache, "one")


# -- real data
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "least"),
    [("hippocampus", (0, 1, 2), 0.999), ("cardiac", (0, 1, 2, 3), 0.98)],
)
def test_real_labels_come_back_to_their_grid(tmp_path, data_folder, name, values, least):
    root = data_folder / name
    paths = sorted((root / "images").iterdir())[:12:3]
    cases = [Case(io.case_name(path), (path,), root / "labels" / path.name) for path in paths]
    cache = Cache(tmp_path, make_plan([io.read_header(path) for path in paths], modality="MR"))
    assert not cache.prepare(cases, labels=True, values=values).refused
    for case in cases:
        image = whole(cache, case.name)
        assert abs(image.mean()) < 0.3 and 0.7 < image.std() < 1.3
        label = cache.label(case.name, (0, 0, 0), image.shape[1:])
        truth = io.read_label(case.label, io.read_header(case.images[0]))
        grid = cache.geometry(case.name)
        shares = [
            io.resample_volume(Volume((label == c).astype(np.float32), grid), truth.geometry).array
            for c in range(len(values))
        ]
        back = np.argmax(shares, 0)
        inside = truth.array > 0
        assert (
            2 * ((back == truth.array) & inside).sum() / (inside.sum() + (back > 0).sum()) > least
        )
