"""What happens to people: dropped files, DICOM, other programs, a full disk, nodes that vanish under a job, resuming."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, small_cases, wait_until
from test_annotate import drawn, marked, opened, paint  # noqa: F401 (fixtures)

DATA = Path(os.environ.get("MEDSSL_DATA") or ROOT.parent / "shared" / "data")


# -- adding -----------------------------------------------------------------------------------------------------------


def drop(user, paths):
    """Drag files over the table's cells and drop them, as Qt delivers it."""
    from PySide6 import QtCore, QtGui, QtWidgets

    target = user.find("caseTable").viewport()
    data = QtCore.QMimeData()
    data.setUrls([QtCore.QUrl.fromLocalFile(str(path)) for path in paths])
    buttons, keys = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    enter = QtGui.QDragEnterEvent(
        QtCore.QPoint(5, 5), QtCore.Qt.DropAction.CopyAction, data, buttons, keys
    )
    QtWidgets.QApplication.sendEvent(target, enter)
    if enter.isAccepted():
        event = QtGui.QDropEvent(
            QtCore.QPointF(5, 5), QtCore.Qt.DropAction.CopyAction, data, buttons, keys
        )
        QtWidgets.QApplication.sendEvent(target, event)
    return enter.isAccepted()


def test_files_and_folders_dropped_on_the_table_are_added(user, cohort, tmp_path):
    folder = tmp_path / "eigene Aufnahmen ü"
    folder.mkdir()
    for number in (3, 4):
        (folder / f"heart_{number:02d}.nii.gz").write_bytes(
            (cohort / "images" / f"heart_{number:02d}.nii.gz").read_bytes()
        )
    user.open_project(tmp_path / "p")
    assert drop(user, [cohort / "images" / "heart_01.nii.gz", folder])
    user.settle()
    assert [case.name for case in user.store.cases] == ["heart_01", "heart_03", "heart_04"], (
        user.status()
    )


def test_dropped_text_is_not_taken(user):
    from PySide6 import QtCore, QtGui, QtWidgets

    data = QtCore.QMimeData()
    data.setText("hello")
    event = QtGui.QDragEnterEvent(
        QtCore.QPoint(5, 5),
        QtCore.Qt.DropAction.CopyAction,
        data,
        QtCore.Qt.MouseButton.LeftButton,
        QtCore.Qt.KeyboardModifier.NoModifier,
    )
    event.ignore()
    QtWidgets.QApplication.sendEvent(user.find("caseTable").viewport(), event)
    assert not event.isAccepted()


def series_of(folder):
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    return list(reader.GetGDCMSeriesFileNames(str(folder)))


@pytest.mark.skipif(
    not (DATA / "dicom" / "siemens").is_dir(), reason="no DICOM files (MEDSSL_DATA)"
)
def test_a_series_of_the_dicom_database_is_added(user, tmp_path):
    """The DICOM module loads a series (here SimpleITK does, with Slicer's attribute); its voxels become a case."""
    import SimpleITK as sitk
    import slicer

    user.open_project(tmp_path / "p")
    user.click("addDicomButton")
    assert slicer.bench_selected_module == "DICOM" and "Add loaded volumes" in user.status()
    files = series_of(DATA / "dicom" / "siemens" / "anatomical" / "001")
    image = sitk.ReadImage(files)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "5: t1 mprage")
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1, -1, 1, 1]) @ lps))
    node.SetAttribute("DICOM.instanceUIDs", " ".join(f"1.2.{n}" for n in range(len(files))))
    node.CreateDefaultDisplayNodes()
    user.click("addVolumesButton")
    user.settle()
    assert len(user.store.cases) == 1, user.status()
    found = sitk.ReadImage(str(user.store.cases[0].images[0]))
    assert (sitk.GetArrayFromImage(found) == sitk.GetArrayFromImage(image)).all()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(found, name)(), getattr(image, name)(), atol=1e-4)


@pytest.mark.skipif(
    not (DATA / "dicom" / "siemens").is_dir(), reason="no DICOM files (MEDSSL_DATA)"
)
def test_a_dicom_folder_is_added_as_it_is(user, tmp_path):
    folder = Path(series_of(DATA / "dicom" / "siemens" / "anatomical" / "001")[0]).parent
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(folder)])
    user.settle(120)
    assert len(user.store.cases) == 1 and user.store.cases[0].images[0] == folder, user.status()
    assert wait_until(lambda: user.store.facts.get(user.store.cases[0].name, {}).get("size"), 60)


# -- other programs, full disks ---------------------------------------------------------------------------------------


def test_what_a_second_slicer_changed_is_seen_on_entering(user, cohort, tmp_path):
    """The other Slicer is another process; this panel reads its changes and keeps its own."""
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths(
        [str(cohort / "images" / f"heart_{n:02d}.nii.gz") for n in (1, 2)]
    )
    user.settle()
    user.store.setMetadata("heart_01", "phase", "systole")
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path; "
        "from MedSSLLib.project.manifest import read_manifest, write_manifest; from MedSSLLib.core.files import FileLock; "
        "p = Path(sys.argv[1]); m = read_manifest(p); c = m.cases['heart_02']; "
        "write_manifest(p, m.with_cases(replace(c, metadata={**c.metadata, 'phase': 'diastole'})))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(user.store.folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    user.loaded.widget.exit()
    user.loaded.widget.enter()
    wait_until(lambda: False, 0.1)
    assert [case.metadata for case in user.store.cases] == [
        {"phase": "systole"},
        {"phase": "diastole"},
    ]
    table = user.find("caseTable")
    assert wait_until(lambda: table.item(1, 4) and table.item(1, 4).text() == "diastole", 5)


def test_an_annotation_that_cannot_be_written_is_not_lost(drawn):  # noqa: F811
    """A file lies where the folder of the labels should be; afterwards the next save writes everything."""
    paint(drawn, 4)
    blocked = drawn.store.folder / "labels"
    blocked.write_text("")
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert "not saved yet" in drawn.status()
    assert drawn.store.case("heart_01").label is None
    blocked.unlink()
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert drawn.store.case("heart_01").annotated.slices == ((2, (4,)),)


# -- nodes that change under a job ------------------------------------------------------------------------------------


def completion(user, cohort, delay=1.0):
    """A job that ends like `medssl complete`: with an event that names the completed label."""
    from MedSSLGui.jobs.runner import Job

    path = cohort / "labels" / "heart_01.nii.gz"
    code = (
        f"import json, time; time.sleep({delay}); "
        f"print(json.dumps({{'event': 'done', 'path': {str(path)!r}, 'case': 'heart_01'}}))"
    )
    user.queue.add(
        Job("Completing", ["-c", code], {"kind": "complete", "project": str(user.store.folder)})
    )


def check_completed(user):
    import slicer

    view = user.shell.panels["annotate"].view
    array = slicer.util.arrayFromSegmentBinaryLabelmap(view.segmentation, "class_1", view.image)
    assert array[4].sum() == 100 and array[4, 20:30, 20:30].all(), "the drawn slice is as it was"
    assert array[6].any() and marked(user) == {2: [4]}


@pytest.fixture()
def saved(drawn):  # noqa: F811
    paint(drawn, 4)
    drawn.store.setClasses(
        [(n, name, (1, 0, 0), "") for n, name in ((1, "structure"), (2, "b"), (3, "c"))]
    )
    drawn.click("saveAnnotationButton")
    drawn.settle()
    return drawn


def test_nodes_renamed_while_a_job_runs(saved, cohort):
    completion(saved, cohort)
    view = saved.shell.panels["annotate"].view
    view.image.SetName("something else")
    view.segmentation.SetName("another thing")
    saved.finish_jobs()
    assert saved.shell.panels["annotate"].view is view
    check_completed(saved)


def test_nodes_deleted_while_a_job_runs(saved, cohort):
    import slicer

    completion(saved, cohort)
    view = saved.shell.panels["annotate"].view
    slicer.mrmlScene.RemoveNode(view.segmentation)
    slicer.mrmlScene.RemoveNode(view.image)
    saved.finish_jobs()
    assert any("removed from the scene" in text for _kind, text in saved.messages)
    saved.click("loadCaseButton")
    saved.settle()
    assert marked(saved) == {2: [4]}, "what was saved is there again"


def test_a_scene_closed_while_a_job_runs(saved, cohort):
    import slicer

    completion(saved, cohort)
    slicer.bench_clear_scene()
    saved.finish_jobs()
    assert saved.shell.panels["annotate"].view is not None, "the case came back for its completion"
    check_completed(saved)


# -- cancel and resume ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_cancelled_pretraining_is_resumed_by_its_button(user, cohort, tmp_path):
    small_cases(cohort / "images", tmp_path / "images", (1, 2))
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(tmp_path / "images")])
    user.settle()
    user.find("pretrainPresetComboBox").setCurrentIndex(0)
    steps, kept = [], []
    user.queue.progress.connect(
        lambda event: steps.append(event["step"]) if event["stage"] == "pretrain" else None
    )
    user.queue.reported.connect(
        lambda event: kept.append(event["step"]) if event["event"] == "checkpoint" else None
    )
    assert not user.find("resumePretrainButton").isEnabled()
    user.click("pretrainButton")
    assert wait_until(lambda: steps and steps[-1] >= 2, 200), user.find("logEdit").toPlainText()
    user.click("cancelButton")
    user.finish_jobs()
    assert "cancelled" in user.status() and "Resume" in user.status()
    assert wait_until(lambda: user.find("resumePretrainButton").isEnabled(), 5)
    reached = max(kept)
    steps.clear()
    user.click("resumePretrainButton")
    assert wait_until(lambda: steps, 200), user.find("logEdit").toPlainText()
    assert reached >= 1 and min(steps) == reached + 1, "it goes on where it was"
    user.click("cancelButton")
    user.finish_jobs()
    assert len(user.store.runs()) == 1, "the same run, no second one"
