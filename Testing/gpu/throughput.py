"""Whole steps over the bare networks on a ready batch, in time of the card (CUDA events).

Kinds, references and goals are those of ``medssl benchmark speed``; the images lie on the device.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MedSSLLib.benchmark.speed_step import STEPS, WholeStep, bare_step
from MedSSLLib.benchmark.timing import Comparison, Work, seconds
from MedSSLLib.config.run import AugmentConfig
from MedSSLLib.networks.unet import place
from Testing.gpu.numerics import fabric_of
from Testing.gpu.resident import Store, resident
from Testing.gpu.results import Results, Setting
from Testing.lib.step_helpers import NAMES, TINY, Size, build_step_task, step_trainer

SIZE = Size(
    (16, 32, 64, 128, 128),
    (10, 180, 200),
    (128, 128),
    (48, 48, 48),
    channels=1,
    augment=AugmentConfig(),
    deep=False,
)
KINDS = {
    "finetune-2d": "supervised",
    "finetune-3d": "supervised",
    "pgl-3d": "pgl",
    "gcl-2d": "gcl",
    "selftrain-2d": "inter",
    "selftrain-3d": "inter",
    "mixing-2d": "mixing",
    "mixing-3d": "mixing",
    "mixing-teacher-2d": "mixing teacher",
    "mixing-teacher-3d": "mixing teacher",
}
"""Names of ``speed_step.STEPS`` as kinds of training here."""
BATCHES = {"2d": 4, "3d": 2}  # times as many samples as on a processor, which would starve a card
PAIRS, WARM = 20, 5


def run(setting: Setting, results: Results) -> None:
    """Measure every kind of step."""
    for name in STEPS:
        results.add(f"throughput {name}", None, **measure(name, setting))


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Times of whole and bare steps, in turn, and memory."""
    step = STEPS[name]
    dim, batch = int(step.dim[0]), step.batch * BATCHES[step.dim]
    size = TINY if setting.tiny else replace(SIZE, batch=batch, samples=batch)
    if dim == 3 and not setting.tiny:
        size = replace(size, volume=(64, 64, 64))
    pairs, warm = (1, 1) if setting.tiny else (PAIRS, WARM)

    def on_device(sampler: Any) -> Any:
        return resident(sampler, Store.of(sampler.reader, NAMES, dim, setting.device, NAMES))

    torch.manual_seed(0)
    task = build_step_task(KINDS[name], dim, setting.device, size, on_device)
    place(task.module, setting.device, dim)
    precision = "bf16" if setting.on_card else "float32"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as loader:
        trainer = step_trainer(task, Path(folder), fabric_of(setting.device, precision))
        whole, bare = WholeStep(trainer, loader), bare_step(trainer, step)
        times: tuple[list[float], list[float]] = [], []
        for number in range(warm + pairs):
            for work, found in zip((whole, bare), times, strict=True):
                taken = device_seconds(work, setting)
                if number >= warm:
                    found.append(taken)
        whole.finish()
    facts: dict[str, Any] = {"batch": size.samples if step.command == "pretrain" else size.batch}
    if setting.on_card:
        facts["peak_mib"] = torch.cuda.max_memory_allocated(setting.device) >> 20
        torch.cuda.reset_peak_memory_stats(setting.device)
    ours, reference = map(tuple, times)
    record = Comparison("step", name, ours, reference, goal=step.goal, facts=facts).record()
    record["samples_per_second"] = facts["batch"] / record["ours_s"]
    return {key: value for key, value in record.items() if key not in ("name", "part")}


def device_seconds(work: Work, setting: Setting) -> float:
    """From the start of a work to the end of what it left running, by the card's clock."""
    if not setting.on_card:
        return seconds(work)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000
