"""Records of drawn slices when labels come anew: what is kept, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.drawn_slices import carried_over, lone_slices
from MedSSLLib.project.project import Project

GRID = Geometry((8, 9, 7))


@pytest.mark.parametrize(
    "before, after, record, words",
    [
        (None, Annotated.of([(2, [1])]), Annotated.of([(2, [1])]), ""),
        (Annotated.of([(2, [1])]), Annotated.of([(2, [1, 4])]), Annotated.of([(2, [1, 4])]), ""),
        (
            Annotated.of([(2, [0, 1])]),
            Annotated.of([(2, [1])]),
            Annotated.of([(2, [1])]),
            "a: slice 0 along k, drawn before, shows nothing and counts no longer",
        ),
        (
            Annotated.of([(0, [5]), (2, [1])], [(2, [3, 4])]),
            Annotated.of([(2, [1, 4, 6])]),
            Annotated.of([(2, [1, 4, 6])], [(2, [4])]),
            "a: slice 5 along i and slice 3 along k, drawn before, show nothing and count no",
        ),
        (
            Annotated.of([(2, [1])]),
            None,
            None,
            "a: the whole label counts now, and not slice 1 alo",
        ),
    ],
)
def test_what_is_kept_and_what_is_said(before, after, record, words):
    found, said = carried_over("a", before, after)
    assert found == record and said.startswith(words) and bool(said) == bool(words)


@pytest.fixture
def project(tmp_path):
    """Two cases with a drawn slice each, of a project without a value for what does not count."""
    rng = np.random.default_rng(0)
    label = np.zeros(GRID.shape, np.uint8)
    label[3, 2:5, 2:5] = 1
    for name in ("a", "b"):
        image = rng.normal(size=GRID.shape).astype(np.float32)
        io.write_image(tmp_path / "images" / f"{name}.nii.gz", Volume(image, GRID))
        io.write_image(tmp_path / "drawn" / f"{name}.nii.gz", Volume(label, GRID))
    made = Project.create(tmp_path / "p", tmp_path / "images")
    made.set_drawn_plane("axial")
    made.add_labels(tmp_path / "drawn")
    made.save()
    return made


def test_records_made_by_hand_outlast_adding_again(project, tmp_path):
    """Strokes are no class of their own, whoever names the value that does not count."""
    path = project.folder / "medssl.json"
    content = read_json(path)
    entry = next(one for one in content["training"] if "a.nii" in str(one["label"]))
    entry["annotated"] = [{"axis": 2, "indices": [0, 3, 5], "partly": [5]}]
    write_json(path, content)
    opened = Project.open(project.folder)
    assert opened.ignore_value == 255 and opened.values == (0, 1), "named by the partly drawn slice"
    label = np.zeros(GRID.shape, np.uint8)
    label[3, 2:5, 2:5], label[5], label[5, 2, 2:6] = 1, 255, 1
    io.write_image(tmp_path / "drawn" / "a.nii.gz", Volume(label, GRID))
    assert opened.add_labels(tmp_path / "drawn") == ("a", "b")
    opened.save()
    again = Project.open(project.folder)
    assert again.case("a").annotated == Annotated.of([(2, [3, 5])], [(2, [5])])
    assert again.case("b").annotated == Annotated.of([(2, [3])])
    assert again.values == (0, 1) and again.ignore_value == 255
    (said,) = [text for text in opened.warnings if "counts no longer" in text]
    assert said.startswith("a: slice 0 along k")


def test_where_255_is_a_class_another_value_does_not_count(project):
    path = project.folder / "medssl.json"
    content = read_json(path)
    content["labels"] = {"background": 0, "vessel": 1, "bone": 255}
    content["training"][0]["annotated"] = [{"axis": 2, "indices": [3], "partly": [3]}]
    write_json(path, content)
    opened = Project.open(project.folder)
    assert opened.ignore_value == 254 and opened.values == (0, 1, 255)


def test_the_record_of_a_test_label_stays_as_the_label_is_not_opened(project, tmp_path):
    project.set_roles(test="b")
    record = Annotated.of([(2, [3])])
    project.set_annotated("b", record)
    project.add_labels(tmp_path / "drawn")
    assert project.case("b").role == "test" and project.case("b").annotated == record
    assert not [text for text in project.warnings if text.startswith("b:")]


def test_slices_that_lie_apart_are_noticed():
    grid = Geometry((12, 11, 10))  # i to the left, j to the back, k upwards
    ball = np.zeros((10, 11, 12), np.uint8)
    ball[2:8, 2:8, 2:9] = 1
    assert lone_slices(ball, grid) == ""
    for axis, words in ((0, "axial"), (1, "coronal"), (2, "sagittal")):
        for drawn in ([3, 5], [2, 4, 7]):
            some = np.zeros_like(ball)
            np.moveaxis(some, axis, 0)[drawn] = np.moveaxis(ball, axis, 0)[drawn]
            assert lone_slices(some, grid) == f"{words} {', '.join(map(str, drawn))}"
        one = np.zeros_like(ball)
        np.moveaxis(one, axis, 0)[3] = np.moveaxis(ball, axis, 0)[3]
        assert lone_slices(one, grid) == f"{words} 3", "wider than a slice is thick"
        thick = np.ones(3)
        thick[2 - axis] = 2.0
        wide = Geometry((12, 11, 10), spacing=tuple(thick))
        assert lone_slices(one, wide) == "", "a small structure"
    speck = np.zeros_like(ball)
    speck[4:7:2, 4:6, 4:6] = 1
    assert lone_slices(speck, grid) == lone_slices(np.zeros_like(ball), grid) == ""
    assert lone_slices(ball[3:7:3], Geometry((12, 11, 2))) == "", "two slices are all there are"


def test_labels_drawn_on_some_slices_are_told_where_they_count_as_whole_ones(tmp_path):
    grid = Geometry((12, 11, 10))
    label = np.zeros((10, 11, 12), np.uint8)
    label[[3, 6], 2:8, 2:9] = 1
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = Volume(rng.normal(size=label.shape).astype(np.float32), grid)
        io.write_image(tmp_path / "images" / f"{name}.nii.gz", image)
    io.write_image(tmp_path / "labels" / "a.nii.gz", Volume(label, grid))
    given = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    (words,) = Project.create(tmp_path / "p", **given).warnings
    assert words.startswith("1 label with structures on single slices only (a: axial 3, 6)")
    assert "--drawn axial" in words
    assert Project.create(tmp_path / "q", **given, drawn_plane="axial").warnings == []
