"""Voxel files read and written in steps, against SimpleITK and against Slicer's own storage nodes."""

import gzip
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "MedSSL"))

OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)


def run(steps):
    count = 0
    while True:
        try:
            next(steps)
            count += 1
        except StopIteration as finished:
            return finished.value, count


def image(kind, direction=OBLIQUE, shape=(5, 7, 9)):
    import SimpleITK as sitk

    array = np.random.default_rng(1).uniform(0, 90, shape).astype(kind)
    result = sitk.GetImageFromArray(array)
    result.SetSpacing((0.7, 1.3, 4.0))
    result.SetOrigin((-11.0, 22.5, 7.0))
    result.SetDirection(direction)
    return result, array


def to_ras(result):
    """The 4x4 that SimpleITK means: LPS points of the three unit steps, turned to RAS."""
    matrix = np.eye(4)
    origin = np.array(result.TransformIndexToPhysicalPoint((0, 0, 0)))
    for axis in range(3):
        step = [0, 0, 0]
        step[axis] = 1
        matrix[:3, axis] = np.array(result.TransformIndexToPhysicalPoint(step)) - origin
    matrix[:3, 3] = origin
    return np.diag([-1, -1, 1, 1]) @ matrix


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(
    "direction",
    [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE, (-1, 0, 0, 0, 0, 1, 0, 1, 0)],
    ids=["straight", "oblique", "flipped"],
)
def test_files_of_the_library_are_read_as_simpleitk_wrote_them(
    application, tmp_path, extension, kind, direction
):
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    source, array = image(kind, direction)
    path = tmp_path / f"a{extension}"
    sitk.WriteImage(source, str(path), useCompression=True)
    read, _count = run(readSteps(path))
    assert read is not None, "the quick way was not taken"
    assert read[0].dtype.kind == np.dtype(kind).kind and (read[0] == array).all()
    assert np.allclose(read[1], to_ras(source), atol=1e-4)


def test_large_files_are_read_in_many_steps(application, tmp_path):
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    source, array = image(np.int16, shape=(40, 256, 256))
    for name in ("a.nii.gz", "a.nii", "a.nrrd"):
        sitk.WriteImage(source, str(tmp_path / name))
        read, count = run(readSteps(tmp_path / name))
        assert (read[0] == array).all() and count >= array.nbytes / 2**20


def test_a_gzip_file_of_several_members(application, tmp_path):
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    source, array = image(np.uint8, shape=(20, 30, 40))
    sitk.WriteImage(source, str(tmp_path / "a.nii"))
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    assert (run(readSteps(tmp_path / "a.nii.gz"))[0][0] == array).all()


def patched(data, offset, value):
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:-5],  # cut short
        lambda d: patched(d, 112, np.float32(2).tobytes()),  # scaled values
        lambda d: patched(d, 116, np.float32(9).tobytes()),  # shifted values
        lambda d: patched(d, 252, np.int16(0).tobytes()),  # no quaternion form
        lambda d: patched(d, 254, np.int16(0).tobytes()),  # no matrix form
        lambda d: patched(d, 280, np.float32(5).tobytes()),  # the two forms disagree
        lambda d: patched(d, 344, b"ni1\0"),  # voxels in another file
        lambda d: patched(d, 70, np.int16(128).tobytes()),  # colours
    ],
    ids=["short", "scaled", "shifted", "no-qform", "no-sform", "disagree", "two-files", "colour"],
)
def test_unusual_files_are_left_to_slicer(application, tmp_path, change):
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    sitk.WriteImage(image(np.uint8)[0], str(tmp_path / "a.nii"))
    data = (tmp_path / "a.nii").read_bytes()
    assert run(readSteps(tmp_path / "a.nii"))[0] is not None
    (tmp_path / "b.nii").write_bytes(change(data))
    assert run(readSteps(tmp_path / "b.nii"))[0] is None


@pytest.mark.parametrize(
    "old, new",
    [
        ("left-posterior-superior", "right-anterior-superior"),
        ("gzip", "ascii"),
        ("dimension: 3", "dimension: 4"),
        ("kinds:", "data file: b.raw\nkinds:"),
    ],
)
def test_unusual_nrrd_files_are_left_to_slicer(application, tmp_path, old, new):
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    sitk.WriteImage(image(np.uint8)[0], str(tmp_path / "a.nrrd"), useCompression=True)
    data = (tmp_path / "a.nrrd").read_bytes()
    assert old.encode() in data
    (tmp_path / "b.nrrd").write_bytes(data.replace(old.encode(), new.encode(), 1))
    assert run(readSteps(tmp_path / "b.nrrd"))[0] is None


def test_a_written_segmentation_is_one_for_slicer_and_for_the_library(application, tmp_path):
    import slicer
    from MedSSLGui.gridfile import nrrdSteps, segmentFields

    from MedSSLLib.images.io import read_header, read_label, segment_names

    source, _array = image(np.uint8)
    label = np.random.default_rng(2).integers(0, 3, (5, 7, 9)).astype(np.uint8) * 2
    classes = [(2, "linke Vorhöfe", (0.9, 0.3, 0.2), ""), (4, "two", (0.1, 0.5, 0.6), "a~b^c^d~e")]
    path = tmp_path / "s.seg.nrrd"
    run(nrrdSteps(path, label, to_ras(source), True, segmentFields(classes, label.shape)))
    node = slicer.util.loadSegmentation(str(path))
    try:
        segmentation = node.GetSegmentation()
        assert segmentation.GetNumberOfSegments() == 2
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        slicer.util.updateVolumeFromArray(volume, np.zeros(label.shape, np.uint8))
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras(source)))
        for value, name, colour, terminology in classes:
            segment = segmentation.GetSegment(f"class_{value}")
            assert segment.GetName() == name and np.allclose(segment.GetColor(), colour)
            array = slicer.util.arrayFromSegmentBinaryLabelmap(node, f"class_{value}", volume)
            assert (array.astype(bool) == (label == value)).all()
            import vtk

            text = vtk.mutable("")
            assert segment.GetTag("MedSSL.Class", text) and str(text) == str(value)
            assert bool(terminology) == (
                segment.GetTag("TerminologyEntry", text) and str(text) == terminology
            )
    finally:
        slicer.mrmlScene.RemoveNode(node)
    assert segment_names(path) == {2: "linke Vorhöfe", 4: "two"}
    assert (read_label(path, read_header(path)).array == label).all()


def test_replacing_a_segment_clears_what_was_there(application):
    import slicer
    from MedSSLGui import scene

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    slicer.util.updateVolumeFromArray(volume, np.zeros((30, 40, 50), np.int16))
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras(image(np.uint8)[0])))
    classes = [(n, f"c{n}", (1.0, 0.0, 0.0), "") for n in (1, 2, 3)]
    node = scene.makeSegmentation("v", "test", volume, classes, "test")
    try:
        for seed in (1, 2):
            label = np.zeros((30, 40, 50), np.uint8)
            for value in (1, 2):
                corner = np.random.default_rng(seed * 10 + value).integers(0, 20, 3)
                label[tuple(slice(c, c + 9) for c in corner)] = value
            run(scene.fillSteps(node, volume, label, classes, {}))
            (found, shared), _count = run(scene.labelSteps(node, volume, classes))
            assert (found == label).all() and shared == 0
    finally:
        slicer.mrmlScene.RemoveNode(node)
        slicer.mrmlScene.RemoveNode(volume)


def test_a_misnamed_or_damaged_gzip(application, tmp_path):
    """The content counts, as for Slicer's own reader; what is damaged is left to it, which names the file."""
    import SimpleITK as sitk
    from MedSSLGui.gridfile import readSteps

    source, array = image(np.int16)
    sitk.WriteImage(source, str(tmp_path / "a.nii"))
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(data)
    assert (run(readSteps(tmp_path / "plain.nii.gz"))[0][0] == array).all()
    packed = bytearray(gzip.compress(data))
    for place in range(len(packed) // 2, len(packed) // 2 + 40):
        packed[place] ^= 0xFF
    (tmp_path / "damaged.nii.gz").write_bytes(packed)
    assert run(readSteps(tmp_path / "damaged.nii.gz"))[0] is None


def test_a_segmentation_that_found_nothing_is_exported_too(application, tmp_path):
    import SimpleITK as sitk
    from MedSSLGui.convert import main

    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkUInt8), str(tmp_path / "a.nrrd"))
    assert main([str(tmp_path / "a.nrrd"), str(tmp_path / "a.nii.gz")]) == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))).any()


def test_an_older_pytorch_is_never_replaced(application, monkeypatch):
    import importlib.metadata

    import slicer
    from MedSSLGui import install

    asked = []
    monkeypatch.setattr(slicer.util, "pip_install", asked.append, raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1+cu121")
    with pytest.raises(RuntimeError, match="2.5.1"):
        install.Installer().install()
    assert not asked
