"""Trained models in the panels: pseudo-labels looked at, models shared, volumes segmented that are no case."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, in_loop, small_cases, wait_until

pytestmark = pytest.mark.timeout(600)


def medssl(*commands):
    """Commands one after the other, in one process that loads torch once."""
    words = [[str(word) for word in command] for command in commands]
    program = f"import sys, MedSSLLib.cli.main as m; sys.exit(max(map(m.main, {words!r})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture()
def trained(user, cohort, tmp_path_factory):
    """A project of three cases with a fine-tuned and a self-trained model of a few steps, made once and copied."""
    made = Path(tmp_path_factory.getbasetemp()) / "trained"
    if not made.is_dir():
        images, labels = made / "images", made / "labels"
        small_cases(cohort / "images", images, (1, 2, 3))
        small_cases(cohort / "labels", labels, (1,))
        few = ("--preset", "quick", "--steps", 40)
        more = ("--from", "fine", "--rounds", 1, "--name", "self")
        medssl(
            ("init", made / "p", "--images", images, "--labels", labels),
            ("finetune", made / "p", "--name", "fine", *few),
            ("selftrain", made / "p", *more, "--preset", "quick", "--steps", 4),
        )
    project = Path(tmp_path_factory.mktemp("work")) / "p"
    shutil.copytree(made / "p", project)
    for run in ("fine", "self"):
        os.utime(project / "runs" / run)
    os.utime(project / "runs" / "self")
    text = (project / "medssl.json").read_text().replace("../images", str(made / "images"))
    (project / "medssl.json").write_text(text.replace("../labels", str(made / "labels")))
    user.open_project(project)
    user.settle()
    wait_until(lambda: False, 0.2)
    return user


def test_pseudo_labels_are_looked_at_and_decided(trained):
    """Each round's pseudo-labels, shown, accepted or rejected; the next self-training is told."""
    user, project = trained, trained.store.folder
    table = user.find("pseudoTable")
    assert table.rowCount() == 2, "the unlabelled cases"
    confidences = [float(table.item(row, 1).text()) for row in range(2)]
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
    user.train_briefly("trainMinutesSpinBox")
    user.find("roundsSpinBox").setValue(1)
    user.click("continueSelfTrainButton")
    user.finish_jobs()
    assert "done" in user.status(), user.find("logEdit").toPlainText()
    newest = user.store.runs()[-1]
    options = newest["config"]["config"]["options"]
    assert list(options["accept"]) == [first] and list(options["reject"]) == [second]


def test_a_model_is_shared(trained, tmp_path):
    """Exported with its card, imported again under another name, where it segments."""
    user, train = trained, trained.shell.panels["train"]
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


def test_a_volume_that_is_no_case_is_segmented(trained):
    """A volume that is no case: from the panel, then by the logic, with the same result."""
    import slicer

    user = trained
    image = user.store.case("heart_02").images[0]
    node = slicer.util.loadVolume(str(image), {"name": "guest"})
    cases = [case.name for case in user.store.cases]
    in_loop(lambda: user.find("volumeSelector").setCurrentNode(node), "Choose a volume")
    user.click("segmentVolumeButton")
    wait_until(lambda: user.queue.current is not None, 20)
    user.finish_jobs()
    assert "guest is segmented" in user.status(), user.find("logEdit").toPlainText()
    made = slicer.util.getNode("guest segmentation")
    run = user.store.folder / "runs" / "self"
    again = user.loaded.widget.logic.process(node, None, run)
    identifier = made.GetSegmentation().GetNthSegmentID(2)
    voxels = [
        slicer.util.arrayFromSegmentBinaryLabelmap(each, identifier, node) for each in (made, again)
    ]
    assert (voxels[0] == voxels[1]).all() and voxels[0].shape == (12, 40, 40)
    assert [case.name for case in user.store.cases] == cases, "it is no case"
    with pytest.raises(RuntimeError, match="nothing"):
        user.loaded.widget.logic.process(node, None, user.store.folder / "runs" / "nothing")
