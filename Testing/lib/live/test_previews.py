"""Previews: the same classes as a whole prediction, the asked slice first, written whole."""

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.inference.model import Model, PredictOptions, predict_case
from MedSSLLib.live import previews as module
from MedSSLLib.live.previews import begin_pass, layout_of, predicted_slices
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, place
from MedSSLLib.project.project import Project
from Testing.lib.conftest import GEOMETRIES


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """One case per awkward grid, with blobs."""
    folder = tmp_path_factory.mktemp("previews")
    rng = np.random.default_rng(1)
    for name, grid in GEOMETRIES.items():
        array = rng.normal(size=grid.shape).astype(np.float32)
        io.write_image(folder / "images" / f"{name}.nrrd", Volume(array, grid))
    return Project.create(folder / "project", folder / "images")


def model_of(project, dim, grid=None, slice_axis=None):
    """A model with random weights, which sees something everywhere, and the cache."""
    torch.manual_seed(0)
    headers = [io.read_header(case.images[0]) for case in project.cases]
    plan = make_plan(headers, modality=project.modalities, channels=1, dim=dim, grid=grid)
    if slice_axis is not None:
        plan = plan.model_copy(update={"slice_axis": slice_axis})
    config = NetworkConfig(widths=(4, 8))
    net = SegmentationNet(build_encoder(plan.dim, 1, plan.strides, config), 3).eval()
    place(net, torch.device("cpu"), plan.dim)
    cache = Cache(project.cache_folder, plan)
    cache.prepare(project.cases).require_all()
    with torch.no_grad():  # no class is preferred
        image = torch.randn(8, 1, *(16,) * plan.dim)
        net.head.bias -= net(image).transpose(0, 1).flatten(1).mean(1)
    names = ("background", "a", "b")
    return Model(
        network=net,
        plan=plan,
        values=(0, 1, 2),
        classes=names,
        device=torch.device("cpu"),
        precision="32",
    ), cache


def whole(model, case):
    volumes = [io.read_image(path) for path in case.images]
    return predict_case(model, volumes, PredictOptions(components="all"))[0].array


@pytest.mark.parametrize(
    ("grid", "slice_axis"), [(None, None), (1.6, None), (None, 0), (1.6, 1), (None, 2)]
)
def test_a_whole_preview_is_the_prediction_of_the_case(project, tmp_path, grid, slice_axis):
    model, cache = model_of(project, "2d", grid, slice_axis)
    for case in project.cases:
        made = begin_pass(case, cache, None)
        while not made.whole:
            made.advance(model, cache)
        found = np.load(made.write(tmp_path))
        expected = whole(model, case)
        assert len(np.unique(expected)) > 1, "the case tells something"
        # the cache holds half precision: a voxel between two classes may fall the other way
        assert found.dtype == np.uint8 and (found != expected).mean() < 0.01, case.name


def test_in_3d_it_is_nearly_the_prediction_of_the_case(project, tmp_path):
    model, cache = model_of(project, "3d")
    for case in project.cases:
        made = begin_pass(case, cache, None)
        while not made.whole:
            made.advance(model, cache)
        assert (np.load(made.write(tmp_path)) != whole(model, case)).mean() < 0.1


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_the_asked_slice_comes_first_and_the_range_grows_around_it(
    project, tmp_path, name, monkeypatch
):
    monkeypatch.setattr(module, "CHUNK", 300)
    model, cache = model_of(project, "2d")
    case, expected = project.case(name), None
    layout = layout_of(case, cache)
    asked = layout.count // 3
    made = begin_pass(case, cache, (layout.axis, asked))
    expected = whole(model, case)
    made.advance(model, cache)
    assert made.slices == [asked, asked] and made.due
    found = np.load(made.write(tmp_path))
    shown = np.take(expected, asked, 2 - layout.axis)
    assert (np.take(found, asked, 2 - layout.axis) != shown).mean() < 0.02
    before = made.slices
    while not made.whole:
        assert made.holds((layout.axis, asked)) and not made.holds((layout.axis, 10**6))
        made.advance(model, cache)
        now = made.slices or [0, layout.count - 1]
        assert now[0] <= before[0] and now[1] >= before[1] and now != before
        before = now
    assert made.slices is None and made.holds(None) and made.has_shown((layout.axis, 0))


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_one_slice_stands_as_in_the_label_file(project, name):
    """The 2D map that is scored has the axes of the drawn slice."""
    model, cache = model_of(project, "2d")
    case = project.case(name)
    layout, expected = layout_of(case, cache), whole(model, case)
    for index in (0, layout.count - 1):
        at = layout.turned(index)
        plane = layout.in_source(
            predicted_slices(model, cache, layout, at, at), (layout.axis, index)
        )
        assert (plane != np.take(expected, index, 2 - layout.axis)).mean() < 0.02


def test_a_new_pass_keeps_what_it_has_not_reached(project, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    model, cache = model_of(project, "2d")
    case = project.case("canonical")
    first = begin_pass(case, cache, None)
    while not first.whole:
        first.advance(model, cache)
    kept = first.classes.copy()
    second = begin_pass(case, cache, (first.layout.axis, 0), first)
    second.advance(model, cache)
    assert np.array_equal(second.classes, kept) and not second.whole
    assert not second.holds((first.layout.axis, 5)) and second.has_shown((first.layout.axis, 5))


def test_a_preview_is_replaced_whole(tmp_path):
    path = tmp_path / "previews" / "case.npy"
    module.write_array(path, np.zeros((2, 3, 4), np.uint8))
    mapped = np.load(path, mmap_mode="r")
    module.write_array(path, np.ones((2, 3, 4), np.uint8))
    assert not mapped.any(), "a reader keeps the array that it has opened"
    assert np.load(path).all() and [p.name for p in path.parent.iterdir()] == ["case.npy"]
