"""The hidden commands of the Slicer module, run as it runs them: events on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.cli import panel
from MedSSLLib.cli.main import build_parser, main
from MedSSLLib.evaluation.prediction_summary import prediction_numbers
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import Case

ROOT = Path(__file__).resolve().parents[3]


def events(*arguments):
    command = [sys.executable, "-m", "MedSSLLib", *map(str, arguments), "--events", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    code, found = events("phantoms", folder / "sample", "--kind", "heart", "--count", 2)
    assert code == 0 and len(found[-1]["images"]) == 2
    images, labels = folder / "sample" / "images", folder / "sample" / "labels"
    assert main(["init", str(folder / "p"), "--images", str(images), "--labels", str(labels)]) == 0
    return folder / "p"


def test_they_are_not_listed_and_are_known():
    text = build_parser().format_help()
    for command in panel.HIDDEN:
        assert f"  {command.name} " not in text
        assert build_parser().parse_args(command.examples[0].split()[1:]).command == command.name


def test_facts(project):
    code, found = events("facts", project)
    rows = [event for event in found if event["event"] == "image"]
    assert code == 0 and [row["case"] for row in rows] == ["heart_01", "heart_02"]
    assert rows[0]["size"] == [72, 72, 12] and rows[0]["spacing"] == [1.6, 1.6, 8.0]
    code, found = events("facts", project, "heart_02")
    assert [row["case"] for row in found if row["event"] == "image"] == ["heart_02"]


def test_unpack_and_pack_give_the_same_voxels_and_grid(project, tmp_path):
    sample = project.parent / "sample"
    image, label = (sample / kind / "heart_01.nii.gz" for kind in ("images", "labels"))
    code, found = events(
        "unpack", tmp_path, "--read", "a", "image", image, "--read", "b", "label", label
    )
    rows = {event["key"]: event for event in found if event["event"] == "image"}
    assert code == 0
    array = np.load(rows["a"]["file"])
    assert (array == io.read_image(image).array).all()
    assert rows["a"]["low"] < rows["a"]["high"] and rows["a"]["matrix"] == rows["b"]["matrix"]
    code, _found = events(
        "pack", rows["a"]["file"], tmp_path / "a.nrrd", "--matrix", json.dumps(rows["a"]["matrix"])
    )
    again = io.read_image(tmp_path / "a.nrrd")
    assert code == 0 and (again.array == array).all()
    assert again.geometry.close_to(io.read_header(image))


def test_a_label_on_another_grid_is_refused(project, tmp_path):
    label = project.parent / "sample" / "labels" / "heart_01.nii.gz"
    grid = {"shape": [12, 72, 72], "matrix": np.eye(4).ravel().tolist()}
    code, found = events(
        "unpack", tmp_path, "--read", "b", "label", label, "--grid", json.dumps(grid)
    )
    assert code == 2 and "another grid" in found[-1]["message"]


def test_numbers_of_predictions(tmp_path):
    """Against a count by hand: 6 of 8 voxels, one of them off the drawn slice."""
    geometry = Geometry((2, 2, 3), (10.0, 10.0, 10.0))
    truth, found = np.zeros((3, 2, 2), np.uint8), np.zeros((3, 2, 2), np.uint8)
    truth[:2], found[0], found[1, 0], found[2, 0, 0] = 1, 1, 1, 1
    io.write_image(tmp_path / "a.nii.gz", Volume(found, geometry))
    io.write_image(tmp_path / "label.nii.gz", Volume(truth, geometry))
    doubt = np.zeros((3, 2, 2), np.float32)
    doubt[1] = 0.5
    io.write_image(tmp_path / "uncertainty" / "a.nii.gz", Volume(doubt, geometry))
    case = Case("a", (), tmp_path / "label.nii.gz", Annotated.of([(2, [0, 1])]), "labelled")
    row = prediction_numbers(tmp_path, "a", case)
    assert row["volumes_ml"] == {"1": 7.0} and row["problem"] == ""
    assert row["dice"] == round(2 * 6 / (6 + 8), 4)
    assert row["uncertainty"] == round(4 * 0.5 / 9, 4), "in and around the structure"
    assert prediction_numbers(tmp_path, "a")["dice"] is None
    assert "missing.nii.gz" in prediction_numbers(tmp_path, "missing")["problem"]


def test_a_shared_model_comes_back_without_the_names_of_cases(tmp_path, project):
    from MedSSLLib.interop.share import FOLDER, take_run
    from MedSSLLib.project.project import Project

    shared = tmp_path / "bundle" / FOLDER
    shared.mkdir(parents=True)
    (shared / "weights.safetensors").write_bytes(b"w")
    (shared / "config.json").write_text(json.dumps({"format": "medssl-run", "format_version": 1}))
    folder = take_run(Project.open(project), tmp_path / "bundle", "taken")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]
    for source, name in ((tmp_path, "other"), (tmp_path / "bundle", "taken")):
        code, found = events("take", project, "--from", source, "--name", name)
        assert code == 2 and found[-1]["event"] == "error"
