"""Exported models: the same network, the same grid and the same labels as `predict`, without
MedSSLLib.
"""

import ast
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.data.plan import COMPRESSED_CT, CROPPED_CT, LINEAR_CT, make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference.model import Model, load_model, network_of
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.interop import export
from MedSSLLib.interop.monai_bundle import (
    _after,
    as_dynunet,
    scripts_text,
    write_bundle,
)
from MedSSLLib.interop.monai_bundle_scripts import ClassMapd, find_cases
from MedSSLLib.interop.monai_metadata import plan_facts, schema
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.run_folder import write_config
from Testing.lib.core_helpers import loud, tiny_config
from Testing.lib.inference.test_predict import GRIDS, object_in

CHOSEN = ("left-handed", "oblique", "anisotropic", "thick along i", "permuted", "fine")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A project with an image on every awkward grid."""
    folder = tmp_path_factory.mktemp("export")
    for number, name in enumerate(CHOSEN):
        label = object_in(GRIDS[name])
        noise = np.random.default_rng(number).normal(0, 15, label.shape)
        for part, array in (
            ("images", (100 * label + noise).astype(np.float32)),
            ("labels", label),
        ):
            io.write_image(
                folder / part / f"{name.replace(' ', '-')}.nii.gz", Volume(array, GRIDS[name])
            )
    return Project.create(folder / "project", folder / "images", labels=folder / "labels")


def make_run(
    project, name, dim, norm="batch", one_piece=(), undivided=(), connected=False, **planned
):
    """A run with random weights and uneven statistics, every class about as likely as the
    others.
    """
    plan = make_plan([io.read_header(c.images[0]) for c in project.cases], modality="MR", dim=dim)
    plan = plan.model_copy(update={"strides": plan.strides[:3], **planned})
    config = tiny_config(name=name, network__widths=(4, 8, 8), network__norm=norm, dim=dim)
    folder = project.run_folder(name)
    folder.mkdir(parents=True)
    facts = {
        "classes": ["background", "a", "b"],
        "values": [0, 3, 7],
        "one_piece": list(one_piece),
        "undivided": list(undivided),
        "single_foreground": connected,
    }
    write_config(folder, config, plan, facts)
    torch.manual_seed(5)
    network = network_of(config, plan, 3)
    state = {
        n: t + 0.3 * torch.rand_like(t) if t.is_floating_point() else t
        for n, t in network.state_dict().items()
    }
    head = state["head.weight"]
    state["head.weight"] = 20 * (head - head.mean(0))
    save_tensors(folder / WEIGHTS, state, {})
    (folder / "model_card.md").write_text("# card\nwith {braces}", encoding="utf-8")
    model = load_model(folder, "cpu", "32")
    with torch.no_grad():
        logits = model.network(padded(model, project.cases[0])[0])
    state["head.bias"] = state["head.bias"] - logits.movedim(1, 0).flatten(1).mean(1)
    save_tensors(folder / WEIGHTS, state, {})
    return load_model(folder, "cpu", "32")


def padded(model, case):
    """A preprocessed image as the exported network takes it, and the part of it that is image."""
    image, _ = preprocess_image([io.read_image(case.images[0])], model.plan)
    x = (
        torch.from_numpy(image)[None]
        if model.plan.dim == 3
        else torch.from_numpy(image).movedim(1, 0)
    )
    step = np.prod(model.plan.strides, axis=0)
    missing = [int(-n % s) for n, s in zip(x.shape[2:], step, strict=True)]
    pads = [value for extra in reversed(missing) for value in (0, extra)]
    inside = (..., *(slice(0, n) for n in x.shape[2:]))
    return torch.nn.functional.pad(x, pads, mode="replicate"), inside, image


def expected(model, case):
    probabilities, _ = model.probabilities([io.read_image(case.images[0])])
    return probabilities[None] if model.plan.dim == 3 else probabilities.movedim(1, 0)


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_dynunet_is_the_same_network(cohort, dim):
    """In float64: in float32 a processor may take another kernel for another memory format."""
    model = make_run(cohort, f"same-{dim}", dim)
    arguments, theirs = as_dynunet(model.network)
    x, _, _ = padded(model, cohort.cases[0])
    with torch.no_grad():
        ours = model.network.double()(x.double())
        torch.testing.assert_close(theirs.double()(x.double()), ours, rtol=1e-9, atol=1e-9)
    assert json.loads(json.dumps(arguments)) == arguments


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_torchscript_gives_the_probabilities_of_predict(cohort, dim, tmp_path):
    model = make_run(cohort, f"traced-{dim}", dim)
    out = tmp_path / "model.ts"
    words = [
        "export",
        str(cohort.folder),
        "--run",
        f"traced-{dim}",
        "--to",
        "torchscript",
        "--out",
        str(out),
        "-q",
    ]
    assert main(words) == 0
    extra = {export.METADATA: ""}
    network = torch.jit.load(str(out), _extra_files=extra)
    facts = json.loads(extra[export.METADATA])
    assert facts["plan"] == model.plan.model_dump(mode="json") and facts["values"] == [0, 3, 7]
    for case in cohort.cases[:3]:  # sizes differ
        x, inside, _ = padded(model, case)
        assert all(n % s == 0 for n, s in zip(x.shape[2:], facts["size_multiple"], strict=True))
        with torch.no_grad():
            torch.testing.assert_close(network(x)[inside], expected(model, case), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_gives_the_probabilities_of_predict(cohort, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_run(cohort, "onnx-3d", "3d")
    export.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    facts = json.loads(session.get_modelmeta().custom_metadata_map["medssl"])
    assert facts["plan"] == model.plan.model_dump(mode="json")
    for case in cohort.cases[:3]:
        x, inside, _ = padded(model, case)
        (found,) = session.run(None, {"image": x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found)[inside], expected(model, case), rtol=0, atol=1e-4
        )


def test_onnx_without_its_packages_says_what_to_install(cohort, tmp_path, monkeypatch):
    model = make_run(cohort, "no-onnx", "3d")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MedSSLError, match=r'-m pip install "onnx>=[0-9.]+" "onnxscript>='):
        export.export_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def run_bundle(folder, out, images):
    """`python -m monai.bundle run` without its command line."""
    from monai.bundle import ConfigWorkflow

    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    config, facts = folder / "configs" / "inference.json", folder / "configs" / "metadata.json"
    workflow = ConfigWorkflow(
        str(config),
        meta_file=str(facts),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(folder),
        dataset_dir=str(images),
        output_dir=str(out),
        device="$torch.device('cpu')",
    )
    path = list(sys.path)
    try:
        workflow.initialize()
        workflow.run()
        return workflow
    finally:
        sys.path[:] = path


RUNS = [
    ("2d", "batch", ()),
    ("3d", "instance", ((1,), (), True)),
    ("3d", "batch", ((), (1, 2), False)),
    ("3d", "group", ()),
]


@pytest.mark.parametrize(("dim", "norm", "pieces"), RUNS)
def test_monai_runs_the_bundle_to_the_labels_of_predict(cohort, dim, norm, pieces, tmp_path):
    """Random networks are near ties in many voxels: on the oblique grid in 2D 0.9 % of them differ,
    elsewhere fewer.
    """
    pytest.importorskip("nibabel")
    name = f"bundle-{dim}-{norm}"
    model = make_run(cohort, name, dim, norm, *pieces)
    single, on_slices, foreground = pieces or ((), (), False)
    assert (model.single_component, model.connected_on_slices) == (single, on_slices)
    assert model.single_foreground is foreground
    facts = plan_facts(model)
    assert (facts["one_piece"], facts["undivided"]) == (list(single), list(on_slices))
    assert facts["connected"] is foreground
    events, _ = loud()
    export.run_export(cohort, name, "bundle", tmp_path / "bundle", events)
    run_predict(cohort, name, tmp_path / "mine", events)
    workflow = run_bundle(
        tmp_path / "bundle", tmp_path / "theirs", cohort.cases[0].images[0].parent
    )
    assert (
        tmp_path / "bundle" / "models" / ("model.ts" if norm == "group" else "model.pt")
    ).exists()
    dataset = workflow.parser.get_parsed_content("dataset")
    for index, case in enumerate(cohort.cases):
        header = io.read_header(case.images[0])
        _, _, image = padded(model, case)
        theirs = dataset[index]["image"].numpy()[
            (slice(None), *(slice(0, n) for n in image.shape[1:]))
        ]
        np.testing.assert_allclose(
            theirs, image, atol=1e-3, err_msg=case.name
        )  # nibabel reads headers in float32
        mine, other = (
            io.read_label(tmp_path / part / f"{case.name}.nii.gz", header)
            for part in ("mine", "theirs")
        )
        assert set(np.unique(mine.array)) <= {0, 3, 7} and len(np.unique(mine.array)) > 1, case.name
        assert (mine.array == other.array).mean() > (0.99 if dim == "2d" else 0.998), case.name


@pytest.mark.parametrize("rule", [LINEAR_CT, COMPRESSED_CT, CROPPED_CT])
def test_a_bundle_scales_ct_as_the_run_did(tmp_path, rule):
    hu = np.random.default_rng(0).uniform(-1000, 400, (16, 20, 24)).astype(np.float32)
    io.write_image(tmp_path / "i" / "a.nii.gz", Volume(hu, Geometry((24, 20, 16))))
    project = Project.create(tmp_path / "p", tmp_path / "i")
    model = make_run(project, "ct", "3d", modality=("CT",), intensities=rule)
    bundle = write_bundle(model, tmp_path / "bundle", "ct", "", None)
    dataset = run_bundle(bundle, tmp_path / "out", tmp_path / "i").parser
    theirs = dataset.get_parsed_content("dataset")[0]["image"].numpy()
    x, _, _ = padded(model, project.cases[0])
    np.testing.assert_allclose(theirs, x[0].numpy(), atol=1e-3)
    facts = plan_facts(model)
    values = hu.clip(*facts["hounsfield_range"]).astype(float)
    if facts["hounsfield_arcsinh"]:
        centre, width = facts["hounsfield_arcsinh"]
        values = np.arcsinh((values - centre) / width)
    mean, deviation = facts["hounsfield_scale"]
    assert x.max() == pytest.approx((values.max() - mean) / deviation, abs=1e-3)


def images_of(folder, **arrays):
    for name, array in arrays.items():
        io.write_image(folder / f"{name}.nii.gz", Volume(array, Geometry((24, 20, 16))))
    return folder


def noise(seed=0):
    return np.random.default_rng(seed).normal(100, 30, (16, 20, 24)).astype(np.float32)


@pytest.mark.parametrize("values", [(0, 997, 312_782_546), (0, 2**24 + 1, 2**32 - 1)])
def test_a_bundle_writes_the_very_ids(tmp_path, values):
    """Neither is a number of float32, through which MONAI's own writers go."""
    nibabel = pytest.importorskip("nibabel")
    project = Project.create(tmp_path / "p", images_of(tmp_path / "i", a=noise()))
    model = replace(make_run(project, "ids", "3d"), values=values)
    run_bundle(write_bundle(model, tmp_path / "b", "ids", "", None), tmp_path / "o", tmp_path / "i")
    written = nibabel.load(tmp_path / "o" / "a.nii.gz")
    likely, _ = model.probabilities([io.read_image(tmp_path / "i" / "a.nii.gz")])
    classes = model.class_map(likely.numpy())
    assert set(np.unique(written.dataobj)) == set(np.array(values)[np.unique(classes)])
    assert len(np.unique(classes)) > 1 and written.get_data_dtype().kind in "iu"
    mine = np.array(values)[classes]
    theirs = io.read_label(tmp_path / "o" / "a.nii.gz", Geometry((24, 20, 16))).array
    assert (mine == theirs).mean() > 0.998
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "i" / "a.nii.gz").affine)


def test_a_bundle_names_what_it_cannot_read_and_goes_on(tmp_path, capsys, monkeypatch):
    pytest.importorskip("nibabel")
    there = importlib.util.find_spec
    monkeypatch.setattr(  # as where neither is installed
        importlib.util, "find_spec", lambda *of: None if of[0] in ("itk", "nrrd") else there(*of)
    )
    images = images_of(tmp_path / "i", b=noise(1), d=noise(2), flat=0 * noise(), twice=noise(3))
    for name in ("a.mha", "c.nrrd", "twice.nrrd"):
        io.write_image(images / name, Volume(noise(), Geometry((24, 20, 16))))
    (images / "torn.nii.gz").write_bytes(b"not an image")
    project = Project.create(tmp_path / "p", images_of(tmp_path / "one", b=noise(1)))
    bundle = write_bundle(make_run(project, "goes-on", "3d"), tmp_path / "bundle", "x", "", None)
    with pytest.raises(SystemExit) as ended:
        run_bundle(bundle, tmp_path / "out", images)
    assert ended.value.code == "5 of 7 cases not segmented"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.nii.gz", "d.nii.gz"]
    said = capsys.readouterr().err
    for name in ("a.mha", "c.nrrd"):
        assert f"not segmented: {name}: nothing that is installed reads this format" in said
    assert said.count("pip install itk") == 2
    assert "not segmented: twice.nii.gz, twice.nrrd: 2 files of one case, expected 1" in said
    assert "not segmented: torn.nii.gz: cannot be read: " in said
    assert "not segmented: flat.nii.gz: " in said
    assert "pip install itk" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_a_bundle_names_cases_without_all_channels(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nrrd", "c.mha", "notes.txt"):
        (tmp_path / name).touch()
    found = [
        (case["channels"], [Path(file).name for file in case["image"]])
        for case in find_cases(str(tmp_path), 2)
    ]
    assert found == [(2, ["a_0000.nii.gz", "a_0001.nii.gz"]), (2, ["b_0001.nrrd"]), (2, ["c.mha"])]


def test_a_bundle_keeps_the_pieces_that_predictions_keep():
    """Two pieces each: of classes 1 and 2 the surer one stays, of class 3 both."""
    likely = np.zeros((4, 4, 4, 12), np.float32)
    likely[0] = 0.1
    for value in (1, 2, 3):
        likely[value, value, :, 0:5], likely[value, value, :, 8:10] = 0.52, 0.99
    image = MetaTensor(
        torch.from_numpy(likely), affine=torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0]))
    )
    made = ClassMapd("pred", [1, 2])({"pred": image})["pred"]
    assert made.shape == (1, 4, 4, 12) and torch.equal(made.affine, image.affine)
    for value, places in ((1, range(8, 10)), (2, range(8, 10)), (3, [*range(5), 8, 9])):
        assert np.array_equal(np.flatnonzero((made[0, value] == value).all(0)), list(places)), value
    model = Model(
        network=None,
        plan=None,
        values=(0, 1, 2, 3),
        classes=tuple("0123"),
        device=torch.device("cpu"),
        precision="32",
        single_component=(1,),
        connected_on_slices=(2,),
    )
    assert np.array_equal(made[0], model.class_map(likely))
    assert _after(model)[2]["single"] == [1, 2] and _after(model)[2]["connected"] is False
    whole = replace(model, single_foreground=True)
    made = ClassMapd("pred", [1, 2], True)({"pred": image})["pred"]
    assert np.array_equal(made[0], whole.class_map(likely)) and _after(whole)[2]["connected"]
    assert not np.array_equal(made[0], model.class_map(likely))


def test_a_bundle_needs_no_medssl_and_its_metadata_hold(cohort, tmp_path):
    model = make_run(cohort, "alone", "3d")
    bundle = write_bundle(
        model, tmp_path / "new" / "bundle", "alone", "# alone\n\n## Model\n- a: {b}\n", None
    )
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.findall("^#.*", page, re.MULTILINE) == ["# alone", "## Model"] and "- a: {b}" in page
    tree = ast.parse(scripts_text())
    imports = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imports |= {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    assert imports - sys.stdlib_module_names <= {"numpy", "torch", "monai", "nibabel", "scipy"}
    assert "MedSSLLib" not in (bundle / "configs" / "inference.json").read_text()
    facts = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert {"monai_version", "pytorch_version", "numpy_version", "network_data_format"} <= set(
        facts
    )
    assert facts["medssl"]["plan"] == model.plan.model_dump(mode="json")
    assert torch.load(bundle / "models" / "model.pt", weights_only=True)
    with pytest.raises(InputError, match="exists already"):
        write_bundle(model, bundle, "alone", "card", None)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["bundle"], (
        "no temporary folder is left"
    )


def test_monai_verifies_the_metadata_offline(cohort, tmp_path, monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata

    monkeypatch.setattr(
        "urllib.request.urlretrieve", lambda *_, **__: pytest.fail("went to the network")
    )
    bundle = write_bundle(
        make_run(cohort, "verified", "2d"), tmp_path / "bundle", "verified", "", None
    )
    meta, own = bundle / "configs" / "metadata.json", bundle / "configs" / "schema.json"
    verify_metadata(meta_file=str(meta), filepath=str(own))
    facts = json.loads(meta.read_text())
    del facts["network_data_format"]["inputs"]["image"]["num_channels"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(facts, schema())


def test_files_and_folders_are_not_overwritten_by_mistake(cohort, tmp_path):
    make_run(cohort, "careful", "3d")
    events, _ = loud()
    with pytest.raises(InputError, match="is a folder"):
        export.run_export(cohort, "careful", "torchscript", tmp_path, events)
    with pytest.raises(InputError, match="does not exist"):
        export.run_export(cohort, "nothing", "bundle", tmp_path / "b", events)
