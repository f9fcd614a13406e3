"""Events in words: one line for a log file, and sentences for people at a terminal.

Text from outside (case names, DICOM fields) is shown literally: control characters escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from MedSSLLib.core.errors import printable

_TRAINING = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "selftrain": "Self-training",
    "complete": "Completing a volume",
    "live": "Training live",
}
_RESTING = {"waiting": "waiting for a first slice", "idle": "resting", "paused": "paused"}
_FORMATS = {"bf16": "bfloat16", "16": "float16"}


def told(event: dict[str, Any], rate: float = 0.0) -> str:
    """What a person at a terminal is told of an event; "" for nothing.

    A command says itself at its end what it did, so `done` is silent.
    """
    if event["event"] in _TOLD:
        return _TOLD[event["event"]](event)
    return describe(event, rate)


def _told_start(event: dict[str, Any]) -> str:
    command, device = event.get("command"), str(event.get("device", ""))
    if command in _TRAINING:
        kind = _FORMATS.get(str(event.get("precision")), "")
        method = event.get("method")
        by = f" by {method}" if command == "pretrain" and method else ""
        where = f"{device} in {kind}" if kind else device
        return printable(f"{_TRAINING[command]}{by}: run {event.get('run')}, on {where}")
    if command == "predict":
        count = event.get("cases")
        noun = "scan" if count == 1 else "scans"
        return printable(f"Segmenting {count} {noun} with {event.get('run')}, on {device}")
    return ""


def _told_metric(event: dict[str, Any]) -> str:
    if event.get("message"):
        return printable(str(event["message"]))
    stage = str(event.get("stage", ""))
    if stage.rpartition(": ")[2] == "transfer":
        return f"{event.get('tensors_loaded')} tensors taken over from the encoder"
    if "kept" in event and "cases" in event:
        used = f"{event['kept']} of {event['cases']} pseudo-labels used"
        return printable(f"{stage}: {used}")
    if stage == "benchmark" and event.get("dice") is not None:
        choice = f"{event.get('labelled')} labelled, choice {event.get('choice', 0) + 1}"
        return printable(f"{event.get('row')}, {choice}: Dice {event['dice']:.3f}")
    if "score" in event and event.get("step") is not None:
        dice = f"step {event['step']}: held-out score {_value(event['score'])}"
        return printable(f"{stage}, {dice}")
    return describe(event)


def _nothing(event: dict[str, Any]) -> str:
    return ""


def _told_annotation(event: dict[str, Any]) -> str:
    return printable(f"{event['case']}: {_counted(event['slices'], 'slice')} drawn")


def _told_score(event: dict[str, Any]) -> str:
    if event.get("dice") is None:
        return ""
    slice_ = f"slice {event['index']} along {'ijk'[event['axis']]}"
    words = f"{event['case']}, {slice_}: Dice {event['dice']:.2f} before it was learnt from"
    return printable(words)


def _told_suggestion(event: dict[str, Any]) -> str:
    if "case" not in event:
        return describe(event)
    slice_ = f"slice {event['index']} along {'ijk'[event['axis']]}"
    return printable(f"Draw next: {event['case']}, {slice_} ({event['why']})")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "annotation": _told_annotation,
    "score": _told_score,
    "suggestion": _told_suggestion,
    "start": _told_start,
    "metric": _told_metric,
    "done": _nothing,
}


def describe(event: dict[str, Any], rate: float = 0.0) -> str:
    """One line for people: ``message``, then other fields as ``name value``; a ``report`` follows
    in its own lines.
    """
    kind = event["event"]
    if kind == "progress":
        done = count_words(event)
        if words := resting_words(event):
            return f"{printable(event['stage'])} {done}  {words}"
        return f"{printable(event['stage'])} {done}  {_progress_note(event, rate)}".rstrip()
    empty: tuple[object, ...] = (None, "", {}, [])
    rest = []
    message = printable(str(event.get("message", "")))
    for name, value in event.items():
        known = name in ("event", "time", "message", "report")
        known = known or (name == "case" and message.startswith(f"{value}: "))
        if not known and value not in empty and not isinstance(value, list):
            rest.append(f"{name.replace('_', ' ')} {_value(value)}")
    facts = ", ".join(rest)
    text = f"{message} ({facts})" if message and facts else message or facts
    lines = [f"  {printable(line)}" for line in str(event.get("report") or "").split("\n") if line]
    return "\n".join([f"{kind}: {text}" if text else kind, *lines])


def resting_words(event: dict[str, Any]) -> str:
    """Why a stage that has no end does nothing now; "" while it does."""
    return _RESTING.get(str(event.get("state")), "")


def count_words(event: dict[str, Any]) -> str:
    """The steps done of those of a stage, or alone where it has no end."""
    return f"{event['step']}/{event['steps']}" if event["steps"] else str(event["step"])


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``; hours appear when there are any."""
    text = str(timedelta(seconds=max(0, round(seconds))))
    return text.removeprefix("0:").removeprefix("0")


def duration_words(seconds: float) -> str:
    """``75`` -> ``"75 s"``, ``7000`` -> ``"1 h 57 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def amount(value: float) -> str:
    """A measure for people: three digits, from a hundred on whole and never a power of ten."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def sparkline(values: Iterable[float], width: int = 12) -> str:
    """The course of a loss in ``width`` characters, mean of each part, lowest to highest."""
    numbers = [value for value in values if math.isfinite(value)]
    if len(numbers) < 2:
        return ""
    width = min(width, len(numbers))
    edges = [round(i * len(numbers) / width) for i in range(width + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int((mean - low) / span * 7.999)] for mean in means)


def _progress_note(event: dict[str, Any], rate: float) -> str:
    losses = loss_words(event)
    parts = [" ".join(losses)] if losses else []
    if rate and losses:  # scans are no steps
        parts.append(rate_words(rate))
    if event.get("seconds_left") is not None:
        parts.append(f"{duration(event['seconds_left'])} left")
    return "  ".join(parts + metric_words(event))


def loss_words(event: dict[str, Any]) -> list[str]:
    """The losses of a progress event, a text each."""
    found = event.get("losses") or {}
    return [f"{printable(name)} {_value(value)}" for name, value in found.items()]


def metric_words(event: dict[str, Any]) -> list[str]:
    """The main metrics of a progress event, a text each; those of parts have a slash."""
    texts = []
    for name, value in (event.get("figures") or {}).items():
        if "/" not in name:
            texts.append(f"{printable(name).replace('_', ' ')} {_value(value)}")
    return texts


def rate_words(rate: float) -> str:
    """Steps a second, or seconds a step where they are slow."""
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"


def fitting(parts: Iterable[str], room: int) -> str:
    """As many of the texts as fit into `room` characters, in order, each whole."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if part and len(longer) <= room:
            line = longer
    return line


def stage_words(stage: str, room: int) -> str:
    """A stage in so many characters: of ``run: stage`` the run is cut first."""
    run, colon, last = stage.rpartition(": ")
    over = len(stage) - room
    if not colon or over <= 0 or over + 2 > len(run):
        return stage
    return f"{run[: -over - 1]}\u2026{colon}{last}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        items = [f"{printable(str(key))} {_value(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    return "nan" if value is None else printable(str(value))
