"""The project folder: intake, roles, selections, classes, saving, other programs' data sets, runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import MedSSLLib
from MedSSLLib import io
from MedSSLLib.errors import InputError, MedSSLError
from MedSSLLib.files import FileLock, read_json, write_json
from MedSSLLib.geometry import Geometry, Volume
from MedSSLLib.labels import Annotated
from MedSSLLib.manifest import (
    Case,
    Manifest,
    check_name,
    parse_labels,
    parse_modality,
    read_manifest,
    stored_path,
    write_manifest,
)
from MedSSLLib.metadata import read_metadata
from MedSSLLib.project import Project
from MedSSLLib.selection import names_in

Make = Callable[..., Volume]


@pytest.fixture
def project(tmp_path: Path, data_set: Any) -> Project:
    """A project of the six cases: `oblique` test, `canonical` and `flipped` labelled."""
    return Project.create(tmp_path / "project", data_set.images, labels=data_set.labels, metadata=data_set.metadata,
                          labelled="canonical,flipped", test="oblique")


class TestCreate:
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
        assert (project.classes, project.values) == (("background", "class_1", "class_2"), (0, 1, 2))
        assert (project.modality, project.channels, project.refused) == ("MR", 1, [])

    def test_opening_gives_the_same(self, project: Project) -> None:
        again = Project.open(project.folder)
        assert again.cases == project.cases
        assert (again.labels, again.modality, again.name) == (project.labels, project.modality, "project")

    def test_the_manifest_is_a_decathlon_dataset_json(self, project: Project) -> None:
        content = json.loads((project.folder / "medssl.json").read_text(encoding="utf-8"))
        assert (content["format"], content["format_version"]) == ("medssl-project", 1)
        assert content["modality"] == {"0": "MR"}
        assert content["labels"] == {"0": "background", "1": "class_1", "2": "class_2"}
        assert (content["numTraining"], content["numTest"], content["tensorImageSize"]) == (5, 1, "3D")
        assert content["test"] == [{
            "name": "oblique", "image": "../data/images/oblique.nii.gz", "label": "../data/labels/oblique.nii.gz",
            "annotated": None, "role": "test", "metadata": {"patient": "P2", "phase": "ES"}}]
        assert sorted(p.name for p in project.folder.iterdir()) == ["medssl.json"]

    def test_only_labels_of_labelled_cases_are_opened(self, tmp_path: Path, data_set: Any) -> None:
        for name in set(data_set.names) - {"canonical"}:
            (data_set.labels / f"{name}.nii.gz").write_bytes(b"must not be read")
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels, labelled="canonical")
        assert project.refused == [] and len(project.cases) == 6
        assert all(case.label for case in project.cases)

    def test_labels_of_test_cases_are_not_opened(self, tmp_path: Path, data_set: Any) -> None:
        (data_set.labels / "oblique.nii.gz").write_bytes(b"must not be read")
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels, test="oblique")
        assert project.refused == [] and len(project.labelled) == 5

    def test_without_labels(self, tmp_path: Path, data_set: Any) -> None:
        project = Project.create(tmp_path / "p", data_set.images)
        assert len(project.unlabelled) == 6 and project.classes == ("background",)

    def test_labelled_none_means_none(self, tmp_path: Path, data_set: Any) -> None:
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels, labelled="")
        assert project.labelled == () and project.classes == ("background",)

    def test_good_cases_go_on_and_bad_ones_are_listed(self, tmp_path: Path, data_set: Any, make_volume: Make) -> None:
        (data_set.images / "broken.nii.gz").write_bytes(b"nonsense")
        io.write_image(data_set.labels / "canonical.nii.gz", make_volume(Geometry((5, 5, 5))))
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels)
        assert [case.name for case in project.cases] == sorted(set(data_set.names) - {"canonical"})
        problems = {error.case: str(error) for error in project.refused}
        assert set(problems) == {"broken", "canonical"}
        assert "broken.nii.gz" in problems["broken"] and "another grid than its image: size" in problems["canonical"]

    def test_a_selected_case_that_is_refused_does_not_stop_the_others(self, tmp_path: Path, data_set: Any) -> None:
        (data_set.images / "flipped.nii.gz").write_bytes(b"nonsense")
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels, labelled="flipped,canonical",
                                 test="oblique")
        assert [case.name for case in project.labelled] == ["canonical"]
        with pytest.raises(InputError, match=r"^flipped: .*flipped.nii.gz"):
            Project.create(tmp_path / "q", data_set.images, labels=data_set.labels, labelled="flipped")
        assert not (tmp_path / "q").exists()

    def test_metadata_warnings(self, tmp_path: Path, data_set: Any) -> None:
        data_set.metadata.write_text("case;scanner\ncanonical.nii.gz;A\nother;B\n")
        project = Project.create(tmp_path / "p", data_set.images, metadata=data_set.metadata)
        assert project.case("canonical").metadata == {"scanner": "A"}
        assert project.warnings[0] == "the metadata name unknown cases (1): other"
        assert project.warnings[1].startswith("cases without metadata (5): anisotropic, flipped")

    def test_other_warnings(self, tmp_path: Path, data_set: Any, make_volume: Make) -> None:
        grid = Geometry((12, 10, 8))
        io.write_image(data_set.labels / "canonical.nii.gz", Volume(np.zeros(grid.shape, np.uint8), grid))
        io.write_image(data_set.labels / "stranger.nii.gz", make_volume())
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels, metadata=data_set.metadata,
                                 test="anisotropic")
        assert project.warnings == [
            "1 labels belong to no image: stranger", "canonical: the label is empty",
            "patients with both test and training cases (1): P0"]

    def test_an_existing_project_is_kept(self, project: Project, data_set: Any) -> None:
        with pytest.raises(InputError, match="is a project already"):
            Project.create(project.folder, data_set.images)

    def test_real_data(self, tmp_path: Path, data_folder: Path) -> None:
        heart = data_folder / "cardiac"
        project = Project.create(tmp_path / "p", heart / "images", labels=heart / "labels",
                                 metadata=heart / "metadata.csv", test="patient012,patient016",
                                 labelled="patient011_frame01")
        assert (len(project.cases), len(project.test), len(project.labelled)) == (80, 4, 1)
        assert project.values == (0, 1, 2, 3) and project.warnings == [] and project.refused == []
        assert project.test[0].metadata["phase"] == "ED"

    def test_a_folder_of_which_no_case_is_usable(self, tmp_path: Path, data_folder: Path) -> None:
        with pytest.raises(InputError, match=r"gantry tilt.*no case can be used; 5 more: notavolume_001: is not a vol"):
            Project.create(tmp_path / "p", data_folder / "dicom" / "failing")
        assert not (tmp_path / "p").exists()

    def test_dicom_cases_are_named_by_their_folders(self, tmp_path: Path, data_folder: Path) -> None:
        project = Project.create(tmp_path / "p", data_folder / "dicom" / "siemens")
        assert [case.name for case in project.cases] == ["anatomical_001"]


class TestSelect:
    def test_order_repeats_and_file_names(self, project: Project) -> None:
        assert [c.name for c in project.select(" oblique , canonical.nii.gz,oblique,")] == ["oblique", "canonical"]
        assert project.select("") == ()

    def test_from_a_file(self, project: Project, tmp_path: Path) -> None:
        (tmp_path / "s p.txt").write_text("\ufeffoblique\r\ncanonical, flipped\n\n", encoding="utf-8")
        assert [c.name for c in project.select(f"@{tmp_path / 's p.txt'}")] == ["oblique", "canonical", "flipped"]

    def test_a_patient_stands_for_its_cases(self, project: Project) -> None:
        assert {c.name for c in project.select("P1")} == {"flipped", "left-handed"}

    def test_unknown_names(self, project: Project) -> None:
        with pytest.raises(InputError, match="no case is called flippd. Did you mean flipped?"):
            project.select("flippd")
        with pytest.raises(InputError, match="cannot be read as a list of cases"):
            project.select("@nothing.txt")
        with pytest.raises(InputError, match="names 2 cases"):
            project.case("P1")

    def test_decomposed_unicode_means_the_same(self) -> None:
        assert names_in("e\u0301") == ["é"]

    def test_with_labelled_is_a_copy(self, project: Project) -> None:
        other = project.with_labelled("sagittal")
        assert [c.name for c in other.labelled] == ["sagittal"]
        assert [c.name for c in project.labelled] == ["canonical", "flipped"]
        assert [c.name for c in other.test] == ["oblique"]
        assert Project.open(project.folder).labelled == project.labelled

    def test_with_labelled_scans_only_what_was_chosen(self, project: Project, make_label: Make, grids: Any) -> None:
        sagittal = project.case("sagittal").label
        assert sagittal is not None
        io.write_image(sagittal, make_label(grids["sagittal"], values=(1, 5)))
        assert project.with_labelled("sagittal").values == (0, 1, 2, 5)
        assert project.with_labelled("canonical").values == (0, 1, 2)

    def test_roles_exclude_each_other(self, project: Project) -> None:
        with pytest.raises(InputError, match="oblique: is a test case"):
            project.with_labelled("oblique")
        project.set_label("sagittal", None)
        with pytest.raises(InputError, match="sagittal: has no label"):
            project.with_labelled("sagittal")


class TestChanges:
    def test_annotated_metadata_labels_and_roles_are_saved(self, project: Project) -> None:
        project.set_annotated("canonical", Annotated.of([(2, [1, 4])]))
        project.set_metadata("canonical", {"scanner": "A"})
        project.set_roles(labelled="canonical", test="oblique,sagittal")
        project.set_labels({1: "liver", 2: "tumour"})
        project.set_modality("ct")
        project.save()
        again = Project.open(project.folder)
        assert again.case("canonical").annotated == Annotated.of([(2, [1, 4])])
        assert again.case("canonical").metadata == {"scanner": "A"}
        assert ([c.name for c in again.labelled], len(again.test)) == (["canonical"], 2)
        assert (again.classes, again.modality) == (("background", "liver", "tumour"), "CT")

    def test_two_editors_lose_nothing(self, project: Project) -> None:
        first, second = Project.open(project.folder), Project.open(project.folder)
        first.set_metadata("canonical", {"a": "1"})
        second.set_metadata("flipped", {"b": "2"})
        first.save()
        second.save()
        again = Project.open(project.folder)
        assert (again.case("canonical").metadata, again.case("flipped").metadata) == ({"a": "1"}, {"b": "2"})
        assert second.case("canonical").metadata == {"a": "1"}

    def test_a_held_lock_is_waited_for_and_named(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("MedSSLLib.project.LOCK_SECONDS", 0.1)
        with FileLock(project.folder / ".medssl.json.lock"), pytest.raises(MedSSLError, match="in use by process"):
            project.save()

    def test_add(self, project: Project, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        for name in ("new", "other"):
            io.write_image(tmp_path / "more" / f"{name}.nrrd", make_volume())
        io.write_image(tmp_path / "labels" / "new.nii.gz", make_label(values=(2, 3)))
        (tmp_path / "more" / "bad.nrrd").write_bytes(b"x")
        new = project.add([tmp_path / "more"], labels=tmp_path / "labels")
        project.save()
        assert [(case.name, case.role) for case in new] == [("new", "labelled"), ("other", "unlabelled")]
        assert [error.case for error in project.refused] == ["bad"]
        again = Project.open(project.folder)
        assert len(again.cases) == 8 and again.values == (0, 1, 2, 3)

    def test_add_single_files_and_refuse_repeats(self, project: Project, tmp_path: Path, make_volume: Make) -> None:
        io.write_image(tmp_path / "x.mha", make_volume())
        io.write_image(tmp_path / "Flipped.mha", make_volume())
        assert [case.name for case in project.add([tmp_path / "x.mha", tmp_path / "Flipped.mha"])] == ["x"]
        assert "is in the project already" in str(project.refused[0])
        with pytest.raises(InputError, match="nothing.nii.gz: does not exist"):
            project.add([tmp_path / "nothing.nii.gz"])

    def test_set_label_makes_a_case_labelled(self, project: Project, tmp_path: Path) -> None:
        project.set_label("sagittal", tmp_path / "l.nii.gz")
        project.set_label("oblique", tmp_path / "l.nii.gz")
        assert (project.case("sagittal").role, project.case("oblique").role) == ("labelled", "test")

    def test_copies_make_the_project_stand_alone(self, project: Project, data_set: Any, tmp_path: Path) -> None:
        before = {case.name: io.read_image(case.images[0]).array for case in project.cases}
        project.copy_images()
        project.save()
        shutil.rmtree(data_set.images.parent)
        project.folder.rename(tmp_path / "moved")
        again = Project.open(tmp_path / "moved")
        for case in again.cases:
            assert case.images[0] == tmp_path / "moved" / "images" / f"{case.name}.nii.gz"
            assert np.array_equal(io.read_image(case.images[0]).array, before[case.name])
            assert case.label is not None and case.label.is_relative_to(tmp_path / "moved")

    def test_copies_of_a_dicom_series_and_of_detached_files(self, tmp_path: Path, data_folder: Path,
                                                            make_volume: Make) -> None:
        import SimpleITK as sitk

        (tmp_path / "raw").mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(make_volume().array), tmp_path / "raw" / "a.mhd")
        project = Project.create(tmp_path / "p", data_folder / "dicom" / "ge" / "anatomical" / "001")
        project.add([tmp_path / "raw" / "a.mhd"])
        expected = [io.read_image(case.images[0]).array for case in project.cases]
        project.copy_images()
        assert all(case.images[0].is_relative_to(project.folder) for case in project.cases)
        for case, array in zip(project.cases, expected, strict=True):
            assert np.array_equal(io.read_image(case.images[0]).array, array)


class TestStoredPaths:
    @pytest.mark.parametrize(("path", "stored"), [
        ("/a/project/images/x.nii", "images/x.nii"), ("/a/data/x.nii", "../data/x.nii"), ("/b/x.nii", "/b/x.nii"),
        ("/a/project2/x.nii", "../project2/x.nii"), ("/a/project/../../c.nii", "/c.nii")])
    def test_relative_where_project_and_data_move_together(self, path: str, stored: str) -> None:
        if os.name == "nt":
            pytest.skip("POSIX paths")
        assert stored_path(Path(path), Path("/a/project")) == stored

    def test_project_and_data_can_move_together(self, project: Project, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        for name in ("project", "data"):
            (tmp_path / name).rename(tmp_path / "elsewhere" / name)
        again = Project.open(tmp_path / "elsewhere" / "project")
        assert all(image.exists() for case in again.cases for image in case.images)

    def test_spaces_and_other_scripts(self, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        root = tmp_path / "my data ü 体积"
        for name in ("Größe 1", "профиль", "e\u0301te\u0301"):
            io.write_image(root / "images" / f"{name}.nii.gz", make_volume())
            io.write_image(root / "labels" / f"{name}.nii.gz", make_label())
        (root / "m.csv").write_text("case,patient\nété,Zoë\n", encoding="utf-8")
        project = Project.create(root / "проект", root / "images", labels=root / "labels", metadata=root / "m.csv")
        again = Project.open(project.folder)
        assert [case.name for case in again.labelled] == ["Größe 1", "été", "профиль"]
        assert again.select("e\u0301te\u0301")[0].patient == "Zoë"
        assert all(io.read_image(case.images[0]).array.any() for case in again.cases)


class TestOtherDataSets:
    def test_nnunet_raw_folder(self, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        root = tmp_path / "Dataset001_X"
        for name in ("a_1", "b_2", "c_3"):
            for channel in range(2):
                io.write_image(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", make_volume(seed=channel))
            io.write_image(root / "labelsTr" / f"{name}.nii.gz", make_label(values=(1, 3)))
        (root / "imagesTr" / "c_3_0000.nii.gz").unlink()
        for channel in range(2):
            io.write_image(root / "imagesTs" / f"t_{channel:04d}.nii.gz", make_volume())
        write_json(root / "dataset.json", {
            "channel_names": {"0": "T1", "1": "CT"}, "file_ending": ".nii.gz", "numTraining": 3,
            "labels": {"background": 0, "organ": 1, "ignore": 3}})
        for source in (root, root / "dataset.json"):
            project = Project.create(tmp_path / f"p{source.suffix}", source)
            assert [(c.name, len(c.images), c.role) for c in project.cases] == [
                ("a_1", 2, "labelled"), ("b_2", 2, "labelled"), ("t", 2, "test")]
            assert (project.modalities, project.channels) == (("T1", "CT"), 2)
            assert (project.classes, project.values, project.ignore_value) == (("background", "organ"), (0, 1), 3)
            assert "has the channels [1], expected 0 to 1" in str(project.refused[0])
            assert "image" in read_json(project.folder / "medssl.json")["training"][0]

    def test_images_of_an_nnunet_folder(self, tmp_path: Path, make_volume: Make, make_label: Make) -> None:
        io.write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", make_volume())
        io.write_image(tmp_path / "imagesTr" / "a_0001.nii.gz", make_volume())
        io.write_image(tmp_path / "labelsTr" / "a.nii.gz", make_label())
        project = Project.create(tmp_path / "p", tmp_path / "imagesTr", labels=tmp_path / "labelsTr")
        assert (len(project.case("a").images), project.channels) == (2, 2)

    def test_numbered_files_of_a_plain_folder_are_cases(self, tmp_path: Path, make_volume: Make,
                                                        make_label: Make) -> None:
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
        write_json(root / "dataset.json", {
            "name": "X", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
                         for n in ("x_001", "x_002")],
            "test": ["./imagesTs/x_003.nii.gz"]})
        project = Project.create(tmp_path / "p", root, labelled="x_002")
        assert [(c.name, c.role, bool(c.label)) for c in project.cases] == [
            ("x_001", "unlabelled", True), ("x_002", "labelled", True), ("x_003", "test", False)]
        assert (project.modality, project.classes) == ("MR", ("background", "Anterior", "Posterior"))

    def test_declared_classes_spare_reading_labels(self, tmp_path: Path, data_set: Any,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
        write_json(data_set.images.parent / "dataset.json", {
            "modality": {"0": "CT"}, "labels": {"0": "background", "1": "a", "2": "b"},
            "training": [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in data_set.names]})
        monkeypatch.setattr("MedSSLLib.intake.read_label", lambda *a, **k: pytest.fail("a label was read"))
        project = Project.create(tmp_path / "p", data_set.images.parent)
        assert (len(project.labelled), project.modality) == (6, "CT")
        assert project.with_labelled("canonical").classes == ("background", "a", "b")

    def test_paths_that_leave_the_data_set_are_refused(self, tmp_path: Path, data_set: Any) -> None:
        good = {"image": "images/canonical.nii.gz", "label": "labels/canonical.nii.gz"}
        entries = [good, {"image": "../secret.nii.gz"}, {"image": "/etc/passwd"}, {"image": "images/../../x.nii.gz"},
                   {"image": "images/flipped.nii.gz", "label": "..\\..\\x.nii.gz"}, {"image": ["C:/x.nii.gz"]}]
        write_json(data_set.images.parent / "dataset.json", {"labels": {"1": "a", "2": "b"}, "training": entries})
        project = Project.create(tmp_path / "p", data_set.images.parent)
        assert [case.name for case in project.cases] == ["canonical"]
        assert len(project.refused) == 5
        assert all("points outside its own folder" in str(error) for error in project.refused)

    def test_segment_names_become_class_names_and_must_agree(self, tmp_path: Path, data_set: Any,
                                                             make_label: Make) -> None:
        import SimpleITK as sitk

        shutil.rmtree(data_set.labels)
        data_set.labels.mkdir()
        for name, parts in (("canonical", ("liver", "spleen")), ("anisotropic", ("spleen", "liver"))):
            image = sitk.Cast(sitk.ReadImage(data_set.images / f"{name}.nii.gz") * 0, sitk.sitkUInt8)
            image[2:5, 2:5, 2:4] = 1
            image[5:8, 2:5, 2:4] = 2
            for n, part in enumerate(parts):
                for key, value in (("Name", part), ("LabelValue", str(n + 1)), ("Layer", "0")):
                    image.SetMetaData(f"Segment{n}_{key}", value)
            sitk.WriteImage(image, data_set.labels / f"{name}.seg.nrrd")
        project = Project.create(tmp_path / "p", data_set.images, labels=data_set.labels)
        assert project.classes == ("background", "spleen", "liver")
        assert [error.case for error in project.refused] == ["canonical"]
        assert "calls the value 1 'liver', other cases use 'spleen'" in str(project.refused[0])


class TestFolders:
    @pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "a\\b", "..", ".", "", "a\nb", "a\0b", "-rf", "@x", "a,b",
                                      "x" * 200, "CON", "nul.txt", "a ", " a", "a.", "C:x", "a\u202eb", None, 3, "~x"])
    def test_names_that_could_leave_the_project_are_refused(self, project: Project, name: Any) -> None:
        for check in (check_name, project.run_folder):
            with pytest.raises(InputError, match="name"):
                check(name)

    @pytest.mark.parametrize("name", ["run 1", "été", "a.b-c_d", "患者", "2024-01-01"])
    def test_usable_names(self, project: Project, name: str) -> None:
        assert project.run_folder(name) == project.folder / "runs" / name

    @given(st.text(max_size=40))
    @settings(max_examples=300)
    def test_any_accepted_name_stays_inside(self, name: str) -> None:
        try:
            checked = check_name(name)
        except InputError:
            return
        assert Path(os.path.normpath(Path("/p/runs") / checked)).parent == Path("/p/runs")
        assert checked.isprintable() and "," not in checked

    @pytest.mark.parametrize("name", ["cache", "runs"])
    def test_links_out_of_the_project_are_not_followed(self, project: Project, tmp_path: Path, name: str) -> None:
        (tmp_path / "outside").mkdir()
        try:
            (project.folder / name).symlink_to(tmp_path / "outside")
        except OSError:
            pytest.skip("links cannot be made here")
        with pytest.raises(InputError, match="outside the project"):
            _ = project.cache_folder if name == "cache" else project.run_folder("r")

    def test_runs(self, project: Project) -> None:
        assert project.runs() == []
        for name in ("first", "second", "broken"):
            project.run_folder(name).mkdir(parents=True)
        write_json(project.run_folder("first") / "config.json", {"command": "finetune"})
        write_json(project.run_folder("first") / "metrics.json", {"dice": 0.9})
        (project.run_folder("first") / "weights.safetensors").touch()
        write_json(project.run_folder("second") / "config.json", {})
        (project.run_folder("second") / "checkpoint").mkdir()
        (project.run_folder("broken") / "config.json").write_text("{")
        runs = {run["name"]: run for run in project.runs()}
        assert (runs["first"]["config"], runs["first"]["metrics"]) == ({"command": "finetune"}, {"dice": 0.9})
        assert [runs[name]["finished"] for name in ("first", "second")] == [True, False]
        assert runs["second"]["resumable"]
        assert "is not valid JSON" in runs["broken"]["problem"] and runs["first"]["problem"] == ""


class TestManifest:
    def test_unknown_keys_are_kept(self, project: Project) -> None:
        path = project.folder / "medssl.json"
        write_json(path, read_json(path) | {"licence": "CC", "reference": {"a": 1}})
        again = Project.open(project.folder)
        again.set_metadata("canonical", {})
        again.save()
        assert read_json(path)["reference"] == {"a": 1}

    def test_channels_and_annotations_survive(self, tmp_path: Path) -> None:
        case = Case("a", (tmp_path / "a0.nii", tmp_path / "a1.nii"), None, Annotated.of([(1, [2])]), "test", {"k": "v"})
        write_manifest(tmp_path, Manifest("n", ("MR", "CT"), {0: "bg", 7: "x"}, None, {"a": case}))
        assert read_manifest(tmp_path) == Manifest("n", ("MR", "CT"), {0: "bg", 7: "x"}, None, {"a": case})

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_damaged_manifests_never_give_a_traceback(self, tmp_path_factory: pytest.TempPathFactory,
                                                      data: st.DataObject) -> None:
        folder = tmp_path_factory.mktemp("p")
        content: dict[str, Any] = {
            "format": "medssl-project", "format_version": 1, "name": "x", "modality": {"0": "MR"},
            "labels": {"0": "background", "1": "a"}, "labels_from": ["c"],
            "training": [{"name": "c", "image": "c.nii", "label": "l.nii", "annotated": [{"axis": 2, "indices": [1]}],
                          "role": "labelled", "metadata": {"a": "b"}}], "test": []}
        junk = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                                       max_size=3), max_leaves=6)
        target = data.draw(st.sampled_from([content, content["training"][0]]))
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(junk)
        (folder / "medssl.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            opened = Project.open(folder)
        except InputError as error:
            assert error.file and error.remedy
        else:
            assert opened.classes and opened.modality and isinstance(opened.cases, tuple)
            opened.save()

    def test_labels_in_both_directions(self) -> None:
        assert parse_labels({"0": "background", "2": "b", "1": "a"}) == {0: "background", 1: "a", 2: "b"}
        assert parse_labels({"background": 0, "liver": 1}) == {0: "background", 1: "liver"}
        assert parse_labels({}) == {0: "background"}

    @pytest.mark.parametrize("entries", [[], "x", {"a": [1, 2]}, {"-1": "a"}, {"1": ""}, {"1": "a", "01": "b"},
                                         {"1": "a", "2": "a"}, {"a": -1}, {"a": True}, {"1.5": "a"}, {"x": "y"},
                                         {str(10**30): "a"}])
    def test_impossible_labels(self, entries: Any) -> None:
        with pytest.raises(InputError):
            parse_labels(entries)

    def test_modality(self) -> None:
        assert parse_modality({"0": "MRI", "1": "ct"}) == ("MR", "CT")
        for bad in ({}, [], "MR", {"0": 1}, None):
            with pytest.raises(InputError):
                parse_modality(bad)


class TestMetadata:
    @pytest.mark.parametrize("content", [
        b"case,patient,age\na,P1,\nb,\"P,2\",3\n", b"\xef\xbb\xbfcase;patient;age\r\na;P1;\r\nb;\"P,2\";3\r\n",
        b"case\tpatient\tage\na\tP1\t\nb\tP,2\t3\n\n", b"Age,CASE,patient\n,a,P1\n3,b,\"P,2\"\n"])
    def test_dialects(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.csv").write_bytes(content)
        table = {case: {key.lower(): value for key, value in entry.items()}
                 for case, entry in read_metadata(tmp_path / "m.csv").items()}
        assert table == {"a": {"patient": "P1"}, "b": {"patient": "P,2", "age": "3"}}

    def test_latin_1(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_bytes("case,name\na,Zoë\n".encode("latin-1"))
        assert read_metadata(tmp_path / "m.csv") == {"a": {"name": "Zoë"}}

    @settings(max_examples=300, deadline=None)
    @given(content=st.binary(max_size=120) | st.text("case,;\t\"\n\rab\0", max_size=60).map(str.encode))
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.mktemp("m") / "m.csv"
        path.write_bytes(content)
        try:
            read_metadata(path)
        except InputError as error:
            assert error.file == str(path) and error.remedy

    def test_patient_columns(self) -> None:
        assert Case("c", (), metadata={"patient_id": "P"}).patient == "P"
        assert Case("c", (), metadata={"Patient": "P"}).patient == "P"
        assert Case("c", (), metadata={"patient": ""}).patient == "c"


def test_importing_a_project_is_light() -> None:
    code = ("import sys, MedSSLLib.project, MedSSLLib.labels\n"
            "heavy = {'torch', 'monai', 'matplotlib', 'nilearn', 'blosc2', 'lightning_fabric', 'scipy', 'pandas'}\n"
            "print(sorted(heavy & set(sys.modules)))")
    root = Path(MedSSLLib.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"
