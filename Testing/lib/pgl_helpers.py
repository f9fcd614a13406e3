"""What the tests of PGL share: a network that only samples, volumes of coordinates, small
methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from MedSSLLib.data.batch import Batch
from MedSSLLib.data.spatial import ViewGeometry, resample_views, sampling_grid
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.pgl import PGL, PGLConfig
from MedSSLLib.networks.unet import Encoder

PATCH = {2: (16, 32), 3: (8, 16, 16)}
STRIDES = {2: ((1, 1), (2, 2), (2, 2)), 3: ((1, 1, 1), (1, 2, 2), (2, 2, 2))}


class Pass(nn.Module):
    """Heads that do nothing."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return list(maps)


def sampling_encoder(dim: int) -> Encoder:
    """An encoder whose kernels pick their centre voxel: features are the image at every strided
    voxel, times 2^n.
    """
    channels = dim + 1
    encoder = Encoder(dim, channels, [channels] * 3, STRIDES[dim])
    for part in list(encoder.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d | nn.LeakyReLU):
                setattr(part, name, nn.Identity())
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            middle = tuple(k // 2 for k in part.kernel_size)
            nn.init.zeros_(part.weight)
            part.weight.data[(range(channels), range(channels), *middle)] = 1
    return encoder


def coordinate_batch(dim: int, seed: int, flips: list[Any]) -> Batch:
    """Views of a volume whose channels are the coordinates and a constant."""
    rng = np.random.default_rng(seed)
    n, patch = len(flips), np.array(PATCH[dim])
    size = tuple(int(2 * s) for s in patch)
    side = rng.uniform(1.1, 1.4, (n, 2, dim)) * patch
    lo = rng.uniform(0.5, 0.5 + 0.4 * patch, side.shape)
    geometry = ViewGeometry(
        torch.tensor(lo), torch.tensor(lo + side), torch.tensor(flips, dtype=torch.float64)
    )
    axes = torch.meshgrid(
        *(torch.arange(s, dtype=torch.float64) + 0.5 for s in size), indexing="ij"
    )
    volume = torch.stack([*axes, torch.full_like(axes[0], 10.0)])[None].expand(n, *[-1] * (dim + 1))
    views = resample_views(
        volume.repeat_interleave(2, 0), sampling_grid(geometry, size, PATCH[dim])
    )
    return Batch(views.unflatten(0, (-1, 2)), geometry)


def linear_pgl(dim: int, **options: Any) -> PGL:
    """PGL without learning: features are the image, heads are the identity."""
    config = PGLConfig(hidden=4, out=dim + 1, **options)
    method = PGL(sampling_encoder(dim), config, MethodContext(dim, dim + 1, PATCH[dim])).double()
    method.projectors = method.target_projectors = Pass()  # type: ignore[assignment]
    method.predictors = nn.ModuleList([nn.Identity() for _ in method.levels])  # type: ignore[assignment]
    return method


def random_batch(
    dim: int, b: int = 3, channels: int = 2, dtype: torch.dtype = torch.float64
) -> Batch:
    patch = torch.tensor(PATCH[dim], dtype=dtype)
    lo = torch.rand(b, 2, dim, dtype=dtype) * patch * 0.4
    hi = lo + (1.1 + 0.3 * torch.rand(b, 2, dim, dtype=dtype)) * patch
    flip = (torch.rand(b, 2, dim) < 0.5).to(dtype)
    return Batch(torch.randn(b, 2, channels, *PATCH[dim], dtype=dtype), ViewGeometry(lo, hi, flip))


def small_pgl(dim: int, norm: str = "batch", **options: Any) -> PGL:
    context = options.pop("context", MethodContext(dim, 2, PATCH[dim]))
    encoder = Encoder(dim, 2, (4, 6, 8), STRIDES[dim], norm)
    return PGL(
        encoder, PGLConfig(**{"hidden": 16, "out": 8, "head_norm": norm, **options}), context
    )
