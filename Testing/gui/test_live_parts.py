"""What Live is made of, with real MRML: previews, proposals, single slices, partly drawn slices, scores."""

import numpy as np
import pytest
from conftest import wait_until
from test_annotate import drawn, marked, opened, paint  # noqa: F401 (fixtures)

CLASSES = [(n, name, (1, 0, 0), "") for n, name in ((1, "structure"), (2, "b"), (3, "c"))]


@pytest.fixture()
def three(opened):  # noqa: F811
    """The first case shown, with three classes."""
    opened.store.setClasses(CLASSES)
    opened.click("loadCaseButton")
    opened.settle()
    return opened


def view_of(user):
    return user.shell.panels["annotate"].view


def label_of(user):
    """Class values [k, j, i] of the annotation that is shown."""
    from MedSSLGui.jobs.stepper import runToEnd
    from MedSSLGui.scene import segments

    view = view_of(user)
    found, _shared = runToEnd(
        segments.labelSteps(view.segmentation, view.image, user.store.classes())
    )
    return found


def file_of(user, name):
    """What the label file of a case holds, and which of its slices count."""
    import SimpleITK as sitk

    case = user.store.case(name)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))), case.annotated


# -- one slice ----------------------------------------------------------------------------------------------------------


def test_a_slice_is_written_and_read_as_it_is_and_no_other_changes(three):
    from MedSSLGui.scene import slicecopy

    view, random = view_of(three), np.random.default_rng(0)
    label = np.zeros(view.size[::-1], np.uint8)
    for axis in (2, 1, 0, 2):
        for index in (5, 2, view.size[axis] - 1):
            planes = np.moveaxis(label, 2 - axis, 0)
            planes[index] = random.integers(0, 4, planes.shape[1:])
            slicecopy.writeSlice(view, axis, index, planes[index], CLASSES)
            values, background = slicecopy.readSlice(view, axis, index, CLASSES)
            assert (values == planes[index]).all() and not background.any()
            assert (label_of(three) == label).all(), (axis, index)
        slicecopy.clearSlice(view, axis, 2)
        np.moveaxis(label, 2 - axis, 0)[2] = 0
        assert (label_of(three) == label).all()


# -- the preview --------------------------------------------------------------------------------------------------------


def preview_of(user, values=(0, 1, 2, 3)):
    from MedSSLGui.scene.preview import Preview

    return Preview(view_of(user), user.store.classes(), values)


def show(preview, path, array, *where):
    from MedSSLGui.jobs.stepper import runToEnd

    np.save(path, array)
    return runToEnd(preview.takeSteps(path, *where))


def test_a_preview_is_a_node_of_its_own_and_changes_nothing_drawn(three, tmp_path):
    import slicer
    from MedSSLGui.scene import nodes

    paint(three, 4)
    before = label_of(three)
    preview, view = preview_of(three), view_of(three)
    found = np.random.default_rng(0).integers(0, 4, view.size[::-1]).astype(np.uint8)
    assert show(preview, tmp_path / "p.npy", found)
    assert (label_of(three) == before).all() and marked(three) == {2: [4]}
    node = preview.node
    assert node.GetAttribute(nodes.ROLE) == "preview" and node is not view.segmentation
    assert not node.GetSaveWithScene() and node.GetHideFromEditors()
    for value, identifier in ((1, "class_1"), (2, "class_2"), (3, "class_3")):
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, view.image)
        assert (array.astype(bool) == (found == value)).all()
    assert not show(preview, tmp_path / "p.npy", found), "nothing is another than before"


def test_only_the_slices_that_are_filled_in_are_taken(three, tmp_path):
    preview, view = preview_of(three, (0, 2, 3, 1)), view_of(three)
    found = np.full(view.size[::-1], 1, np.uint8)
    assert show(preview, tmp_path / "p.npy", found, 2, [3, 4])
    assert preview.plane(2, 2) is None and preview.plane(2, 5) is None
    assert (preview.plane(2, 3) == 2).all(), "the second class of the model has the value 2 here"
    show(preview, tmp_path / "p.npy", np.zeros_like(found), 2, [5, 6])
    assert (preview.plane(2, 4) == 2).all() and not preview.plane(2, 5).any()
    assert preview.plane(1, 0) is None
    show(preview, tmp_path / "p.npy", np.zeros_like(found))
    assert not preview.plane(1, 0).any()


def test_a_preview_on_another_grid_is_refused(three, tmp_path):
    from MedSSLGui.scene.nodes import SceneError

    preview, view = preview_of(three), view_of(three)
    with pytest.raises(SceneError, match="another grid"):
        show(preview, tmp_path / "p.npy", np.zeros(view.size, np.uint8))


def test_after_every_show_exactly_the_shown_cases_nodes_are_visible(three, tmp_path):
    import slicer
    from MedSSLGui.scene import nodes

    def visible():
        found = set()
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if node.GetDisplayNode().GetVisibility():
                found.add((node.GetAttribute(nodes.CASE), node.GetAttribute(nodes.ROLE)))
        return found

    preview = preview_of(three)
    show(preview, tmp_path / "p.npy", np.ones(view_of(three).size[::-1], np.uint8))
    assert visible() == {("heart_01", "annotation"), ("heart_01", "preview")}
    combo = three.find("annotateCaseComboBox")
    combo.setCurrentIndex(combo.findText("heart_02"))
    three.click("loadCaseButton")
    three.settle()
    assert visible() == {("heart_02", "annotation")}
    nodes.showOnly("heart_01", "prediction")
    preview.remove()
    assert not show(preview, tmp_path / "p.npy", np.zeros((12, 72, 72), np.uint8)), "it is over"
    assert visible() == set() and nodes.findNode("heart_01", "preview") is None


def outline(user, name="Red"):
    """Pixels of a slice view that are red without being grey."""
    import slicer

    picture = slicer.bench_views[name].render(300, 300).astype(int)
    return int(((picture[..., 0] - picture[..., 1]) > 60).sum())


def test_a_preview_is_drawn_as_an_outline_and_follows_its_changes(three, tmp_path):
    preview, view = preview_of(three), view_of(three)
    found = np.zeros(view.size[::-1], np.uint8)
    found[:, 20:50, 20:50] = 1
    view.jumpTo(2, 6)
    assert outline(three) == 0
    show(preview, tmp_path / "p.npy", found)
    large = outline(three)
    assert 0 < large < 300 * 300 * 30 * 30 / 72 / 72 / 3, "an outline, no area"
    found[:, 30:, :] = 0
    show(preview, tmp_path / "p.npy", found)
    assert 0 < outline(three) < large, "what is written in place is drawn"


# -- proposals ----------------------------------------------------------------------------------------------------------


def offer(user, index, value=1):
    panel = user.shell.panels["annotate"]
    plane = np.zeros(panel.view.size[1::-1], np.uint8)
    plane[10:20, 10:30] = value
    return panel.proposals.offer(index, plane, user.store.classes())


def test_a_proposal_counts_once_it_is_touched_and_undo_takes_that_back(three):
    panel = three.shell.panels["annotate"]
    assert offer(three, 6)
    wait_until(lambda: False, 0.45)
    assert marked(three) == {} and panel.proposals.waiting() == {2: [6]}
    assert label_of(three)[6].sum() == 200
    paint(three, 6)
    assert marked(three) == {2: [6]} and panel.proposals.waiting() == {}
    three.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    assert marked(three) == {} and panel.proposals.waiting() == {2: [6]}
    assert label_of(three)[6].sum() == 200


def test_a_proposal_is_not_written_into_the_label_before_it_is_accepted(three):
    paint(three, 4)
    offer(three, 6)
    three.click("saveAnnotationButton")
    three.settle()
    label, annotated = file_of(three, "heart_01")
    assert label[4].sum() == 100 and not label[6].any()
    assert annotated.slices == ((2, (4,)),)
    view_of(three).jumpTo(2, 6)
    three.click("markSliceButton")
    three.click("saveAnnotationButton")
    three.settle()
    label, annotated = file_of(three, "heart_01")
    assert label[6].sum() == 200 and annotated.slices == ((2, (4, 6)),)


def test_only_an_empty_slice_that_does_not_count_gets_a_proposal(three):
    panel = three.shell.panels["annotate"]
    paint(three, 4)
    panel.mark(2, [7])
    three.find("autoMarkCheckBox").setChecked(False)
    paint(three, 5)
    before = label_of(three)
    assert not offer(three, 4) and not offer(three, 7) and not offer(three, 5)
    assert (label_of(three) == before).all()


def test_proposals_that_nobody_touched_go_away(three):
    panel = three.shell.panels["annotate"]
    paint(three, 4)
    offer(three, 6)
    offer(three, 8)
    paint(three, 8)
    panel.proposals.withdraw()
    label = label_of(three)
    assert not label[6].any() and label[8].any() and label[4].sum() == 100
    assert marked(three) == {2: [4, 8]}
    box = three.find("directionComboBox")
    offer(three, 2)
    box.setCurrentIndex((box.currentIndex() + 1) % box.count())
    assert not label_of(three)[2].any()


def test_nothing_is_filled_in_while_correcting_it_would_be_more_work(three, tmp_path):
    panel = three.shell.panels["annotate"]
    live, view = panel.live, view_of(three)
    live.preview = preview_of(three)
    found = np.ones(view.size[::-1], np.uint8)
    assert show(live.preview, tmp_path / "p.npy", found)

    def come_to(index, pays):
        live.proposing.note({"proposals_pay": pays})
        view.jumpTo(2, index)
        live.proposing._wanted = ("heart_01", 2, index)
        live.proposing.fillWanted()
        return label_of(three)[index]

    assert not come_to(6, False).any() and panel.proposals.waiting() == {}
    assert "Draw slice 7" in three.status()
    assert (come_to(7, True) == 1).all() and panel.proposals.waiting() == {2: [7]}


def test_undo_of_an_earlier_stroke_does_not_mark_the_proposals_slice(three):
    """Undo takes the proposal away as well, since it came later; that slice is nobody's drawing."""
    paint(three, 4)
    offer(three, 6)
    three.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    assert marked(three) == {} and not label_of(three).any()


def test_what_is_accepted_without_a_change_can_be_undone_too(three):
    """The model found nothing on an empty slice, and that was accepted."""
    panel = three.shell.panels["annotate"]
    paint(three, 4)
    panel.editor.saveState()
    panel.slices.markDrawn(2, 7, panel.log.number(7))
    assert marked(three) == {2: [4, 7]}
    three.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    assert marked(three) == {2: [4]} and panel.log.dirty


def test_undo_keeps_the_marks_that_were_made_since(three):
    from MedSSLGui.scene import segments

    paint(three, 4)
    three.shell.panels["annotate"].mark(2, [7])
    three.shell.panels["annotate"].mark(2, [8], partly=True)
    three.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    view = view_of(three)
    assert marked(three) == {2: [7, 8]} and view.partly() == {2: [8]}
    assert segments.readTags(view.segmentation, view.names) == {2: [7, 8]}, "in a saved scene too"


def test_a_proposal_that_was_marked_and_is_undone_no_longer_counts(three):
    paint(three, 4)
    offer(three, 6)
    view_of(three).jumpTo(2, 6)
    three.click("markSliceButton")
    three.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    assert marked(three) == {}, "an empty slice would teach that nothing is there"


# -- partly drawn slices ------------------------------------------------------------------------------------------------


def scribble(user, index):
    """A slice marked as partly drawn, a class and background painted on it."""
    view_of(user).jumpTo(2, index)
    user.click("markPartlyButton")
    paint(user, index)
    mask = np.zeros(view_of(user).size[::-1], bool)
    mask[index, 40:45, 40:60] = True
    user.find("segmentEditor").paint("MedSSL_background", mask)
    wait_until(lambda: False, 0.45)


def check_scribbles(label, ignore):
    assert label[6, 20:30, 20:30].all() and (label[6] == 1).sum() == 100
    assert not label[6, 40:45, 40:60].any() and (label[6] == 0).sum() == 100
    assert (label[6] == ignore).sum() == label[6].size - 200
    assert not (np.delete(label, 6, 0) == ignore).any()


def test_a_partly_drawn_slice_leaves_the_rest_unknown_and_comes_back(three):
    import slicer

    paint(three, 3)
    scribble(three, 6)
    panel = three.shell.panels["annotate"]
    texts = [three.find("slicesList").item(row).text() for row in (0, 1)]
    assert texts == ["Axial slice 4", "Axial slice 7, partly"]
    three.click("saveAnnotationButton")
    three.settle()
    assert [entry[1] for entry in three.store.classes()] == ["structure", "b", "c"]
    ignore = three.store.project.ignore_value
    assert ignore == 255
    label, annotated = file_of(three, "heart_01")
    check_scribbles(label, ignore)
    assert annotated.slices == ((2, (3, 6)),) and annotated.partly == ((2, (6,)),)
    slicer.bench_clear_scene()
    wait_until(lambda: False, 0.1)
    three.click("loadCaseButton")
    three.settle()
    assert panel.view.annotated() == {2: [3, 6]} and panel.view.partly() == {2: [6]}
    paint(three, 9)
    three.click("saveAnnotationButton")
    three.settle()
    label, annotated = file_of(three, "heart_01")
    check_scribbles(label, ignore)
    assert annotated.partly == ((2, (6,)),)


def test_a_partly_drawn_slice_can_be_finished_or_unmarked(three):
    scribble(three, 6)
    panel = three.shell.panels["annotate"]
    three.click("markSliceButton")
    assert panel.view.annotated() == {2: [6]} and panel.view.partly() == {}
    three.click("saveAnnotationButton")
    three.settle()
    label, annotated = file_of(three, "heart_01")
    assert label.max() == 1 and annotated.partly == ()
    three.click("markPartlyButton")
    three.find("slicesList").setCurrentRow(0)
    three.click("removeSliceButton")
    assert panel.view.annotated() == {} and panel.view.partly() == {}


def test_painting_background_makes_a_slice_partly_drawn(three):
    from MedSSLGui.scene import brush

    panel = three.shell.panels["annotate"]
    brush.ensureBrush(panel.view.segmentation)
    paint(three, 5, segment="MedSSL_background")
    assert panel.view.annotated() == {2: [5]} and panel.view.partly() == {2: [5]}


def test_the_brush_for_background_is_no_class(three):
    from MedSSLGui.scene import brush, segments

    node = view_of(three).segmentation
    three.store.setClasses([*CLASSES, (4, "(background)", (0, 1, 0), "")])
    identifier = brush.ensureBrush(node)
    assert brush.ensureBrush(node) == identifier, "one is enough"
    segment = node.GetSegmentation().GetSegment(identifier)
    assert segments.classOf(segment, three.store.classes()) is None
    assert segments.classesWith(node, CLASSES) == CLASSES
    paint(three, 5, segment=identifier)
    assert not label_of(three).any()


def test_a_proposal_on_a_slice_that_is_marked_as_partly_drawn_is_nobodys_scribble(three):
    offer(three, 6)
    view_of(three).jumpTo(2, 6)
    three.click("markPartlyButton")
    assert not label_of(three).any()


# -- scores -------------------------------------------------------------------------------------------------------------


def score(index, changed, dice=0.5):
    return {"case": "a", "axis": 2, "index": index, "dice": dice, "changed": changed}


def test_the_sentence_says_what_the_last_slices_needed(application):
    from MedSSLGui.project.livescores import Scores

    scores = Scores()
    assert scores.sentence() == ""
    scores.add(score(0, 0.5))
    assert scores.sentence() == "On the first slice you changed 50 % of the voxels."
    for index, changed in enumerate((0.08, 0.04, 0.02, 0.06), 1):
        scores.add(score(index, changed))
    assert scores.sentence() == "Of the last 5 slices you changed 14 % of the voxels."
    scores.add(score(5, 0.02))
    assert scores.sentence() == (
        "Of the last 5 slices you changed 4 % of the voxels. Drawing more slices like these pays little now."
    )


def test_a_slice_keeps_the_score_from_before_it_was_learnt(application):
    from MedSSLGui.project.livescores import Scores

    scores = Scores()
    assert scores.add(score(0, 0.5, 0.4)) and not scores.add(score(0, 0.0, 1.0))
    assert scores.add(score(1, 0.5, 0.6)) and not scores.add({"event": "score", "case": "a"})
    assert scores.curves().series == {"dice": [(1, 0.4), (2, 0.6)]}
