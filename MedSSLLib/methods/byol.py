"""BYOL: global consistency of two views, no negatives (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.bootstrap import Bootstrap, BootstrapConfig
from MedSSLLib.methods.heads import pooled
from MedSSLLib.networks.alignment import Aligned
from MedSSLLib.networks.unet import Encoder


class BYOLConfig(BootstrapConfig):
    """BYOL on the globally averaged features of the deepest level: PGL without its local part."""


class BYOL(Bootstrap):
    """One vector a view; the views' geometry is not used."""

    Config: ClassVar[type[BYOLConfig]] = BYOLConfig

    def __init__(self, encoder: Encoder, config: BYOLConfig, context: MethodContext) -> None:
        super().__init__(encoder, config, context, [len(encoder.widths) - 1])

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """The deepest map, averaged over space: ``[b*v, c, 1, ...]``."""
        return [pooled(maps[-1])]

    def places(self, x: Tensor, geometry: ViewGeometry | None, index: int) -> Aligned:
        """The single place of a view."""
        return Aligned(x, x.new_ones(len(x), 1, *x.shape[2:]))
