"""Kind 3: headers of NIfTI that contradict themselves about where voxels lie.

nibabel writes the files. The labels are written with its affine (the sform), as users do; what may
never happen is that a label lands mirrored, shifted or rescaled on its image without a word.
"""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np

from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.registry import HANDLED, REFUSED, WARNED, Check, variant

KIND = "3 geometry of NIfTI"
SFORM = np.diag([1.2, 1.1, 2.0, 1.0])
SFORM[:3, 3] = [-13.8, -11.55, -15]


def turned(*, mirror: int | None = None, shift: float = 0.0, angle: float = 0.0) -> np.ndarray:
    """SFORM with an axis mirrored about the same centre, shifted (mm) or turned (degrees)."""
    affine = SFORM.copy()
    if mirror is not None:
        affine[mirror] *= -1
        # the middle of the grid stays where it is
        affine[mirror, 3] += 2 * (SFORM[mirror] @ [11.5, 10.5, 7.5, 1])
        affine[mirror, 3] -= (affine[mirror] @ [11.5, 10.5, 7.5, 1]) - (
            SFORM[mirror] @ [11.5, 10.5, 7.5, 1]
        )
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    affine[:2] = np.array([[c, -s], [s, c]]) @ affine[:2]
    affine[0, 3] += shift
    return affine


def paired(image: Path, label: Path) -> str | None:
    """Take both into a project; the label must pair with the image voxel by voxel, as stored."""
    seen = io.read_label(label, io.read_header(image)).array
    stored = np.asarray(nibabel.load(label).dataobj).T
    assert np.array_equal(seen, stored), "the label lies mirrored on its image"
    values = io.read_image(image).array
    assert np.allclose(values, np.asarray(nibabel.load(image).dataobj).T)
    project = Project.create(image.parent / "project", image.parent, labels=label.parent)
    if project.refused:
        raise project.refused[0]
    return "; ".join(project.warnings) or None


def write(folder: Path, sform: np.ndarray, of_s: int, qform: np.ndarray, of_q: int) -> Path:
    image = nibabel.Nifti1Image(scan()[0], sform)
    image.set_qform(qform, of_q)
    image.set_sform(sform, of_s)
    (folder / "images").mkdir()
    nibabel.save(image, folder / "images" / "c.nii.gz")
    return folder / "images" / "c.nii.gz"


def conflict(sform: np.ndarray, of_s: int, qform: np.ndarray, of_q: int) -> Check:
    def check(folder: Path) -> str | None:
        image = write(folder, sform, of_s, qform, of_q)
        return paired(image, save(folder / "labels" / "c.nii.gz", scan()[1], _affine(image)))

    return check


def _affine(image: Path) -> np.ndarray:
    return np.asarray(nibabel.load(image).affine)


for of_s, of_q in ((2, 1), (1, 1), (4, 1), (1, 2), (2, 2), (3, 1)):
    for axis, words in enumerate(("left and right", "front and back", "head and feet")):
        if axis and (of_s, of_q) != (2, 1):
            continue
        name = f"sform {of_s} and qform {of_q} mirror {words}"
        variant(KIND, name, REFUSED)(conflict(SFORM, of_s, turned(mirror=axis), of_q))
for of_s, expected in ((2, REFUSED), (1, WARNED)):
    # with code 1 the sform is used, so the label of nibabel lies on it; else it is on another grid
    variant(KIND, f"qform shifted by 5 mm, sform {of_s}", expected)(
        conflict(SFORM, of_s, turned(shift=5), 1)
    )
    variant(KIND, f"qform turned by 10 degrees, sform {of_s}", expected)(
        conflict(SFORM, of_s, turned(angle=10), 1)
    )
variant(KIND, "qform turned by 90 degrees", REFUSED)(conflict(SFORM, 2, turned(angle=90), 1))
variant(KIND, "both forms alike", HANDLED)(conflict(SFORM, 2, SFORM, 1))
variant(KIND, "qform alone, mirrored", HANDLED)(conflict(SFORM, 0, turned(mirror=0), 1))
variant(KIND, "sform alone", HANDLED)(conflict(turned(mirror=1), 2, SFORM, 0))
variant(KIND, "forms differ by rounding", HANDLED)(conflict(SFORM, 2, turned(shift=0.01), 1))
variant(KIND, "sform sheared by a registration, label on it", REFUSED)(
    conflict(SFORM + np.eye(4)[[1, 0, 3, 2]] * [[0.2] * 4, [0] * 4, [0] * 4, [0] * 4], 4, SFORM, 1)
)


@variant(KIND, "no form at all (codes 0), label of the same header", WARNED)
def no_form(folder: Path) -> str | None:
    image = write(folder, SFORM, 0, SFORM, 0)
    label = nibabel.Nifti1Image(scan()[1], None, nibabel.load(image).header)
    label.set_data_dtype(np.uint8)
    (folder / "labels").mkdir()
    nibabel.save(label, folder / "labels" / "c.nii.gz")
    return paired(image, folder / "labels" / "c.nii.gz")


@variant(KIND, "no form at all (codes 0), label with nibabel's affine", REFUSED)
def no_form_but_a_label_with_one(folder: Path) -> str | None:
    image = write(folder, SFORM, 0, SFORM, 0)
    return paired(image, save(folder / "labels" / "c.nii.gz", scan()[1], _affine(image)))


def sizes(of_s: int, of_q: int) -> Check:
    def check(folder: Path) -> str | None:
        write(folder, SFORM, of_s, SFORM, of_q)
        content = bytearray(
            nibabel.Nifti1Image.from_filename(folder / "images" / "c.nii.gz").to_bytes()
        )
        struct.pack_into("<3f", content, 80, 1, 1, 1)
        (folder / "images" / "c.nii.gz").unlink()
        image = folder / "images" / "c.nii"
        image.write_bytes(content)
        label = save(folder / "labels" / "c.nii.gz", scan()[1], _affine(image))
        spacing = np.abs(np.diag(_affine(image))[:3])
        warning = paired(image, label)
        assert np.allclose(io.read_header(image).spacing, spacing), "rescaled"
        return warning

    return check


variant(KIND, "voxel sizes (pixdim) 1 mm, sform 1.2 x 1.1 x 2 mm", REFUSED)(sizes(2, 0))
variant(KIND, "voxel sizes and qform 1 mm, sform 1.2 x 1.1 x 2 mm", REFUSED)(sizes(2, 1))
variant(KIND, "voxel sizes 1 mm, qform alone (they are its own)", HANDLED)(sizes(0, 1))


def units(name: str, factor: float) -> Check:
    def check(folder: Path) -> str | None:
        scale = np.diag([factor, factor, factor, 1])
        for place, array in (("images", scan()[0]), ("labels", scan()[1])):
            image = nibabel.Nifti1Image(array, scale @ SFORM)
            image.header.set_xyzt_units(name, "sec")
            (folder / place).mkdir()
            nibabel.save(image, folder / place / "c.nii.gz")
        found = io.read_header(folder / "images" / "c.nii.gz")
        assert np.allclose(found.spacing, (1.2, 1.1, 2.0)), f"spacing {found.spacing}"
        return paired(folder / "images" / "c.nii.gz", folder / "labels" / "c.nii.gz")

    return check


variant(KIND, "lengths in metres", WARNED)(units("meter", 1e-3))
variant(KIND, "lengths in micrometres", WARNED)(units("micron", 1e3))
variant(KIND, "lengths without a unit", HANDLED)(units("unknown", 1))
variant(KIND, "millimetres called metres", REFUSED)(units("meter", 1))


@variant(KIND, "label without a unit, image in metres", REFUSED)
def label_without_unit(folder: Path) -> str | None:
    image = nibabel.Nifti1Image(scan()[0], np.diag([1e-3, 1e-3, 1e-3, 1]) @ SFORM)
    image.header.set_xyzt_units("meter", "sec")
    (folder / "images").mkdir()
    nibabel.save(image, folder / "images" / "c.nii")
    label = save(folder / "labels" / "c.nii.gz", scan()[1], image.affine)
    return paired(folder / "images" / "c.nii", label)


def orientation(code: str, extension: str) -> Check:
    def check(folder: Path) -> str | None:
        image = nibabel.Nifti1Image(scan()[0], AFFINE)
        target = nibabel.orientations.axcodes2ornt(code)
        moved = image.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(AFFINE), target)
        )
        (folder / "images").mkdir()
        path = folder / "images" / f"c{extension}"
        nibabel.save(moved, path)
        label = save(folder / "labels" / "c.nii.gz", scan()[1], AFFINE)  # stays as it was
        seen = io.read_label(label, io.read_header(path)).array.astype(float)
        back = nibabel.Nifti1Image(seen.T, moved.affine).as_reoriented(
            nibabel.orientations.ornt_transform(target, nibabel.io_orientation(AFFINE))
        )
        assert np.array_equal(np.asarray(back.dataobj), scan()[1])
        return None

    return check


for n, code in enumerate(("RAS", "LPS", "LAS", "RPI", "PIR", "SAL", "ILP", "ASR")):
    extension = (".nii", ".nii.gz", ".hdr")[n % 3]
    variant(KIND, f"image {code}{extension}, label LAS")(orientation(code, extension))


def kept(of_s: int, of_q: int, sform: np.ndarray, qform: np.ndarray) -> Check:
    """A file that is written for an image has its forms and codes."""

    def check(folder: Path) -> str | None:
        image = write(folder, sform, of_s, qform, of_q)
        volume = io.read_image(image)
        for name in ("p.nii.gz", "p.nii"):
            io.write_image(folder / name, volume, like=image)
            found, source = nibabel.load(folder / name), nibabel.load(image)
            assert np.allclose(found.affine, source.affine), "another affine"
            for form in ("get_sform", "get_qform"):
                ours, theirs = (getattr(i, form)(coded=True) for i in (found, source))
                assert ours[1] == theirs[1], "another code"
                assert ours[0] is None or np.allclose(ours[0], theirs[0])
            assert np.array_equal(found.get_fdata(), source.get_fdata())
        return None

    return check


variant(KIND, "written: sform alone")(kept(2, 0, SFORM, SFORM))
variant(KIND, "written: qform alone")(kept(0, 1, SFORM, turned(angle=20)))
variant(KIND, "written: both, standard space")(kept(4, 1, SFORM, turned(shift=5)))
variant(KIND, "written: no form")(kept(0, 0, SFORM, SFORM))


@variant(KIND, "written: big-endian source in metres")
def big_endian(folder: Path) -> str | None:
    image = nibabel.Nifti1Image(
        scan()[0], np.diag([1e-3] * 3 + [1]) @ SFORM, nibabel.Nifti1Header(endianness=">")
    )
    image.header.set_xyzt_units("meter", "sec")
    nibabel.save(image, folder / "c.nii.gz")
    io.write_image(
        folder / "p.nii.gz", io.read_image(folder / "c.nii.gz"), like=folder / "c.nii.gz"
    )
    found = nibabel.load(folder / "p.nii.gz")
    assert np.allclose(found.affine, image.affine, atol=1e-6)
    assert found.header.get_xyzt_units()[0] == "meter"
    return None
