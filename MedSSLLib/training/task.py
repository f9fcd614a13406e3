"""What the training loop asks of whatever is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Task:
    """What is trained: a module, its batches and its losses.

    A task gives `module`, :meth:`host_batch`, :meth:`device_batch` and :meth:`losses`; the rest is
    for those that need it.

    Attributes:
        module: whose parameters are trained.
    """

    module: nn.Module

    def host_batch(self, step: int, micro_batch: int, micro_batches: int) -> Any:
        """One micro-batch of the global batch of a step, on the host; called from a loader thread.

        Args:
            step: number of the step, from 0.
            micro_batch: number of the micro-batch, from 0.
            micro_batches: how many the global batch is split into, over all processes.

        Raises:
            InputError: the batch cannot be split into so many.
        """
        raise NotImplementedError

    def device_batch(self, host: Any) -> Any:
        """The micro-batch on the device."""
        raise NotImplementedError

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Named scalars to be minimised, at `progress` in [0, 1] of the run."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step. By default nothing changes."""
        return

    def diagnostics(self) -> dict[str, Tensor]:
        """0-d tensors to be shown; read only when a progress event is due. By default none."""
        return {}

    def check(self, metrics: dict[str, float], progress: float) -> None:
        """Stop the run (GuardError) where losses and diagnostics show that it has failed.

        By default nothing beyond the finite losses that the trainer asks for.
        """
        return

    def validate(self) -> dict[str, float]:
        """Metrics on held-out labelled data; 'score' decides which weights are kept.

        Empty, the default, without held-out data.
        """
        return {}

    def gradient_rule(self) -> Any:
        """A GradientRule; None, the default, for the gradient of the plain sum."""
        return None

    def shared(self) -> list[nn.Parameter]:
        """Parameters that a gradient rule treats one by one. By default none."""
        return []
