"""Kind 11: scans that are of another modality than they are taken as."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedSSLLib.cli.main import main
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.inference.unlike_scans import unlike_training
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import save, scan
from Testing.lib.fidelity.registry import WARNED, Check, variant

KIND = "11 modality"
BODY = (slice(4, 20), slice(4, 18))


def hounsfield(seed: int = 0, air: float = -1000) -> np.ndarray:
    """A CT: the ball of soft tissue in fat, air around it."""
    image, _ = scan(seed)
    array = np.full_like(image, air)
    array[BODY] = (image - 200)[BODY]
    return array.round().astype(np.int16)


SCANS = {
    "CT": hounsfield(),
    "CT, cropped to tissue": hounsfield()[BODY].copy(),
    "CT with an offset": (hounsfield() + 1024).astype(np.uint16),
    "CT with an offset, padded": np.where(hounsfield() < -900, -2000, hounsfield() + 1024).astype(
        np.int16
    ),
    "MR": scan()[0],
}


def added(project: str, new: str) -> Check:
    """A scan comes into a project of other ones."""

    def check(folder: Path) -> str | None:
        for n in range(2):
            save(folder / "s" / f"c{n}.nii.gz", hounsfield(n) if project == "CT" else scan(n)[0])
        made = Project.create(folder / "p", folder / "s")
        assert made.modalities == (project,) and not made.warnings
        save(folder / "new" / "d.nii.gz", SCANS[new])
        made.add([folder / "new"])
        return "; ".join(text for text in made.warnings if "taken as" in text) or None

    return check


def predicted(trained: str, new: str) -> Check:
    """A scan is given to a model of other ones."""

    def check(folder: Path) -> str | None:
        path = save(folder / "d.nii.gz", SCANS[new])
        plan = make_plan([io.read_header(path)], modality=trained)
        return "; ".join(unlike_training(plan, [path], io.read_header(path))) or None

    return check


for make, words in ((added, "add"), (predicted, "predict")):
    for kind in SCANS:
        same = kind in ("CT", "CT, cropped to tissue")
        for modality in ("CT", "MR"):
            # what a crop without air is, its values do not tell: they might be those of any MR
            tells = not same if modality == "CT" else kind == "CT"
            expect = {"expect": WARNED} if tells else {}
            variant(KIND, f"{words}: {kind} to {modality}", **expect)(make(modality, kind))


@variant(KIND, "init --modality CT: what is said is what is done", WARNED)
def declared(folder: Path) -> str | None:
    save(folder / "s" / "a.nii.gz", SCANS["CT"])
    for n in (1, 2):
        save(folder / "s" / f"b{n}.nii.gz", scan(n)[0])
    project = str(folder / "p")
    assert main(["init", project, "--images", str(folder / "s"), "--modality", "CT", "-q"]) == 0
    made = Project.open(project)
    assert made.modalities == ("CT",)
    again = Project.create(folder / "q", folder / "s", modality=["CT"])
    (words,) = again.warnings
    assert "in 2 scans (b1, b2), taken as CT" in words
    return words
