"""Prediction on the source grid, with a hand-set network: an asymmetric object must land where it
lies.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import Plan, make_plan
from MedSSLLib.evaluation.calibration import probability_path
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference import predict
from MedSSLLib.inference.model import Model, PredictOptions, load_model, network_of, predict_case
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.run_folder import write_config
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config, tiny_project


def oblique(size, spacing, angles, flips=(1, 1, 1)):
    rotation = sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    direction = np.reshape(rotation, (3, 3)) * np.asarray(flips)
    return Geometry(size, spacing, (12.0, -30.0, 7.0), tuple(direction.ravel()))


GRIDS = {
    "plain": Geometry((24, 26, 20)),
    "flipped": oblique((24, 26, 20), (1.0, 1.0, 1.0), (0, 0, 0), (-1, -1, 1)),
    "left-handed": oblique((24, 26, 20), (1.0, 1.0, 1.2), (0, 0, 0), (1, 1, -1)),
    "oblique": oblique((28, 26, 22), (1.0, 0.9, 1.3), (0.2, -0.3, 0.15)),
    "anisotropic": oblique((30, 32, 12), (0.8, 0.8, 3.0), (0.1, 0.2, 0)),
    "thick along i": oblique((9, 30, 32), (4.0, 0.9, 0.9), (0, 0.1, 0)),
    "permuted": Geometry(
        (22, 24, 26),
        (1.1, 1.0, 0.9),
        (0.0, 0.0, 0.0),
        (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    ),
    "fine": oblique((40, 44, 36), (0.5, 0.5, 0.6), (0, 0, 0.4)),
}


def object_in(geometry):
    """An L of three different arms: no flip or permutation maps it onto itself."""
    n = np.asarray(geometry.shape)
    label = np.zeros(geometry.shape, np.uint8)
    a, b = (n * 0.2).astype(int), np.maximum((n * 0.45).astype(int), (n * 0.2).astype(int) + 2)
    label[a[0] : b[0], a[1] : b[1], a[2] : b[2]] = 1
    label[a[0] : b[0], a[1] : b[1], a[2] : int(n[2] * 0.8)] = 1
    label[a[0] : b[0], a[1] : int(n[1] * 0.65), a[2] : b[2]] = 1
    return label


def threshold_model(folder, plan, level=0.0, values=(0, 7)):
    """A run whose network is a 1x1 classifier of the normalised image: class 1 above `level`."""
    config = tiny_config(name="threshold", network__widths=(4, 8), dim="auto")
    folder.mkdir(parents=True)
    write_config(folder, config, plan, {"classes": ["background", "thing"], "values": list(values)})
    save_tensors(folder / WEIGHTS, network_of(config, plan, 2).state_dict(), {})
    model = load_model(folder, "cpu")

    class Threshold(torch.nn.Module):
        def forward(self, x):
            return torch.cat([5 * (level - x), 5 * (x - level)], 1)

    object.__setattr__(model, "network", Threshold())
    return model


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@each("grid", GRIDS)
@each("dim", ["2d", "3d"])
@each("flips", [False, True])
def test_an_asymmetric_object_lands_where_it_lies(tmp_path, grid, dim, flips):
    geometry = GRIDS[grid]
    label = object_in(geometry)
    image = Volume(
        (np.where(label, 100, -100) + np.random.default_rng(0).normal(size=label.shape)).astype(
            np.float32
        ),
        geometry,
    )
    plan = make_plan([geometry], modality="MR", dim=dim)
    share = (label > 0).mean()
    halfway = (0.5 - share) / np.sqrt(share * (1 - share))  # of both normalised values
    model = threshold_model(tmp_path / "run", plan, float(halfway))
    predicted, probabilities = predict_case(model, [image], PredictOptions(flips=flips))
    assert predicted.geometry == geometry and predicted.array.dtype == np.uint8
    assert set(np.unique(predicted.array)) == {0, 7}, "the values of the label files"
    assert probabilities.shape == (2, *geometry.shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)
    assert dice(predicted.array == 7, label > 0) > 0.95
    own = dice(predicted.array == 7, label > 0)
    assert all(
        dice(predicted.array == 7, np.flip(label, axis) > 0) < own - 0.2 for axis in range(3)
    )


def test_a_temperature_softens_probabilities_and_moves_no_label(tmp_path):
    geometry = GRIDS["plain"]
    image = Volume(
        np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32), geometry
    )
    folder = tmp_path / "run"
    plan = make_plan([geometry], modality="MR", dim="3d")
    model = threshold_model(folder, plan, 0.0)
    labels, plain = predict_case(model, [image], PredictOptions())
    measured = {"temperature": 3.0, "ece_foreground": 0.2, "ece_foreground_scaled": 0.1}
    (folder / "metrics.json").write_text(json.dumps({"calibration": measured}))
    soft = replace(model, temperature=load_model(folder, "cpu").temperature)
    assert (model.temperature, soft.temperature) == (1.0, 3.0)
    same, softer = predict_case(soft, [image], PredictOptions())
    assert (same.array == labels.array).all()
    odds = [np.log(p[1].clip(1e-6) / p[0].clip(1e-6)) for p in (plain, softer)]
    inside = np.abs(odds[0]) < 8
    np.testing.assert_allclose(odds[1][inside], odds[0][inside] / 3, atol=1e-3)


def test_a_constant_case_and_other_channels_are_refused(tmp_path):
    model = threshold_model(tmp_path / "run", make_plan([GRIDS["plain"]], modality="MR", dim="3d"))
    with pytest.raises(InputError, match="constant"):
        predict_case(
            model,
            [Volume(np.ones(GRIDS["plain"].shape, np.float32), GRIDS["plain"])],
            PredictOptions(),
        )
    volume = Volume(np.random.default_rng(0).normal(size=GRIDS["plain"].shape), GRIDS["plain"])
    with pytest.raises(InputError, match="2 channels, expected 1"):
        predict_case(model, [volume, volume], PredictOptions())


def test_pieces_are_kept_by_what_the_labels_tell_and_by_evidence():
    """A large unsure piece, and a small sure one beside which it is nothing."""
    likely = np.zeros((2, 1, 4, 20))
    likely[1, :, :, 0:9], likely[1, :, :, 12:16] = 0.52, 0.95
    likely[0] = 1 - likely[1]
    both = likely[1] > 0.5
    large, sure = (both & (np.arange(20) < 10) == part for part in (True, False))
    made = Model(
        network=None,
        plan=None,
        values=(0, 1),
        classes=("background", "a"),
        device=torch.device("cpu"),
        precision="32",
    )
    for known, kept, expected in (
        ({}, "auto", both),
        ({}, "all", both),
        ({}, "largest", large),
        ({"single_component": (1,)}, "auto", both & sure),
        ({"connected_on_slices": (1,)}, "auto", both & sure),
        ({"single_foreground": True}, "auto", both & sure),
        ({"single_component": (1,), "single_foreground": True}, "all", both),
        ({"connected_on_slices": (1,)}, "largest", large),
    ):
        assert np.array_equal(
            replace(made, **known).class_map(likely, kept) == 1, expected & both
        ), (known, kept)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    project = tiny_project(tmp_path_factory.mktemp("predict"), 3)
    from MedSSLLib.finetuning.finetune import run_finetune

    run_finetune(project, tiny_config(name="model", dim="2d"), Events())
    return project


def test_cases_are_written_on_their_grids_with_all_extras(trained, tmp_path):
    events, record = loud()
    options = PredictOptions(
        probabilities=True, uncertainty=True, components="largest", device="cpu"
    )
    written = run_predict(
        trained, "model", tmp_path, events, cases="case0,case2", options=options
    ).written
    assert [p.name for p in written] == ["case0.nii.gz", "case2.nii.gz"]
    for case in ("case0", "case2"):
        source = io.read_header(trained.case(case).images[0])
        label = io.read_label(tmp_path / f"{case}.nii.gz", source)
        parts = sorted((tmp_path / "probabilities").glob(f"{case}_*.nii.gz"))
        assert len(parts) == 2
        p = np.stack([io.read_image(part).array for part in parts])
        np.testing.assert_allclose(p.sum(0), 1, atol=1e-3)
        u = io.read_image(tmp_path / "uncertainty" / f"{case}.nii.gz").array
        entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(0) / np.log(2)
        np.testing.assert_allclose(u, entropy, atol=1e-3)
        assert set(np.unique(label.array)) <= {0, 1}
    run_predict(
        trained, "model", tmp_path, Events(), cases="case0", options=PredictOptions(device="cpu")
    )
    assert not list(tmp_path.rglob("*/case0*")), "probabilities of an earlier prediction"
    assert list(tmp_path.rglob("*/case2*"))
    assert [e["step"] for e in record.of("progress")] == [1, 2] and record.of("done")[0][
        "cases"
    ] == 2


def test_a_case_that_cannot_be_read_leaves_exit_code_1_and_the_others(trained, tmp_path, capsys):
    images = [trained.case(name).images[0] for name in ("case0", "case1")]
    (tmp_path / "torn.nii.gz").write_bytes(images[0].read_bytes()[:900])
    words = [
        "predict",
        str(trained.folder),
        "--run",
        "model",
        "--device",
        "cpu",
        "--images",
        *map(str, images),
    ]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, str(tmp_path / "torn.nii.gz"), "--out", str(tmp_path / "b")]) == 1
    output = capsys.readouterr()
    assert "torn" in output.err and "2 segmentations" in output.out and "1 left out" in output.out
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        p.name for p in (tmp_path / "a").iterdir()
    }
    assert main([*words[:-2], str(tmp_path / "torn.nii.gz"), "--out", str(tmp_path / "c")]) == 2
    assert not (tmp_path / "c").exists()


def test_prediction_is_the_same_twice_and_does_not_touch_the_project(trained, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*") if p.is_file()}
    for name in ("a", "b"):
        run_predict(trained, "model", tmp_path / name, Events(), cases="case1")
    source = io.read_header(trained.case("case1").images[0])
    a, b = (io.read_label(tmp_path / n / "case1.nii.gz", source).array for n in ("a", "b"))
    assert np.array_equal(a, b)
    assert before == {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*") if p.is_file()}


def test_a_bad_image_is_named_and_the_others_go_on(trained, tmp_path):
    good = trained.case("case0").images[0]
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:200])
    events, record = loud()
    written = run_predict(trained, "model", tmp_path / "out", events, images=[bad, good]).written
    assert [p.name for p in written] == ["case0.nii.gz"] and "bad.nii.gz" in record.of("warning")[
        0
    ]["message"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case0.nii.gz"]
    with pytest.raises(InputError, match=r"bad\.nii\.gz"):
        run_predict(trained, "model", tmp_path / "out2", Events(), images=[bad])


def test_a_scan_in_another_unit_is_named(trained, tmp_path):
    volume = io.read_image(trained.case("case0").images[0])
    spacing = tuple(length / 1000 for length in volume.geometry.spacing)
    io.write_image(
        tmp_path / "m.nrrd", Volume(volume.array, replace(volume.geometry, spacing=spacing))
    )
    events, record = loud()
    run_predict(trained, "model", tmp_path / "out", events, images=[tmp_path / "m.nrrd"])
    assert "unit of length" in record.of("warning")[0]["message"]
    events, record = loud()
    run_predict(trained, "model", tmp_path / "own", events, cases="case0")
    assert not record.of("warning")


def test_values_that_cannot_be_compared_are_told_and_the_others_go_on(
    trained, tmp_path, monkeypatch
):
    """Memory that runs out after a result was written must not end the command."""

    def full(*given):
        raise MemoryError

    monkeypatch.setattr(predict, "unlike_training", full)
    events, told = loud()
    scans = [trained.case(name).images[0] for name in ("case0", "case1")]
    written = run_predict(trained, "model", tmp_path, events, images=scans).written
    assert [path.name for path in written] == ["case0.nii.gz", "case1.nii.gz"]
    words = [event["message"] for event in told.of("warning")]
    assert [text.split(":")[0] for text in words] == ["case0", "case1"], words
    assert all("not enough memory to compare" in text for text in words)


def test_refusals(trained, tmp_path):
    for arguments, words in (
        ({"run": "never"}, "does not exist"),
        ({"run": "model", "cases": "nobody"}, "nobody"),
        ({"run": "model", "cases": ""}, "no case is selected"),
        (
            {"run": "model", "images": [trained.case("case0").images[0]] * 2},
            "case0: .*is the name of 2 images",
        ),
    ):
        with pytest.raises(InputError, match=words):
            run_predict(trained, out=tmp_path, events=Events(), **arguments)


def test_images_of_one_name_are_listed_and_the_others_go_on(trained, tmp_path):
    image = trained.case("case0").images[0]
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "twice.nii.gz", "Twice.nii.gz"):
        shutil.copy(image, tmp_path / "in" / name)
    events, record = loud()
    found = run_predict(trained, "model", tmp_path / "out", events, images=[tmp_path / "in"])
    assert [path.name for path in found.written] == ["a.nii.gz"] and len(found.refused) == 1
    assert "Twice.nii.gz, " in record.of("warning")[0]["message"]


def test_a_file_in_the_place_of_the_folder_is_refused(trained, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file: is not a folder"):
            run_predict(trained, "model", out, Events(), cases="case0")


def test_channels_of_new_images_are_put_together(tmp_path):
    """nnU-Net's names: x_0000 and x_0001 are the two channels of x, in a folder or named one by
    one.
    """
    geometry = Geometry((16, 16, 16))
    plan = make_plan([geometry], modality=("MR", "MR"), channels=2, dim=3)
    project = tiny_project(tmp_path)
    config = tiny_config(name="two")
    write_config(
        project.run_folder("two"),
        config,
        plan,
        {"classes": ["background", "thing"], "values": [0, 1]},
    )
    save_tensors(project.run_folder("two") / WEIGHTS, network_of(config, plan, 2).state_dict(), {})
    rng, new = np.random.default_rng(0), tmp_path / "new"
    for name in ("x_0000", "x_0001", "y_0000", "z"):
        io.write_image(
            new / f"{name}.nii.gz",
            Volume(rng.normal(size=geometry.shape).astype(np.float32), geometry),
        )
    events, record = loud()
    found = run_predict(project, "two", tmp_path / "a", events, images=[new])
    assert [path.name for path in found.written] == ["x.nii.gz"]
    assert {error.case: Path(error.file).name for error in found.refused} == {
        "y": "y_0000.nii.gz",
        "z": "z.nii.gz",
    }
    given = [new / "x_0001.nii.gz", new / "x_0000.nii.gz"]
    run_predict(project, "two", tmp_path / "b", Events(), images=given)
    one, other = (io.read_label(tmp_path / part / "x.nii.gz", geometry).array for part in "ab")
    assert np.array_equal(one, other)


def same_folder(folder, spelling, tmp_path):
    """The folder by another spelling of its path."""
    if spelling == "link":
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        return tmp_path / "link"
    return {
        "plain": folder,
        "dots": folder / ".." / folder.name,
        "relative": Path(os.path.relpath(folder)),
    }[spelling]


@pytest.mark.parametrize("spelling", ["plain", "dots", "relative", "link"])
@pytest.mark.parametrize("place", ["imagesTr", "labelsTr"])
def test_scans_and_labels_of_the_project_are_not_replaced(
    trained, tmp_path, place, spelling, capsys
):
    folder = trained.folder.parent / "data" / place
    files = {path: path.read_bytes() for path in folder.rglob("*")}
    out = same_folder(folder, spelling, tmp_path)
    words = ["predict", str(trained.folder), "--run", "model", "--device", "cpu", "--out", str(out)]
    assert main([*words, "--cases", "case2"]) == 2
    text = capsys.readouterr().err
    assert str(out / "case2.nii.gz") in text and "Choose another --out" in text
    assert files == {path: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("part", ["", "uncertainty/case0.nii.gz", "probabilities"])
@pytest.mark.parametrize("extras", [False, True])
def test_no_file_of_a_prediction_replaces_an_input(trained, tmp_path, part, extras):
    """Not an image given by --images, nor a label where probabilities or uncertainty go, which may
    be removed too.
    """
    project, taken = Project.open(trained.folder), tmp_path / (part or "case0.nii.gz")
    if part == "probabilities":
        taken = probability_path(tmp_path, "case0", 1, trained.classes[1])
    taken.parent.mkdir(exist_ok=True)
    shutil.copy(project.case("case0").images[0], taken)
    if part:
        project.set_label("case1", taken)
    content, options = (
        taken.read_bytes(),
        PredictOptions(probabilities=extras, uncertainty=extras, device="cpu"),
    )
    given = {"cases": "case0"} if part else {"images": [tmp_path]}
    with pytest.raises(InputError, match="would be overwritten") as caught:
        run_predict(project, "model", tmp_path, Events(), options=options, **given)
    assert caught.value.file == str(taken) and taken.read_bytes() == content
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [taken]


def test_labels_that_no_model_made_are_not_replaced(trained, tmp_path):
    """Hidden labels of test scans are files that the project does not know."""
    scan, out = tmp_path / "scans" / "new.nii.gz", tmp_path / "labels"
    scan.parent.mkdir()
    shutil.copy(trained.case("case0").images[0], scan)

    def predict():
        return run_predict(trained, "model", out, Events(), images=[scan]).written

    (made,) = predict()
    assert predict() == [made], "what was predicted is predicted anew"
    image = nibabel.load(made)
    corrected = np.asarray(image.dataobj).copy()
    corrected[0, 0, 0] += 1
    nibabel.save(nibabel.Nifti1Image(corrected, image.affine, image.header), made)
    content = made.read_bytes()
    with pytest.raises(InputError, match="drawn or corrected by hand") as caught:
        predict()
    assert made.read_bytes() == content and caught.value.file == str(made)
    made.unlink()
    assert predict() == [made]


def test_predictions_of_a_project_replace_earlier_ones(trained):
    """As Slicer asks for them, into the project's own folder."""
    out = trained.folder / "predictions" / "model"
    for _ in range(2):
        found = run_predict(
            trained, "model", out, Events(), cases="case0", options=PredictOptions(uncertainty=True)
        )
        assert (
            found.written == [out / "case0.nii.gz"]
            and (out / "uncertainty" / "case0.nii.gz").exists()
        )
    shutil.rmtree(out.parent)


@pytest.mark.parametrize(
    "command",
    [
        "suggest {p} --budget 1",
        "report {p} --run model",
        "export {p} --run model --to torchscript",
        "evaluate --predictions {l} --references {l}",
    ],
)
def test_no_other_result_replaces_an_input(trained, command, capsys):
    taken = trained.case("case1").label
    content = taken.read_bytes()
    words = command.format(p=trained.folder, l=taken.parent).split()
    assert main([*words, "--out", str(taken)]) == 2
    assert (
        f"{taken}: is a scan or a label in use" in capsys.readouterr().err
        and taken.read_bytes() == content
    )


def test_an_encoder_segments_nothing(trained, tmp_path):
    folder = trained.run_folder("only-encoder")
    folder.mkdir(parents=True)
    plan = Plan(
        dim=2,
        spacing=(None, 1, 1),
        slice_axis="own",
        modality=("MR",),
        channels=1,
        patch=(8, 8),
        strides=((1, 1),),
    )
    write_config(folder, tiny_config("pretrain", method="byol"), plan, {})
    save_tensors(folder / WEIGHTS, {"encoder.x": torch.ones(1)}, {})
    with pytest.raises(InputError, match="--init only-encoder"):
        run_predict(trained, "only-encoder", tmp_path, Events())
    assert json.loads((folder / "config.json").read_text())["config"]["command"] == "pretrain"


def test_pieces_that_are_taken_away_are_told_of_each_case_and_why_once(
    trained, tmp_path, monkeypatch
):
    events, told = loud()
    segmented = predict.segment_case
    monkeypatch.setattr(
        predict, "segment_case", lambda *given: segmented(*given)._replace(taken={1: (2, 30)})
    )
    options = PredictOptions(device="cpu")
    predict.run_predict(trained, "model", tmp_path, events, cases="case0,case1", options=options)
    words = [event["message"] for event in told.of("warning")]
    cases = [text for text in words if text.endswith("taken away.")]
    assert [text.split(":")[0] for text in cases] == ["case0", "case1"], words
    assert f"2 pieces of {trained.classes[1]} (" in cases[0] and "ml)" in cases[0]
    assert sum("--components all" in text for text in words) == 1
