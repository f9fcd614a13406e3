"""Drawn slices on the training grid, as a cache would give them; new slices come more often."""

from dataclasses import replace

import numpy as np
import pytest

from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE, Annotated, simulate_annotation
from MedSSLLib.live.labels import FreshSlice, LiveLabels, LiveSampler
from MedSSLLib.live.watch import read_drawn
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each
from Testing.lib.conftest import GEOMETRIES
from Testing.lib.core_helpers import PLAIN, MemoryReader

SLICES = {"canonical": 2, "anisotropic": 2, "flipped": 1, "left-handed": 0, "oblique": 2}


@pytest.fixture
def drawn(tmp_path, make_volume, make_label):
    """A project with one case per awkward grid, slices drawn along different axes."""
    for name in SLICES:
        io.write_image(tmp_path / "images" / f"{name}.nrrd", make_volume(GEOMETRIES[name]))
        label = make_label(GEOMETRIES[name], values=(3, 7))
        io.write_image(tmp_path / "labels" / f"{name}.nrrd", label)
    project = Project.create(tmp_path / "project", tmp_path / "images", labels=tmp_path / "labels")
    for case in project.cases:
        label = io.read_label(case.label, GEOMETRIES[case.name]).array
        project.set_annotated(case.name, simulate_annotation(label, 3, SLICES[case.name]))
    project.save()
    return project


def prepared(project, dim, grid=None):
    """The cache, which also has the labels, and the live labels."""
    headers = [io.read_header(case.images[0]) for case in project.cases]
    plan = make_plan(headers, modality=project.modalities, channels=1, dim=dim, grid=grid)
    cache = Cache(project.cache_folder, plan)
    given = {"values": project.named_values, "ignore": project.ignore_value}
    cache.prepare(project.cases, labels=True, **given).require_all()
    labels = LiveLabels(cache)
    for case in project.cases:
        labels.put(read_drawn(project, case))
    return cache, labels


@pytest.mark.parametrize(("dim", "grid"), [("2d", None), ("2d", 1.7), ("3d", None), ("3d", 1.7)])
def test_labels_in_memory_are_those_of_the_cache(drawn, dim, grid):
    cache, labels = prepared(drawn, dim, grid)
    for case in drawn.cases:
        size = cache.shape(case.name)[1:]
        assert labels.shape(case.name) == cache.shape(case.name)
        for lo, hi in [((0, 0, 0), size), ((-2, 1, -1), (3, 9, 5)), ((1, 20, 1), (2, 30, 3))]:
            assert np.array_equal(labels.label(case.name, lo, hi), cache.label(case.name, lo, hi))
            assert np.array_equal(labels.image(case.name, lo, hi), cache.image(case.name, lo, hi))
        assert labels.counts(case.name) == cache.counts(case.name)
        here, there = labels.foreground(case.name), cache.foreground(case.name)
        assert here.keys() == there.keys()
        assert all(np.array_equal(here[value], there[value]) for value in here)


def test_a_slice_is_found_on_the_grid_whatever_its_axis_and_direction(drawn):
    """Each shows its own classes, and all of them lie where something counts."""
    cache, labels = prepared(drawn, "2d")
    for case in drawn.cases:
        found = read_drawn(drawn, case)
        shown = np.zeros(cache.shape(case.name)[1:], bool)
        for place in found.places:
            places = labels.on_slice(found, place)
            for value, voxels in places.items():
                shown[tuple(voxels.T)] = True
                assert (labels.whole(case.name)[tuple(voxels.T)] == value).all()
            wanted = set(np.unique(found.plane(place))) - {IGNORE}
            assert set(places) == wanted, f"{case.name} {place}"
        assert not (shown & (labels.whole(case.name) == IGNORE)).any()
        assert shown.sum() >= 0.5 * (labels.whole(case.name) != IGNORE).sum()


def test_a_case_that_is_dropped_or_empty_is_no_longer_drawn_from(drawn):
    _, labels = prepared(drawn, "2d")
    labels.drop("oblique")
    assert "oblique" not in labels.names and labels.foreground("oblique") == {}
    assert (labels.label("oblique", (0, 0, 0), (2, 2, 2)) == IGNORE).all()
    case = replace(drawn.case("canonical"), annotated=Annotated.of([]))
    labels.put(read_drawn(drawn, case))
    assert "canonical" not in labels.names


def sampler(**changes):
    """Two cases of which all is drawn."""
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(1, 6, 16, 16)).astype(np.float32) for name in "ab"}
    labels = {name: np.zeros((6, 16, 16), np.uint8) for name in "ab"}
    labels["a"][2, 4:8, 4:8] = 1
    reader = MemoryReader(images, labels)
    base = {"patch": (8, 8), "spacing": (1.0, 1.0), "augment": PLAIN, "batch": 8, "seed": 3}
    return LiveSampler(reader=reader, cases=("a", "b"), foreground=0.5, **(base | changes))


def slices_of(one, steps=20):
    """(case, d) of all samples."""
    found = []
    for step in range(steps):
        one.reader.read.clear()
        one.sample(step)
        found += [(name, low[0]) for name, low, _ in one.reader.read]
    return found


@each("share", [0.25, 0.5, 1.0])
def test_new_slices_have_their_share_of_every_batch(share):
    fresh = FreshSlice("b", {0: np.array([[5, 3, 3], [5, 9, 9]], np.int32)})
    found = slices_of(sampler(fresh=(fresh,), fresh_share=share))
    reserved = round(8 * share)
    for step in range(20):
        batch = found[8 * step : 8 * step + 8]
        assert batch[:reserved] == [("b", 5)] * reserved
    others = [place for step in range(20) for place in found[8 * step + reserved : 8 * step + 8]]
    assert share == 1 or {name for name, _ in others} == {"a", "b"}


def test_several_new_slices_take_turns():
    fresh = [FreshSlice("a", {0: np.array([[d, 3, 3]], np.int32)}) for d in (0, 1, 5)]
    found = slices_of(sampler(fresh=tuple(fresh), fresh_share=0.5))
    first = [place for n, place in enumerate(found) if n % 8 < 4]
    assert [first.count(("a", d)) for d in (0, 1, 5)] == [27, 27, 26]


def test_half_of_a_new_slice_with_a_structure_lies_on_it():
    places = {0: np.array([[2, 0, 0]], np.int32), 1: np.array([[2, 15, 15]], np.int32)}
    one = sampler(fresh=(FreshSlice("a", places),), fresh_share=1.0, patch=(4, 4))
    one.sample(0)
    corners = [low[1] for _, low, _ in one.reader.read]
    assert sum(corner > 8 for corner in corners) >= 4  # the other half lies on anything drawn


def test_without_new_slices_the_draws_are_those_of_every_training():
    from MedSSLLib.data.patch_samplers import SegmentationSampler

    live = sampler()
    names = [name for name in SegmentationSampler.__dataclass_fields__]
    plain = SegmentationSampler(**{name: getattr(live, name) for name in names})
    for step in range(3):
        one, other = live.sample(step), plain.sample(step)
        assert one.cases == other.cases and (one.windows == other.windows).all()
