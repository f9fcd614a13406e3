"""Moving-average targets: a copy of a module that follows it without gradients (BYOL, arXiv 2006.07733)."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(module: AnyModule) -> AnyModule:
    """A copy without gradients whose forward pass changes nothing.

    Batch normalisation keeps using the statistics of its own batch, as in BYOL, but leaves its running ones
    to :func:`ema_update`.
    """
    copy = deepcopy(module).requires_grad_(False)
    for part in copy.modules():
        if isinstance(part, BATCH_NORMS):
            part.track_running_stats = False
    return copy


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """``target <- momentum * target + (1 - momentum) * online`` for weights and buffers; copies integers."""
    pairs = [*_pairs(target.parameters(), online.parameters()), *_pairs(target.buffers(), online.buffers())]
    averaged = [(t, o) for t, o in pairs if t.is_floating_point()]
    if averaged:
        torch._foreach_lerp_([t for t, _ in averaged], [o for _, o in averaged], 1 - momentum)
    for t, o in pairs:
        if not t.is_floating_point():
            t.copy_(o)


def momentum_at(progress: float, base: float) -> float:
    """BYOL's schedule ``1 - (1 - base) (cos(pi t / T) + 1) / 2``: `base` at progress 0, 1 at the end."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def _pairs(targets: object, onlines: object) -> list[tuple[Tensor, Tensor]]:
    return list(zip(targets, onlines, strict=True))  # type: ignore[call-overload]
