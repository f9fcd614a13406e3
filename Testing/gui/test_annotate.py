"""Annotation: drawing through Slicer's own editor logic, slices, tags, manifest; what must never be lost."""

import numpy as np
import pytest
from conftest import wait_until


@pytest.fixture()
def opened(user, cohort, tmp_path):
    """A project of two cases."""
    images = [cohort / "images" / f"heart_{n:02d}.nii.gz" for n in (1, 2)]
    user.open_with(tmp_path / "project", images)
    return user


@pytest.fixture()
def drawn(opened):
    """A project of two cases, the first one shown for annotation."""
    opened.click("loadCaseButton")
    opened.settle()
    return opened


def paint(user, index, columns=slice(20, 30), segment="class_1", erase=False):
    view = user.shell.panels["annotate"].view
    mask = np.zeros(view.size[::-1], bool)
    mask[index, 20:30, columns] = True
    user.find("segmentEditor").paint(segment, mask, erase=erase)
    wait_until(lambda: False, 0.45)


def marked(user):
    return user.shell.panels["annotate"].view.annotated()


def test_a_slice_that_is_drawn_on_is_marked_and_saved(drawn):
    paint(drawn, 4)
    assert marked(drawn) == {2: [4]}
    paint(drawn, 7, slice(5, 60))
    assert marked(drawn) == {2: [4, 7]}, "a larger drawing does not touch the other slices"
    drawn.click("saveAnnotationButton")
    drawn.settle()
    case = drawn.store.case("heart_01")
    assert case.annotated.slices == ((2, (4, 7)),) and case.role == "labelled"
    tag = drawn.shell.panels["annotate"].view.segmentation.GetSegmentation().GetSegment("class_1")
    import vtk

    text = vtk.mutable("")
    assert tag.GetTag("MedSSL.AnnotatedSlices", text) and str(text) == "axial:4,7"


def test_many_slices_changed_at_once_are_not_marked(drawn):
    view = drawn.shell.panels["annotate"].view
    drawn.find("segmentEditor").paint("class_1", np.ones(view.size[::-1], bool))
    wait_until(lambda: False, 0.5)
    assert marked(drawn) == {}
    assert "12 slices changed" in drawn.status()


def test_automatic_marking_can_be_switched_off(drawn):
    drawn.find("autoMarkCheckBox").setChecked(False)
    paint(drawn, 4)
    assert marked(drawn) == {}


def test_undo_reaches_the_drawing(drawn):
    import slicer

    view = drawn.shell.panels["annotate"].view
    paint(drawn, 4)
    assert slicer.util.arrayFromSegmentBinaryLabelmap(
        view.segmentation, "class_1", view.image
    ).any()
    drawn.find("segmentEditor").undo()
    assert not slicer.util.arrayFromSegmentBinaryLabelmap(
        view.segmentation, "class_1", view.image
    ).any()


def test_mark_jump_and_unmark(drawn):
    panel = drawn.shell.panels["annotate"]
    assert panel.slices.suggested == [1, 6, 10]
    panel.view.jumpTo(2, 0)
    drawn.click("nextSliceButton")
    assert panel.view.shownSlice(2) == 1
    drawn.click("markSliceButton")
    drawn.click("nextSliceButton")
    drawn.click("markSliceButton")
    assert marked(drawn) == {2: [1, 6]}
    assert drawn.find("annotationProgressBar").text() == ("2 of 3 suggested slices, 2 annotated")
    drawn.find("slicesList").setCurrentRow(0)
    drawn.click("jumpSliceButton")
    assert panel.view.shownSlice(2) == 1
    drawn.click("removeSliceButton")
    assert marked(drawn) == {2: [6]}


def test_the_annotation_returns_from_disk(drawn):
    import slicer

    paint(drawn, 4)
    drawn.click("saveAnnotationButton")
    drawn.settle()
    slicer.bench_clear_scene()
    wait_until(lambda: False, 0.1)
    drawn.click("loadCaseButton")
    drawn.settle()
    view = drawn.shell.panels["annotate"].view
    assert view.annotated() == {2: [4]}
    array = slicer.util.arrayFromSegmentBinaryLabelmap(view.segmentation, "class_1", view.image)
    assert array[4, 20:30, 20:30].all() and array.sum() == 100


def test_closing_the_scene_saves_what_was_drawn(drawn):
    import slicer

    paint(drawn, 5)
    slicer.bench_clear_scene()
    wait_until(lambda: False, 0.1)
    assert drawn.store.case("heart_01").annotated.slices == ((2, (5,)),)
    assert drawn.shell.panels["annotate"].view is None
    assert not drawn.find("markSliceButton").isEnabled()


def test_a_removed_node_is_told_and_nothing_saved_is_lost(drawn):
    import slicer

    paint(drawn, 5)
    drawn.click("saveAnnotationButton")
    drawn.settle()
    slicer.mrmlScene.RemoveNode(drawn.shell.panels["annotate"].view.segmentation)
    drawn.click("markSliceButton")
    assert any("removed from the scene" in text for _kind, text in drawn.messages)
    assert drawn.store.case("heart_01").annotated.count == 1


def test_completion_never_overwrites_a_drawn_slice(drawn, cohort):
    import slicer

    paint(drawn, 5)
    panel = drawn.shell.panels["annotate"]
    path = cohort / "labels" / "heart_01.nii.gz"
    drawn.store.setClasses(
        [(n, name, (1, 0, 0), "") for n, name in ((1, "structure"), (2, "b"), (3, "c"))]
    )
    panel.fillIn.takeCompletion(path)
    drawn.settle()
    array = slicer.util.arrayFromSegmentBinaryLabelmap(
        panel.view.segmentation, "class_1", panel.view.image
    )
    assert array[5].sum() == 100, "the drawn slice is as it was"
    assert array[6].sum() not in (0, 100), "the others are filled in"


def test_shortcuts_belong_to_the_panel_only_while_it_is_shown(drawn):
    editor = drawn.find("segmentEditor")
    drawn.shell.open("annotate")
    assert editor.shortcuts_installed and drawn.shell._shortcuts
    drawn.loaded.widget.exit()
    assert not editor.shortcuts_installed and not drawn.shell._shortcuts
    drawn.loaded.widget.enter()


def test_classes_are_shared_by_all_cases(drawn):
    drawn.click("addClassButton")
    wait_until(lambda: False, 0.1)
    table = drawn.find("classTable")
    assert table.rowCount() == 2
    table.item(1, 1).setText("myocardium")
    wait_until(lambda: False, 0.1)
    names = [
        drawn.shell.panels["annotate"]
        .view.segmentation.GetSegmentation()
        .GetNthSegment(n)
        .GetName()
        for n in (0, 1)
    ]
    assert names == ["structure", "myocardium"]
    table.item(1, 1).setText("structure")
    wait_until(lambda: False, 0.1)
    assert "same name" in drawn.status() and [c[1] for c in drawn.store.classes()] == [
        "structure",
        "myocardium",
    ]


def test_suggested_slices_lead_from_case_to_case(drawn):
    from MedSSLLib.core.files import write_json

    panel = drawn.shell.panels["annotate"]
    slices = [
        {"case": name, "axis": 2, "index": index, "reason": f"typical of {index}"}
        for name, index in (("heart_01", 8), ("heart_02", 3), ("heart_01", 2))
    ]
    write_json(
        drawn.store.folder / "suggestions.json",
        {"format": "medssl-suggestions", "format_version": 1, "slices": slices},
    )
    panel.takeSuggestion({"event": "done", "slices": slices})
    assert panel.slices.suggested == [2, 8]
    panel.view.jumpTo(2, 0)
    for expected in (2, 8):
        drawn.click("nextSliceButton")
        assert panel.view.shownSlice(2) == expected
        assert drawn.status() == f"heart_01, slice {expected + 1}: typical of {expected}"
    drawn.click("nextSliceButton")
    drawn.settle()
    assert panel.view.name == "heart_02" and panel.slices.suggested == [3]
    assert panel.view.shownSlice(2) == 3, (
        "the first one is not skipped, though it lies before the middle"
    )
    drawn.click("nextSliceButton")
    drawn.settle()
    assert panel.view.name == "heart_01" and panel.view.shownSlice(2) == 2
    panel.mark(2, [2])
    drawn.click("loadCaseButton")
    drawn.settle()
    assert panel.view.shownSlice(2) == 8, "2 is done"


def test_suggestions_in_other_cases_are_told_of(drawn):
    panel = drawn.shell.panels["annotate"]
    panel.takeSuggestion(
        {"event": "done", "slices": [{"case": "heart_02", "axis": 2, "index": n} for n in (3, 5)]}
    )
    assert drawn.status() == "2 slices are suggested, in other cases. Show heart_02 to begin."


def test_another_direction_keeps_what_is_not_saved(drawn):
    paint(drawn, 4)
    box = drawn.find("directionComboBox")
    box.setCurrentIndex((box.currentIndex() + 1) % box.count())
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert drawn.store.case("heart_01").annotated.slices == ((2, (4,)),)


def test_showing_a_case_again_keeps_its_marks(drawn):
    paint(drawn, 4)
    drawn.click("saveAnnotationButton")
    drawn.settle()
    paint(drawn, 7)
    drawn.click("loadCaseButton")
    drawn.settle()
    assert marked(drawn) == {2: [4, 7]}


def test_what_is_completed_is_nobodys_drawing(drawn, cohort, tmp_path):
    """Even where it changes so few slices that a person could have drawn them."""
    from MedSSLLib.images import io
    from MedSSLLib.images.geometry import Volume

    paint(drawn, 5)
    panel = drawn.shell.panels["annotate"]
    label = io.read_label(
        cohort / "labels" / "heart_01.nii.gz", io.read_header(cohort / "images" / "heart_01.nii.gz")
    )
    few = np.zeros_like(label.array)
    few[6:8, 20:30, 20:30] = 1
    io.write_image(tmp_path / "few.nii.gz", Volume(few, label.geometry))
    panel.fillIn.takeCompletion(tmp_path / "few.nii.gz")
    drawn.settle()
    wait_until(lambda: False, 0.5)
    assert marked(drawn) == {2: [5]}
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert drawn.store.case("heart_01").annotated.slices == ((2, (5,)),)


def test_another_project_with_the_same_names_gets_nothing_of_this_one(drawn, cohort, tmp_path):
    paint(drawn, 4)
    first = drawn.store.folder
    drawn.open_project(tmp_path / "other")
    assert drawn.shell.panels["annotate"].view is None
    drawn.shell.panels["data"].addPaths([str(cohort / "images" / "heart_01.nii.gz")])
    drawn.settle()
    drawn.click("loadCaseButton")
    drawn.settle()
    assert marked(drawn) == {} and drawn.store.case("heart_01").label is None
    drawn.open_project(first)
    assert drawn.store.case("heart_01").annotated.slices == ((2, (4,)),)


def test_a_correction_takes_the_slice_that_is_shown(drawn):
    panel = drawn.shell.panels["annotate"]
    size = panel.view.size
    panel.takeSuggestion({"event": "done", "slices": [{"case": "heart_01", "axis": 2, "index": 2}]})
    panel.view.jumpTo(2, 5)
    panel.fillIn.takeCorrection({"case": "heart_01", "label": np.ones(size[::-1], np.uint8)})
    drawn.settle()
    assert marked(drawn) == {2: [5]} and panel.view.shownSlice(2) == 5, "not the suggested one"
    assert "Slice 6 is in the annotation now" in drawn.status()
