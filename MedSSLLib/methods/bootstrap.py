"""What PGL and BYOL share: an online branch that predicts its own moving average on the other
view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from MedSSLLib.data.batch import Batch
from MedSSLLib.data.spatial import ViewGeometry
from MedSSLLib.losses.dice_ce import cosine_regression
from MedSSLLib.losses.precision import at_least_float32
from MedSSLLib.methods.base import Method, MethodContext
from MedSSLLib.methods.heads import HeadConfig, Heads, spread
from MedSSLLib.networks.alignment import Aligned
from MedSSLLib.networks.ema import ema_update, frozen_copy, momentum_at
from MedSSLLib.networks.unet import Encoder


class BootstrapConfig(HeadConfig):
    """Heads and moving average of a bootstrapped method."""

    momentum: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Momentum of the target at the start, rising to 1. BYOL has 0.996 for 10^5 "
        "steps and more; in n "
        "steps about exp(-n (1 - momentum) / 2) of the random start is left in the target: 0.95 "
        "for a few hundred, "
        "0.99 for a few thousand. Not from the PGL paper.",
    )


class _Compared(NamedTuple):
    """What the loss compares: predictions and targets ``[b*v, c, *n]``, weight ``[b*v, *n]``,
    projections.
    """

    prediction: Tensor
    target: Tensor
    weight: Tensor
    projection: Tensor


class Bootstrap(Method):
    """Online (encoder, projector, predictor) against a moving-average target (encoder, projector).

    Subclasses say which features are projected (:meth:`features`) and how the projections of a
    sample's views are brought to the same places (:meth:`places`).
    """

    Config: ClassVar[type[BootstrapConfig]] = BootstrapConfig
    config: BootstrapConfig

    def __init__(
        self,
        encoder: Encoder,
        config: BootstrapConfig,
        context: MethodContext,
        levels: Sequence[int],
    ) -> None:
        super().__init__(encoder, config, context)
        self.levels = tuple(levels)
        widths = [encoder.widths[level] for level in self.levels]
        self.projectors = Heads(context.dim, widths, config)
        self.predictors = Heads(context.dim, [config.out] * len(widths), config)
        self.target_encoder = frozen_copy(encoder)
        self.target_projectors = frozen_copy(self.projectors)
        self._momentum = config.momentum
        self._last: list[_Compared] = []

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """Of the encoder's maps, finest first, those that are projected."""
        raise NotImplementedError

    def places(self, x: Tensor, geometry: ViewGeometry | None, index: int) -> Aligned:
        """``[b*v, c, *s]`` of the level `index` at places that mean the same in all views of a
        sample.
        """
        raise NotImplementedError

    def compared(self, batch: Batch) -> list[_Compared]:
        """Per level: prediction, target of the *other* view, and weight of each place."""
        images = batch.images.flatten(0, 1)
        projections = self.projectors(self.features(self.encoder(images)))
        with torch.no_grad():
            targets = self.target_projectors(self.features(self.target_encoder(images)))
        results = []
        for index, (z, z_target) in enumerate(zip(projections, targets, strict=True)):
            prediction, mask = self.predict(z, batch.geometry, index)
            features, target_mask = self.places(z_target, batch.geometry, index)
            target = Aligned(
                _other_view(features, self.views), _other_view(target_mask, self.views)
            )
            results.append(
                _Compared(prediction, target.features, (mask * target.mask).squeeze(1), z)
            )
        return results

    def predict(self, z: Tensor, geometry: ViewGeometry | None, index: int) -> Aligned:
        """The online projections of the level `index`, brought to their places, then predicted
        from.
        """
        aligned = self.places(z, geometry, index)
        return Aligned(self.predictors[index](aligned.features), aligned.mask)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Per level ``mean_places [2 - 2 cos(q(z_1), sg z_2')]`` plus the same with views
        swapped.
        """
        levels = self.compared(batch)
        self._last = [_Compared(*(x.detach() for x in level)) for level in levels]
        if len(levels) == 1:
            return {"consistency": self._consistency(levels[0])}
        losses = {}
        for number, level in zip(self.levels, levels, strict=True):
            losses[f"consistency_{number}"] = self._consistency(level)
        return losses

    def _consistency(self, level: _Compared) -> Tensor:
        distance = cosine_regression(
            at_least_float32(level.prediction), at_least_float32(level.target)
        )
        weight = level.weight.to(distance.dtype)
        total, count = self.context.reduce(torch.stack([(distance * weight).sum(), weight.sum()]))
        return self.views * total / count.clamp_min(1)

    def after_step(self, progress: float) -> None:
        """Move the target towards the online branch."""
        self._momentum = momentum_at(progress, self.config.momentum)
        ema_update(self.target_encoder, self.encoder, self._momentum)
        ema_update(self.target_projectors, self.projectors, self._momentum)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last losses (mean over levels): spread of the projections, cosines, momentum of
        the target.

        ``feature_std`` near 0 means collapse. ``cosine`` is that of prediction and target at the
        same place, ``cosine_mismatched`` that with the target of another place, or sample where
        there is one place only.
        """
        if not self._last:
            return {}
        matched, other, spreads = [], [], []
        for level in self._last:
            x = _Compared(*map(at_least_float32, level))
            matched.append(_weighted(cosine_similarity(x.prediction, x.target), x.weight))
            other.append(_mismatched(x, self.views))
            spreads.append(spread(x.projection))
        return {
            "feature_std": torch.stack(spreads).mean(),
            "cosine": torch.stack(matched).mean(),
            "cosine_mismatched": torch.stack(other).mean(),
            "ema_momentum": torch.full_like(matched[0], self._momentum),
        }


def _other_view(x: Tensor, views: int) -> Tensor:
    """``[b*v, ...]`` with the views of each sample exchanged."""
    return x.unflatten(0, (-1, views)).flip(1).flatten(0, 1)


def _mismatched(level: _Compared, views: int) -> Tensor:
    target, weight = level.target.flatten(2), level.weight.flatten(1)
    places = weight.shape[1]
    shift, axis = (places // 2, -1) if places > 1 else (views, 0)
    cosine = cosine_similarity(level.prediction.flatten(2), target.roll(shift, axis))
    return _weighted(cosine, weight * weight.roll(shift, axis))


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp_min(1)
