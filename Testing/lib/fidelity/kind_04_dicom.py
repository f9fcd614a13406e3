"""Kind 4: DICOM as scanners, archives and converters write it.

pydicom writes the files, from grey values that are known. Real series are compared with their
reference NIfTI in Testing/lib/images/test_dicom.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import save, scan
from Testing.lib.fidelity.registry import HANDLED, REFUSED, WARNED, Check, variant

KIND = "4 DICOM"
CT, MR, PET, ENHANCED = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "128", "4.1"))
CHANGE = Callable[[Dataset, int], None]


def stored(slices: int = 6, shape: tuple[int, int] = (14, 16)) -> np.ndarray:
    random = np.random.default_rng(3)
    ramp = np.arange(slices)[:, None, None] * 100
    return (random.integers(0, 200, (slices, *shape)) + ramp).astype(np.uint16)


def image(array: np.ndarray, kind: str = MR, series: str = "1.2.3.4") -> Dataset:
    """The elements that every image has; array is [row, column] or [frame, row, column]."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = kind, generate_uid()
    data.Modality = {CT: "CT", PET: "PT"}.get(kind, "MR")
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", series
    data.SeriesDescription = "T1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = array.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * array.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    data["PixelData"].VR = "OW"
    if array.ndim == 3:
        data.NumberOfFrames = len(array)
    return data


def write(path: Path, data: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        values = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
        data.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
    if syntax == RLELossless:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.compress(RLELossless)
    data.save_as(path, enforce_file_format=True)


def place(data: Dataset, number: int, gap: float = 2.0) -> Dataset:
    data.ImagePositionPatient = [-10, 5, f"{gap * number:g}"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [1.1, 1.2]
    data.InstanceNumber = number + 1
    return data


def series(
    folder: Path,
    change: CHANGE = lambda data, number: None,
    *,
    array: np.ndarray | None = None,
    kind: str = MR,
    syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """One file a slice; `change` alters what a file holds."""
    for number, values in enumerate(stored() if array is None else array):
        data = place(image(values, kind), number)
        change(data, number)
        write(folder / "s" / f"{number:03d}.dcm", data, syntax)
    return folder / "s"


def same(path: Path, expected: np.ndarray, spacing: Sequence[float] = (1.2, 1.1, 2.0)) -> None:
    found = io.read_image(path)
    largest = np.abs(found.array.astype(float) - expected).max()
    assert largest <= 1e-4 * np.abs(expected).max(), f"off by up to {largest:g}"
    assert np.allclose(found.geometry.spacing, spacing), f"spacing {found.geometry.spacing}"
    assert np.allclose(found.geometry.origin, (-10, 5, 0))


def plain(change: CHANGE = lambda data, number: None, **options: Any) -> Check:
    """A series whose grey values are the stored ones."""

    def check(folder: Path) -> str | None:
        array = options.get("array")
        same(series(folder, change, **options), stored() if array is None else array)
        return None

    return check


variant(KIND, "explicit little-endian")(plain())
variant(KIND, "implicit little-endian")(plain(syntax=ImplicitVRLittleEndian))
variant(KIND, "explicit big-endian")(plain(syntax=ExplicitVRBigEndian))
variant(KIND, "deflated")(plain(syntax=DeflatedExplicitVRLittleEndian))
variant(KIND, "RLE")(plain(syntax=RLELossless))
variant(KIND, "signed 16 bits")(plain(array=stored().astype(np.int16) - 1000))
variant(KIND, "8 bits")(plain(array=(stored() // 4).astype(np.uint8)))
variant(KIND, "32 bits")(plain(array=stored().astype(np.uint32) * 1000))
variant(KIND, "file names against the order of slices")(
    plain(lambda data, number: place(data, number).__setattr__("InstanceNumber", 9 - number))
)


def compressed(compressor: str, sequence: bool = False) -> Check:
    def check(folder: Path) -> str | None:
        path = series(folder, _with_private if sequence else lambda data, number: None)
        for file in path.iterdir():
            slice_ = sitk.ReadImage(str(file))
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetUseCompression(True)
            writer.SetCompressor(compressor)
            writer.SetFileName(str(file))
            writer.Execute(slice_)
            assert pydicom.dcmread(file).file_meta.TransferSyntaxUID.is_compressed
        same(path, stored())
        return None

    return check


variant(KIND, "JPEG 2000")(compressed("JPEG2000"))
variant(KIND, "JPEG lossless")(compressed("JPEG"))


def compressed_scaled(folder: Path) -> str | None:
    """JPEG 2000 with a rescale slope of each file: the decoder must not apply one of its own."""
    check = compressed("JPEG2000")
    check(folder)
    expected = []
    for number, file in enumerate(sorted((folder / "s").iterdir())):
        data = pydicom.dcmread(file)
        data.RescaleSlope, data.RescaleIntercept = 1 + 0.5 * number, -10 * number
        data.save_as(file)
        expected.append(stored()[number] * (1 + 0.5 * number) - 10 * number)
    same(folder / "s", np.array(expected))
    return None


variant(KIND, "JPEG 2000 with a slope of each slice")(compressed_scaled)


def slopes(numbers: Sequence[float], offsets: Sequence[float], **options: Any) -> Check:
    def check(folder: Path) -> str | None:
        def change(data: Dataset, number: int) -> None:
            data.RescaleSlope, data.RescaleIntercept = numbers[number], offsets[number]

        path = series(folder, change, **options)
        array = options.get("array", stored())
        same(path, array * np.array(numbers)[:, None, None] + np.array(offsets)[:, None, None])
        return None

    return check


variant(KIND, "CT, intercept -1024")(slopes([1] * 6, [-1024] * 6, kind=CT))
variant(KIND, "CT, slices with other intercepts")(slopes([1] * 6, [0, -5, 7, 0, 1, 2], kind=CT))
variant(KIND, "PET, each slice its slope")(slopes([0.1 + 0.2 * n for n in range(6)], [0] * 6))
variant(KIND, "slope 0", REFUSED)(slopes([0] * 6, [0] * 6))


def twelve_bits(data: Dataset, number: int) -> None:
    data.BitsStored, data.HighBit = 12, 11
    values = np.frombuffer(data.PixelData, np.uint16) | 0x8000  # an overlay in the highest bit
    data.PixelData = values.astype(np.uint16).tobytes()


def twelve_signed(data: Dataset, number: int) -> None:
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 1
    values = np.frombuffer(data.PixelData, np.int16) & 0x0FFF  # the sign is not carried on
    data.PixelData = values.astype(np.int16).tobytes()


variant(KIND, "12 of 16 bits, an overlay above them")(plain(twelve_bits))
variant(KIND, "12 of 16 bits, signed")(plain(twelve_signed, array=stored().astype(np.int16) - 300))


def _with_private(data: Dataset, number: int) -> None:
    block = data.private_block(0x2001, "MAKER 1", create=True)
    item = Dataset()
    item.Rows, item.PixelSpacing, item.Modality = 3, [9, 9], "OT"
    block.add_new(1, "SQ", Items([item]))


def _undefined(data: Dataset, number: int) -> None:
    _with_private(data, number)
    data[0x2001, 0x1001].is_undefined_length = True
    data[0x2001, 0x1001].value[0].is_undefined_length_sequence_item = True


def _icon(data: Dataset, number: int) -> None:
    icon = image(np.full((4, 4), 7, np.uint8))
    for keyword in ("SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID"):
        delattr(icon, keyword)
    icon["PixelData"].VR = "OB"
    data.IconImageSequence = Items([icon])


def unknown_sequence(group: int, nested: bool) -> CHANGE:
    """A private sequence as UN of undefined length: its items are in implicit VR (PS3.5, 6.2.2)."""

    def element(*parts: int, value: bytes) -> bytes:
        return struct.pack("<HHI", *parts) + value

    inner = element(8, 0x100, 4, value=b"ABCD") + element(0x18, 0x50, 4, value=b"2.0 ")
    start, end = struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1), b"\xfe\xff\x0d\xe0" + bytes(4)
    stop = b"\xfe\xff\xdd\xe0" + bytes(4)
    if nested:
        inner += struct.pack("<HHI", group, 0x1002, 2**32 - 1) + start + inner + end + stop
    value = start + inner + end + stop

    def change(data: Dataset, number: int) -> None:
        data.add_new((group, 0x10), "LO", "MAKER 1")
        marker = b"MARKER" + bytes([group % 256, number]) + bytes(8)
        data.add_new((group, 0x1001), "UN", marker)

    change.value = value  # type: ignore[attr-defined]
    return change


def raw_sequence(group: int, nested: bool) -> Check:
    change = unknown_sequence(group, nested)

    def check(folder: Path) -> str | None:
        path = series(folder, change)
        for number, file in enumerate(sorted(path.iterdir())):
            content = file.read_bytes()
            marker = b"MARKER" + bytes([group % 256, number]) + bytes(8)
            at = content.index(marker)
            value = change.value  # type: ignore[attr-defined]
            undefined = struct.pack("<I", 2**32 - 1)
            file.write_bytes(content[: at - 4] + undefined + value + content[at + len(marker) :])
        same(path, stored())
        return None

    return check


variant(KIND, "private sequence")(plain(_with_private))
variant(KIND, "private sequence, implicit VR")(plain(_with_private, syntax=ImplicitVRLittleEndian))
variant(KIND, "private sequence of undefined length")(plain(_undefined))
variant(KIND, "private sequence as UN of undefined length")(raw_sequence(0x2001, False))
variant(KIND, "the same, nested")(raw_sequence(0x2001, True))
variant(KIND, "the same, in the group of the image")(raw_sequence(0x0029, True))
variant(KIND, "icon with rows and pixels of its own")(plain(_icon))
variant(KIND, "icon, deflated")(plain(_icon, syntax=DeflatedExplicitVRLittleEndian))


def enhanced(
    folder: Path,
    numbers: Sequence[float],
    offsets: Sequence[float],
    *,
    shared: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    order: Sequence[int] = range(6),
    top: bool = False,
) -> Path:
    array = stored()
    data = image(array[list(order)], ENHANCED)
    common, frames = Dataset(), []
    common.PlaneOrientationSequence = [Dataset()]
    common.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    common.PixelMeasuresSequence = [Dataset()]
    common.PixelMeasuresSequence[0].PixelSpacing = [1.1, 1.2]
    for number in order:
        frame, value = Dataset(), Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10, 5, 2.0 * number]
        value.RescaleSlope, value.RescaleIntercept = numbers[number], offsets[number]
        value.RescaleType = "US"
        if top:
            data.RescaleSlope, data.RescaleIntercept = numbers[0], offsets[0]
        else:
            (common if shared else frame).PixelValueTransformationSequence = [value]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence = [common]
    data.PerFrameFunctionalGroupsSequence = frames
    write(folder / "s" / "image.dcm", data, syntax)
    return folder / "s"


def frames(numbers: Sequence[float], offsets: Sequence[float], **options: Any) -> Check:
    def check(folder: Path) -> str | None:
        path = enhanced(folder, numbers, offsets, **options)
        expected = stored() * np.array(numbers)[:, None, None] + np.array(offsets)[:, None, None]
        same(path, expected)
        same(path / "image.dcm", expected)
        return None

    return check


RISING, FALLING = [1 + 0.5 * n for n in range(6)], [-10.0 * n for n in range(6)]
variant(KIND, "enhanced, each frame its slope")(frames(RISING, FALLING))
variant(KIND, "enhanced, each frame its slope, stored in another order")(
    frames(RISING, FALLING, order=[3, 1, 5, 0, 2, 4])
)
variant(KIND, "enhanced, each frame its slope, RLE")(frames(RISING, FALLING, syntax=RLELossless))
variant(KIND, "enhanced, each frame its slope, deflated")(
    frames(RISING, FALLING, syntax=DeflatedExplicitVRLittleEndian)
)
variant(KIND, "enhanced, one slope in each frame")(frames([2] * 6, [-7] * 6))
variant(KIND, "enhanced, one slope for all frames")(frames([2] * 6, [-7] * 6, shared=True))
variant(KIND, "enhanced, slope at the top")(frames([2] * 6, [-7] * 6, top=True))
variant(KIND, "enhanced, intercepts alone")(frames([1] * 6, FALLING))


def modalities(kinds: Sequence[str], expect: str) -> None:
    names = "".join({CT: "C", MR: "M", PET: "P"}[kind] for kind in kinds)

    @variant(KIND, f"modalities of a folder of series {names}", expect)
    def check(folder: Path) -> str | None:
        for number, kind in enumerate(kinds):
            path = series(folder / f"{number:02d}", kind=kind)
            for file in path.iterdir():
                data = pydicom.dcmread(file)
                data.SeriesInstanceUID = f"1.2.3.{number}"
                data.save_as(file)
        project = Project.create(folder / "p", folder)
        if len(set(kinds)) == 1:
            assert project.modality == {CT: "CT", MR: "MR", PET: "PT"}[kinds[0]]
        return "; ".join(project.warnings) or None


modalities([CT] * 4, HANDLED)
modalities([PET] * 3, HANDLED)
modalities([CT] * 5 + [MR] * 6, WARNED)
modalities([MR, CT, MR, MR, MR], WARNED)
modalities([MR, MR, MR, MR, CT, MR, MR, MR, MR], WARNED)


def positions(gap: float, digits: int, slices: int = 20, tilt: float = 0.0) -> Check:
    def check(folder: Path) -> str | None:
        array = stored(slices)

        def change(data: Dataset, number: int) -> None:
            data.ImagePositionPatient = [-10, 5, str(round(gap * number, digits))]

        path = series(folder, change, array=array)
        found = io.read_image(path)
        assert np.array_equal(found.array, array)
        assert abs(found.geometry.spacing[2] - gap) < 0.05 / (slices - 1) * 2 + 1e-6
        return None

    return check


for gap, digits in ((0.625, 1), (1.25, 1), (0.35, 2), (0.6, 3), (3.3, 1), (0.4375, 1)):
    variant(KIND, f"slices {gap} mm apart, positions with {digits} decimals")(
        positions(gap, digits)
    )
variant(KIND, "3 slices 0.625 mm apart, positions with 1 decimal")(positions(0.625, 1, 3))


@variant(KIND, "oblique slices, positions with 1 decimal")
def oblique(folder: Path) -> str | None:
    normal = np.array([0.0, -np.sin(0.3), np.cos(0.3)])

    def change(data: Dataset, number: int) -> None:
        data.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(0.3)), float(np.sin(0.3))]
        data.ImagePositionPatient = [str(round(x, 1)) for x in 0.7 * number * normal]

    array = stored(20)
    found = io.read_image(series(folder, change, array=array))
    assert np.array_equal(found.array, array) and abs(found.geometry.spacing[2] - 0.7) < 0.01
    return None


def gone(folder: Path, missing: int, gap: float, digits: int) -> None:
    path = series(
        folder,
        lambda data, number: data.__setattr__(
            "ImagePositionPatient", [-10, 5, str(round(gap * number, digits))]
        ),
        array=stored(20),
    )
    (path / f"{missing:03d}.dcm").unlink()
    io.read_image(path)
    raise AssertionError("a missing slice was not noticed")


for gap, missing in ((0.625, 10), (1.25, 1), (0.625, 18)):
    variant(KIND, f"slice {missing} of 20 missing, {gap} mm, positions with 1 decimal", REFUSED)(
        lambda folder, gap=gap, missing=missing: gone(folder, missing, gap, 1)  # type: ignore[misc]
    )


@variant(KIND, "grey values through a table (Modality LUT)", REFUSED)
def table(folder: Path) -> str | None:
    def change(data: Dataset, number: int) -> None:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4, 0, 16], "US", [1, 2, 3, 4]
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        data.ModalityLUTSequence = [item]

    io.read_image(series(folder, change))
    raise AssertionError("the table was ignored")


@variant(KIND, "palette colour", REFUSED)
def palette(folder: Path) -> str | None:
    io.read_image(
        series(
            folder, lambda data, number: setattr(data, "PhotometricInterpretation", "PALETTE COLOR")
        )
    )
    raise AssertionError("indices of colours were taken for grey values")


@variant(KIND, "last slice cut short", REFUSED)
def cut(folder: Path) -> str | None:
    path = series(folder)
    content = (path / "005.dcm").read_bytes()
    for end in (400, 700, len(content) - 5):
        (path / "005.dcm").write_bytes(content[:end])
        try:
            io.read_image(path)
        except InputError as error:
            refusal = error
        else:
            raise AssertionError(f"cut at {end}, and read")
    raise refusal


@variant(KIND, "labels of a series stay on it")
def with_label(folder: Path) -> str | None:
    path = series(folder / "images")
    grid = io.read_header(path)
    lps = np.diag([-1, -1, 1, 1]) @ grid.matrix
    label = (scan(shape=grid.size)[1] > 0).astype(np.uint8)
    save(folder / "labels" / "s.nii.gz", label, lps)
    seen = io.read_label(folder / "labels" / "s.nii.gz", grid).array
    assert np.array_equal(seen.T, label)
    return None
