"""Small networks on top of the encoder that pre-training discards: projectors, predictors, light
decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.layers.utils import get_norm_layer
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import MethodConfig
from MedSSLLib.networks.unet import Encoder, conv_nd, norm_spec


class HeadConfig(MethodConfig):
    """Size of projectors and predictors."""

    hidden: int = Field(
        512,
        ge=1,
        description="Hidden channels of a head (PGL re-implementation: 4096). Not from the paper.",
    )
    out: int = Field(
        128,
        ge=1,
        description="Output channels of a head (PGL re-implementation: 256). Not from the paper.",
    )
    head_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation inside a head; 'group' is independent of the batch and exact "
        "across "
        "processes. Not from the paper.",
    )


class Heads(nn.ModuleList):
    """One head a feature map: 1x1 convolution to `hidden`, normalisation, ReLU, 1x1 convolution to
    `out`.
    """

    def __init__(self, dim: int, widths: Sequence[int], config: HeadConfig) -> None:
        super().__init__(_head(dim, width, config) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps ``[b, c_i, *s_i]`` to ``[b, out, *s_i]`` each."""
        return [head(x) for head, x in zip(self, maps, strict=True)]


def _head(dim: int, inputs: int, config: HeadConfig) -> nn.Sequential:
    conv = conv_nd(dim)
    return nn.Sequential(
        conv(inputs, config.hidden, 1, bias=False),
        get_norm_layer(norm_spec(config.head_norm, config.hidden), dim, config.hidden),
        nn.ReLU(inplace=True),
        conv(config.hidden, config.out, 1),
    )


class LightDecoder(nn.Module):
    """Encoder features to an image at full resolution: few channels a level, summed from coarse to
    fine.

    Args:
        encoder: the encoder whose feature maps come in.
        channels: channels of the image.
        width: channels inside.
    """

    def __init__(self, encoder: Encoder, channels: int, width: int) -> None:
        super().__init__()
        conv = conv_nd(encoder.dim)
        self.mode = {2: "bilinear", 3: "trilinear"}[encoder.dim]
        self.lateral = nn.ModuleList(conv(inputs, width, 1) for inputs in encoder.widths)
        self.last = nn.Sequential(
            conv(width, width, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            conv(width, channels, 1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, finest first, to ``[b, channels, *s]`` at the size of the first."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        x = maps[-1]
        for finer in maps[-2::-1]:
            x = finer + interpolate(x, list(finer.shape[2:]), mode=self.mode, align_corners=False)
        return self.last(x)


def pooled(x: Tensor) -> Tensor:
    """Global average, keeping the axes: ``[b, c, *s]`` to ``[b, c, 1, ...]``."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Standard deviation of L2-normalised ``[n, c, *s]`` over all places, channel mean times
    ``sqrt(c)``.

    About 1 for vectors that point everywhere, 0 when all are alike (collapse; SimSiam, arXiv
    2011.10566).
    """
    unit = normalize(at_least_float32(x), dim=1)
    return unit.movedim(1, -1).flatten(0, -2).std(0, correction=0).mean() * x.shape[1] ** 0.5
