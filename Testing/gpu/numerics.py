"""A whole step of every kind of training: the device against the processor in float32.

Same weights, same batch, same random numbers: what a step draws on the device is drawn on the
processor and moved. Compared are every loss and the gradient of all parameters together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedSSLLib.config.run import OptimiserConfig
from MedSSLLib.data.batch import make_views
from MedSSLLib.methods.options import configured
from MedSSLLib.networks.unet import place
from MedSSLLib.training.devices import make_fabric
from Testing.gpu.resident import Store, resident, without_noise
from Testing.gpu.results import Results, Setting
from Testing.lib.step_helpers import (
    NAMES,
    TINY,
    Size,
    build_step_task,
    kinds,
    step_trainer,
    take_step,
)

SIZE = Size((16, 32, 64), (12, 80, 80), (64, 64), (8, 32, 32), batch=4, samples=8)
"""Large enough for the kernels that training takes, small enough for the processor."""
TOLERANCES = {"float32": (1e-3, 0.02), "tf32": (0.01, 0.2), "bf16": (0.06, 0.6)}
"""Largest relative difference of a loss, and of the gradient in its norm. Not from a paper.

float32 differs by the order of sums, and by what is chosen by rank among nearly equal values (GCL's
pixels). TF32, in which cards multiply float32 by default, and bfloat16 keep 10 and 7 bits. On a
processor the gradient in bfloat16 differed by 0.01 to 0.2 in the dry run, that of the local
contrast in volumes by 0.39, where another voxel is chosen.
"""
HALFWAY = 0.5  # of a run, where a teacher counts: at its start its weight is next to nothing
LEAST_COSINE = {"float32": 0.999, "tf32": 0.98, "bf16": 0.8}
"""Of the gradient and that of the processor."""


def fabric_of(device: torch.device, precision: str) -> Any:
    """The Fabric of a run in a number format: 'float32' (exact products), 'tf32', 'bf16'."""
    name = "bf16" if precision == "bf16" else "32"
    overrides = {"device": str(device), "precision": name}
    fabric = make_fabric(configured("finetune", overrides=overrides))
    exact = precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    return fabric


@contextmanager
def same_noise() -> Iterator[None]:
    """Within the context random numbers of seeded generators are those of the processor."""
    twins: dict[int, torch.Generator] = {}

    def drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*shape: Any, **given: Any) -> Tensor:
            generator, device = given.get("generator"), given.get("device")
            if generator is None or generator.device.type == "cpu":
                return draw(*shape, **given)
            twin = twins.setdefault(
                id(generator), torch.Generator().manual_seed(generator.initial_seed())
            )
            kept.append(generator)  # so that its id is not used again
            return draw(*shape, **given | {"generator": twin, "device": "cpu"}).to(device)

        return wrapped

    plain, kept = (torch.rand, torch.randn), []
    torch.rand, torch.randn = map(drawn, plain)
    try:
        yield
    finally:
        torch.rand, torch.randn = plain


def gradient_step(kind: str, dim: int, device: torch.device, precision: str, size: Size) -> Any:
    """Losses and the gradient ``[n]`` of one step, on the CPU in float32."""
    torch.manual_seed(0)
    task = build_step_task(kind, dim, device, size)  # weights are drawn on the processor
    place(task.module, device, dim)
    with tempfile.TemporaryDirectory() as folder, same_noise():
        trainer = step_trainer(
            task, Path(folder), fabric_of(device, precision), optimiser=OptimiserConfig(clip=0)
        )
        trainer.state.progress = HALFWAY
        losses = take_step(trainer)
    found = [p.grad.flatten().float().cpu() for p in trainer.parameters if p.grad is not None]
    return {name: float(loss) for name, loss in losses.items()}, torch.cat(found)


def compare(found: Any, expected: Any, precision: str) -> tuple[bool, dict[str, float]]:
    """Whether losses and gradient agree to the tolerances, and by how much they differ."""
    losses, gradient = found
    wanted, reference = expected
    most_loss, most_gradient = TOLERANCES[precision]
    worst = 0.0
    for name, value in wanted.items():
        worst = max(worst, abs(losses[name] - value) / max(abs(value), 1e-3))
    apart = float((gradient - reference).norm() / reference.norm())
    cosine = float(torch.dot(gradient, reference) / (gradient.norm() * reference.norm()))
    ok = losses.keys() == wanted.keys() and worst <= most_loss
    ok = ok and apart <= most_gradient and cosine >= LEAST_COSINE[precision]
    return ok, {"loss": worst, "gradient": apart, "cosine": cosine}


def check_steps(setting: Setting, results: Results) -> None:
    """Every kind in every number format that the device has, in slices and volumes."""
    formats = [name for name in TOLERANCES if name != "tf32" or setting.on_card]
    size = TINY if setting.tiny else SIZE
    for dim in (2, 3):
        for kind in kinds(dim):
            expected = gradient_step(kind, dim, torch.device("cpu"), "float32", size)
            for precision in formats:
                if setting.tiny and precision == "float32" and kind not in ("supervised", "gcl"):
                    continue  # the same step on the same processor
                found = gradient_step(kind, dim, setting.device, precision, size)
                ok, facts = compare(found, expected, precision)
                results.add(f"step {kind} {dim}d {precision}", ok, **facts)


def check_resident(setting: Setting, results: Results) -> None:
    """Samplers over images on the device give the views that those of the library give."""
    size = TINY if setting.tiny else SIZE
    for dim in (2, 3):
        for kind in ("supervised", "simclr"):
            task = build_step_task(kind, dim, "cpu", size)
            sampler = without_noise(task.sampler)
            store = Store.of(sampler.reader, NAMES, dim, setting.device, NAMES)
            ours = make_views(resident(sampler, store).sample(3), sampler.patch, setting.device)
            theirs = make_views(sampler.sample(3), sampler.patch, torch.device("cpu"))
            apart = float((ours.images.cpu() - theirs.images).abs().max())
            wrong = 0.0
            if theirs.labels is not None:
                wrong = float((ours.labels.cpu() != theirs.labels).float().mean())
            ok = apart <= 1e-3 and wrong <= 1e-3
            results.add(f"resident {kind} {dim}d", ok, largest_difference=apart, labels=wrong)
