"""What came out when the module was clicked in a real Slicer 5.2: the bench refuses each of it. See README.md here."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, wait_until
from test_annotate import drawn, marked, opened, paint  # noqa: F401 (fixtures)
from test_review import compare, reviewed  # noqa: F401 (fixture)

sys.path.append(str(ROOT / "MedSSL"))  # for tests that open no panel
CASES = ("heart_01", "heart_02")


def visible_segmentations():
    """(case, role) of MedSSL's segmentations that a slice view shows."""
    import slicer

    found = set()
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if node.GetAttribute("MedSSL.Role") and display and display.GetVisibility():
            found.add((node.GetAttribute("MedSSL.Case"), node.GetAttribute("MedSSL.Role")))
    return found


@pytest.fixture()
def two(user, cohort, tmp_path):
    """Two cases with an annotation and a prediction each."""
    from test_review import add_run

    from MedSSLLib.images.io import read_image

    paths = [cohort / "images" / f"{name}.nii.gz" for name in CASES]
    user.open_with(tmp_path / "p", paths)
    user.store.setClasses([(n, name, (1, n / 3, 0), "") for n, name in enumerate("abc", 1)])
    arrays = {}
    for name in CASES:
        label = cohort / "labels" / f"{name}.nii.gz"
        user.store.setLabel(name, label, None)
        arrays[name] = read_image(label).array
    add_run(user.store.folder, "run", arrays, paths[0])
    user.store.changed.emit()
    wait_until(lambda: False, 0.1)
    user.settle()
    return user


def show_result(user, name):
    table = user.find("resultTable")
    row = next(n for n in range(table.rowCount()) if table.item(n, 0).text() == name)
    table.clearSelection()
    table.selectRow(row)
    user.settle()


def show_case(user, name):
    combo = user.find("annotateCaseComboBox")
    combo.setCurrentIndex(combo.findText(name))
    user.click("loadCaseButton")
    user.settle()


# -- 1 a crash at exit --------------------------------------------------------------------------------------------------


def test_qt_signals_of_python_classes_are_refused(application):
    """PythonQt calls them after Python has ended: the application then crashes."""
    code = "import qt\nclass A:\n    s = qt.Signal(object)"
    with pytest.raises(AttributeError, match="crash"):
        exec(compile(code, "x", "exec"), {"__name__": "MedSSLGui.x"})  # noqa: S102


def test_a_slot_that_raises_does_not_keep_the_others_from_being_called(monkeypatch):
    from MedSSLGui.signals import Signal

    signal, calls, errors = Signal(), [], []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: errors.append(error))
    signal.connect(lambda: 1 / 0)
    signal.connect(lambda: calls.append(1))
    signal.emit()
    signal.disconnect(print)
    assert calls == [1] and isinstance(errors[0], ZeroDivisionError)


# -- 2 another patient's segmentation, 3 the brush ------------------------------------------------------------------------


def test_exactly_the_shown_case_is_visible(two):
    show_case(two, "heart_01")
    assert visible_segmentations() == {("heart_01", "annotation")}
    show_result(two, "heart_02")
    assert visible_segmentations() == {("heart_02", "prediction")}
    show_result(two, "heart_01")
    assert visible_segmentations() == {("heart_01", "prediction")}
    two.click("correctButton")
    two.settle()
    assert visible_segmentations() == {("heart_01", "annotation")}, "it would hide what is drawn"
    show_case(two, "heart_02")
    assert visible_segmentations() == {("heart_02", "annotation")}


def test_an_opened_panel_shows_what_it_acts_on(two):
    """The editor edits heart_01 still: its strokes must not go on unseen over heart_02's image."""
    two.shell.open("annotate")
    show_case(two, "heart_01")
    two.shell.open("review")
    show_result(two, "heart_02")
    two.shell.open("annotate")
    assert visible_segmentations() == {("heart_01", "annotation")}
    assert background() == "heart_01"
    two.shell.open("review")
    assert visible_segmentations() == {("heart_02", "prediction")}
    assert background() == "heart_02"
    two.click("correctButton")
    two.settle()
    assert two.shell.panels["annotate"].view.name == "heart_02"
    assert visible_segmentations() == {("heart_02", "annotation")}


def background():
    """Name of the volume in the Red view."""
    import slicer

    logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
    identifier = logic.GetSliceCompositeNode().GetBackgroundVolumeID()
    return slicer.mrmlScene.GetNodeByID(identifier).GetName()


@pytest.mark.parametrize("panel", ["review", "annotate"])
def test_a_volume_that_is_no_case_and_the_cases_do_not_overlie(two, cohort, panel):
    """Its segmentation is shown alone, and never under the hand that draws on a case meanwhile."""
    import types

    import slicer

    guest = slicer.util.loadVolume(str(cohort / "images" / "heart_03.nii.gz"), {"name": "guest"})
    two.shell.open("annotate")
    show_case(two, "heart_01")
    two.shell.open(panel)
    label = cohort / "labels" / "heart_03.nii.gz"
    file = types.SimpleNamespace(result=lambda: label, remove=lambda: None)
    job = types.SimpleNamespace(facts={"node": guest, "file": file})
    two.shell.panels["review"].volumes.take(types.SimpleNamespace(job=job, state="done"))
    two.settle()
    display = slicer.util.getNode("guest segmentation").GetDisplayNode()
    shown = {("heart_01", "annotation")}
    if panel == "review":
        assert display.GetVisibility() and background() == "guest"
        assert visible_segmentations() - shown and not visible_segmentations() & shown
    else:
        assert not display.GetVisibility() and background() == "heart_01"
        assert visible_segmentations() == shown
    show_case(two, "heart_02")
    assert visible_segmentations() == {("heart_02", "annotation")}
    assert not display.GetVisibility()


def test_the_cases_of_another_project_are_hidden(two, tmp_path):
    show_case(two, "heart_01")
    two.open_project(tmp_path / "other")
    assert visible_segmentations() == set()


def test_no_effect_is_active_outside_annotate(two):
    two.shell.open("annotate")
    show_case(two, "heart_01")
    editor = two.find("segmentEditor")
    for leave in (lambda: two.shell.open("review"), two.loaded.widget.exit):
        editor.setActiveEffectByName("Paint")
        leave()
        assert editor.activeEffectName() == ""
    two.loaded.widget.enter()
    two.shell.open("annotate")
    editor.setActiveEffectByName("Paint")
    show_case(two, "heart_02")
    assert editor.activeEffectName() == "", "the brush was chosen for another case"


def test_a_click_on_the_selected_result_shows_it_again(two):
    """As after Segment this volume: the row is selected still, and something else is in view."""
    from MedSSLGui.scene import nodes

    two.shell.open("review")
    show_result(two, "heart_02")
    nodes.showOnly(None)
    table = two.find("resultTable")
    table.cellClicked.emit(table.currentRow(), 0)
    assert visible_segmentations() == {("heart_02", "prediction")}


def test_what_comes_late_leaves_the_open_panel_alone(two):
    """A result that was selected before another panel was opened; it is shown when Review is opened again."""
    two.shell.open("annotate")
    show_case(two, "heart_01")
    two.shell.open("review")
    table = two.find("resultTable")
    row = next(n for n in range(table.rowCount()) if table.item(n, 0).text() == "heart_02")
    table.selectRow(row)
    two.shell.open("annotate")
    two.settle()
    assert visible_segmentations() == {("heart_01", "annotation")} and background() == "heart_01"
    two.shell.open("review")
    assert visible_segmentations() == {("heart_02", "prediction")} and background() == "heart_02"


def test_no_key_draws_or_marks_outside_annotate(two):
    """The editor's Space and 1 to 9 choose a brush, Shift+M marks a slice: of a case that is not in view."""
    editor = two.find("segmentEditor")

    def keys():
        return editor.shortcuts_installed, bool(two.shell._shortcuts)

    for name, there in (("annotate", True), ("review", False), ("annotate", True)):
        two.shell.open(name)
        assert keys() == (there, there), name
    two.loaded.widget.exit()
    assert keys() == (False, False)
    two.loaded.widget.enter()
    assert keys() == (True, True)


# -- 4 undo ---------------------------------------------------------------------------------------------------------------


def test_undo_takes_the_mark_of_the_slice_back(drawn):  # noqa: F811
    """With two classes: the history gives back the segment that was drawn, and the other one keeps its record."""
    drawn.click("addClassButton")
    wait_until(lambda: False, 0.1)
    paint(drawn, 4)
    paint(drawn, 7)
    assert marked(drawn) == {2: [4, 7]}
    drawn.find("segmentEditor").undo()
    wait_until(lambda: False, 0.5)
    assert marked(drawn) == {2: [4]}, "slice 7 is empty: it would teach background"
    drawn.find("segmentEditor").redo()
    wait_until(lambda: False, 0.5)
    assert marked(drawn) == {2: [4, 7]}


def test_a_drawing_that_is_taken_back_by_hand_is_not_marked(drawn):  # noqa: F811
    paint(drawn, 4)
    assert marked(drawn) == {2: [4]}
    paint(drawn, 4, erase=True)
    assert marked(drawn) == {2: []} or marked(drawn) == {}
    assert "no longer counts" in drawn.status()


def test_undo_leaves_what_was_marked_by_hand(drawn):  # noqa: F811
    panel = drawn.shell.panels["annotate"]
    panel.view.jumpTo(2, 4)
    drawn.click("markSliceButton")
    paint(drawn, 4)
    drawn.find("segmentEditor").undo()
    wait_until(lambda: False, 0.5)
    assert marked(drawn) == {2: [4]}, "an empty slice can be a finding"


# -- 5 side by side ---------------------------------------------------------------------------------------------------------


def views():
    import slicer

    manager = slicer.app.layoutManager()
    nodes = [manager.sliceWidget(name).mrmlSliceNode() for name in manager.sliceViewNames()]
    state = [(n.GetOrientation(), n.GetFieldOfView(), round(n.GetSliceOffset(), 3)) for n in nodes]
    return manager.layout, state


@pytest.mark.parametrize("end", ["nothing", "another case", "another panel"])
def test_side_by_side_is_undone(reviewed, end):  # noqa: F811
    reviewed.shell.open("review")
    before = views()
    compare(reviewed, "first", 1)
    layout, state = views()
    assert layout == 29 and state[0] == state[1], "the same orientation, place and zoom"
    if end == "nothing":
        compare(reviewed, "nothing", 1)
    elif end == "another case":
        show_result(reviewed, "heart_01")
    else:
        reviewed.shell.open("annotate")
    assert views() == before


@pytest.mark.parametrize("mode", [0, 1], ids=["difference", "side by side"])
def test_a_comparison_that_is_left_early_changes_nothing(reviewed, mode):  # noqa: F811
    from MedSSLGui.scene import nodes

    reviewed.shell.open("review")
    before = views(), visible_segmentations()
    combo = reviewed.find("compareComboBox")
    combo.setCurrentIndex(combo.findText("first"))
    reviewed.find("compareModeComboBox").setCurrentIndex(mode)
    reviewed.click("compareButton")
    reviewed.shell.open("train")
    reviewed.settle()
    assert (views(), visible_segmentations()) == before
    assert all(nodes.findNode("heart_01", role) is None for role in ("comparison", "difference"))
    assert "differ" not in reviewed.status()


def test_views_are_found_by_what_they_show(drawn):  # noqa: F811
    """The Red view is turned: slices of the volume are then those of the Yellow one."""
    import slicer

    view = drawn.shell.panels["annotate"].view
    red, yellow = (slicer.bench_views[name].node for name in ("Red", "Yellow"))
    before = red.GetOrientation(), yellow.GetOrientation()
    red.SetOrientation("Sagittal")
    yellow.SetOrientation("Axial")
    assert view.viewNode(2) is yellow and view.viewNode(0) is red
    view.jumpTo(2, 3)
    assert view.shownSlice(2) == 3
    red.SetOrientation(before[0])
    yellow.SetOrientation(before[1])


# -- 6 messages ---------------------------------------------------------------------------------------------------------------


def finished(user, kind, events, tells=True):
    """A job of the queue that says these events."""
    from MedSSLGui.jobs.runner import Job

    code = "import json\n" + "".join(f"print({event!r})\n" for event in events)
    facts = {"kind": kind, "project": str(user.store.folder), "tells": tells}
    user.queue.add(Job("job", ["-c", code], facts))
    user.finish_jobs(30)


def test_the_sentence_of_suggest_stays(drawn):  # noqa: F811
    import json

    slices = [{"case": "heart_02", "axis": 2, "index": 3}]
    started = []
    drawn.shell.session.startJob = lambda *args, **facts: started.append(facts)
    drawn.shell.panels["annotate"].suggest()
    assert started == [{"kind": "suggest", "tells": True}]
    finished(drawn, "suggest", [json.dumps({"event": "done", "slices": slices})])
    assert "Show heart_02 to begin" in drawn.status(), "done would have talked over it"


def test_next_leaves_out_what_is_finished(drawn):  # noqa: F811
    panel = drawn.shell.panels["annotate"]
    assert panel.slices.suggested == [1, 6, 10]
    panel.mark(2, [1, 6])
    panel.view.jumpTo(2, 0)
    drawn.click("nextSliceButton")
    assert panel.view.shownSlice(2) == 10
    panel.mark(2, [10])
    drawn.click("nextSliceButton")
    assert "All suggested slices of heart_01 are annotated" in drawn.status()


def test_saving_says_what_was_saved(drawn):  # noqa: F811
    paint(drawn, 4)
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert drawn.status() == "heart_01 is saved, with 1 annotated slices."
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert "nothing has changed" in drawn.status()


def test_a_report_says_at_once_that_it_is_being_written(two):
    two.find("runsTable").selectRow(0)
    two.click("reportButton")
    assert two.status().startswith("Writing the report of run")
    two.shell.session.helpers.drop()


def test_messages_are_in_view_in_the_status_bar_and_in_the_log(user):
    import slicer
    from PySide6 import QtCore

    user.loaded.panel.resize(400, 700)
    user.shell.open("review")
    user.shell.session.say("a word", "done")
    wait_until(lambda: False, 0.1)
    area = user.find("sectionsArea")
    area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())
    label = user.find("statusLabel")
    top = label.mapTo(user.loaded.panel, QtCore.QPoint(0, 0)).y()
    assert 0 <= top < 60 and label.isVisibleTo(user.loaded.panel), "however far one scrolls"
    assert slicer.bench_status_bar[-1] == "a word"
    assert "a word" in user.find("logEdit").toPlainText()


# -- 7 the newest model, reload, a closed scene ---------------------------------------------------------------------------------


def test_review_takes_the_newest_model(two, cohort):
    from test_review import add_run

    assert two.find("modelComboBox").currentText() == "run"
    add_run(two.store.folder, "later", {}, cohort / "images" / "heart_01.nii.gz")
    two.store.changed.emit()
    wait_until(lambda: False, 0.1)
    assert two.find("modelComboBox").currentText() == "later"
    two.find("modelComboBox").setCurrentIndex(1)
    two.store.changed.emit()
    wait_until(lambda: False, 0.1)
    assert two.find("modelComboBox").currentText() == "run", "what was chosen stays"
    two.settle()


def test_a_reload_opens_the_project_again(user, tmp_path):
    """The path line is filled from its history, so it tells of no change."""
    user.open_project(tmp_path / "p")
    user.loaded.reload()
    assert user.store.isOpen() and user.store.folder == tmp_path / "p"


def test_the_old_widget_may_be_entered_after_a_reload(user):
    old = user.loaded.widget
    user.loaded.reload()
    old.enter()


def test_a_scene_closed_while_the_module_is_shown(user, tmp_path):
    import slicer

    user.open_project(tmp_path / "p")
    slicer.bench_clear_scene()
    user.find("budgetSpinBox").setValue(7)
    parameters = user.shell.session.parameters
    assert parameters.parameterNode.GetScene() is slicer.mrmlScene and parameters.budget == 7
    assert parameters.projectPath == str(tmp_path / "p")


# -- 9 batch --------------------------------------------------------------------------------------------------------------------


def batch(script, *arguments):
    """A script as the application runs it, with what it needs of `slicer`."""
    code = (
        "import sys, types, runpy\n"
        "slicer = types.ModuleType('slicer'); slicer.app = types.SimpleNamespace(slicerHome='')\n"
        "slicer.util = types.SimpleNamespace(exit=sys.exit); sys.modules['slicer'] = slicer\n"
        "qt = types.ModuleType('qt'); sys.modules['qt'] = qt\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    path = ROOT / "MedSSL" / "Scripts" / script
    return subprocess.run(
        [sys.executable, "-c", code, str(path), *arguments],
        capture_output=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": ""},
    )


@pytest.mark.parametrize("script", ["medssl_batch.py", "pipeline_folder.py", "segment_scene.py"])
def test_wrong_arguments_are_explained(application, script):
    done = batch(script)
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 2 and "Usage" in text and script in text
    assert "unpack" not in text and "Traceback" not in text


def test_batch_output_is_plain_ascii(application, tmp_path):
    """Slicer's log reads bytes as Latin-1."""
    done = batch("medssl_batch.py", "status", str(tmp_path / "Prüfung"))
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 2 and "Pr\\xfcfung" in text


def test_volumes_that_were_cases_are_segmented_too(application):
    import slicer
    from MedSSLGui.scene import nodes

    names = {"a case": "image", "no case": None, "a map": "uncertainty"}
    made = []
    for name, role in names.items():
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        if role:
            nodes.mark(node, "c", role)
        made.append(node)
    assert [node.GetName() for node in nodes.scalarVolumes()] == ["a case", "no case"]
    assert [node.GetName() for node in nodes.addableVolumes()] == ["no case"]
    for node in made:
        slicer.mrmlScene.RemoveNode(node)


# -- 10 other versions ------------------------------------------------------------------------------------------------------------


def test_nothing_deprecated_is_touched_at_opening(user):
    import slicer

    assert slicer.bench_deprecations == []


def test_the_event_of_an_older_slicer(application, monkeypatch):
    import types

    import slicer
    from MedSSLGui.scene import drawinglog

    older = types.SimpleNamespace(SourceRepresentationModified=None, MasterRepresentationModified=7)
    monkeypatch.setattr(slicer, "vtkSegmentation", older)
    assert drawinglog.representationEvent() == 7


# -- 11 colours, bars, buttons, numbers ---------------------------------------------------------------------------------------------


def contrast(first, second):
    """WCAG 2 contrast of two colours."""

    def luminance(colour):
        parts = []
        for part in (colour.redF(), colour.greenF(), colour.blueF()):
            parts.append(part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    one, other = sorted((luminance(first), luminance(second)), reverse=True)
    return (one + 0.05) / (other + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_messages_can_be_read(user, dark):
    from PySide6 import QtGui
    from slicer_bench import pictures

    pictures.set_theme(dark)
    wait_until(lambda: False, 0.1)
    label = user.find("statusLabel")
    background = label.palette().color(QtGui.QPalette.ColorRole.Window)
    for kind in ("done", "warning", "error"):
        user.shell.session.say("words", kind)
        colour = QtGui.QColor(label.styleSheet().partition("color: ")[2])
        assert colour.isValid() and contrast(colour, background) >= 4.5, kind
    pictures.set_theme(False)


def test_idle_bars_are_not_shown(user):
    for name in ("progressBar", "cancelButton", "annotationProgressBar"):
        assert not user.find(name).isVisibleTo(user.loaded.panel), name


def test_there_is_nothing_to_train_on(user, cohort, tmp_path):
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(cohort / "images" / "heart_01.nii.gz")])
    user.settle()
    assert not user.find("fineTuneButton").isEnabled()


def test_slices_count_from_one_and_the_bar_counts_what_was_suggested(drawn):  # noqa: F811
    panel = drawn.shell.panels["annotate"]
    panel.mark(2, [0, 1])
    texts = [drawn.find("slicesList").item(n).text() for n in range(2)]
    assert texts == ["Axial slice 1", "Axial slice 2"]
    assert drawn.find("annotationProgressBar").text() == ("1 of 3 suggested slices, 2 annotated"), (
        "0 was drawn, and was not suggested"
    )


def test_tooltips_say_what_was_measured(user):
    """README: Mixup loses on the heart; Mean Teacher gains a little there, not surely."""
    assert "worse" in user.find("mixupSpinBox").toolTip()
    assert "not surely" in user.find("semiComboBox").toolTip()
    from MedSSLGui.project import words

    text = dict((key, text) for key, _name, text in words.methods())["restoration"]
    assert "robust" not in text


def test_the_classes_are_shown_once(drawn):  # noqa: F811
    drawn.shell.open("annotate")
    table, editor = drawn.find("classTable"), drawn.find("segmentEditor")
    assert not table.isVisibleTo(drawn.loaded.panel) and editor.isVisibleTo(drawn.loaded.panel)
    drawn.shell.panels["annotate"].onSceneClosing()
    assert table.isVisibleTo(drawn.loaded.panel) and not editor.isVisibleTo(drawn.loaded.panel)


def test_a_name_given_in_the_editor_is_the_projects(drawn):  # noqa: F811
    segmentation = drawn.shell.panels["annotate"].view.segmentation
    segment = segmentation.GetSegmentation().GetNthSegment(0)
    segment.SetName("atrium")
    segment.SetColor(0.0, 0.5, 1.0)
    drawn.click("saveAnnotationButton")
    drawn.settle()
    assert drawn.store.classes()[0][1:3] == ("atrium", (0.0, 0.5, 1.0))
    assert segment.GetName() == "atrium"


# -- besides ------------------------------------------------------------------------------------------------------------------------


def test_views_are_not_drawn_while_a_segmentation_is_filled(two):
    """Its display is off and its events are held until all classes are in."""
    import slicer
    from MedSSLGui.scene import segments

    show_case(two, "heart_01")
    view = two.shell.panels["annotate"].view
    display = view.segmentation.GetDisplayNode()
    label = np.ones(view.size[::-1], np.uint8)
    steps = segments.fillSteps(view.segmentation, view.image, label, two.store.classes(), {})
    seen = []
    view.segmentation.AddObserver("ModifiedEvent", lambda caller, event: seen.append(event))
    next(steps)
    assert not display.GetVisibility()
    for _step in steps:
        assert not display.GetVisibility()
    assert display.GetVisibility() and slicer.app.paused == 0
    assert len(seen) <= 3


def test_a_dicom_folder_is_loaded_by_the_plugins(user, tmp_path, monkeypatch):
    import types

    import slicer
    from MedSSLGui.scene import images
    from test_data import add_volume

    asked = []

    class Database:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def patients(self):
            return ["7"]

    def load(patient):
        asked.append(patient)
        return [add_volume("5: t1").GetID()]

    utils = types.SimpleNamespace(
        TemporaryDICOMDatabase=Database,
        importDicom=lambda folder, database: asked.append(folder),
        loadPatientByUID=load,
    )
    module = types.ModuleType("DICOMLib")
    module.DICOMUtils = utils
    monkeypatch.setitem(sys.modules, "DICOMLib", module)
    node = images.dicomVolume(str(tmp_path))
    assert node.GetName() == "5: t1" and asked == [str(tmp_path), "7"]
    utils.loadPatientByUID = lambda patient: []
    with pytest.raises(images.SceneError, match="no series"):
        images.dicomVolume(str(tmp_path))
    slicer.mrmlScene.RemoveNode(node)


def test_the_curves_are_in_slicers_own_plot_widget_where_there_is_one(application, monkeypatch):
    import slicer
    import vtk
    from MedSSLGui.panels import curveview
    from MedSSLGui.project.curves import Curves
    from PySide6 import QtWidgets

    class Controller(QtWidgets.QWidget):
        """Above the plot; its selector takes any chart that comes into the scene, also those of others."""

        def setMRMLScene(self, scene):
            self.scene = scene

    class qMRMLPlotWidget(QtWidgets.QWidget):
        def __init__(self, parent=None):
            super().__init__(parent)
            self.controller = Controller(self)

        def plotController(self):
            return self.controller

        def setMRMLScene(self, scene):
            self.scene = self.controller.scene = scene

        def setMRMLPlotViewNode(self, node):
            self.node = node

    monkeypatch.setattr(slicer, "qMRMLPlotWidget", qMRMLPlotWidget, raising=False)
    view = curveview.makeCurveView(None, curveview.runWords())
    assert isinstance(view, curveview.PlotView)
    controller = view.widget.controller
    assert view.widget.scene is slicer.mrmlScene and controller.scene is None
    assert not controller.isVisibleTo(view.widget), "no room for it"
    parents = []

    def added(caller, event, node):
        if node.IsA("vtkMRMLPlotViewNode"):
            parent = node.GetParentLayoutNode()
            parents.append(parent.GetClassName() if parent else None)

    added.CallDataType = vtk.VTK_OBJECT
    tag = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, added)
    curves = Curves()
    for step in (1, 2, 3):
        curves.add({"event": "progress", "step": step, "losses": {"loss": 1 / step}})
    view.show(curves, "run")
    chart = slicer.mrmlScene.GetNodeByID(view.widget.node.GetPlotChartNodeID())
    assert chart.GetNumberOfPlotSeriesNodes() == 1 and not chart.GetSaveWithScene()
    assert parents == ["vtkMRMLScriptedModuleNode"], "the layout would make a view of its own"
    view.show(curves, "run")
    assert len(slicer.util.getNodesByClass("vtkMRMLPlotChartNode")) == 1, "no second one"
    slicer.mrmlScene.RemoveObserver(tag)
    view.cleanup()
    slicer.bench_clear_scene()
