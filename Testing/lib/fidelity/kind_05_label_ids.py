"""Kind 5: label values that are large, scaled or nearly whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import class_indices
from MedSSLLib.inference.model import label_volume
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.registry import REFUSED, WARNED, Check, variant

KIND = "5 label values"


def read(folder: Path, label: Path) -> np.ndarray:
    image = save(folder / "images" / "c.nii.gz", scan()[0])
    return np.asarray(io.read_label(label, io.read_header(image)).array.T)


def ids(values: tuple[int, int], kind: Any, extension: str) -> Check:
    """Ids of a label file come through init, the classes of training, and back into a file."""

    def check(folder: Path) -> str | None:
        expected = np.array([0, *values], kind)[scan()[1]]
        label = folder / "labels" / f"c{extension}"
        label.parent.mkdir()
        if extension.startswith(".nii"):
            save(label, expected)
        else:
            image = sitk.ReadImage(str(save(folder / "image.nii.gz", scan()[0])))
            other = sitk.GetImageFromArray(expected.T)
            other.CopyInformation(image)
            sitk.WriteImage(other, str(label))
        assert np.array_equal(read(folder, label), expected), "read"
        project = Project.create(folder / "p", folder / "images", labels=label.parent)
        if project.refused:
            raise project.refused[0]
        project = Project.open(folder / "p")
        assert project.values == (0, *values), f"the project has {project.values}"
        grid = io.read_header(folder / "images" / "c.nii.gz")
        classes = class_indices(io.read_label(label, grid).array, project.values)
        model: Any = SimpleNamespace(values=project.values)
        io.write_image(folder / "out.nii.gz", label_volume(model, classes, grid))
        written = np.asarray(nibabel.load(folder / "out.nii.gz").dataobj)
        assert np.array_equal(written, expected), f"written as {np.unique(written)}"
        return None

    return check


variant(KIND, "1 and 2, uint8")(ids((1, 2), np.uint8, ".nii.gz"))
variant(KIND, "1 and 255, uint8")(ids((1, 255), np.uint8, ".nii"))
variant(KIND, "300 and 32767, int16")(ids((300, 32767), np.int16, ".nii.gz"))
variant(KIND, "32767 and 32768, int32")(ids((32767, 32768), np.int32, ".nii.gz"))
variant(KIND, "300 and 40000, uint16")(ids((300, 40000), np.uint16, ".nii.gz"))
variant(KIND, "300 and 40000, NRRD")(ids((300, 40000), np.uint16, ".nrrd"))
variant(KIND, "997 and 312782546, int32")(ids((997, 312782546), np.int32, ".nii.gz"))
variant(KIND, "997 and 312782546, MetaImage")(ids((997, 312782546), np.int32, ".mha"))
variant(KIND, "997 and 3127825460, uint32")(ids((997, 3127825460), np.uint32, ".nii.gz"))
variant(KIND, "997 and 312782546, float64")(ids((997, 312782546), np.float64, ".nii.gz"))
variant(KIND, "10 and 16777216, float32")(ids((10, 2**24), np.float32, ".nii.gz"))
variant(KIND, "997 and 312782546, float32", REFUSED)(ids((997, 312782546), np.float32, ".nii.gz"))
variant(KIND, "1 and 5000000000, int64", REFUSED)(ids((1, 5 * 10**9), np.int64, ".nrrd"))
variant(KIND, "negative values", REFUSED)(ids((-1, 2), np.int16, ".nii.gz"))


def scaled(kind: str, values: tuple[int, ...]) -> Check:
    """float64 values that nibabel saved with the header of an integer image: it scales them."""

    def check(folder: Path) -> str | None:
        expected = np.array([0, *values])[scan()[1]]
        header = nibabel.Nifti1Image(np.zeros((2, 2, 2), kind), AFFINE).header
        image = nibabel.Nifti1Image(expected.astype(np.float64), AFFINE, header=header)
        nibabel.save(image, folder / "l.nii.gz")
        assert nibabel.load(folder / "l.nii.gz").dataobj.slope != 1, "the premise of the check"
        assert np.array_equal(read(folder, folder / "l.nii.gz"), expected)
        return None

    return check


for kind in ("uint8", "int16", "int32", "uint16"):
    variant(KIND, f"1 and 2, {kind} with scl_slope")(scaled(kind, (1, 2)))
    variant(KIND, f"13 and 41, {kind} with scl_slope")(scaled(kind, (13, 41)))


def slope(number: float, intercept: float) -> Check:
    def check(folder: Path) -> str | None:
        image = nibabel.Nifti1Image(scan()[1].astype(np.int16), AFFINE)
        image.header.set_slope_inter(number, intercept)
        nibabel.save(image, folder / "l.nii.gz")
        expected = np.asarray(nibabel.load(folder / "l.nii.gz").get_fdata())
        assert np.array_equal(read(folder, folder / "l.nii.gz"), np.rint(expected))
        return None

    return check


variant(KIND, "scl_slope 1, scl_inter 0")(slope(1, 0))
variant(KIND, "scl_slope 2")(slope(2, 0))


def floats(change: Any, kind: Any = np.float32) -> Check:
    def check(folder: Path) -> str | None:
        label = scan()[1]
        save(folder / "l.nii.gz", change(label).astype(kind))
        assert np.array_equal(read(folder, folder / "l.nii.gz"), label)
        return None

    return check


variant(KIND, "1.0000153")(floats(lambda label: label * 1.0000153))
variant(KIND, "0.996")(floats(lambda label: label * 0.996))
variant(KIND, "0.999999, float64")(floats(lambda label: label * 0.999999, np.float64))
variant(KIND, "-0.0 and 1e-7 for the background")(
    floats(lambda label: np.where(label, label, np.where(label.cumsum(0) > 1, -0.0, 1e-7)))
)
variant(KIND, "a probability map", REFUSED)(floats(lambda label: label / 2.2))


@variant(KIND, "a probability map, scaled to uint8", REFUSED)
def scaled_probabilities(folder: Path) -> str | None:
    values = np.clip(scan()[0] / 300, 0, 1).astype(np.float64)
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), AFFINE).header
    nibabel.save(nibabel.Nifti1Image(values, AFFINE, header=header), folder / "l.nii.gz")
    read(folder, folder / "l.nii.gz")
    return None


@variant(KIND, "a label smoothed by interpolation", REFUSED)
def interpolated(folder: Path) -> str | None:
    image = sitk.ReadImage(str(save(folder / "l.nii.gz", scan()[1].astype(np.float32))))
    sitk.WriteImage(sitk.SmoothingRecursiveGaussian(image, 1.0), str(folder / "l.nii.gz"))
    read(folder, folder / "l.nii.gz")
    return None


@variant(KIND, "written with the scaling of the image")
def written_for_a_scaled_image(folder: Path) -> str | None:
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), AFFINE).header
    image = nibabel.Nifti1Image(scan()[0].astype(np.float64), AFFINE, header=header)
    nibabel.save(image, folder / "c.nii.gz")
    grid = io.read_header(folder / "c.nii.gz")
    io.write_image(folder / "o.nii.gz", Volume(scan()[1].T, grid), like=folder / "c.nii.gz")
    assert np.array_equal(np.asarray(nibabel.load(folder / "o.nii.gz").dataobj), scan()[1])
    return None


@variant(KIND, "halves", REFUSED)
def halves(folder: Path) -> str | None:
    try:
        read(folder, save(folder / "l.nii.gz", (scan()[1] * 0.5).astype(np.float32)))
    except InputError as error:
        assert "multiples of 0.5" in error.remedy, error.remedy
        raise
    return None


@variant(KIND, "a channel for each class", REFUSED)
def one_hot(folder: Path) -> str | None:
    label = scan()[1]
    path = save(folder / "l.nii.gz", np.stack([label == n for n in range(3)], -1).astype(np.uint8))
    try:
        read(folder, path)
    except InputError as error:
        assert "one map of class numbers" in error.remedy, error.remedy
        raise
    return None


@variant(KIND, "an image for a label", WARNED)
def image_for_label(folder: Path) -> str | None:
    save(folder / "images" / "c.nii.gz", scan()[0])
    save(folder / "labels" / "c.nii.gz", scan()[0].astype(np.int16))
    project = Project.create(folder / "p", folder / "images", labels=folder / "labels")
    return "; ".join(project.warnings) or None
