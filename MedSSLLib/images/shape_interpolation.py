"""What the drawn slices alone say about the slices between and beyond them: shape-based
interpolation.

Between two drawn slices the signed distances to a class's outline are interpolated linearly (Raya
and Udupa 1990, "Shape-based interpolation of multidimensional objects", IEEE TMI 9(1), Eq. 2). Both
are first moved onto the straight line between their centroids, class by class, so that a structure
that runs obliquely through the slices keeps its shape (as in Higgins, Morice and Ritman 1993,
"Shape-based interpolation of tree-like structures"). A class drawn on one of the two slices only
tapers off half way. Beyond the outermost slices it tapers off too (not from the papers). Slices
that do not show a class say no more than that it does not reach them.

Distances are millimetres, positive inside. They become probabilities that are firm beside a drawn
slice and soft far from one, which an image-driven estimate can overrule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MedSSLLib.images.labels import IGNORE, Annotated, counted_mask

TAPER = 0.5  # mm that an outline shrinks per mm beyond the last drawn slice; not from the papers
FAR = 1e3  # mm: the signed distance of a class that fills a slice; not from the papers


@dataclass(frozen=True)
class Softness:
    """How firmly the interpolated shapes count.

    The log odds of a class against the background grow by 2 per ``edge + spread * distance`` mm of
    signed distance (1 for the class's, 1 for the background's, which is its negative), where
    ``distance`` is that to the nearest drawn slice in mm. Not from the papers.
    """

    edge: float = 2.0
    spread: float = 0.4


def log_prior(distances: np.ndarray, gap: np.ndarray, softness: Softness) -> np.ndarray:
    """Log probabilities ``[c, k, j, i]`` of signed distances ``[c, k, j, i]`` at ``gap`` mm from a
    drawn slice.
    """
    logits = distances / (softness.edge + softness.spread * gap)
    logits -= logits.max(0)
    return logits - np.log(np.exp(logits).sum(0))


def with_shapes(
    network: np.ndarray,
    label: np.ndarray,
    annotated: Annotated,
    spacing: Sequence[float],
    softness: Softness | None = None,
    weight: float = 1.0,
) -> np.ndarray:
    """A network's probabilities ``[c, k, j, i]`` changed by what the shapes between the drawn
    slices say.

    Args:
        network: probabilities on the label's grid.
        label: class map ``[k, j, i]``, IGNORE where not drawn.
        annotated: the drawn slices, at least one.
        spacing: mm along i, j, k.
        softness: of the shapes; None = its defaults.
        weight: exponent of the network's probabilities.
    """
    distances, gap = shape_distances(label, annotated, spacing, len(network))
    return product_of_experts(network, log_prior(distances, gap, softness or Softness()), weight)


def with_known_shapes(
    network: np.ndarray, label: np.ndarray, annotated: Annotated, spacing: Sequence[float]
) -> np.ndarray:
    """As `with_shapes`, but outside the shapes the network decides between background and classes
    that no slice shows.

    It may know them from other cases, and slices that miss a class do not tell whether it lies
    elsewhere.
    """
    distances, gap = shape_distances(label, annotated, spacing, len(network))
    shown = set(np.unique(label[counted_mask(label.shape, annotated)]).tolist())
    seen, unseen = (
        [value for value in range(1, len(network)) if (value in shown) == known]
        for known in (True, False)
    )
    distances[0] = -distances[seen].max(0) if seen else 0
    distances[unseen] = distances[0]
    return product_of_experts(network, log_prior(distances, gap, Softness()))


def product_of_experts(
    network: np.ndarray, log_shapes: np.ndarray, weight: float = 1.0
) -> np.ndarray:
    """Normalised p_network^weight x p_shapes (Hinton 2002, Eq. 1), both ``[c, k, j, i]``."""
    joint = weight * np.log(np.maximum(network, 1e-6)) + log_shapes
    joint = np.exp(joint - joint.max(0))
    return joint / joint.sum(0)


def shape_distances(
    label: np.ndarray, annotated: Annotated, spacing: Sequence[float], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated signed distance of every class, and how far each voxel is from a drawn slice.

    Drawn axes whose slices around a voxel show the class are averaged with weights 1 / distance to
    the nearest of them, so that every drawn slice keeps its outlines. The others bound it: no voxel
    is further inside than the nearest slice without the class is away. Where no axis shows it, the
    distance is minus that to the nearest drawn slice. The background's is minus the greatest of the
    classes'.

    Args:
        label: class map ``[k, j, i]``, IGNORE where not drawn.
        annotated: the drawn slices, at least one.
        spacing: mm along i, j, k.
        classes: number of classes with background.

    Returns:
        float32 ``[c, k, j, i]`` in mm, positive inside, and float32 ``[k, j, i]`` in mm.
    """
    total, weights = np.zeros((2, classes, *label.shape), np.float32)
    bound = np.full((classes, *label.shape), np.inf, np.float32)
    nearest = np.full(label.shape, np.inf, np.float32)
    for axis, indices in annotated.slices:
        array_axis = 2 - axis
        plane = [mm for other, mm in enumerate(reversed(spacing)) if other != array_axis]
        stack = _Stack(np.moveaxis(label, array_axis, 0), indices, float(spacing[axis]), plane)
        gap = np.moveaxis(
            np.broadcast_to(stack.gap[:, None, None], stack.label.shape), 0, array_axis
        )
        for value in range(1, classes):
            found = np.moveaxis(stack.distances(value), 0, array_axis)
            weight = np.where(np.isnan(found), 0, 1 / np.maximum(gap, 1e-3))
            total[value] += np.nan_to_num(found) * weight
            weights[value] += weight
            bound[value] = np.minimum(
                bound[value], np.where(np.isnan(found), gap - stack.step / 2, np.inf)
            )
        nearest = np.minimum(nearest, gap)
    away = -np.maximum(nearest, min(spacing) / 2)
    total = np.where(
        weights > 0, np.minimum(total / np.where(weights > 0, weights, 1), bound), away
    )
    total[0] = -total[1:].max(0)
    return total, nearest


def signed_distance(inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm of every pixel to the outline of a region, positive inside; the region is
    neither empty nor all.

    It is the distance to the nearest pixel of the other kind, less half the way between pixels, so
    that opposite sides of the outline differ by one pixel.
    """
    half = 0.5 * min(spacing)
    within = ndimage.distance_transform_edt(inside, sampling=spacing)
    without = ndimage.distance_transform_edt(~inside, sampling=spacing)
    return np.where(inside, within - half, half - without).astype(np.float32)


class _Stack:
    """Drawn slices along the first array axis of a class map."""

    def __init__(
        self, label: np.ndarray, indices: Sequence[int], step: float, plane: Sequence[float]
    ) -> None:
        self.label, self.indices, self.step, self.plane = label, np.asarray(indices), step, plane
        self.drawn = {int(z): _filled(label[z]) for z in indices}
        self.gap = (np.abs(np.arange(len(label))[:, None] - self.indices).min(1) * step).astype(
            np.float32
        )

    def distances(self, value: int) -> np.ndarray:
        """Signed distance to a class in every slice, ``[n, h, w]``; NaN where the slices around
        lack it.
        """
        outlines = {z: _Outline.of(drawn == value, self.plane) for z, drawn in self.drawn.items()}
        result = np.full(self.label.shape, np.nan, np.float32)
        for z in range(len(result)):
            before, after = self.indices[self.indices <= z], self.indices[self.indices >= z]
            if before.size and after.size:
                low, high = int(before[-1]), int(after[0])
                share = (z - low) / (high - low) if high > low else 0.0
                result[z] = _between(outlines[low], outlines[high], share)
            else:
                end = int(before[-1] if before.size else after[0])
                result[z] = outlines[end].distance - TAPER * self.gap[z]
        return result


@dataclass(frozen=True)
class _Outline:
    """Signed distance to a class in one slice, and its centroid in pixels; NaN and None where it is
    absent.
    """

    distance: np.ndarray
    centroid: np.ndarray | None

    @classmethod
    def of(cls, inside: np.ndarray, spacing: Sequence[float]) -> _Outline:
        if not inside.any():
            return cls(np.full(inside.shape, np.nan, np.float32), None)
        if inside.all():
            return cls(np.full(inside.shape, FAR, np.float32), (np.asarray(inside.shape) - 1) / 2)
        return cls(signed_distance(inside, spacing), np.asarray(ndimage.center_of_mass(inside)))

    def moved(self, shift: np.ndarray) -> np.ndarray:
        """The distances with the outline moved by `shift` pixels."""
        if np.abs(shift).max() < 1e-6:
            return self.distance
        return ndimage.shift(self.distance, shift, order=1, mode="nearest")


def _between(low: _Outline, high: _Outline, share: float) -> np.ndarray:
    """Signed distances at `share` of the way from one drawn slice to the next."""
    if low.centroid is None and high.centroid is None:
        return low.distance
    if low.centroid is None:
        return share * high.distance - (1 - share) * high.distance.max()
    if high.centroid is None:
        return (1 - share) * low.distance - share * low.distance.max()
    way = high.centroid - low.centroid
    return (1 - share) * low.moved(share * way) + share * high.moved((share - 1) * way)


def _filled(drawn: np.ndarray) -> np.ndarray:
    """A drawn slice in which pixels that do not count take the class of the nearest one that
    does.
    """
    unknown = drawn == IGNORE
    if not unknown.any() or unknown.all():
        return drawn
    nearest = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return drawn[tuple(nearest)]
