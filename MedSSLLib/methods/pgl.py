"""PGL: prior-guided local consistency (Xie, Zhang, Liao, Xia, Shen 2020, arXiv 2011.12640), in 2D
and 3D.

``L = mean over places of [2 - 2 cos(q(A(z_1)), sg A(z_2'))]`` plus the term with the views
exchanged, where A cuts the part that both views share out of their feature maps and undoes flips
(:mod:`MedSSLLib.networks.alignment`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from MedSSLLib.config.lengths import Preset
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.bootstrap import Bootstrap, BootstrapConfig
from MedSSLLib.networks.alignment import Aligned, WindowBoxes, align, common_box
from MedSSLLib.networks.unet import Encoder


class PGLConfig(BootstrapConfig):
    """Levels, alignment and ablation switches of PGL."""

    # those of its re-implementation, momentum and decay those of BYOL; 16 micro-batches of 8
    # samples, because batch norm there sees those 8
    presets: ClassVar[Mapping[Preset, Mapping[str, Any]]] = {
        "paper": {
            "optimiser.name": "lars",
            "optimiser.lr": 0.2,
            "optimiser.warmup": 2 / 500,
            "optimiser.weight_decay": 1.5e-6,
            "training.batch": 128,
            "training.accumulate": 16,
            "training.voxels": 16 * 96 * 96,
            "options.hidden": 4096,
            "options.out": 256,
            "options.momentum": 0.996,
            "augment.contrast": 0.0,
            "augment.low_resolution": 0.0,
        }
    }

    levels: tuple[int, ...] = Field(
        (-1,),
        min_length=1,
        description="Encoder levels that are compared, 0 = finest, -1 = deepest; several terms "
        "are added up. "
        "Levels below the deepest one chosen stay untrained. Not from the paper.",
    )
    bins: int | None = Field(
        None,
        ge=1,
        description="Bins per axis of the common region; None = the voxels of the map. Not from "
        "the paper.",
    )
    samples: int = Field(
        2, ge=1, description="Sampling points per bin and axis. Not from the paper."
    )
    align_after: Literal["projector", "predictor"] = Field(
        "projector", description="Which online output is aligned. Not from the paper."
    )
    use_scale_prior: bool = Field(
        True,
        description="Crop and scale prior; without it the whole maps are compared position by "
        "position.",
    )
    use_flip_prior: bool = Field(
        True, description="Flip prior; without it the alignment takes every view for unflipped."
    )
    rotation: float = Field(
        0.0, ge=0, le=0, description="Always 0: the alignment knows boxes and flips."
    )


class PGL(Bootstrap):
    """Local consistency of two views at the places that both show.

    Raises:
        InputError: a level does not exist, or its map has fewer than two voxels along an axis.
    """

    Config: ClassVar[type[PGLConfig]] = PGLConfig
    config: PGLConfig
    extents: Tensor

    def __init__(self, encoder: Encoder, config: PGLConfig, context: MethodContext) -> None:
        levels = _checked_levels(config, len(encoder.widths))
        super().__init__(encoder, config, context, levels)
        extents = [map_extents(encoder, context.patch, level) for level in levels]
        self.register_buffer("extents", torch.tensor(extents), persistent=False)
        self.inner = np.asarray(extents)[:, 1] if config.use_scale_prior else None

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps of the chosen levels."""
        return [maps[level] for level in self.levels]

    def places(self, x: Tensor, geometry: ViewGeometry | None, index: int) -> Aligned:
        """The region that a sample's views share, bin by bin; without the scale prior the whole
        maps.

        Of the region only what lies between the outer voxel centres of all views' maps is cut into
        bins. The rest, at the deepest level most of it, would be extrapolated in one of them, and
        masked. Samples that have no such region are masked.
        """
        assert geometry is not None, "PGL needs the geometry of its views"
        flip = geometry.flip.flatten(0, 1)
        if not self.config.use_flip_prior:
            flip = torch.zeros_like(flip)
        own, inner = (_boxes(geometry, flip, extent) for extent in self.extents[index].unbind())
        if not self.config.use_scale_prior:
            return align(x, own, own, flip, x.shape[2:], samples=1)
        shared = common_box(WindowBoxes(*(edge.unflatten(0, (-1, self.views)) for edge in inner)))
        shared = WindowBoxes(*(edge.repeat_interleave(self.views, 0) for edge in shared))
        bins = x.shape[2:] if self.config.bins is None else [self.config.bins] * (x.dim() - 2)
        return align(x, own, shared, flip, bins, self.config.samples)

    def predict(self, z: Tensor, geometry: ViewGeometry | None, index: int) -> Aligned:
        """Prediction after or before the alignment; they differ, because a predictor is not
        linear.
        """
        if self.config.align_after == "projector":
            return super().predict(z, geometry, index)
        return self.places(self.predictors[index](z), geometry, index)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """Besides, ``shared``: share of the places that could be compared (mean over levels).

        Of views that overlap little nothing can: between the outer voxel centres of a small map
        they do not meet.
        """
        shown = super().diagnostics()
        if shown:
            shown["shared"] = torch.stack(
                [at_least_float32(level.weight).mean() for level in self._last]
            ).mean()
        return shown


def map_extents(encoder: Encoder, patch: tuple[int, ...], level: int) -> list[list[list[float]]]:
    """Two boxes as shares of the patch, ``[2, 2, s]``: of a level's feature map, and of its outer
    voxel centres.

    A strided convolution of width 3 with padding 1 has its first output centred on the *first*
    input voxel, not on the first pair. At total stride T a map thus lies ``(T - 1) / 2`` voxels to
    the low side of the
    patch: nearly half a feature voxel, and in a flipped view to the other side of the anatomy.

    Raises:
        InputError: the map has fewer than two voxels along an axis: nothing to interpolate between.
    """
    sizes, strides = list(patch), [1] * len(patch)
    for stride in encoder.strides[: level + 1]:
        sizes = [-(-n // factor) for n, factor in zip(sizes, stride, strict=True)]
        strides = [total * factor for total, factor in zip(strides, stride, strict=True)]
    if min(sizes) < 2:
        raise InputError(
            f"the feature map of level {level} is {' x '.join(map(str, sizes))} for a patch of "
            f"{' x '.join(map(str, patch))}: too small to align",
            remedy="Choose a finer level (options.levels) or a larger patch (training.voxels)",
        )
    start, stop, first, last = [], [], [], []
    for size, total, n in zip(sizes, strides, patch, strict=True):
        offset = (1 - total) / 2  # of the map's low edge, in voxels of the patch
        start.append(offset / n)
        stop.append((offset + size * total) / n)
        first.append(0.5 / n)
        last.append(((size - 1) * total + 0.5) / n)
    return [[start, stop], [first, last]]


def _boxes(geometry: ViewGeometry, flip: Tensor, extent: Tensor) -> WindowBoxes:
    """What takes up the fraction `extent` ``[2, s]`` of each view: boxes ``[b*v, s]`` in voxels."""
    lo, hi = geometry.lo.flatten(0, 1), geometry.hi.flatten(0, 1)
    start, stop = (extent.to(lo.dtype) * (hi - lo)[:, None]).unbind(1)
    return WindowBoxes(
        torch.where(flip > 0, hi - stop, lo + start), torch.where(flip > 0, hi - start, lo + stop)
    )


def _checked_levels(config: PGLConfig, depth: int) -> list[int]:
    """Levels counted from the finest, in that order."""
    if any(not -depth <= level < depth for level in config.levels):
        raise InputError(
            f"levels {list(config.levels)} do not exist in an encoder of {depth} levels",
            remedy=f"Choose options.levels from {-depth} to {depth - 1}",
        )
    return sorted({level % depth for level in config.levels})
