"""More than fifty kinds of bad files, made here: each is refused with its case, file, finding and a
remedy.

Bad folders, selections, tables and manifests are in test_bad_projects.py, DICOM series in
test_dicom.py.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each

GRID = Geometry((12, 10, 8), (1.0, 1.5, 2.0), (3.0, -4.0, 5.0))
HEADER, READ = "header", "pixels"
"""Where a fault is found: already from the header (so `init` refuses it), or when pixels are
read.
"""


def noise(shape: tuple[int, ...] = GRID.shape, kind: object = np.float32) -> np.ndarray:
    return (100 * np.random.default_rng(0).normal(size=shape)).astype(kind)  # type: ignore[call-overload,no-any-return]


def saved(path: Path, array: np.ndarray | None = None, *, vector: bool = False) -> bytes:
    """Write an array with SimpleITK (uncompressed unless .gz) and return the file's bytes."""
    sitk.WriteImage(
        sitk.GetImageFromArray(noise() if array is None else array, isVector=vector), path
    )
    return path.read_bytes()


def patched(path: Path, *changes: tuple[int, str, tuple[float, ...]]) -> None:
    """A NIfTI file with header fields overwritten: (offset, struct format, values)."""
    content = bytearray(saved(path))
    for offset, form, values in changes:
        struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(content)


def text_image(path: Path, header: str, data: bytes = b"") -> None:
    path.write_bytes(header.encode() + data)


def with_voxel(path: Path, value: float) -> None:
    array = noise()
    array[1, 2, 3] = value
    saved(path, array)


def turned_to(path: Path, content: bytes) -> None:
    path.write_bytes(content)


SFORM, QFORM_CODES, DIM, SPACING, TYPE = 280, 252, 40, 76, 70
IDENTITY = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
MHA = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_FLOAT\n"
NRRD = (
    "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 "
    "4\nencoding: raw\n"
    "endian: little\n"
)
Maker = Callable[[Path], object]

IMAGES: dict[str, tuple[str, Maker, str, str]] = {
    # name: (file name, maker, words of the finding, where it is found)
    "missing": ("a.nii.gz", lambda p: None, "does not exist", HEADER),
    "a folder called like a file": (
        "a.nii.gz",
        lambda p: p.mkdir(),
        "holds no DICOM images",
        HEADER,
    ),
    "no bytes": ("a.nii.gz", lambda p: p.touch(), "is empty .0 bytes", HEADER),
    "text": ("a.nii.gz", lambda p: p.write_text("hello\n" * 200), "not a NIfTI file", HEADER),
    "text as NRRD": (
        "a.nrrd",
        lambda p: p.write_text("hello\n" * 200),
        "cannot be read as an image",
        HEADER,
    ),
    "text as MetaImage": (
        "a.mha",
        lambda p: p.write_text("hello\n" * 200),
        "without a usable size",
        HEADER,
    ),
    "PNG called NIfTI": (
        "a.nii",
        lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(900)),
        "not a NIfTI",
        HEADER,
    ),
    "gzip called .nii": (
        "a.nii",
        lambda p: p.write_bytes(gzip.compress(saved(p))),
        "gzip-compressed but",
        HEADER,
    ),
    "header cut": (
        "a.nii",
        lambda p: p.write_bytes(saved(p)[:200]),
        "truncated within its header",
        HEADER,
    ),
    "NIfTI cut": (
        "a.nii",
        lambda p: p.write_bytes(saved(p)[:-1]),
        r"truncated.*promises 4,192.*4,191",
        HEADER,
    ),
    "gzip cut": (
        "a.nii.gz",
        lambda p: p.write_bytes(saved(p)[:-9]),
        "compressed data end too early",
        READ,
    ),
    "gzip of half a file": (
        "a.nii.gz",
        lambda p: p.write_bytes(gzip.compress(gzip.decompress(saved(p))[:2000])),
        "truncated: the header promises",
        READ,
    ),
    "gzip damaged": (
        "a.nii.gz",
        lambda p: p.write_bytes(saved(p)[:-60] + bytes(60)),
        "damaged|early",
        READ,
    ),
    "NRRD cut": ("a.nrrd", lambda p: p.write_bytes(saved(p)[:-1]), "truncated or damaged", READ),
    "MetaImage cut": ("a.mha", lambda p: p.write_bytes(saved(p)[:-1]), "truncated", HEADER),
    "MetaImage compressed and cut": (
        "a.mha",
        lambda p: (
            sitk.WriteImage(sitk.GetImageFromArray(noise()), p, True),
            p.write_bytes(p.read_bytes()[:-50]),
        ),
        "end too early",
        READ,
    ),
    "size in the header is a lie": (
        "a.nii",
        lambda p: patched(p, (DIM, "4h", (3, 30000, 30000, 30000))),
        "truncated: the header promises 108,000,",
        HEADER,
    ),
    "size below 1": (
        "a.nii",
        lambda p: patched(p, (DIM, "4h", (3, 12, -10, 8))),
        "impossible size",
        HEADER,
    ),
    "no dimensions": ("a.nii", lambda p: patched(p, (DIM, "h", (0,))), "impossible size", HEADER),
    "unknown voxel type": (
        "a.nii",
        lambda p: patched(p, (TYPE, "2h", (12345, 32))),
        "cannot be read",
        HEADER,
    ),
    "NaN": ("a.nii.gz", lambda p: with_voxel(p, np.nan), "1 voxels that are not finite", READ),
    "NaN, uncompressed": (
        "a.nii",
        lambda p: with_voxel(p, np.nan),
        "1 voxels that are not finite",
        READ,
    ),
    "infinity": ("a.nrrd", lambda p: with_voxel(p, -np.inf), "1 voxels that are not finite", READ),
    "constant": (
        "a.nii.gz",
        lambda p: saved(p, np.full(GRID.shape, 7, np.int16)),
        "every voxel is 7",
        READ,
    ),
    "2D": (
        "a.nii.gz",
        lambda p: saved(p, noise((10, 12))),
        "is a 2D image, expected a 3D volume",
        HEADER,
    ),
    "one slice": ("a.nii.gz", lambda p: saved(p, noise((1, 10, 12))), "is a single slice", HEADER),
    "4D": ("a.nii.gz", lambda p: saved(p, noise((3, 4, 5, 6))), "is a 4D image", HEADER),
    "RGB": (
        "a.nii.gz",
        lambda p: saved(p, noise((4, 5, 6, 3), np.uint8), vector=True),
        "3 values per voxel",
        HEADER,
    ),
    "vectors": (
        "a.mha",
        lambda p: saved(p, noise((4, 5, 6, 2)), vector=True),
        "2 values per voxel",
        HEADER,
    ),
    "complex": (
        "a.nii.gz",
        lambda p: saved(p, noise().astype(np.complex64)),
        "complex numbers",
        HEADER,
    ),
    "spacing 0": (
        "a.nii",
        lambda p: patched(p, (SPACING, "4f", (1, 0, 1, 1))),
        r"spacing \[0.0, 1.0",
        HEADER,
    ),
    "spacing NaN": (
        "a.nii",
        lambda p: patched(p, (SPACING, "4f", (1, 1, np.nan, 1))),
        "spacing .1.0, nan",
        HEADER,
    ),
    "spacing huge": (
        "a.mha",
        lambda p: text_image(
            p,
            MHA + "ElementSpacing = 1 1 900\nElementDataFile = LOCAL\n",
            noise((4, 4, 4)).tobytes(),
        ),
        "implausible .* 900",
        HEADER,
    ),
    "spacing in metres": (
        "a.mha",
        lambda p: text_image(
            p,
            MHA + "ElementSpacing = 5e-4 5e-4 5e-4\nElementDataFile = LOCAL\n",
            noise((4, 4, 4)).tobytes(),
        ),
        "implaus",
        HEADER,
    ),
    "spacing 0 in NRRD": (
        "a.nrrd",
        lambda p: text_image(p, NRRD + "space directions: (0,0,0) (0,1,0) (0,0,1)\n\n", bytes(256)),
        "not finite|spacing",
        HEADER,
    ),
    "sheared MetaImage": (
        "a.mha",
        lambda p: text_image(
            p, MHA + "TransformMatrix = 1 0.5 0 0 1 0 0 0 1\nElementDataFile = LOCAL\n", bytes(256)
        ),
        "not perp",
        HEADER,
    ),
    "flat axes": (
        "a.mha",
        lambda p: text_image(
            p, MHA + "TransformMatrix = 1 0 0 1 0 0 0 0 1\nElementDataFile = LOCAL\n", bytes(256)
        ),
        "not perpendicular",
        HEADER,
    ),
    "sheared NIfTI": (
        "a.nii",
        lambda p: patched(p, (QFORM_CODES, "2h", (0, 2)), (SFORM, "12f", (1, 0.3, *IDENTITY[2:]))),
        "not perpend",
        HEADER,
    ),
    "position NaN": (
        "a.nii",
        lambda p: patched(
            p, (QFORM_CODES, "2h", (0, 2)), (SFORM, "12f", (*IDENTITY[:3], np.nan, *IDENTITY[4:]))
        ),
        "not finite|not perpendicular",
        HEADER,
    ),
    "Analyze": (
        "a.hdr",
        lambda p: p.write_bytes(struct.pack("<i", 348) + bytes(344)),
        "Analyze",
        HEADER,
    ),
    "data file missing": (
        "a.mhd",
        lambda p: text_image(p, MHA + "ElementDataFile = a.raw\n"),
        "not exist",
        HEADER,
    ),
    "data file elsewhere": (
        "a.mhd",
        lambda p: text_image(p, MHA + "ElementDataFile = ../../etc/passwd\n"),
        "not one file beside it",
        HEADER,
    ),
    "data file elsewhere (NRRD)": (
        "a.nhdr",
        lambda p: text_image(p, NRRD + "data file: /etc/passwd\n"),
        "not one file beside it",
        HEADER,
    ),
    "DICOM preamble only": (
        "a.dcm",
        lambda p: p.write_bytes(bytes(128) + b"DICM"),
        "damaged or unsupported DICOM",
        HEADER,
    ),
    "DICOM garbage": (
        "a.dcm",
        lambda p: p.write_bytes(bytes(128) + b"DICM" + b"\x08\0\x05\0zz" * 50),
        "damaged or unsupported DICOM",
        HEADER,
    ),
}


@each("kind", IMAGES)
def test_bad_images_are_refused(tmp_path: Path, kind: str) -> None:
    name, make, words, where = IMAGES[kind]
    make(tmp_path / name)
    if where == READ:
        io.read_header(tmp_path / name)
    for read in (io.read_header, io.read_image) if where == HEADER else (io.read_image,):
        with pytest.raises(InputError, match=words) as caught:
            read(tmp_path / name, case="c7")
        error = caught.value
        assert (error.case, error.file) == ("c7", str(tmp_path / name))
        assert error.remedy and error.exit_code == 2
        assert str(error).startswith(f"c7: {tmp_path / name}: ")


def test_there_are_more_than_forty_kinds() -> None:
    assert len(IMAGES) + len(LABELS) >= 50


def test_the_good_cases_of_a_folder_go_on_and_every_bad_one_is_listed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    expected = set()
    for number, (name, make, _, where) in enumerate(IMAGES.values()):
        target = images / f"bad{number}{name[1:]}"
        if where == HEADER and not name.endswith(".dcm"):
            make(target)
        if target.is_file():
            expected.add(target.name.split(".")[0])
        elif target.is_dir():
            target.rmdir()
    for n in range(3):
        io.write_image(images / f"good{n}.nii.gz", Volume(noise(), GRID))
    project = Project.create(tmp_path / "project", images)
    assert [case.name for case in project.cases] == ["good0", "good1", "good2"]
    assert {error.case for error in project.refused} == expected
    assert all(error.remedy and error.file.startswith(str(images)) for error in project.refused)


def label_file(path: Path, array: np.ndarray | None = None, grid: Geometry = GRID) -> None:
    values = np.zeros(grid.shape, np.uint8) if array is None else array
    if array is None:
        values[2:6, 3:7, 3:9] = 1
    io.write_image(path, Volume(values, grid))


def grid_with(**changes: object) -> Geometry:
    fields = {
        "size": GRID.size,
        "spacing": GRID.spacing,
        "origin": GRID.origin,
        "direction": GRID.direction,
    }
    return Geometry(**(fields | changes))  # type: ignore[arg-type]


def segmentation(
    path: Path, array: np.ndarray, origin: tuple[float, ...] = GRID.origin, **header: str
) -> None:
    image = sitk.GetImageFromArray(array.astype(np.uint8), isVector=array.ndim == 4)
    image.SetSpacing(GRID.spacing)
    image.SetOrigin(origin)
    for key, value in header.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, path)


ONE = {"Segment0_Name": "a", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
TWO = ONE | {"Segment1_Name": "b", "Segment1_LabelValue": "1", "Segment1_Layer": "1"}
LABELS: dict[str, tuple[str, Maker, str]] = {
    "other size": (
        "l.nii.gz",
        lambda p: label_file(p, grid=grid_with(size=(12, 10, 9))),
        "grid.*size .12, 10, 9",
    ),
    "other spacing": (
        "l.nii.gz",
        lambda p: label_file(p, grid=grid_with(spacing=(1, 1.5, 2.2))),
        "grid.*spacing",
    ),
    "other origin": (
        "l.nii.gz",
        lambda p: label_file(p, grid=grid_with(origin=(3, -4, 7.0))),
        "grid.*origin",
    ),
    "header lost": (
        "l.nii.gz",
        lambda p: label_file(p, grid=Geometry(GRID.size)),
        "grid.*copy the image's header",
    ),
    "turned by 5 degrees": (
        "l.nii.gz",
        lambda p: label_file(
            p, grid=grid_with(direction=(0.9962, -0.0872, 0, 0.0872, 0.9962, 0, 0, 0, 1))
        ),
        "grid.*direction",
    ),
    "mirrored header": (
        "l.nii.gz",
        lambda p: label_file(p, grid=grid_with(direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))),
        "lies on another grid",
    ),
    "fractions": ("l.nii.gz", lambda p: label_file(p, noise()), "not whole numbers"),
    "NaN": (
        "l.nii.gz",
        lambda p: saved(p, np.full(GRID.shape, np.nan, np.float32)),
        "960 voxels that are not finite",
    ),
    "missing": ("l.nii.gz", lambda p: None, "does not exist"),
    "2D": ("l.nii.gz", lambda p: saved(p, noise((10, 12), np.uint8)), "is a 2D image"),
    "4D": ("l.nii.gz", lambda p: saved(p, noise((2, 8, 10, 12), np.uint8)), "is a 4D image"),
    "RGB": (
        "l.nii.gz",
        lambda p: saved(p, noise((8, 10, 12, 3), np.uint8), vector=True),
        "3 values per voxel",
    ),
    "cut": ("l.nii.gz", lambda p: p.write_bytes(saved(p)[:-9]), "end too early"),
    "segments overlap": (
        "l.seg.nrrd",
        lambda p: segmentation(p, np.ones((*GRID.shape, 2)), **TWO),
        "segments 'a' and 'b' overlap in 960 voxels",
    ),
    "segment of another image": (
        "l.seg.nrrd",
        lambda p: segmentation(p, np.ones(GRID.shape), (90, 0, 0), **ONE),
        "reaches outside its image",
    ),
    "segment value 0": (
        "l.seg.nrrd",
        lambda p: segmentation(p, np.ones(GRID.shape), **(ONE | {"Segment0_LabelValue": "0"})),
        "impossible",
    ),
    "segment layer missing": (
        "l.seg.nrrd",
        lambda p: segmentation(p, np.ones(GRID.shape), **TWO),
        "not stored",
    ),
}


@each("kind", LABELS)
def test_bad_labels_are_refused(tmp_path: Path, kind: str) -> None:
    name, make, words = LABELS[kind]
    make(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        io.read_label(tmp_path / name, GRID, case="c7")
    assert (caught.value.case, caught.value.file) == ("c7", str(tmp_path / name))
    assert caught.value.remedy


def test_random_damage_to_headers_is_refused_or_harmless(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for name, size in (("a.nii", 352), ("a.mha", 250), ("a.nrrd", 250)):
        content = saved(tmp_path / name)
        for _ in range(120):
            damaged = bytearray(content)
            for at in random.integers(0, size, random.integers(1, 5)):
                damaged[at] = random.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                volume = io.read_image(tmp_path / name)
            except InputError as error:
                assert error.file and error.remedy
            else:
                assert volume.array.ndim == 3 and np.isfinite(volume.geometry.matrix).all()
