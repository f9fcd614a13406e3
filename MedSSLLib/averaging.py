"""Exponential moving average of a module's weights, the copy that is kept and used for prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages all floating-point tensors of a module, buffers included.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that short runs forget their start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = [t for t in module.state_dict(keep_vars=True).values() if t.is_floating_point()]
        self._names = [n for n, t in module.state_dict(keep_vars=True).items() if t.is_floating_point()]
        self._average = [t.detach().clone() for t in self._live]

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
        return dict(zip(self._names, self._average, strict=True)) | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        self.updates = int(state["updates"])
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[name])
