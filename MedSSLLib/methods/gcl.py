"""GCL: contrastive learning guided by several meta labels (Wu et al. 2023, arXiv 2309.08888).

For every meta label an image-level loss (Eq. 1) and a pixel-level loss (Eqs. 5-8), summed (Eq. 9);
the labels' gradients meet in GradMitigator (Eqs. 2-4). The image head stands on the encoder's
deepest feature map, as in the paper; the pixel head on the deepest one with enough pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from MedSSLLib.config.lengths import Preset
from MedSSLLib.config.parts import Range
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.batch import Batch
from MedSSLLib.data.meta_labels import PATIENT
from MedSSLLib.data.random import noise_generator
from MedSSLLib.losses.contrastive import (
    Pace,
    choose_partner,
    filter_positives,
    fraction_with_positive,
    pixel_contrast,
    positive_gradients,
    positive_pairs,
    positive_pool,
    positives_in_use,
    retrieval,
    supervised_contrast,
)
from MedSSLLib.losses.gradient_rules import GradMitigator, SumGradients
from MedSSLLib.losses.precision import full_precision
from MedSSLLib.methods.base import GradientRule, Method, MethodConfig, MethodContext
from MedSSLLib.methods.heads import spread
from MedSSLLib.networks.unet import Encoder

# an image has at least so many pixels for each one in a pool of positives; not from the paper
POOL_FRACTION = 8
LEAST_PIXELS = 32  # of a view for the pixel loss: four of them are positives; not from the paper
INSTANCE = "instance"
"""Name of the objective without a meta label: the only positive is the image's other view
(SimCLR).
"""


class GCLConfig(MethodConfig):
    """Settings of GCL and its ablations.

    Meta labels speak of whole slices, so both views show most of the slice. Patients and positions
    were learnt from such views in a few hundred steps, and not from small flipped ones
    (Testing/bench/NOTES.md).
    """

    # the paper pre-trains with SGD and a cosine; rate and decay are those of the PosiCL code
    presets: ClassVar[Mapping[Preset, Mapping[str, Any]]] = {
        "paper": {
            "optimiser.name": "sgd",
            "optimiser.lr": 0.1,
            "optimiser.weight_decay": 1e-5,
            "options.pixel_level": -1,
        }
    }

    view_scale: Range = Field(
        (0.75, 1.0),
        description="Side of a view's crop box, relative to `view_of`. Not from the paper.",
    )
    view_of: Literal["patch", "image"] = Field(
        "image", description=MethodConfig.model_fields["view_of"].description
    )
    min_overlap: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Least overlap of two boxes, share of the smaller one. Not from the paper.",
    )
    flip: float = Field(
        0.0, ge=0, le=1, description="Probability of a flip per axis. Not from the paper."
    )
    meta: tuple[str, ...] = Field(
        (),
        description="Meta labels in use; empty = patient, position and the columns that add to "
        "them.",
    )
    instance: bool = Field(
        False,
        description="Add the objective without a meta label as one more perspective. Not from "
        "the paper.",
    )
    temperature: float = Field(
        0.1, gt=0, description="Temperature of all softmaxes. Not from the paper."
    )
    out: int = Field(128, ge=1, description="Output channels of both heads (GCL: 128).")
    image_level: int = Field(
        -1,
        description="Encoder level of the image head: 0 = finest, -1 = deepest, as in the paper.",
    )
    pixel_level: int | None = Field(
        None,
        description="Encoder level of the pixel head: 0 = finest, -1 = deepest, as in the paper; "
        "null = the deepest one with at least 32 pixels a view, as the paper's larger slices have "
        "there.",
    )
    pixel: bool = Field(True, description="Pixel loss (Eqs. 5-6); off for the ablation.")
    top_k: int = Field(
        8,
        ge=1,
        description="Pixels in the pool of positives, K; at most an eighth of the image. Not "
        "from the paper.",
    )
    anchors: int = Field(64, ge=1, description="Most anchor pixels a view. Not from the paper.")
    candidates: int = Field(
        1024,
        ge=2,
        description="Most pixels a view that may be positives or negatives. Not from the paper.",
    )
    grad_filter: bool = Field(True, description="GradFilter (Eqs. 7-8); off for the ablation.")
    pace: Pace = Field(
        "linear", description="How the positives in use grow to K. Not from the paper."
    )
    start: float = Field(
        0.0, ge=0, le=1, description="Share of K in use at the start. Not from the paper."
    )
    gradient: Literal["mitigator", "sum"] = Field(
        "mitigator",
        description="GradMitigator (Eqs. 3-4), or the naive average of the gradients (Eq. 2).",
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the new cosine in the target's average (Eq. 4). Not from the paper.",
    )


class ProjectionHead(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution; written as linear maps of pixels ``[..., c]``."""

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, inputs)
        self.last = nn.Linear(inputs, out)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels ``[..., c]`` to projections ``[..., out]``."""
        return self.last(self.first(x).relu())

    @torch.no_grad()
    @full_precision
    def pull_back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradients at the outputs of pixels ``x [..., c]`` to gradients at x.

        `gradient` is ``[..., k, out]``, k of them a pixel; the result ``[..., k, c]``.
        """
        active = (self.first(x) > 0).unsqueeze(-2)
        return (gradient @ self.last.weight * active) @ self.first.weight


@dataclass(frozen=True)
class _Pixels:
    """The same randomly ordered pixels of n views: in the image-projection space, as features,
    projected.
    """

    affinity: Tensor  # (n, s, d)
    features: Tensor  # (n, s, c)
    projection: Tensor  # (n, s, d)


class GCL(Method):
    """Contrastive pre-training under several meta labels.

    One objective a label and M backward passes through one forward pass. Cost of the pixel loss a
    label, for n views: affinities and similarities ``n x anchors x candidates`` and filter
    gradients ``n x anchors x top_k x 128`` floats (at most 64 x 64 x 1024 and 64 x 64 x 8 x 128 for
    64 views by default: 16 MiB each). Image embeddings are gathered over processes; pixels meet
    those of their own process.
    """

    Config: ClassVar[type[GCLConfig]] = GCLConfig
    config: GCLConfig
    needs_meta: ClassVar[bool] = True
    auto_dim: ClassVar[Literal["auto", "2d", "3d"]] = "2d"

    def __init__(self, encoder: Encoder, config: GCLConfig, context: MethodContext) -> None:
        """Raises InputError when no wanted label is usable, or for a level that the encoder
        lacks.
        """
        super().__init__(encoder, config, context)
        self.labels = _labels(config, context)
        self.image_level = _level(config.image_level, encoder, "image_level")
        self.pixel_level = (
            enough_pixels(context.patch, encoder)
            if config.pixel_level is None
            else _level(config.pixel_level, encoder, "pixel_level")
        )
        self.image_head = ProjectionHead(encoder.widths[self.image_level], config.out)
        if config.pixel:
            self.pixel_head = ProjectionHead(encoder.widths[self.pixel_level], config.out)
            self.pixels = math.prod(map_shape(context.patch, encoder, self.pixel_level))
            self.top_k = pool_limit(config.top_k, min(config.candidates, self.pixels))
        mitigate = config.gradient == "mitigator"
        self._rule = (
            GradMitigator(config.beta, context.seed) if mitigate else SumGradients(average=True)
        )
        self._measured: dict[str, Tensor] = {}

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Eq. 9: one loss a meta label, image and pixel part together."""
        n, views = batch.images.shape[:2]
        device = batch.images.device
        generator = noise_generator(device, self.context.seed + int(progress * 2**40))
        maps = self.encoder(batch.images.flatten(0, 1))
        image_map = self.image_head(_channels_last(maps[self.image_level]))  # (n v, *s, d)
        z = self.context.gather(image_map.flatten(1, -2).mean(1).unflatten(0, (n, views)))
        pixels = (
            self._pixels(image_map, maps[self.pixel_level], generator)
            if self.config.pixel
            else None
        )
        losses, self._measured = {}, {"feature_std": spread(z.detach().flatten(0, 1))}
        patients = self.context.gather(batch.meta[PATIENT]) if PATIENT in batch.meta else None
        for name in self.labels:
            labels = None if name == INSTANCE else batch.meta[name]
            losses[name] = self._image_loss(name, z, labels, patients)
            if pixels is not None:
                positive = positive_pairs(labels, n, views, device)
                noise = torch.rand(positive.shape, generator=generator, device=device)
                losses[name] = losses[name] + self._pixel_loss(
                    pixels, choose_partner(positive, noise), progress
                )
        return losses

    def diagnostics(self) -> dict[str, Tensor]:
        """Spread of embeddings; per label retrieval and shares with a positive; pool; relations of
        gradients.
        """
        rule = {f"gradient/{name}": value for name, value in self._rule.diagnostics().items()}
        return {**self._measured, **rule}

    def notices(self) -> list[tuple[Literal["metric", "warning"], str]]:
        """How many positives an anchor pixel has, where that is fewer than set, or leaves
        GradFilter no choice.
        """
        if not self.config.pixel:
            return []
        k, wanted = self.top_k, self.config.top_k
        reason = (
            f"a view has {self.pixels} pixels at options.pixel_level, "
            f"at most one in {POOL_FRACTION} is a positive"
        )
        capped = f"Setting options.top_k is {wanted}, {k} in use: {reason}." if k < wanted else ""
        if k > 1 or not self.config.grad_filter:
            return [("metric", capped)] if capped else []
        remedy = (
            "Use larger views (training.voxels) or a finer pixel_level"
            if capped
            else "Raise options.top_k"
        )
        return [
            (
                "warning",
                f"{capped} GradFilter has nothing to choose from: one positive a pixel. "
                f"{remedy}.".strip(),
            )
        ]

    def gradient_rule(self) -> GradientRule | None:
        """GradMitigator, or the plain average for the ablation."""
        return self._rule

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Image embeddings ``[n, out]``, not normalised, of images ``[n, c, *s]``."""
        return (
            self.image_head(_channels_last(self.encoder(images)[self.image_level]))
            .flatten(1, -2)
            .mean(1)
        )

    def _image_loss(
        self, name: str, z: Tensor, labels: Tensor | None, patients: Tensor | None
    ) -> Tensor:
        """Eq. 1 over all processes; measures how well the label is recognised."""
        if labels is None:
            return supervised_contrast(z, None, self.config.temperature)
        labels = self.context.gather(labels)
        self._measured[f"retrieval/{name}"] = retrieval(z, labels)
        self._measured[f"with_positive/{name}"] = fraction_with_positive(labels)
        if patients is not None and name != PATIENT:
            share = fraction_with_positive(labels, patients)
            self._measured[f"positive_in_another_patient/{name}"] = share
        return supervised_contrast(z, labels, self.config.temperature)

    def _pixels(
        self, image_map: Tensor, features: Tensor, generator: torch.Generator | None
    ) -> _Pixels:
        """At most `candidates` random pixels a view, with the nearest pixels of the image map."""
        shape = features.shape[2:]
        features = _channels_last(features).flatten(1, -2)  # (n, s, c)
        noise = torch.rand(features.shape[:2], generator=generator, device=features.device)
        index = noise.argsort(1)[:, : self.config.candidates]
        features = _take(features, index)
        coarse = nearest_index(index, shape, image_map.shape[1:-1])
        affinity = _take(image_map.detach().flatten(1, -2), coarse)
        return _Pixels(affinity, features, self.pixel_head(features))

    def _pixel_loss(self, pixels: _Pixels, partner: Tensor, progress: float) -> Tensor:
        """Eqs. 5-8 for all views at once, each against its partner view."""
        config, a = self.config, self.config.anchors
        anchors, others = pixels.projection[:, :a], pixels.projection[partner]
        size = pool_limit(config.top_k, others.shape[1])
        pool = positive_pool(pixels.affinity[:, :a], pixels.affinity[partner], size)
        kept, dropped = pool, pool[..., :0]
        if config.grad_filter:
            gradient = positive_gradients(anchors, others, pool, config.temperature)
            gradient = self.pixel_head.pull_back(pixels.features[:, :a].detach(), gradient)
            kept, dropped = filter_positives(
                pool, gradient, positives_in_use(size, progress, config.start, config.pace)
            )
        self._measured["pool"] = torch.full(
            (), kept.shape[2], dtype=torch.float32, device=kept.device
        )
        return pixel_contrast(anchors, others, kept, dropped, config.temperature)


def pool_limit(top_k: int, pixels: int) -> int:
    """Positives of an anchor pixel: ``top_k``, at most one in POOL_FRACTION of the other image's
    pixels, at least one.
    """
    return max(1, min(top_k, pixels // POOL_FRACTION))


def map_shape(patch: Sequence[int], encoder: Encoder, level: int) -> tuple[int, ...]:
    """Shape of the encoder's feature map of a level, for views of a shape."""
    shape = tuple(patch)
    for stride in encoder.strides[: level + 1]:
        shape = tuple(-(-size // step) for size, step in zip(shape, stride, strict=True))
    return shape


def enough_pixels(patch: Sequence[int], encoder: Encoder) -> int:
    """The deepest level with at least LEAST_PIXELS pixels of a view; 0 where none has."""
    levels = range(len(encoder.widths))
    return max(
        (level for level in levels if math.prod(map_shape(patch, encoder, level)) >= LEAST_PIXELS),
        default=0,
    )


def nearest_index(index: Tensor, shape: Sequence[int], other: Sequence[int]) -> Tensor:
    """Flat indices into a grid of `shape` to those of the nearest pixels of a grid of `other`
    shape.
    """
    result, scale = torch.zeros_like(index), 1
    for size, other_size in zip(reversed(shape), reversed(other), strict=True):
        result = result + scale * ((2 * (index % size) + 1) * other_size // (2 * size))
        index, scale = index // size, scale * other_size
    return result


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Pixels ``[n, s, c]`` at ``index [n, k]``."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _labels(config: GCLConfig, context: MethodContext) -> tuple[str, ...]:
    """The wanted labels among the usable ones; `build_metalabels` has said why others are not."""
    names = tuple(name for name in config.meta or context.meta if name in context.meta)
    if not names and (config.meta or not config.instance):
        wanted = "no meta label is usable"
        if config.meta:
            wanted = f"meta label {', '.join(config.meta)} cannot be used"
        raise InputError(
            f"{wanted}, and GCL learns from them",
            remedy=f"Usable labels: {', '.join(context.meta) or 'none'}. Slices (--dim 2d) always "
            "have a position; without labels use --method simclr",
        )
    return (*names, INSTANCE) if config.instance else names


def _level(level: int, encoder: Encoder, field: str) -> int:
    count = len(encoder.widths)
    if not -count <= level < count:
        raise InputError(f"{field} {level} does not exist", remedy=f"Use {-count} to {count - 1}.")
    return level % count
