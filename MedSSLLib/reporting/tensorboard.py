"""Scalars for TensorBoard, an optional package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.packages import install_command


class TensorBoardScalars:
    """Losses and metrics as TensorBoard scalars.

    Raises InputError when tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"TensorBoard cannot be used ({error})",
                remedy=f"Install it: {install_command('tensorboard>=2.16')}",
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            values, group = (
                (event.get("losses") or {}) | (event.get("figures") or {}),
                event["stage"],
            )
        elif event["event"] == "metric":
            values, group = event, event.get("stage", "metric")
        else:
            return
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("time", "step", "steps"):
                self._writer.add_scalar(
                    f"{group}/{name}", value, event.get("step"), walltime=event["time"]
                )

    def close(self) -> None:
        self._writer.close()
