"""The project and its volumes: opening quickly, bad input, transforms, many cases, reload, two Slicers, no torch."""

import shutil
import sys
import time

import numpy as np
from conftest import ROOT, wait_until


def add_volume(name, shape=(6, 8, 10), spacing=(1.0, 1.0, 3.0)):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    array = np.random.default_rng(0).normal(100, 20, shape).astype(np.int16)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetSpacing(*spacing)
    node.SetOrigin(5.0, -7.0, 11.0)
    node.CreateDefaultDisplayNodes()
    return node


def read(path):
    import SimpleITK as sitk

    return sitk.ReadImage(str(path))


def test_opens_fast_and_light(application):
    import slicer_bench

    loaded = slicer_bench.load_module(ROOT / "MedSSL" / "MedSSL.py")
    times = []
    for _ in range(3):
        start = time.process_time()
        loaded.open()
        times.append(time.process_time() - start)
        loaded.close()
    assert min(times) <= 0.5
    assert "torch" not in sys.modules


def test_every_panel_says_what_is_missing(user):
    assert "Choose a project folder" in user.status()
    for name in ("dataHint", "pretrainHint", "annotateHint", "trainHint", "reviewHint"):
        assert user.find(name).text()
    assert (
        not user.find("pretrainButton").isEnabled() and not user.find("predictButton").isEnabled()
    )


def test_a_volume_of_the_scene_keeps_voxels_and_geometry(user, tmp_path):
    import slicer

    node = add_volume("brain: a/b", spacing=(0.7, 0.9, 3.0))
    user.open_project(tmp_path / "p")
    user.click("addVolumesButton")
    user.settle()
    case = user.store.cases[0]
    assert case.name == "brain_ a_b"
    image = read(case.images[0])
    import SimpleITK as sitk

    assert (sitk.GetArrayFromImage(image) == slicer.util.arrayFromVolume(node)).all()
    assert np.allclose(image.GetSpacing(), (0.7, 0.9, 3.0)) and np.allclose(
        image.GetOrigin(), (-5.0, 7.0, 11.0)
    )
    user.click("addVolumesButton")
    assert "No loaded volume is left" in user.status()


def move(node):
    """Put a node under a linear transform, 40 mm to the right."""
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 40.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())


def test_a_linear_transform_is_kept_in_the_file(user, tmp_path):
    move(add_volume("moved"))
    user.open_project(tmp_path / "p")
    user.click("addVolumesButton")
    user.settle()
    assert np.allclose(read(user.store.cases[0].images[0]).GetOrigin(), (-45.0, 7.0, 11.0))


def test_volumes_that_cannot_be_used_are_named_and_the_others_go_on(user, tmp_path):
    import slicer
    import vtk

    add_volume("good")
    warped = add_volume("warped")
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    grid.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    warped.SetAndObserveTransformNodeID(grid.GetID())
    add_volume("flat", shape=(1, 8, 10))
    user.open_project(tmp_path / "p")
    user.click("addVolumesButton")
    user.settle()
    assert [case.name for case in user.store.cases] == ["good"]
    text = " ".join(message for _kind, message in user.messages)
    assert (
        "warped is under a transform that bends it" in text
        and "flat is not a scalar 3D volume" in text
    )


def test_a_segmentation_becomes_the_label_with_its_annotated_slices(user, tmp_path):
    import slicer

    node = add_volume("a", shape=(6, 20, 20))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    masks = {"liver": np.s_[2, 4:9, 4:9], "tumour": np.s_[2, 8:12, 8:12]}
    for name, where in masks.items():
        identifier = segmentation.GetSegmentation().AddEmptySegment(name, name)
        mask = np.zeros((6, 20, 20), np.uint8)
        mask[where] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, identifier, node)
        segmentation.GetSegmentation().GetSegment(identifier).SetTag(
            "MedSSL.AnnotatedSlices", "axial:2,3"
        )
    user.open_project(tmp_path / "p")
    user.click("addVolumesButton")
    user.settle()
    case = user.store.cases[0]
    assert case.role == "labelled" and case.annotated.slices == ((2, (2, 3)),)
    import SimpleITK as sitk

    label = sitk.GetArrayFromImage(read(case.label))
    assert [entry[1] for entry in user.store.classes()] == ["liver", "tumour"]
    expected = np.ones((5, 5), np.uint8)
    expected[4, 4] = 2
    assert (label[2, 4:9, 4:9] == expected).all() and (label > 0).sum() == 25 + 16 - 1
    assert any("overlap in 1 voxels" in text for _kind, text in user.messages)


def test_a_read_only_folder_is_told(user, tmp_path, monkeypatch):
    import MedSSLLib.project.project

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(MedSSLLib.project.project, "write_manifest", refuse)
    user.find("projectPathEdit").setCurrentPath(str(tmp_path / "p"))
    user.click("openProjectButton")
    assert not user.store.isOpen() and "Permission denied" in user.status()


def test_a_damaged_project_is_told(user, tmp_path):
    (tmp_path / "medssl.json").write_text("{broken")
    user.find("projectPathEdit").setCurrentPath(str(tmp_path))
    assert not user.store.isOpen() and "not valid JSON" in user.status()


def test_a_second_slicer_on_the_same_project_loses_nothing(user, cohort, tmp_path):
    from MedSSLGui.project.store import ProjectStore

    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(cohort / "images")])
    user.settle()
    other = ProjectStore()
    other.open(user.store.folder)
    other.setMetadata("heart_01", "phase", "systole")
    user.store.setMetadata("heart_02", "phase", "diastole")
    assert other.refresh()
    for store in (other, user.store):
        assert [store.case(f"heart_0{n}").metadata for n in (1, 2)] == [
            {"phase": "systole"},
            {"phase": "diastole"},
        ]


def test_files_that_are_no_images_are_told(user, tmp_path):
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(b"not an image")
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(bad)])
    user.settle()
    assert not user.store.cases and "broken" in user.status()


def test_a_folder_with_one_bad_file_adds_the_others_and_names_it(user, cohort, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(cohort / "images", folder)
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    good = len(list((cohort / "images").iterdir()))
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(folder)])
    user.settle()
    assert len(user.store.cases) == good
    assert f"{good} volumes added" in user.status() and "broken" in user.status()


def test_metadata_is_edited_in_the_table_and_read_from_csv(user, cohort, tmp_path):
    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(cohort / "images")])
    user.settle()
    table = tmp_path / "meta.csv"
    table.write_text("case,patient\nheart_01,P1\nheart_02,P1\nother,P9\n")
    user.shell.panels["data"].importMetadata(str(table))
    assert "other" in user.status() and user.store.case("heart_02").metadata == {"patient": "P1"}
    user.shell.panels["data"].table.addColumn("phase")
    widget = user.find("caseTable")
    wait_until(lambda: widget.item(0, 5) is not None, 5)
    widget.item(0, 5).setText("systole")
    assert user.store.case("heart_01").metadata == {"patient": "P1", "phase": "systole"}
    widget.selectRow(5)
    user.click("testRoleButton")
    assert user.store.case("heart_06").role == "test"


def test_two_hundred_cases_stay_responsive(user, tmp_path, monkeypatch):
    from PySide6 import QtCore

    from MedSSLLib.project.manifest import Case, Manifest, write_manifest

    cases = {
        f"case_{n:03d}": Case(
            f"case_{n:03d}", (tmp_path / f"{n}.nii.gz",), metadata={"patient": f"P{n}"}
        )
        for n in range(200)
    }
    (tmp_path / "p").mkdir()
    write_manifest(tmp_path / "p", Manifest("p", cases=cases))
    monkeypatch.setattr(type(user.shell.session), "readFacts", lambda self, cases=(): None)
    gaps, last = [], [time.process_time()]

    def tick():
        now = time.process_time()
        gaps.append(now - last[0])
        last[0] = now

    timer = QtCore.QTimer()
    timer.timeout.connect(tick)
    user.open_project(tmp_path / "p")
    timer.start(0)
    table = user.find("caseTable")
    assert wait_until(lambda: table.item(199, 1) is not None, 30)
    for n in range(200):
        user.store.setFact(
            {
                "case": f"case_{n:03d}",
                "size": [10, 10, 10],
                "spacing": [1, 1, 3],
                "thumbnail": "",
                "problem": "",
            }
        )
        wait_until(lambda: False, 0.001)
    wait_until(lambda: False, 0.5)
    timer.stop()
    assert table.rowCount() == 200 and table.item(150, 5).text() == "10 × 10 × 10"
    print(f"longest block with 200 cases: {1000 * max(gaps):.0f} ms of processor time")
    assert sorted(gaps)[int(0.95 * len(gaps))] < 0.05


def test_a_reload_finds_the_running_job_again(user):
    from MedSSLGui.jobs.runner import Job

    queue = user.queue
    queue.add(Job("long", ["-c", "import time; time.sleep(60)"]))
    wait_until(lambda: queue.runner.isRunning(), 5)
    user.loaded.reload()
    assert user.queue is queue and queue.current.title == "long"
    assert user.find("cancelButton").isEnabled()
    user.click("cancelButton")
    assert wait_until(lambda: queue.current is None, 20)
    assert "cancelled" in user.status()


def test_missing_packages_are_told_before_a_job_starts(user, cohort, tmp_path, monkeypatch):
    import MedSSLGui.session

    user.open_project(tmp_path / "p")
    user.shell.panels["data"].addPaths([str(cohort / "images")])
    user.settle()
    monkeypatch.setattr(MedSSLGui.session, "seemsMissing", lambda: ["torch"])
    installer = user.shell.session.installer
    monkeypatch.setattr(
        type(installer), "verify", lambda self: self.checked.emit("torch is not installed")
    )
    user.click("pretrainButton")
    assert user.queue.current is None and "torch is not installed" in user.status()
    assert user.find("installFrame").isVisibleTo(user.loaded.panel)


def test_installing_asks_first_and_can_be_refused(user, monkeypatch):
    import slicer

    called = []
    monkeypatch.setattr(
        type(user.shell.session.installer), "install", lambda self, wheels: called.append(wheels)
    )
    monkeypatch.setattr(slicer, "bench_answer", False)
    user.find("installButton").click()
    assert (
        not called
        and "GiB" in slicer.bench_questions[-1]
        and "Nothing was installed" in user.status()
    )


def test_the_module_checks_itself(application):
    import slicer_bench

    slicer_bench.load_module(ROOT / "MedSSL" / "MedSSL.py")
    from MedSSLGui.selftest import run

    assert run() == []


def test_presets_say_how_long_each_button_takes(user):
    def texts(name):
        combo = user.find(name)
        return [combo.itemText(index) for index in range(combo.count())][1:3]

    assert texts("pretrainPresetComboBox") == ["Standard: 15 min", "Overnight: 2 h"]
    assert texts("trainPresetComboBox") == [
        "Standard: 10 min, self-training 20",
        "Overnight: 1 h, self-training 7",
    ]
    estimate = user.find("estimateLabel")
    assert estimate.text().startswith("Time: 15 min, then it ends by itself.")
    user.find("pretrainPresetComboBox").setCurrentIndex(2)
    assert estimate.text().startswith("Time: 120 min,")
    user.find("pretrainMinutesSpinBox").setValue(3)
    assert estimate.text().startswith("Time: 3 min,")
