"""Headers of image files, opened and checked without pixels. Part of `io`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import detached_files
from MedSSLLib.images.formats.integrity import check_whole
from MedSSLLib.images.formats.nifti import is_nifti, readable_by_itk
from MedSSLLib.images.formats.nifti_forms import check_forms
from MedSSLLib.images.formats.segments import Segment, is_segmentation, segments
from MedSSLLib.images.geometry import Geometry, triple

NOTHING_DRAWN = (1, 1, 1)
"""The size of a segmentation file without image data."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACING_MM, _MAX_EXTENT_MM = (0.001, 100.0), 10_000.0

sitk.ProcessObject.SetGlobalWarningDisplay(
    False
)  # ITK prints warnings that the checks here turn into refusals


def open_header(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of a file that exists and can be whole."""
    if not path.exists():
        raise InputError("does not exist", file=path, remedy="Check the path; was the file moved?")
    if path.stat().st_size == 0:
        raise InputError("is empty (0 bytes)", file=path, remedy="Copy or download the file again.")
    detached_files(path)
    check_whole(path, pixels=False)
    if is_nifti(path):
        check_forms(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(itk_format(path))
    with readable_by_itk(path, pixels=False) as file:
        reader.SetFileName(os.fspath(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise unreadable(path, str(error)) from None
    return reader


def itk_format(path: Path) -> str:
    """The ITK class that reads a file; "" leaves the choice to ITK, which knows MetaImage by small
    letters only: it calls CASE.MHA an unknown format.
    """
    return "MetaImageIO" if path.name.lower().endswith((".mha", ".mhd")) else ""


def unreadable(path: Path, reason: str) -> InputError:
    """What to say when ITK cannot read a file, from ITK's own words."""
    if "orthonormal" in reason or "determinant" in reason:
        return InputError(
            "has axes that are not perpendicular (a sheared grid)",
            file=path,
            remedy="Resample it onto a rectangular grid and save it again.",
        )
    if "spacing" in reason:
        return InputError(
            "has a voxel spacing of 0", file=path, remedy="Correct the spacing in the header."
        )
    return InputError(
        "cannot be read as an image: unknown format, truncated or damaged",
        file=path,
        remedy="Copy it again, or convert it to .nii.gz.",
    )


def grid_of(reader: sitk.ImageFileReader, path: Path) -> Geometry:
    """The grid of a 3D image of real numbers. Raises InputError for other images and impossible
    grids.
    """
    dimension = reader.GetDimension()
    if dimension != 3:
        size = " x ".join(map(str, reader.GetSize()))
        finding = f"is a {dimension}D image, expected a 3D volume (size {size})"
        raise InputError(
            finding,
            file=path,
            remedy="Give one 3D volume per file."
            if dimension < 3
            else "Split it into one 3D file per time point or channel (case_0000.nii.gz, "
            "case_0001.nii.gz); make a label with a channel per class one map of class numbers.",
        )
    if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError("holds complex numbers", file=path, remedy="Give magnitude images.")
    components = reader.GetNumberOfComponents()
    segmentation = path.name.lower().endswith(".nrrd") and is_segmentation(pairs_in(reader))
    if components != 1 and not segmentation:
        raise InputError(
            f"has {components} values per voxel (colour or vectors)",
            file=path,
            remedy="Give one scalar image per channel.",
        )
    return checked_grid(geometry_of(reader), path, segmentation=segmentation)


def geometry_of(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    """The grid of an image or a header; a header's negative spacing turns its axis round, as ITK
    does on reading.
    """
    signs = np.where(np.array(image.GetSpacing()) < 0, -1.0, 1.0)
    direction = np.reshape(image.GetDirection(), (3, 3)) * signs
    return Geometry(
        triple(image.GetSize()),
        triple(abs(float(s)) for s in image.GetSpacing()),
        triple(image.GetOrigin()),
        tuple(float(x) for x in direction.ravel()),
    )


def checked_grid(geometry: Geometry, path: Path, *, segmentation: bool = False) -> Geometry:
    """`geometry`, unless it is a single slice, not finite, sheared or of implausible spacing
    (InputError).

    A segmentation may be cropped to a slice; where it is one voxel, nothing is drawn and its grid
    means nothing (3D Slicer's documentation says so).
    """
    if segmentation and geometry.size == NOTHING_DRAWN:
        return geometry
    if min(geometry.size) < 2 and not segmentation:
        raise InputError(
            f"is a single slice, expected a 3D volume (size {' x '.join(map(str, geometry.size))})",
            file=path,
            remedy="Give volumes with several slices.",
        )
    axes = np.reshape(geometry.direction, (3, 3))
    numbers = np.concatenate([geometry.spacing, geometry.origin, geometry.direction])
    if not np.isfinite(numbers).all():
        raise InputError(
            "has a grid that is not finite (origin, spacing or direction)",
            file=path,
            remedy="Correct the header.",
        )
    extent = max(n * s for n, s in zip(geometry.size, geometry.spacing, strict=True))
    low, high = _SPACING_MM
    if not all(low <= spacing <= high for spacing in geometry.spacing) or extent > _MAX_EXTENT_MM:
        raise InputError(
            "has an implausible voxel spacing of "
            f"{[float(f'{s:.4g}') for s in geometry.spacing]} mm",
            file=path,
            remedy="Correct the spacing in the header; it is in millimetres.",
        )
    if np.abs(axes.T @ axes - np.eye(3)).max() > 5e-3:
        raise unreadable(path, "not orthonormal")
    return geometry


def segments_in(reader: sitk.ImageFileReader) -> list[Segment]:
    """The segments that a header names; empty when it is no segmentation."""
    return segments(pairs_in(reader), reader.GetNumberOfComponents())


def is_segmentation_file(path: Path) -> bool:
    """Whether a file is a segmentation of 3D Slicer, from its header."""
    return path.name.lower().endswith(".nrrd") and is_segmentation(pairs_in(open_header(path)))


def pairs_in(reader: sitk.ImageFileReader) -> dict[str, str]:
    """The key-value pairs of a header; damaged keys, which are no text, are left out."""
    readable = [key for key in reader.GetMetaDataKeys() if not _SURROGATE.search(key)]
    return {key: reader.GetMetaData(key) for key in readable}


def segments_of(path: Path) -> list[Segment]:
    """The segments of a file; empty when it is no .nrrd or no segmentation."""
    return segments_in(open_header(path)) if path.name.lower().endswith(".nrrd") else []
