"""Bad folders, names, labels, selections and tables given to `init`: each is refused and nothing is
left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.project.metadata import read_metadata
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each

GRID = Geometry((12, 10, 8), (1.0, 1.5, 2.0))
Situation = Callable[[Path], dict[str, Any] | None]
SITUATIONS: dict[str, tuple[Situation, str]] = {}
"""What a function makes in a folder (returning options of Project.create), and the words of the
refusal.
"""


def refused_with(words: str) -> Callable[[Situation], Situation]:
    """Register a situation under its function's name."""

    def register(make: Situation) -> Situation:
        SITUATIONS[make.__name__] = (make, words)
        return make

    return register


def image(path: Path, kind: type = np.float32) -> None:
    io.write_image(
        path, Volume((100 * np.random.default_rng(0).normal(size=GRID.shape)).astype(kind), GRID)
    )


def label(path: Path, grid: Geometry = GRID, value: int = 1) -> None:
    array = np.zeros(grid.shape, np.uint8)
    array[2:6, 3:7, 3:9] = value
    io.write_image(path, Volume(array, grid))


def pair(folder: Path, name: str = "a") -> None:
    image(folder / "images" / f"{name}.nii.gz")
    label(folder / "labels" / f"{name}.nii.gz")


@refused_with("images: does not exist")
def no_folder(folder: Path) -> None:
    """Nothing is made."""


@refused_with("images: is empty")
def empty_folder(folder: Path) -> None:
    (folder / "images").mkdir()


@refused_with("holds no images .only .jpg files.")
def only_other_files(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").touch()


@refused_with("holds no images, but its folder images does")
def images_one_folder_down(folder: Path) -> None:
    pair(folder / "images")


@refused_with("is the name of 2 images: .*a.nii.gz, .*a.nrrd")
def two_images_of_one_name(folder: Path) -> None:
    pair(folder)
    image(folder / "images" / "a.nrrd")


@refused_with("is the name of 2 images")
def names_that_differ_in_case_only(folder: Path) -> None:
    pair(folder)
    image(folder / "images" / "A.nrrd")


@refused_with("name 'a,b' has a separator, a comma")
def name_with_a_comma(folder: Path) -> None:
    pair(folder, "a,b")


@refused_with(r"name 'a\\nb' has a separator, a comma or a control")
def name_with_a_line_break(folder: Path) -> None:
    pair(folder)
    (folder / "images" / "a.nii.gz").rename(folder / "images" / "a\nb.nii.gz")


@refused_with("has two labels for a: a.nii.gz and a.nrrd")
def two_labels_of_one_name(folder: Path) -> dict[str, Any]:
    pair(folder)
    label(folder / "labels" / "a.nrrd")
    return {"labels": folder / "labels"}


@refused_with("labels/a,b.nii.gz: the label name 'a,b' has a separator, a comma.* Rename it")
def no_label_with_a_usable_name(folder: Path) -> dict[str, Any]:
    image(folder / "images" / "a.nii.gz")
    label(folder / "labels" / "a,b.nii.gz")
    return {"labels": folder / "labels"}


@refused_with("no label named like an image .labels: z; images: a")
def labels_that_fit_no_image(folder: Path) -> dict[str, Any]:
    image(folder / "images" / "a.nii.gz")
    label(folder / "labels" / "z.nii.gz")
    return {"labels": folder / "labels"}


@refused_with("given both as images and as labels")
def labels_that_are_the_images(folder: Path) -> dict[str, Any]:
    image(folder / "images" / "a.nii.gz")
    return {"labels": folder / "images" / ".." / "images"}


@refused_with("impossible label values .* from -.*Is this an image")
def image_as_label(folder: Path) -> dict[str, Any]:
    pair(folder)
    image(folder / "labels" / "a.nii.gz", np.int16)
    return {"labels": folder / "labels"}


@refused_with("^a: .*a.nii.gz: lies on another grid than its image: size .4, 4, 4.")
def label_on_another_grid(folder: Path) -> dict[str, Any]:
    pair(folder)
    label(folder / "labels" / "a.nii.gz", Geometry((4, 4, 4)))
    return {"labels": folder / "labels"}


@refused_with("no case is called b")
def unknown_labelled_case(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"labels": folder / "labels", "labelled": "b"}


@refused_with("no case is called b")
def unknown_test_case(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"test": "b"}


@refused_with("^a: is a test case")
def case_that_is_labelled_and_test(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"labels": folder / "labels", "labelled": "a", "test": "a"}


@refused_with("^a: has no label")
def labelled_case_without_a_label(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"labelled": "a"}


@refused_with("none.txt: cannot be read as a list of cases")
def missing_selection_file(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"test": "@none.txt"}


@refused_with("none.csv: cannot be read")
def missing_metadata_file(folder: Path) -> dict[str, Any]:
    pair(folder)
    return {"metadata": "none.csv"}


@refused_with("dataset.json: is not valid JSON")
def damaged_dataset_json(folder: Path) -> None:
    pair(folder)
    (folder / "images" / "dataset.json").write_text("{")


@refused_with("dataset.json: lists no cases")
def dataset_json_without_cases(folder: Path) -> None:
    pair(folder)
    write_json(folder / "images" / "dataset.json", {"training": []})


@refused_with("lists no cases and has no imagesTr")
def dataset_json_alone(folder: Path) -> None:
    write_json(folder / "images" / "dataset.json", {"labels": {"0": "background"}})


@refused_with("region of several values")
def regions_instead_of_classes(folder: Path) -> None:
    write_json(folder / "images" / "dataset.json", {"labels": {"background": 0, "whole": [1, 2]}})


@refused_with("points outside its own folder: '../a.nii.gz'")
def dataset_json_that_points_outside(folder: Path) -> None:
    image(folder / "a.nii.gz")
    write_json(folder / "images" / "dataset.json", {"training": [{"image": "../a.nii.gz"}]})


@refused_with("a: .*gone.nii.gz: is listed as the label, but does not exist")
def listed_label_that_is_missing(folder: Path) -> None:
    pair(folder)
    write_json(
        folder / "images" / "dataset.json",
        {"training": [{"image": "a.nii.gz", "label": "gone.nii.gz"}]},
    )


@refused_with("lists the case 7")
def entry_that_is_no_case(folder: Path) -> None:
    write_json(folder / "images" / "dataset.json", {"training": [7]})


@each("kind", SITUATIONS)
def test_refusals(tmp_path: Path, kind: str) -> None:
    make, words = SITUATIONS[kind]
    options = make(tmp_path) or {}
    with pytest.raises(InputError, match=words) as caught:
        Project.create(tmp_path / "project", tmp_path / "images", **options)
    assert caught.value.remedy
    assert not (tmp_path / "project").exists()


@each(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"name,age\na,3\n", "has no column `case`, only name, age"),
        (b"case,age,Age\na,3,4\n", "has the columns age more than once"),
        (b"case,age\na\n", "line 2 has 1 cells, expected 2"),
        (b"case,age\na,3\n,4\n", "line 3 names no case"),
        (b"case,age\na,3\nb,4\na,5\n", "line 4 describes a differently again"),
        (b'case,age\n"a,3\n', "is not a table"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_metadata(tmp_path / "m.csv")
    assert caught.value.file == str(tmp_path / "m.csv") and caught.value.remedy


def test_the_same_line_twice_is_no_contradiction(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("case,age\na,3\na,3\n")
    assert read_metadata(tmp_path / "m.csv") == {"a": {"age": "3"}}


@each(
    ("change", "words"),
    [
        ({"format": "other"}, "has the format 'other'"),
        ({"format_version": 2}, "newer version of MedSSL"),
        ({"format_version": "1"}, "format version"),
        ({"labels": {"1": "a", "2": "a"}}, "twice"),
        ({"training": [{"name": "../x", "image": "a"}]}, "case name '../x' has a separator"),
        ({"training": [{"name": "/x", "image": "a"}]}, "case name '/x' has a separator"),
        ({"training": [{"name": "x\x1b", "image": "a"}]}, "control character"),
        ({"training": [{"name": "a"}]}, "a: .*has the path None"),
        ({"training": [{"name": "a", "image": "x\n"}]}, "has the path"),
        ({"training": [{"name": "a", "image": "x", "role": "boss"}]}, "has the role 'boss'"),
        ({"training": [{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]}, "appears twice"),
        (
            {"training": [{"name": "a", "image": "x", "annotated": 3}]},
            "annotated slices 3 are malformed",
        ),
        ({"training": [7]}, "has the case 7"),
        ({"training": 7}, "is malformed"),
        ({"modality": {}}, "modality"),
    ],
)
def test_bad_manifests(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_json(
        tmp_path / "medssl.json",
        {"format": "medssl-project", "format_version": 1, "training": []} | change,
    )
    with pytest.raises(InputError, match=words) as caught:
        Project.open(tmp_path)
    assert caught.value.file == str(tmp_path / "medssl.json") and caught.value.remedy


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="is not a project .it has no medssl.json.. Make one: medssl init"
    ):
        Project.open(tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "project").touch()
    with pytest.raises(MedSSLError, match="project.*cannot be locked"):
        Project.create(tmp_path / "project", tmp_path / "images")


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "project"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MedSSLError, match="may not be written|cannot be locked"):
        Project.create(tmp_path / "project", tmp_path / "images")


@each("name", ["report, final", "report ", "-x"])
def test_a_file_whose_name_no_case_can_have_is_left_out_alike(name: str, tmp_path: Path) -> None:
    """Beside images and beside labels, of folders, data sets and labels that come later."""
    folder = tmp_path / str(len(name))
    for file in ("a", "b", name):
        image(folder / "imagesTr" / f"{file}.nii.gz")
        label(folder / "labelsTr" / f"{file}.nii.gz")
    whole = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "MR"}}
    plain = Project.create(folder / "p", folder / "imagesTr", labels=folder / "labelsTr")
    write_json(folder / "dataset.json", whole)
    for project in (plain, Project.create(folder / "q", folder / "dataset.json")):
        assert [case.name for case in project.labelled] == ["a", "b"]
        said = sorted(str(error) for error in project.refused)
        assert len(said) == 2, said
        for words, part in zip(said, ("imagesTr", "labelsTr"), strict=True):
            assert words.startswith(f"{folder / part / name}.nii.gz: the ")
            assert "Rename it." in words
    later = Project.create(folder / "r", folder / "imagesTr")
    later.add_labels(folder / "labelsTr")
    assert [case.name for case in later.labelled] == ["a", "b"]
    assert f"{folder / 'labelsTr' / name}.nii.gz: the label name" in str(later.refused[-1])
