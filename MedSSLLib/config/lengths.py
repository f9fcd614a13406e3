"""How long the presets train, without any import, so that Slicer's panels can say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Preset = Literal["quick", "standard", "overnight", "paper"]
PRESETS: tuple[Preset, ...] = ("quick", "standard", "overnight", "paper")

PRESET_STEPS: Mapping[str, Mapping[Preset, int | None]] = {
    "pretrain": {"quick": 400, "standard": 3000, "overnight": 3000, "paper": 30000},
    "finetune": {"quick": 400, "standard": 3000, "overnight": 3000, "paper": 25000},
    "selftrain": {"quick": 400, "standard": 3000, "overnight": 3000, "paper": 20000},
    "complete": {"quick": 100, "standard": 400, "paper": 4000},
    "live": {"quick": None, "standard": None, "paper": None},
}
"""Steps by command and preset, where no time limit replaces them; live training has no end."""

PRESET_MINUTES: Mapping[str, Mapping[str, float]] = {
    "standard": {"pretrain": 15.0, "finetune": 10.0, "selftrain": 20.0},
    "overnight": {"pretrain": 120.0, "finetune": 60.0, "selftrain": 420.0},
}
"""Time limits by preset and command: one for a person who waits, one for the night. Not from the
papers; what the first brings is in Testing/bench/NOTES.md, the second was not measured."""
