"""The only place that opens images: NIfTI, NRRD, MetaImage and DICOM series, through SimpleITK.

Arrays are [k, j, i] (SimpleITK's numpy order), positions are millimetres in LPS. Every refusal is
an InputError that names the case, the file, what was found and what to do.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError, MedSSLError, naming
from MedSSLLib.core.files import atomic_path
from MedSSLLib.images.dicom import dicom_files, read_pixels, read_series
from MedSSLLib.images.dicom_tags import is_dicom
from MedSSLLib.images.geometry import Geometry as Geometry
from MedSSLLib.images.geometry import Volume as Volume
from MedSSLLib.images.geometry import orient as orient
from MedSSLLib.images.geometry import oriented
from MedSSLLib.images.headers import (
    checked_grid,
    geometry_of,
    grid_of,
    open_header,
    pairs_in,
    segments_of,
    unreadable,
)
from MedSSLLib.images.integrity import check_whole
from MedSSLLib.images.labels import Annotated, whole_numbers
from MedSSLLib.images.segments import annotated_slices, check_inside, flattened, planes

EXTENSIONS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""File name extensions of images; a folder may hold a DICOM series, a .dcm file a multi-frame
image.
"""
_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
_INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "cubic": sitk.sitkBSpline,
}
_FOLDER_DEPTH = 4


def case_name(path: str | os.PathLike[str]) -> str:
    """The case a file belongs to: its name without image extensions (of a DICOM folder, its whole
    name).
    """
    name = Path(path).name
    for extension in (*EXTENSIONS, ".dcm"):
        if name.lower().endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return name


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Images of a folder, sorted by name: image files, or the folder itself or those below it with
    a DICOM series.

    Hidden files are left out; image files in folders below are not looked for.
    Raises InputError when the folder is missing, holds none, or mixes image files with DICOM
    slices.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            "is not a folder", file=root, remedy="Give the folder that holds the images."
        )
    try:
        entries = [p for p in sorted(root.iterdir()) if not p.name.startswith(".")]
        files = [p for p in entries if p.name.lower().endswith(EXTENSIONS)]
        if any(p.is_file() and is_dicom(p) for p in entries):
            if files:
                raise InputError(
                    f"holds image files ({files[0].name}) and DICOM slices",
                    file=root,
                    remedy="Put them into separate folders.",
                )
            return [root]
        series = [found for p in entries if p.is_dir() for found in _series_below(p, _FOLDER_DEPTH)]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", file=root, remedy="Check its permissions."
        ) from error
    if not files and not series:
        raise InputError(
            _nothing_found(entries),
            file=root,
            remedy=f"Give a folder with {', '.join(EXTENSIONS)} files or DICOM series.",
        )
    return sorted(files + series)


def read_header(path: str | os.PathLike[str], *, case: str = "") -> Geometry:
    """The grid of an image, from its headers alone.

    Raises InputError for what is no scalar 3D volume with a usable grid: missing, unreadable,
    visibly truncated, 2D, 4D, colour or complex images, impossible spacing, sheared axes, and the
    DICOM faults of `io_dicom.read_series`.
    """
    with naming(case, os.fspath(path)):
        source = Path(path)
        if source.is_dir() or is_dicom(source):
            return checked_grid(read_series(source).geometry, source)
        return grid_of(open_header(source), source)


def read_image(path: str | os.PathLike[str], *, case: str = "", constant: bool = False) -> Volume:
    """A scalar 3D volume in its stored type; `path` is a file or a folder with one DICOM series.

    Raises InputError as `read_header` does, and for truncated or damaged data, values that are not
    finite and (unless `constant`) images of one value.
    """
    with naming(case, os.fspath(path)):
        source = Path(path)
        volume = _read(source)
        array = volume.array
        if array.dtype.kind == "f":
            bad = array.size - int(np.isfinite(array).sum())
            if bad:
                raise InputError(
                    f"has {bad:,} voxels that are not finite (NaN or infinite)",
                    file=source,
                    remedy="Replace them, for example by 0, and save the image again.",
                )
        if not constant and array.min() == array.max():
            raise InputError(
                f"is constant: every voxel is {array.flat[0]}",
                file=source,
                remedy="Export the image again, or leave the case out.",
            )
        return volume


def read_label(path: str | os.PathLike[str], reference: Geometry, *, case: str = "") -> Volume:
    """A label map on the grid `reference`: whole numbers, uint8 where they fit, else int32 or
    int64.

    A label that is stored with other axis directions is reordered, exactly. A .seg.nrrd may be
    cropped or finer: it is resampled (nearest neighbour); its layers are flattened unless segments
    overlap (see `io_segments`). Raises InputError as `read_header` does, and for another grid,
    values that are not whole numbers, segments that overlap or reach outside the image.
    """
    with naming(case, os.fspath(path)):
        source = Path(path)
        volume = _read(source)
        array = _compact(whole_numbers(volume.array))
        if volume.geometry.close_to(reference):
            return Volume(array, reference)
        volume = Volume(array, volume.geometry)
        if segments_of(source):
            check_inside(volume.array, volume.geometry, reference)
            return resample(volume, reference, interpolation="nearest")
        check_label(source, reference)
        moved = orient(volume, reference.code)
        return Volume(moved.array, reference)


def check_label(path: str | os.PathLike[str], reference: Geometry, *, case: str = "") -> None:
    """Check from headers alone that a label can lie on the grid `reference` (InputError naming the
    difference).
    """
    with naming(case, os.fspath(path)):
        geometry = read_header(path)
        if segments_of(Path(path)):
            return
        found = geometry.difference(reference)
        if found and not oriented(geometry, reference.code).close_to(reference):
            raise InputError(
                f"lies on another grid than its image: {found}",
                file=path,
                remedy="Export the label on the image's grid (if only its header was lost, copy "
                "the "
                "image's header).",
            )


def segment_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Values and names of the segments of a .seg.nrrd, as `read_label` gives them; empty for other
    files.
    """
    return {segment.value: segment.name for segment in segments_of(Path(path))}


def recorded_slices(path: str | os.PathLike[str], reference: Geometry) -> Annotated | None:
    """The annotated slices that a .seg.nrrd records in its segments' tags, as axes and indices of
    `reference`.

    None without a record, and for other files.
    """
    if not os.fspath(path).lower().endswith(".nrrd"):
        return None
    return annotated_slices(pairs_in(open_header(Path(path))), reference)


def drawn_slices(
    path: str | os.PathLike[str], reference: Geometry, plane: str, *, case: str = ""
) -> Annotated:
    """The axial, coronal or sagittal slices of the grid `reference` on which a label shows
    anything.

    Raises InputError as `read_label` does, and for a label that shows nothing.
    """
    array = read_label(path, reference, case=case).array
    axis = planes(reference).index(plane)
    found = np.flatnonzero(array.any(axis=tuple(other for other in range(3) if other != 2 - axis)))
    if not found.size:
        raise InputError(
            "shows no structure, so which of its slices are drawn is not known",
            case=case,
            file=path,
            remedy="Draw on some slices, or leave the label out.",
        )
    return Annotated.of([(axis, found.tolist())])


def modality_of(path: str | os.PathLike[str]) -> str:
    """The modality, from DICOM; elsewhere "CT" if values reach below -500 (air in Hounsfield
    units), else "MR".
    """
    source = Path(path)
    if source.is_dir() or is_dicom(source):
        return read_series(source).modality
    return "CT" if read_image(source).array.min() < -500 else "MR"


def write_image(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write a volume, compressed and atomically, as .nii.gz, .nii, .nrrd or .mha; the file is
    checked before it counts.

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
            sitk.WriteImage(_image(volume), os.fspath(temporary), useCompression=True)
            check_whole(temporary, pixels=True)
            if temporary.suffix == ".nrrd":
                sitk.ReadImage(os.fspath(temporary))
        except (RuntimeError, InputError) as error:
            raise MedSSLError(
                f"{path}: cannot be written in full. Check the disk for space and permission."
            ) from error


def resample(
    volume: Volume, geometry: Geometry, *, interpolation: str = "linear", outside: float = 0.0
) -> Volume:
    """`volume` at the voxels of `geometry`, through physical space (any directions, left-handed
    ones too).

    The interpolations "linear" and "cubic" (B-spline; linear when an axis has fewer than 4 voxels)
    give float32, "nearest" keeps the type. Voxels more than half a voxel outside `volume` become
    `outside`.
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


def _series_below(folder: Path, depth: int) -> list[Path]:
    if depth == 0 or folder.name.startswith("."):
        return []
    here = [folder] if dicom_files(folder) else []
    return here + [
        found
        for p in sorted(folder.iterdir())
        if p.is_dir()
        for found in _series_below(p, depth - 1)
    ]


def _nothing_found(entries: list[Path]) -> str:
    below = [
        p.name
        for p in entries
        if p.is_dir() and any(q.name.lower().endswith(EXTENSIONS) for q in p.iterdir())
    ]
    kinds = sorted({p.suffix for p in entries if p.is_file() and p.suffix})
    hint = (
        f", but its folder {below[0]} does"
        if below
        else f" (only {', '.join(kinds[:5])} files)"
        if kinds
        else ""
    )
    return f"{'is empty' if not entries else 'holds no images'}{hint}"


def _read(path: Path) -> Volume:
    """Voxels and grid of an image or a (flattened) segmentation."""
    if path.is_dir() or is_dicom(path):
        series = read_series(path)
        checked_grid(series.geometry, path)
        return read_pixels(series)
    grid_of(open_header(path), path)
    check_whole(path, pixels=True)
    try:
        image = sitk.ReadImage(os.fspath(path))
    except RuntimeError as error:
        raise unreadable(path, str(error)) from None
    array = sitk.GetArrayFromImage(image)
    found = segments_of(path)
    return Volume(
        flattened(array, found) if found else array, checked_grid(geometry_of(image), path)
    )


def _compact(array: np.ndarray) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    for kind in (np.uint8, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind, copy=False)
    return array.astype(np.int64, copy=False)


def _image(volume: Volume) -> sitk.Image:
    array = np.ascontiguousarray(volume.array)
    special: dict[str, np.dtype] = {"?": np.dtype(np.uint8), "e": np.dtype(np.float32)}
    kind = special.get(array.dtype.char, array.dtype.newbyteorder("="))
    image = sitk.GetImageFromArray(array.astype(kind, copy=False))
    image.SetSpacing(volume.geometry.spacing)
    image.SetOrigin(volume.geometry.origin)
    image.SetDirection(_cosines(volume.geometry))
    return image
