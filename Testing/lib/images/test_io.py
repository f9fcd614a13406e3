"""Reading and writing image files, labels and segmentations."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import detached_files
from MedSSLLib.images import io
from MedSSLLib.images.formats.segments import Segment, flattened, segments
from MedSSLLib.images.geometry import Geometry, Volume, moved
from MedSSLLib.images.labels import Annotated
from Testing.lib.case_helpers import each

Make = Callable[..., Volume]
CODES = [
    a + b + c
    for a, b, c in [
        ("L", "P", "S"),
        ("R", "A", "S"),
        ("P", "I", "R"),
        ("S", "L", "A"),
        ("I", "R", "P"),
    ]
]


class TestNames:
    @each(
        ("file", "name"),
        [
            ("a/case.nii.gz", "case"),
            ("case.NII.GZ", "case"),
            ("c.1.2.nrrd", "c.1.2"),
            ("x.seg.nrrd", "x"),
            ("s", "s"),
            ("folder.d", "folder.d"),
            ("é ü.mha", "é ü"),
            ("a.dcm", "a"),
            (".nii.gz", ".nii.gz"),
        ],
    )
    def test_case_name(self, file: str, name: str) -> None:
        assert io.case_name(file) == name

    def test_names_of_macos_are_composed_and_their_files_found(self) -> None:
        file = unicodedata.normalize("NFD", "a/Müller.Nii.GZ")
        assert io.case_name(file) == unicodedata.normalize("NFC", "Müller")
        assert f"a/{io.stem(file)}{io.extension(file)}" == file
        assert (io.stem("s"), io.extension("s")) == ("s", "")

    def test_find_images(self, tmp_path: Path) -> None:
        for name in ("b.nii.gz", "a.nrrd", ".c.nii.gz", "notes.txt", "d.seg.nrrd"):
            (tmp_path / name).write_bytes(b"x")
        assert [p.name for p in io.find_images(tmp_path)] == ["a.nrrd", "b.nii.gz", "d.seg.nrrd"]

    @each(
        ("stored", "called"),
        [
            (".nii.gz", ".Nii.gz"),
            (".nii.gz", ".NII.GZ"),
            (".nii", ".Nii"),
            (".mha", ".MHA"),
            (".mha", ".Mha"),
            (".nrrd", ".Nrrd"),
        ],
    )
    def test_extensions_in_capital_letters_are_read(
        self, tmp_path: Path, geometry: Geometry, make_volume: Make, stored: str, called: str
    ) -> None:
        volume = make_volume(geometry)
        io.write_image(tmp_path / f"made{stored}", volume)
        path = (tmp_path / f"made{stored}").rename(tmp_path / f"case{called}")
        assert io.find_images(tmp_path)[-1] == path and io.case_name(path) == "case"
        assert io.read_header(path).close_to(geometry)
        assert np.array_equal(io.read_image(path).array, volume.array)
        path.unlink()

    @each("names", [("a.hdr", "a.img"), ("b.HDR", "b.img"), ("c.HDR", "c.IMG"), ("d.Hdr", "d.img")])
    def test_pairs_in_capital_letters_are_read(
        self, tmp_path: Path, make_volume: Make, names: tuple[str, str]
    ) -> None:
        array = make_volume(Geometry((4, 5, 6))).array
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "x.hdr"))
        for made, name in zip(("x.hdr", "x.img"), names, strict=True):
            (tmp_path / made).rename(tmp_path / name)
        assert detached_files(tmp_path / names[0]) == (tmp_path / names[1],)
        assert np.array_equal(io.read_image(tmp_path / names[0]).array, array)


class TestFiles:
    @each("extension", [".nii.gz", ".nii", ".nrrd", ".mha"])
    def test_round_trip(
        self, tmp_path: Path, geometry: Geometry, make_volume: Make, extension: str
    ) -> None:
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
        (tmp_path / "a.mha").write_bytes(
            b"ObjectType = Image\nNDims = 3\nElementSpacing = -1 2 1\nDimSize = 4 4 4\n"
            b"ElementType = MET_FLOAT\nElementDataFile = LOCAL\n" + array.tobytes()
        )
        header, image = io.read_header(tmp_path / "a.mha"), io.read_image(tmp_path / "a.mha")
        assert header == image.geometry
        assert header.spacing == (1, 2, 1) and header.direction[0] == -1

    def test_a_four_dimensional_file_with_one_time_point_is_a_volume(
        self, tmp_path: Path, make_volume: Make
    ) -> None:
        volume = make_volume(Geometry((4, 5, 6)))
        sitk.WriteImage(
            sitk.JoinSeries([sitk.GetImageFromArray(volume.array)]), tmp_path / "a.nii.gz"
        )
        assert np.array_equal(io.read_image(tmp_path / "a.nii.gz").array, volume.array)

    def test_multi_member_gzip_and_nifti_pairs_are_read(
        self, tmp_path: Path, make_volume: Make
    ) -> None:
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

    def test_a_failed_write_keeps_the_old_file(
        self, tmp_path: Path, make_volume: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from MedSSLLib.core.errors import MedSSLError

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
    def test_modality_of_files_without_one(
        self, tmp_path: Path, make_volume: Make, shift: int, modality: str
    ) -> None:
        volume = make_volume()
        io.write_image(tmp_path / "a.nrrd", Volume(volume.array + np.int16(shift), volume.geometry))
        assert io.modality_of(tmp_path / "a.nrrd") == modality


def write_segmentation(
    path: Path, layers: np.ndarray, geometry: Geometry, header: dict[str, str]
) -> None:
    """A .seg.nrrd as Slicer writes it; layers [k, j, i] or [k, j, i, layer]."""
    image = sitk.GetImageFromArray(layers.astype(np.uint8), isVector=layers.ndim == 4)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    for key, value in header.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, path, useCompression=True)


def segment_header(*parts: tuple[str, int, int]) -> dict[str, str]:
    return {
        f"Segment{n}_{key}": str(value)
        for n, (name, value, layer) in enumerate(parts)
        for key, value in (("ID", f"s{n}"), ("Name", name), ("LabelValue", value), ("Layer", layer))
    }


class TestLabels:
    def test_values_become_the_smallest_integers(
        self, tmp_path: Path, geometry: Geometry, make_label: Make
    ) -> None:
        for values, kind in (((1, 2), np.uint8), ((1, 2035), np.int32)):
            label = make_label(geometry, values=values)
            for stored in (np.float32, np.int16):
                io.write_image(tmp_path / "l.nii.gz", Volume(label.array.astype(stored), geometry))
                again = io.read_label(tmp_path / "l.nii.gz", geometry)
                assert again.array.dtype == kind
                assert np.array_equal(again.array, label.array)
                assert again.geometry == geometry

    @each("code", CODES)
    def test_other_axis_directions_are_reordered_exactly(
        self, tmp_path: Path, geometry: Geometry, make_label: Make, code: str
    ) -> None:
        label = make_label(geometry)
        io.write_image(tmp_path / "l.nii.gz", io.orient(label, code))
        io.check_label(tmp_path / "l.nii.gz", geometry)
        assert np.array_equal(io.read_label(tmp_path / "l.nii.gz", geometry).array, label.array)

    def test_an_empty_label_is_read(self, tmp_path: Path) -> None:
        grid = Geometry((4, 5, 6))
        io.write_image(tmp_path / "l.nii.gz", Volume(np.zeros(grid.shape, np.uint8), grid))
        assert not io.read_label(tmp_path / "l.nii.gz", grid).array.any()

    def test_a_cropped_segmentation_is_put_back(
        self, tmp_path: Path, geometry: Geometry, make_label: Make
    ) -> None:
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

    def test_layers_are_flattened_when_nothing_overlaps(
        self, tmp_path: Path, make_label: Make
    ) -> None:
        label = make_label()
        layers = np.stack([label.array == 1, label.array == 2], axis=-1)
        write_segmentation(
            tmp_path / "a.seg.nrrd",
            layers,
            label.geometry,
            segment_header(("x", 1, 0), ("y", 1, 1)),
        )
        assert np.array_equal(
            io.read_label(tmp_path / "a.seg.nrrd", label.geometry).array, label.array
        )
        assert io.segment_names(tmp_path / "a.seg.nrrd") == {1: "x", 2: "y"}

    def test_a_finer_segmentation_is_resampled(self, tmp_path: Path, make_label: Make) -> None:
        label = make_label(Geometry((12, 10, 8)))
        finer = Geometry((36, 30, 24), (1 / 3,) * 3, (-1 / 3,) * 3)
        fine = label.array.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        write_segmentation(
            tmp_path / "a.seg.nrrd", fine, finer, segment_header(("x", 1, 0), ("y", 2, 0))
        )
        assert np.array_equal(
            io.read_label(tmp_path / "a.seg.nrrd", label.geometry).array, label.array
        )

    def test_annotated_slices_are_read_from_the_tags(
        self, tmp_path: Path, grids: dict[str, Geometry], make_label: Make
    ) -> None:
        label = make_label(grids["sagittal"])  # its axes i, j, k run along A-P, S-I and L-R
        header = segment_header(("x", 1, 0), ("y", 2, 0)) | {
            "Segment0_Tags": "Other:a:b|MedSSL.AnnotatedSlices:sagittal:1,4;axial:7|",
            "Segment1_Tags": "MedSSL.AnnotatedSlices:sagittal:2,x;nothing:3",
        }
        write_segmentation(tmp_path / "a.seg.nrrd", label.array, label.geometry, header)
        found = io.recorded_slices(tmp_path / "a.seg.nrrd", label.geometry)
        assert found == Annotated.of([(2, [1, 2, 4]), (1, [7])])
        io.write_image(tmp_path / "b.nrrd", label)
        assert io.recorded_slices(tmp_path / "b.nrrd", label.geometry) is None

    def test_names_of_other_files_are_empty(self, tmp_path: Path, make_label: Make) -> None:
        io.write_image(tmp_path / "l.nrrd", make_label())
        assert io.segment_names(tmp_path / "l.nrrd") == {}


def test_segments_keep_their_values_unless_layers_share_them() -> None:
    assert [s.value for s in segments(segment_header(("a", 4, 0), ("b", 2, 0)))] == [4, 2]
    assert [s.value for s in segments(segment_header(("a", 4, 0), ("b", 4, 1)))] == [1, 2]
    assert segments({"Segment1_LabelValue": "1"}) == []
    with pytest.raises(InputError, match="layer 3, which is not stored"):
        flattened(np.zeros((2, 2, 2, 2)), [Segment("a", 3, 1, 1), Segment("b", 0, 1, 2)])
