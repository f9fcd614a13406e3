"""Is an image file whole? NIfTI and MetaImage data that ITK would silently replace by zeros are
found here.

Headers are parsed with the standard library: sizes are compared with the file before anything is
allocated, and compressed data are decompressed once to check length and checksum.
Source: the MetaIO documentation (itk.org); for NIfTI see `nifti`.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.nifti import data_file, is_nifti, plain_bytes, read_nifti_header

_GZIP, _MAX_RATIO, _CHUNK = b"\x1f\x8b", 1040, 4 * 2**20
_META_BYTES = {
    "CHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "LONG": 4,
    "ULONG": 4,
    "FLOAT": 4,
    "UCHAR": 1,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
    "DOUBLE": 8,
}
_REAL = {16: "f4", 64: "f8"}  # NIfTI data types
_TRUNCATED = "Copy or download the file again."


@dataclass(frozen=True)
class _Promise:
    """What a header promises: the file with the pixels, the bytes before and up to their end, their
    type if real.
    """

    data: Path
    start: int
    end: int
    real: str


def check_whole(path: Path, *, pixels: bool) -> None:
    """Check a NIfTI or MetaImage file against its own header; other formats are left to ITK.

    With `pixels` the data are read too: length, checksum and, in NIfTI, whether every value is
    finite (ITK turns NaN into 0).

    Raises InputError for what fails, for a header without a usable size or spacing, and for Analyze
    files, which do not say where left is.
    """
    name = path.name.lower()
    try:
        if is_nifti(path):
            _check_nifti(path, pixels)
        elif name.endswith((".mha", ".mhd")):
            _check_meta(path, pixels)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise InputError(f"is damaged ({error})", file=path, remedy=_TRUNCATED) from None
        raise InputError(
            f"cannot be read ({error.strerror})", file=path, remedy="Check the path."
        ) from error
    except EOFError:
        raise InputError(
            "is truncated: the compressed data end too early", file=path, remedy=_TRUNCATED
        ) from None
    except zlib.error as error:
        raise InputError(f"is damaged ({error})", file=path, remedy=_TRUNCATED) from None


def _check_nifti(path: Path, pixels: bool) -> None:
    header = read_nifti_header(path)
    data = data_file(path, header)
    end = header.offset + math.prod(header.dims) * header.bits // 8
    real = header.order + _REAL[header.datatype] if header.datatype in _REAL else ""
    promise = _Promise(data, header.offset, end, real)
    compressed = _starts_with(promise.data, _GZIP)
    size = os.path.getsize(promise.data)
    if compressed and promise.data.suffix.lower() == ".nii":
        raise InputError(
            "is gzip-compressed but called .nii", file=path, remedy="Rename it to .nii.gz."
        )
    if not compressed or promise.end > size * _MAX_RATIO + _CHUNK:
        _expect(path, promise.end, size if not compressed else size * _MAX_RATIO)
    if pixels and (compressed or promise.real):
        with plain_bytes(promise.data) as stream:
            held, bad = _scanned(stream, promise)
        _expect(path, promise.end, held)
        if bad:
            raise InputError(
                f"has {bad:,} voxels that are not finite (NaN or infinite)",
                file=path,
                remedy="Replace them, for example by 0, and save the image again.",
            )


def _check_meta(path: Path, pixels: bool) -> None:
    with open(path, "rb") as stream:
        fields = _meta_fields(stream.read(2**16))
    local = fields.get("ElementDataFile", "").upper() == "LOCAL"
    data = path if local else path.parent / fields.get("ElementDataFile", "")
    try:
        sizes = [int(n) for n in fields["DimSize"].split()]
        each = _META_BYTES[
            fields["ElementType"].upper().removeprefix("MET_").removesuffix("_ARRAY")
        ]
        channels, start = (
            int(fields.get("ElementNumberOfChannels", "1")),
            int(fields["header end"]) if local else 0,
        )
    except (KeyError, ValueError):
        raise InputError(
            "has a MetaImage header without a usable size or type", file=path, remedy=_TRUNCATED
        ) from None
    if not data.is_file():
        raise InputError(
            f"refers to {data.name}, which does not exist",
            file=path,
            remedy="Keep both files together.",
        )
    bytes_ = math.prod(sizes) * each * channels
    held = os.path.getsize(data) - start
    if fields.get("CompressedData", "").lower() != "true":
        _expect(path, bytes_, held)
        if held > bytes_ and not local and "HeaderSize" not in fields:
            raise InputError(
                f"does not fit {data.name}: the header promises {bytes_:,} bytes, the file holds "
                f"{held:,}",
                file=path,
                remedy="Correct DimSize or ElementType, or say HeaderSize.",
            )
    elif bytes_ > held * _MAX_RATIO + _CHUNK:
        _expect(path, bytes_, held * _MAX_RATIO)
    elif pixels:
        with open(data, "rb") as stream:
            stream.seek(start)
            _expect(path, bytes_, _inflated(stream, bytes_))


def _meta_fields(head: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    position = 0
    for line in head.split(b"\n"):
        position += len(line) + 1
        key, separator, value = line.partition(b"=")
        if not separator:
            break
        fields[key.strip().decode("ascii", "replace")] = value.strip().decode(
            "utf-8", "surrogateescape"
        )
        if key.strip() == b"ElementDataFile":
            fields["header end"] = str(position)
            break
    return fields


def _inflated(stream: BinaryIO, limit: int) -> int:
    inflater, total = zlib.decompressobj(wbits=47), 0  # 47: a zlib or a gzip header
    while not inflater.eof and total <= limit + 2**26:
        chunk = stream.read(_CHUNK)
        if not chunk:
            raise EOFError
        while chunk:
            total += len(inflater.decompress(chunk, _CHUNK))
            chunk = inflater.unconsumed_tail
    return total


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(magic)) == magic


def _scanned(stream: BinaryIO, promise: _Promise) -> tuple[int, int]:
    """Bytes up to the end of the stream (where a checksum is verified; a bomb is left early),
    values not finite.
    """
    total, bad = len(stream.read(promise.start)), 0
    while total <= promise.end + 2**26 and (chunk := stream.read(_CHUNK)):
        if promise.real and total < promise.end:
            count = min(len(chunk), promise.end - total) // np.dtype(promise.real).itemsize
            values = np.frombuffer(chunk, promise.real, count)
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
        total += len(chunk)
    return total, bad


def _expect(path: Path, promised: int, held: int) -> None:
    if held < promised:
        raise InputError(
            f"is truncated: the header promises {promised:,} bytes, the file holds at most "
            f"{held:,}",
            file=path,
            remedy=_TRUNCATED,
        )
