"""Groups of settings that several commands share: network, optimiser, augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0)]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("falling", "must begin with the smaller number")
    return pair


Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
Width = Annotated[int, Field(ge=1, le=4096)]


class Frozen(BaseModel):
    """An immutable configuration that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkConfig(Frozen):
    """U-Net size; the encoder is what pre-training hands to segmentation."""

    widths: tuple[Width, ...] = Field(
        (16, 32, 64, 128, 128),
        min_length=2,
        max_length=8,
        description="Channels per level, finest first.",
    )
    norm: Literal["batch", "group", "instance"] = Field(
        "batch",
        description="Normalisation layer; 'group' is exact across processes. Not from the paper.",
    )
    deep_supervision: bool = Field(
        False, description="Segmentation loss on coarser decoder levels too."
    )


class OptimiserConfig(Frozen):
    """Optimiser and its schedule: linear warm-up, then cosine to zero."""

    name: Literal["adamw", "sgd", "lars"] = Field(
        "adamw", description="Optimiser. Not from the paper."
    )
    lr: float = Field(2e-3, gt=0, description="Peak learning rate. Not from the paper.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled for adamw. Not from the paper.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd and lars.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of the run spent warming up. Not from the paper."
    )
    encoder_lr: float = Field(
        1.0, ge=0, description="Factor on the rate of a transferred encoder; 0 freezes it."
    )
    clip: float = Field(5.0, ge=0, description="Gradient norm limit, 0 = none. Not from the paper.")


_ROTATION = {2: 45.0, 3: 15.0}
_ZOOM = {2: (0.65, 1.5), 3: (0.8, 1.25)}


class AugmentConfig(Frozen):
    """Random views, made on the device in one resampling.

    Ranges are not from the papers unless said. Probabilities are not from the papers, but those of
    noise, brightness and gamma in pre-training, which are the PGL code's.
    """

    flip: float = Field(0.0, ge=0, le=1, description="Probability of a flip per axis.")
    rotation: float | None = Field(
        None,
        ge=0,
        description="Largest rotation in degrees; None = 45 for slices, 15 for volumes (local "
        "contrast paper: 15).",
    )
    scale: Range | None = Field(
        None,
        description="Range of the zoom, p as `affine`; None = 0.65 to 1.5 for slices, 0.8 to 1.25 "
        "for volumes.",
    )
    affine: float = Field(0.8, ge=0, le=1, description="Probability of rotation and scaling.")
    elastic: float = Field(0.3, ge=0, le=1, description="Probability of a smooth deformation.")
    elastic_size: float = Field(
        0.04, ge=0, description="Standard deviation of its displacement, share of the patch."
    )
    noise: float = Field(
        0.3, ge=0, le=1, description="Probability of noise, variance U(0, 0.1) (range: PGL code)."
    )
    blur: float = Field(
        0.2, ge=0, le=1, description="Probability of a blur, sigma 0.5-1 voxels (PGL code)."
    )
    brightness: float = Field(
        0.8, ge=0, le=1, description="Probability of a factor 0.75-1.25 (range: PGL code)."
    )
    contrast: float = Field(
        0.8, ge=0, le=1, description="Probability of contrast 0.7-1.3 (local contrast code)."
    )
    gamma: float = Field(
        0.8, ge=0, le=1, description="Probability of gamma 0.7-1.5 (range: PGL code)."
    )
    low_resolution: float = Field(
        0.15, ge=0, le=1, description="Probability of simulated low resolution, 1-2 x."
    )

    def largest_rotation(self, dim: int) -> float:
        """Degrees, for slices (2) or volumes (3)."""
        return _ROTATION[dim] if self.rotation is None else self.rotation

    def zoom(self, dim: int) -> tuple[float, float]:
        """Range of the zoom, for slices (2) or volumes (3)."""
        return _ZOOM[dim] if self.scale is None else self.scale
