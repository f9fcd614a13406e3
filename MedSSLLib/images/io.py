"""The only place that opens images: NIfTI, NRRD, MetaImage and DICOM series, through SimpleITK.

Arrays are [k, j, i] (SimpleITK's numpy order), positions are millimetres in LPS. Every refusal is
an InputError that names the case, the file, what was found and what to do.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError, naming
from MedSSLLib.images.finding import EXTENSIONS as EXTENSIONS
from MedSSLLib.images.finding import case_name as case_name
from MedSSLLib.images.finding import extension as extension
from MedSSLLib.images.finding import find_images as find_images
from MedSSLLib.images.finding import images_below as images_below
from MedSSLLib.images.finding import stem as stem
from MedSSLLib.images.finer import label_on_image
from MedSSLLib.images.formats.dicom import (
    dicom_remarks,
    read_pixels,
    read_series,
    series_modality,
)
from MedSSLLib.images.formats.dicom_header import is_dicom
from MedSSLLib.images.formats.integrity import check_whole
from MedSSLLib.images.formats.nifti import (
    data_file,
    is_nifti,
    plain_bytes,
    read_nifti_header,
    readable_by_itk,
)
from MedSSLLib.images.formats.nifti_forms import form_remarks
from MedSSLLib.images.formats.plain_headers import header_remarks
from MedSSLLib.images.formats.segments import (
    annotated_slices,
    by_name,
    check_inside,
    flattened,
    planes,
)
from MedSSLLib.images.geometry import Geometry as Geometry
from MedSSLLib.images.geometry import Volume as Volume
from MedSSLLib.images.geometry import moved, oriented, triple
from MedSSLLib.images.geometry import orient as orient
from MedSSLLib.images.headers import (
    NOTHING_DRAWN,
    checked_grid,
    geometry_of,
    grid_of,
    is_segmentation_file,
    itk_format,
    open_header,
    pairs_in,
    segments_of,
    unreadable,
)
from MedSSLLib.images.labels import Annotated, name_key, whole_numbers
from MedSSLLib.images.writing import made_here as made_here
from MedSSLLib.images.writing import refuse_to_replace_drawn as refuse_to_replace_drawn
from MedSSLLib.images.writing import resample_volume as resample_volume
from MedSSLLib.images.writing import write_image as write_image

_NUMPY_TYPES = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"},
    **{256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"},
}  # of NIfTI
_AIR = -500
"""What values of a CT reach below, and those of nothing else (Hounsfield units)."""
_PADDING = -1100  # below it there is nothing in Hounsfield units
_DARK_SHARE = 0.005  # of a CT's voxels lie below water at least, as grey_scale asks too
_IN_DICOM = ("CT", "MR", "PT", "US", "NM", "XA")  # modalities by DICOM's own names
_AIR_SHARE = 1e-4  # of a scan's voxels: fewer are stray; not from a paper


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


def read_label(
    path: str | os.PathLike[str],
    reference: Geometry,
    *,
    case: str = "",
    names: Mapping[int, str] | None = None,
) -> Volume:
    """A label map on the grid `reference`: whole numbers, uint8 where they fit, else int32 or
    int64.

    A label that is stored with other axis directions is reordered, exactly. A segmentation
    (.seg.nrrd) may be cropped or finer: it is resampled (nearest neighbour, and no small piece is
    lost), what lies outside it is background, and one of a single voxel is empty. Its layers are
    flattened unless segments overlap (see `segments`).

    names: label values and names of the classes. Segments get the value of their own name, in
        whatever order and with whatever values they are stored.

    Raises InputError as `read_header` does, and for another grid, values that are not whole
    numbers, painted values that no segment has, and segments that overlap, reach outside the image
    or (with `names`) are no class.
    """
    with naming(case, os.fspath(path)):
        source = Path(path)
        segmentation = is_segmentation_file(source)
        volume = _read(source, names)
        array = _compact(whole_numbers(volume.array, step=_step(source)))
        if segmentation and volume.geometry.size == NOTHING_DRAWN:
            return Volume(np.zeros(reference.shape, np.uint8), reference)
        if volume.geometry.close_to(reference):
            return Volume(array, reference)
        volume = Volume(array, volume.geometry)
        if segmentation:
            check_inside(volume.array, volume.geometry, reference)
            return label_on_image(volume, reference)
        check_label(source, reference)
        return Volume(orient(volume, reference.code).array, reference)


def common_grid(predicted: str | os.PathLike[str], expected: str | os.PathLike[str]) -> Geometry:
    """The grid on which two labels of a case are compared: that of the expected one, unless it is a
    segmentation, which may be cropped, and the other is not.

    Of two segmentations it is that of the expected one, made large enough for both.
    """
    grids = [read_header(path) for path in (expected, predicted)]
    cropped = [is_segmentation_file(Path(path)) for path in (expected, predicted)]
    if not cropped[0] or grids[0].size == NOTHING_DRAWN:
        return grids[0] if not cropped[0] else grids[1]
    if not cropped[1]:
        return grids[1]
    if grids[1].size == NOTHING_DRAWN:
        return grids[0]
    corners = grids[0].indices(grids[1].corners())
    low = np.minimum(np.floor(corners.min(axis=0) + 0.01), 0).astype(int)
    high = np.maximum(np.ceil(corners.max(axis=0) - 0.01), np.array(grids[0].size) - 1).astype(int)
    return moved(grids[0], triple(map(int, low)), triple(map(int, high - low + 1)))


def check_label(path: str | os.PathLike[str], reference: Geometry, *, case: str = "") -> None:
    """Check from headers alone that a label can lie on the grid `reference` (InputError naming the
    difference).
    """
    with naming(case, os.fspath(path)):
        geometry = read_header(path)
        if is_segmentation_file(Path(path)):
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


def segment_names(
    path: str | os.PathLike[str], names: Mapping[int, str] | None = None
) -> dict[int, str]:
    """Values and names of the segments of a .seg.nrrd, as `read_label` gives them with these
    `names` and those that are new; empty for other files.
    """
    found = segments_of(Path(path))
    if names is not None:
        found = by_name(found, names, new=True)
    written = {segment.value: segment.name for segment in found}
    for value, name in (names or {}).items():  # in the spelling of the classes
        if value in written and name_key(written[value]) == name_key(name):
            written[value] = name
    return written


def recorded_slices(path: str | os.PathLike[str], reference: Geometry) -> Annotated | None:
    """The annotated slices that a .seg.nrrd records in its segments' tags, as axes and indices of
    `reference`.

    None without a record, and for other files.
    """
    if not os.fspath(path).lower().endswith(".nrrd"):
        return None
    return annotated_slices(pairs_in(open_header(Path(path))), reference)


def slices_with_structures(
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


def is_dicom_source(path: str | os.PathLike[str]) -> bool:
    """Whether an image is a folder of DICOM slices or a DICOM file."""
    return Path(path).is_dir() or is_dicom(path)


def modality_of(path: str | os.PathLike[str]) -> str:
    """The modality, from DICOM; elsewhere "CT" if more than stray values reach below -500 (air
    in Hounsfield units), else "MR".
    """
    source = Path(path)
    if source.is_dir() or is_dicom(source):
        return series_modality(source)
    array = read_image(source).array
    return "CT" if np.count_nonzero(array < _AIR) > _AIR_SHARE * array.size else "MR"


def shows_air(path: str | os.PathLike[str]) -> bool:
    """Whether the beginning of a NIfTI file holds values as of air in CT, below -500.

    A quick look: at most half a million voxels are read. False for other files, and for a CT whose
    beginning shows no air.
    """
    source = Path(path)
    if not is_nifti(source):
        return False
    header = read_nifti_header(source)
    kind = _NUMPY_TYPES.get(header.datatype)
    if kind is None:
        return False
    dtype = np.dtype(header.order + kind)
    try:
        with plain_bytes(data_file(source, header)) as stream:
            stream.seek(header.offset)
            content = stream.read(min(math.prod(header.dims), 2**19) * dtype.itemsize)
    except (OSError, EOFError, zlib.error):
        return False  # refused when it is read
    stored = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
    if not stored.size:
        return False
    slope = header.slope if np.isfinite(header.slope) and header.slope else 1.0
    offset = header.intercept if slope == header.slope and np.isfinite(header.intercept) else 0.0
    values = stored[stored == stored].astype(float) * slope + offset
    return bool(np.any((values < _AIR) & (values >= _PADDING)))


def contradicts(path: str | os.PathLike[str], modality: str) -> str:
    """Why an image seems to be of another modality than it is taken as; "" where nothing tells.

    DICOM says what it is. Of other files values tell: in CT in Hounsfield units some lie below 0
    (air, fat), and of others hardly any below -500.
    """
    if is_dicom_source(path):
        own = modality_of(path)
        told = own != modality and modality in _IN_DICOM
        return f"DICOM says {own}" if told else ""
    quick = is_nifti(Path(path))
    if modality != "CT":
        told = (shows_air(path) or not quick) and modality_of(path) == "CT"
        return "values below -500, as of CT" if told else ""
    if shows_air(path):
        return ""
    array = read_image(path).array
    inside = array[array >= _PADDING]
    if not inside.size or np.count_nonzero(inside < 0) >= _DARK_SHARE * inside.size:
        return ""
    return "hardly any values below 0, where fat and air are in Hounsfield units"


def notices(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """What a user should know about an image that can be used, as (general words, words for this
    file) each: a NIfTI file whose forms differ or say nothing, or that is not in millimetres; NRRD
    and MetaImage files that leave such things unsaid; DICOM that is shown inverted.
    """
    source = Path(path)
    if is_dicom_source(source):
        return dicom_remarks(source)
    return form_remarks(source) if is_nifti(source) else header_remarks(source)


def _read(path: Path, names: Mapping[int, str] | None = None) -> Volume:
    """Voxels and grid of an image or a (flattened) segmentation."""
    if path.is_dir() or is_dicom(path):
        series = read_series(path)
        checked_grid(series.geometry, path)
        return read_pixels(series)
    grid_of(open_header(path), path)
    check_whole(path, pixels=True)
    with readable_by_itk(path, pixels=True) as file:
        try:
            image = sitk.ReadImage(os.fspath(file), imageIO=itk_format(path))
        except RuntimeError as error:
            raise unreadable(path, str(error)) from None
    array = sitk.GetArrayFromImage(image)
    found = segments_of(path)
    if names is not None:
        found = by_name(found, names)
    segmentation = bool(found) or is_segmentation_file(path)
    return Volume(
        flattened(array, found) if found else array,
        checked_grid(geometry_of(image), path, segmentation=segmentation),
    )


def _step(path: Path) -> float:
    """By how much neighbouring stored values of a NIfTI file differ; 0 where they are not
    scaled.
    """
    if not is_nifti(path):
        return 0.0
    header = read_nifti_header(path)
    scaled = np.isfinite([header.slope, header.intercept]).all() and header.slope != 0
    plain = (header.slope, header.intercept) == (1.0, 0.0)
    whole = _NUMPY_TYPES.get(header.datatype, "f")[0] in "iu"
    return abs(header.slope) if scaled and whole and not plain else 0.0


def _compact(array: np.ndarray) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    for kind in (np.uint8, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind, copy=False)
    return array.astype(np.int64, copy=False)
