"""Random changes of intensity for views.

Blur, simulated low resolution, noise, brightness, contrast, gamma. They follow the resampling in
this order: first what blurs, then the noise, which no scanner blurs, then the scale of the
intensities. Which samples change, and how much, is drawn on the host; the changes run on the device
on those samples alone, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.data.random import noise_generator
from MedSSLLib.data.spatial import linear_weights

LARGE = 2**16  # voxels of a sample that is changed by itself
RADIUS = 4  # of a blur in voxels: four of the widest sigma, as in scipy


@dataclass(frozen=True)
class Change:
    """One kind of change: indices of the samples it touches, its strength and a seed for each."""

    samples: np.ndarray
    strength: np.ndarray
    seeds: np.ndarray

    def __bool__(self) -> bool:
        return len(self.samples) > 0

    def only(self, kept: np.ndarray) -> Change:
        """The change of the samples at the sorted positions `kept`, which become 0, 1, 2 ..."""
        place = np.searchsorted(kept, self.samples)
        mine = np.append(kept, -1)[place] == self.samples
        return Change(place[mine], self.strength[mine], self.seeds[mine])


def sample_intensity(rng: np.random.Generator, n: int, config: AugmentConfig) -> dict[str, Change]:
    """Draw every kind of change for `n` views, in the order in which they are applied."""
    ranges: dict[str, tuple[float, float, float]] = {
        "blur": (config.blur, 0.5, 1.0),
        "low_resolution": (config.low_resolution, 1.0, 2.0),
        "noise": (config.noise, 0.0, 0.1),
        "brightness": (config.brightness, 0.75, 1.25),
        "contrast": (config.contrast, 0.7, 1.3),
        "gamma": (config.gamma, 0.7, 1.5),
    }
    changes = {}
    for name, (probability, low, high) in ranges.items():
        samples = np.flatnonzero(rng.random(n) < probability)
        strength = rng.uniform(low, high, len(samples)).astype(np.float32)
        changes[name] = Change(samples, strength, rng.integers(2**31, size=len(samples)))
    return changes


def apply_intensity(images: Tensor, changes: dict[str, Change]) -> None:
    """Change ``images [n, c, *s]`` in place."""
    for name, apply in _KINDS.items():
        if changes.get(name):
            apply(images, changes[name])


_Kind = Callable[[Tensor, Change], None]


def _strength(images: Tensor, change: Change) -> Tensor:
    return torch.from_numpy(change.strength).to(images, non_blocking=True)


def _changed(images: Tensor, change: Change, apply: Callable[..., Tensor], *given: Tensor) -> None:
    """Replace the chosen samples by ``apply(them [k, c, *s], *given)``.

    The change may happen in place. Small samples are changed together, large ones one at a time, so
    that they stay in the processor's cache.

    Args:
        images: ``[b, c, *s]``.
        change: which samples.
        apply: the change.
        given: what it needs, ``[k, ...]`` for the k samples.
    """
    if images[0].numel() > LARGE:
        for sample, *its in zip(change.samples.tolist(), *(x.split(1) for x in given), strict=True):
            x = images.narrow(0, sample, 1)
            x.copy_(apply(x, *its))
    else:
        index = torch.from_numpy(change.samples).to(images.device, non_blocking=True)
        images.index_copy_(0, index, apply(images.index_select(0, index), *given))


def _filtered(images: Tensor, change: Change, weights: Callable[[Tensor, int], Tensor]) -> None:
    strength, shape = _strength(images, change), images.shape[2:]
    along = {n: weights(strength, n) for n in set(shape)}
    _changed(images, change, _along_axes, *(along[n] for n in shape))


def _blur(images: Tensor, change: Change) -> None:
    _filtered(images, change, blur_weights)


def _low_resolution(images: Tensor, change: Change) -> None:
    _filtered(images, change, low_resolution_weights)


def _along_axes(x: Tensor, *weights: Tensor) -> Tensor:
    """Every spatial axis of ``x [k, c, *s]`` times its ``weights [k, n, n]``.

    Each product contracts the last axis and puts the result in front, so that after all of them the
    axes are in order again and none was copied.
    """
    k, c, *shape = x.shape
    for matrix in reversed(weights):
        x = matrix.repeat_interleave(c, 0) @ x.reshape(k * c, -1, matrix.shape[-1]).mT
    return x.view(k, c, *shape)


def blur_weights(sigma: Tensor, n: int) -> Tensor:
    """Gaussian weights ``[k, n, n]`` of a width per sample in voxels.

    Cut at 4 sigma of the widest; edges continue.
    """
    offset = torch.arange(-RADIUS, RADIUS + 1, device=sigma.device)
    kernel = torch.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    rows, wide = F.pad(kernel[:, None].expand(-1, n, -1), (0, n)), n + 2 * RADIUS
    weights = rows.flatten(1)[:, : n * wide].view(
        -1, n, wide
    )  # rows one shorter: each starts one voxel later
    weights[:, :, RADIUS] += weights[:, :, :RADIUS].sum(2)
    weights[:, :, -RADIUS - 1] += weights[:, :, -RADIUS:].sum(2)
    return weights[:, :, RADIUS:-RADIUS]


def low_resolution_weights(factor: Tensor, n: int) -> Tensor:
    """Down by a factor per sample and up again, ``[k, n, n]``.

    Linear both ways as in ``F.interpolate``. Both ways keep the centre, so structures stay where
    their labels are.
    """
    few = (n / factor).round().clamp_min(1)[:, None]
    half = torch.arange(n, device=factor.device, dtype=factor.dtype) + 0.5
    down = linear_weights((half * n / few - 0.5).clamp(0, n - 1), n)
    up = linear_weights((half * few / n - 0.5).clamp_min(0).minimum(few - 1), n)
    return up @ down


def _noise(images: Tensor, change: Change) -> None:
    """Gaussian noise, from a seed of each sample's own.

    So it does not depend on the others in the batch.
    """
    for sample, variance, seed in zip(*(x.tolist() for x in vars(change).values()), strict=True):
        x = images[sample]
        generator = noise_generator(x.device, seed)
        x.add_(
            torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype),
            alpha=variance**0.5,
        )


def _factors(images: Tensor, change: Change) -> Tensor:
    """Strengths that broadcast against the samples, ``[k, 1, ...]``."""
    return _strength(images, change).view(-1, *(1,) * (images.dim() - 1))


def _brightness(images: Tensor, change: Change) -> None:
    _changed(images, change, Tensor.mul_, _factors(images, change))


def _contrast(images: Tensor, change: Change) -> None:
    def apply(x: Tensor, factor: Tensor) -> Tensor:
        low, high = _range(x)
        mean = x.mean(_space(x), keepdim=True)
        x.sub_(mean).mul_(factor).add_(mean)
        return torch.minimum(torch.maximum(x, low, out=x), high, out=x)

    _changed(images, change, apply, _factors(images, change))


def _gamma(images: Tensor, change: Change) -> None:
    def apply(x: Tensor, exponent: Tensor) -> Tensor:
        """By exp2 and log2, a third of the time of pow."""
        low, high = _range(x)
        span = (high - low).clamp_min(1e-6)
        return x.sub_(low).div_(span).log2_().mul_(exponent).exp2_().mul_(span).add_(low)

    _changed(images, change, apply, _factors(images, change))


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(_space(x), keepdim=True), x.amax(_space(x), keepdim=True)


def _space(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


_KINDS: dict[str, _Kind] = {
    "blur": _blur,
    "low_resolution": _low_resolution,
    "noise": _noise,
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
}
