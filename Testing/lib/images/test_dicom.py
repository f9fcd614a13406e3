"""DICOM series: real ones against their reference NIfTI, and faults made here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.images.formats.dicom_header import read_dicom_header
from MedSSLLib.images.geometry import Geometry, Volume
from Testing.lib.case_helpers import each

REAL = ["ge", "siemens", "siemens_multiframe", "philips_enhanced", "hitachi", "hyperfine"]
FAILING = {
    "gantrytilting/001": "gantry tilt",
    "notavolume/001": "4 of its 4 images share a position",
    "slicecount/001": "has 2 slices",
    "sliceincrement/001": "1 slice is missing: 10.000 mm between",
    "sliceincrement/002": "1 slice is missing",
    "sliceorientation/001": "different orientations",
}
Series = Callable[..., Path]


@pytest.fixture
def series(tmp_path: Path) -> Series:
    """series(positions=..., **changes): a folder with one file per slice; `changes(n)` gives tags
    of slice n.
    """

    def make(
        name: str = "s",
        positions: object = (0.0, 2.5, 5.0, 7.5, 10.0),
        tags: Callable[[int], dict[str, str]] = lambda n: {},
        shape: tuple[int, int] = (6, 8),
        tilt: float = 0.0,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for n, z in enumerate(positions):  # type: ignore[arg-type,var-annotated]
            array = (np.arange(shape[0] * shape[1]).reshape(1, *shape) + 1000 * n).astype(np.int16)
            write_slice(
                folder / f"{n:03d}.dcm",
                array,
                {"0020|0032": f"-10\\{5 + tilt * n}\\{z}", "0020|0013": str(n)} | tags(n),
            )
        return folder

    return make


def write_slice(path: Path, array: np.ndarray, tags: dict[str, str]) -> None:
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing((0.7, 0.9, 1.0))
    defaults = {
        "0008|0060": "MR",
        "0020|000e": "1.2.3.4",
        "0020|000d": "1.2.3",
        "0020|0037": "1\\0\\0\\0\\1\\0",
        "0008|103e": "T1",
    }
    for key, value in (defaults | tags).items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


class TestReal:
    @each("maker", REAL)
    def test_grid_and_values_equal_the_reference(self, data_folder: Path, maker: str) -> None:
        folder = data_folder / "dicom" / maker / "anatomical"
        image = io.orient(io.read_image(folder / "001"))
        reference = io.orient(io.read_image(folder / "001_ground_truth_reoriented.nii.gz"))
        assert image.geometry.difference(reference.geometry, tolerance=1e-3) == ""
        assert np.allclose(image.array, reference.array, atol=1e-3)
        assert io.read_header(folder / "001").close_to(
            io.read_image(folder / "001").geometry, tolerance=0
        )
        assert io.modality_of(folder / "001") == "MR"

    @each("fault", sorted(FAILING))
    def test_series_that_are_no_volume_are_refused(self, data_folder: Path, fault: str) -> None:
        for read in (io.read_header, io.read_image):
            with pytest.raises(InputError, match=FAILING[fault]) as caught:
                read(data_folder / "dicom" / "failing" / fault, case="c7")  # type: ignore[operator]
            assert caught.value.case == "c7" and fault in caught.value.file and caught.value.remedy

    def test_other_objects(self, data_folder: Path) -> None:
        folder = data_folder / "dicom" / "dcmqi_ct_seg" / "segmentations"
        image = io.read_image(folder / "ct-3slice")
        assert (image.geometry.size, io.modality_of(folder / "ct-3slice")) == ((512, 512, 3), "CT")
        label = io.read_label(folder / "liver_seg.nrrd", image.geometry)
        assert label.array.shape == image.array.shape
        stack, frames = (
            io.read_image(folder / "24x38x3" / kind) for kind in ("image", "multiframe")
        )
        assert frames.geometry.close_to(stack.geometry) and np.array_equal(
            frames.array, stack.array
        )
        with pytest.raises(InputError, match="DICOM object of the kind SEG"):
            io.read_label(folder / "liver.dcm", image.geometry)
        with pytest.raises(InputError, match="has 1 slice"):
            io.read_header(data_folder / "dicom" / "ge" / "anatomical" / "001_single_slice")

    def test_series_are_found_at_any_depth(self, data_folder: Path) -> None:
        found = io.find_images(data_folder / "dicom" / "siemens")
        assert [p.name for p in found] == ["001"]


class TestMade:
    def test_grid_and_order_come_from_the_positions(self, series: Series) -> None:
        volume = io.read_image(series(positions=(7.5, 0.0, 5.0, 2.5, 10.0)))
        assert volume.geometry == Geometry((8, 6, 5), (0.7, 0.9, 2.5), (-10, 5, 0))
        assert (volume.array[:, 0, 0] == [1000, 3000, 2000, 0, 4000]).all()
        assert volume.array[0, 1, 2] - volume.array[0, 0, 0] == 10

    def test_oblique(self, series: Series) -> None:
        tags = {"0020|0037": "0\\1\\0\\0\\0\\-1"}
        folder = series(tags=lambda n: tags | {"0020|0032": f"{-3 * n}\\0\\0"})
        assert io.read_header(folder).direction == (0, 0, -1, 1, 0, 0, 0, -1, 0)
        assert io.read_header(folder).origin == (0, 0, 0)

    def test_small_jitter_is_allowed(self, series: Series) -> None:
        assert io.read_header(series(positions=(0, 2.49, 5.01, 7.5))).spacing[2] == pytest.approx(
            2.5
        )

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"positions": (0, 2.5, 7.5, 10)},
                r"1 slice is missing: 5.000 mm between 001.dcm and 002.dcm, 2.500",
            ),
            ({"positions": (0, 1, 2, 5, 6, 7)}, "2 slices are missing"),
            ({"positions": (0, 2.5, 6, 8.5)}, "uneven gaps: 3.500 mm"),
            ({"positions": (0, 2, 5)}, "uneven gaps"),
            ({"positions": (0, 2.5, 2.5, 5)}, "2 of its 4 images share a position"),
            ({"positions": (0, 0, 2.5, 2.5, 5, 5)}, "4 of its 6 images share a position"),
            ({"positions": (0,)}, "has 1 slice, a volume needs at least 3"),
            ({"positions": (0, 1)}, "has 2 slices"),
            ({"tilt": 0.3}, r"gantry tilt.*6.8 degrees"),
            (
                {"tags": lambda n: {"0020|000e": f"1.2.{n % 2}", "0008|103e": f"T{n % 2}"}},
                r"holds 2 series: T0 \(3 files\), T1 \(2 files\)",
            ),
            (
                {"tags": lambda n: {"0020|0037": "1\\0\\0\\0\\0\\-1"} if n == 2 else {}},
                "different orientations",
            ),
            ({"tags": lambda n: {"0008|0060": "SEG"}}, "DICOM object of the kind SEG"),
        ],
    )
    def test_faults(self, series: Series, changes: dict[str, object], words: str) -> None:
        folder = series(**changes)
        with pytest.raises(InputError, match=words) as caught:
            io.read_header(folder, case="c")
        assert caught.value.remedy and str(folder) in caught.value.file and caught.value.case == "c"

    def test_axes_that_are_not_perpendicular(self, series: Series) -> None:
        folder = series()
        for file in folder.iterdir():
            file.write_bytes(file.read_bytes().replace(b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\1\\0"))
        with pytest.raises(InputError, match="not two perpendicular"):
            io.read_header(folder)

    def test_slices_of_different_size(self, series: Series) -> None:
        series(positions=(0, 2.5, 5))
        other = series("t", positions=(7.5,), shape=(7, 8))
        shutil.copy(other / "000.dcm", other.parent / "s" / "009.dcm")
        with pytest.raises(InputError, match="differ in size or spacing: 009.dcm has"):
            io.read_header(other.parent / "s")

    def test_colour(self, tmp_path: Path) -> None:
        for n in range(3):
            write_slice(
                tmp_path / f"{n}.dcm",
                np.full((1, 4, 4, 3), n, np.uint8),
                {"0020|0032": f"0\\0\\{n}"},
            )
        with pytest.raises(InputError, match="colour image .3 samples"):
            io.read_header(tmp_path)

    def test_a_truncated_slice_is_named(self, series: Series) -> None:
        folder = series()
        content = (folder / "002.dcm").read_bytes()
        (folder / "002.dcm").write_bytes(content[:-20])
        with pytest.raises(InputError, match=r"002.dcm: is truncated, damaged or compressed"):
            io.read_image(folder)
        (folder / "002.dcm").write_bytes(content[:300])
        with pytest.raises(InputError, match=r"002.dcm: is a damaged or unsupported DICOM file"):
            io.read_header(folder)

    def test_other_files_in_the_folder_do_not_matter(self, series: Series) -> None:
        folder = series()
        (folder / "notes.txt").write_text("x")
        (folder / ".DS_Store").write_bytes(b"x")
        assert io.read_header(folder).size == (8, 6, 5)

    def test_find_images(
        self, series: Series, tmp_path: Path, make_volume: Callable[..., Volume]
    ) -> None:
        series("a")
        (tmp_path / "p").mkdir()
        series("p/b")
        assert [p.relative_to(tmp_path).as_posix() for p in io.find_images(tmp_path)] == [
            "a",
            "p/b",
        ]
        assert io.find_images(tmp_path / "a") == [tmp_path / "a"]
        io.write_image(tmp_path / "a" / "x.nrrd", make_volume())
        with pytest.raises(InputError, match="image files .x.nrrd. and DICOM slices"):
            io.find_images(tmp_path / "a")

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(InputError, match="holds no DICOM images"):
            io.read_header(tmp_path)


class TestDamage:
    def test_random_damage_never_escapes(self, series: Series) -> None:
        path = series() / "000.dcm"
        content = path.read_bytes()
        random = np.random.default_rng(0)
        for _ in range(300):
            damaged = bytearray(content)
            for at in random.integers(128, 700, random.integers(1, 6)):
                damaged[at % len(damaged)] = random.integers(256)
            path.write_bytes(bytes(damaged[: random.integers(1, len(damaged))]))
            try:
                read_dicom_header(path)
            except InputError as error:
                assert error.file == str(path) and error.remedy

    def test_a_file_cut_anywhere_before_its_pixels_is_refused(self, series: Series) -> None:
        folder = series()
        content = (folder / "004.dcm").read_bytes()
        pixels = content.index(b"\xe0\x7f\x10\x00")
        for end in range(content.index(b"1.2.3.4"), pixels, 7):
            (folder / "004.dcm").write_bytes(content[:end])
            with pytest.raises(InputError, match="damaged or unsupported"):
                io.read_header(folder)

    def test_deep_nesting_is_refused(self, tmp_path: Path) -> None:
        meta = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
        sequence = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
        (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + meta + sequence * 5000)
        with pytest.raises(InputError, match="damaged or unsupported"):
            io.read_header(tmp_path / "a.dcm")
