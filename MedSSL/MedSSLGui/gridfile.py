"""Voxel files read and written a piece at a time, so that the window stays alive. Run by `tasks.Stepper`; no Qt here.

Reading knows what the library itself writes: single-file NIfTI-1 and NRRD, one value a voxel, little endian. Any other
file gives None, and the caller lets Slicer read it.
"""

import struct
import zlib

import numpy as np
from slicer.i18n import tr as _

_PIECE = 1 << 20
_NIFTI = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8", 256: "i1", 512: "<u2"}
_NRRD = {
    "uint8": "u1",
    "unsigned char": "u1",
    "uchar": "u1",
    "int16": "<i2",
    "short": "<i2",
    "uint16": "<u2",
    "unsigned short": "<u2",
    "int32": "<i4",
    "int": "<i4",
    "float": "<f4",
    "double": "<f8",
}
WRITABLE = {
    "i1": "int8",
    "u1": "uint8",
    "i2": "int16",
    "u2": "uint16",
    "i4": "int32",
    "u4": "uint32",
    "f4": "float",
    "f8": "double",
}
"""NRRD names of the voxel types that can be written."""


class SceneError(Exception):
    """Something in the scene cannot be used; the text says what and what to do."""


def readSteps(path):
    """(array [k, j, i], 4x4 from i, j, k to RAS) of a file, or None where Slicer must read it."""
    text = str(path).lower()
    packed = text.endswith(".gz")
    if text.endswith((".nii", ".nii.gz")):
        with open(path, "rb") as stream:
            start = stream.read(4096)
        packed = start[:2] == b"\x1f\x8b"  # the content counts, not the name
        try:
            facts = _niftiFacts(zlib.decompressobj(31).decompress(start, 352) if packed else start)
        except zlib.error:
            return None
        offset = 0
    elif text.endswith(".nrrd") and not text.endswith(".seg.nrrd"):
        facts, offset, packed = _nrrdFacts(path)
    else:
        return None
    if facts is None:
        return None
    kind, shape, matrix, skip = facts
    data = yield from _bytesSteps(
        path, offset, packed, skip, int(np.prod(shape)) * np.dtype(kind).itemsize
    )
    return None if data is None else (data.view(kind).reshape(shape), matrix)


def _bytesSteps(path, offset, packed, skip, count):
    """`count` bytes after the first `skip`; None when the file holds fewer."""
    result, filled = np.empty(skip + count, np.uint8), 0
    unpack, rest = zlib.decompressobj(31) if packed else None, b""
    with open(path, "rb") as stream:
        stream.seek(offset)
        while filled < len(result):
            piece = rest or stream.read(_PIECE)
            if not piece:
                return None
            if unpack:
                if unpack.eof:
                    unpack = zlib.decompressobj(31)
                try:
                    data = unpack.decompress(piece, _PIECE)
                except zlib.error:
                    return None  # damaged: Slicer's reader says so, with the name of the file
                rest = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            else:
                data = piece
            data = data[: len(result) - filled]
            result[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
            filled += len(data)
            yield
    return result[skip:]


def _niftiFacts(header):
    """(type, shape, matrix, bytes before the voxels) of a NIfTI-1 header, None for what is not plain."""
    if len(header) < 348 or header[:4] != struct.pack("<i", 348) or header[344:347] != b"n+1":
        return None
    dim = struct.unpack("<8h", header[40:56])
    kind = _NIFTI.get(struct.unpack("<h", header[70:72])[0])
    pixdim, (offset, slope, shift) = (
        struct.unpack("<8f", header[76:108]),
        struct.unpack("<3f", header[108:120]),
    )
    if (
        kind is None
        or dim[0] not in (3, 4)
        or (dim[0] == 4 and dim[4] != 1)
        or slope not in (0, 1)
        or shift != 0
    ):
        return None
    codes = struct.unpack("<2h", header[252:256])
    by_form = np.array(struct.unpack("<12f", header[280:328]), float).reshape(3, 4)
    by_turn = _turned(struct.unpack("<6f", header[256:280]), pixdim)
    if min(codes) <= 0 or not np.allclose(by_form, by_turn, atol=1e-3):
        return None  # only one way is given, or the two do not agree: Slicer's reader has its rules for that
    return kind, dim[3:0:-1], np.vstack([by_form, (0, 0, 0, 1)]), int(offset)


def _turned(quaternion, pixdim):
    """3x4 of the NIfTI-1 quaternion form (nifti1.h, method 2)."""
    b, c, d = quaternion[:3]
    a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    scale = np.array(pixdim[1:4]) * (1, 1, -1 if pixdim[0] < 0 else 1)
    return np.column_stack([turn * scale, quaternion[3:]])


def _nrrdFacts(path):
    """((type, shape, matrix, 0) or None, offset of the voxels, whether they are packed) of a NRRD file."""
    fields, offset = {}, 0
    with open(path, "rb") as stream:
        first = stream.readline(200)
        for line in stream:
            if not line.strip() or stream.tell() > 1 << 20:
                break
            key, _colon, value = line.decode("utf-8", "replace").partition(":")
            fields[key.strip().lower()] = value.strip()
        offset = stream.tell()
    kind = _NRRD.get(fields.get("type", ""))
    plain = (
        first.startswith(b"NRRD000")
        and kind
        and fields.get("dimension") == "3"
        and "data file" not in fields
        and (
            fields.get("encoding") in ("raw", "gzip", "gz")
            and (kind == "u1" or fields.get("endian") == "little")
        )
        and (
            fields.get("space") == "left-posterior-superior"
            and "line skip" not in fields
            and "byte skip" not in fields
        )
    )
    if not plain:
        return None, 0, False
    shape = tuple(int(n) for n in fields["sizes"].split())[::-1]
    axes = np.array([_vector(part) for part in fields["space directions"].split(") (")]).T
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.vstack(
        [np.column_stack([axes, _vector(fields["space origin"])]), (0, 0, 0, 1)]
    )
    return (kind, shape, matrix, 0), offset, fields["encoding"] != "raw"


def _vector(text):
    return [float(part) for part in text.strip(" ()").split(",")]


def nrrdSteps(path, array, matrix, compress, fields=()):
    """Write `array` [k, j, i] with its 4x4 IJK-to-RAS `matrix` and further header lines as NRRD, whole or not at all.

    Returns the path.
    """
    from MedSSLLib.core.files import atomic_path

    data = np.ascontiguousarray(array)
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31) if compress else None
    flat = memoryview(data.reshape(-1)).cast("B")
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as stream:
            stream.write(_nrrdHeader(data, matrix, compress, fields))
            for start in range(0, len(flat), _PIECE):
                part = flat[start : start + _PIECE]
                stream.write(squeeze.compress(part) if squeeze else part)
                yield
            if squeeze:
                stream.write(squeeze.flush())
    return str(path)


def _nrrdHeader(data, matrix, compress, fields):
    kind = WRITABLE.get(data.dtype.str[1:])
    if kind is None:
        raise SceneError(_("Voxels of type {kind} cannot be written.").format(kind=data.dtype))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    axes = " ".join(
        "({})".format(",".join(repr(float(v)) for v in lps[:3, axis])) for axis in range(3)
    )
    origin = "({})".format(",".join(repr(float(v)) for v in lps[:3, 3]))
    lines = [
        "NRRD0004",
        f"type: {kind}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: {} {} {}".format(*data.shape[::-1]),
        f"space directions: {axes}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {origin}",
        *fields,
        "",
        "",
    ]
    return "\n".join(lines).encode("utf-8")


def segmentFields(classes, shape):
    """Header lines that make a class map of `shape` [k, j, i] a Slicer segmentation (.seg.nrrd)."""
    last = " ".join(f"0 {count - 1}" for count in shape[::-1])
    lines = [
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    for number, (value, name, colour, terminology) in enumerate(classes):
        fields = {
            "ID": f"class_{value}",
            "Name": " ".join(name.split()),
            "NameAutoGenerated": 0,
            "ColorAutoGenerated": 0,
            "Color": " ".join(f"{part:.6g}" for part in colour),
            "LabelValue": value,
            "Layer": 0,
            "Extent": last,
            "Tags": f"MedSSL.Class:{value}|"
            + (f"TerminologyEntry:{terminology}|" if terminology else ""),
        }
        lines += [f"Segment{number}_{key}:={text}" for key, text in fields.items()]
    return lines
