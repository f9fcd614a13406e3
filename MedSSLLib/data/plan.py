"""The plan of a data set, from image headers alone: dimension, spacing, patch and strides.

The rules below are not from the papers. They follow common practice for U-Nets; the default patches
suit a CPU. Labels are never looked at.

* Dimension: 2 if the median over cases of (largest / median spacing) is at least 3, or the median
  number of slices is below 8; else 3.
* Slice axis: in 2D each case's own; in 3D the anatomical axis that most anisotropic cases (ratio >=
  1.5) share, else S.
* Spacing: the median over cases, the two in-plane axes pooled; not finer than a `grid` that is
  asked for.
* Patch: an equal physical length per axis, at most the median extent, within the voxel budget; each
  axis a multiple of its total stride.
* Strides: a level halves an axis unless it would keep fewer than 4 voxels or its spacing is already
  twice the finest; at most 6 levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.labels import slice_axis

if TYPE_CHECKING:
    from MedSSLLib.images.geometry import Geometry


VOXELS_2D = 128 * 128  # patch budget; not from the paper
VOXELS_3D = 96 * 1024  # patch budget; not from the paper
# largest / median spacing from which slices are worked on one by one; not from the paper
ANISOTROPY_2D = 3.0
ANISOTROPIC = 1.5  # from here on a volume counts as having a slice direction; not from the paper
# rules by which intensities are normalised (see normalisation.py)
LINEAR_CT = 2  # CT clipped as in PGL and scaled linearly; for images without CT still the newest
COMPRESSED_CT = 3  # CT with soft tissue kept apart
CROPPED_CT = 4  # and crops with little fat taken for CT too
FEWEST_SLICES_3D = 8  # thinner stacks are worked on slice by slice; not from the paper
SMALLEST_MAP = 4  # voxels an axis keeps at least at the coarsest level; not from the paper
_ANATOMICAL = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
MOST_LEVELS = 6  # as in the local contrast paper's network


class Plan(BaseModel):
    """How the images of one project are gridded and cut.

    Axes are (d, h, w): the slice axis, then the two in-plane axes, along increasing L, P or S.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: Literal[2, 3] = Field(description="2: slices; 3: volumes.")
    spacing: tuple[float | None, float, float] = Field(
        description="Grid spacing d, h, w in mm; d is None in 2D: slices are kept. Not from the "
        "paper."
    )
    slice_axis: Literal["own", 0, 1, 2] = Field(
        description="What d is: each case's own slice axis (2D), or 0 = L, 1 = P, 2 = S for all "
        "cases (3D)."
    )
    modality: tuple[str, ...] = Field(
        description="Modality per channel; 'CT' has a fixed intensity window."
    )
    channels: int = Field(ge=1, description="Images per case, on one grid.")
    patch: tuple[int, ...] = Field(
        description="Patch in voxels, (h, w) or (d, h, w). Not from the paper."
    )
    strides: tuple[tuple[int, ...], ...] = Field(
        description="Down-sampling per level and axis, 1 at the first level. Not from the paper."
    )
    intensities: int = Field(
        default=1,
        description="The rule by which intensities are normalised: 4 where there is CT; 2 "
        "elsewhere, in preset paper and in what starts from runs of before; 1 where none is named.",
    )


def make_plan(
    geometries: Sequence[Geometry],
    *,
    modality: str | Sequence[str],
    channels: int = 1,
    dim: str | int = "auto",
    voxel_budget: int | None = None,
    grid: float | None = None,
) -> Plan:
    """Decide the plan from the headers of the cases that will be trained on, by the rules above.

    Args:
        geometries: one per case (channels share a grid), in any orientation.
        modality: 'CT', 'MR' ..., one for all channels or one each.
        channels: images per case.
        dim: 'auto', '2d' (or 2), '3d' (or 3).
        voxel_budget: voxels of a patch at most; by default 16,384 in 2D and 98,304 in 3D.
        grid: no grid axis is finer than this, in mm; None leaves the spacing as it is.

    Raises:
        InputError: no cases, or as many modalities as channels are not given.
    """
    if not geometries:
        raise InputError("no image to plan from", remedy="Add cases to the project")
    own = [slice_axis(geometry) for geometry in geometries]
    n_dim = _dimension(geometries, own, str(dim).lower())
    canonical = None if n_dim == 2 else _canonical_axis(geometries, own)
    spacings, sizes = _grids(geometries, own, canonical)
    between, within = (
        max(_rounded(np.median(part)), grid or 0.0) for part in (spacings[:, 0], spacings[:, 1:])
    )
    target = np.array([between, within, within])
    extent = np.median(sizes * spacings, axis=0) / target
    skip = 3 - n_dim
    budget = voxel_budget or (VOXELS_2D if n_dim == 2 else VOXELS_3D)
    patch, strides = _patch_and_strides(extent[skip:], target[skip:], budget)
    modalities = _modalities(modality, channels)
    return Plan(
        dim=n_dim,
        spacing=(None if n_dim == 2 else between, within, within),
        slice_axis="own" if canonical is None else canonical,
        modality=modalities,
        channels=channels,
        patch=patch,
        strides=strides,
        intensities=CROPPED_CT if "CT" in map(str.upper, modalities) else LINEAR_CT,
    )


def image_axes(geometry: Geometry, plan: Plan) -> list[int]:
    """Which axis of a case (0 i, 1 j, 2 k) runs along the plan's d, h and w."""
    canonical = None if plan.slice_axis == "own" else plan.slice_axis
    return _image_axes(geometry, slice_axis(geometry), canonical)


def canonical_axes(geometry: Geometry) -> tuple[int, int, int]:
    """For each image axis i, j, k the anatomical axis it runs along most nearly.

    0 = L, 1 = P, 2 = S.
    """
    i, j, k = (_ANATOMICAL[letter] for letter in geometry.code)
    return i, j, k


def _rounded(value: float | np.floating) -> float:
    """Spacing to four digits, so that header noise does not make another grid."""
    return float(f"{value:.4g}")


def _modalities(modality: str | Sequence[str], channels: int) -> tuple[str, ...]:
    names = (modality,) * channels if isinstance(modality, str) else tuple(modality)
    if len(names) != channels:
        raise InputError(
            f"{channels} channels but {len(names)} modalities ({', '.join(names)})",
            remedy="Name one modality per channel",
        )
    return names


def _anisotropy(geometry: Geometry) -> float:
    return max(geometry.spacing) / float(np.median(geometry.spacing))


def _dimension(geometries: Sequence[Geometry], own: Sequence[int], dim: str) -> Literal[2, 3]:
    if dim in ("2", "2d"):
        return 2
    if dim in ("3", "3d"):
        return 3
    if dim != "auto":
        raise InputError(f"dimension {dim!r} does not exist", remedy="Use auto, 2d or 3d")
    counts = [geometry.size[axis] for geometry, axis in zip(geometries, own, strict=True)]
    anisotropies = [_anisotropy(geometry) for geometry in geometries]
    if np.median(anisotropies) >= ANISOTROPY_2D or np.median(counts) < FEWEST_SLICES_3D:
        return 2
    return 3


def _canonical_axis(geometries: Sequence[Geometry], own: Sequence[int]) -> Literal[0, 1, 2]:
    votes: Counter[int] = Counter()
    for geometry, axis in zip(geometries, own, strict=True):
        if _anisotropy(geometry) >= ANISOTROPIC:
            votes[canonical_axes(geometry)[axis]] += 1
    preferred: tuple[Literal[0, 1, 2], ...] = (2, 1, 0)
    return max(preferred, key=lambda axis: votes[axis])


def _grids(
    geometries: Sequence[Geometry], own: Sequence[int], canonical: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Spacing and size of every case along d, h, w, ``[cases, 3]``.

    The slice direction is each case's `own` image axis where there is no `canonical` one.
    """
    spacings, sizes = [], []
    for geometry, axis in zip(geometries, own, strict=True):
        order = _image_axes(geometry, axis, canonical)
        spacings.append([geometry.spacing[axis] for axis in order])
        sizes.append([geometry.size[axis] for axis in order])
    return np.array(spacings, float), np.array(sizes, float)


def _image_axes(geometry: Geometry, own: int, canonical: int | None) -> list[int]:
    """Which image axis (0 i, 1 j, 2 k) runs along d, h and w."""
    anatomical = canonical_axes(geometry)
    slice_direction = anatomical[own] if canonical is None else canonical
    in_plane = [direction for direction in (2, 1, 0) if direction != slice_direction]
    return [anatomical.index(direction) for direction in (slice_direction, *in_plane)]


def _patch_and_strides(
    extent: np.ndarray, spacing: np.ndarray, budget: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Patch and strides for a median ``extent`` in voxels at ``spacing`` in mm.

    The patch has at most ``budget`` voxels.
    """
    wanted = _equal_length(extent, spacing, budget)
    strides = _strides(wanted, spacing)
    step = np.prod(strides, axis=0)
    patch = np.maximum(np.floor(wanted / step + 1e-6).astype(int), 1) * step
    while True:  # round up the least covered axis for which there is room
        covered = np.where(patch < wanted - 1e-3, patch / extent, np.inf)
        covered[patch.prod() // patch * (patch + step) > budget] = np.inf
        axis = int(np.argmin(covered))
        if not np.isfinite(covered[axis]):
            return tuple(int(n) for n in patch), strides
        patch[axis] += step[axis]


def _equal_length(extent: np.ndarray, spacing: np.ndarray, budget: int) -> np.ndarray:
    """Voxels per axis, at least 1, of a box of equal physical sides, cut to ``extent``.

    The box has at most ``budget`` voxels.
    """
    extent = np.maximum(extent, 1.0)
    low, high = 0.0, float((extent * spacing).max())
    if extent.prod() <= budget:
        return extent.copy()
    for _ in range(60):
        side = (low + high) / 2
        inside = np.clip(side / spacing, 1.0, extent).prod() <= budget
        low, high = (side, high) if inside else (low, side)
    return np.clip(low / spacing, 1.0, extent)


def _strides(voxels: np.ndarray, spacing: np.ndarray) -> tuple[tuple[int, ...], ...]:
    strides = [(1,) * len(voxels)]
    while len(strides) < MOST_LEVELS:
        halve = (voxels / 2 >= SMALLEST_MAP - 1e-6) & (spacing / spacing.min() < 2)
        if not halve.any():
            break
        stride = np.where(halve, 2, 1)
        voxels, spacing = voxels / stride, spacing * stride
        strides.append(tuple(int(s) for s in stride))
    return tuple(strides)
