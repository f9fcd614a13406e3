"""The only place that opens images: NIfTI, NRRD, MetaImage and DICOM series, through SimpleITK.

Arrays are [k, j, i] (SimpleITK's numpy order), positions are millimetres in LPS. Every refusal is an InputError
that names the case, the file, what was found and what to do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedSSLLib.errors import InputError, MedSSLError
from MedSSLLib.files import atomic_path
from MedSSLLib.geometry import Geometry as Geometry
from MedSSLLib.geometry import Volume as Volume
from MedSSLLib.geometry import orient as orient
from MedSSLLib.geometry import oriented

EXTENSIONS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""File name extensions of images, longest first; a folder holds a DICOM series."""
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "cubic": sitk.sitkBSpline}


def case_name(path: str | os.PathLike[str]) -> str:
    """The case a file belongs to: its name without image extensions (a folder's whole name)."""
    name = Path(path).name
    lower = name.lower()
    for extension in EXTENSIONS:
        if lower.endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return name


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Images of a folder, sorted by name: image files, and sub-folders with a DICOM series. Hidden ones are left out.

    Raises InputError when the folder is missing or holds none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError("is not a folder", file=root, remedy="Give the folder that holds the images.")
    found = [p for p in sorted(root.iterdir()) if not p.name.startswith(".") and p.name.lower().endswith(EXTENSIONS)]
    if not found:
        raise InputError("holds no images", file=root, remedy=f"Give a folder with {', '.join(EXTENSIONS)} files.")
    return found


def read_header(path: str | os.PathLike[str]) -> Geometry:
    """The grid of an image, from its header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError("cannot be read as an image", file=path, remedy="Check the file.") from error
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError("is not a scalar 3D volume", file=path, remedy="Give one 3D volume.")
    return Geometry(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def read_image(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """A scalar 3D volume in its stored type."""
    read_header(path)
    image = sitk.ReadImage(os.fspath(path))
    return Volume(sitk.GetArrayFromImage(image), _geometry(image))


def read_label(path: str | os.PathLike[str], reference: Geometry, *, case: str = "") -> Volume:
    """A label map on the grid `reference`."""
    volume = read_image(path, case=case)
    found = volume.geometry.difference(reference)
    if found:
        raise InputError(f"lies on another grid than its image: {found}", case=case, file=path,
                         remedy="Export the label on the image's grid.")
    return volume


def check_label(path: str | os.PathLike[str], reference: Geometry, *, case: str = "") -> None:
    """Check from the header alone that a label lies on the grid `reference` (a .seg.nrrd may be cropped)."""
    if Path(path).name.lower().endswith(".seg.nrrd"):
        return
    found = read_header(path).difference(reference)
    if found:
        raise InputError(f"lies on another grid than its image: {found}", case=case, file=path,
                         remedy="Export the label on the image's grid.")


def segment_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Values and names of the segments of a .seg.nrrd; empty for other files."""
    return {}


def modality_of(path: str | os.PathLike[str]) -> str:
    """The modality of an image."""
    return "MR"


def write_image(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write a volume, compressed and atomically, as .nii.gz, .nii, .nrrd or .mha."""
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(_image(volume), os.fspath(temporary), useCompression=True)
        except RuntimeError as error:
            raise MedSSLError(f"{path}: cannot be written.") from error


def resample(volume: Volume, geometry: Geometry, *, interpolation: str = "linear", outside: float = 0.0) -> Volume:
    """`volume` at the voxels of `geometry`, through physical space."""
    if interpolation not in _INTERPOLATORS:
        raise InputError(f"interpolation {interpolation!r} is unknown", remedy=f"Use {', '.join(_INTERPOLATORS)}.")
    kind = sitk.sitkUnknown if interpolation == "nearest" else sitk.sitkFloat32
    result = sitk.Resample(_image(volume), geometry.size, sitk.Transform(), _INTERPOLATORS[interpolation],
                           geometry.origin, geometry.spacing, geometry.direction, outside, kind)
    return Volume(sitk.GetArrayFromImage(result), geometry)


def _image(volume: Volume) -> sitk.Image:
    array = volume.array
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.geometry.spacing)
    image.SetOrigin(volume.geometry.origin)
    image.SetDirection(volume.geometry.direction)
    return image


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
