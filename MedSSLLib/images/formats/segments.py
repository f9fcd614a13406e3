"""Segmentations as 3D Slicer stores them (.seg.nrrd): named segments, layers, cropped extents. Part
of `io`.

Overlapping segments are stored in several layers. Layers are flattened into one label map when no
voxel lies in two segments, and refused otherwise: a voxel has one class here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import Annotated, name_key

_LIMIT = 10_000
_TAG = "MedSSL.AnnotatedSlices"
_UNNAMED = re.compile(r"(Segment|class)_?\d+|\d+", re.IGNORECASE)
"""Names that say nothing: those that Slicer and this library give."""


@dataclass(frozen=True)
class Segment:
    """A segment: its name, where it is stored (value `stored` in layer `layer`) and its value in
    the label map.
    """

    name: str
    layer: int
    stored: int
    value: int


def says_nothing(name: str) -> bool:
    """Whether a segment's name is one that Slicer or this library gives by itself."""
    return bool(_UNNAMED.fullmatch(name.strip()))


def is_segmentation(header: Mapping[str, str]) -> bool:
    """Whether the key-value pairs of a NRRD header are those of a segmentation, maybe without any
    segment.
    """
    return any(key.startswith(("Segmentation_", "Segment0_")) for key in header)


def segments(header: Mapping[str, str], layers: int = 1) -> list[Segment]:
    """Segments of a NRRD header's key-value pairs, in order; empty when it is no segmentation.

    A segment keeps its stored value, unless two segments (of different layers) share one: then they
    are numbered from 1 in order. Slicer before 4.11 wrote no values and layers: each segment is a
    layer of its own there, of ones. Raises InputError for values that are no positive whole
    numbers.
    """
    found = []
    for number in range(_LIMIT):
        prefix = f"Segment{number}_"
        if not any(f"{prefix}{key}" in header for key in ("LabelValue", "ID", "Name")):
            break
        old = f"{prefix}LabelValue" not in header
        value, place = ("1", str(number)) if old and layers > 1 else (str(number + 1), "0")
        try:
            stored = int(header.get(f"{prefix}LabelValue", value))
            layer = int(header.get(f"{prefix}Layer", place if old else "0"))
        except ValueError:
            stored = layer = -1
        if stored < 1 or layer < 0:
            raise InputError(
                f"segment {number} has an impossible value or layer",
                remedy="Save it from 3D Slicer again.",
            )
        found.append(Segment(header.get(f"{prefix}Name", f"class_{stored}"), layer, stored, stored))
    if len({segment.stored for segment in found}) < len(found):
        return [replace(segment, value=n + 1) for n, segment in enumerate(found)]
    return found


def by_name(
    found: Sequence[Segment], names: Mapping[int, str], *, new: bool = False
) -> list[Segment]:
    """The segments with the values that their names have in `names` (value to name): their order in
    the file does not matter.

    A segment that Slicer named by itself ("Segment_1"), and one whose value has no name of its own
    yet ("class_1"), keep their values. Raises InputError for two segments of one name or of
    one value, and for another name, unless `new`: then it gets its value if that is free, else the
    next one.
    """
    _check_different(found)
    values = {name_key(name): value for value, name in names.items() if value}
    taken = {value for value, name in names.items() if name != f"class_{value}"}
    result = []
    for segment in found:
        value = values.get(name_key(segment.name))
        if value is None and (segment.value not in taken or says_nothing(segment.name)):
            value = segment.value
        if value is None and new:
            value = max([*taken, *names, *(other.value for other in found)]) + 1
        if value is None:
            known = ", ".join(name for number, name in sorted(names.items()) if number)
            raise InputError(
                f"has the segment {segment.name!r}, which is no class here (classes: {known})",
                remedy="Give segments the names of the classes, or classes those of the segments.",
            )
        taken.add(value)
        result.append(replace(segment, value=value))
    _check_apart(result)
    return result


def _check_apart(found: Sequence[Segment]) -> None:
    """A segment without a name of its own may have the value that another one's name stands for."""
    for number, segment in enumerate(found):
        same = [other.name for other in found[:number] if other.value == segment.value]
        if same:
            raise InputError(
                f"has the segments {same[0]!r} and {segment.name!r}, which would both have the "
                f"value {segment.value}",
                remedy="Give each segment the name of a class.",
            )


def _check_different(found: Sequence[Segment]) -> None:
    seen: set[str] = set()
    for segment in found:
        name = name_key(segment.name)
        if name in seen:
            raise InputError(
                f"has two segments called {segment.name.strip()!r}",
                remedy="Give them different names, or make them one (Segment Editor, Logical "
                "operators: add).",
            )
        seen.add(name)


def planes(geometry: Geometry) -> list[str]:
    """What slices along the axes i, j and k are called: of all letters of its code, "LR" is
    sagittal and so on.
    """
    return [
        "sagittal" if letter in "LR" else "coronal" if letter in "PA" else "axial"
        for letter in geometry.code
    ]


def annotated_slices(header: Mapping[str, str], geometry: Geometry) -> Annotated | None:
    """The annotated slices that segments' tags record ("axial:3,9;sagittal:7"), of all segments;
    None without a record.

    The names mean the image's own axes: the one that follows the patient's head-foot direction most
    is axial.
    """
    names = planes(geometry)
    pairs: list[tuple[int, list[int]]] = []
    for number in range(_LIMIT):
        if not any(f"Segment{number}_{key}" in header for key in ("LabelValue", "ID", "Name")):
            break
        tags = dict(
            part.partition(":")[::2] for part in header.get(f"Segment{number}_Tags", "").split("|")
        )
        for part in tags.get(_TAG, "").split(";"):
            name, _, indices = part.strip().partition(":")
            if name in names:
                numbers = [int(text) for text in indices.split(",") if text.strip().isdecimal()]
                pairs.append((names.index(name), numbers))
    found = Annotated.of(pairs)
    return found if found.count else None


def flattened(array: np.ndarray, found: list[Segment]) -> np.ndarray:
    """One label map [k, j, i] from layers [k, j, i, layer] (or a single layer [k, j, i]).

    Raises InputError naming two segments that share voxels, and values that no segment has: they
    would be background, or a class without a name.
    """
    layers = array[..., None] if array.ndim == 3 else array
    if len(found) == 0:
        return layers[..., 0]
    _check_named(layers, found)
    if layers.shape[-1] == 1 and all(segment.value == segment.stored for segment in found):
        return layers[..., 0]
    result = np.zeros(layers.shape[:3], np.int32)
    for segment in found:
        if segment.layer >= layers.shape[-1]:
            raise InputError(
                f"segment {segment.name!r} lies in layer {segment.layer}, which is not stored",
                remedy="Save it from 3D Slicer again.",
            )
        mask = layers[..., segment.layer] == segment.stored
        shared = mask & (result > 0) & (result != segment.value)
        if shared.any():
            other = next(s.name for s in found if s.value == result[shared][0])
            raise InputError(
                f"segments {other!r} and {segment.name!r} overlap in {int(shared.sum())} voxels",
                remedy="Remove the overlap (Segment Editor, Logical operators: subtract) and "
                "save again.",
            )
        result[mask] = segment.value
    return result


def _check_named(layers: np.ndarray, found: Sequence[Segment]) -> None:
    for number in range(layers.shape[-1]):
        layer = layers[..., number]
        known = [0, *(segment.stored for segment in found if segment.layer == number)]
        unnamed = layer[~np.isin(layer, known)]
        if unnamed.size:
            values = ", ".join(f"{value:g}" for value in np.unique(unnamed)[:10])
            raise InputError(
                f"has {unnamed.size:,} voxels of the value {values}, which no segment names",
                remedy="Save it again with a segment for each value, or set these voxels to 0.",
            )


def check_inside(array: np.ndarray, geometry: Geometry, reference: Geometry) -> None:
    """Check that every labelled voxel of `array` [k, j, i] lies within `reference`.

    Raises InputError when some of the segmentation would be lost, as when it belongs to another
    image.
    """
    where = [
        np.flatnonzero(array.any(axis=tuple(a for a in range(3) if a != 2 - axis)))
        for axis in range(3)
    ]
    if any(found.size == 0 for found in where):
        return
    ends = np.array([[found[0], found[-1]] for found in where], dtype=float)
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    places = reference.indices(geometry.points(corners))
    low, high = places.min(axis=0), places.max(axis=0)
    if (low < -0.6).any() or (high > np.array(reference.size) - 0.4).any():
        raise InputError(
            f"reaches outside its image: voxels {low.round(1).tolist()} to "
            f"{high.round(1).tolist()} of "
            f"{list(reference.size)}",
            remedy="Export the segmentation with its own image as reference.",
        )
