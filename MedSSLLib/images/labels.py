"""Sparse annotation: which slices were annotated, and which voxels therefore count.

Axes are 0, 1, 2 = i, j, k of the source image's own grid; arrays are indexed [k, j, i].
On an annotated slice background is background; a voxel on no annotated slice does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSSLLib.core.errors import InputError

if TYPE_CHECKING:
    from MedSSLLib.images.geometry import Geometry


IGNORE = 255
"""Value of voxels that do not count, in every class map."""
_MAX_CLASSES, _TABLE = 255, 2**16
_ROUNDING, _EXACT, _FEW = 0.01, 2**24, 32
_NO_PROBABILITIES = "Give a label map, not a probability map or an interpolated one."
_UNSCALED = (
    "If it is a label map, save it again with an integer type and without scaling (nibabel: "
    "image.header.set_slope_inter(1, 0), integer array)."
)


def name_key(name: str) -> str:
    """A name of a class as names are compared: in any case, without spaces around it."""
    return name.strip().casefold()


@dataclass(frozen=True)
class Annotated:
    """Annotated slices: ``slices`` holds (axis, indices) pairs, axes unique and sorted, indices
    sorted.

    ``partly`` names those of them, alike, on which only some of the voxels are drawn: there the
    label file has the value to be ignored wherever nothing was said, and background is drawn too.
    """

    slices: tuple[tuple[int, tuple[int, ...]], ...]
    partly: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        pairs: Iterable[tuple[int, Iterable[int]]],
        partly: Iterable[tuple[int, Iterable[int]]] = (),
    ) -> Annotated:
        """Merge (axis, indices) pairs; slices that are partly drawn count as annotated.

        Raises InputError for an axis not in 0..2 or a negative index.
        """
        some = _merged(partly)
        return cls(_merged([*pairs, *some]), some)

    @property
    def whole(self) -> Annotated:
        """The slices on which every voxel is drawn."""
        some = {(axis, index) for axis, indices in self.partly for index in indices}
        kept = []
        for axis, indices in self.slices:
            kept.append((axis, [index for index in indices if (axis, index) not in some]))
        return Annotated.of(kept)

    @property
    def count(self) -> int:
        """Number of annotated slices over all axes."""
        return sum(len(indices) for _, indices in self.slices)

    def thinned(self, n: int) -> Annotated:
        """At most `n` of these slices: cut into `n` equal parts, in order, and the middle one of
        each part is taken.
        """
        every = [(axis, [index]) for axis, indices in self.slices for index in indices]
        count = min(n, len(every))
        chosen = [every[(2 * part + 1) * len(every) // (2 * count)] for part in range(count)]
        some = {(axis, index) for axis, indices in self.partly for index in indices}
        partly = [(axis, indices) for axis, indices in chosen if (axis, indices[0]) in some]
        return Annotated.of(chosen, partly)

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest form: ``[{"axis": 2, "indices": [3, 9, 15]}]``; where some are partly drawn
        also ``"partly": [9]``.
        """
        some = dict(self.partly)
        entries: list[dict[str, Any]] = []
        for axis, indices in self.slices:
            entry: dict[str, Any] = {"axis": axis, "indices": list(indices)}
            if axis in some:
                entry["partly"] = list(some[axis])
            entries.append(entry)
        return entries

    @classmethod
    def from_json(cls, entries: Any) -> Annotated:
        """Read the manifest form. Raises InputError when it is malformed."""
        pairs, partly = [], []
        try:
            for entry in entries:
                pairs.append((entry["axis"], [_index(index) for index in entry["indices"]]))
                some = entry.get("partly", [])
                partly.append((entry["axis"], [_index(index) for index in some]))
        except (AttributeError, TypeError, KeyError, ValueError):
            raise InputError(
                f"annotated slices {entries!r} are malformed",
                remedy='Write them as [{"axis": 2, "indices": [3, 9, 15]}].',
            ) from None
        return cls.of(pairs, partly)


def counted_mask(shape_kji: Sequence[int], annotated: Annotated | None) -> np.ndarray:
    """Boolean [k, j, i]: True where a voxel lies on an annotated slice; everywhere when `annotated`
    is None.

    Raises InputError when a slice lies outside the volume.
    """
    if annotated is None:
        return np.ones(tuple(shape_kji), dtype=bool)
    mask = np.zeros(tuple(shape_kji), dtype=bool)
    for axis, indices in annotated.slices:
        size = shape_kji[2 - axis]
        outside = [index for index in indices if index >= size]
        if outside:
            raise InputError(
                f"annotated slices {outside} lie outside the volume (axis {'ijk'[axis]} has "
                f"{size})",
                remedy="Correct the annotated slices of this case.",
            )
        np.moveaxis(mask, 2 - axis, 0)[list(indices)] = True
    return mask


def sparse_label(label: np.ndarray, annotated: Annotated | None) -> np.ndarray:
    """Class map uint8 [k, j, i] of `label` (class indices) with IGNORE wherever a voxel does not
    count.
    """
    result = label.astype(np.uint8, copy=True)
    if annotated is not None:
        result[~counted_mask(label.shape, annotated)] = IGNORE
    return result


def simulate_annotation(label: np.ndarray, n: int, axis: int) -> Annotated:
    """`n` slices along `axis` (0 i, 1 j, 2 k), evenly spaced over the labelled extent of `label`
    [k, j, i].

    The extent from the first to the last slice with foreground (IGNORE is not foreground) is cut
    into `n` equal parts and the middle slice of each part is taken; all its slices when there are
    no more than `n`. Raises InputError when `n` < 1 or the label has no foreground.
    """
    if n < 1:
        raise InputError(f"{n} annotated slices were asked for", remedy="Ask for at least 1.")
    foreground = (label != 0) & (label != IGNORE)
    others = tuple(other for other in range(3) if other != 2 - axis)
    present = np.flatnonzero(foreground.any(axis=others))
    if present.size == 0:
        raise InputError(
            "the label is empty, so no slice can be chosen", remedy="Choose another labelled case."
        )
    first, extent = int(present[0]), int(present[-1] - present[0]) + 1
    count = min(n, extent)
    return Annotated.of(
        [(axis, [first + (2 * part + 1) * extent // (2 * count) for part in range(count)])]
    )


def slice_axis(geometry: Geometry) -> int:
    """The axis (0 i, 1 j, 2 k) with the largest spacing; the last one when no single axis has it
    (within 0.1 %).
    """
    spacing = geometry.spacing
    largest = [axis for axis in range(3) if spacing[axis] >= max(spacing) * 0.999]
    return largest[0] if len(largest) == 1 else 2


def class_indices(
    label: np.ndarray, values: Sequence[int], *, ignore: int | None = None
) -> np.ndarray:
    """Class map uint8, same shape: the position of each voxel's value in sorted `values`; `ignore`
    becomes IGNORE.

    Raises InputError naming values that are not in `values`, or that are not whole numbers.
    """
    known = np.unique(np.asarray(values, dtype=np.int64))
    if known.size > _MAX_CLASSES:
        raise InputError(
            f"{known.size} classes are declared, at most {_MAX_CLASSES} are possible",
            remedy="Merge classes.",
        )
    numbers = whole_numbers(label)
    present = np.array(label_values(numbers), dtype=np.int64)
    table = np.searchsorted(known, present).clip(0, known.size - 1)
    unknown = known[table] != present
    if ignore is not None:
        table[present == ignore] = IGNORE
        unknown &= present != ignore
    if unknown.any():
        raise InputError(
            f"the label has unknown values {present[unknown][:10].tolist()}, known are "
            f"{known.tolist()}",
            remedy='Correct the label, or add the values to "labels" in medssl.json; one that says '
            'nothing is known there is named "ignore".',
        )
    if present.size and present[0] >= 0 and present[-1] < _TABLE:
        lookup = np.zeros(present[-1] + 1, np.uint8)
        lookup[present] = table
        return lookup[numbers.astype(np.uint8) if numbers.dtype == bool else numbers]
    return table.astype(np.uint8)[np.searchsorted(present, numbers)]


def label_values(label: np.ndarray) -> tuple[int, ...]:
    """The values that occur, sorted. Raises InputError when they are not whole numbers."""
    numbers = whole_numbers(label)
    if numbers.dtype == np.uint8:  # counting is much faster than sorting
        return tuple(
            int(value) for value in np.flatnonzero(np.bincount(numbers.ravel(), minlength=1))
        )
    return tuple(int(value) for value in np.unique(numbers))


def whole_numbers(label: np.ndarray, *, step: float = 0.0) -> np.ndarray:
    """`label` with an integer type; values within 0.01 of a whole number are rounded.

    step: by how much neighbouring stored values differ where the file scales them (scl_slope), else
        0. A program that scaled a label map put its values up to half a step beside whole numbers,
        so that much is rounded too (up to 0.25), if each whole number then has one stored value.

    Raises InputError for other values, and for floating-point values too large to be exact.
    """
    if label.dtype.kind in "iub":
        return label
    finite = bool(np.isfinite(label).all())
    rounded = np.rint(label) if finite else label
    distance = np.abs(label - rounded) if finite else label
    allowed = max(_ROUNDING, min(0.25, 0.505 * step))
    largest = float(distance.max()) if finite and label.size else 0.0
    one_each = largest <= _ROUNDING or np.unique(label).size == np.unique(rounded).size
    if not finite or largest > allowed or not one_each:
        worst = label.ravel()[int(distance.argmax())]
        scaled = f"; its header scales the stored values by {step:.6g} (scl_slope)" if step else ""
        raise InputError(
            f"the label has values that are not whole numbers (as {worst:.6g}){scaled}",
            remedy=_UNSCALED if step else _factor(label) or _NO_PROBABILITIES,
        )
    if label.dtype.itemsize <= 4 and np.abs(rounded).max(initial=0) > _EXACT:
        raise InputError(
            f"the label has values above {_EXACT:,}, which 32-bit floating point cannot hold "
            "exactly",
            remedy="Save it with a 32-bit integer type and without scaling.",
        )
    return rounded.astype(np.int64)


def _factor(label: np.ndarray) -> str:
    """What to do with a label whose few values are multiples of a fraction; "" for others."""
    values = np.unique(label[np.isfinite(label)])
    if values.size > _FEW or values.size < 2 or not np.isfinite(label).all():
        return ""
    least = float(np.abs(values[values != 0]).min())
    times = values / least
    if np.abs(times - np.rint(times)).max() > _ROUNDING:
        return ""
    return (
        f"If it is a label map, its {values.size} values are multiples of {least:.6g}: divide by "
        "that, and save it with an integer type."
    )


def as_label_values(classes: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """A class map in the values of label files, in the smallest integer type that holds all of
    them.
    """
    return np.asarray(values, np.int64).astype(label_type(values))[classes]


def label_type(values: Iterable[int]) -> type[np.integer]:
    """The smallest integer type for label values, of those that every image format has."""
    every = [0, *values]
    for kind in (np.uint8, np.int16, np.int32, np.uint32):
        if np.iinfo(kind).min <= min(every) and max(every) <= np.iinfo(kind).max:
            return kind
    return np.int64


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _merged(pairs: Iterable[tuple[int, Iterable[int]]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Axes and their indices, each once and sorted."""
    merged: dict[int, set[int]] = {}
    for axis, indices in pairs:
        chosen = {int(index) for index in indices}
        if axis not in (0, 1, 2) or any(index < 0 for index in chosen):
            raise InputError(
                f"annotated slices on axis {axis!r} at {sorted(chosen)} do not exist",
                remedy="Use axis 0, 1 or 2 and indices from 0.",
            )
        merged.setdefault(int(axis), set()).update(chosen)
    return tuple((axis, tuple(sorted(merged[axis]))) for axis in sorted(merged) if merged[axis])
