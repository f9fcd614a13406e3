"""Template: two views of an image lie close together, and images stay apart (describe your idea
here, with its paper).

As it stands these are two of the three terms of VICReg (Bardes, Ponce, LeCun 2022, arXiv
2105.04906). The name of a method is that of its class in small letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from MedSSLLib.config.lengths import Preset
from MedSSLLib.data.batch import Batch
from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import Method, MethodContext
from MedSSLLib.methods.heads import HeadConfig, Heads, pooled, spread
from MedSSLLib.networks.unet import Encoder


class TemplateConfig(HeadConfig):
    """Settings, frozen and checked. Users change them with ``--set options.NAME=VALUE``."""

    # what the method changes in a preset (quick, standard, overnight, paper)
    presets: ClassVar[Mapping[Preset, Mapping[str, Any]]] = {"paper": {"options.hidden": 2048}}

    variance_weight: float = Field(
        1.0, ge=0, description="Weight of the variance against the agreement (VICReg: 1)."
    )


class Template(Method):
    """One vector an image, from the globally averaged features of the deepest level."""

    Config: ClassVar[type[TemplateConfig]] = TemplateConfig
    config: TemplateConfig

    def __init__(self, encoder: Encoder, config: TemplateConfig, context: MethodContext) -> None:
        super().__init__(encoder, config, context)
        self.projectors = Heads(context.dim, encoder.widths[-1:], config)
        self._last: Tensor | None = None

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named numbers to be minimised: they are added up. Changes nothing but `_last`."""
        images = batch.images.flatten(0, 1)  # [samples * views, channels, *patch]
        (z,) = self.projectors([pooled(self.encoder(images)[-1])])
        z = at_least_float32(z.flatten(1)).unflatten(0, (-1, batch.images.shape[1]))
        z = self.context.gather(z)  # [samples of all processes, views, out]
        self._last = z.detach()
        first, second = z.unbind(1)
        variance = low_variance(first) + low_variance(second)
        return {
            "agreement": (first - second).square().mean(),
            "variance": self.config.variance_weight * variance,
        }

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """What to watch: a ``feature_std`` near 0 means collapse, and stops the run."""
        return {} if self._last is None else {"feature_std": spread(self._last.flatten(0, 1))}


def low_variance(z: Tensor) -> Tensor:
    """How far the standard deviations of embeddings ``[n, d]`` are below 1, mean over channels.

    VICReg, eq. 1: ``mean_j max(0, 1 - sqrt(var(z_j) + 1e-4))``, in [0, 1].
    """
    deviation = (z.var(0) + 1e-4).sqrt()
    return (1 - deviation).clamp_min(0).mean()
