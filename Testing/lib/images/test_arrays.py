"""Volumes as .npy: what goes out comes back, and RAS matrices agree with SimpleITK's geometry."""

import numpy as np
import pytest
import SimpleITK as sitk

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import arrays, io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.thumbnails import SIDE, case_facts, middle_slice

TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def volume(kind=np.int16):
    array = np.random.default_rng(0).integers(0, 90, (3, 4, 5)).astype(kind)
    return Volume(array, Geometry((5, 4, 3), (0.5, 0.75, 3.0), (-7.0, 11.0, 2.0), TURNED))


def test_the_matrix_leads_to_the_same_points_as_simpleitk():
    found = volume()
    image = sitk.GetImageFromArray(found.array)
    image.SetSpacing(found.geometry.spacing)
    image.SetOrigin(found.geometry.origin)
    image.SetDirection(found.geometry.direction)
    for index in ((0, 0, 0), (4, 3, 2), (1, 2, 0)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ras = arrays.ras_matrix(found.geometry) @ (*index, 1)
        assert np.allclose(ras[:3], lps * (-1, -1, 1))


def test_a_grid_survives_its_matrix():
    geometry = volume().geometry
    again = arrays.geometry_of_ras((3, 4, 5), arrays.ras_matrix(geometry))
    assert again.close_to(geometry, tolerance=1e-9) and again.size == geometry.size


def test_an_array_comes_back(tmp_path):
    found = volume(np.float32)
    arrays.save_array(tmp_path / "a.npy", found.array)
    matrix = arrays.ras_matrix(found.geometry).ravel().tolist()
    again = arrays.load_array(tmp_path / "a.npy", matrix)
    assert (again.array == found.array).all() and again.array.dtype == np.float32


def test_what_is_no_array_is_told(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nothing")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    for name in ("a.npy", "flat.npy", "missing.npy"):
        with pytest.raises(InputError, match=name):
            arrays.load_array(tmp_path / name, [1.0] * 16)


def test_a_segmentation_is_read_back_by_name_and_voxel(tmp_path):
    label = volume(np.uint8)
    label = Volume(label.array % 3, label.geometry)
    entries = [
        arrays.SegmentEntry(1, "left  ventricle", (1.0, 0.5, 0.0), "a~b^c"),
        arrays.SegmentEntry(2, "wall", (0.0, 1.0, 0.0)),
    ]
    path = tmp_path / "s.seg.nrrd"
    arrays.write_segmentation(path, label, entries)
    assert io.segment_names(path) == {1: "left ventricle", 2: "wall"}
    assert (io.read_label(path, label.geometry).array == label.array).all()
    header = sitk.ReadImage(str(path))
    assert "TerminologyEntry:a~b^c" in header.GetMetaData("Segment0_Tags")
    assert header.GetMetaData("Segment0_Color") == "1 0.5 0"


def test_the_shown_range_leaves_outliers_out():
    array = np.zeros((10, 20, 20), np.float32)
    array[1:] = 100
    array[0, 0, 0] = 1e6
    low, high = arrays.shown_range(array)
    assert 0 <= low < high <= 100
    assert arrays.shown_range(np.zeros((2, 2, 2))) == (0.0, 1.0)


def test_a_thumbnail_is_the_middle_slice_along_the_thickest_axis():
    array = np.zeros((3, 8, 8), np.int16)
    array[1, :4] = 100
    array[1, 4:] = 50
    picture = middle_slice(Volume(array, Geometry((8, 8, 3), (1.0, 1.0, 5.0))))
    assert picture.shape == (SIDE, SIDE) and (picture[: SIDE // 2] == 255).all()
    assert (picture[SIDE // 2 :] < 255).all()


def test_facts_of_an_image_and_of_none(tmp_path):
    io.write_image(tmp_path / "a.nii.gz", volume())
    found = case_facts(tmp_path / "a.nii.gz", "a", tmp_path / "t")
    assert found["size"] == [5, 4, 3] and found["spacing"] == [0.5, 0.75, 3.0]
    assert sorted(found["axes"]) == ["axial", "coronal", "sagittal"] and not found["problem"]
    assert found["thumbnail"].endswith(".png")
    assert sitk.ReadImage(found["thumbnail"]).GetSize() == (SIDE, SIDE)
    assert case_facts(tmp_path / "a.nii.gz", "a", tmp_path / "t") == found, "kept"
    missing = case_facts(tmp_path / "b.nii.gz", "b", tmp_path / "t")
    assert missing["size"] is None and "b.nii.gz" in missing["problem"]
