"""Kind 8: what lies beside a file or below a folder: it must not be taken for the file, nor be
passed over without a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.files import write_json
from MedSSLLib.images import io
from MedSSLLib.project.layouts import images_at
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.kind_04_dicom import image, place, stored, write
from Testing.lib.fidelity.registry import REFUSED, WARNED, Check, variant

KIND = "8 neighbours"


def write_series(folder: Path) -> None:
    """The slices of a series, a file each."""
    for number, values in enumerate(stored()):
        write(folder / f"{number:03d}.dcm", place(image(values), number))


def twin(other: np.ndarray, second_version: bool = False) -> Check:
    """A plain file of the same name, as `gunzip -k` leaves one, that was changed since."""

    def check(folder: Path) -> str | None:
        version = nibabel.Nifti2Image if second_version else nibabel.Nifti1Image
        for name, array in (("c.nii.gz", scan()[0]), ("c.nii", other)):
            nibabel.save(version(array, AFFINE), folder / name)
        found = io.read_image(folder / "c.nii.gz")
        assert np.array_equal(found.array, scan()[0].T), "the voxels of the other file"
        assert found.geometry.size == scan()[0].shape
        assert np.array_equal(io.read_image(folder / "c.nii").array, other.T)
        return None

    return check


variant(KIND, "c.nii beside c.nii.gz: mirrored")(twin(scan()[0][::-1].copy()))
variant(KIND, "c.nii beside c.nii.gz: another type")(twin(scan()[0].astype(np.int16)))
variant(KIND, "c.nii beside c.nii.gz: cropped")(twin(scan()[0][2:, :, 1:].copy()))
variant(KIND, "c.nii beside c.nii.gz: NIfTI-2")(twin(scan()[0] + 1, second_version=True))


@variant(KIND, "dataset.json lists label.nii.gz, label.nii beside it")
def listed(folder: Path) -> str | None:
    values, label = scan()
    save(folder / "d" / "imagesTr" / "c.nii.gz", values)
    save(folder / "d" / "labelsTr" / "c.nii.gz", label)
    save(folder / "d" / "labelsTr" / "c.nii", np.zeros_like(label))
    entry = {"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz"}
    write_json(folder / "d" / "dataset.json", {"training": [entry]})
    (case,) = Project.create(folder / "p", folder / "d").labelled
    found = io.read_label(case.label, io.read_header(case.images[0]), case="c")
    assert np.array_equal(found.array, label.T)
    return None


def detached(extension: str) -> Check:
    """Headers are alike where the voxels are not."""

    def check(folder: Path) -> str | None:
        for n, where in enumerate(("a", "b", "copy")):
            (folder / where).mkdir()
            if extension == ".hdr":
                pair = nibabel.Nifti1Pair(scan(n % 2)[0], AFFINE)
                nibabel.save(pair, folder / where / "scan.hdr")
            else:
                array = sitk.GetImageFromArray(scan(n % 2)[0].T)
                sitk.WriteImage(array, str(folder / where / f"scan{extension}"))
        project = Project.create(folder / "p", folder / "a")
        assert project.add([folder / "copy"]) == () and project.already == ("scan",)
        project.add([folder / "b"])
        return None

    return check


for extension in (".mhd", ".nhdr", ".hdr"):
    variant(KIND, f"add: another scan{extension}", REFUSED)(detached(extension))


@variant(KIND, "a NIfTI file at the top, one in a folder below", WARNED)
def below(folder: Path) -> str | None:
    save(folder / "s" / "a.nii.gz", scan()[0])
    save(folder / "s" / "site2" / "b.nii.gz", scan(1)[0])
    for found in (Project.create(folder / "p", folder / "s"), images_at([folder / "s"], 1)):
        assert any("site2" in words for words in found.warnings)
    return "; ".join(found.warnings)


@variant(KIND, "results in folders below the scans")
def results_below(folder: Path) -> str | None:
    for where in ("a", "p/runs/a", "out/a", "more/b"):
        save(folder / "s" / f"{where}.nii.gz", scan()[0])
    given = [folder / "s", folder / "s" / "more"]
    apart = (folder / "s" / "p", folder / "s" / "out")
    assert images_at(given, 1, apart).warnings == ()
    shutil.rmtree(folder / "s" / "out")
    project = Project.create(folder / "s" / "p", folder / "s", labels=None)
    assert "1 image file in folders below is left out (more/b" in project.warnings[0]
    return None


@variant(KIND, "add: the same first channel, another second one", REFUSED)
def second_channel(folder: Path) -> str | None:
    for where in ("a", "copy", "b"):
        for name in ("c_0000", "c_0001", "d_0000", "d_0001"):
            changed = name == "c_0001" and where == "b"
            save(folder / where / "imagesTr" / f"{name}.nii.gz", scan(int(changed))[0])
    project = Project.create(folder / "p", folder / "a" / "imagesTr")
    project.add([folder / "copy" / "imagesTr"])
    assert project.already == ("c", "d")
    project.add([folder / "b" / "imagesTr"])
    assert project.already == ("d",)
    raise project.refused[0]


@variant(KIND, "init: a damaged file among others", REFUSED)
def damaged(folder: Path) -> str | None:
    path = save(folder / "s" / "a.nii.gz", scan()[0])
    save(folder / "s" / "b.nii.gz", scan(1)[0])
    content = bytearray(path.read_bytes())
    content[400:4000] = b"x" * 3600
    path.write_bytes(bytes(content))
    project = Project.create(folder / "p", folder / "s", modality=["MR"])
    io.read_image(project.case("a").images[0])
    return None


@variant(KIND, "labels in a folder below the scans")
def labels_below(folder: Path) -> str | None:
    save(folder / "s" / "a.nii.gz", scan()[0])
    save(folder / "s" / "labels" / "a.nii.gz", scan()[1])
    project = Project.create(folder / "p", folder / "s", labels=folder / "s" / "labels")
    assert len(project.labelled) == 1
    return "; ".join(project.warnings) or None


@variant(KIND, "a DICOM series at the top, others below")
def series_below(folder: Path) -> str | None:
    for where in ("s", "s/p1", "s/a/b/c/d/e/f"):
        write_series(folder / where)
    (folder / "s" / "loop").symlink_to(folder / "s")
    project = Project.create(folder / "p", folder / "s")
    assert [case.name for case in project.cases] == ["a_b_c_d_e_f", "p1", "s"]
    return None


@variant(KIND, "a disc: DICOMDIR at the top")
def disc(folder: Path) -> str | None:
    write_series(folder / "disc" / "DICOM" / "p1")
    some = next((folder / "disc" / "DICOM" / "p1").iterdir())
    contents = pydicom.dcmread(some)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(contents, name)
    contents.save_as(folder / "disc" / "DICOMDIR")
    for found in (Project.create(folder / "p", folder / "disc"), images_at([folder / "disc"], 1)):
        assert [case.name for case in found.cases] == ["DICOM_p1"] and not found.refused
    return None


@variant(KIND, "each file in a folder of its own name, v1.nii/v1.nii")
def wrapped(folder: Path) -> str | None:
    for n in (1, 2):
        save(folder / "s" / f"v{n}.nii" / f"v{n}.nii", scan(n)[0])
    project = Project.create(folder / "p", folder / "s")
    assert [case.name for case in project.cases] == ["v1", "v2"]
    return "; ".join(project.warnings) or None


@variant(KIND, "two labels of a case in a folder, mask and seg", REFUSED)
def two_labels(folder: Path) -> str | None:
    for name in ("e", "f"):
        save(folder / "s" / f"{name}.nii.gz", scan()[0])
    for name in ("e_mask", "e_seg", "f_seg"):
        save(folder / "l" / f"{name}.nii.gz", scan()[1])
    project = Project.create(folder / "p", folder / "s", labels=folder / "l")
    assert [case.name for case in project.labelled] == ["f"], "the other cases go on"
    (refused,) = project.refused
    assert refused.case == "e" and "2 labels (e_mask.nii.gz, e_seg.nii.gz)" in str(refused)
    raise refused


@variant(KIND, "the plain name and e_mask: the plain name counts", WARNED)
def plain_label(folder: Path) -> str | None:
    save(folder / "s" / "e.nii.gz", scan()[0])
    for name in ("e_mask", "e", "e_seg"):
        save(folder / "l" / f"{name}.nii.gz", scan()[1])
    project = Project.create(folder / "p", folder / "s", labels=folder / "l")
    assert project.case("e").label.name == "e.nii.gz"
    return "; ".join(project.warnings)


@variant(KIND, "two labels beside a scan", WARNED)
def two_beside(folder: Path) -> str | None:
    for name in ("e_mask", "e_seg"):
        save(folder / "s" / f"{name}.nii.gz", scan()[1])
    save(folder / "s" / "e.nii.gz", scan()[0])
    project = Project.create(folder / "p", folder / "s")
    assert not project.labelled and "which is its label" in project.warnings[0]
    shutil.move(folder / "s" / "e_mask.nii.gz", folder / "e_mask.nii.gz")
    assert len(Project.create(folder / "q", folder / "s").labelled) == 1
    return project.warnings[0]
