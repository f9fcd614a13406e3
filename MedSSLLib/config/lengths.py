"""How long the presets train, without any import, so that Slicer's panels can say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Preset = Literal["quick", "standard", "overnight", "paper"]
PRESETS: tuple[Preset, ...] = ("quick", "standard", "overnight", "paper")

MINUTES: Mapping[str, Mapping[str, float]] = {
    "standard": {"pretrain": 15.0, "finetune": 10.0, "selftrain": 20.0},
    "overnight": {"pretrain": 120.0, "finetune": 60.0, "selftrain": 420.0},
}
"""Time limits by preset and command: one for a person who waits, one for the night. The other
presets, and `complete`, take a number of steps. Not from the papers; what the first brings is in
Testing/bench/NOTES.md, the second was not measured."""
