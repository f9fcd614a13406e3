"""Reading, writing, reorienting and resampling, against nibabel-free references: SimpleITK itself and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSSLLib import io
from MedSSLLib.errors import InputError
from MedSSLLib.geometry import Geometry, Volume, moved, oriented
from MedSSLLib.io_segments import Segment, flattened, segments

Make = Callable[..., Volume]
CODES = [a + b + c for a, b, c in [("L", "P", "S"), ("R", "A", "S"), ("P", "I", "R"), ("S", "L", "A"), ("I", "R", "P")]]


def affine(geometry: Geometry, index: tuple[int, int, int]) -> np.ndarray:
    """Position of a voxel by the definition, axis by axis."""
    direction = np.reshape(geometry.direction, (3, 3))
    return np.array(geometry.origin) + sum(
        direction[:, axis] * geometry.spacing[axis] * index[axis] for axis in range(3))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any size, spacing, origin and orthonormal direction (left-handed ones too)."""
    size = tuple(draw(st.integers(2, 7)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.3, 8.0)) for _ in range(3))
    origin = tuple(draw(st.floats(-300, 300)) for _ in range(3))
    matrix = np.array([draw(st.floats(-1, 1)) for _ in range(9)]).reshape(3, 3) + 2 * np.diag(
        [draw(st.sampled_from([-1, 1])) for _ in range(3)])
    rotation = np.linalg.qr(matrix)[0][:, draw(st.permutations(range(3)))]
    return Geometry(size, spacing, origin, tuple(float(v) for v in rotation.ravel()))


def labelled_noise(geometry: Geometry, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32), geometry)


class TestNames:
    @pytest.mark.parametrize(("file", "name"), [
        ("a/case.nii.gz", "case"), ("case.NII.GZ", "case"), ("c.1.2.nrrd", "c.1.2"), ("x.seg.nrrd", "x"), ("s", "s"),
        ("folder.d", "folder.d"), ("é ü.mha", "é ü"), ("a.dcm", "a"), (".nii.gz", ".nii.gz")])
    def test_case_name(self, file: str, name: str) -> None:
        assert io.case_name(file) == name

    def test_find_images(self, tmp_path: Path) -> None:
        for name in ("b.nii.gz", "a.nrrd", ".c.nii.gz", "notes.txt", "d.seg.nrrd"):
            (tmp_path / name).write_bytes(b"x")
        assert [p.name for p in io.find_images(tmp_path)] == ["a.nrrd", "b.nii.gz", "d.seg.nrrd"]


class TestGeometry:
    @given(geometries(), st.data())
    def test_points_and_indices(self, geometry: Geometry, data: st.DataObject) -> None:
        index = tuple(data.draw(st.integers(0, size - 1)) for size in geometry.size)
        point = geometry.points(np.array(index))
        assert np.allclose(point, affine(geometry, index))
        assert np.allclose(geometry.indices(point), index, atol=1e-6)
        assert np.allclose((geometry.matrix @ [*index, 1])[:3], point)

    def test_close_to(self, geometry: Geometry) -> None:
        shift = 0.05 * min(geometry.spacing)
        near = Geometry(geometry.size, geometry.spacing, (geometry.origin[0] + shift, *geometry.origin[1:]),
                        geometry.direction)
        far = Geometry(geometry.size, geometry.spacing, (geometry.origin[0] + 4 * shift, *geometry.origin[1:]),
                       geometry.direction)
        assert geometry.close_to(near) and near.close_to(geometry)
        assert not geometry.close_to(far)
        assert "origin" in far.difference(geometry)
        assert "size" in moved(geometry, (0, 0, 0), (3, 3, 3)).difference(geometry)

    def test_a_small_error_that_grows_along_an_axis_counts(self) -> None:
        long = Geometry((400, 4, 4))
        assert "spacing" in Geometry((400, 4, 4), (1.001, 1, 1)).difference(long)
        assert Geometry((40, 4, 4), (1.001, 1, 1)).close_to(Geometry((40, 4, 4)))

    @given(geometries())
    def test_moved_is_the_same_lattice(self, geometry: Geometry) -> None:
        part = moved(geometry, (1, -2, 3), (2, 2, 2))
        assert np.allclose(part.points(np.array([1, 1, 1])), affine(geometry, (2, -1, 4)))


class TestOrient:
    @settings(deadline=None)
    @given(geometries(), st.sampled_from(CODES))
    def test_every_voxel_keeps_value_and_place(self, geometry: Geometry, code: str) -> None:
        volume = labelled_noise(geometry)
        turned = io.orient(volume, code)
        places = {tuple(np.round(turned.geometry.points(np.array([i, j, k])), 4)): turned.array[k, j, i]
                  for k, j, i in np.ndindex(turned.geometry.shape)}
        for k, j, i in np.ndindex(geometry.shape):
            assert places[tuple(np.round(affine(geometry, (i, j, k)), 4) + 0.0)] == volume.array[k, j, i]

    @settings(deadline=None)
    @given(geometries(), st.sampled_from(CODES))
    def test_there_and_back_is_exact(self, geometry: Geometry, code: str) -> None:
        volume = labelled_noise(geometry)
        back = io.orient(io.orient(volume, code), geometry.code)
        assert np.array_equal(back.array, volume.array)
        assert back.geometry.size == geometry.size and back.geometry.spacing == geometry.spacing
        assert np.allclose(back.geometry.direction, geometry.direction, atol=0)
        assert np.allclose(back.geometry.origin, geometry.origin, atol=1e-9)

    @pytest.mark.parametrize("code", CODES)
    def test_agrees_with_itk(self, geometry: Geometry, code: str, make_volume: Make) -> None:
        volume = make_volume(geometry)
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        if np.linalg.det(np.reshape(geometry.direction, (3, 3))) < 0:
            pytest.skip("ITK's filter does not keep left-handed grids apart")
        expected = sitk.DICOMOrient(image, code)
        turned = io.orient(volume, code)
        assert turned.geometry.code == code
        assert np.array_equal(turned.array, sitk.GetArrayFromImage(expected))
        assert np.allclose(turned.geometry.origin, expected.GetOrigin())
        assert np.allclose(turned.geometry.direction, expected.GetDirection())

    @pytest.mark.parametrize("code", CODES)
    @pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
    def test_exactly_between_two_axes_the_choice_does_not_depend_on_the_order(
            self, code: str, order: tuple[int, int, int]) -> None:
        c = np.sqrt(0.5)
        matrix = np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]])[:, list(order)]
        grid = Geometry((2, 3, 4), direction=tuple(float(v) for v in matrix.ravel()))
        assert oriented(oriented(grid, code), grid.code).close_to(grid)

    def test_lps_is_the_identity_direction(self) -> None:
        assert Geometry((2, 2, 2)).code == "LPS"
        assert oriented(Geometry((2, 3, 4)), "LPS") == Geometry((2, 3, 4))

    @pytest.mark.parametrize("code", ["LPX", "LLS", "LP", "", "LPSA"])
    def test_unknown_codes(self, code: str) -> None:
        with pytest.raises(InputError, match="orientation"):
            oriented(Geometry((2, 2, 2)), code)


class TestResample:
    @settings(deadline=None, max_examples=30)
    @given(geometries(), st.sampled_from(CODES), st.sampled_from(["linear", "nearest"]))
    def test_onto_a_turned_grid_and_back_is_the_identity(self, geometry: Geometry, code: str, how: str) -> None:
        volume = labelled_noise(geometry)
        turned = io.resample(volume, oriented(geometry, code), interpolation=how)
        assert np.allclose(turned.array, io.orient(volume, code).array, atol=1e-4)
        back = io.resample(turned, geometry, interpolation=how)
        assert np.allclose(back.array, volume.array, atol=1e-4)

    @settings(deadline=None, max_examples=30)
    @given(geometries(), geometries())
    def test_a_linear_field_is_reproduced_inside(self, source: Geometry, target: Geometry) -> None:
        def field(geometry: Geometry) -> np.ndarray:
            k, j, i = np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij")
            return geometry.points(np.stack([i, j, k], axis=-1)) @ np.array([0.3, -0.2, 0.5])

        target = Geometry(target.size, target.spacing, source.origin, target.direction)
        result = io.resample(Volume(field(source).astype(np.float64), source), target, outside=-1e6).array
        k, j, i = np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij")
        places = source.indices(target.points(np.stack([i, j, k], axis=-1)))
        inside = ((places >= 1e-6) & (places <= np.array(source.size) - 1 - 1e-6)).all(axis=-1)
        outside = ((places < -0.51) | (places > np.array(source.size) - 0.49)).any(axis=-1)
        assert np.allclose(result[inside], field(target)[inside], atol=1e-2)
        assert (result[outside] == -1e6).all()

    def test_finer_and_back_keeps_a_smooth_image(self, geometry: Geometry) -> None:
        k, j, i = np.meshgrid(*[np.linspace(0, np.pi, n) for n in geometry.shape], indexing="ij")
        volume = Volume((100 * np.sin(i) * np.sin(j) * np.sin(k)).astype(np.float32), geometry)
        finer = Geometry(tuple(2 * n for n in geometry.size), tuple(s / 2 for s in geometry.spacing), geometry.origin,
                         geometry.direction)
        for how, error in (("linear", 1e-3), ("cubic", 0.5)):
            back = io.resample(io.resample(volume, finer, interpolation=how), geometry, interpolation=how)
            assert np.abs(back.array - volume.array).max() < error

    @pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float64, bool, np.float16, ">i2"])
    def test_nearest_keeps_values_of_every_type(self, geometry: Geometry, make_label: Make, kind: object) -> None:
        label = make_label(geometry)
        label = Volume((label.array > 0).astype(kind), geometry)
        same = io.resample(label, geometry, interpolation="nearest")
        assert np.array_equal(same.array, label.array)

    def test_thin_volumes_fall_back_to_linear(self) -> None:
        volume = labelled_noise(Geometry((8, 8, 2)))
        assert np.allclose(io.resample(volume, volume.geometry, interpolation="cubic").array, volume.array, atol=1e-5)

    def test_unknown_interpolation(self) -> None:
        with pytest.raises(InputError, match="interpolation 'bicubic' is unknown. Use linear, nearest, cubic"):
            io.resample(labelled_noise(Geometry((2, 2, 2))), Geometry((2, 2, 2)), interpolation="bicubic")


class TestFiles:
    @pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".mha"])
    def test_round_trip(self, tmp_path: Path, geometry: Geometry, make_volume: Make, extension: str) -> None:
        for kind in (np.uint8, np.int16, np.float32, np.float64):
            volume = make_volume(geometry, dtype=kind)
            path = tmp_path / f"Größe 体 {np.dtype(kind)}{extension}"
            io.write_image(path, volume)
            again = io.read_image(path)
            assert again.array.dtype == kind
            assert np.array_equal(again.array, volume.array)
            assert again.geometry.close_to(geometry, tolerance=1e-4)
            assert io.read_header(path).close_to(again.geometry, tolerance=1e-9)
        assert len(list(tmp_path.iterdir())) == 4

    def test_headers_and_pixels_agree_about_negative_spacing(self, tmp_path: Path) -> None:
        array = np.arange(4**3, dtype=np.float32)
        (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\nElementSpacing = -1 2 1\nDimSize = 4 4 4\n"
                                         b"ElementType = MET_FLOAT\nElementDataFile = LOCAL\n" + array.tobytes())
        header, image = io.read_header(tmp_path / "a.mha"), io.read_image(tmp_path / "a.mha")
        assert header == image.geometry
        assert header.spacing == (1, 2, 1) and header.direction[0] == -1

    def test_a_four_dimensional_file_with_one_time_point_is_a_volume(self, tmp_path: Path) -> None:
        volume = labelled_noise(Geometry((4, 5, 6)))
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(volume.array)]), tmp_path / "a.nii.gz")
        assert np.array_equal(io.read_image(tmp_path / "a.nii.gz").array, volume.array)

    def test_multi_member_gzip_and_nifti_pairs_are_read(self, tmp_path: Path, make_volume: Make) -> None:
        import gzip

        volume = make_volume()
        io.write_image(tmp_path / "a.nii", volume)
        data = (tmp_path / "a.nii").read_bytes()
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:900]) + gzip.compress(data[900:]))
        sitk.WriteImage(sitk.GetImageFromArray(volume.array), tmp_path / "c.hdr")
        for name in ("b.nii.gz", "c.hdr"):
            assert np.array_equal(io.read_image(tmp_path / name).array, volume.array)

    def test_only_known_extensions_are_written(self, tmp_path: Path, make_volume: Make) -> None:
        with pytest.raises(InputError, match="cannot be written"):
            io.write_image(tmp_path / "a.png", make_volume())

    def test_a_failed_write_keeps_the_old_file(self, tmp_path: Path, make_volume: Make,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
        from MedSSLLib.errors import MedSSLError

        io.write_image(tmp_path / "a.nii.gz", make_volume())
        before = (tmp_path / "a.nii.gz").read_bytes()
        whole = sitk.WriteImage

        def half(image: sitk.Image, path: str, **options: object) -> None:
            whole(image, path, **options)
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])

        monkeypatch.setattr(sitk, "WriteImage", half)
        with pytest.raises(MedSSLError, match="cannot be written in full"):
            io.write_image(tmp_path / "a.nii.gz", make_volume(seed=5))
        assert (tmp_path / "a.nii.gz").read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]

    @pytest.mark.parametrize(("shift", "modality"), [(-1100, "CT"), (0, "MR")])
    def test_modality_of_files_without_one(self, tmp_path: Path, make_volume: Make, shift: int, modality: str) -> None:
        volume = make_volume()
        io.write_image(tmp_path / "a.nrrd", Volume(volume.array + np.int16(shift), volume.geometry))
        assert io.modality_of(tmp_path / "a.nrrd") == modality


def write_segmentation(path: Path, layers: np.ndarray, geometry: Geometry, header: dict[str, str]) -> None:
    """A .seg.nrrd as Slicer writes it; layers [k, j, i] or [k, j, i, layer]."""
    image = sitk.GetImageFromArray(layers.astype(np.uint8), isVector=layers.ndim == 4)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    for key, value in header.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, path, useCompression=True)


def segment_header(*parts: tuple[str, int, int]) -> dict[str, str]:
    return {f"Segment{n}_{key}": str(value) for n, (name, value, layer) in enumerate(parts)
            for key, value in (("ID", f"s{n}"), ("Name", name), ("LabelValue", value), ("Layer", layer))}


class TestLabels:
    def test_values_become_the_smallest_integers(self, tmp_path: Path, geometry: Geometry, make_label: Make) -> None:
        for values, kind in (((1, 2), np.uint8), ((1, 2035), np.int32)):
            label = make_label(geometry, values=values)
            for stored in (np.float32, np.int16):
                io.write_image(tmp_path / "l.nii.gz", Volume(label.array.astype(stored), geometry))
                again = io.read_label(tmp_path / "l.nii.gz", geometry)
                assert again.array.dtype == kind
                assert np.array_equal(again.array, label.array)
                assert again.geometry == geometry

    @pytest.mark.parametrize("code", CODES)
    def test_other_axis_directions_are_reordered_exactly(self, tmp_path: Path, geometry: Geometry, make_label: Make,
                                                         code: str) -> None:
        label = make_label(geometry)
        io.write_image(tmp_path / "l.nii.gz", io.orient(label, code))
        io.check_label(tmp_path / "l.nii.gz", geometry)
        assert np.array_equal(io.read_label(tmp_path / "l.nii.gz", geometry).array, label.array)

    def test_an_empty_label_is_read(self, tmp_path: Path) -> None:
        grid = Geometry((4, 5, 6))
        io.write_image(tmp_path / "l.nii.gz", Volume(np.zeros(grid.shape, np.uint8), grid))
        assert not io.read_label(tmp_path / "l.nii.gz", grid).array.any()

    def test_a_cropped_segmentation_is_put_back(self, tmp_path: Path, geometry: Geometry, make_label: Make) -> None:
        label = make_label(geometry)
        where = np.argwhere(label.array)
        low, high = where.min(axis=0), where.max(axis=0) + 1
        part = label.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        grid = moved(geometry, tuple(int(v) for v in low[::-1]), tuple(part.shape[::-1]))
        path = tmp_path / "case.seg.nrrd"
        write_segmentation(path, part, grid, segment_header(("left", 1, 0), ("right", 2, 0)))
        io.check_label(path, geometry)
        assert np.array_equal(io.read_label(path, geometry).array, label.array)
        assert io.segment_names(path) == {1: "left", 2: "right"}

    def test_layers_are_flattened_when_nothing_overlaps(self, tmp_path: Path, make_label: Make) -> None:
        label = make_label()
        layers = np.stack([label.array == 1, label.array == 2], axis=-1)
        write_segmentation(tmp_path / "a.seg.nrrd", layers, label.geometry, segment_header(("x", 1, 0), ("y", 1, 1)))
        assert np.array_equal(io.read_label(tmp_path / "a.seg.nrrd", label.geometry).array, label.array)
        assert io.segment_names(tmp_path / "a.seg.nrrd") == {1: "x", 2: "y"}

    def test_a_finer_segmentation_is_resampled(self, tmp_path: Path, make_label: Make) -> None:
        label = make_label(Geometry((12, 10, 8)))
        finer = Geometry((36, 30, 24), (1 / 3,) * 3, (-1 / 3,) * 3)
        fine = label.array.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        write_segmentation(tmp_path / "a.seg.nrrd", fine, finer, segment_header(("x", 1, 0), ("y", 2, 0)))
        assert np.array_equal(io.read_label(tmp_path / "a.seg.nrrd", label.geometry).array, label.array)

    def test_names_of_other_files_are_empty(self, tmp_path: Path, make_label: Make) -> None:
        io.write_image(tmp_path / "l.nrrd", make_label())
        assert io.segment_names(tmp_path / "l.nrrd") == {}


def test_segments_keep_their_values_unless_layers_share_them() -> None:
    assert [s.value for s in segments(segment_header(("a", 4, 0), ("b", 2, 0)))] == [4, 2]
    assert [s.value for s in segments(segment_header(("a", 4, 0), ("b", 4, 1)))] == [1, 2]
    assert segments({"Segment1_LabelValue": "1"}) == []
    with pytest.raises(InputError, match="layer 3, which is not stored"):
        flattened(np.zeros((2, 2, 2, 2)), [Segment("a", 3, 1, 1), Segment("b", 0, 1, 2)])
