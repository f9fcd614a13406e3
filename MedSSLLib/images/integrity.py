"""Is an image file whole? NIfTI and MetaImage data that ITK would silently replace by zeros are
found here.

Headers are parsed with the standard library: sizes are compared with the file before anything is
allocated, and compressed data are decompressed once to check length and checksum.
Sources: nifti1.h and nifti2.h (nifti.nimh.nih.gov), the MetaIO documentation (itk.org).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedSSLLib.core.errors import InputError

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
        if name.endswith((".nii", ".nii.gz", ".hdr")):
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
    with _opened(path) as stream:
        promise = _nifti_promise(path, stream.read(540))
    compressed = _starts_with(promise.data, _GZIP)
    size = os.path.getsize(promise.data)
    if compressed and promise.data.suffix.lower() == ".nii":
        raise InputError(
            "is gzip-compressed but called .nii", file=path, remedy="Rename it to .nii.gz."
        )
    if not compressed or promise.end > size * _MAX_RATIO + _CHUNK:
        _expect(path, promise.end, size if not compressed else size * _MAX_RATIO)
    if pixels and (compressed or promise.real):
        with _opened(promise.data) as stream:
            held, bad = _scanned(stream, promise)
        _expect(path, promise.end, held)
        if bad:
            raise InputError(
                f"has {bad:,} voxels that are not finite (NaN or infinite)",
                file=path,
                remedy="Replace them, for example by 0, and save the image again.",
            )


def _nifti_promise(path: Path, header: bytes) -> _Promise:
    kinds = {348: ("h", 40, 70, 76, "f", 108, "f", 344), 540: ("q", 16, 12, 104, "d", 168, "q", 4)}
    order = next(
        (o for o in "<>" if len(header) >= 348 and struct.unpack_from(o + "i", header)[0] in kinds),
        "",
    )
    if not order:
        raise InputError(
            "is not a NIfTI file, or is truncated within its header", file=path, remedy=_TRUNCATED
        )
    kind = struct.unpack_from(order + "i", header)[0]
    whole, dim_at, type_at, spacing_at, real, offset_at, offset_type, magic_at = kinds[kind]
    if len(header) < kind:
        raise InputError("is truncated within its header", file=path, remedy=_TRUNCATED)
    magic = header[magic_at : magic_at + 3]
    if magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise InputError(
            "is an Analyze file, which does not say where left is",
            file=path,
            remedy="Convert it to NIfTI with a program that knows its orientation.",
        )
    dims = struct.unpack_from(f"{order}8{whole}", header, dim_at)
    if not 1 <= dims[0] <= 7 or any(size < 1 for size in dims[1 : dims[0] + 1]):
        raise InputError(f"has the impossible size {list(dims[1:8])}", file=path, remedy=_TRUNCATED)
    spacing = struct.unpack_from(f"{order}8{real}", header, spacing_at)[1 : min(dims[0], 3) + 1]
    if not all(math.isfinite(value) and value != 0 for value in spacing):
        raise InputError(
            f"has the voxel spacing {[round(v, 6) for v in spacing]}",
            file=path,
            remedy="Correct the spacing in the header, in millimetres.",
        )
    datatype, bits = struct.unpack_from(order + "2h", header, type_at)
    offset = struct.unpack_from(order + offset_type, header, offset_at)[0]
    start = int(offset) if math.isfinite(offset) and offset > 0 else 0
    pair = magic[:2] == b"ni"
    data = next(
        (
            p
            for p in (path.with_suffix(".img"), path.with_suffix(".img.gz"))
            if pair and p.is_file()
        ),
        path,
    )
    if pair and data == path:
        raise InputError(
            "has no .img file beside it", file=path, remedy="Keep the .hdr and .img files together."
        )
    end = start + math.prod(dims[1 : dims[0] + 1]) * max(bits, 0) // 8
    return _Promise(data, start, end, order + _REAL[datatype] if datatype in _REAL else "")


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


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if _starts_with(path, _GZIP) else open(path, "rb")  # type: ignore[return-value]


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
