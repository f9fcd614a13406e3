"""Kind 3, more of it: headers that programs read differently or that leave something unsaid, in
NIfTI, NRRD and MetaImage. Written byte by byte.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.inference.unlike_scans import unlike_training
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.registry import HANDLED, REFUSED, WARNED, Check, variant

KIND = "3 other headers"
DIRECTIONS = ["space directions: (1.2,0,0) (0,1.1,0) (0,0,2)", "space origin: (1,2,3)"]


def taken(path: Path, spacing: Sequence[float] = (1.2, 1.1, 2.0)) -> str | None:
    """Take an image into a project: its values and voxel sizes, and what is said of it."""
    found = io.read_image(path)
    assert np.array_equal(found.array, scan()[0].T), "the values differ"
    assert np.allclose(found.geometry.spacing, spacing), f"voxels of {found.geometry.spacing} mm"
    project = Project.create(path.parents[1] / "p", path.parent)
    return "; ".join(project.warnings) or None


def changed(at: int, form: str, *values: float, array: np.ndarray | None = None) -> Check:
    """A NIfTI file with other numbers at a place of its header."""

    def check(folder: Path) -> str | None:
        path = save(folder / "images" / "c.nii.gz", scan()[0] if array is None else array)
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<" + form, content, at, *values)
        path.write_bytes(gzip.compress(bytes(content)))
        return taken(path)

    return check


variant(KIND, "pixdim[1] negative, sform", REFUSED)(changed(80, "f", -1.2))
variant(KIND, "pixdim[3] negative, sform", REFUSED)(changed(88, "f", -2.0))
variant(KIND, "vox_offset 0 in one file", REFUSED)(changed(108, "f", 0.0))
variant(KIND, "vox_offset 348 in one file", REFUSED)(changed(108, "f", 348.0))
variant(KIND, "scl_slope 0, scl_inter -1024", REFUSED)(changed(112, "2f", 0.0, -1024.0))
variant(KIND, "scl_slope 0, scl_inter 0", HANDLED)(changed(112, "2f", 0.0, 0.0))
variant(KIND, "scl_slope NaN, scl_inter NaN", HANDLED)(changed(112, "2f", np.nan, np.nan))
variant(KIND, "scl_slope NaN, scl_inter 5", REFUSED)(changed(112, "2f", np.nan, 5.0))
variant(KIND, "pixdim[4] and cal_max set", HANDLED)(changed(92, "f", 99.0))


def nrrd(*lines: str, sizes: Sequence[float] = (1.2, 1.1, 2.0)) -> Check:
    def check(folder: Path) -> str | None:
        image = scan()[0]
        head = ["NRRD0004", "type: float", "dimension: 3", "endian: little", "encoding: raw"]
        head += ["sizes: " + " ".join(map(str, image.shape)), *lines]
        (folder / "images").mkdir()
        content = ("\n".join(head) + "\n\n").encode() + image.tobytes(order="F")
        (folder / "images" / "c.nrrd").write_bytes(content)
        return taken(folder / "images" / "c.nrrd", sizes)

    return check


variant(KIND, "NRRD, RAS")(nrrd("space: RAS", *DIRECTIONS))
variant(KIND, "NRRD, left-posterior-superior")(nrrd("space: left-posterior-superior", *DIRECTIONS))
variant(KIND, "NRRD, space of the scanner", WARNED)(nrrd("space: scanner-xyz", *DIRECTIONS))
variant(KIND, "NRRD, space dimension alone", WARNED)(nrrd("space dimension: 3", *DIRECTIONS))
variant(KIND, "NRRD, spacings alone", WARNED)(nrrd("spacings: 1.2 1.1 2"))
variant(KIND, "NRRD, no spacing", WARNED)(nrrd(sizes=(1, 1, 1)))
variant(KIND, "NRRD, lengths in another unit", WARNED)(
    nrrd("space: RAS", *DIRECTIONS, 'space units: "cm" "cm" "cm"')
)
variant(KIND, "NRRD, lengths in mm")(nrrd("space: RAS", *DIRECTIONS, 'space units: "mm" "mm" "mm"'))

PLACE, SIZE = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1.2 1.1 2"


def meta(*lines: str, sizes: Sequence[float] = (1.2, 1.1, 2.0)) -> Check:
    def check(folder: Path) -> str | None:
        image = scan()[0]
        head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", *lines]
        head += ["DimSize = " + " ".join(map(str, image.shape)), "ElementType = MET_FLOAT"]
        (folder / "images").mkdir()
        content = ("\n".join([*head, "ElementDataFile = LOCAL"]) + "\n").encode()
        (folder / "images" / "c.mha").write_bytes(content + image.tobytes(order="F"))
        return taken(folder / "images" / "c.mha", sizes)

    return check


variant(KIND, "MetaImage")(meta(PLACE, SIZE))
variant(KIND, "MetaImage, ElementSize for ElementSpacing")(meta(PLACE, "ElementSize = 1.2 1.1 2"))
variant(KIND, "MetaImage, no TransformMatrix", WARNED)(meta(SIZE))
variant(KIND, "MetaImage, no spacing", WARNED)(meta(PLACE, sizes=(1, 1, 1)))
variant(KIND, "MetaImage, a slope for grey values", WARNED)(
    meta(PLACE, SIZE, "ElementToIntensityFunctionSlope = 2")
)


@variant(KIND, "MetaImage, a data file of twice the size", REFUSED)
def twice(folder: Path) -> str | None:
    image = scan()[0]
    sitk.WriteImage(sitk.GetImageFromArray(image.T), str(folder / "c.mhd"), False)
    content = (folder / "c.raw").read_bytes()
    assert np.array_equal(io.read_image(folder / "c.mhd").array, image.T)
    (folder / "c.raw").write_bytes(content * 2)
    io.read_image(folder / "c.mhd")
    return None


def lengths(*factors: float) -> Check:
    """Scans whose voxel sizes are these times as large, without a unit."""

    def check(folder: Path) -> str | None:
        for n, factor in enumerate(factors):
            affine = AFFINE @ np.diag([factor, factor, factor, 1])
            save(folder / "images" / f"c{n}.nii.gz", scan(n)[0], affine)
        project = Project.create(folder / "p", folder / "images")
        assert len(project.cases) == len(factors)
        return "; ".join(project.warnings) or None

    return check


variant(KIND, "all scans in metres, no unit", WARNED)(lengths(0.001, 0.001, 0.001))
variant(KIND, "one scan of four in metres, no unit", WARNED)(lengths(1, 1, 0.001, 1))
variant(KIND, "one scan of four in centimetres", WARNED)(lengths(1, 0.1, 1, 1))
variant(KIND, "voxels of a half and of thrice the size", HANDLED)(lengths(1, 0.5, 3, 1))


def predicted(change: np.ndarray, forms: bool = True) -> Check:
    """What `predict` says of a scan, for a model of scans in mm."""

    def check(folder: Path) -> str | None:
        plan = make_plan([io.read_header(save(folder / "a.nii.gz", scan()[0]))], modality="MR")
        image = nibabel.Nifti1Image(scan()[0], AFFINE @ change)
        if not forms:
            image.set_sform(None, 0)
            image.set_qform(None, 0)
        path = folder / "b.nii.gz"
        nibabel.save(image, path)
        return "; ".join(unlike_training(plan, [path], io.read_header(path))) or None

    return check


SAME = np.eye(4)
variant(KIND, "predict: metres, no unit", WARNED)(predicted(np.diag([0.001, 0.001, 0.001, 1])))
variant(KIND, "predict: ten times as large voxels", WARNED)(predicted(np.diag([10, 10, 10, 1])))
variant(KIND, "predict: no form at all", WARNED)(predicted(SAME, forms=False))
variant(KIND, "predict: twice as large voxels")(predicted(np.diag([2, 2, 2, 1])))


@variant(KIND, "added: voxels twenty times as large as the project's", WARNED)
def added(folder: Path) -> str | None:
    save(folder / "images" / "a.nii.gz", scan()[0])
    project = Project.create(folder / "p", folder / "images")
    save(folder / "new" / "b.nii.gz", scan(1)[0], AFFINE @ np.diag([20, 20, 20, 1]))
    project.add([folder / "new"])
    return "; ".join(project.warnings) or None
