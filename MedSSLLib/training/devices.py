"""Devices, precision, threads, seeds and processes (Lightning Fabric)."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.random import mixed_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def resolve_device(name: str) -> torch.device:
    """'auto' (CUDA when there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device {name!r} is not known", remedy="Use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "no CUDA driver or card was found"
        if torch.version.cuda is None:
            why = "this torch was built without CUDA"
        raise InputError(
            f"device {name!r} is not available: {why}",
            remedy="Use --device cpu, or run `medssl doctor`",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} does not exist: {torch.cuda.device_count()} CUDA device(s) found",
            remedy="Choose a smaller index",
        )
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """The number format of prediction: '32', 'bf16' or '16'.

    'auto' is bfloat16 on CUDA cards that have it, float16 on other CUDA cards, float32 on the CPU.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "32"
    return "bf16" if torch.cuda.is_bf16_supported() else "16"


def training_precision(name: str, device: torch.device) -> str:
    """The number format of training: '32', 'bf16' or '16'.

    'auto' is also bfloat16 on processors that multiply it (AMX or AVX512-BF16). There the networks
    of the presets take about half the time of float32, or less (``bench_precision.py``); weights,
    sums of gradients and losses stay float32. Others keep float32. Float16 is for CUDA cards; where
    it is asked for on a processor it is bfloat16.
    """
    if device.type == "cpu" and (name == "16" or (name == "auto" and _multiplies_bfloat16())):
        return "bf16"
    return resolve_precision(name, device)


@cache
def _multiplies_bfloat16() -> bool:
    known = hasattr(torch.cpu, "get_capabilities")  # older PyTorch cannot tell
    found = torch.cpu.get_capabilities() if known else {}
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))


def make_fabric(config: RunConfig) -> Fabric:
    """A launched Fabric for the run: one process, several on one machine, `torchrun` or SLURM."""
    from lightning_fabric import Fabric  # takes a second to import, and predictions need none

    device = resolve_device(config.device)
    precision = training_precision(config.precision, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    parallel = config.devices > 1 or torch.distributed.is_torchelastic_launched()
    single_card = device.type == "cuda" and not parallel
    # the start event says the precision
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if single_card else config.devices,
        strategy="ddp" if parallel else "auto",
        precision=_PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


def precision_of(fabric: Fabric) -> str:
    """The number format that a Fabric trains in, by the name in the configuration."""
    return next(name for name, full in _PRECISIONS.items() if full == fabric._precision.precision)


def seed_step(seed: int, step: int) -> None:
    """Seed torch's global generators, so that drop-out too is a function of seed and step."""
    torch.manual_seed(mixed_seed(seed, step))


def gather_embeddings(x: Tensor) -> Tensor:
    """Concatenate over processes along the first axis, with gradients.

    The identity in a single process.
    """
    if not _distributed():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over processes, with gradients; the identity in a single process."""
    if not _distributed():
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x.contiguous())


@torch.no_grad()
def average_gradient(x: Tensor) -> Tensor:
    """Mean of a gradient over processes, in place; the identity in a single process."""
    if _distributed():
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average ``.grad`` of all parameters over processes in one message."""
    if not _distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = average_gradient(torch.cat([gradient.flatten() for gradient in gradients]))
    averaged = flat.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, averaged, strict=True):
        gradient.copy_(mean.view_as(gradient))


def from_first_process(values: list[float]) -> list[float]:
    """The numbers of the first process, on every process, over the CPU: no device is waited for."""
    if not _distributed():
        return values
    numbers = torch.tensor(values, dtype=torch.float64)
    torch.distributed.broadcast(numbers, 0, group=_control_group())
    return numbers.tolist()


@cache
def _control_group() -> torch.distributed.ProcessGroup:
    return torch.distributed.new_group(backend="gloo")


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
