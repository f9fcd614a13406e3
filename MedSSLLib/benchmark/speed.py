"""What MedSSL costs over the bare work.

Steps and predictions are compared with the network alone, views with MONAI's.

Every ratio is taken from pairs timed in turn in one run, so that it holds on a busy machine, too;
only ratios are worth comparing between machines.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MedSSLLib.benchmark.speed_predict import VOLUMES, measure_predict
from MedSSLLib.benchmark.speed_step import STEPS, measure_step
from MedSSLLib.benchmark.speed_views import VIEWS, Views, measure_views
from MedSSLLib.benchmark.timing import Comparison
from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.training.devices import resolve_device
from MedSSLLib.training.run_folder import versions

SPEED_PARTS = {"step": tuple(STEPS), "predict": tuple(VOLUMES), "views": tuple(VIEWS)}
"""What can be measured."""
QUICK_PAIRS, FULL_PAIRS = 3, 9
QUICK_VOLUME = Geometry((80, 72, 12), (1.5, 1.5, 6.0))
QUICK_NETWORK = {"network.widths": "[16, 32]", "training.voxels": "4096"}


@dataclass(frozen=True)
class SpeedOptions:
    """How to measure.

    Attributes:
        parts: some of SPEED_PARTS.
        pairs: timed pairs of each; ``None`` = 9, or 3 if quick.
        threads: of PyTorch; ``None`` = as it is.
        device: auto, cpu, cuda or cuda:N.
        quick: small networks, batches and volumes, to see that everything runs; goals do not apply
            to them.
    """

    parts: tuple[str, ...] = tuple(SPEED_PARTS)
    pairs: int | None = None
    threads: int | None = None
    device: str = "auto"
    quick: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(SPEED_PARTS)
        if unknown or not self.parts:
            raise InputError(
                f"{', '.join(sorted(unknown)) or 'nothing'} cannot be measured",
                remedy=f"Use {', '.join(SPEED_PARTS)}",
            )

    @property
    def count(self) -> int:
        """Timed pairs of each."""
        return self.pairs or (QUICK_PAIRS if self.quick else FULL_PAIRS)


def run_speed(options: SpeedOptions, events: Events, results: Path | None = None) -> dict[str, Any]:
    """Measure, and keep the result file up to date; returns its content.

    Args:
        options: what and how.
        events: where progress goes.
        results: the JSON file; ``None`` = only return.

    Raises:
        InputError: the device does not exist.
        CancelledError: stopped by the user; the file holds what was measured.
    """
    device = str(resolve_device(options.device))
    todo = [(part, name) for part in options.parts for name in SPEED_PARTS[part]]
    with _threads(options.threads):
        content: dict[str, Any] = {
            "bench": "speed",
            "format_version": 1,
            "quick": options.quick,
            "pairs": options.count,
            "device": device,
            "versions": versions(),
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "results": [],
        }
        events.emit("start", command="benchmark", device=device, runs=len(todo))
        for done, (part, name) in enumerate(todo, 1):
            row = _MEASURES[part](name, options, device).record()
            content["results"].append(row)
            events.emit("metric", stage="speed", row=f"{part} {name}", ratio=row["ratio"])
            events.progress("speed", done, len(todo))
            if results is not None:
                write_json(results, content)
    return content


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(name: str, options: SpeedOptions, device: str) -> Comparison:
    batch = max(2, STEPS[name].batch // 4) if options.quick else None
    return measure_step(
        name,
        options.count,
        device=device,
        batch=batch,
        settings=QUICK_NETWORK if options.quick else None,
    )


def _predict(name: str, options: SpeedOptions, device: str) -> Comparison:
    if not options.quick:
        return measure_predict(name, options.count, device=device)
    return measure_predict(
        name,
        options.count,
        device=device,
        grid=QUICK_VOLUME,
        network=NetworkConfig(widths=(16, 32)),
    )


def _views(name: str, options: SpeedOptions, device: str) -> Comparison:
    views = VIEWS[name]
    if options.quick:
        d, h, w = (min(n, 48) for n in views.volume)
        views = Views((d, h, w), tuple(n // 2 for n in views.patch), 2)
    return measure_views(name, options.count, device=device, views=views)


_MEASURES: dict[str, Callable[[str, SpeedOptions, str], Comparison]] = {
    "step": _step,
    "predict": _predict,
    "views": _views,
}
