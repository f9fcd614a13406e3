"""Taking data into a project: roles, labels, warnings; data sets of other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each

Make = Callable[..., Volume]


class TestCreate:
    @each("odd", ["a", "c", "e"])
    def test_a_mixture_of_modalities_is_told(
        self, odd: str, tmp_path: Path, make_volume: Make
    ) -> None:
        for name in "abcde":
            volume = make_volume()
            shifted = volume.array - 1000 * (name == odd)
            io.write_image(tmp_path / "scans" / f"{name}.nrrd", Volume(shifted, volume.geometry))
        project = Project.create(tmp_path / "p", tmp_path / "scans")
        assert project.modality == "MR"
        (words,) = [text for text in project.warnings if "differ in kind" in text]
        assert f"1 like CT ({odd})" in words and "--modality" in words
        (tmp_path / "scans" / f"{odd}.nrrd").unlink()
        assert not Project.create(tmp_path / "q", tmp_path / "scans").warnings

    def test_roles_labels_and_metadata(self, project: Project, data_set: Any) -> None:
        assert [case.name for case in project.cases] == sorted(data_set.names)
        assert [case.name for case in project.labelled] == ["canonical", "flipped"]
        assert [case.name for case in project.test] == ["oblique"]
        assert {case.name for case in project.pool} == set(data_set.names) - {"oblique"}
        assert len(project.unlabelled) == 3
        assert all(case.label == data_set.labels / f"{case.name}.nii.gz" for case in project.cases)
        assert project.case("flipped").metadata == {"patient": "P1", "phase": "ES"}
        assert project.case("flipped").patient == "P1"
        assert project.labels == {0: "background", 1: "class_1", 2: "class_2"}
        assert (project.classes, project.values) == (
            ("background", "class_1", "class_2"),
            (0, 1, 2),
        )
        assert (project.modality, project.channels, project.refused) == ("MR", 1, [])

    def test_opening_gives_the_same(self, project: Project) -> None:
        again = Project.open(project.folder)
        assert again.cases == project.cases
        assert (again.labels, again.modality, again.name) == (
            project.labels,
            project.modality,
            "project",
        )

    def test_the_manifest_is_a_decathlon_dataset_json(self, project: Project) -> None:
        content = json.loads((project.folder / "medssl.json").read_text(encoding="utf-8"))
        assert (content["format"], content["format_version"]) == ("medssl-project", 1)
        assert content["modality"] == {"0": "MR"}
        assert content["labels"] == {"0": "background", "1": "class_1", "2": "class_2"}
        assert (content["numTraining"], content["numTest"], content["tensorImageSize"]) == (
            5,
            1,
            "3D",
        )
        assert content["test"] == [
            {
                "name": "oblique",
                "image": "../data/images/oblique.nii.gz",
                "label": "../data/labels/oblique.nii.gz",
                "annotated": None,
                "role": "test",
                "metadata": {"patient": "P2", "phase": "ES"},
            }
        ]
        assert sorted(p.name for p in project.folder.iterdir()) == ["medssl.json"]

    def test_only_labels_of_labelled_cases_are_opened(self, tmp_path: Path, data_set: Any) -> None:
        for name in set(data_set.names) - {"canonical"}:
            (data_set.labels / f"{name}.nii.gz").write_bytes(b"must not be read")
        project = Project.create(
            tmp_path / "p", data_set.images, labels=data_set.labels, labelled="canonical"
        )
        assert project.refused == [] and len(project.cases) == 6
        assert all(case.label for case in project.cases)

    def test_labels_of_test_cases_are_not_opened(self, tmp_path: Path, data_set: Any) -> None:
        (data_set.labels / "oblique.nii.gz").write_bytes(b"must not be read")
        project = Project.create(
            tmp_path / "p", data_set.images, labels=data_set.labels, test="oblique"
        )
        assert project.refused == [] and len(project.labelled) == 5

    def test_without_labels(self, tmp_path: Path, data_set: Any) -> None:
        project = Project.create(tmp_path / "p", data_set.images)
        assert len(project.unlabelled) == 6 and project.classes == ("background",)

    def test_labelled_none_means_none(self, tmp_path: Path, data_set: Any) -> None:
        project = Project.create(
            tmp_path / "p", data_set.images, labels=data_set.labels, labelled=""
        )
        assert project.labelled == () and project.classes == ("background",)

    def test_good_cases_go_on_and_bad_ones_are_listed(
        self, tmp_path: Path, data_set: Any, make_volume: Make
    ) -> None:
        (data_set.images / "broken.nii.gz").write_bytes(b"nonsense")
        io.write_image(data_set.labels / "canonical.nii.gz", make_volume(Geometry((5, 5, 5))))
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels)
        assert [case.name for case in project.cases] == sorted(set(data_set.names) - {"canonical"})
        problems = {error.case: str(error) for error in project.refused}
        assert set(problems) == {"broken", "canonical"}
        assert (
            "broken.nii.gz" in problems["broken"]
            and "another grid than its image: size" in problems["canonical"]
        )

    def test_a_selected_case_that_is_refused_does_not_stop_the_others(
        self, tmp_path: Path, data_set: Any
    ) -> None:
        (data_set.images / "flipped.nii.gz").write_bytes(b"nonsense")
        project = Project.create(
            tmp_path / "p",
            data_set.images,
            labels=data_set.labels,
            labelled="flipped,canonical",
            test="oblique",
        )
        assert [case.name for case in project.labelled] == ["canonical"]
        with pytest.raises(InputError, match=r"^flipped: .*flipped.nii.gz"):
            Project.create(
                tmp_path / "q", data_set.images, labels=data_set.labels, labelled="flipped"
            )
        assert not (tmp_path / "q").exists()

    def test_metadata_warnings(self, tmp_path: Path, data_set: Any) -> None:
        data_set.metadata.write_text("case;scanner\ncanonical.nii.gz;A\nother;B\n")
        project = Project.create(tmp_path / "p", data_set.images, metadata=data_set.metadata)
        assert project.case("canonical").metadata == {"scanner": "A"}
        assert project.warnings[0] == "the metadata name unknown cases (1): other"
        assert project.warnings[1].startswith("cases without metadata (5): anisotropic, flipped")

    def test_other_warnings(self, tmp_path: Path, data_set: Any, make_volume: Make) -> None:
        grid = Geometry((12, 10, 8))
        io.write_image(
            data_set.labels / "canonical.nii.gz", Volume(np.zeros(grid.shape, np.uint8), grid)
        )
        io.write_image(data_set.labels / "stranger.nii.gz", make_volume())
        project = Project.create(
            tmp_path / "p",
            data_set.images,
            labels=data_set.labels,
            metadata=data_set.metadata,
            test="anisotropic",
        )
        assert project.warnings == [
            "1 labels belong to no image: stranger",
            "canonical: the label is empty",
            "patients with both test and training cases (1): P0",
        ]

    def test_an_existing_project_is_kept(self, project: Project, data_set: Any) -> None:
        with pytest.raises(InputError, match="is a project already"):
            Project.create(project.folder, data_set.images)

    def test_real_data(self, tmp_path: Path, data_folder: Path) -> None:
        heart = data_folder / "cardiac"
        project = Project.create(
            tmp_path / "p",
            heart / "images",
            labels=heart / "labels",
            metadata=heart / "metadata.csv",
            test="patient012,patient016",
            labelled="patient011_frame01",
        )
        assert (len(project.cases), len(project.test), len(project.labelled)) == (80, 4, 1)
        assert project.values == (0, 1, 2, 3) and project.warnings == [] and project.refused == []
        assert project.test[0].metadata["phase"] == "ED"

    def test_a_folder_of_which_no_case_is_usable(self, tmp_path: Path, data_folder: Path) -> None:
        with pytest.raises(
            InputError,
            match=r"gantry tilt.*no case can be used; 5 more: notavolume_001: is not a vol",
        ):
            Project.create(tmp_path / "p", data_folder / "dicom" / "failing")
        assert not (tmp_path / "p").exists()

    def test_dicom_cases_are_named_by_their_folders(
        self, tmp_path: Path, data_folder: Path
    ) -> None:
        project = Project.create(tmp_path / "p", data_folder / "dicom" / "siemens")
        assert [case.name for case in project.cases] == ["anatomical_001"]


class TestOtherDataSets:
    def test_nnunet_raw_folder(self, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        root = tmp_path / "Dataset001_X"
        for name in ("a_1", "b_2", "c_3"):
            for channel in range(2):
                io.write_image(
                    root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", make_volume(seed=channel)
                )
            io.write_image(root / "labelsTr" / f"{name}.nii.gz", make_label(values=(1, 3)))
        (root / "imagesTr" / "c_3_0000.nii.gz").unlink()
        for channel in range(2):
            io.write_image(root / "imagesTs" / f"t_{channel:04d}.nii.gz", make_volume())
        write_json(
            root / "dataset.json",
            {
                "channel_names": {"0": "T1", "1": "CT"},
                "file_ending": ".nii.gz",
                "numTraining": 3,
                "labels": {"background": 0, "organ": 1, "ignore": 3},
            },
        )
        for source in (root, root / "dataset.json"):
            project = Project.create(tmp_path / f"p{source.suffix}", source)
            assert [(c.name, len(c.images), c.role) for c in project.cases] == [
                ("a_1", 2, "labelled"),
                ("b_2", 2, "labelled"),
                ("t", 2, "test"),
            ]
            assert (project.modalities, project.channels) == (("T1", "CT"), 2)
            assert (project.classes, project.values, project.ignore_value) == (
                ("background", "organ"),
                (0, 1),
                3,
            )
            assert "has the channels [1], expected 0 to 1" in str(project.refused[0])
            assert "image" in read_json(project.folder / "medssl.json")["training"][0]

    def test_a_channel_that_is_there_twice_is_refused(
        self, tmp_path: Path, make_volume: Make
    ) -> None:
        for name in (
            "a_0000.nii.gz",
            "a_0001.nii.gz",
            "b_0000.nii.gz",
            "b_0001.nii.gz",
            "b_0001.nrrd",
        ):
            io.write_image(tmp_path / "imagesTr" / name, make_volume())
        project = Project.create(tmp_path / "p", tmp_path / "imagesTr")
        assert [case.name for case in project.cases] == ["a"]
        assert "b: " in str(project.refused[0]) and "b_0001.nii.gz, b_0001.nrrd" in str(
            project.refused[0]
        )

    def test_images_of_an_nnunet_folder(
        self, tmp_path: Path, make_volume: Make, make_label: Make
    ) -> None:
        io.write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", make_volume())
        io.write_image(tmp_path / "imagesTr" / "a_0001.nii.gz", make_volume())
        io.write_image(tmp_path / "labelsTr" / "a.nii.gz", make_label())
        project = Project.create(
            tmp_path / "p", tmp_path / "imagesTr", labels=tmp_path / "labelsTr"
        )
        assert (len(project.case("a").images), project.channels) == (2, 2)

    def test_numbered_files_of_a_plain_folder_are_cases(
        self, tmp_path: Path, make_volume: Make, make_label: Make
    ) -> None:
        for n in range(3):
            io.write_image(tmp_path / "scans" / f"scan_{n:04d}.nii.gz", make_volume(seed=n))
            io.write_image(tmp_path / "masks" / f"scan_{n:04d}.nii.gz", make_label())
        project = Project.create(tmp_path / "p", tmp_path / "scans", labels=tmp_path / "masks")
        assert [case.name for case in project.labelled] == ["scan_0000", "scan_0001", "scan_0002"]

    def test_decathlon(self, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        root = tmp_path / "Task04_X"
        for name in ("x_001", "x_002"):
            io.write_image(root / "imagesTr" / f"{name}.nii.gz", make_volume())
            io.write_image(root / "labelsTr" / f"{name}.nii.gz", make_label())
        io.write_image(root / "imagesTs" / "x_003.nii.gz", make_volume())
        write_json(
            root / "dataset.json",
            {
                "name": "X",
                "modality": {"0": "MRI"},
                "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
                "training": [
                    {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
                    for n in ("x_001", "x_002")
                ],
                "test": ["./imagesTs/x_003.nii.gz"],
            },
        )
        project = Project.create(tmp_path / "p", root, labelled="x_002")
        assert [(c.name, c.role, bool(c.label)) for c in project.cases] == [
            ("x_001", "unlabelled", True),
            ("x_002", "labelled", True),
            ("x_003", "test", False),
        ]
        assert (project.modality, project.classes) == (
            "MR",
            ("background", "Anterior", "Posterior"),
        )

    def test_declared_classes_spare_reading_labels(
        self, tmp_path: Path, data_set: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_json(
            data_set.images.parent / "dataset.json",
            {
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "a", "2": "b"},
                "training": [
                    {"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"}
                    for n in data_set.names
                ],
            },
        )
        monkeypatch.setattr(
            "MedSSLLib.project.ingest.read_label", lambda *a, **k: pytest.fail("a label was read")
        )
        project = Project.create(tmp_path / "p", data_set.images.parent)
        assert (len(project.labelled), project.modality) == (6, "CT")
        assert project.with_labelled("canonical").classes == ("background", "a", "b")

    def test_paths_that_leave_the_data_set_are_refused(self, tmp_path: Path, data_set: Any) -> None:
        good = {"image": "images/canonical.nii.gz", "label": "labels/canonical.nii.gz"}
        entries = [
            good,
            {"image": "../secret.nii.gz"},
            {"image": "/etc/passwd"},
            {"image": "images/../../x.nii.gz"},
            {"image": "images/flipped.nii.gz", "label": "..\\..\\x.nii.gz"},
            {"image": ["C:/x.nii.gz"]},
        ]
        write_json(
            data_set.images.parent / "dataset.json",
            {"labels": {"1": "a", "2": "b"}, "training": entries},
        )
        project = Project.create(tmp_path / "p", data_set.images.parent)
        assert [case.name for case in project.cases] == ["canonical"]
        assert len(project.refused) == 5
        assert all("points outside its own folder" in str(error) for error in project.refused)

    def test_segment_names_become_class_names_whatever_their_order(
        self, tmp_path: Path, data_set: Any, make_label: Make
    ) -> None:
        import SimpleITK as sitk

        shutil.rmtree(data_set.labels)
        data_set.labels.mkdir()
        for name, parts in (
            ("canonical", ("liver", "spleen")),
            ("anisotropic", ("spleen", "liver")),
        ):
            image = sitk.Cast(
                sitk.ReadImage(data_set.images / f"{name}.nii.gz") * 0, sitk.sitkUInt8
            )
            image[2:5, 2:5, 2:4] = 1
            image[5:8, 2:5, 2:4] = 2
            image.SetMetaData("Segment1_Tags", "MedSSL.AnnotatedSlices:axial:2,3")
            for n, part in enumerate(parts):
                for key, value in (("Name", part), ("LabelValue", str(n + 1)), ("Layer", "0")):
                    image.SetMetaData(f"Segment{n}_{key}", value)
            sitk.WriteImage(image, data_set.labels / f"{name}.seg.nrrd")
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels)
        assert project.classes == ("background", "spleen", "liver")
        assert not project.refused
        assert project.case("anisotropic").annotated == Annotated.of([(2, [2, 3])])
        for name, liver in (("canonical", 1), ("anisotropic", 2)):
            case = project.case(name)
            stored = sitk.GetArrayFromImage(sitk.ReadImage(case.label))
            grid = io.read_header(case.images[0])
            seen = io.read_label(case.label, grid, names=project.labels).array
            assert np.array_equal(seen == 2, stored == liver)
            assert np.array_equal(seen == 1, stored == 3 - liver)


@each("name", ["anisotropic", "flipped", "left-handed", "sagittal", "oblique"])
@each("plane", ["axial", "coronal", "sagittal"])
def test_labels_drawn_on_some_slices_count_there_alone(
    name: str, plane: str, tmp_path: Path, make_volume: Make, grids: dict[str, Geometry]
) -> None:
    """The drawn axis is the one along which the patient's coordinate of the plane changes most
    (LPS: x, y, z).
    """
    grid = grids[name]
    along = np.abs(np.reshape(grid.direction, (3, 3)))[
        ["sagittal", "coronal", "axial"].index(plane)
    ]
    axis = int(along.argmax())
    label = np.zeros(grid.shape, np.uint8)
    moved = np.moveaxis(label, 2 - axis, 0)
    moved[1, 2:4, 2:4], moved[3, 1:3, 1:4] = 1, 2
    for case in ("a", "b", "t"):
        io.write_image(tmp_path / "images" / f"{case}.nii.gz", make_volume(grid))
        io.write_image(tmp_path / "labels" / f"{case}.nii.gz", Volume(label * (case != "b"), grid))
    project = Project.create(
        tmp_path / "p", tmp_path / "images", labels=tmp_path / "labels", test="t", drawn_plane=plane
    )
    assert "b.nii.gz: shows no structure" in str(project.refused[0]) and [
        c.name for c in project.cases
    ] == ["a", "t"]
    found = Project.open(project.folder)
    assert found.case("a").annotated == Annotated.of([(axis, [1, 3])])
    assert found.case("t").annotated is None, "a test label is not opened"
    io.write_image(tmp_path / "more" / "c.nii.gz", make_volume(grid))
    io.write_image(tmp_path / "labels" / "c.nii.gz", Volume(np.roll(label, 1, 2 - axis), grid))
    (added,) = found.add([tmp_path / "more"], labels=tmp_path / "labels")
    assert added.annotated == Annotated.of([(axis, [2, 4])])
    found.save()
    assert read_json(project.folder / "medssl.json")["drawn_plane"] == plane


def test_a_label_that_is_chosen_later_counts_on_its_drawn_slices_too(
    tmp_path: Path, make_volume: Make
) -> None:
    grid = Geometry((8, 9, 7))
    label = np.zeros(grid.shape, np.uint8)
    label[5, 2:4, 2:4] = 1
    io.write_image(tmp_path / "images" / "a.nii.gz", make_volume(grid))
    io.write_image(tmp_path / "labels" / "a.nii.gz", Volume(label, grid))
    project = Project.create(
        tmp_path / "p",
        tmp_path / "images",
        labels=tmp_path / "labels",
        labelled="",
        drawn_plane="axial",
    )
    assert project.case("a").annotated is None
    assert project.with_labelled("a").case("a").annotated == Annotated.of([(2, [5])])
