"""DICOM series as volumes: one series in a folder, or one multi-frame file. Part of `io`, which
calls it.

A volume needs parallel, evenly spaced slices, each exactly behind the one before. Everything else
is refused, because stacking it would give a picture of the right size and the wrong shape.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.dicom_tags import (
    FRAME_GROUPS,
    Item,
    UnreadableError,
    frames,
    is_dicom,
    numbers,
    read_elements,
)
from MedSSLLib.images.dicom_tags import text as value_of
from MedSSLLib.images.dicom_tags import whole as integer_of
from MedSSLLib.images.geometry import Geometry, Volume, triple

_MODALITY, _SERIES, _DESCRIPTION = (0x0008, 0x0060), (0x0020, 0x000E), (0x0008, 0x103E)
_POSITION, _ORIENTATION, _SPACING = (0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x0030)
_ROWS, _COLUMNS, _SAMPLES, _FRAMES = (
    (0x0028, 0x0010),
    (0x0028, 0x0011),
    (0x0028, 0x0002),
    (0x0028, 0x0008),
)
_MIN_SLICES = 3  # with fewer, even spacing cannot be told
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO"}
_GAP_TOLERANCE, _TILT_TOLERANCE, _AXIS_TOLERANCE = 0.05, np.deg2rad(0.1), 1e-3
_EXPORT = (
    "Export the series again, or convert it with a tool that handles this, and give the NIfTI file."
)


@dataclass(frozen=True)
class _Slice:
    """One image plane: file, frame in it, and where it lies (mm, LPS)."""

    file: Path
    frame: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]


@dataclass(frozen=True)
class Series:
    """The slices of a volume in order along the normal, its grid and its modality."""

    slices: tuple[_Slice, ...]
    geometry: Geometry
    modality: str


def dicom_files(folder: Path) -> list[Path]:
    """DICOM files lying directly in a folder, sorted by name."""
    return [file for file in sorted(folder.iterdir()) if file.is_file() and is_dicom(file)]


def read_series(path: Path) -> Series:
    """Check the headers of a folder's only series, or of a multi-frame file, and put its slices in
    order.

    Raises InputError for no or several series, other objects than images, colour, fewer than 3
    slices, slices that differ in size or orientation, share a position, are unevenly spaced or
    missing, or are shifted (gantry tilt).
    """
    files = dicom_files(path) if path.is_dir() else [path]
    planes: list[_Slice] = []
    series: dict[str, list[str]] = {}
    modality = ""
    for file in files:
        item = _header(file)
        if not (integer_of(item, _ROWS) and integer_of(item, _COLUMNS)):
            continue  # DICOMDIR, reports
        modality = modality or value_of(item, _MODALITY)
        series.setdefault(value_of(item, _SERIES), []).append(value_of(item, _DESCRIPTION))
        planes += _planes(file, item)
    if not planes:
        raise InputError(
            "holds no DICOM images", file=path, remedy="Give the folder of one image series."
        )
    if len(series) > 1:
        listed = ", ".join(
            f"{names[0] or uid} ({len(names)} files)" for uid, names in series.items()
        )
        raise InputError(
            f"holds {len(series)} series: {listed}",
            file=path,
            remedy="Put each series into its own folder.",
        )
    _check_alike(path, planes)
    ordered, gap = _in_order(path, planes)
    return Series(tuple(ordered), _grid(ordered, gap), modality or "MR")


def read_pixels(series: Series) -> Volume:
    """The voxels of a checked series, in their stored type (float32 where files differ or rescaling
    needs it).

    Raises InputError for a slice that cannot be decoded.
    """
    shape = series.geometry.size[1], series.geometry.size[0]
    decoded = {file: _decoded(file, shape) for file in {plane.file for plane in series.slices}}
    for plane in series.slices:
        if plane.frame >= len(decoded[plane.file]):
            raise InputError(
                f"has {len(decoded[plane.file])} frames, its header describes more",
                file=plane.file,
                remedy=_EXPORT,
            )
    planes = [decoded[plane.file][plane.frame] for plane in series.slices]
    kinds = {plane.dtype for plane in planes}
    one = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    return Volume(
        np.stack(planes).astype(np.float32 if one.kind == "f" else one, copy=False), series.geometry
    )


def _header(file: Path) -> Item:
    try:
        return read_elements(file)
    except (UnreadableError, OSError) as error:
        raise InputError(
            f"is a damaged or unsupported DICOM file ({error})",
            file=file,
            remedy="Copy it again, or convert the series to NIfTI.",
        ) from None


def _planes(file: Path, item: Item) -> list[_Slice]:
    modality = value_of(item, _MODALITY)
    if modality in _NO_IMAGES:
        raise InputError(
            f"is a DICOM object of the kind {modality}, not an image",
            file=file,
            remedy="Give the image series; save segmentations as .nii.gz or .seg.nrrd.",
        )
    if integer_of(item, _SAMPLES) > 1:
        raise InputError(
            f"is a colour image ({integer_of(item, _SAMPLES)} samples per pixel)",
            file=file,
            remedy="Give a scalar (grey) image.",
        )
    shape = integer_of(item, _ROWS), integer_of(item, _COLUMNS)
    if FRAME_GROUPS in item:
        places = [(frame.position, frame.orientation, frame.spacing) for frame in frames(item)]
    elif integer_of(item, _FRAMES) > 1:
        raise InputError(
            "is a multi-frame image that does not say where its frames lie",
            file=file,
            remedy=_EXPORT,
        )
    else:
        places = [(numbers(item, _POSITION), numbers(item, _ORIENTATION), numbers(item, _SPACING))]
    for place in places:
        if [len(part) for part in place] != [3, 6, 2] or not np.isfinite(
            np.concatenate(place)
        ).all():
            raise InputError(
                "does not say where its slices lie (position, orientation or spacing is missing)",
                file=file,
                remedy=_EXPORT,
            )
    return [
        _Slice(file, n, np.array(position), np.array(orientation), np.array(spacing), shape)
        for n, (position, orientation, spacing) in enumerate(places)
    ]


def _check_alike(path: Path, planes: Sequence[_Slice]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        if np.abs(plane.orientation - first.orientation).max() > 5 * _AXIS_TOLERANCE:
            raise InputError(
                f"slices have different orientations ({first.file.name}, {plane.file.name}): "
                "localizers, "
                "or two stacks in one series",
                file=path,
                remedy="Put each stack into its own folder.",
            )
        if plane.shape != first.shape or not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"slices differ in size or spacing: {plane.file.name} has {plane.shape} pixels of "
                f"{plane.spacing.tolist()} mm, {first.file.name} {first.shape} of "
                f"{first.spacing.tolist()} mm",
                file=path,
                remedy="Put each series into its own folder.",
            )
    if len(planes) < _MIN_SLICES:
        raise InputError(
            f"has {len(planes)} slice{'s' * (len(planes) > 1)}, a volume needs at least "
            f"{_MIN_SLICES}",
            file=path,
            remedy="Copy the missing slices into the folder, or leave this series out.",
        )


def _in_order(path: Path, planes: Sequence[_Slice]) -> tuple[list[_Slice], float]:
    """Slices sorted along the normal, and the distance between neighbours in mm."""
    normal = _normal(planes[0])
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    places = np.array([plane.position for plane in ordered])
    gaps = np.diff(places @ normal)
    shared = int((gaps < 1e-3).sum())
    if shared:
        raise InputError(
            f"is not a volume: {shared + 1} of its {len(planes)} images share a position (a time "
            "series, "
            "several echoes or repeated slices)",
            file=path,
            remedy="Put the images of one time point or echo into a folder of their own.",
        )
    typical = float(np.median(gaps)) if len(gaps) > 2 else float(gaps.min())
    _check_gaps(path, ordered, gaps, typical)
    along = places[-1] - places[0]
    shift = float(np.linalg.norm(along - (along @ normal) * normal))
    tilt = float(np.arctan2(shift, along @ normal))
    if tilt > _TILT_TOLERANCE:
        raise InputError(
            "has a gantry tilt: each slice is shifted against the one before "
            f"({np.rad2deg(tilt):.1f} "
            "degrees from the normal)",
            file=path,
            remedy="Correct the tilt by resampling (3D Slicer: acquisition geometry "
            "regularization), "
            "and give the result.",
        )
    return ordered, float(np.mean(gaps))


def _check_gaps(path: Path, ordered: Sequence[_Slice], gaps: np.ndarray, typical: float) -> None:
    wrong = np.flatnonzero(np.abs(gaps - typical) > _GAP_TOLERANCE * typical)
    if not wrong.size:
        return
    at = int(wrong[np.argmax(np.abs(gaps[wrong] - typical))])
    ratio = gaps[at] / typical
    missing = round(ratio) - 1 if abs(ratio - round(ratio)) <= _GAP_TOLERANCE * ratio else 0
    what = (
        f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
        if missing > 0
        else "has uneven gaps"
    )
    raise InputError(
        f"{what}: {gaps[at]:.3f} mm between {ordered[at].file.name} and "
        f"{ordered[at + 1].file.name}, "
        f"{typical:.3f} mm elsewhere",
        file=path,
        remedy="Copy the missing slices, or resample the series to even gaps, and give the result.",
    )


def _grid(ordered: Sequence[_Slice], gap: float) -> Geometry:
    first = ordered[0]
    axes = np.stack([first.orientation[:3], first.orientation[3:], _normal(first)], axis=1)
    lengths = np.linalg.norm(axes, axis=0)
    if np.abs(lengths - 1).max() > 0.01 or abs(axes[:, 0] @ axes[:, 1]) > 0.01:
        raise InputError(
            "has an orientation that is not two perpendicular unit vectors",
            file=first.file,
            remedy=_EXPORT,
        )
    rows, columns = first.shape
    return Geometry(
        (columns, rows, len(ordered)),
        (float(first.spacing[1]), float(first.spacing[0]), gap),
        triple(float(x) for x in first.position),
        tuple(float(x) for x in (axes / lengths).ravel()),
    )


def _normal(plane: _Slice) -> np.ndarray:
    normal = np.cross(plane.orientation[:3], plane.orientation[3:])
    return normal / max(float(np.linalg.norm(normal)), 1e-12)


def _decoded(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Pixels [frame, row, column] of one file."""
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(file), imageIO="GDCMImageIO"))
    except RuntimeError:
        array = np.empty(0)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != shape:
        raise InputError(
            "is truncated, damaged or compressed in an unsupported way",
            file=file,
            remedy="Copy it again, or convert the series to NIfTI.",
        )
    return array
