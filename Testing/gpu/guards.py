"""What a card adds to a training loop: waiting for it, its memory, resuming, sharing it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.core.errors import CancelledError, GuardError
from MedSSLLib.networks.unet import place
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.trainer import STOP_FILE, Trainer
from Testing.gpu.numerics import SIZE, fabric_of
from Testing.gpu.results import Results, Setting
from Testing.lib.core_helpers import loud
from Testing.lib.parallel_helpers import TASKS, gradients_of_a_step, make_trainer, run_two
from Testing.lib.step_helpers import TINY, Size, build_step_task, kinds, step_trainer

LARGE = Size(
    (16, 32, 64, 128, 128), (8, 288, 288), (256, 256), batch=64, channels=1, augment=AugmentConfig()
)
"""A batch whose memory is worth limiting."""
RESUMED = 0.05  # difference of resumed weights, of the way they went; on a card sums vary in order
SPLIT = 1e-3  # largest difference of a gradient between one process and two on a card


def placed_trainer(kind: str, dim: int, setting: Setting, size: Size, folder: Path, **options: Any):
    """The trainer of a kind as a run has it, in the number format that the device has."""
    torch.manual_seed(0)
    task = build_step_task(kind, dim, setting.device, size)
    place(task.module, setting.device, dim)
    precision = "bf16" if setting.on_card else "float32"
    return step_trainer(task, folder, fabric_of(setting.device, precision), **options)


def check_waiting(setting: Setting, results: Results) -> None:
    """No step waits for the card, where batches are ready; and the memory that it takes."""
    size = TINY if setting.tiny else SIZE
    for dim in (2, 3):
        # a processor waits for nothing, so that a dry run shows no more than that this runs
        for kind in ("supervised", "mean-teacher", "gcl") if setting.tiny else kinds(dim):
            with tempfile.TemporaryDirectory() as folder:
                trainer = placed_trainer(kind, dim, setting, size, Path(folder))
                error = _steps_without_waiting(trainer, setting, 1 if setting.tiny else 3)
            facts = {"error": error} if error else {}
            if setting.on_card:
                facts["peak_mib"] = torch.cuda.max_memory_allocated(setting.device) >> 20
                torch.cuda.reset_peak_memory_stats(setting.device)
            results.add(f"no waiting {kind} {dim}d", not error, **facts)


def _steps_without_waiting(trainer: Trainer, setting: Setting, count: int) -> str:
    """Some steps, and as many that must not wait; what waited, or ''."""
    with ThreadPoolExecutor(1) as loader:
        batches = [trainer._load(loader, step) for step in range(2 * count)]
        for batch in batches:
            batch[0].result()
    for batch in batches[:count]:  # the first steps choose kernels, which does wait
        trainer._step(batch)
    try:
        with _no_waiting(setting):
            for batch in batches[count:]:
                trainer._step(batch)
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return ""


@contextmanager
def _no_waiting(setting: Setting) -> Iterator[None]:
    if not setting.on_card:
        yield  # the tests on the meta device look for waits without a card
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_resume(setting: Setting, results: Results) -> None:
    """A run that is stopped after its first step and resumed ends where an unstopped one ends."""
    size = TINY if setting.tiny else SIZE
    for kind in ("supervised", "mixing teacher", "gcl", "pgl"):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            start, whole = _trained(kind, setting, size, Path(first))
            _, resumed = _trained(kind, setting, size, Path(second), stop=True)
        way = float((whole - start).norm())
        apart = float((whole - resumed).norm()) / way
        ok = way > 0 and apart <= (RESUMED if setting.on_card else 1e-6)
        results.add(f"resume {kind}", ok, difference=apart)


def _trained(
    kind: str, setting: Setting, size: Size, folder: Path, stop: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """All parameters in one, before training and after it."""
    steps = 4 if setting.tiny else 8

    def fresh() -> Trainer:
        return placed_trainer(kind, 2, setting, size, folder, budget=Budget(steps=steps))

    trainer = fresh()
    before = _flat(trainer)
    if stop:
        (folder / STOP_FILE).touch()
        try:
            trainer.run()
        except CancelledError:
            (folder / STOP_FILE).unlink()
        trainer = fresh()
        trainer.resume()
    trainer.run()
    return before, _flat(trainer)


def _flat(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().float().cpu() for p in trainer.parameters])


def check_memory(setting: Setting, results: Results) -> None:
    """Under a limit of memory a batch is halved, or the run ends with words where it cannot be."""
    size = TINY if setting.tiny else LARGE
    for kind in ("supervised", "gcl"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = placed_trainer(kind, 2, setting, size, Path(folder), budget=Budget(steps=2))
            trainer.events, record = loud()
            with _little_memory(trainer, setting):
                try:
                    trainer.run()
                    said = [event["message"] for event in record.of("warning")]
                    ok = trainer.state.micro_batches >= 2 and "computed in" in "".join(said)
                except GuardError as error:
                    said = [str(error)]
                    ok = kind == "gcl" and "needed whole" in said[0]
        del trainer
        results.add(f"memory {kind}", ok, said=said, simulated=not setting.on_card)


@contextmanager
def _little_memory(trainer: Trainer, setting: Setting) -> Iterator[None]:
    """A limit that the whole batch exceeds. A processor has none: there it is said to."""
    if not setting.on_card:
        losses, batch = trainer.task.losses, trainer.task.host_batch(0, 0, 1)
        whole = len(batch.windows)

        def limited(views: Any, progress: float) -> Any:
            if len(views.images) == whole:
                raise torch.OutOfMemoryError("out of memory")
            return losses(views, progress)

        trainer.task.losses = limited
        yield
        return
    with ThreadPoolExecutor(1) as loader:
        trainer._step(trainer._load(loader, 0))  # chooses kernels, which takes memory of its own
        trainer.optimiser.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
        held = torch.cuda.memory_allocated(setting.device)
        trainer._step(trainer._load(loader, 0))
    needed = torch.cuda.max_memory_allocated(setting.device) - held
    trainer.optimiser.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 0.7 * needed) / total, setting.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
        torch.cuda.empty_cache()


def check_two_processes(setting: Setting, results: Results) -> None:
    """Two processes on one device (gloo) have the gradients of one."""
    device = str(setting.device)
    fabric_of(setting.device, "float32")  # exact products, as the two have them
    with tempfile.TemporaryDirectory() as folder:
        two = run_two(Path(folder), device)
        for kind in TASKS:
            expected, _ = gradients_of_a_step(make_trainer(kind, Path(folder), device=device))
            worst = 0.0
            for name, gradient in expected.items():
                for found in two:
                    worst = max(worst, float((found[kind][0][name] - gradient).abs().max()))
            ok = worst <= (SPLIT if setting.on_card else 1e-5)
            results.add(f"two processes {kind}", ok, largest_difference=worst)
    results.add("two processes, clock", two[0]["timed"][:2] == two[1]["timed"][:2])
