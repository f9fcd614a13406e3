"""Comparing runs and references, in voxels; results of transformed volumes; runs here are label files, no training."""

import json

import numpy as np
import pytest
from conftest import wait_until


def add_run(project, name, arrays, template):
    """A finished run and its predictions, as the library leaves them."""
    from MedSSLLib.images.geometry import Volume
    from MedSSLLib.images.io import read_image, write_image

    run = project / "runs" / name
    run.mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps({"config": {"command": "finetune", "init": "none", "preset": "quick"}})
    )
    (run / "metrics.json").write_text(json.dumps({"dice": 0.5, "seconds": 10}))
    (run / "weights.safetensors").write_bytes(b"")
    for case, array in arrays.items():
        write_image(
            project / "predictions" / name / f"{case}.nii.gz",
            Volume(array, read_image(template).geometry),
        )


@pytest.fixture()
def reviewed(user, cohort, tmp_path):
    """Two runs that differ in known voxels, and a reference; the first case's result of `second` is shown."""
    from MedSSLLib.images.io import read_image

    image = cohort / "images" / "heart_01.nii.gz"
    user.open_with(tmp_path / "p", [image])
    user.store.setClasses(
        [(n, name, (1, n / 3, 0), "") for n, name in ((1, "a"), (2, "b"), (3, "c"))]
    )
    label = cohort / "labels" / "heart_01.nii.gz"
    truth = read_image(label).array
    user.store.setLabel("heart_01", label, None)
    first, second = truth.copy(), truth.copy()
    first[4][truth[4] > 0] = 0
    second[7, :10, :10] = 2
    second[3][truth[3] == 1] = 3
    add_run(user.store.folder, "first", {"heart_01": first}, image)
    add_run(user.store.folder, "second", {"heart_01": second}, image)
    user.store.changed.emit()
    wait_until(lambda: False, 0.1)
    user.settle()
    user.find("resultTable").selectRow(0)
    user.settle()
    user.arrays = {"first": first, "second": second, "label": truth}
    return user


def compare(user, name, mode):
    combo = user.find("compareComboBox")
    combo.setCurrentIndex(combo.findText(name))
    user.find("compareModeComboBox").setCurrentIndex(mode)
    user.click("compareButton")
    user.settle()


def voxels(node, identifier, image):
    import slicer
    from MedSSLGui.scene import segments

    result = np.zeros(slicer.util.arrayFromVolume(image).shape, bool)
    mask, where = segments.segmentCrop(node, identifier, image)
    result[where] = mask
    return result


@pytest.mark.parametrize("text, key", [("first", "first"), ("annotation", "label")])
def test_the_difference_is_shown_voxel_by_voxel(reviewed, text, key):
    from MedSSLGui.scene import nodes

    assert reviewed.find("modelComboBox").currentText() == "second"
    compare(reviewed, text, 0)
    mine, other = reviewed.arrays["second"], reviewed.arrays[key]
    assert f"differ in {np.count_nonzero(mine != other)} voxels" in reviewed.status()
    node = nodes.findNode("heart_01", "difference")
    image = reviewed.shell.panels["review"].result.image
    assert (voxels(node, "class_1", image) == ((mine > 0) & (other == 0))).all()
    assert (voxels(node, "class_2", image) == ((mine == 0) & (other > 0))).all()
    assert (voxels(node, "class_3", image) == ((mine > 0) & (other > 0) & (mine != other))).all()
    assert not reviewed.shell.panels["review"].result.segmentation.GetDisplayNode().GetVisibility()
    compare(reviewed, "nothing", 0)
    assert nodes.findNode("heart_01", "difference") is None
    assert reviewed.shell.panels["review"].result.segmentation.GetDisplayNode().GetVisibility()


def test_side_by_side_shows_each_in_its_own_view(reviewed):
    import slicer
    from MedSSLGui.scene import nodes

    compare(reviewed, "first", 1)
    assert (
        f"differ in {np.count_nonzero(reviewed.arrays['second'] != reviewed.arrays['first'])} voxels"
        in reviewed.status()
    )
    manager = slicer.app.layoutManager()
    red, yellow = (manager.sliceWidget(name).mrmlSliceNode() for name in ("Red", "Yellow"))
    result = reviewed.shell.panels["review"].result
    other = nodes.findNode("heart_01", "comparison")
    assert result.segmentation.GetDisplayNode().IsDisplayableInView(red.GetID())
    assert not result.segmentation.GetDisplayNode().IsDisplayableInView(yellow.GetID())
    assert other.GetDisplayNode().IsDisplayableInView(yellow.GetID())
    assert not other.GetDisplayNode().IsDisplayableInView(red.GetID())
    assert red.GetOrientation() == yellow.GetOrientation()
    for value in (1, 2, 3):
        assert (
            voxels(other, f"class_{value}", result.image) == (reviewed.arrays["first"] == value)
        ).all()


def test_a_prediction_on_another_grid_is_told(reviewed, cohort):
    import SimpleITK as sitk

    path = reviewed.store.resultsFolder("first") / "heart_01.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin((30.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path))
    combo = reviewed.find("compareComboBox")
    combo.setCurrentIndex(combo.findText("first"))
    reviewed.click("compareButton")
    reviewed.settle()
    assert "another grid" in reviewed.status()


def test_the_labelmap_node_and_the_files_hold_the_same_voxels(reviewed):
    import SimpleITK as sitk
    import slicer

    wanted = reviewed.arrays["second"]
    for row in range(3):
        reviewed.find("exportFormatComboBox").setCurrentIndex(row)
        reviewed.click("exportButton")
        reviewed.settle()
        assert "Exported" in reviewed.status()
    folder = reviewed.store.folder / "exports"
    assert sorted(path.name for path in folder.iterdir()) == [
        "heart_01.nii.gz",
        "heart_01.seg.nrrd",
    ]
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "heart_01.nii.gz"))) == wanted).all()
    node = (
        slicer.util.getNode("heart_01 second_1")
        if slicer.mrmlScene.GetFirstNodeByName("heart_01 second_1")
        else None
    )
    nodes = (
        node
        or [
            n
            for n in slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")
            if n.GetAttribute("MedSSL.Role")
        ][0]
    )
    assert (slicer.util.arrayFromVolume(nodes) == wanted).all()


def test_removed_nodes_are_told_and_the_case_can_be_shown_again(reviewed):
    import slicer

    review = reviewed.shell.panels["review"]
    slicer.mrmlScene.RemoveNode(review.result.segmentation)
    reviewed.find("opacitySlider").setProperty("value", 0.9)
    assert any("removed from the scene" in text for _kind, text in reviewed.messages)
    assert not reviewed.find("exportButton").isEnabled()
    reviewed.find("resultTable").clearSelection()
    reviewed.find("resultTable").selectRow(0)
    reviewed.settle()
    assert review.result.isAlive() and reviewed.find("exportButton").isEnabled()


def test_a_volume_under_a_transform_is_annotated_and_shown_again(user, tmp_path):
    """What is drawn on a transformed volume comes back from disk on the same voxels."""
    import slicer
    from test_data import add_volume, move

    node = add_volume("moved", shape=(6, 30, 40))
    move(node)
    user.open_project(tmp_path / "p")
    user.click("addVolumesButton")
    user.settle()
    user.click("loadCaseButton")
    user.settle()
    view = user.shell.panels["annotate"].view
    assert view.image is node
    mask = np.zeros((6, 30, 40), bool)
    mask[2, 5:15, 8:20] = True
    user.find("segmentEditor").paint("class_1", mask)
    wait_until(lambda: False, 0.45)
    user.click("saveAnnotationButton")
    user.settle()
    slicer.mrmlScene.RemoveNode(view.segmentation)
    user.click("loadCaseButton")
    user.settle()
    view = user.shell.panels["annotate"].view
    assert view.annotated() == {2: [2]}, user.status()
    assert (voxels(view.segmentation, "class_1", view.image) == mask).all()
