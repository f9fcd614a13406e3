"""SimCLR: two views of an image against the rest of the batch (Chen et al. 2020, arXiv
2002.05709).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from MedSSLLib.data.batch import Batch
from MedSSLLib.losses.contrastive import info_nce
from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import Method, MethodContext
from MedSSLLib.methods.heads import HeadConfig, Heads, pooled, spread
from MedSSLLib.networks.unet import Encoder


class SimCLRConfig(HeadConfig):
    """Head and temperature of SimCLR."""

    temperature: float = Field(
        0.1, gt=0, description="Temperature of the softmax (SimCLR, table 5: 0.1)."
    )


class SimCLR(Method):
    """Image-level contrast on the globally averaged features of the deepest level, in 2D and 3D."""

    Config: ClassVar[type[SimCLRConfig]] = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, encoder: Encoder, config: SimCLRConfig, context: MethodContext) -> None:
        super().__init__(encoder, config, context)
        self.projectors = Heads(context.dim, encoder.widths[-1:], config)
        self._last: Tensor | None = None

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """NT-Xent over the samples of all processes."""
        (z,) = self.projectors([pooled(self.encoder(batch.images.flatten(0, 1))[-1])])
        z = self.context.gather(
            at_least_float32(z.flatten(1)).unflatten(0, (-1, batch.images.shape[1]))
        )
        self._last = z.detach()
        return {"contrast": info_nce(z, self.config.temperature)}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last batch: spread (0 = collapse), cosines, share of views that find their
        partner.
        """
        if self._last is None:
            return {}
        z = normalize(self._last, dim=2)
        n, views, _ = z.shape
        own = z.sum(1).square().sum()
        pairs = max(n * (n - 1) * views**2, 1)
        return {
            "feature_std": spread(self._last.flatten(0, 1)),
            "cosine": (own - n * views) / (n * views * (views - 1)),
            "cosine_mismatched": (z.sum((0, 1)).square().sum() - own) / pairs,
            "retrieval": partner_found(z),
        }


def partner_found(z: Tensor) -> Tensor:
    """Share of views ``[n, v, d]`` (unit length) whose nearest other view is of the same image, in
    [0, 1].
    """
    flat = z.flatten(0, 1)
    index = torch.arange(len(flat), device=z.device)
    similarity = (flat @ flat.T).masked_fill(index[:, None] == index, -2.0)
    same = similarity.argmax(1) // z.shape[1] == index // z.shape[1]
    return same.to(z.dtype).mean()
