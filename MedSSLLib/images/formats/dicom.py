"""DICOM series as volumes: one series in a folder, or one multi-frame file. Part of `io`, which
calls it.

A volume needs parallel, evenly spaced slices, each exactly behind the one before. Everything else
is refused, because stacking it would give a picture of the right size and the wrong shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.dicom_header import Header, Place, is_dicom, read_dicom_header
from MedSSLLib.images.formats.dicom_pixels import rescaled, stored_frames
from MedSSLLib.images.geometry import Geometry, Volume, triple

_MIN_SLICES = 3  # with fewer, even spacing cannot be told
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO"}
_GAP_TOLERANCE, _TILT_TOLERANCE, _AXIS_TOLERANCE = 0.05, np.deg2rad(0.1), 1e-3
_INVERTED, _ABSOLUTE = "MONOCHROME1", {"CT", "PT"}
_COARSEST_MM = 0.1  # positions written with one decimal are taken as they are meant
_EXPORT = (
    "Export the series again, or convert it with a tool that handles this, and give the NIfTI file."
)


@dataclass(frozen=True)
class _Slice:
    """One image plane: file, frame in it, where it lies (mm, LPS), how its stored values become
    grey values and whether the file says so, and whether small ones are shown bright.
    """

    file: Path
    frame: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]
    rescale: tuple[float, float]
    rescaled: bool
    inverted: bool


@dataclass(frozen=True)
class Series:
    """The slices of a volume in order along the normal, its grid and its modality."""

    slices: tuple[_Slice, ...]
    geometry: Geometry
    modality: str


def dicom_files(folder: Path) -> list[Path]:
    """DICOM files lying directly in a folder, sorted by name; not the table of contents of a disc
    (DICOMDIR), which lies above the images.
    """
    files = [file for file in sorted(folder.iterdir()) if file.name.upper() != "DICOMDIR"]
    return [file for file in files if file.is_file() and is_dicom(file)]


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
        header = read_dicom_header(file)
        if not (header.rows and header.columns):
            continue  # DICOMDIR, reports
        modality = modality or header.modality
        series.setdefault(header.series, []).append(header.description)
        planes += _planes(header)
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


def series_modality(path: Path) -> str:
    """The modality of a folder's series, or of a file, from the first file that holds an image;
    "MR" where none says it.
    """
    for file in dicom_files(path) if path.is_dir() else [path]:
        header = read_dicom_header(file)
        if header.rows and header.columns:
            return header.modality or "MR"
    return "MR"


def dicom_remarks(path: Path) -> list[tuple[str, str]]:
    """What a user should know about a series that can be used, as (general words, words for this
    series) each: whether its values run from bright to dark.

    Hounsfield units and activities mean the same however they are shown, so CT and PET are not
    remarked on.
    """
    for file in dicom_files(path) if path.is_dir() else [path]:
        header = read_dicom_header(file)
        if header.rows and header.columns:
            if header.photometric != _INVERTED or header.modality in _ABSOLUTE:
                return []
            return [
                (
                    "DICOM shows small values bright (MONOCHROME1)",
                    "values are taken as they are stored, so dark and bright are exchanged against "
                    "other series",
                )
            ]
    return []


def read_pixels(series: Series) -> Volume:
    """The grey values of a checked series: each frame with its own rescale slope and intercept,
    integers where these keep them, else float32.

    Raises InputError for a slice that cannot be decoded.
    """
    described: dict[Path, int] = {}
    for plane in series.slices:
        described[plane.file] = described.get(plane.file, 0) + 1
    shape = series.geometry.size[1], series.geometry.size[0]
    stored = {file: stored_frames(file, shape) for file in described}
    for file, count in described.items():
        if len(stored[file]) != count:
            raise InputError(
                f"has {len(stored[file])} frames, its header describes {count}",
                file=file,
                remedy=_EXPORT,
            )
    frames = [stored[plane.file][plane.frame] for plane in series.slices]
    array = rescaled(frames, [plane.rescale for plane in series.slices])
    return Volume(array, series.geometry)


def _planes(header: Header) -> list[_Slice]:
    file = header.file
    if header.modality in _NO_IMAGES:
        raise InputError(
            f"is a DICOM object of the kind {header.modality}, not an image",
            file=file,
            remedy="Give the image series; save segmentations as .nii.gz or .seg.nrrd.",
        )
    if header.samples > 1 or header.photometric == "PALETTE COLOR":
        what = "a palette" if header.samples <= 1 else f"{header.samples} samples per pixel"
        raise InputError(
            f"is a colour image ({what})", file=file, remedy="Give a scalar (grey) image."
        )
    if header.table:
        raise InputError(
            "stores its grey values by way of a table (Modality LUT Sequence)",
            file=file,
            remedy=_EXPORT,
        )
    if not header.places:
        raise InputError(
            "is a multi-frame image that does not say where its frames lie",
            file=file,
            remedy=_EXPORT,
        )
    for place in header.places:
        _check_place(file, place)
    shape = header.rows, header.columns
    return [
        _Slice(
            file,
            number,
            np.array(place.position),
            np.array(place.orientation),
            np.array(place.spacing),
            shape,
            (place.slope, place.intercept),
            place.rescaled,
            header.photometric == _INVERTED,
        )
        for number, place in enumerate(header.places)
    ]


def _check_place(file: Path, place: Place) -> None:
    parts = (place.position, place.orientation, place.spacing)
    if [len(part) for part in parts] != [3, 6, 2] or not np.isfinite(np.concatenate(parts)).all():
        raise InputError(
            "does not say where its slices lie (position, orientation or spacing is missing)",
            file=file,
            remedy=_EXPORT,
        )
    if not np.isfinite([place.slope, place.intercept]).all() or place.slope == 0:
        raise InputError(
            f"has the rescale slope {place.slope:g} and intercept {place.intercept:g}",
            file=file,
            remedy=_EXPORT,
        )


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
        _check_same_values(path, first, plane)
    if len(planes) < _MIN_SLICES:
        raise InputError(
            f"has {len(planes)} slice{'s' * (len(planes) > 1)}, a volume needs at least "
            f"{_MIN_SLICES}",
            file=path,
            remedy="Copy the missing slices into the folder, or leave this series out.",
        )


def _check_same_values(path: Path, first: _Slice, plane: _Slice) -> None:
    """Check that grey values of two slices mean the same (InputError)."""
    if plane.inverted != first.inverted:
        raise InputError(
            f"shows some slices inverted (MONOCHROME1) and others not: {first.file.name}, "
            f"{plane.file.name}",
            file=path,
            remedy=_EXPORT,
        )
    if plane.rescaled != first.rescaled:
        with_it, without = (first, plane) if first.rescaled else (plane, first)
        raise InputError(
            f"gives a rescale slope and intercept for some slices ({with_it.file.name}) and none "
            f"for others ({without.file.name})",
            file=path,
            remedy=_EXPORT,
        )


def _in_order(path: Path, planes: Sequence[_Slice]) -> tuple[list[_Slice], float]:
    """Slices sorted along the normal, and the distance between neighbours in mm."""
    normal = _normal(planes[0])
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    places = np.array([plane.position for plane in ordered])
    gaps = np.diff(places @ normal)
    rounding = _rounding(places, normal)
    shared = int((gaps < 1e-3).sum())
    if shared:
        raise InputError(
            f"is not a volume: {shared + 1} of its {len(planes)} images share a position (a time "
            "series, "
            "several echoes or repeated slices)",
            file=path,
            remedy="Put the images of one time point or echo into a folder of their own.",
        )
    if not _even(places @ normal, rounding):
        _check_gaps(path, ordered, gaps)
    along = places[-1] - places[0]
    shift = float(np.linalg.norm(along - (along @ normal) * normal))
    tilt = float(np.arctan2(shift, along @ normal))
    if tilt > _TILT_TOLERANCE and shift > 2 * rounding:
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


def _rounding(places: np.ndarray, normal: np.ndarray) -> float:
    """By how many mm positions along the normal can be wrong because they were written with one
    decimal (or in other steps up to 0.1 mm); 0 for finer ones.
    """
    for step in (0.1, 0.05, 0.01):
        if np.abs(places / step - np.rint(places / step)).max() < 1e-4:
            return 0.5 * step * float(np.abs(normal).sum()) + 1e-3
    return 0.0


def _even(along: np.ndarray, rounding: float) -> bool:
    """Whether rounding alone can be why gaps differ: evenly spaced slices lie that near to each.

    Rounded steps say nothing about slices that are hardly further apart than a step.
    """
    step = (along[-1] - along[0]) / (len(along) - 1)
    if rounding == 0 or step < 4 * rounding:
        return False
    # a line within `rounding` of every position exists where its slope suits each pair of them
    numbers = np.arange(len(along))
    later, earlier = np.tril_indices(len(along), -1)
    apart, distance = numbers[later] - numbers[earlier], along[later] - along[earlier]
    lowest = ((distance - 2 * rounding) / apart).max()
    highest = ((distance + 2 * rounding) / apart).min()
    return bool(lowest <= highest)


def _check_gaps(path: Path, ordered: Sequence[_Slice], gaps: np.ndarray) -> None:
    typical = float(np.median(gaps)) if len(gaps) > 2 else float(gaps.min())
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
