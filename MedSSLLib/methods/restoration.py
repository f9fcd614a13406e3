"""Restoration of corrupted views (Models Genesis, Zhou et al. 2019, arXiv 1908.06912).

Corruptions, in this order: local shuffling of voxels, a random monotone map of intensities, in- or
out-painting with noise. Their parameters are drawn first (:func:`sample_corruption`), then applied
(:func:`corrupt`); both run on the device for the whole batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from MedSSLLib.data.batch import Batch
from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import Method, MethodConfig, MethodContext
from MedSSLLib.methods.heads import LightDecoder
from MedSSLLib.networks.unet import Encoder

CURVE = 256  # entries of an intensity curve
BOXES = 5  # most boxes painted
MORE_BOXES = 0.95  # probability of each further box
IN_SIDE = (1 / 6, 1 / 3)  # side of a box that is painted over, share of the view
OUT_SIDE = (3 / 7, 4 / 7)  # side of a box that is spared when all else is painted over


class RestorationConfig(MethodConfig):
    """How often views are corrupted in which way; the defaults are those of Models Genesis."""

    shuffle: float = Field(0.5, ge=0, le=1, description="Probability of local shuffling.")
    intensity: float = Field(
        0.9, ge=0, le=1, description="Probability of a random map of intensities."
    )
    paint: float = Field(
        0.9, ge=0, le=1, description="Probability of painting over parts with noise."
    )
    outside: float = Field(
        0.8, ge=0, le=1, description="Share of out-painting in it; the rest is in-painting."
    )
    block: float = Field(
        0.1, gt=0, le=1, description="Largest side of a shuffled block, share of the view."
    )
    width: int = Field(16, ge=1, description="Channels of the decoder. Not from the paper.")


class Corruption(NamedTuple):
    """Parameters of a batch of b views of n voxels (``*s`` per axis).

    Attributes:
        order: flat index of the voxel that each voxel takes its value from, ``[b, n]``.
        curve: output for evenly spaced inputs in [0, 1], ``[b, CURVE]``.
        painted: 1 where noise replaces the image, ``[b, 1, *s]``.
        noise: in [0, 1], ``[b, 1, *s]``.
    """

    order: Tensor
    curve: Tensor
    painted: Tensor
    noise: Tensor


class Restoration(Method):
    """An encoder and a light decoder restore the clean view from a corrupted one."""

    Config: ClassVar[type[RestorationConfig]] = RestorationConfig
    config: RestorationConfig
    views: ClassVar[int] = 1
    intensity: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, config: RestorationConfig, context: MethodContext) -> None:
        super().__init__(encoder, config, context)
        self.decoder = LightDecoder(encoder, context.channels, config.width)
        self._last: tuple[Tensor, Tensor] | None = None

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Mean squared difference of the restored and the clean view, over all voxels."""
        clean = batch.images.flatten(0, 1)
        corrupted = corrupt(clean, sample_corruption(clean, self.config))
        restored = at_least_float32(self.decoder(self.encoder(corrupted)))
        squared = (restored - clean).square()
        self._last = (squared.detach().mean(), clean.detach().var(correction=0))
        return {"restoration": squared.mean()}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """Share of the clean views' variance that the restored ones explain, at most 1."""
        if self._last is None:
            return {}
        error, variance = self._last
        return {"explained": 1 - error / variance.clamp_min(1e-12)}


def sample_corruption(
    images: Tensor, config: RestorationConfig, generator: torch.Generator | None = None
) -> Corruption:
    """Draw the corruption of every view of ``images [b, c, *s]``; `generator` lives on their
    device.
    """
    draw = _Draw(images, generator)
    b, size = len(images), images.shape[2:]
    shuffled = draw.uniform(b, 1) < config.shuffle
    order = _shuffled_order(draw, b, size, config.block)
    order = torch.where(shuffled, order, torch.arange(order.shape[1], device=order.device))
    changed = draw.uniform(b, 1) < config.intensity
    curve = torch.where(changed, _curves(draw, b), draw.line(CURVE))
    chance = draw.uniform(b, 2)
    inside, spared = _boxes(draw, b, size, IN_SIDE), _boxes(draw, b, size, OUT_SIDE)
    out = _spread_out(chance[:, 0] < config.outside, size)
    paint = _spread_out(chance[:, 1] < config.paint, size)
    painted = (paint & torch.where(out, ~spared, inside))[:, None].to(images.dtype)
    return Corruption(order, curve, painted, draw.uniform(b, 1, *size))


def corrupt(images: Tensor, corruption: Corruption) -> Tensor:
    """Corrupted copies of ``images [b, c, *s]``; each view and channel keeps its range."""
    flat = images.flatten(2)
    flat = flat.gather(2, corruption.order[:, None].expand_as(flat))
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    span = (high - low).clamp_min(1e-6)
    mapped = look_up(corruption.curve, (flat - low) / span) * span + low
    noise = corruption.noise.flatten(2) * span + low
    return torch.lerp(mapped, noise, corruption.painted.flatten(2)).view_as(images)


def look_up(curve: Tensor, x: Tensor) -> Tensor:
    """A tabulated function at ``x [b, c, n]`` in [0, 1], linear between the entries of ``curve [b,
    k]``.
    """
    last = curve.shape[1] - 1
    position = (x * last).clamp(0, last)
    below = position.long().clamp_max(last - 1)
    table = curve[:, None].expand(-1, x.shape[1], -1)
    return torch.lerp(table.gather(2, below), table.gather(2, below + 1), position - below)


class _Draw:
    """Random numbers of a batch's device and type."""

    def __init__(self, like: Tensor, generator: torch.Generator | None) -> None:
        self.like, self.generator = like, generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(
            shape, generator=self.generator, device=self.like.device, dtype=self.like.dtype
        )

    def line(self, n: int) -> Tensor:
        return torch.linspace(0, 1, n, device=self.like.device, dtype=self.like.dtype)


def _shuffled_order(draw: _Draw, b: int, size: Sequence[int], block: float) -> Tensor:
    """Voxels permuted at random within blocks of a random size and offset, ``[b, n]``."""
    cell = torch.zeros(b, *(1,) * len(size), dtype=torch.long, device=draw.like.device)
    for axis, n in enumerate(size):
        largest = max(2, int(n * block))
        side = 2 + (draw.uniform(b, 1) * (largest - 1)).long()
        offset = (draw.uniform(b, 1) * side).long()
        along = (torch.arange(n, device=side.device) + offset) // side
        cell = cell * (n + 1) + _along(along, axis, len(size))
    cell = cell.flatten(1)
    noise = (draw.uniform(*cell.shape) * 2**20).long()
    places = cell.argsort(dim=1, stable=True)
    return torch.empty_like(places).scatter_(1, places, (cell * 2**20 + noise).argsort(dim=1))


def _curves(draw: _Draw, b: int) -> Tensor:
    """Cubic Bezier curves from (0, 0) to (1, 1), random control points, half of them reversed,
    ``[b, k]``.
    """
    x1, y1, x2, y2 = draw.uniform(4, b, 1)
    t = draw.line(4 * CURVE)
    xs, ys = (
        3 * (1 - t) ** 2 * t * p + 3 * (1 - t) * t**2 * q + t**3 for p, q in ((x1, x2), (y1, y2))
    )
    at = torch.searchsorted(xs, draw.line(CURVE).expand(b, -1).contiguous()).clamp_max(
        4 * CURVE - 1
    )
    rising = ys.gather(1, at)
    return torch.where(draw.uniform(b, 1) < 0.5, rising, rising.flip(1))


def _boxes(draw: _Draw, b: int, size: Sequence[int], sides: tuple[float, float]) -> Tensor:
    """Union of one to BOXES random boxes, sides in the range `sides` (shares of the view), ``[b,
    *s]``.
    """
    more = draw.uniform(b, BOXES - 1) < MORE_BOXES
    present = torch.cat([more.new_ones(b, 1), more], 1).cumprod(1).bool()
    inside = present.view(b, BOXES, *(1,) * len(size))
    for axis, n in enumerate(size):
        side = sides[0] + (sides[1] - sides[0]) * draw.uniform(b, BOXES, 1)
        start = draw.uniform(b, BOXES, 1) * (1 - side)
        centre = (torch.arange(n, device=side.device) + 0.5) / n
        within = (centre >= start) & (centre < start + side)
        inside = inside & within.view(b, BOXES, *(n if k == axis else 1 for k in range(len(size))))
    return inside.any(1)


def _along(x: Tensor, axis: int, dim: int) -> Tensor:
    """``[b, n]`` laid along one of `dim` spatial axes."""
    return x.view(len(x), *(x.shape[1] if k == axis else 1 for k in range(dim)))


def _spread_out(x: Tensor, size: Sequence[int]) -> Tensor:
    """``[b]`` with an axis of one element per spatial axis."""
    return x.view(-1, *(1,) * len(size))
