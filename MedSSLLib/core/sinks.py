"""Where events go: JSON lines, plain lines, a progress bar.

A sink has ``write(event)`` and ``close()``; one whose ``write`` raises OSError is dropped by
:class:`~MedSSLLib.core.events.Events`. Text from outside (case names, DICOM fields) is shown
literally: control characters escaped, no markup.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from MedSSLLib.core.errors import printable
from MedSSLLib.core.words import (
    count_words,
    describe,
    duration,
    fitting,
    loss_words,
    metric_words,
    rate_words,
    resting_words,
    sparkline,
    stage_words,
    told,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_SHOWN = ("start", "progress", "metric", "warning", "annotation", "score", "suggestion")


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
        words: what a line says of an event and the steps a second; events without words are left
            out.
    """

    def __init__(
        self,
        stream: IO[bytes],
        *,
        interval: float = 10.0,
        kinds: Iterable[str] = (),
        stamp: bool = False,
        words: Callable[[dict[str, Any], float], str] = describe,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._kinds = frozenset(kinds)
        self._stamp = stamp
        self._words = words
        self._shown: dict[str, float] = {}
        self._resting = ""
        self._rate = Rate()

    @classmethod
    def to_file(cls, path: Path) -> PlainLines:
        return cls(open_for_lines(path), stamp=True)

    @classmethod
    def to_stderr(cls, kinds: Iterable[str] = ()) -> PlainLines:
        return cls(binary(sys.stderr), kinds=kinds, words=told)

    def write(self, event: dict[str, Any]) -> None:
        if self._kinds and event["event"] not in self._kinds:
            return
        rate = 0.0
        if event["event"] == "progress":
            rate = self._rate.update(event)
            if not self._due(event):
                return
        text = self._words(event, rate)
        if not text:
            return
        date = ""
        if self._stamp:
            date = time.strftime("%Y-%m-%d %H:%M:%S  ", time.localtime(event["time"]))
        self._stream.write(f"{date}{text}\n".encode("utf-8", "replace"))
        self._stream.flush()

    def close(self) -> None:
        if self._stamp:
            self._stream.close()

    def _due(self, event: dict[str, Any]) -> bool:
        last, resting = self._shown.get(event["stage"]), resting_words(event)
        before, self._resting = self._resting, resting
        if resting and resting == before:
            return False
        if (
            last is not None
            and event["time"] - last < self._interval
            and not 0 < event["steps"] <= event["step"]
        ):
            return False
        self._shown[event["stage"]] = event["time"]
        return True


STAGE, BAR, COUNT, LEFT = 18, 14, 11, 12
"""Widths of the columns of a progress line; what is left of 80 holds the loss."""
MOST_STAGES = 6
"""Progress lines at a time, where stages have ended."""


class Bar:
    """A live line a stage on a terminal: stage, bar, count, time left, loss.

    The columns are fixed, so that a line fits into 80 characters; further losses, the speed, the
    course of the loss and a method's own metrics are shown where there is room. What is done stays
    above the words that follow, so that the last line on the screen says what comes next.

    Args:
        kinds: the events shown.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.table import Column

        def text(field: str, width: int | None = None) -> TextColumn:
            column = Column(width=width, no_wrap=True, overflow="ellipsis")
            return TextColumn(f"{{task.fields[{field}]}}", markup=False, table_column=column)

        console = Console(stderr=True)
        # a narrow terminal keeps the words and gives up the bar
        bar = [BarColumn(bar_width=BAR)] if console.width >= 72 else []
        self._room = console.width - STAGE - COUNT - LEFT - 4 - (BAR + 1) * len(bar)
        columns: list[ProgressColumn] = [
            text("stage", STAGE),
            *bar,
            text("count", COUNT),
            text("left", LEFT),
            text("note", max(1, self._room)),
        ]
        self._progress: Progress = Progress(*columns, console=console, refresh_per_second=4)
        self._kinds = frozenset(kinds)
        self._tasks: dict[str, TaskID] = {}
        self._rate = Rate()
        self._course: dict[str, deque[float]] = {}

    def write(self, event: dict[str, Any]) -> None:
        from rich.text import Text

        if event["event"] == "progress":
            self._update(event)
            return
        if event["event"] == "done":
            self.close()
        if event["event"] in self._kinds and (words := told(event)):
            style = "yellow" if event["event"] == "warning" else ""
            self._progress.console.print(Text(words, style=style))

    def close(self) -> None:
        self._no_time_left()
        self._progress.stop()
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._course.clear()

    def _no_time_left(self) -> None:
        """Take away the time left of stages that are done: it was that of the whole job."""
        for task in self._progress.tasks:
            if task.finished:
                self._progress.update(task.id, left="")

    def _update(self, event: dict[str, Any]) -> None:
        stage, losses = event["stage"], event.get("losses") or {}
        if stage not in self._tasks:
            self._no_time_left()
            self._progress.start()
            self._forget_ended()
            words = stage_words(printable(stage), STAGE)
            self._tasks[stage] = self._progress.add_task(
                "", total=event["steps"] or None, stage=words, count="", left="", note=""
            )
        course = self._course.setdefault(stage, deque(maxlen=240))
        if losses:
            course.append(sum(value for value in losses.values() if value is not None))
        left = event.get("seconds_left")
        self._progress.update(
            self._tasks[stage],
            completed=event["step"],
            total=event["steps"] or None,
            count=count_words(event),
            left="" if left is None else f"{duration(left)} left",
            note=self._note(event, course),
        )

    def _forget_ended(self) -> None:
        """Keep the lines of a long job on the screen: stages that have ended make room."""
        finished = {task.id for task in self._progress.tasks if task.finished}
        ended = [stage for stage, task in self._tasks.items() if task in finished]
        for stage in ended[: max(0, len(self._tasks) - MOST_STAGES + 1)]:
            self._progress.remove_task(self._tasks.pop(stage))

    def _note(self, event: dict[str, Any], course: Iterable[float]) -> str:
        """The loss first, then what fits."""
        if words := resting_words(event):
            self._rate.update(event)
            return fitting([words], self._room)
        rate = self._rate.update(event)
        speed = [rate_words(rate)] if rate and event.get("losses") else []  # scans are no steps
        parts = [*loss_words(event), *speed, sparkline(course), *metric_words(event)]
        return fitting(parts, self._room)


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
        if resting_words(event):  # time without work is none of the work's
            points.clear()
            return 0.0
        points.append((event["time"], event["step"]))
        (first_time, first_step), (last_time, last_step) = points[0], points[-1]
        return (
            (last_step - first_step) / (last_time - first_time) if last_time > first_time else 0.0
        )
