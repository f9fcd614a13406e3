"""Layouts that the benchmark takes: Decathlon and nnU-Net folders as they are downloaded, and plain
ones, with and without splits.
"""

import json

import pytest

from MedSSLLib.benchmark.data import open_data
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from Testing.lib.benchmark_helpers import without_training
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import write_case

LABELLED = [f"spleen_{n}" for n in range(6)]
SCANS = [f"spleen_{n}" for n in range(6, 9)]  # imagesTs: whoever holds the challenge has the labels
SPLITS = {"test": ["spleen_4", "spleen_5"], "labelled": {"1": [["spleen_0"]], "2": [["spleen_1"]]}}


def decathlon(folder):
    """As the Decathlon's folders are: six labelled scans, three test scans without a label."""
    for number, name in enumerate((*LABELLED, *SCANS)):
        write_case(folder, name, number, shape=(6, 8, 8))
    (folder / "imagesTs").mkdir()
    for name in SCANS:
        (folder / "imagesTr" / f"{name}.nii.gz").rename(folder / "imagesTs" / f"{name}.nii.gz")
        (folder / "labelsTr" / f"{name}.nii.gz").unlink()
    entries = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in LABELLED
    ]
    content = {
        "name": "Spleen",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "numTraining": 6,
        "numTest": 3,
        "training": entries,
        "test": [f"./imagesTs/{name}.nii.gz" for name in SCANS],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def listed_strangely(folder):
    """A Decathlon folder as archives from a Mac have it: hidden twins beside every file."""
    decathlon(folder)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        for path in list((folder / part).iterdir()):
            path.with_name(f"._{path.name}").write_bytes(b"\0")
    return folder


def nnunet(folder):
    """The same as nnU-Net v2 keeps it: channel numbers in names, nothing listed."""
    decathlon(folder)
    for part in ("imagesTr", "imagesTs"):
        for path in list((folder / part).iterdir()):
            path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "spleen": 1},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def plain(folder):
    """Images and labels in two folders, of which three scans have no label; nothing is declared."""
    decathlon(folder)
    (folder / "dataset.json").unlink()
    for path in list((folder / "imagesTs").iterdir()):
        path.rename(folder / "imagesTr" / path.name)
    (folder / "imagesTs").rmdir()
    (folder / "imagesTr").rename(folder / "images")
    (folder / "labelsTr").rename(folder / "labels")
    return folder


LAYOUTS = [decathlon, listed_strangely, nnunet, plain]


def words(layout):
    return layout.__name__


def names(cases):
    return [case.name for case in cases]


@each("layout", LAYOUTS, ids=words)
def test_tests_are_drawn_from_what_has_a_label(layout, tmp_path):
    folder = layout(tmp_path / "Task09_Spleen")
    project, choices = open_data(folder, tmp_path / "p", ("1", "2", "all"), 3, seed=0)
    assert len(project.test) == 2 and all(case.label for case in project.test)
    assert sorted(names(project.test) + names(project.pool)) == sorted(LABELLED + SCANS)
    scans = [case.name for case in project.pool if not case.label]
    assert scans == SCANS, "scans without a label are there to learn from"
    left = set(LABELLED) - set(names(project.test))
    assert set(choices["all"][0]) == left
    for some in (*choices["1"], *choices["2"]):
        assert set(some) <= left
    assert len(project.classes) == 2
    if layout is not plain:
        assert (project.classes[1], project.modalities) == ("spleen", ("CT",))
    again, same = open_data(folder, tmp_path / "p", ("1", "2", "all"), 3, seed=0)
    assert names(again.test) == names(project.test) and same == choices


@each("layout", LAYOUTS, ids=words)
def test_splits_decide_in_every_layout(layout, tmp_path):
    folder = layout(tmp_path / "data")
    (folder / "splits.json").write_text(json.dumps(SPLITS))
    project, choices = open_data(folder, tmp_path / "p", ("1", "2"), 3, seed=0)
    assert names(project.test) == SPLITS["test"]
    assert choices == SPLITS["labelled"]
    assert set(names(project.pool)) == set(LABELLED + SCANS) - set(SPLITS["test"])


def test_labelled_tests_of_a_folder_stay_tests(tmp_path):
    folder = decathlon(tmp_path / "data")
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = content["training"][4:]
    content["training"] = content["training"][:4]
    (folder / "dataset.json").write_text(json.dumps(content))
    project, _ = open_data(folder, tmp_path / "p", ("1",), 1, seed=0)
    assert names(project.test) == ["spleen_4", "spleen_5"]


@each(
    ("content", "match"),
    [
        ({"labelled": {}}, "does not hold 'test'"),
        ([], "does not hold 'test'"),
        ({"test": ["liver_1"], "labelled": {}}, "names no test case that there is: liver_1"),
    ],
)
def test_splits_that_do_not_fit_are_refused_and_leave_no_project(content, match, tmp_path):
    folder = decathlon(tmp_path / "data")
    (folder / "splits.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=match):
        open_data(folder, tmp_path / "p", ("1",), 1, seed=0)
    assert not (tmp_path / "p").exists()


def test_the_command_takes_a_decathlon_folder(tmp_path, monkeypatch, capsys):
    calls = without_training(monkeypatch)
    folder, out = decathlon(tmp_path / "Task09_Spleen"), tmp_path / "out"
    how = ["--methods", "random", "--counts", "1,2", "--choices", "2", "--steps", "2"]
    command = ["benchmark", "labels", "--data", str(folder), "--out", str(out), *how]
    assert main([*command, "--device", "cpu"]) == 0
    assert "4 trainings, each training scored on 2 test cases" in capsys.readouterr().out
    assert len(calls) == 4
    results = json.loads((out / "results.json").read_text())
    assert results["data"] == "Task09_Spleen"
    for record in results["records"]:
        assert len(record["dice"]) == 2 and set(record["dice"].values()) == {1.0}
        assert not set(record["dice"]) & {*record["labelled"], *SCANS}
