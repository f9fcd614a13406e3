"""Summaries of the runs of a project, from what each run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json


def summaries(folder: Path) -> list[dict[str, Any]]:
    """One summary per run folder, oldest first; damaged runs are listed with their problem."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return [summary(run) for run in sorted(found, key=lambda p: (p.stat().st_mtime, p.name))]


def summary(run: Path) -> dict[str, Any]:
    """``{"name", "folder", "config", "metrics", "finished", "resumable", "problem"}`` of a run
    folder.

    config and metrics are the contents of config.json and metrics.json (None where missing or
    unreadable).
    """
    result: dict[str, Any] = {
        "name": run.name,
        "folder": str(run),
        "problem": "",
        "finished": (run / "weights.safetensors").is_file(),
        "resumable": (run / "checkpoint").is_dir(),
    }
    for key in ("config", "metrics"):
        result[key] = None
        if key == "config" or (run / f"{key}.json").exists():
            try:
                result[key] = read_json(run / f"{key}.json", newest_version=RUN_VERSION)
            except InputError as error:
                result["problem"] = str(error)
    return result


RUN_FORMAT, RUN_VERSION = "medssl-run", 1
WEIGHTS = "weights.safetensors"
LIVE_LOCK = ".live.lock"  # in a project that somebody trains live


def begun(folder: Path) -> bool:
    """Whether there is anything to keep: a checkpoint or weights."""
    return (folder / WEIGHTS).exists() or any((folder / "checkpoint").glob("*.safetensors"))
