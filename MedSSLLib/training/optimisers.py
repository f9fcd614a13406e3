"""Optimisers by name, and LARS, which torch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from MedSSLLib.config.run import OptimiserConfig


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    ``v <- m v + lr * trust * |w| / (|g| + decay |w|) * (g + decay w)``; vectors (biases, norms)
    take plain SGD steps.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad
        if parameter.dim() > 1:
            gradient = _lars_gradient(parameter, gradient, group["weight_decay"], group["trust"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(gradient, alpha=group["lr"])
        parameter.sub_(velocity)


def _lars_gradient(weight: Tensor, gradient: Tensor, decay: float, trust: float) -> Tensor:
    weight_norm, gradient_norm = weight.norm(), gradient.norm()
    ratio = trust * weight_norm / (gradient_norm + decay * weight_norm).clamp_min(1e-12)
    ratio = torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, torch.ones_like(ratio))
    return ratio * (gradient + decay * weight)


def build_optimiser(
    module: nn.Module, config: OptimiserConfig, encoder_factor: float = 1.0
) -> torch.optim.Optimizer:
    """The configured optimiser over a module's trainable parameters.

    Weight decay spares biases and normalisation; `encoder_factor` scales the rate of parameters
    under ``encoder.``. Each group carries ``base_lr``, which :func:`set_rate` multiplies.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = encoder_factor if "encoder." in f"{name}." else 1.0
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    listed = [
        {
            "params": params,
            "lr": config.lr * factor,
            "base_lr": config.lr * factor,
            "weight_decay": decay,
        }
        for (factor, decay), params in groups.items()
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(listed, lr=config.lr)
    kind = LARS if config.name == "lars" else torch.optim.SGD
    return kind(listed, lr=config.lr, momentum=config.momentum)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Multiply every group's base rate by the schedule's factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def warmup_cosine(progress: float, warmup: float) -> float:
    """Schedule factor in [0, 1] at `progress` of the run.

    Linear over the fraction `warmup`, then half a cosine to 0.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
