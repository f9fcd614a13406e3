"""Where events go: JSON lines, plain lines, a progress bar.

A sink has ``write(event)`` and ``close()``; one whose ``write`` raises OSError is dropped by
:class:`~MedSSLLib.core.events.Events`. Text from outside (case names, DICOM fields) is shown
literally: control characters escaped, no markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from MedSSLLib.core.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_SHOWN = ("start", "progress", "metric", "warning", "done")


class JsonLines:
    """One JSON object a line, each written in a single flushed call, so no reader sees half a
    line.
    """

    def __init__(self, stream: IO[bytes], name: str, *, owned: bool = False) -> None:
        self.name = name
        self._stream = stream
        self._owned = owned

    @classmethod
    def to_stream(cls, stream: IO[str], name: str = "--events -") -> JsonLines:
        """Write to a text stream such as ``sys.stdout``; UTF-8 whatever the locale."""
        return cls(binary(stream), name)

    @classmethod
    def to_file(cls, path: Path) -> JsonLines:
        """Append to a file. A torn last line that a killed process left behind is closed first."""
        return cls(open_for_lines(path), str(path), owned=True)

    def write(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        self._stream.write(line.encode("utf-8", "replace") + b"\n")
        self._stream.flush()

    def close(self) -> None:
        if self._owned:
            self._stream.close()


def binary(stream: IO[str]) -> IO[bytes]:
    """The bytes beneath a text stream, or an adapter for one that has none (StringIO)."""
    return getattr(stream, "buffer", None) or cast(IO[bytes], _Encoded(stream))


class _Encoded:
    """Bytes into a text stream that has no binary buffer (as StringIO)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        return self._stream.write(data.decode("utf-8"))

    def flush(self) -> None:
        self._stream.flush()


def open_for_lines(path: Path) -> IO[bytes]:
    """Open a file to append lines, unbuffered, starting on a fresh line."""
    stream = open(path, "ab", buffering=0)  # noqa: SIM115  (the sink closes it)
    if stream.tell():
        with open(path, "rb") as reader:
            reader.seek(-1, os.SEEK_END)
            if reader.read(1) != b"\n":
                stream.write(b"\n")
    return stream


class PlainLines:
    """One readable line an event, for a log file or a terminal that is no terminal (a pipe, a batch
    system).

    Args:
        stream: binary, unbuffered or flushed after each line.
        interval: seconds between two progress lines of a stage; its last step always shows.
        kinds: the events shown; all when empty.
        stamp: start each line with the local date and time.
    """

    def __init__(
        self,
        stream: IO[bytes],
        *,
        interval: float = 10.0,
        kinds: Iterable[str] = (),
        stamp: bool = False,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._kinds = frozenset(kinds)
        self._stamp = stamp
        self._shown: dict[str, float] = {}
        self._rate = Rate()

    @classmethod
    def to_file(cls, path: Path) -> PlainLines:
        return cls(open_for_lines(path), stamp=True)

    @classmethod
    def to_stderr(cls, kinds: Iterable[str] = ()) -> PlainLines:
        return cls(binary(sys.stderr), kinds=kinds)

    def write(self, event: dict[str, Any]) -> None:
        if self._kinds and event["event"] not in self._kinds:
            return
        rate = 0.0
        if event["event"] == "progress":
            rate = self._rate.update(event)
            if not self._due(event):
                return
        date = (
            time.strftime("%Y-%m-%d %H:%M:%S  ", time.localtime(event["time"]))
            if self._stamp
            else ""
        )
        self._stream.write(f"{date}{describe(event, rate)}\n".encode("utf-8", "replace"))
        self._stream.flush()

    def close(self) -> None:
        if self._stamp:
            self._stream.close()

    def _due(self, event: dict[str, Any]) -> bool:
        last = self._shown.get(event["stage"])
        if (
            last is not None
            and event["time"] - last < self._interval
            and event["step"] < event["steps"]
        ):
            return False
        self._shown[event["stage"]] = event["time"]
        return True


class Bar:
    """A live bar on a terminal: stage, steps, losses with their course, steps a second, time left,
    main figures.

    Args:
        kinds: the events shown.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        text = "{task.fields[note]}"
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn(text, markup=False),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._kinds = frozenset(kinds)
        self._tasks: dict[str, TaskID] = {}
        self._rate = Rate()
        self._course: dict[str, deque[float]] = {}

    def write(self, event: dict[str, Any]) -> None:
        from rich.text import Text

        if event["event"] == "progress":
            self._update(event)
        elif event["event"] in self._kinds:
            style = "yellow" if event["event"] == "warning" else ""
            self._progress.console.print(Text(describe(event), style=style))

    def close(self) -> None:
        self._progress.stop()

    def _update(self, event: dict[str, Any]) -> None:
        stage, losses = event["stage"], event.get("losses") or {}
        if stage not in self._tasks:
            self._progress.start()
            self._tasks[stage] = self._progress.add_task(
                printable(stage), total=event["steps"], note=""
            )
        course = self._course.setdefault(stage, deque(maxlen=240))
        if losses:
            course.append(sum(value for value in losses.values() if value is not None))
        note = f"{sparkline(course)}  {_progress_note(event, self._rate.update(event))}".strip()
        self._progress.update(
            self._tasks[stage], completed=event["step"], total=event["steps"], note=note
        )


def for_people(*, quiet: bool = False) -> Bar | PlainLines:
    """What a person sees on stderr: a bar in a terminal or notebook, else lines; or warnings only.

    Errors are left to whoever tells them.
    """
    if quiet:
        return PlainLines.to_stderr(("warning",))
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return Bar(_SHOWN)
    return PlainLines.to_stderr(_SHOWN)


class Rate:
    """Steps a second per stage, smoothed over the last few events."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float, int]]] = {}

    def update(self, event: dict[str, Any]) -> float:
        points = self._points.setdefault(event["stage"], deque(maxlen=20))
        points.append((event["time"], event["step"]))
        (first_time, first_step), (last_time, last_step) = points[0], points[-1]
        return (
            (last_step - first_step) / (last_time - first_time) if last_time > first_time else 0.0
        )


def describe(event: dict[str, Any], rate: float = 0.0) -> str:
    """One line for people: ``message``, then other fields as ``name value``; a ``report`` follows
    in its own lines.
    """
    kind = event["event"]
    if kind == "progress":
        done = f"{event['step']}/{event['steps']}"
        return f"{printable(event['stage'])} {done}  {_progress_note(event, rate)}".rstrip()
    known = ("event", "time", "message", "report")
    empty: tuple[object, ...] = (None, "", {}, [])
    rest = {
        key: value
        for key, value in event.items()
        if key not in known and value not in empty and not isinstance(value, list)
    }
    facts = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in rest.items())
    message = printable(str(event.get("message", "")))
    text = f"{message} ({facts})" if message and facts else message or facts
    lines = [f"  {printable(line)}" for line in str(event.get("report") or "").split("\n") if line]
    return "\n".join([f"{kind}: {text}" if text else kind, *lines])


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
    losses = [
        f"{printable(name)} {_value(value)}" for name, value in (event.get("losses") or {}).items()
    ]
    parts = [" ".join(losses)] if losses else []
    if rate:
        parts.append(f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step")
    if event.get("seconds_left") is not None:
        parts.append(f"{duration(event['seconds_left'])} left")
    figures = (event.get("figures") or {}).items()
    parts += [
        f"{printable(name).replace('_', ' ')} {_value(value)}"
        for name, value in figures
        if "/" not in name
    ]
    return "  ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{printable(str(key))} {_value(item)}" for key, item in value.items())
            + "}"
        )
    return "nan" if value is None else printable(str(value))
