"""A scripted person: draws suggested slices from hidden labels, and counts the work it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import IGNORE, Annotated, as_label_values, class_indices
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.project.project import Project


class DrawingWork(NamedTuple):
    """What drawing or correcting a slice takes.

    Attributes:
        voxels: voxels whose class the person sets.
        contour: length of the outlines that the person draws, mm.
    """

    voxels: int
    contour: float


@dataclass(frozen=True)
class Corrected:
    """Slices that began as a proposal.

    Attributes:
        slices: their number.
        voxels: of them, those that were changed.
        structure: voxels of structures on them.
    """

    slices: int = 0
    voxels: int = 0
    structure: int = 0


def work_on(
    truth: np.ndarray, proposal: np.ndarray | None, spacing: float, classes: int
) -> DrawingWork:
    """The work from a proposal, or from nothing, to the true slice.

    The length counts the voxels of each class's true outline that are not on the proposal's, times
    the spacing: the added path length of Vaassen et al. 2020 ("Evaluation of measures for assessing
    time-saving of automatic organ-at-risk segmentation in radiotherapy", Phys. Imaging Radiat.
    Oncol. 13), in mm.

    Args:
        truth: class map of the slice, 2D; voxels of IGNORE are nobody's work.
        proposal: class map that is corrected; None for an empty slice.
        spacing: mm per voxel in the slice, the mean of both axes.
        classes: number of classes with background.
    """
    start = np.zeros_like(truth) if proposal is None else proposal
    added = 0
    for value in range(1, classes):
        added += int((outline(truth == value) & ~outline(start == value)).sum())
    changed = (truth != start) & (truth != IGNORE)
    return DrawingWork(int(changed.sum()), added * spacing)


def outline(mask: np.ndarray) -> np.ndarray:
    """Voxels of a 2D mask with a neighbour outside, over edges; the image's border is outside."""
    return mask & ~ndimage.binary_erosion(mask)


@dataclass
class Annotator:
    """Draws slices of a project's cases as they are in hidden labels.

    Attributes:
        project: is changed.
        truths: hidden label files by case.
        folder: where it writes what it has drawn.
        voxels, contour: the work so far.
        slices: drawn so far.
        structure: voxels of structures on them: what drawing them all from nothing takes.
        corrected: those of the slices that began as a proposal, and the voxels of theirs.
    """

    project: Project
    truths: Mapping[str, Path]
    folder: Path
    voxels: int = 0
    contour: float = 0.0
    slices: int = 0
    structure: int = 0
    corrected: Corrected = Corrected()

    def truth(self, name: str) -> np.ndarray:
        """Hidden class map ``[k, j, i]`` of a case."""
        case, project = self.project.case(name), self.project
        header = io.read_header(case.images[0], case=name)
        label = io.read_label(self.truths[name], header, case=name, names=project.labels)
        return class_indices(label.array, project.values, ignore=project.ignore_value)

    def draw(self, name: str, place: SlicePlace, proposal: np.ndarray | None = None) -> None:
        """Draw a slice, or correct a proposal of it until it is as in truth, and save it."""
        axis, index = place
        truth, case = self.truth(name), self.project.case(name)
        header = io.read_header(case.images[0], case=name)
        mm = float(np.mean([header.spacing[other] for other in range(3) if other != axis]))
        plane = truth.take(index, 2 - axis)
        work = work_on(plane, proposal, mm, len(self.project.values))
        self.voxels, self.contour = self.voxels + work.voxels, self.contour + work.contour
        self.slices += 1
        structure = work_on(plane, None, mm, len(self.project.values)).voxels
        self.structure += structure
        if proposal is not None:
            done = self.corrected
            self.corrected = Corrected(
                done.slices + 1, done.voxels + work.voxels, done.structure + structure
            )
        drawn = case.annotated.slices if case.annotated and case.label else ()
        self._save(name, truth, Annotated.of([*drawn, (axis, [index])]), header)

    def _save(self, name: str, truth: np.ndarray, slices: Annotated, header: io.Geometry) -> None:
        shown = np.zeros_like(truth)
        for axis, indices in slices.slices:
            view, source = np.moveaxis(shown, 2 - axis, 0), np.moveaxis(truth, 2 - axis, 0)
            view[list(indices)] = source[list(indices)]
        project, path = self.project, self.folder / f"{name}.nii.gz"
        values = as_label_values(shown, project.values)
        io.write_image(path, Volume(values, header), like=project.case(name).images[0])
        project.set_label(name, path)
        project.set_annotated(name, slices)
        project.save()
