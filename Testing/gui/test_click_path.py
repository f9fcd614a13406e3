"""The whole way as a user goes it: every step by its button, with the real library in its own process."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, in_loop, wait_until

MINUTES = 0.1
LONGEST_SECONDS = 0.3  # generous: a shared machine; what was measured is in slicer_bench/README.md


def commands():
    done = subprocess.run(
        [sys.executable, "-m", "MedSSLLib", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout


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


def look_at_pseudo_labels(user, project):
    """Each round's pseudo-labels, shown, accepted or rejected; the next self-training is told."""
    import json

    table = user.find("pseudoTable")
    if not user.find("pseudoBox").isVisibleTo(user.find("Review")):
        return
    assert table.rowCount() == 6, "the unlabelled cases, and what is not drawn of the labelled one"
    confidences = [float(table.item(row, 1).text()) for row in range(6)]
    assert confidences == sorted(confidences), "the least confident first"
    in_loop(lambda: table.selectRow(0), "Show a pseudo-label")
    user.settle()
    first, second = table.item(0, 0).text(), table.item(1, 0).text()
    review = user.shell.panels["review"]
    assert review.result.case.name == first and review.result.role == "pseudo"
    user.click("acceptPseudoButton")
    table.clearSelection()
    in_loop(lambda: table.selectRow(1), "Show a pseudo-label")
    user.settle()
    user.click("rejectPseudoButton")
    assert (table.item(0, 3).text(), table.item(1, 3).text()) == ("accepted", "rejected")
    run = user.find("pseudoRunComboBox").currentText()
    kept = json.loads((project / "runs" / run / "pseudo" / "decisions.json").read_text())
    assert kept == {"seen": sorted([first, second]), "chosen": {first: "accept", second: "reject"}}
    user.click("continueSelfTrainButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()
    newest = user.store.runs()[-1]
    options = newest["config"]["config"]["options"]
    assert list(options["accept"]) == [first] and list(options["reject"]) == [second]


def share_the_model(user, tmp_path):
    """Exported with its card, imported again under another name, where it segments."""
    train = user.shell.panels["train"]
    user.shell.open("train")
    models = user.store.models()
    in_loop(lambda: train.exportModel(tmp_path / "shared"), "Export a model")
    user.settle(200)
    assert "is exported" in user.status(), user.status()
    assert (tmp_path / "shared" / "medssl" / "model_card.md").is_file()
    in_loop(lambda: train.importModel(tmp_path / "shared"), "Import a model")
    user.settle(200)
    assert "It segments in panel 5" in user.status(), user.status()
    assert user.store.models() == [*models, "shared"]
    assert user.find("modelComboBox").currentText() == "shared", "the newest one"


def segment_a_volume(user, cohort):
    """A volume that is no case: from the panel, then by the logic, with the same result."""
    import slicer

    node = slicer.util.loadVolume(str(cohort / "images" / "heart_02.nii.gz"), {"name": "guest"})
    cases = [case.name for case in user.store.cases]
    in_loop(lambda: user.find("volumeSelector").setCurrentNode(node), "Choose a volume")
    user.click("segmentVolumeButton")
    wait_until(lambda: user.queue.current is not None, 20)
    user.finish_jobs()
    assert "guest is segmented" in user.status(), user.find("logEdit").toPlainText()
    made = slicer.util.getNode("guest segmentation")
    run = user.store.folder / "runs" / "shared"
    again = user.loaded.widget.logic.process(node, None, run)
    identifier = made.GetSegmentation().GetNthSegmentID(2)
    voxels = [
        slicer.util.arrayFromSegmentBinaryLabelmap(each, identifier, node) for each in (made, again)
    ]
    assert (voxels[0] == voxels[1]).all() and voxels[0].shape == (12, 72, 72)
    assert [case.name for case in user.store.cases] == cases, "it is no case"
    with pytest.raises(RuntimeError, match="nothing"):
        user.loaded.widget.logic.process(node, None, user.store.folder / "runs" / "nothing")


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
def test_from_a_folder_to_segmentations(user, cohort, tmp_path, watch):
    import SimpleITK as sitk
    import slicer

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
    user.find("pretrainMinutesSpinBox").setValue(MINUTES)
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
    user.find("trainMinutesSpinBox").setValue(MINUTES)
    assert user.find("initComboBox").currentText() != "Random weights"
    user.click("fineTuneButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()
    assert user.shell.panels["train"].curves.series, "losses were plotted"
    assert user.find("runsTable").rowCount() == 2
    if "selftrain" in commands():
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
    look_at_pseudo_labels(user, project)
    share_the_model(user, tmp_path)
    segment_a_volume(user, cohort)
    print(watch.table())
    assert watch.beats, "the watch was running"
    longest = max(
        (block.processor for block in watch.blocks), default=0.0
    )  # short ones are not recorded
    assert longest < LONGEST_SECONDS, watch.table()
