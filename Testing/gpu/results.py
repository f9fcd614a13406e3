"""The run's settings, and its results: a JSON file a part, written whole after every entry."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from MedSSLLib import __version__
from MedSSLLib.core.files import write_json


@dataclass(frozen=True)
class Setting:
    """What every part of a run needs.

    Attributes:
        device: where it runs.
        out: the folder of results.
        ends: on the monotonic clock, when everything is to be done.
        data: the folder that prepare.sh made; None without tables.
        tiny: a dry run: sizes so small that a processor does it in a minute or two.
        processes: how many train side by side.
    """

    device: torch.device
    out: Path
    ends: float
    data: Path | None = None
    tiny: bool = False
    processes: int = 9

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    @property
    def on_card(self) -> bool:
        """Whether it runs on a CUDA card."""
        return self.device.type == "cuda"


@dataclass
class Results:
    """The entries of one part.

    Attributes:
        part: its name, that of the file.
        setting: of the run.
        entries: what was found so far; `ok` is None where nothing could be judged.
        finished: whether the part came to its end.
    """

    part: str
    setting: Setting
    entries: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def add(self, name: str, ok: bool | None, **facts: Any) -> bool:
        """Keep an entry, write the file and say so; whether it is no failure."""
        self.entries.append({"name": name, "ok": ok, **facts})
        self.write()
        word = {True: "ok  ", False: "FAIL", None: "    "}[ok]
        shown = ", ".join(f"{key} {_short(value)}" for key, value in facts.items())
        print(f"{word} {self.part}: {name}: {shown}", flush=True)
        return ok is not False

    def write(self) -> None:
        """Write the file."""
        content = {
            "format": "medssl-gpu",
            "format_version": 1,
            "part": self.part,
            "dry_run": self.setting.tiny,
            "command": sys.argv[1:],
            "machine": machine(self.setting.device),
            "finished": self.finished,
            "entries": self.entries,
        }
        write_json(self.setting.out / f"{self.part}.json", content)

    @property
    def failed(self) -> bool:
        """Whether an entry failed."""
        return any(entry["ok"] is False for entry in self.entries)


def machine(device: torch.device) -> dict[str, Any]:
    """What results depend on."""
    found = {
        "device": str(device),
        "medssl": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "memory_mib": card.total_memory >> 20}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."
