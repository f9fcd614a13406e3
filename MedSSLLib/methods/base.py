"""What the trainer and the data side ask of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from MedSSLLib.config.lengths import Preset
from MedSSLLib.config.parts import Range
from MedSSLLib.data.batch import Batch
from MedSSLLib.losses.dice_ce import identity
from MedSSLLib.networks.unet import Encoder


class MethodConfig(BaseModel):
    """Fields shared by every pre-training method: which views it wants.

    Attributes:
        presets: what the method changes in a preset: ``{"paper": {"optimiser.lr": 0.1}}``, with any
            setting of the run, and ``options.NAME`` for one of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    presets: ClassVar[Mapping[Preset, Mapping[str, Any]]] = {}

    view_scale: Range = Field(
        (1.1, 1.4),
        description="Side of a view's crop box, relative to the patch (PGL re-implementation: "
        "1.1-1.4).",
    )
    view_of: Literal["patch", "image"] = Field(
        "patch",
        description="What view_scale is relative to: the patch, or as much of the image as has "
        "the patch's "
        "proportions. Not from the paper.",
    )
    min_overlap: float = Field(
        0.1, ge=0, le=1, description="Least overlap of two boxes, share of the smaller one."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a flip per axis (PGL: 0.5).")
    rotation: float = Field(
        0.0, ge=0, description="Largest rotation of a view in degrees. Not from the paper."
    )


@dataclass(frozen=True)
class MethodContext:
    """Facts about the data and the processes that a method may need.

    Attributes:
        dim: 2 or 3.
        channels: image channels.
        patch: patch size in voxels.
        meta: classes per meta label.
        gather: concatenates embeddings of all processes (autograd-aware).
        reduce: sums over all processes (autograd-aware).
        seed: seed of the method's own generators.
    """

    dim: int
    channels: int
    patch: tuple[int, ...]
    meta: dict[str, int] = field(default_factory=dict)
    gather: Callable[[Tensor], Tensor] = identity
    reduce: Callable[[Tensor], Tensor] = identity
    seed: int = 0


class GradientRule(Protocol):
    """Turns named losses into gradients: sets ``.grad`` of every parameter.

    `shared` are the encoder's parameters, `others` the rest; `reduce` averages a gradient over
    processes.
    """

    def __call__(
        self,
        losses: dict[str, Tensor],
        shared: list[nn.Parameter],
        others: list[nn.Parameter],
        reduce: Callable[[Tensor], Tensor],
    ) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Method(nn.Module):
    """A pre-training method: losses over a batch of views, and what changes after a step.

    Subclasses set `Config` and implement :meth:`losses`, which mutates nothing. `views` is the
    number of views of a sample; `needs_meta` asks for the meta-balanced sampler; without
    `intensity` views are only resampled; `auto_dim` is what the dimension "auto" means: "auto"
    decides by the spacing. `inner` is what of a view can be compared with the others (see
    ``views.meeting_boxes``), None for all of it.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: ClassVar[int] = 2
    intensity: ClassVar[bool] = True
    needs_meta: ClassVar[bool] = False
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    auto_dim: ClassVar[Literal["auto", "2d", "3d"]] = "auto"

    def __init__(self, encoder: Encoder, config: MethodConfig, context: MethodContext) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.context = context
        self.inner: np.ndarray | None = None

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named scalars to be minimised."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Update buffers (moving averages, queues) once the optimiser has stepped."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Detached 0-d tensors of the last :meth:`losses`."""
        return {}

    def notices(self) -> list[tuple[Literal["metric", "warning"], str]]:
        """Settings that come out otherwise than they are set: kind of event and sentence each."""
        return []

    def gradient_rule(self) -> GradientRule | None:
        """The method's own gradient rule; None is the plain sum."""
        return None
