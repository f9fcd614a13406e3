"""Pixels of DICOM files: decoded as they are stored, then rescaled frame by frame. Part of
`dicom`.

Compressed pixels are decoded by GDCM (in SimpleITK), which gets a file with nothing but the pixels:
of a whole file it would apply one rescale slope to all frames. The others are decoded by pydicom.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.dicom_header import damage_explained

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_RLE = "1.2.840.10008.1.2.5"
_DESCRIBING = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)
_CAPTURE_8, _CAPTURE_16 = "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3"


def stored_frames(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Stored values [frame, row, column] of a file, before any rescaling.

    Raises InputError for pixels that are missing, cut short, of another shape or compressed in a
    way that GDCM does not know.
    """
    import pydicom

    with damage_explained(file):
        data = pydicom.dcmread(file)
    try:
        with damage_explained(file):
            array = _decoded(data)
    except InputError:
        array = np.empty(0)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != shape:
        raise InputError(
            "is truncated, damaged or compressed in an unsupported way",
            file=file,
            remedy="Copy it again, or convert the series to NIfTI.",
        )
    return array


def rescaled(frames: Sequence[np.ndarray], rescale: Sequence[tuple[float, float]]) -> np.ndarray:
    """Grey values [frame, row, column]: stored values x slope + intercept, each frame's own.

    The smallest of int16, uint16 and int32 that holds them where all slopes are 1 and the
    intercepts whole, else float32.
    """
    whole = all(slope == 1 and offset == round(offset) for slope, offset in rescale)
    if not whole or any(frame.dtype.kind == "f" for frame in frames):
        grey = np.empty((len(frames), *frames[0].shape), np.float32)
        for number, (frame, (slope, offset)) in enumerate(zip(frames, rescale, strict=True)):
            grey[number] = frame * np.float64(slope) + offset
        return grey
    offsets = [int(offset) for _, offset in rescale]
    low = min(int(frame.min()) + offset for frame, offset in zip(frames, offsets, strict=True))
    high = max(int(frame.max()) + offset for frame, offset in zip(frames, offsets, strict=True))
    kind = next(
        (
            kind
            for kind in (np.int16, np.uint16, np.int32)
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        ),
        np.int64,
    )
    result = np.empty((len(frames), *frames[0].shape), kind)
    for number, (frame, offset) in enumerate(zip(frames, offsets, strict=True)):
        result[number] = frame.astype(np.int64) + offset
    return result


def _decoded(data: Dataset) -> np.ndarray:
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax.is_encapsulated and syntax != _RLE:
        array = _decoded_by_gdcm(data)
    else:
        array = np.asarray(data.pixel_array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.dtype.kind == "f" else _meaningful_bits(array, data)


def _meaningful_bits(array: np.ndarray, data: Dataset) -> np.ndarray:
    """Values without the bits that are allocated and not stored (overlays), the sign carried on."""
    allocated, stored = int(data.BitsAllocated), int(data.BitsStored)
    unused = int(data.get("HighBit", stored - 1)) + 1 - stored
    if stored >= allocated or not 0 <= unused < allocated:
        return array
    values = (array.astype(np.int64) >> unused) & (2**stored - 1)
    if int(data.PixelRepresentation) == 1:
        values = np.where(values >= 2 ** (stored - 1), values - 2**stored, values)
    return values.astype(array.dtype)


def _decoded_by_gdcm(data: Dataset) -> np.ndarray:
    from pydicom.dataset import Dataset as Plain
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import generate_uid

    plain = Plain()
    for keyword in _DESCRIBING:
        if keyword in data:
            plain[keyword] = data[keyword]
    plain.PhotometricInterpretation = "MONOCHROME2"  # GDCM would invert the values of MONOCHROME1
    plain.SOPClassUID = _CAPTURE_8 if int(data.BitsAllocated) <= 8 else _CAPTURE_16
    plain.SOPInstanceUID = generate_uid()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    plain.file_meta.MediaStorageSOPClassUID = plain.SOPClassUID
    plain.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID
    with tempfile.TemporaryDirectory(prefix="medssl-") as folder:
        copy = Path(folder) / "pixels.dcm"
        plain.save_as(copy, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(copy), imageIO="GDCMImageIO"))
