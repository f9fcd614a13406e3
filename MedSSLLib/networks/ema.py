"""Exponential moving average of a module's weights, the copy that is kept and used for
prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages all floating-point tensors of a module, buffers included.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that short runs
    forget their start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names: list[str] = []
        self._live: list[Tensor] = []
        self._average: list[Tensor] = []
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                self._names.append(name)
                self._live.append(tensor)
                self._average.append(tensor.detach().clone())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._live, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module carries the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        backup = [t.detach().clone() for t in self._live]
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, backup)

    def state_dict(self) -> dict[str, Tensor]:
        """Averaged tensors by name, and the number of updates."""
        return dict(zip(self._names, self._average, strict=True)) | {
            "updates": torch.tensor(self.updates)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        self.updates = int(state["updates"])
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[name])


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(module: AnyModule) -> AnyModule:
    """A copy without gradients whose forward pass changes nothing.

    Batch normalisation keeps using the statistics of its own batch, as in BYOL, but leaves its
    running ones to :func:`ema_update`.
    """
    copy = deepcopy(module).requires_grad_(False)
    for part in copy.modules():
        if isinstance(part, BATCH_NORMS):
            part.track_running_stats = False
    return copy


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """``target <- momentum * target + (1 - momentum) * online`` for weights and buffers; copies
    integers.
    """
    pairs = [
        *_pairs(target.parameters(), online.parameters()),
        *_pairs(target.buffers(), online.buffers()),
    ]
    averaged = [(t, o) for t, o in pairs if t.is_floating_point()]
    if averaged:
        torch._foreach_lerp_([t for t, _ in averaged], [o for _, o in averaged], 1 - momentum)
    for t, o in pairs:
        if not t.is_floating_point():
            t.copy_(o)


def momentum_at(progress: float, base: float) -> float:
    """BYOL's schedule ``1 - (1 - base) (cos(pi t / T) + 1) / 2``: `base` at progress 0, 1 at the
    end.
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def _pairs(targets: object, onlines: object) -> list[tuple[Tensor, Tensor]]:
    return list(zip(targets, onlines, strict=True))  # type: ignore[call-overload]
