"""Random changes of intensity for views: noise, blur, brightness, contrast, simulated low resolution, gamma.

Which samples change, and how much, is drawn on the host; the changes run on the device on those samples alone, so
nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedSSLLib.config import AugmentConfig


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
        mine = np.isin(self.samples, kept)
        return Change(np.searchsorted(kept, self.samples[mine]), self.strength[mine], self.seeds[mine])


def sample_intensity(rng: np.random.Generator, n: int, config: AugmentConfig) -> dict[str, Change]:
    """Draw every kind of change for `n` views, in the order in which they are applied."""
    ranges: dict[str, tuple[float, float, float]] = {
        "noise": (config.noise, 0.0, 0.1),
        "blur": (config.blur, 0.5, 1.0),
        "brightness": (config.brightness, 0.75, 1.25),
        "contrast": (config.contrast, 0.7, 1.3),
        "low_resolution": (config.low_resolution, 1.0, 2.0),
        "gamma": (config.gamma, 0.7, 1.5),
    }
    changes = {}
    for name, (probability, low, high) in ranges.items():
        samples = np.flatnonzero(rng.random(n) < probability)
        strength = rng.uniform(low, high, len(samples)).astype(np.float32)
        changes[name] = Change(samples, strength, rng.integers(2**31, size=len(samples)))
    return changes


def apply_intensity(images: Tensor, changes: dict[str, Change]) -> Tensor:
    """Changed copies of ``images [n, c, *s]``."""
    images = images.clone()
    for name, change in changes.items():
        if change:
            _KINDS[name](images, change)
    return images


def noise_generator(device: torch.device, seed: int) -> torch.Generator | None:
    """A seeded generator on the device; the meta device has none."""
    return None if device.type == "meta" else torch.Generator(device=device).manual_seed(mixed_seed(seed))


def mixed_seed(*numbers: int) -> int:
    """A seed of 32 bits in which every bit of all numbers counts: torch's CPU generator drops the higher bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


Kind = Callable[[Tensor, Change], None]


def _replace(images: Tensor, change: Change, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
    index = torch.from_numpy(change.samples).to(images.device, non_blocking=True)
    strength = torch.from_numpy(change.strength).to(images, non_blocking=True)
    strength = strength.reshape(-1, *(1,) * (images.dim() - 1))
    images.index_copy_(0, index, apply(images.index_select(0, index), strength))


def _noise(images: Tensor, change: Change) -> None:
    """Each sample has its own seed, so that its noise does not depend on the others in the batch."""
    for sample, variance, seed in zip(*(x.tolist() for x in vars(change).values()), strict=True):
        x = images[sample]
        generator = noise_generator(x.device, seed)
        x += variance**0.5 * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _blur(images: Tensor, change: Change) -> None:
    _replace(images, change, gaussian_blur)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int = 2) -> Tensor:
    """Separable Gaussian of a width per sample (voxels), edges continued; ``x [n, c, *s]``, ``sigma [n, 1, ...]``."""
    offsets = range(-radius, radius + 1)
    weights = torch.stack([torch.exp(-(k**2) / (2 * sigma**2)) for k in offsets])
    weights = weights / weights.sum(0)
    for axis in range(2, x.dim()):
        pad = [0, 0] * (x.dim() - 1 - axis) + [radius, radius] + [0, 0] * (axis - 2)
        padded = F.pad(x, pad, mode="replicate")
        size = x.shape[axis]
        x = torch.stack([w * padded.narrow(axis, k, size) for k, w in enumerate(weights)]).sum(0)
    return x


def _brightness(images: Tensor, change: Change) -> None:
    def apply(x: Tensor, factor: Tensor) -> Tensor:
        low, high = _range(x)
        return torch.minimum(torch.maximum(x * factor, low), high)

    _replace(images, change, apply)


def _contrast(images: Tensor, change: Change) -> None:
    def apply(x: Tensor, factor: Tensor) -> Tensor:
        low, high = _range(x)
        mean = x.mean(_space(x), keepdim=True)
        return torch.minimum(torch.maximum((x - mean) * factor + mean, low), high)

    _replace(images, change, apply)


def _gamma(images: Tensor, change: Change) -> None:
    def apply(x: Tensor, exponent: Tensor) -> Tensor:
        low, high = _range(x)
        span = (high - low).clamp_min(1e-6)
        return ((x - low) / span).clamp(0, 1) ** exponent * span + low

    _replace(images, change, apply)


def _low_resolution(images: Tensor, change: Change) -> None:
    """Linear both ways: both keep the centre, so structures stay where their labels are."""
    mode = "bilinear" if images.dim() == 4 else "trilinear"
    for sample, factor in zip(change.samples.tolist(), change.strength.tolist(), strict=True):
        x = images[sample : sample + 1]
        small = F.interpolate(x, _reduced(x.shape[2:], factor), mode=mode, align_corners=False)
        images[sample : sample + 1] = F.interpolate(small, list(x.shape[2:]), mode=mode, align_corners=False)


def _reduced(shape: Sequence[int], factor: float) -> list[int]:
    return [max(1, round(size / factor)) for size in shape]


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(_space(x), keepdim=True), x.amax(_space(x), keepdim=True)


def _space(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


_KINDS: dict[str, Kind] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "low_resolution": _low_resolution,
    "gamma": _gamma,
}
