"""Losses are computed in at least float32, whatever the network computes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` without autocast, half-precision tensor arguments turned into float32."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        free = nullcontext() if first.is_meta else torch.autocast(first.device.type, enabled=False)
        with free:
            return function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})

    return run


def _widened(x: Any) -> Any:
    """Floating-point tensors in at least float32; anything else as it is."""
    return at_least_float32(x) if isinstance(x, Tensor) and x.is_floating_point() else x
