"""U-Net parts in 2D and 3D from MONAI blocks: encoder, decoder, segmentation network.

The encoder stands alone, so that pre-training can train it and segmentation can take it over by
tensor name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock, UnetUpBlock
from torch import Tensor, nn

from MedSSLLib.config.run import NetworkConfig


def conv_nd(dim: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution class of a dimension (2 or 3)."""
    return nn.Conv2d if dim == 2 else nn.Conv3d


def norm_spec(norm: str, channels: int) -> str | tuple[str, dict[str, int | bool]]:
    """MONAI's normalisation argument; groups of at least 4 channels, at most 8 groups."""
    if norm == "group":
        return ("group", {"num_groups": max(1, min(8, channels // 4)), "affine": True})
    return (norm, {"affine": True})


_NARROW = 8  # channels of a block of oneDNN's AVX2 kernels


def _plain_layout(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a strided 1x1 convolution of few channels, with channels first.

    With channels last the gradient by its input is written past the end of the memory, on
    processors with AVX2 but not AVX512 (oneDNN in torch 2.13), and the process dies later.
    """
    return (inputs[0].contiguous(),)


class Encoder(nn.Module):
    """Residual convolutional encoder: one block a level, down-sampled by strided convolution.

    Args:
        dim: 2 or 3.
        in_channels: image channels.
        widths: channels per level, finest first.
        strides: per level, one factor per axis; the first level keeps full resolution.
        norm: 'batch', 'group' or 'instance'.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.dim, self.in_channels, self.norm = dim, in_channels, norm
        self.widths = tuple(widths)
        self.strides = tuple(tuple(stride) for stride in strides)
        inputs = (in_channels, *self.widths[:-1])
        self.stages = nn.ModuleList(
            UnetResBlock(dim, n_in, n_out, 3, stride, norm_spec(norm, n_out))
            for n_in, n_out, stride in zip(inputs, self.widths, self.strides, strict=True)
        )
        for n_in, stage in zip(inputs, self.stages, strict=True):
            if dim == 2 and n_in < _NARROW and stage.downsample:
                stage.get_submodule("conv3").register_forward_pre_hook(_plain_layout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[b, c, *s]`` to one feature map a level, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """U-Net decoder with skip connections over an :class:`Encoder`'s feature maps."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        widths, strides = encoder.widths, encoder.strides
        self.widths = widths[-2::-1]
        self.stages = nn.ModuleList(
            UnetUpBlock(
                encoder.dim, below, width, 3, stride, stride, norm_spec(encoder.norm, width)
            )
            for below, width, stride in zip(widths[:0:-1], self.widths, strides[:0:-1], strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Encoder features, finest first, to decoder features, coarsest first (the last is full
        resolution).
        """
        x, outputs = features[-1], []
        for stage, skip in zip(self.stages, features[-2::-1], strict=True):
            x = stage(x, skip)
            outputs.append(x)
        return outputs or [x]


class SegmentationNet(nn.Module):
    """Encoder, decoder and a 1x1 classifier; optional heads on coarser decoder levels."""

    def __init__(self, encoder: Encoder, classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(encoder)
        conv = conv_nd(encoder.dim)
        self.head = conv(encoder.widths[0], classes, 1)
        coarse = self.decoder.widths[-3:-1] if deep_supervision else ()
        self.coarse_heads = nn.ModuleList(conv(width, classes, 1) for width in coarse)

    def features(self, x: Tensor) -> list[Tensor]:
        """Decoder features, coarsest first, for images ``[b, c, *s]``."""
        return self.decoder(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[b, k, *s]`` at full resolution."""
        return self.head(self.features(x)[-1])

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Logits, finest first, with those of the coarser levels under deep supervision."""
        return self.logits_of(self.features(x))

    def logits_of(self, features: list[Tensor]) -> list[Tensor]:
        """Logits, finest first, from decoder features, coarsest first."""
        inner = features[-1 - len(self.coarse_heads) : -1]
        coarse = [head(feature) for head, feature in zip(self.coarse_heads, inner, strict=True)]
        return [self.head(features[-1]), *reversed(coarse)]


def build_encoder(
    dim: int, in_channels: int, strides: Sequence[Sequence[int]], config: NetworkConfig
) -> Encoder:
    """An encoder for a plan; when the plan has fewer levels than `widths`, the first widths are
    used.
    """
    return Encoder(
        dim, in_channels, config.widths[: len(strides)], strides[: len(config.widths)], config.norm
    )


def memory_format(dim: int) -> torch.memory_format:
    """Channels-last for the dimension: the quick layout on CPU and CUDA alike."""
    return torch.channels_last if dim == 2 else torch.channels_last_3d


def place(module: nn.Module, device: torch.device, dim: int) -> None:
    """Move a module to the device in the quick layout, in place."""
    module.to(device)
    module._apply(
        lambda t: t.contiguous(memory_format=memory_format(dim)) if t.dim() == dim + 2 else t
    )
