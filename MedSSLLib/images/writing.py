"""Volumes as SimpleITK images: written to files, and resampled. Part of `io`."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from gzip import GzipFile
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import TEMPORARY, atomic_path
from MedSSLLib.images.formats.integrity import check_whole
from MedSSLLib.images.formats.nifti import (
    is_nifti,
    keep_forms,
    plain_bytes,
    read_nifti_header,
    readable_by_itk,
)
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.headers import geometry_of, grid_of, open_header

_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
_INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "cubic": sitk.sitkBSpline,
}


_NOTES = "ITK_FileNotes"
_DESCRIPTION = slice(148, 228)  # where NIfTI-1 keeps that text

FAST = 1
"""Level of compression: the usual 6 takes six times as long for volumes of floats and makes them no
smaller; label maps, of some kilobytes, are half as large with it.
"""


def write_image(
    path: str | os.PathLike[str],
    volume: Volume,
    *,
    like: str | os.PathLike[str] | None = None,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Write a volume, compressed and atomically, as .nii.gz, .nii, .nrrd or .mha.

    The file is checked before it counts.

    Args:
        path: the file.
        volume: voxels and grid.
        like: the image that the volume belongs to. Where both are NIfTI on the same grid, the
            written file has its sform, qform, codes, voxel sizes and unit, so that other programs
            lay both alike.
        fields: further header entries, which NRRD alone keeps, but for that of `made_here`.

    Raises InputError for another extension and for values that are not finite, MedSSLError when it
    cannot be written (full disk, no permission).
    """
    if not os.fspath(path).lower().endswith(_WRITABLE):
        raise InputError(
            "has an extension that cannot be written",
            file=path,
            remedy=f"Use {', '.join(_WRITABLE)}.",
        )
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        raise InputError(
            "would hold values that are not finite",
            file=path,
            remedy="Replace them before writing.",
        )
    with atomic_path(path) as temporary:
        temporary.touch()
        try:
            _into_temporary(temporary, volume, like, fields or {})
            check_whole(temporary, pixels=True)
            if temporary.suffix == ".nrrd":
                sitk.ReadImage(os.fspath(temporary))
        except (RuntimeError, InputError) as error:
            raise MedSSLError(
                f"{path}: cannot be written in full. Check the disk for space and permission."
            ) from error


def refuse_to_replace_drawn(paths: Iterable[Path]) -> None:
    """Raise InputError where a label map would replace a file that is no such map of ours: a label
    that someone drew, or a result that someone corrected.
    """
    for path in paths:
        if path.is_file() and not _made_here(path):
            raise InputError(
                "is there already, and is no segmentation that MedSSL has made: it may have been "
                "drawn or corrected by hand",
                file=path,
                remedy="Choose another --out, or move the file away.",
            )


def made_here(label: Volume) -> dict[str, str]:
    """Header entry of a label map that a model made, which is replaced when it is asked again. It
    tells by the voxels too, as programs that change these may keep the header.
    """
    voxels = np.ascontiguousarray(label.array, np.int64)
    return {_NOTES: f"MedSSL {hashlib.blake2b(voxels.tobytes(), digest_size=16).hexdigest()}"}


def _made_here(path: Path) -> bool:
    try:
        with plain_bytes(path) as stream:
            text = stream.read(348)[_DESCRIPTION].rstrip(b"\0 ").decode(errors="replace")
        if not text.startswith("MedSSL "):
            return False
        with readable_by_itk(path, pixels=True) as file:
            image = sitk.ReadImage(os.fspath(file))
    except (OSError, EOFError, zlib.error, RuntimeError, InputError):
        return False
    found = Volume(sitk.GetArrayFromImage(image), geometry_of(image))
    return text == made_here(found)[_NOTES]


def _into_temporary(
    target: Path,
    volume: Volume,
    like: str | os.PathLike[str] | None,
    fields: Mapping[str, str],
) -> None:
    source = Path(like or "")
    image = _image(volume)
    for key, text in fields.items():
        image.SetMetaData(key, text)
    alike = is_nifti(target) and is_nifti(source) and source.is_file()
    if not alike or not grid_of(open_header(source), source).close_to(
        volume.geometry, tolerance=1e-3
    ):
        sitk.WriteImage(image, os.fspath(target), useCompression=True)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as folder:
        plain = Path(folder) / "image.nii"
        sitk.WriteImage(image, os.fspath(plain))
        with open(plain, "rb") as stream, open(target, "wb") as raw:
            out = GzipFile("", "wb", FAST, raw, mtime=0) if target.suffix == ".gz" else raw
            header = bytearray(stream.read(348))
            keep_forms(header, read_nifti_header(source))
            out.write(header)
            shutil.copyfileobj(stream, out, 2**22)
            if out is not raw:
                out.close()


def resample_volume(
    volume: Volume, geometry: Geometry, *, interpolation: str = "linear", outside: float = 0.0
) -> Volume:
    """`volume` at the voxels of `geometry`, through physical space.

    Any directions will do, left-handed ones too.

    Args:
        volume: what is resampled.
        geometry: the grid of the result.
        interpolation: "linear" and "cubic" (B-spline; linear when an axis has fewer than 4 voxels)
            give float32, "nearest" keeps the type.
        outside: value of voxels more than half a voxel outside `volume`.
    """
    if interpolation not in _INTERPOLATORS:
        raise InputError(
            f"the interpolation {interpolation!r} is unknown",
            remedy=f"Use {', '.join(_INTERPOLATORS)}.",
        )
    kind = sitk.sitkUnknown if interpolation == "nearest" else sitk.sitkFloat32
    if interpolation == "cubic" and min(volume.geometry.size) < 4:
        interpolation = "linear"
    result = sitk.Resample(
        _image(volume),
        geometry.size,
        sitk.Transform(),
        _INTERPOLATORS[interpolation],
        geometry.origin,
        geometry.spacing,
        _cosines(geometry),
        outside,
        kind,
    )
    return Volume(sitk.GetArrayFromImage(result), geometry)


def _cosines(geometry: Geometry) -> list[float]:
    """Direction cosines without the tiny ones, below 1e-14, on which ITK's inversion can fail."""
    return [0.0 if abs(value) < 1e-14 else value for value in geometry.direction]


def _image(volume: Volume) -> sitk.Image:
    array = np.ascontiguousarray(volume.array)
    special: dict[str, np.dtype] = {"?": np.dtype(np.uint8), "e": np.dtype(np.float32)}
    kind = special.get(array.dtype.char, array.dtype.newbyteorder("="))
    image = sitk.GetImageFromArray(array.astype(kind, copy=False))
    image.SetSpacing(volume.geometry.spacing)
    image.SetOrigin(volume.geometry.origin)
    image.SetDirection(_cosines(volume.geometry))
    return image
