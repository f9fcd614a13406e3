"""Kind 4, more of it: what DICOM says about the meaning of grey values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset

from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.inference.unlike_scans import unlike_training
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import save, scan
from Testing.lib.fidelity.kind_04_dicom import CT, MR, PET, plain, same, series, stored
from Testing.lib.fidelity.registry import REFUSED, WARNED, Check, variant

KIND = "4 grey values of DICOM"


def _inverted(data: Dataset, number: int) -> None:
    data.PhotometricInterpretation = "MONOCHROME1"


def _unchanged(data: Dataset, number: int) -> None:
    """ITK, which compresses below, would invert the values."""


def shown_inverted(kind: str, compressor: str = "") -> Check:
    """A series of MONOCHROME1: the stored values count, compressed or not."""

    def check(folder: Path) -> str | None:
        path = series(
            folder / "images", _inverted if not compressor else lambda *_: None, kind=kind
        )
        for file in path.iterdir() if compressor else ():
            slice_ = sitk.ReadImage(str(file))
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetUseCompression(True)
            writer.SetCompressor(compressor)
            writer.SetFileName(str(file))
            writer.Execute(slice_)
            data = pydicom.dcmread(file)
            assert data.file_meta.TransferSyntaxUID.is_compressed
            _inverted(data, 0)
            data.save_as(file)
        same(path, stored())
        project = Project.create(folder / "p", path.parent)
        return "; ".join(project.warnings) or None

    return check


variant(KIND, "MONOCHROME1, MR", WARNED)(shown_inverted(MR))
variant(KIND, "MONOCHROME1, CT")(shown_inverted(CT))
variant(KIND, "MONOCHROME1, PET")(shown_inverted(PET))
for compressor in ("JPEG2000", "JPEG"):
    variant(KIND, f"MONOCHROME1, CT, {compressor}")(shown_inverted(CT, compressor))


def _every_other(data: Dataset, number: int) -> None:
    data.PhotometricInterpretation = ("MONOCHROME1", "MONOCHROME2")[number % 2]


def _all_but_one(data: Dataset, number: int) -> None:
    if number != 3:
        data.RescaleSlope, data.RescaleIntercept = 1, -1024


def _same_number(data: Dataset, number: int) -> None:
    data.InstanceNumber = 1


def _back_to_front(data: Dataset, number: int) -> None:
    data.ImagePositionPatient = [-10, 5, f"{2 * (5 - number)}"]


variant(KIND, "MONOCHROME1 and 2 in one series", REFUSED)(plain(_every_other))
variant(KIND, "one slice without slope and intercept", REFUSED)(plain(_all_but_one, kind=CT))
variant(KIND, "every InstanceNumber is 1")(plain(_same_number))


@variant(KIND, "positions from head to feet")
def back_to_front(folder: Path) -> str | None:
    same(series(folder, _back_to_front), stored()[::-1])
    return None


@variant(KIND, "a padding value, signed")
def padding_value(folder: Path) -> str | None:
    array = stored().astype(np.int16) - 1000
    array[:, :3] = -2000
    same(series(folder, lambda data, _: _padded(data), array=array, kind=CT), array)
    return None


def _padded(data: Dataset) -> None:
    data.PixelPaddingValue = -2000


def judged(stray: int) -> Check:
    """MR in which so many voxels lie below -500 stays MR."""

    def check(folder: Path) -> str | None:
        for n in range(3):
            image = scan(n, (40, 40, 30))[0]
            image.reshape(-1)[: 100 * stray : 100] = -600
            save(folder / "images" / f"c{n}.nii.gz", image)
            assert io.modality_of(folder / "images" / f"c{n}.nii.gz") == "MR"
        project = Project.create(folder / "p", folder / "images")
        assert project.modality == "MR", f"taken as {project.modality}"
        return None

    return check


variant(KIND, "MR with a stray voxel of -600")(judged(1))
variant(KIND, "MR with four stray voxels of -600")(judged(4))


def predicted(kind: str, inverted: bool) -> Check:
    """What `predict` says of a series, for a model of MR."""

    def check(folder: Path) -> str | None:
        path = series(folder, _inverted if inverted else _unchanged, kind=kind)
        grid = io.read_header(path)
        return "; ".join(unlike_training(make_plan([grid], modality="MR"), [path], grid)) or None

    return check


variant(KIND, "predict: CT for a model of MR", WARNED)(predicted(CT, inverted=False))
variant(KIND, "predict: MONOCHROME1", WARNED)(predicted(MR, inverted=True))
variant(KIND, "predict: MR for a model of MR")(predicted(MR, inverted=False))


@variant(KIND, "CT in NIfTI added to a project of MR", WARNED)
def added_ct(folder: Path) -> str | None:
    save(folder / "images" / "a.nii.gz", scan()[0])
    project = Project.create(folder / "p", folder / "images")
    save(folder / "new" / "b.nii.gz", (10 * scan(1)[0] - 2000).astype(np.int16))
    project.add([folder / "new"])
    return "; ".join(project.warnings) or None
