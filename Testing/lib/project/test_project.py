"""The project folder: selections, changes, saving, paths, runs."""

from __future__ import annotations

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
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import FileLock, read_json, write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import check_name, stored_path
from MedSSLLib.project.project import Project
from MedSSLLib.project.roles import names_in
from Testing.lib.case_helpers import each

Make = Callable[..., Volume]


class TestSelect:
    def test_order_repeats_and_file_names(self, project: Project) -> None:
        assert [c.name for c in project.select(" oblique , canonical.nii.gz,oblique,")] == [
            "oblique",
            "canonical",
        ]
        assert project.select("") == ()

    def test_from_a_file(self, project: Project, tmp_path: Path) -> None:
        (tmp_path / "s p.txt").write_text(
            "\ufeffoblique\r\ncanonical, flipped\n\n", encoding="utf-8"
        )
        assert [c.name for c in project.select(f"@{tmp_path / 's p.txt'}")] == [
            "oblique",
            "canonical",
            "flipped",
        ]

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

    def test_with_labelled_scans_only_what_was_chosen(
        self, project: Project, make_label: Make, grids: Any
    ) -> None:
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
        assert (again.case("canonical").metadata, again.case("flipped").metadata) == (
            {"a": "1"},
            {"b": "2"},
        )
        assert second.case("canonical").metadata == {"a": "1"}

    def test_a_held_lock_is_waited_for_and_named(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("MedSSLLib.project.project.LOCK_SECONDS", 0.1)
        with (
            FileLock(project.folder / ".medssl.json.lock"),
            pytest.raises(MedSSLError, match="in use by process"),
        ):
            project.save()

    def test_add(
        self, project: Project, tmp_path: Path, make_volume: Make, make_label: Make
    ) -> None:
        for name in ("new", "other"):
            io.write_image(tmp_path / "more" / f"{name}.nrrd", make_volume())
        io.write_image(tmp_path / "labels" / "new.nii.gz", make_label(values=(2, 3)))
        (tmp_path / "more" / "bad.nrrd").write_bytes(b"x")
        new = project.add([tmp_path / "more"], labels=tmp_path / "labels")
        project.save()
        assert [(case.name, case.role) for case in new] == [
            ("new", "labelled"),
            ("other", "unlabelled"),
        ]
        assert [error.case for error in project.refused] == ["bad"]
        again = Project.open(project.folder)
        assert len(again.cases) == 8 and again.values == (0, 1, 2, 3)

    def test_add_single_files_and_refuse_repeats(
        self, project: Project, tmp_path: Path, make_volume: Make
    ) -> None:
        io.write_image(tmp_path / "x.mha", make_volume())
        io.write_image(tmp_path / "Flipped.mha", make_volume())
        assert [
            case.name for case in project.add([tmp_path / "x.mha", tmp_path / "Flipped.mha"])
        ] == ["x"]
        assert "another scan of the project has this name" in str(project.refused[0])
        with pytest.raises(InputError, match="nothing.nii.gz: does not exist"):
            project.add([tmp_path / "nothing.nii.gz"])

    def test_labels_drawn_later_are_taken_by_name(
        self, project: Project, grids: Any, tmp_path: Path, make_volume: Make, make_label: Make
    ) -> None:
        for name, values in (
            ("sagittal", (1, 4)),
            ("canonical", (1, 5)),
            ("oblique", (1,)),
            ("stranger", (1,)),
        ):
            grid = grids[name] if name in grids else grids["canonical"]
            io.write_image(tmp_path / "drawn" / f"{name}.nii.gz", make_label(grid, values=values))
        io.write_image(
            tmp_path / "drawn" / "flipped.nii.gz", make_label(make_volume().geometry, values=(7,))
        )
        project.set_annotated("canonical", Annotated.of([(2, [1])]))
        assert project.add_labels(tmp_path / "drawn") == ("canonical", "oblique", "sagittal")
        project.save()
        again = Project.open(project.folder)
        assert [case.name for case in again.labelled] == ["canonical", "flipped", "sagittal"]
        assert again.case("oblique").role == "test" and again.case("canonical").annotated is None
        assert again.case("sagittal").label == tmp_path / "drawn" / "sagittal.nii.gz"
        assert {4, 5} <= set(again.values) and 7 not in again.values
        scanned = read_json(project.folder / "medssl.json")["labels_from"]
        assert sorted(scanned) == ["canonical", "flipped", "sagittal"]
        assert [error.case for error in project.refused] == ["flipped"]
        said = " ".join(project.warnings)
        assert "stranger" in said and "canonical: the whole label counts now" in said
        assert (
            again.case("flipped").label
            == project.case("flipped").label
            != tmp_path / "drawn" / "flipped.nii.gz"
        )

    def test_labels_of_no_case_are_refused(
        self, project: Project, tmp_path: Path, make_label: Make
    ) -> None:
        io.write_image(tmp_path / "drawn" / "stranger.nii.gz", make_label())
        with pytest.raises(InputError, match="no label named like a case.*stranger"):
            project.add_labels(tmp_path / "drawn")
        with pytest.raises(InputError, match="not a folder.*label files"):
            project.add_labels(tmp_path / "nothing")

    def test_set_label_makes_a_case_labelled(self, project: Project, tmp_path: Path) -> None:
        project.set_label("sagittal", tmp_path / "l.nii.gz")
        project.set_label("oblique", tmp_path / "l.nii.gz")
        assert (project.case("sagittal").role, project.case("oblique").role) == ("labelled", "test")

    def test_copies_make_the_project_stand_alone(
        self, project: Project, data_set: Any, tmp_path: Path
    ) -> None:
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

    def test_copies_of_a_dicom_series_and_of_detached_files(
        self, tmp_path: Path, data_folder: Path, make_volume: Make
    ) -> None:
        import SimpleITK as sitk

        (tmp_path / "raw").mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(make_volume().array), tmp_path / "raw" / "a.mhd")
        project = Project.create(
            tmp_path / "p", data_folder / "dicom" / "ge" / "anatomical" / "001"
        )
        project.add([tmp_path / "raw" / "a.mhd"])
        expected = [io.read_image(case.images[0]).array for case in project.cases]
        project.copy_images()
        assert all(case.images[0].is_relative_to(project.folder) for case in project.cases)
        for case, array in zip(project.cases, expected, strict=True):
            assert np.array_equal(io.read_image(case.images[0]).array, array)


class TestStoredPaths:
    @each(
        ("path", "stored"),
        [
            ("/a/project/images/x.nii", "images/x.nii"),
            ("/a/data/x.nii", "../data/x.nii"),
            ("/b/x.nii", "/b/x.nii"),
            ("/a/project2/x.nii", "../project2/x.nii"),
            ("/a/project/../../c.nii", "/c.nii"),
        ],
    )
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

    def test_spaces_and_other_scripts(
        self, tmp_path: Path, make_volume: Make, make_label: Make
    ) -> None:
        root = tmp_path / "my data ü 体积"
        for name in ("Größe 1", "профиль", "e\u0301te\u0301"):
            io.write_image(root / "images" / f"{name}.nii.gz", make_volume())
            io.write_image(root / "labels" / f"{name}.nii.gz", make_label())
        (root / "m.csv").write_text("case,patient\nété,Zoë\n", encoding="utf-8")
        project = Project.create(
            root / "проект", root / "images", labels=root / "labels", metadata=root / "m.csv"
        )
        again = Project.open(project.folder)
        assert [case.name for case in again.labelled] == ["Größe 1", "été", "профиль"]
        assert again.select("e\u0301te\u0301")[0].patient == "Zoë"
        assert all(io.read_image(case.images[0]).array.any() for case in again.cases)


class TestFolders:
    @each(
        "name",
        [
            "../x",
            "/abs",
            "a/b",
            "a\\b",
            "..",
            ".",
            "",
            "a\nb",
            "a\0b",
            "-rf",
            "@x",
            "a,b",
            "x" * 200,
            "CON",
            "nul.txt",
            "a ",
            " a",
            "a.",
            "C:x",
            "a\u202eb",
            None,
            3,
            "~x",
        ],
    )
    def test_names_that_could_leave_the_project_are_refused(
        self, project: Project, name: Any
    ) -> None:
        for check in (check_name, project.run_folder):
            with pytest.raises(InputError, match="name"):
                check(name)

    @each("name", ["run 1", "été", "a.b-c_d", "患者", "2024-01-01"])
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
    def test_links_out_of_the_project_are_not_followed(
        self, project: Project, tmp_path: Path, name: str
    ) -> None:
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
        assert (runs["first"]["config"], runs["first"]["metrics"]) == (
            {"command": "finetune"},
            {"dice": 0.9},
        )
        assert [runs[name]["finished"] for name in ("first", "second")] == [True, False]
        assert runs["second"]["resumable"]
        assert "is not valid JSON" in runs["broken"]["problem"] and runs["first"]["problem"] == ""


def test_importing_a_project_is_light() -> None:
    code = (
        "import sys, MedSSLLib.project.project, MedSSLLib.images.labels\n"
        "heavy = {'torch', 'monai', 'matplotlib', 'nilearn', 'blosc2', 'lightning_fabric', "
        "'scipy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(MedSSLLib.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "[]"


def test_the_pool_that_training_draws_from_holds_no_test_case(project: Project) -> None:
    assert {case.name for case in project.cases} - {case.name for case in project.pool} == {
        "oblique"
    }
    assert [case.name for case in project.test] == ["oblique"]
