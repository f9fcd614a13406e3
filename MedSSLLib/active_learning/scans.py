"""The scans of a project as whoever annotates them sees them: which axis, which slices.

Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.slices import annotated_along, annotation_axis, not_empty, slice_spread
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.project.manifest import Case


@dataclass(frozen=True)
class Scan:
    """A case, the axis to annotate along, and which slices are drawn, boolean ``[slices]``."""

    case: Case
    geometry: Geometry
    axis: int
    drawn: np.ndarray

    @property
    def count(self) -> int:
        """Slices along the axis."""
        return self.geometry.size[self.axis]


def survey(cases: Sequence[Case], events: Events) -> list[Scan]:
    """The scans of all cases whose header can be read; the others are named in warnings."""
    scans = []
    for case in cases:
        try:
            geometry = io.read_header(case.images[0])
        except InputError as error:
            events.emit("warning", message=str(error.for_case(case.name)))
            continue
        axis = annotation_axis(case, geometry)
        scans.append(Scan(case, geometry, axis, annotated_along(case, axis, geometry.size[axis])))
    return scans


def usable_slices(scan: Scan) -> np.ndarray:
    """Boolean ``[slices]``: slices of the source image that are not empty.

    Raises InputError for a bad image.
    """
    image = np.stack([io.read_image(path, case=scan.case.name).array for path in scan.case.images])
    return not_empty(slice_spread(image, 2 - scan.axis))
