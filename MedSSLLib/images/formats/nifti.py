"""NIfTI headers, read with the standard library, and the two things ITK does not do: NIfTI-2, and
keeping the forms.

Sources: nifti1.h and nifti2.h (nifti.nimh.nih.gov).
"""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import VOXELS_OF_HDR

_GZIP = b"\x1f\x8b"
_EXTENSIONS = (".nii", ".nii.gz", ".hdr")
_REPAIR = "Copy or download the file again."
_FIELDS = {
    348: {
        "dims": (40, "8h"),
        "datatype": (70, "h"),
        "bits": (72, "h"),
        "sizes": (76, "8f"),
        "offset": (108, "f"),
        "slope": (112, "2f"),
        "units": (123, "b"),
        "codes": (252, "2h"),
        "quaternion": (256, "6f"),
        "rows": (280, "12f"),
    },
    540: {
        "dims": (16, "8q"),
        "datatype": (12, "h"),
        "bits": (14, "h"),
        "sizes": (104, "8d"),
        "offset": (168, "q"),
        "slope": (176, "2d"),
        "units": (500, "i"),
        "codes": (344, "2i"),
        "quaternion": (352, "6d"),
        "rows": (400, "12d"),
    },
}
"""Where a field stands in the header of NIfTI-1 (348 bytes) and NIfTI-2 (540 bytes), and as
what.
"""
_MILLIMETRES = {1: 1000.0, 3: 0.001}


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a header that say where voxels lie and how they are stored.

    dims: size along each axis, 1 to 7 of them.  sizes: pixdim[0] (the sign of the third axis of the
    qform) and the three voxel sizes.  codes: of the qform and of the sform, 0 for "not given".
    quaternion: b, c, d and the qform's offset.  rows: the sform, 12 numbers.  units: as stored.
    """

    version: int
    order: str
    dims: tuple[int, ...]
    datatype: int
    bits: int
    offset: int
    slope: float
    intercept: float
    sizes: tuple[float, ...]
    units: int
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    rows: tuple[float, ...]
    separate: bool

    @property
    def scale(self) -> float:
        """The factor from the header's unit of length to millimetres."""
        return _MILLIMETRES.get(self.units & 7, 1.0)

    @property
    def sform(self) -> np.ndarray:
        """4 x 4 affine from voxel indices to millimetres, RAS."""
        return np.vstack([np.reshape(self.rows, (3, 4)) * self.scale, [0, 0, 0, 1]])

    @property
    def qform(self) -> np.ndarray:
        """4 x 4 affine from voxel indices to millimetres, RAS."""
        b, c, d, *offset = self.quaternion
        a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        last = -1.0 if self.sizes[0] < 0 else 1.0
        lengths = np.abs(self.sizes[1:4]) * (1.0, 1.0, last)
        affine = np.eye(4)
        affine[:3, :3] = rotation * lengths * self.scale
        affine[:3, 3] = np.array(offset) * self.scale
        return affine


def is_nifti(path: Path) -> bool:
    """Whether a file is called like NIfTI."""
    return path.name.lower().endswith(_EXTENSIONS)


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a NIfTI-1 or NIfTI-2 file, plain or compressed, of either byte order.

    Raises InputError for other files, Analyze files (which do not say where left is), headers that
    are cut short, and sizes or spacings that no image has.
    """
    try:
        with plain_bytes(path) as stream:
            content = stream.read(540)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"is damaged ({error})", file=path, remedy=_REPAIR) from None
    order, kind = _byte_order(path, content)
    if len(content) < kind:
        raise InputError("is truncated within its header", file=path, remedy=_REPAIR)
    magic = content[344:347] if kind == 348 else content[4:7]
    if magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise InputError(
            "is an Analyze file, which does not say where left is",
            file=path,
            remedy="Convert it to NIfTI with a program that knows its orientation.",
        )
    fields = {
        name: struct.unpack_from(order + form, content, at)
        for name, (at, form) in _FIELDS[kind].items()
    }
    dims, sizes = _usable_size(path, fields["dims"], fields["sizes"])
    offset = fields["offset"][0]
    return NiftiHeader(
        version=1 if kind == 348 else 2,
        order=order,
        dims=dims,
        datatype=fields["datatype"][0],
        bits=max(fields["bits"][0], 0),
        offset=int(offset) if math.isfinite(offset) and offset > 0 else 0,
        slope=float(fields["slope"][0]),
        intercept=float(fields["slope"][1]),
        sizes=sizes,
        units=int(fields["units"][0]),
        codes=(int(fields["codes"][0]), int(fields["codes"][1])),
        quaternion=fields["quaternion"],
        rows=fields["rows"],
        separate=magic[:2] == b"ni",
    )


def _byte_order(path: Path, content: bytes) -> tuple[str, int]:
    """Byte order and header size, which is the first number of the file."""
    for order in "<>":
        if len(content) >= 348:
            size = struct.unpack_from(order + "i", content)[0]
            if size in _FIELDS:
                return order, size
    raise InputError(
        "is not a NIfTI file, or is truncated within its header", file=path, remedy=_REPAIR
    )


def _usable_size(
    path: Path, dims: tuple[int, ...], sizes: tuple[float, ...]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    count = dims[0]
    if not 1 <= count <= 7 or any(size < 1 for size in dims[1 : count + 1]):
        raise InputError(f"has the impossible size {list(dims[1:8])}", file=path, remedy=_REPAIR)
    spacing = sizes[1 : min(count, 3) + 1]
    if not all(math.isfinite(value) and value != 0 for value in spacing):
        raise InputError(
            f"has the voxel spacing {[round(value, 6) for value in spacing]}",
            file=path,
            remedy="Correct the spacing in the header, in millimetres.",
        )
    return tuple(dims[1 : count + 1]), tuple(sizes[:4])


@contextmanager
def readable_by_itk(path: Path, *, pixels: bool) -> Iterator[Path]:
    """The path itself, or for what ITK does not read that of a temporary NIfTI-1 file: NIfTI-2,
    extensions with capital letters (.Nii.gz), and a compressed file with a plain one of the same
    name beside it, whose voxels ITK would read instead (its NIfTI library takes the header of
    scan.nii.gz and looks for scan.nii first).

    pixels: whether the temporary file gets the voxels too.
    """
    if not is_nifti(path):
        yield path
        return
    header = read_nifti_header(path)
    readable = header.version == 1 and path.name.endswith(_EXTENSIONS)
    if readable and not (pixels and _has_plain_twin(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medssl-") as folder:
        copy = Path(folder) / "image.nii"
        with open(copy, "wb") as target:
            target.write(_first_version(header))
            if pixels:
                with plain_bytes(data_file(path, header)) as source:
                    source.seek(header.offset)
                    shutil.copyfileobj(source, target, 2**20)
        yield copy


def _has_plain_twin(path: Path) -> bool:
    return path.suffix.lower() == ".gz" and path.with_suffix("").exists()


def data_file(path: Path, header: NiftiHeader) -> Path:
    """The file with the voxels: of a pair .hdr and .img the second. Raises InputError when it is
    missing.
    """
    if not header.separate:
        return path
    for name in map(path.with_suffix, VOXELS_OF_HDR):
        if name.is_file():
            return name
    raise InputError(
        "has no .img file beside it", file=path, remedy="Keep the .hdr and .img files together."
    )


def keep_forms(content: bytearray, source: NiftiHeader) -> None:
    """Give a NIfTI-1 header (little-endian, at the start of `content`) the forms, codes, voxel
    sizes and unit of `source`.
    """
    fields = _FIELDS[348]
    struct.pack_into("<4f", content, fields["sizes"][0], *source.sizes)
    struct.pack_into("<b", content, fields["units"][0], source.units & 127)
    struct.pack_into("<2h", content, fields["codes"][0], *source.codes)
    struct.pack_into("<6f", content, fields["quaternion"][0], *source.quaternion)
    struct.pack_into("<12f", content, fields["rows"][0], *source.rows)


def _first_version(header: NiftiHeader) -> bytes:
    """A NIfTI-1 header, 352 bytes, of the same image; the byte order stays."""
    content = bytearray(352)

    def put(name: str, *values: float) -> None:
        at, form = _FIELDS[348][name]
        struct.pack_into(header.order + form, content, at, *values)

    if max(header.dims) > 32767:
        raise InputError(
            f"has the size {list(header.dims)}, NIfTI-1 ends at 32767",
            remedy="Save it as .nrrd or .mha.",
        )
    struct.pack_into(header.order + "i", content, 0, 348)
    put("dims", len(header.dims), *header.dims, *[1] * (7 - len(header.dims)))
    put("datatype", header.datatype)
    put("bits", header.bits)
    put("sizes", *header.sizes, 1, 1, 1, 1)
    put("offset", 352)
    put("slope", header.slope, header.intercept)
    put("units", header.units & 127)
    put("codes", *header.codes)
    put("quaternion", *header.quaternion)
    put("rows", *header.rows)
    content[344:348] = b"n+1\0"
    return bytes(content)


def plain_bytes(path: Path) -> BinaryIO:
    """A plain or gzip-compressed file as a stream of its plain bytes."""
    with open(path, "rb") as stream:
        compressed = stream.read(len(_GZIP)) == _GZIP
    return gzip.open(path) if compressed else open(path, "rb")  # type: ignore[return-value]
