"""What longer training buys: result files of one data set at several lengths side by side."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from MedSSLLib.benchmark.tables import Study, dice_interval

Records = list[Mapping[str, Any]]
Line = dict[int, tuple[float, float, float]]

_LENGTHS = ("steps", "minutes", "measured_steps")
_NAMES = ("rows", "tag", "count", "choices")


def lines_of_lengths(studies: Sequence[Study]) -> dict[str, dict[str, Line]]:
    """Data set to its lines, ``{row and labels: {steps: (mean Dice, low, high)}}``.

    Steps are those of a row in all, with the rows that it goes on from. A line joins rows whose
    settings differ in length alone, and every point of it is over the same choices of labelled
    volumes. Lines of one point are left out.
    """
    found: dict[tuple[Any, ...], dict[int, Records]] = {}
    for study in studies:
        for record in study.records:
            name = f"{record['row']}, {len(record['labelled'])} labelled"
            key = (study.data, name, *_settings_but_length(study.settings))
            found.setdefault(key, {}).setdefault(record["steps"], []).append(record)
    lines: dict[str, dict[str, Line]] = {}
    for (data, name, *_), points in found.items():
        if len(points) > 1:
            lines.setdefault(data, {})[name] = _over_shared_choices(points)
    return lines


def _settings_but_length(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    kept = {k: v for k, v in settings.items() if k not in (*_LENGTHS, *_NAMES)}
    own = ast.literal_eval(settings.get("selftrain_settings") or "{}")
    kept["selftrain_settings"] = str({k: v for k, v in own.items() if k != "training.steps"})
    return sorted(kept.items())


def _over_shared_choices(points: Mapping[int, Records]) -> Line:
    choices = [{record["choice"] for record in records} for records in points.values()]
    shared = set.intersection(*choices)
    line = {}
    for steps, records in sorted(points.items()):
        line[steps] = dice_interval([r for r in records if not shared or r["choice"] in shared])
    return line
