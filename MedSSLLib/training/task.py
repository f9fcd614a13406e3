"""What the training loop asks of whatever is trained."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """What is trained: a module, its batches and its losses."""

    @property
    def module(self) -> nn.Module: ...

    def host_batch(self, step: int, part: int, parts: int) -> Any:
        """One part of the global batch of a step, on the host; called from a loader thread."""

    def device_batch(self, host: Any) -> Any:
        """The batch on the device."""

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Named scalars to be minimised."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step."""

    def diagnostics(self) -> dict[str, Tensor]:
        """0-d tensors to be shown; read only when a progress event is due."""

    def check(self, figures: dict[str, float], progress: float) -> None:
        """Stop the run (GuardError) when the figures show that it has failed."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out labelled data; 'score' decides selection. Empty without held-out
        data.
        """

    def gradient_rule(self) -> Any:
        """A GradientRule, or None for the plain sum."""

    def shared(self) -> list[nn.Parameter]:
        """Parameters that a gradient rule treats one by one."""
