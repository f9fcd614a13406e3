"""Random views made on the device in one resampling, with their exact geometry.

Parameters are sampled on the host with an explicit generator; applying them is a pure function of
tensors. Coordinates are continuous: voxel ``i`` of a window covers ``[i, i + 1)`` and a window of
``n`` voxels ``[0, n)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.images.labels import IGNORE

OVERSHOOT = 1.25  # of bicubic interpolation between control points, at most 1.23

Rng = np.random.Generator
Corners = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ViewGeometry:
    """Where each view lies in its source (b samples, v views, s axes).

    Attributes:
        lo: lower edges of the box, in voxels of a frame that the views of a sample share, ``[b, v,
            s]``.
        hi: upper edges of the box, ``[b, v, s]``.
        flip: 1 where the axis is reversed, else 0, ``[b, v, s]``.
        rotation: rotation about the box centre in voxels, ``[b, v, s, s]``, or None.
        displacement: smooth offsets at control points, as a fraction of the box, ``[b, v, s, *g]``,
            or None.
    """

    lo: Tensor
    hi: Tensor
    flip: Tensor
    rotation: Tensor | None = None
    displacement: Tensor | None = None

    @property
    def is_box(self) -> bool:
        """Whether views are boxes and flips alone."""
        return self.rotation is None and self.displacement is None

    def seen_from(self, corner: Tensor) -> ViewGeometry:
        """The same views in windows with these lower corners, ``[b, v, s]``."""
        return replace(self, lo=self.lo - corner, hi=self.hi - corner)

    def only(self, index: np.ndarray) -> ViewGeometry:
        """Those of some samples."""
        chosen = {k: v[torch.from_numpy(index)] for k, v in vars(self).items() if v is not None}
        return ViewGeometry(**chosen)

    def to(self, device: torch.device | str) -> ViewGeometry:
        """A copy on the device, without waiting for it."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


def sample_boxes(
    rng: Rng,
    extent: Sequence[int],
    patch: Sequence[int],
    scale: tuple[float, float],
    min_overlap: float,
    views: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Crop boxes of one case (PGL views): sides `scale` x patch, limited by the volume.

    Boxes that overlap too little are drawn again. The later boxes are drawn from the places where
    they meet the first one, so that draws are rarely rejected even where the volume is large. The
    overlap is measured against the smaller box. After 50 rejected draws the later boxes move to the
    centre of the first one, where the overlap is as large as it can be.

    Returns:
        lo, hi: float arrays ``[v, s]`` in voxels of the volume.
    """
    extent_, patch_ = np.asarray(extent, float), np.asarray(patch, float)
    for _ in range(50):
        side = np.minimum(rng.uniform(*scale, size=(views, len(patch_))) * patch_, extent_)
        first = rng.uniform(size=len(patch_)) * (extent_ - side[0])
        lowest, highest = np.zeros_like(side[1:]), extent_ - side[1:]
        if min_overlap:
            lowest = np.maximum(first - side[1:], lowest)
            highest = np.minimum(first + side[0], highest)
        lo = np.concatenate([first[None], rng.uniform(lowest, highest)])
        if overlap_fraction(lo, lo + side) >= min_overlap:
            return lo, lo + side
    centre = lo[:1] + side[:1] / 2
    lo = np.clip(centre - side / 2, 0, extent_ - side)
    return lo, lo + side


def meeting_boxes(
    boxes: Corners, flip: np.ndarray, inner: np.ndarray, draw: Callable[[], Corners]
) -> Corners:
    """The boxes of a sample, drawn anew, up to 50 times, until the inner parts of its views meet.

    Not from the paper: views of a large volume may overlap only where their small maps cannot be
    compared.

    Args:
        boxes: lo, hi ``[v, s]``.
        flip: ``[v, s]``, 0 or 1.
        inner: lower and upper edge of the part that can be compared, as fractions of an unflipped
            view, ``[l, 2, s]`` for l levels; all must meet.
        draw: other boxes.
    """
    start = np.where(flip, 1 - inner[:, None, 1], inner[:, None, 0])
    stop = np.where(flip, 1 - inner[:, None, 0], inner[:, None, 1])
    for _ in range(50):
        lo, hi = boxes
        low, high = lo + start * (hi - lo), lo + stop * (hi - lo)
        if (high.min(1) > low.max(1)).all():
            break
        boxes = draw()
    return boxes


def scale_of_image(
    scale: tuple[float, float], extent: Sequence[int], patch: Sequence[int]
) -> tuple[float, float]:
    """A `scale` relative to the patch, from one relative to the image.

    The latter is relative to the largest box of the patch's proportions in the image.
    """
    unit = min(n / p for n, p in zip(extent, patch, strict=True))
    return scale[0] * unit, scale[1] * unit


def overlap_fraction(lo: np.ndarray, hi: np.ndarray) -> float:
    """Common volume of all boxes ``[v, s]`` over the smallest box's volume, in [0, 1]."""
    common = np.prod(np.clip(hi.min(0) - lo.max(0), 0, None))
    return float(common / np.prod(hi - lo, axis=1).min())


def sample_flips(rng: Rng, shape: tuple[int, ...], probability: float) -> np.ndarray:
    """Independent flips per axis, 0 or 1."""
    return (rng.random(shape) < probability).astype(np.float32)


def sample_rotations(rng: Rng, n: int, spacing: Sequence[float], degrees: float) -> np.ndarray:
    """Rotations in mm, expressed in voxels: ``diag(1/spacing) R diag(spacing)``, ``[n, s, s]``.

    In 3D, an axis whose spacing is more than twice the finest is kept fixed: only in-plane
    rotations are drawn.
    """
    dim = len(spacing)
    mm = np.asarray(spacing, float)
    matrices = np.tile(np.eye(dim), (n, 1, 1))
    for first, second in _rotation_planes(mm):
        angle = np.deg2rad(rng.uniform(-degrees, degrees, size=n))
        turn = np.tile(np.eye(dim), (n, 1, 1))
        turn[:, first, first] = turn[:, second, second] = np.cos(angle)
        turn[:, first, second], turn[:, second, first] = -np.sin(angle), np.sin(angle)
        matrices = turn @ matrices
    return matrices * mm[None, None, :] / mm[None, :, None]


def _rotation_planes(mm: np.ndarray) -> list[tuple[int, int]]:
    fine = np.flatnonzero(mm <= 2 * mm.min()).tolist()
    return list(itertools.combinations(fine, 2))


def sample_segmentation_views(
    rng: Rng,
    n: int,
    window: Sequence[int],
    patch: Sequence[int],
    spacing: Sequence[float],
    config: AugmentConfig,
) -> ViewGeometry:
    """One augmented view a sample for training a segmentation.

    Zoom, rotation, flips and elastic deformation.
    """
    dim = len(patch)
    active = rng.random(n) < config.affine
    smallest, largest = config.zoom(dim)
    drawn = np.exp(rng.uniform(np.log(smallest), np.log(largest), (n, 1)))
    zoom = np.where(active[:, None], drawn, 1.0)
    half = np.asarray(patch, float) * zoom / 2
    centre = np.asarray(window, float) / 2
    rotation = np.tile(np.eye(dim), (n, 1, 1))
    degrees = config.largest_rotation(dim)
    if degrees and active.any():
        rotation[active] = sample_rotations(rng, int(active.sum()), spacing, degrees)
    flip = sample_flips(rng, (n, dim), config.flip)
    return ViewGeometry(
        lo=_one_view(centre - half),
        hi=_one_view(centre + half),
        flip=_one_view(flip),
        rotation=_one_view(rotation),
        displacement=_sample_elastic(rng, n, dim, config),
    )


def _one_view(array: np.ndarray) -> Tensor:
    """``[n, ...]`` as float32 ``[n, 1, ...]``."""
    return torch.from_numpy(array.astype(np.float32)[:, None])


def view_margin(views: ViewGeometry, patch: Sequence[int]) -> list[int]:
    """Voxels around the patches ``[0, patch)`` that views in their frame look at, the most an
    axis.

    Args:
        views: boxes with rotation and displacement, ``[b, v, s]``.
        patch: voxels an axis; the views have as many.
    """
    size = torch.tensor(list(patch), dtype=views.lo.dtype)
    reach = (views.hi - views.lo) / 2 * (1 - 1 / size)  # to the centre of the last voxel
    if views.rotation is not None:
        reach = torch.einsum("bvij,bvj->bvi", views.rotation.abs(), reach)
    if views.displacement is not None:
        most = views.displacement.abs().flatten(3).amax(3)
        reach = reach + OVERSHOOT * most * (views.hi - views.lo)
    centre = (views.hi + views.lo) / 2
    below = (0.5 + reach - centre).amax((0, 1))  # voxels are interpolated between two centres
    above = (0.5 + reach + centre - size).amax((0, 1))
    return torch.maximum(below, above).sub(1e-3).ceil().clamp_min(0).int().tolist()


def _sample_elastic(
    rng: Rng, n: int, dim: int, config: AugmentConfig, points: int = 6
) -> Tensor | None:
    active = rng.random(n) < config.elastic
    if not active.any() or not config.elastic_size:
        return None
    field = rng.normal(scale=config.elastic_size, size=(n, 1, dim) + (points,) * dim)
    field *= active.reshape((n,) + (1,) * (dim + 2))
    return torch.from_numpy(field.astype(np.float32))


def sampling_grid(geometry: ViewGeometry, window: Sequence[int], patch: Sequence[int]) -> Tensor:
    """`grid_sample` coordinates of every view's voxels, ``[b*v, *patch, s]``.

    Last axis first, for align_corners=False.
    """
    b, v, dim = geometry.lo.shape
    size = torch.tensor(list(window), dtype=geometry.lo.dtype).to(
        geometry.lo.device, non_blocking=True
    )
    half = (geometry.hi - geometry.lo) / 2 * (1 - 2 * geometry.flip)
    centre = (geometry.hi + geometry.lo) / size - 1
    linear = torch.diag_embed(half)
    if geometry.rotation is not None:
        linear = geometry.rotation @ linear
    grid = _affine_grid(
        (linear * (2 / size)[:, None]).flatten(0, 1).flip(1), centre.flatten(0, 1).flip(1), patch
    )
    if geometry.displacement is None:
        return grid
    return grid + _offsets(geometry, size, patch)


def _affine_grid(linear: Tensor, centre: Tensor, patch: Sequence[int]) -> Tensor:
    """``centre + linear @ p`` at the voxel centres p of a patch, ``[n, *patch, s]``.

    The patch spans [-1, 1]. Sums of a term an axis: the matrix product of ``F.affine_grid`` takes
    several times longer.

    Args:
        linear: ``[n, s, s]``, its last axis in the order of the patch's axes.
        centre: ``[n, s]``.
        patch: voxels an axis.
    """
    dim = len(patch)
    grid = centre.view(-1, *(1,) * dim, dim)
    for axis, size in enumerate(patch):
        place = (2 * torch.arange(size, device=centre.device, dtype=centre.dtype) + 1) / size - 1
        term = place[:, None] * linear[:, None, :, axis]
        shape = [1] * dim
        shape[axis] = size
        grid = grid + term.view(-1, *shape, dim)
    return grid


def _offsets(geometry: ViewGeometry, size: Tensor, patch: Sequence[int]) -> Tensor:
    """Displacements up-sampled to the patch, in `grid_sample` units, ``[b*v, *patch, s]``."""
    assert geometry.displacement is not None
    fraction = ((geometry.hi - geometry.lo) * 2 / size).flatten(0, 1)
    ones = (1,) * len(patch)
    field = geometry.displacement.flatten(0, 1) * fraction.reshape(*fraction.shape, *ones)
    mode = "bicubic" if len(patch) == 2 else "trilinear"
    return F.interpolate(field, list(patch), mode=mode, align_corners=True).flip(1).movedim(1, -1)


def resample_views(windows: Tensor, grid: Tensor) -> Tensor:
    """Windows ``[n, c, *w]`` at a grid ``[n, *p, s]`` to views ``[n, c, *p]``.

    Edges continue outwards.
    """
    return F.grid_sample(windows, grid, padding_mode="border", align_corners=False)


def resample_boxes(windows: Tensor, geometry: ViewGeometry, patch: Sequence[int]) -> Tensor:
    """What :func:`resample_views` gives for boxes and flips alone, several times faster in 3D.

    Rows along the last axis are weighted sums of the two (2D) or four (3D) rows around them; then a
    matrix interpolates along the rows.

    Args:
        windows: ``[n, c, *w]``.
        geometry: boxes without rotation and displacement, n views in all.
        patch: voxels of a view.

    Returns:
        Views ``[n, c, *p]``.
    """
    n, c, *shape = windows.shape
    places = _places(geometry, shape, patch)
    first = torch.arange(n * c, device=windows.device).view(n, c)
    steps, weights = first.new_zeros(1), windows.new_ones(1, n, c)
    for place, size in zip(places[:-1], shape[:-1], strict=True):
        below = place.floor().clamp_max(max(size - 2, 0))
        fraction = torch.stack([1 - (place - below), place - below])
        first = (first[:, :, None] * size + below.long()[:, None]).flatten(1)
        both = torch.arange(2, device=steps.device).clamp_max(size - 1)
        steps = (steps[:, None] * size + both).flatten()
        weights = (weights[:, None, :, :, None] * fraction[:, :, None]).flatten(0, 1).flatten(2)
    rows, lines = first.view(-1, 1) + steps, windows.reshape(-1, shape[-1])
    seen = F.embedding_bag(rows, lines, per_sample_weights=weights.flatten(1).t(), mode="sum")
    along = linear_weights(places[-1], shape[-1]).mT
    return (seen.view(n, -1, shape[-1]) @ along).view(n, c, *patch)


def _places(geometry: ViewGeometry, shape: Sequence[int], patch: Sequence[int]) -> list[Tensor]:
    """Where every view's voxels lie along each axis, ``[b*v, n]`` an axis.

    In indices of the window, inside it.
    """
    side = geometry.hi - geometry.lo
    start, step = geometry.lo + geometry.flip * side, side * (1 - 2 * geometry.flip)
    start, step = start.flatten(0, 1) - 0.5, step.flatten(0, 1)
    places = []
    for axis, (n, size) in enumerate(zip(patch, shape, strict=True)):
        fraction = (torch.arange(n, device=side.device, dtype=side.dtype) + 0.5) / n
        place = start[:, axis, None] + fraction * step[:, axis, None]
        places.append(place.clamp(0, size - 1))
    return places


def linear_weights(places: Tensor, size: int) -> Tensor:
    """Weights ``[n, m, size]`` of `size` voxels at ``places [n, m]``, linear between them.

    Places are in indices of the voxels.
    """
    voxels = torch.arange(size, device=places.device, dtype=places.dtype)
    return (1 - (places[..., None] - voxels).abs()).clamp_min(0)


def resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Class maps ``[n, *w]`` (uint8) to ``[n, *p]``, nearest neighbour.

    Outside the window is IGNORE.
    """
    shifted = (labels.to(grid.dtype) + 1)[:, None]
    found = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    found = found[:, 0]
    return torch.where(found > 0.5, found - 1, torch.full_like(found, IGNORE)).to(torch.uint8)
