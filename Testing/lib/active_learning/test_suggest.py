"""``suggest`` on tiny projects: what it needs, what it leaves out, what it writes, and on which
grid.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib.active_learning import scans, slice_table
from MedSSLLib.active_learning import suggest as module
from MedSSLLib.active_learning.slice_table import Table, class_uncertainty, structure_area
from MedSSLLib.active_learning.suggest import SuggestOptions, from_table, run_suggest
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.slices import slice_operator
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated, counted_mask, slice_axis
from MedSSLLib.inference.model import Model, network_of
from MedSSLLib.networks.unet import build_encoder
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.run_folder import write_config
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config
from Testing.lib.grid_helpers import GRIDS

CPU = torch.device("cpu")


@pytest.fixture
def runs(project):
    """The project of six awkward grids (one of them a test case), with an encoder and a model that
    nobody trained.
    """
    plan = make_plan(
        [io.read_header(case.images[0]) for case in project.pool], modality="MR", dim="3d"
    )
    for name, command, method in (
        ("encoder", "pretrain", "pgl"),
        ("model", "finetune", "supervised"),
    ):
        torch.manual_seed(3)
        config, folder = tiny_config(command, method=method, name=name), project.run_folder(name)
        folder.mkdir(parents=True)
        write_config(
            folder, config, plan, {"classes": list(project.classes), "values": list(project.values)}
        )
        if command == "pretrain":
            encoder = build_encoder(3, 1, plan.strides, config.network)
            save_tensors(
                folder / WEIGHTS, {f"encoder.{k}": v for k, v in encoder.state_dict().items()}, {}
            )
        else:
            save_tensors(folder / WEIGHTS, network_of(config, plan, 3).state_dict(), {})
    return project


def suggest(project, run=None, **options):
    events, record = loud()
    found = run_suggest(
        project, run, SuggestOptions(**{"budget": 4, "device": "cpu"} | options), events
    )
    return found, record


@each("name", GRIDS)
@each("dim", ["2d", "3d"])
def test_the_unsure_slice_is_named_on_the_source_grid(name, dim):
    """One slice of the source lies at the threshold of a hand-made model; all others are clear."""
    geometry = GRIDS[name]
    rng = np.random.default_rng(0)
    for axis in {slice_axis(geometry), 0}:
        wanted = geometry.size[axis] * 2 // 3
        across = (2 - axis + 1) % 3  # bright and dark halves within every slice
        halves = np.where(np.arange(geometry.shape[across]) * 2 < geometry.shape[across], -1.0, 1.0)
        array = np.expand_dims(halves, [a for a in range(3) if a != across]) + rng.normal(
            0, 0.01, geometry.shape
        )
        np.moveaxis(array, 2 - axis, 0)[wanted] = array.mean()
        plan = make_plan([geometry], modality="MR", dim=dim)
        model = _threshold(plan, 0.0)  # the mean of the normalised image
        image, grid = preprocess_image([Volume(array, geometry)], plan)
        along, rows = slice_operator(geometry, grid, axis)
        areas = rows @ class_uncertainty(model.on_grid(image), grid, along)
        assert areas.shape == (geometry.size[axis], 1) and int(areas[:, 0].argmax()) == wanted
        sides = np.array(geometry.size) * geometry.spacing
        area = sides.prod() / sides[axis]
        assert 0.2 * area < areas[wanted, 0] <= 1.05 * area, "square millimetres"
        found = rows @ structure_area(model.on_grid(image), grid, along)
        clear = [row for row in range(len(found)) if abs(row - wanted) > 1]
        np.testing.assert_allclose(found[clear], area / 2, rtol=0.15, err_msg="the bright half")


def _threshold(plan, level):
    class Threshold(torch.nn.Module):
        def forward(self, x):
            return torch.cat([3 * (level - x), 3 * (x - level)], 1)

    return Model(
        network=Threshold(),
        plan=plan,
        values=(0, 1),
        classes=("background", "thing"),
        device=CPU,
        precision="32",
    )


@pytest.mark.parametrize(
    "strategy, run",
    [
        ("coverage", "encoder"),
        ("hybrid", "encoder"),
        ("coverage", "model"),
        ("uncertainty", "model"),
        ("hybrid", "model"),
        ("even", None),
        ("random", None),
        ("hybrid", None),
    ],
)
def test_suggestions_can_be_annotated(runs, strategy, run, monkeypatch):
    monkeypatch.setattr(io, "read_label", lambda *a, **k: pytest.fail("a label was read"))
    runs.set_annotated("canonical", Annotated.of([(2, [4])]))
    found, record = suggest(runs, run, strategy=strategy, per_case=2)
    assert [item.rank for item in found] == list(range(1, len(found) + 1)) and 1 < len(found) <= 4
    assert all(item.reason for item in found)
    names = [item.case for item in found]
    assert "oblique" not in names, "a test case"
    assert "flipped" not in names, "its label is dense, and labelled"
    assert max(names.count(name) for name in names) <= 2
    assert len({(item.case, item.index) for item in found}) == len(found)
    for item in found:
        geometry = io.read_header(runs.case(item.case).images[0])
        assert item.axis == (2 if item.case == "canonical" else slice_axis(geometry))
        counted_mask(
            geometry.shape, Annotated.of([(item.axis, [item.index])])
        )  # raises outside the volume
        assert (item.case, item.index) != ("canonical", 4)
    stored = json.loads((runs.folder / "suggestions.json").read_text())
    assert stored["format"] == "medssl-suggestions" and stored["format_version"] == 1
    assert [(s["case"], s["axis"], s["index"]) for s in stored["slices"]] == [
        (f.case, f.axis, f.index) for f in found
    ]
    assert record.events[-1]["event"] == "done" and record.events[-1]["slices"] == stored["slices"]
    expected = {("hybrid", "encoder"): "coverage", ("hybrid", None): "even"}.get(
        (strategy, run), strategy
    )
    assert stored["strategy"] == expected
    assert suggest(runs, run, strategy=strategy, per_case=2)[0] == found, (
        "the same seed gives the same slices"
    )


@pytest.mark.parametrize("shared", [0.0, 3.0], ids=["unlike", "alike"])
def test_reasons_say_how_like_the_slices_before_a_pick_is(runs, shared, monkeypatch):
    tables, real = [], slice_table.extract_features

    def features(*args, **options):
        found = real(*args, **options)
        rng = np.random.default_rng(1)
        tables.append(
            replace(found, features=rng.normal(size=(len(found.case), 30)) + shared * np.eye(30)[0])
        )
        return tables[-1]

    monkeypatch.setattr(slice_table, "extract_features", features)
    runs.set_annotated("canonical", Annotated.of([(2, [4])]))
    found, _ = suggest(runs, "encoder", strategy="coverage", per_case=2)
    (table,) = tables
    unit = table.features / np.linalg.norm(table.features, axis=1, keepdims=True)
    before = np.flatnonzero(table.drawn).tolist()
    for item in found:
        number = [scan.case.name for scan in table.scans].index(item.case)
        (row,) = np.flatnonzero((table.case == number) & (table.place == item.index))
        similarity = (unit[before] @ unit[row]).max()
        alike = f"like a slice chosen before (similarity {similarity:.2f})"
        assert item.reason.split(";")[0] == (
            alike if similarity >= 0.5 else "unlike any slice chosen so far"
        )
        before.append(row)
    assert any(item.reason.startswith("like") == (shared > 0) for item in found)


def test_features_are_standardised_over_slices_that_show_something(runs):
    cpu = slice_table.load_viewer(runs, "encoder", "cpu", "auto")
    table = slice_table.extract_features(runs, scans.survey(runs.pool, Events()), cpu, Events())
    assert 0 < table.usable.sum() < len(table.usable)
    np.testing.assert_allclose(table.features[table.usable].mean(0), 0, atol=1e-5)


def _second_model(project, name="second", classes=None):
    """A further run, on another grid, whose weights nobody trained."""
    torch.manual_seed(4)
    plan = make_plan(
        [io.read_header(case.images[0]) for case in project.pool], modality="MR", dim="3d"
    )
    plan = plan.model_copy(update={"spacing": tuple(1.3 * mm for mm in plan.spacing)})
    config, folder = tiny_config(name=name), project.run_folder(name)
    folder.mkdir(parents=True)
    facts = {"classes": list(classes or project.classes), "values": list(project.values)}
    write_config(folder, config, plan, facts)
    save_tensors(folder / WEIGHTS, network_of(config, plan, 3).state_dict(), {})


def test_further_runs_take_part_and_are_named(runs):
    _second_model(runs)
    alone, _ = suggest(runs, "model", strategy="uncertainty")
    found, _ = suggest(runs, "model", strategy="uncertainty", also=("second",))
    assert all(item.reason.startswith("2 models together unsure: ") for item in found)
    assert [item.score for item in found] != [item.score for item in alone]
    stored = json.loads((runs.folder / "suggestions.json").read_text())
    assert (stored["run"], stored["also"]) == ("model", ["second"])


def test_further_runs_that_cannot_take_part_are_refused(runs):
    _second_model(runs, "other", classes=("background", "spleen", "liver"))
    for run, also, strategy, words in (
        ("model", "other", "hybrid", "spleen"),
        ("model", "never", "hybrid", "does not exist"),
        ("model", "encoder", "uncertainty", "segments nothing"),
        ("model", "model", "uncertainty", "more than once"),
        ("model", "model", "coverage", "no use for further runs"),
        ("encoder", "model", "hybrid", "no use for further runs"),
        (None, "model", "hybrid", "no use for further runs"),
    ):
        with pytest.raises(InputError, match=words):
            suggest(runs, run, also=(also,), strategy=strategy)


@each(
    "areas, words",
    [
        ([0, 0], "nowhere"),
        ([1.234, 0], "1.23 mm2 uncertain, mostly at a"),
        ([20, 2131.4], "2,151 mm2 uncertain, mostly at b"),
    ],
)
def test_uncertain_areas_are_plain_numbers(areas, words):
    assert module._area_words(np.array(areas), ("a", "b")).startswith(words)


def test_another_seed_draws_other_random_slices(project):
    assert (
        suggest(project, strategy="random", seed=1)[0]
        != suggest(project, strategy="random", seed=2)[0]
    )


def fill_with_noise(project):
    """Images without an empty slice."""
    for case in project.cases:
        geometry = io.read_header(case.images[0])
        array = np.random.default_rng(0).normal(0, 100, geometry.shape).astype(np.float32)
        io.write_image(case.images[0], Volume(array, geometry))


def test_a_budget_beyond_all_slices_is_answered_with_a_warning(project):
    fill_with_noise(project)
    found, record = suggest(project, strategy="random", budget=1000, per_case=2)
    assert len(found) == 6, "three cases are not drawn"
    assert "Only 6 of 1000" in record.of("warning")[0]["message"]
    found, _ = suggest(project, strategy="random", budget=1000, per_case=100)
    free = [
        io.read_header(c.images[0]).size[slice_axis(io.read_header(c.images[0]))]
        for c in project.unlabelled
    ]
    assert len(found) == sum(free)


def test_empty_slices_and_bad_cases_are_left_out(project):
    fill_with_noise(project)
    case = project.case("anisotropic")
    volume = io.read_image(case.images[0])
    array = volume.array.astype(np.float32)
    array[[0, 3]] = -200
    io.write_image(case.images[0], Volume(array, volume.geometry))
    project.case("sagittal").images[0].write_bytes(b"nothing")
    found, record = suggest(project, strategy="random", budget=1000, per_case=100)
    assert sorted(item.index for item in found if item.case == "anisotropic") == [1, 2, 4]
    assert not [item for item in found if item.case == "sagittal"]
    assert any("sagittal" in event["message"] for event in record.of("warning"))


def test_one_case_is_enough(tmp_path, make_volume):
    io.write_image(tmp_path / "images" / "only.nii.gz", make_volume())
    project = Project.create(tmp_path / "project", tmp_path / "images")
    assert [item.index for item in suggest(project, budget=3)[0]] == [2, 4, 6], (
        "the first and last show noise alone"
    )


def test_where_only_empty_slices_are_left_it_says_so(tmp_path, make_volume):
    io.write_image(tmp_path / "images" / "only.nii.gz", make_volume())
    project = Project.create(tmp_path / "project", tmp_path / "images")
    (case,) = project.cases
    geometry = io.read_header(case.images[0])
    io.write_image(tmp_path / "label.nii.gz", Volume(np.ones(geometry.shape, np.uint8), geometry))
    project.set_label("only", tmp_path / "label.nii.gz")
    axis = slice_axis(geometry)
    project.set_annotated("only", Annotated.of([(axis, range(1, geometry.size[axis]))]))
    with pytest.raises(InputError, match="no slice is left"):
        suggest(project)


def test_refusals_say_what_to_do(runs):
    for run, options, words in (
        (None, {"strategy": "coverage"}, "needs a trained run"),
        (None, {"strategy": "uncertainty"}, "needs a trained run"),
        ("encoder", {"strategy": "uncertainty"}, "pre-trained encoder"),
        ("never", {}, "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            suggest(runs, run, **options)
    for case in runs.pool:
        runs.set_label(case.name, case.label)
    with pytest.raises(InputError, match=r"labelled already[\s\S]*Add unlabelled cases"):
        suggest(runs)


def test_the_command_prints_a_table_or_json(project, capsys, tmp_path):
    assert (
        main(["suggest", str(project.folder), "--budget", "2", "--out", str(tmp_path / "s.json")])
        == 0
    )
    out = capsys.readouterr()
    assert "evenly spaced" in out.out and "axial 4 of 7, 6 mm above the lowest" in out.out
    assert "'index'" not in out.err, "no dump of the slices on the terminal"
    assert main(["suggest", str(project.folder), "--budget", "2", "--json", "--quiet"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["slices"]
        == json.loads((tmp_path / "s.json").read_text())["slices"]
    )
    assert main(["suggest", str(project.folder), "--budget", "0"]) == 2
    assert (
        main(
            [
                "suggest",
                str(project.folder),
                "--budget",
                "3",
                "--strategy",
                "random",
                "--seed",
                "-1",
            ]
        )
        == 2
    )
    assert "--seed: '-1' is not a whole number from 0" in capsys.readouterr().err


def test_events_object_is_enough(project):
    assert run_suggest(project, None, SuggestOptions(1), Events())


def test_hybrid_names_a_failure_before_a_large_structure():
    """Two scans, nothing alike: a large structure with a wide border, and one hardly found."""
    scans = [SimpleNamespace(case=SimpleNamespace(name=n, patient=n), axis=2) for n in "ab"]
    table = Table(
        scans=scans,
        case=np.repeat([0, 1], 4),
        place=np.tile(np.arange(4), 2),
        usable=np.ones(8, bool),
        drawn=np.zeros(8, bool),
        features=np.eye(8, dtype=np.float32),
        uncertainty=np.repeat([[300.0], [100.0]], 4, 0),
        structures=np.repeat([5000.0, 20.0], 4),
    )
    viewer = SimpleNamespace(model=SimpleNamespace(classes=("background", "one")), others=())
    found = from_table(table, viewer, "hybrid", SuggestOptions(2, per_case=1))
    assert [item.case for item in found] == ["b", "a"]
    assert "more of this scan is uncertain than found" in found[0].reason
    assert "than found" not in found[1].reason
