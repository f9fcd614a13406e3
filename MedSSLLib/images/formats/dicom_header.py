"""What the headers of DICOM files say about their frames, read with pydicom. Part of `dicom`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from MedSSLLib.core.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PIXELS = (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00", b"\xe0\x7f\x10\x00")
_PIXELS_BIG_ENDIAN = (b"\x7f\xe0\x00\x08", b"\x7f\xe0\x00\x09", b"\x7f\xe0\x00\x10")
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Place:
    """A frame: its position (mm, LPS), orientation (row and column cosines), pixel spacing (mm, of
    rows and of columns), and how stored values become grey values. Empty where it is not said.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    rescaled: bool = False


@dataclass(frozen=True)
class Header:
    """What a file says about its image; rows and columns are 0 where it holds none.

    places: one for each frame; none where a multi-frame image does not say where they lie.
    table: whether grey values are looked up in a table.
    """

    file: Path
    modality: str
    series: str
    description: str
    rows: int
    columns: int
    samples: int
    photometric: str
    table: bool
    places: tuple[Place, ...]


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the DICOM preamble."""
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom_header(file: Path) -> Header:
    """Read a file up to its pixels. Raises InputError when it is damaged, cut short or no DICOM."""
    with damage_explained(file):
        data = _before_pixels(file)
        return Header(
            file=file,
            modality=_text(data, "Modality"),
            series=_text(data, "SeriesInstanceUID"),
            description=_text(data, "SeriesDescription"),
            rows=_whole(data, "Rows"),
            columns=_whole(data, "Columns"),
            samples=_whole(data, "SamplesPerPixel"),
            photometric=_text(data, "PhotometricInterpretation"),
            table=bool(data.get("ModalityLUTSequence")),
            places=_places(data),
        )


@contextmanager
def damage_explained(file: Path) -> Iterator[None]:
    """Whatever pydicom raises for a damaged file, as an InputError that names the file; its
    warnings are left out.
    """
    import pydicom.config

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except (Exception, RecursionError) as error:  # of many kinds, whatever the damage hits
        raise InputError(
            f"is a damaged or unsupported DICOM file ({_in_short(error)})",
            file=file,
            remedy="Copy it again, or convert the series to NIfTI.",
        ) from None


class _Watched:
    """A stream that notices when less was there than was asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.short = stream, False
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        content = self._stream.read(count)
        # nothing at all in place of 8 bytes, an element's header, is the regular end of a file
        self.short |= len(content) < count and not (content == b"" and count == 8)
        return content


def _before_pixels(file: Path) -> Dataset:
    import pydicom

    with open(file, "rb") as stream:
        watched = _Watched(stream)
        data: Dataset = pydicom.dcmread(watched, stop_before_pixels=True)
        if getattr(data.file_meta, "TransferSyntaxUID", "") == _DEFLATED:
            return data
        if watched.short:
            raise EOFError("it ends within an element")
        following = stream.read(4)
    image = "Image Storage" in getattr(data.get("SOPClassUID"), "name", "")
    if (image or "Rows" in data) and following not in (*_PIXELS, *_PIXELS_BIG_ENDIAN):
        raise EOFError("it ends before its pixels")
    return data


def _places(data: Dataset) -> tuple[Place, ...]:
    groups = data.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return () if _whole(data, "NumberOfFrames") > 1 else (_place(data, data, data),)
    shared = _first(data, "SharedFunctionalGroupsSequence")
    return tuple(_place(data, group, shared) for group in groups)


def _place(data: Dataset, group: Dataset, shared: Any) -> Place:
    """Where a frame lies: said for itself, for all frames, or in a classic file at the top."""

    def macro(sequence: str, keyword: str) -> tuple[float, ...]:
        own, common = _first(group, sequence), _first(shared, sequence)
        for source in (data,) if group is data else (own, common):
            found = _numbers(source, keyword)
            if found:
                return found
        return ()

    transformation = "PixelValueTransformationSequence"
    slope = macro(transformation, "RescaleSlope") or _numbers(data, "RescaleSlope")
    intercept = macro(transformation, "RescaleIntercept") or _numbers(data, "RescaleIntercept")
    return Place(
        macro("PlanePositionSequence", "ImagePositionPatient"),
        macro("PlaneOrientationSequence", "ImageOrientationPatient"),
        macro("PixelMeasuresSequence", "PixelSpacing"),
        slope[0] if slope else 1.0,
        intercept[0] if intercept else 0.0,
        bool(slope or intercept),
    )


def _first(item: Any, keyword: str) -> Any:
    sequence = item.get(keyword) if item is not None else None
    return sequence[0] if sequence else None


def _text(item: Any, keyword: str) -> str:
    value = item.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _numbers(item: Any, keyword: str) -> tuple[float, ...]:
    """Numbers of an element; empty when it is missing or malformed."""
    try:
        value = item.get(keyword) if item is not None else None
        if value is None or value == "":
            return ()
        if isinstance(value, str | int | float):
            return (float(value),)
        return tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return ()


def _whole(item: Any, keyword: str) -> int:
    found = _numbers(item, keyword)
    return int(found[0]) if found and 0 <= found[0] < 2**31 else 0


def _in_short(error: BaseException) -> str:
    words = str(error).strip().split("\n")[0].rstrip(".")
    return (words or type(error).__name__)[:120]
