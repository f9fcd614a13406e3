"""The whole way as a user goes it: every step by its button, with the real library in its own process."""

import numpy as np
import pytest
from conftest import ROOT, in_loop, wait_until

LONGEST_SECONDS = 0.3  # generous: a shared machine; what was measured is in slicer_bench/README.md


def annotate(user, truth, name, indices):
    """Show a case, draw the structures on some slices, mark one of them by the button, the others by drawing."""
    import slicer

    panel = user.shell.panels["annotate"]
    combo = user.find("annotateCaseComboBox")
    combo.setCurrentIndex(combo.findText(name))
    user.click("loadCaseButton")
    user.settle()
    editor = user.find("segmentEditor")
    for index in indices:
        for identifier in ("class_1", "class_2", "class_3"):
            mask = np.zeros(truth.shape, bool)
            mask[index] = truth[index] == int(identifier[-1])
            in_loop(lambda name=identifier, mask=mask: editor.paint(name, mask), "Draw")
        in_loop(lambda index=index: panel.view.jumpTo(2, index), "Jump")
        user.click("markSliceButton")
        wait_until(lambda: False, 0.4)
    assert panel.view.annotated() == {2: sorted(indices)}
    segmentation = slicer.util.getNode(f"{name} annotation")
    assert segmentation is panel.view.segmentation


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_test_that_slicer_runs_trains_and_predicts(application):
    """Testing/slicer/MedSSLTrainTest.py, with the application's part played by the bench."""
    import importlib.util

    path = ROOT / "Testing" / "slicer" / "MedSSLTrainTest.py"
    spec = importlib.util.spec_from_file_location("MedSSLTrainTest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import slicer

    assert module.main() == 0
    slicer.bench_clear_scene()


@pytest.mark.timeout(1500)
def test_from_a_folder_to_segmentations(user, cohort, tmp_path, watch, monkeypatch):
    import SimpleITK as sitk
    import slicer
    from slicer_bench import forks

    monkeypatch.setenv(forks.REAL, "1")  # until there is a model, each command starts its Python
    project = tmp_path / "Prüfung mit Leerzeichen"
    user.open_project(project)
    # 1 data: some volumes from the scene, the others from a folder
    for number in (1, 2):
        node = slicer.util.loadVolume(str(cohort / "images" / f"heart_{number:02d}.nii.gz"))
        node.CreateDefaultDisplayNodes()
    user.click("addVolumesButton")
    user.settle()
    paths = [str(cohort / "images" / f"heart_{n:02d}.nii.gz") for n in (3, 4, 5, 6)]
    in_loop(lambda: user.shell.panels["data"].addPaths(paths), "Add files")
    user.settle()
    assert [case.name for case in user.store.cases] == [f"heart_{n:02d}" for n in range(1, 7)]
    table = user.find("caseTable")
    wait_until(lambda: table.item(5, 4) and table.item(5, 4).text() == "72 × 72 × 12", 10)
    assert table.item(0, 4).text() == "72 × 72 × 12" and not table.item(0, 0).icon().isNull()
    assert user.store.cases[0].images[0] == cohort / "images" / "heart_01.nii.gz", (
        "a volume read from a file is referenced"
    )

    # 2 pre-train
    user.find("pretrainPresetComboBox").setCurrentIndex(0)
    user.train_briefly("pretrainMinutesSpinBox")
    assert wait_until(lambda: user.find("methodComboBox").currentText() == "GCL", 5), (
        "thick slices: GCL is recommended"
    )
    user.click("pretrainButton")
    assert user.find("cancelButton").isEnabled()
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()

    # 3 annotate three slices
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(cohort / "labels" / "heart_01.nii.gz")))
    classes = [
        (1, "right ventricle", (1, 0, 0), ""),
        (2, "wall", (0, 1, 0), ""),
        (3, "left ventricle", (0, 0, 1), ""),
    ]
    in_loop(lambda: user.store.setClasses(classes), "Change classes")
    annotate(user, truth, "heart_01", [3, 6, 9])
    user.click("saveAnnotationButton")
    user.settle()
    case = user.store.case("heart_01")
    assert case.role == "labelled" and case.annotated.slices == ((2, (3, 6, 9)),)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))
    assert (written[[3, 6, 9]] == truth[[3, 6, 9]]).all() and not written[[0, 4, 11]].any()

    # 4 fine-tune from the pre-trained encoder
    wait_until(lambda: user.find("initComboBox").count() == 2, 5)
    wait_until(lambda: user.find("fineTuneButton").isEnabled(), 5)
    user.find("trainPresetComboBox").setCurrentIndex(0)
    user.train_briefly("trainMinutesSpinBox")
    assert user.find("initComboBox").currentText() != "Random weights"
    user.click("fineTuneButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()
    monkeypatch.delenv(forks.REAL)
    assert user.shell.panels["train"].curves.series, "losses were plotted"
    assert user.find("runsTable").rowCount() == 2
    user.find("roundsSpinBox").setValue(1)
    user.click("selfTrainButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()

    # 5 predict, review, compare, correct, export
    user.click("predictButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()
    user.settle()
    results = user.find("resultTable")
    assert results.rowCount() == 5
    doubts = [float(results.item(row, 3).text()) for row in range(5)]
    assert doubts == sorted(doubts, reverse=True)
    in_loop(lambda: results.selectRow(0), "Show a result")
    user.settle()
    review = user.shell.panels["review"]
    assert review.result.uncertainty is not None
    folder = user.store.resultsFolder(review.result.run)
    file = folder / f"{review.result.case.name}.nii.gz"
    shown = slicer.util.arrayFromVolume(review.result.image).shape
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(file))).shape == shown
    for row, name in ((0, ".seg.nrrd"), (1, ".nii.gz")):
        user.find("exportFormatComboBox").setCurrentIndex(row)
        user.click("exportButton")
        user.settle()
        assert (project / "exports" / f"{review.result.case.name}{name}").is_file(), user.status()
    for path in (project / "exports").iterdir():
        path.rename(project / path.name)
    user.click("exportAllButton")
    user.settle()
    assert "5 cases exported" in user.status(), user.status()
    assert len(list((project / "exports").glob("*.nii.gz"))) == 5
    again = sitk.ReadImage(str(project / "exports" / f"{review.result.case.name}.nii.gz"))
    source = sitk.ReadImage(str(file))
    assert np.allclose(again.GetOrigin(), source.GetOrigin()) and np.allclose(
        again.GetDirection(), source.GetDirection()
    )
    assert (sitk.GetArrayFromImage(again) == sitk.GetArrayFromImage(source)).all()
    corrected = review.result.case.name
    user.click("correctButton")
    user.settle()
    assert user.shell.panels["annotate"].view.name == corrected
    assert user.shell.panels["annotate"].view.annotated()[2], "the slice counts as annotated"
    user.click("saveAnnotationButton")
    user.settle()
    assert len(user.store.labelledCases()) == 2
    print(watch.table())
    assert watch.beats, "the watch was running"
    longest = max(
        (block.processor for block in watch.blocks), default=0.0
    )  # short ones are not recorded
    assert longest < LONGEST_SECONDS, watch.table()
