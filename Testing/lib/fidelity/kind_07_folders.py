"""Kind 7: folders as users lay them out, and files that moved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import write_json
from MedSSLLib.images import io
from MedSSLLib.project.layouts import images_at
from MedSSLLib.project.project import Project
from MedSSLLib.project.relocation import missing_words
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.kind_06_segmentations import beside
from Testing.lib.fidelity.registry import REFUSED, WARNED, Check, variant

KIND = "7 folders"


def numbered(
    names: Sequence[str],
    cases: dict[str, int],
    *,
    labels: Sequence[str] = (),
    channels: Sequence[str] = (),
    folder_name: str = "imagesTr",
) -> Check:
    """Images of these names become these cases (name to number of channels)."""

    def check(folder: Path) -> str | None:
        for n, name in enumerate(names):
            save(folder / folder_name / f"{name}.nii.gz", scan(n)[0])
        for name in labels:
            save(folder / "labelsTr" / f"{name}.nii.gz", scan()[1])
        if channels:
            declared = {str(n): name for n, name in enumerate(channels)}
            write_json(folder / "dataset.json", {"channel_names": declared, "labels": {"a": 1}})
        project = Project.create(
            folder / "p", folder / folder_name, labels=folder / "labelsTr" if labels else None
        )
        if project.refused:
            raise project.refused[0]
        found = {case.name: len(case.images) for case in project.cases}
        assert found == cases, f"became {found}"
        assert len(project.labelled) == len(labels)
        return "; ".join(project.warnings) or None

    return check


AMOS = [f"amos_{n:04d}" for n in range(4)]
GAPS = [f"amos_{n:04d}" for n in (1, 4, 5, 7)]
TWO = ["a_0000", "a_0001", "b_0000", "b_0001"]
variant(KIND, "amos_0000 ..., labels of the same names")(
    numbered(AMOS, dict.fromkeys(AMOS, 1), labels=AMOS)
)
variant(KIND, "amos_0001, 4, 5, 7, labels of the same names")(
    numbered(GAPS, dict.fromkeys(GAPS, 1), labels=GAPS)
)
variant(KIND, "amos_0000 ..., no labels", WARNED)(numbered(AMOS, dict.fromkeys(AMOS, 1)))
variant(KIND, "amos_0001, 4, 5, 7, no labels", WARNED)(numbered(GAPS, dict.fromkeys(GAPS, 1)))
variant(KIND, "word_0002 and amos_0001, no labels", WARNED)(
    numbered(["amos_0001", "word_0002"], {"amos_0001": 1, "word_0002": 1})
)
variant(KIND, "amos_0000 ..., one of four labelled")(
    numbered(AMOS, dict.fromkeys(AMOS, 1), labels=AMOS[2:3])
)
variant(KIND, "two channels, labels named like the stems")(
    numbered(TWO, {"a": 2, "b": 2}, labels=["a", "b"])
)
variant(KIND, "two channels, no labels")(numbered(TWO, {"a": 2, "b": 2}))
variant(KIND, "two channels of one case, declared")(
    numbered(TWO[:2], {"a": 2}, channels=["T1", "T2"])
)
variant(KIND, "one channel, every file _0000")(numbered(["a_0000", "b_0000"], {"a": 1, "b": 1}))
variant(KIND, "amos_0000 ..., one channel declared")(
    numbered(AMOS, dict.fromkeys(AMOS, 1), channels=["T2"])
)
variant(KIND, "a channel is missing, two declared", REFUSED)(
    numbered(["a_0000", "a_0001", "b_0001"], {}, channels=["T1", "T2"])
)
variant(KIND, "numbered files of a plain folder")(
    numbered(AMOS, dict.fromkeys(AMOS, 1), folder_name="scans")
)
variant(KIND, "labels called case_seg")(
    numbered(["c1", "c2"], {"c1": 1, "c2": 1}, labels=["c1_seg", "c2_seg"])
)

for suffix in ("_seg", "-label", "_mask", "_gt", "_segmentation", ".labels"):
    variant(KIND, f"p{suffix}.nii.gz beside p.nii.gz", WARNED)(
        beside(["p.nii.gz", f"p{suffix}.nii.gz", "q.nii.gz"], ["p", "q"])
    )


@variant(KIND, "BraTS: p_seg beside p_t1 and p_t2", WARNED)
def brats(folder: Path) -> str | None:
    for name in ("p_t1", "p_t2"):
        save(folder / "scans" / f"{name}.nii.gz", scan()[0])
    save(folder / "scans" / "p_seg.nii.gz", scan()[1])
    project = Project.create(folder / "p", folder / "scans")
    assert [case.name for case in project.cases] == ["p_t1", "p_t2"]
    return "; ".join(project.warnings) or None


@variant(KIND, "predict: p_seg.nii.gz beside p.nii.gz", WARNED)
def predicted(folder: Path) -> str | None:
    save(folder / "p.nii.gz", scan()[0])
    save(folder / "p_seg.nii.gz", scan()[1])
    found = images_at([folder], 1)
    assert [case.name for case in found.cases] == ["p"]
    return "; ".join(found.warnings) or None


def _project(folder: Path) -> Project:
    for n in range(3):
        save(folder / "old" / "images" / f"c{n}.nii.gz", scan(n)[0])
        save(folder / "old" / "labels" / f"c{n}.nii.gz", scan(n)[1])
    return Project.create(folder / "p", folder / "old" / "images", labels=folder / "old" / "labels")


@variant(KIND, "all scans moved", REFUSED)
def moved(folder: Path) -> str | None:
    project = _project(folder)
    shutil.move(folder / "old", folder / "new")
    try:
        missing_words(project.folder, project.pool)
    except InputError as error:
        words = f"medssl relocate {folder / 'p'} {folder / 'old'} NEW"
        assert "6 files are not where they were" in str(error) and words in error.remedy
        raise
    return None


@variant(KIND, "one scan of three moved", WARNED)
def one_moved(folder: Path) -> str | None:
    project = _project(folder)
    (folder / "old" / "images" / "c1.nii.gz").unlink()
    (warning,) = missing_words(project.folder, project.pool)
    return warning


@variant(KIND, "relocate")
def relocate(folder: Path) -> str | None:
    project = _project(folder)
    shutil.move(folder / "old", folder / "new")
    project.relocate(folder / "old", folder / "new")
    project.save()
    again = Project.open(folder / "p")
    assert missing_words(again.folder, again.pool) == ()
    assert all(path.is_relative_to(folder / "new") for path in again.files)
    return None


@variant(KIND, "relocate to a folder without the files", REFUSED)
def relocate_wrongly(folder: Path) -> str | None:
    project = _project(folder)
    try:
        project.relocate(folder / "old", folder / "nowhere")
    finally:
        assert all(path.exists() for path in project.files), "paths were changed"
    return None


@variant(KIND, "relocate from a folder that is not the project's", REFUSED)
def relocate_other(folder: Path) -> str | None:
    _project(folder).relocate(folder / "other", folder / "old")
    return None


def second_version(extension: str, order: str, kind: str) -> Check:
    """NIfTI-2 holds the image that NIfTI-1 holds."""

    def check(folder: Path) -> str | None:
        values = scan()[0].astype(kind)
        turn = np.array([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        oblique = turn @ AFFINE
        image = nibabel.Nifti2Image(values, oblique, nibabel.Nifti2Header(endianness=order))
        image.header.set_data_dtype(np.dtype(kind).newbyteorder(order))
        first = nibabel.Nifti1Image(values, oblique)
        folder_of_scans = folder / "scans"
        folder_of_scans.mkdir()
        if extension == ".hdr":
            nibabel.save(nibabel.Nifti2Pair.from_image(image), folder_of_scans / "c.hdr")
        else:
            nibabel.save(image, folder_of_scans / f"c{extension}")
        nibabel.save(first, folder / "first.nii")
        found, other = (
            io.read_image(path)
            for path in (folder_of_scans / f"c{extension}", folder / "first.nii")
        )
        assert np.array_equal(found.array, other.array)
        assert found.geometry.close_to(other.geometry, tolerance=1e-4)
        project = Project.create(folder / "p", folder_of_scans)
        assert len(project.cases) == 1 and not project.refused
        return None

    return check


for extension, order, kind in (
    (".nii", "<", "i2"),
    (".nii.gz", "<", "f4"),
    (".nii", ">", "f4"),
    (".nii.gz", ">", "u1"),
    (".hdr", "<", "i2"),
):
    words = "little" if order == "<" else "big"
    variant(KIND, f"NIfTI-2 {extension}, {words}-endian {kind}")(
        second_version(extension, order, kind)
    )


@variant(KIND, "NIfTI-2 cut short", REFUSED)
def cut(folder: Path) -> str | None:
    nibabel.save(nibabel.Nifti2Image(scan()[0], AFFINE), folder / "c.nii")
    content = (folder / "c.nii").read_bytes()
    (folder / "c.nii").write_bytes(content[:-10])
    io.read_header(folder / "c.nii")
    return None


@variant(KIND, "a 4D file with one time point")
def one_time_point(folder: Path) -> str | None:
    path = save(folder / "c.nii.gz", scan()[0][..., None])
    assert np.array_equal(io.read_image(path).array.T, scan()[0])
    return None


@variant(KIND, "a 4D file with three time points", REFUSED)
def time_points(folder: Path) -> str | None:
    io.read_image(save(folder / "c.nii.gz", np.stack([scan()[0]] * 3, -1)))
    return None


for name in ("seg_p", "Label-p", "mask p", "p_roi", "p-lesion", "p_Tumour", "p_ground-truth"):
    variant(KIND, f"{name}.nii.gz beside p.nii.gz", WARNED)(
        beside(["p.nii.gz", f"{name}.nii.gz", "q.nii.gz"], ["p", "q"])
    )
variant(KIND, "labels called roi, in their own folder")(
    numbered(["c1", "c2"], {"c1": 1, "c2": 1}, labels=["c1_roi", "mask_c2"])
)
variant(KIND, "scans called lesion_1, lesion_2")(
    numbered(["lesion_1", "lesion_2", "x_lesion"], {"lesion_1": 1, "lesion_2": 1, "x_lesion": 1})
)


@variant(KIND, "relocate to other scans of the same names", REFUSED)
def other_scans(folder: Path) -> str | None:
    project = _project(folder)
    shutil.move(folder / "old", folder / "new")
    for n in range(3):
        save(folder / "new" / "images" / f"c{n}.nii.gz", scan(n, (20, 20, 20))[0])
    project.relocate(folder / "old", folder / "new")
    return None
