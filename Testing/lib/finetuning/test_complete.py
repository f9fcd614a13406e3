"""``run_complete``: drawn slices stay, the grid stays, what cannot be completed is refused."""

import json

import numpy as np
import pytest
import torch

from MedSSLLib.cli.main import main
from MedSSLLib.config.commands import CompletionConfig
from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.finetuning import complete
from MedSSLLib.finetuning.complete import run_complete
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated, counted_mask, simulate_annotation
from MedSSLLib.images.shape_interpolation import product_of_experts
from MedSSLLib.inference.model import load_model
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.conftest import GEOMETRIES
from Testing.lib.core_helpers import loud, tiny_config, tiny_project

SLICES = {
    "canonical": 2,
    "anisotropic": 2,
    "flipped": 1,
    "left-handed": 0,
    "oblique": 2,
    "sagittal": 0,
}


def config(case, **changes):
    values = {"training__steps": 2, "dim": "auto", "options.case": case} | changes
    return tiny_config("complete", **values)


def read(path):
    volume = io.read_label(path, io.read_header(path))
    return volume.array, volume.geometry


@pytest.fixture
def drawn(tmp_path, make_volume, make_label):
    """A project with one case per awkward grid; values 3 and 7; slices annotated along different
    axes.
    """
    for name, grid in GEOMETRIES.items():
        io.write_image(tmp_path / "images" / f"{name}.nrrd", make_volume(grid))
        io.write_image(tmp_path / "labels" / f"{name}.nrrd", make_label(grid, values=(3, 7)))
    project = Project.create(tmp_path / "project", tmp_path / "images", labels=tmp_path / "labels")
    for case in project.cases:
        label = io.read_label(case.label, GEOMETRIES[case.name]).array
        project.set_annotated(case.name, simulate_annotation(label, 3, SLICES[case.name]))
    project.save()
    return project


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Ellipsoids; case0 has three annotated slices, case1 all, case2 is a test case, case3 has no
    label.
    """
    project = tiny_project(tmp_path_factory.mktemp("complete"))
    project.set_annotated("case0", Annotated.of([(2, [4, 6, 8])]))
    project.set_roles(test="case2", labelled="case0,case1")
    project.set_label("case3", None)
    project.save()
    return project


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_drawn_slices_and_the_grid_stay_on_awkward_grids(drawn, name):
    case = drawn.case(name)
    label = io.read_label(case.label, GEOMETRIES[name]).array
    array, geometry = read(run_complete(drawn, config(name), Events()))
    assert geometry.close_to(io.read_header(case.images[0]))
    kept = counted_mask(label.shape, case.annotated)
    assert np.array_equal(array[kept], label[kept]) and set(np.unique(array)) <= {0, 3, 7}


def test_drawn_voxels_stay_whatever_network_and_shapes_say(sparse, monkeypatch):
    """Shapes alone give drawn slices back, so that a network that is sure of something else is
    needed to see it.
    """
    sure = lambda network, *rest: np.stack([index == 1 + 0 * p for index, p in enumerate(network)])  # noqa: E731
    monkeypatch.setattr(complete, "with_shapes", sure)
    array, _ = read(run_complete(sparse, config("case0", name="sure"), Events()))
    label = io.read_label(
        sparse.case("case0").label, io.read_header(sparse.case("case0").images[0])
    ).array
    drawn = np.isin(np.arange(len(array)), [4, 6, 8])
    assert (
        np.array_equal(array[drawn], label[drawn])
        and (array[~drawn] == 1).all()
        and not label[drawn].all()
    )


def test_undrawn_voxels_of_the_label_file_are_not_read(drawn, tmp_path):
    """What the file holds off its annotated slices changes nothing."""
    case = drawn.case("canonical")
    first, _ = read(run_complete(drawn, config("canonical", name="a"), Events()))
    label = io.read_label(case.label, GEOMETRIES["canonical"])
    label.array[~counted_mask(label.array.shape, case.annotated)] = 7
    io.write_image(case.label, Volume(label.array, label.geometry))
    second, _ = read(run_complete(drawn, config("canonical", name="b"), Events()))
    assert np.array_equal(first, second)


def test_the_run_is_a_run_like_others(sparse, tmp_path):
    events, record = loud()
    path = run_complete(
        sparse, config("case0", name="filled", options__out=str(tmp_path / "out")), events
    )
    folder = sparse.run_folder("filled")
    assert path == tmp_path / "out" / "case0.nii.gz" and path.is_file()
    done = record.events[-1]
    assert (done["event"], done["path"], done["run"]) == ("done", str(path), "filled")
    facts = json.loads((folder / "config.json").read_text())
    assert set(facts["config"]["options"]) == {"case", "out", "edge", "spread", "network"}
    assert facts["data"]["labelled"] == ["case0"]
    assert facts["data"]["annotated"] == {"case0": [{"axis": 2, "indices": [4, 6, 8]}]}
    summary = next(run for run in sparse.runs() if run["name"] == "filled")
    assert summary["finished"] and summary["metrics"]["steps"] == 2 and not summary["problem"]
    assert load_model(folder).classes == sparse.classes, "and it can predict"


def test_a_full_label_is_completed_from_simulated_slices_and_only_that_label_is_read(
    sparse, monkeypatch
):
    seen, plain = [], io.read_label
    monkeypatch.setattr(
        io, "read_label", lambda path, *a, **k: seen.append(path.name) or plain(path, *a, **k)
    )
    path = run_complete(sparse, config("case1", annotated_slices=3), Events())
    assert (
        set(seen) == {"case1.nii.gz"}
        and path.name == "case1.nii.gz"
        and path.parent.parent == sparse.runs_folder
    )
    facts = json.loads((path.parent / "config.json").read_text())["data"]
    assert len(facts["annotated"]["case1"][0]["indices"]) == 3


def test_shapes_help_where_the_network_knows_nothing(sparse):
    """After two steps the network is noise; the shapes between the slices still give the
    ellipsoid.
    """
    case = sparse.case("case0")
    truth = io.read_label(case.label, io.read_header(case.images[0])).array > 0
    array, _ = read(run_complete(sparse, config("case0"), Events()))
    assert 2 * (truth & (array > 0)).sum() / (truth.sum() + (array > 0).sum()) > 0.7


def test_one_annotated_slice_is_enough(sparse):
    project = Project.open(sparse.folder)
    project.set_annotated("case0", Annotated.of([(1, [9])]))
    array, _ = read(run_complete(project, config("case0"), Events()))
    assert array[:, 9].any() and array.any((1, 2)).sum() > 1


@each(
    ("case", "change", "words"),
    [
        ("nobody", {}, "no case is called nobody"),
        ("case3", {}, "case3: has no annotated slice.*Draw"),
        ("case1", {}, "case1: .*nothing to complete.*--annotated-slices"),
        ("case2", {}, "case2: is a test case.*Complete another"),
        ("case0", {"annotated_slices": 2}, "case0: has 3 annotated slices.*Leave"),
        ("case0", {"options.edge": 0}, "'options.edge' is 0, it must be greater than 0"),
        ("case0", {"options.colour": "red"}, "'options.colour' does not exist"),
        ("case0", {"init": "never"}, "does not exist"),
    ],
)
def test_what_cannot_be_completed_is_refused_and_leaves_no_run(sparse, case, change, words):
    before = len(sparse.runs())
    with pytest.raises(InputError) as caught:
        run_complete(sparse, config(case, **change), Events())
    assert __import__("re").search(words, str(caught.value)), str(caught.value)
    assert len(sparse.runs()) == before


def test_a_case_of_which_every_slice_is_drawn_is_refused(sparse):
    case = sparse.case("case0")
    project = Project.open(sparse.folder)
    project.set_annotated(
        "case0", Annotated.of([(2, range(io.read_header(case.images[0]).size[2]))])
    )
    with pytest.raises(InputError, match="every slice, there is nothing to complete"):
        run_complete(project, config("case0"), Events())


def test_slices_without_any_structure_are_refused(sparse):
    project = Project.open(sparse.folder)
    project.set_annotated("case0", Annotated.of([(2, [0])]))
    with pytest.raises(InputError, match="no structure on its annotated slices"):
        run_complete(project, config("case0"), Events())


def test_voxels_to_be_ignored_on_a_drawn_slice_are_filled_in(sparse, tmp_path):
    case = sparse.case("case0")
    label = io.read_label(case.label, io.read_header(case.images[0]))
    middle = tuple(np.argwhere(label.array[6]).mean(0).astype(int))
    label.array[6][middle] = 9
    io.write_image(tmp_path / "case0.nii.gz", label)
    project = Project.open(sparse.folder)
    project.set_labels({0: "background", 1: "ellipsoid", 9: "ignore"})
    project.set_label("case0", tmp_path / "case0.nii.gz")
    project.set_annotated("case0", Annotated.of([(2, [4, 6, 8])]))
    array, _ = read(run_complete(project, config("case0"), Events()))
    assert array[6][middle] == 1


def test_a_cancelled_run_goes_on_and_equals_one_that_was_not(sparse, monkeypatch):
    whole, _ = read(
        run_complete(sparse, config("case0", name="whole", training__steps=5), Events())
    )
    asked = iter([False, False, True] + [False] * 9)
    monkeypatch.setattr(interrupts, "requested", lambda: next(asked))
    with pytest.raises(CancelledError, match="--resume --name cut"):
        run_complete(sparse, config("case0", name="cut", training__steps=5), Events())
    assert not (sparse.run_folder("cut") / "case0.nii.gz").exists()
    path = run_complete(sparse, tiny_config("complete", name="cut", resume=True), Events())
    assert np.array_equal(read(path)[0], whole)
    kept = [
        json.loads((sparse.run_folder(n) / "metrics.json").read_text())["steps"]
        for n in ("whole", "cut")
    ]
    assert kept == [5, 5]


def test_an_encoder_decides_the_dimension_and_2d_slices_follow_the_drawing(sparse):
    run_finetune(
        sparse,
        tiny_config(name="encoder", dim="2d", labelled='["case1"]', training__steps=1),
        Events(),
    )
    project = Project.open(sparse.folder)
    project.set_annotated("case0", Annotated.of([(0, [8, 11])]))
    path = run_complete(project, config("case0", init="encoder"), Events())
    plan = RunFolder(path.parent).plan
    assert plan.dim == 2 and plan.slice_axis == 0, "i runs along L"
    assert (path.parent / "transfer.txt").exists()


def test_the_product_of_experts_is_the_product():
    rng = np.random.default_rng(0)
    a, b = (rng.dirichlet([1, 1, 1], (4, 5, 6)).transpose(3, 0, 1, 2) for _ in range(2))
    for weight in (1.0, 0.0, 2.0):
        expected = a**weight * b
        np.testing.assert_allclose(
            product_of_experts(a, np.log(b), weight), expected / expected.sum(0), rtol=1e-5
        )
    sure = np.zeros((2, 1, 1, 1))
    sure[1] = 1
    assert product_of_experts(sure, np.log([[[[0.5]]], [[[0.5]]]]))[1].item() > 0.999, (
        "a probability of 0 is no NaN"
    )


def test_the_command_runs_and_says_where(sparse, capsys, tmp_path):
    words = [
        "--case",
        "case0",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--set",
        "network.widths=[4,8]",
        "--out",
        str(tmp_path / "o"),
        "--events",
        "-",
    ]
    torch.set_num_threads(1)
    assert main(["complete", str(sparse.folder), *words]) == 0
    events = [
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")
    ]
    assert events[-1]["event"] == "done" and events[-1]["path"] == str(
        tmp_path / "o" / "case0.nii.gz"
    )
    assert main(["complete", str(sparse.folder), "--case", "cas0"]) == 2
    assert "Did you mean case0" in capsys.readouterr().err
    assert main(["complete", str(sparse.folder)]) == 2


def test_a_label_that_no_model_made_is_not_replaced(sparse, tmp_path):
    name, taken = sparse.labelled[0].name, tmp_path / "out" / f"{sparse.labelled[0].name}.nii.gz"
    settings = config(name, name="once", options__out=str(taken.parent))
    taken.parent.mkdir()
    taken.write_bytes(b"drawn")
    with pytest.raises(InputError, match="drawn or corrected by hand"):
        run_complete(sparse, settings, Events())
    assert taken.read_bytes() == b"drawn"
    taken.unlink()
    assert run_complete(sparse, settings, Events()) == taken
    again = config(name, name="again", options__out=str(taken.parent))
    assert run_complete(sparse, again, Events()) == taken


@pytest.mark.parametrize("place", ["imagesTr", "labelsTr"])
def test_a_scan_or_a_label_is_not_replaced(sparse, place, capsys):
    """The label of case1 is drawn in full; three of its slices are used to try it out."""
    folder, before = sparse.folder.parent / "data" / place, len(sparse.runs())
    files = {path: path.read_bytes() for path in folder.iterdir()}
    words = [
        "complete",
        str(sparse.folder),
        "--case",
        "case1",
        "--annotated-slices",
        "3",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--set",
        "network.widths=[4,8]",
        "--out",
        str(folder),
    ]
    assert main(words) == 2
    text = capsys.readouterr().err
    assert str(folder / "case1.nii.gz") in text and "Choose another --out" in text
    assert (
        files == {path: path.read_bytes() for path in folder.iterdir()}
        and len(sparse.runs()) == before
    )


def test_the_documented_defaults_are_those_of_the_shapes():
    from MedSSLLib.images.shape_interpolation import Softness

    assert (CompletionConfig().edge, CompletionConfig().spread) == (
        Softness().edge,
        Softness().spread,
    )
