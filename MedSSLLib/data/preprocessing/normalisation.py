"""Grey values to about zero mean and unit deviation, whatever surrounds the anatomy.

No statistic hinges on a single voxel: what surrounds the anatomy (padding, a mask, air stored as
one value) is found as a value that very many voxels share, never as the least value. The rules and
their numbers are not from the papers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import COMPRESSED_CT, CROPPED_CT
from MedSSLLib.images.components import Pieces, pieces_of

HU_RANGE = (-1024.0, 3071.0)  # what 12 bits hold; not from the papers
HU_CENTRE, HU_WIDTH = 40.0, 20.0  # soft tissue, whose contrasts are kept; not from the papers
HU_SCALE = (0.0, 1.75)  # mean and deviation of CT so compressed, the same for every scan
LINEAR_RANGE = (-1024.0, 325.0)  # PGL, section 3.1
LINEAR_SCALE = (-200.0, 300.0)  # mean and deviation of CT, for every scan; not from the paper
PERCENTILES = (0.5, 99.5)  # not from the paper
PEAK = 5.0  # a value that so many times as many voxels have as have any value near it
LEAST_SHARE = 0.001  # ... and at least this share of all, can be background
FACE_SHARE = 0.5  # share of a face of the volume that padding fills
WHOLE_FACE = 0.95  # ... and from which other values may be near
_MOST_SAMPLES = 2**21  # voxels that percentiles, mean and deviation are taken over

Interval = tuple[float, float]


@dataclass(frozen=True)
class GreyScale:
    """How the values of one image are normalised.

    Attributes:
        low, high: what values are clipped to.
        mean, deviation: of the clipped values of the anatomy.
        painted: intervals of padding that is brighter than ``low`` and is set to it where it is
            joined to the border of the volume.
        compressed: whether a clipped value v becomes arcsinh((v - HU_CENTRE) / HU_WIDTH) first.
    """

    low: float
    high: float
    mean: float
    deviation: float
    painted: tuple[Interval, ...] = ()
    compressed: bool = False

    def padding(self, array: np.ndarray) -> np.ndarray | None:
        """Where the volume has padding that is set to ``low``; None for nowhere."""
        result = None
        for first, last in self.painted:
            mask = np.ascontiguousarray((array >= first) & (array <= last))
            found = pieces_of(mask.view(np.uint8))
            found.remove(mask, ~np.isin(found.piece, _at_border(found, array.shape)))
            result = mask if result is None else result | mask
        return result

    def apply(self, values: np.ndarray, padding: np.ndarray | None = None) -> np.ndarray:
        """Float32 of a part of the image, with the same part of :meth:`padding`."""
        result = values.astype(np.float32)
        np.clip(result, self.low, self.high, out=result)
        if padding is not None:
            result[padding] = self.low
        if self.compressed:
            result -= np.float32(HU_CENTRE)
            result /= np.float32(HU_WIDTH)
            np.arcsinh(result, out=result)
        result -= np.float32(self.mean)
        result /= np.float32(self.deviation)
        return result


def normalise(array: np.ndarray, modality: str, rule: int = CROPPED_CT) -> np.ndarray:
    """Float32 of the same shape, by :func:`grey_scale`.

    Raises:
        InputError: the image is constant.
    """
    scale = grey_scale(array, modality, rule)
    return scale.apply(array, scale.padding(array))


def grey_scale(array: np.ndarray, modality: str, rule: int = CROPPED_CT) -> GreyScale:
    """How an image ``[d, h, w]`` is normalised.

    CT in Hounsfield units is scaled alike in every scan, and compressed: about 40 HU the scale is
    steep, since the tissues of brain or abdomen are 10 to 40 HU apart, while air, lung and bone
    stay apart from each other, which a window would clip. By the rules before it is clipped to
    -1024..325 as in PGL, where the same tissues are a tenth of a deviation apart. Others,
    and CT that was stored with an offset or cut to tissue, are clipped to their 0.5 and 99.5
    percentiles and scaled to zero mean and unit deviation, of the voxels that are not background
    (not from the paper). Background is padding, a value that fills half a face of the volume or two
    of its corners; and a value darker than nearly all others that stands out from the values near
    it. Noise around a scan is not background: it counts, as in scans that have none.

    Args:
        array: grey values.
        modality: 'CT', or anything else.
        rule: the plan's ``intensities``.

    Raises:
        InputError: the image is constant.
    """
    sample = _sample(array)
    if sample.min() == sample.max():
        raise InputError(
            f"is constant ({sample.min():g})", remedy="Remove the case or give another image"
        )
    padding = _padding(array, sample)
    rest = _without(sample, padding)
    if modality.upper() == "CT" and _in_hounsfield(rest, rule):
        compressed = rule >= COMPRESSED_CT
        low, high = HU_RANGE if compressed else LINEAR_RANGE
        mean, deviation = HU_SCALE if compressed else LINEAR_SCALE
    else:
        compressed = False
        inside = _without_dark_peaks(rest)
        low, high = np.percentile(inside, PERCENTILES) if inside.size else (0.0, 0.0)
        clipped = inside.clip(low, high)
        if not inside.size or clipped.std() <= 1e-3 * (high - low):  # what differs is the image
            low, high, clipped, padding = sample.min(), sample.max(), sample, []
        mean, deviation = clipped.mean(), clipped.std()
    bright = tuple(interval for interval in padding if interval[1] > low)
    return GreyScale(
        float(low), float(high), float(mean), float(deviation), bright, compressed=compressed
    )


def _padding(array: np.ndarray, sample: np.ndarray) -> list[Interval]:
    """Values that surround the volume, from the border inwards: each on the faces of what the ones
    before leave.
    """
    found: list[Interval] = []
    box = array
    while len(found) < 4 and box.size:
        levels, counts = np.unique(_without(sample, found), return_counts=True)
        values = [
            value
            for value, share in _on_faces(box)
            if _stands_out(levels, counts, value, value, alone=share < WHOLE_FACE)
        ]
        if not values:
            break
        found += [(value, value) for value in values]
        box = _within(box, values)
    return found


def _on_faces(box: np.ndarray) -> list[tuple[float, float]]:
    """Values that fill half of a face, or two corners, and the largest share of a face that each
    has.
    """
    corners = box[tuple(slice(None, None, max(1, n - 1)) for n in box.shape)]
    values, counts = np.unique(corners, return_counts=True)
    shares = dict.fromkeys((float(value) for value in values[counts >= 2]), 0.0)
    for face in (box.take(index, axis) for axis in range(box.ndim) for index in (0, -1)):
        values, counts = np.unique(face, return_counts=True)
        value, share = float(values[counts.argmax()]), float(counts.max() / face.size)
        if share >= FACE_SHARE and face.size > 1:
            shares[value] = max(share, shares.get(value, 0.0))
    return sorted(shares.items())


def _stands_out(
    levels: np.ndarray, counts: np.ndarray, first: float, last: float, *, alone: bool = True
) -> bool:
    """Whether values are a peak of their own: many voxels have them, and few any one next to them.

    Args:
        levels: values that occur, in order.
        counts: voxels that have each.
        first, last: the least and the greatest value in question.
        alone: whether values near them count; else many voxels suffice.
    """
    own = (levels >= first) & (levels <= last)
    others, numbers, size = levels[~own], counts[~own], int(counts[own].sum())
    if size < max(LEAST_SHARE * counts.sum(), 4) or not others.size:
        return False
    if not alone:
        return True
    ranks = np.searchsorted(numbers.cumsum(), np.array(PERCENTILES) / 100 * numbers.sum())
    low, high = others[ranks.clip(0, len(others) - 1)]
    steps = np.diff(others)  # a few grey levels are near, however far apart they are
    reach = max(0.015 * (high - low), 3.5 * float(np.median(steps)) if steps.size else 0.0)
    near = numbers[(others >= first - reach) & (others <= last + reach)]
    return bool(size >= PEAK * near.max(initial=0))


def _within(box: np.ndarray, values: list[float]) -> np.ndarray:
    """The box of what is neither of the values, but for stray voxels."""
    other = np.ones(box.shape, bool)
    for value in values:
        other &= box != value
    cut = []
    for axis in range(box.ndim):
        rest = tuple(a for a in range(box.ndim) if a != axis)
        share = other.mean(rest)
        shown = np.flatnonzero(share > max(LEAST_SHARE, 3 * box.shape[axis] / box.size))
        cut.append(slice(int(shown[0]), int(shown[-1]) + 1) if shown.size else slice(0))
    return box[tuple(cut)]


def _without(sample: np.ndarray, intervals: list[Interval]) -> np.ndarray:
    for first, last in intervals:
        sample = sample[(sample < first) | (sample > last)]
    return sample


def _in_hounsfield(sample: np.ndarray, rule: int) -> bool:
    """Whether CT values are Hounsfield units: some below water (fat, lung, air, noise in fluid), as
    in crops and in heads without skin too, and not nearly all as bright as bone. Rules before
    CROPPED_CT asked for more fat, lung or air than some crops have.
    """
    inside = sample[sample > HU_RANGE[0]]
    if not inside.size:
        return True
    darkest = 0 if rule >= CROPPED_CT else -50
    return bool((inside < darkest).mean() >= 0.005 and (inside > 700).mean() < 0.3)


def _without_dark_peaks(sample: np.ndarray) -> np.ndarray:
    """The sample without values that stand out and are darker than nearly all others; a peak may be
    as wide as a 2,000th of the range.
    """
    for _ in range(3):
        if not sample.size:
            break
        low, high = np.percentile(sample, PERCENTILES)
        step = (high - low) / 4096 or float(np.ptp(sample)) / 4096
        if not step:
            break
        codes, counts = np.unique(np.rint((sample - low) / step), return_counts=True)
        darkest = int(np.searchsorted(counts.cumsum(), PERCENTILES[0] / 100 * sample.size)) + 1
        many = np.flatnonzero(counts[:darkest] >= max(LEAST_SHARE * sample.size, 4))
        peaks = [c for c in codes[many] if _stands_out(codes, counts, c - 1, c + 1)]
        if not peaks:
            break
        sample = sample[sample > low + (peaks[0] + 1.5) * step]
    return sample


def _at_border(found: Pieces, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of the pieces that reach the border of the volume."""
    places = np.stack(np.unravel_index(found.start, shape), 1)
    ends = np.stack(np.unravel_index(found.stop - 1, shape), 1)
    last = np.array(shape) - 1
    touches = ((places == 0) | (ends == last)).any(1)
    return np.unique(found.piece[touches])


def _sample(array: np.ndarray) -> np.ndarray:
    """About two million voxels, evenly spread, as float64; all of them where those are alike."""
    step = max(1, array.size // _MOST_SAMPLES) | 1
    sample = array.reshape(-1)[::step].astype(np.float64)
    return sample if sample.min() < sample.max() else array.reshape(-1).astype(np.float64)
