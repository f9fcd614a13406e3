"""Progress as events: one JSON object a line for programs, a bar or plain lines for people.

An event is ``{"event": KIND, "time": seconds since the epoch, ...fields}``. A worker emits, sinks
write::

    events = Events([JsonLines.to_stream(sys.stdout)])
    events.emit("start", command="finetune", run="heart-1")
    if events.due("finetune", step, steps):  # ask first: reading a loss from a GPU costs a wait
        events.progress("finetune", step, steps, {"dice": float(dice)}, seconds_left=41.0)
    events.emit("done", run="heart-1")

A sink that fails (a full disk, say) is dropped and the others are told; training goes on. One
exception: when the *reader* of ``--events -`` has gone away, the command is cancelled, so that no
orphan runs on.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from MedSSLLib.core import interrupts
from MedSSLLib.core.sinks import JsonLines, PlainLines

KINDS = (
    *("start", "progress", "metric", "image", "warning", "checkpoint", "done", "error"),
    *("annotation", "score", "preview", "suggestion", "saved"),  # of live training
)
Event = dict[str, Any]


class Sink(Protocol):
    """Where events go. ``write`` may raise OSError; the sink is then dropped."""

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


MOST_NAMED = 10  # warnings of one kind


def at_most(messages: list[str], most: int = MOST_NAMED) -> list[str]:
    """The first messages of one kind, and how many more there are."""
    more = [f"... and {len(messages) - most} more like these."] if len(messages) > most else []
    return messages[:most] + more


class Events:
    """Hands every event to every sink, in order, from any thread.

    Args:
        sinks: where events go; none at all makes a silent object, handy in tests and scripts.
        min_interval: seconds between two progress events of the same stage. The first and the last
            step of a stage always pass.
        of_run: further sinks, each made from the run's folder once there is one.
    """

    def __init__(
        self,
        sinks: Iterable[Sink] = (),
        *,
        min_interval: float = 0.25,
        of_run: Iterable[Callable[[Path], Sink]] = (),
    ) -> None:
        self._sinks = list(sinks)
        self._min_interval = min_interval
        self._of_run = tuple(of_run)
        self._lock = threading.RLock()
        self._last_progress: dict[str, float] = {}
        self.last_kind = ""

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Send one event. ``kind`` is one of KINDS; fields become JSON (NaN and infinity become
        null).

        A progress event has ``stage``, ``step`` and ``steps`` and is dropped when it is not
        :meth:`due`.

        Raises:
            ValueError: an unknown kind, or fields named ``event`` or ``time``.
            CancelledError: the reader of a JSON stream has gone away (not inside a training loop,
                which then ends).
        """
        if kind not in KINDS:
            raise ValueError(f"unknown event {kind!r}; expected one of {', '.join(KINDS)}")
        if fields.keys() & {"event", "time"}:
            raise ValueError("'event' and 'time' are set by emit")
        if kind == "progress" and not self._pass(fields["stage"], fields["step"], fields["steps"]):
            return
        event = {"event": kind, "time": round(time.time(), 3)} | {
            k: to_json(v) for k, v in fields.items()
        }
        with self._lock:
            self.last_kind = kind
            failed = [
                problem for sink in list(self._sinks) if (problem := self._write(sink, event))
            ]
        for problem in failed:
            self.emit("warning", message=problem)

    def due(self, stage: str, step: int, steps: int) -> bool:
        """Whether a progress event for this step passes the throttle (steps count from 1; `steps` 0
        has no end).
        """
        last = self._last_progress.get(stage)
        ended = 0 < steps <= step
        return last is None or ended or time.monotonic() - last >= self._min_interval

    def progress(
        self,
        stage: str,
        step: int,
        steps: int,
        losses: Mapping[str, Any] | None = None,
        *,
        seconds_left: float | None = None,
        **fields: Any,
    ) -> None:
        """Emit a progress event if it is due. ``losses`` are numbers or 0-d tensors, read only when
        due.
        """
        fields |= {"seconds_left": seconds_left, "losses": dict(losses or {})}
        self.emit("progress", stage=stage, step=step, steps=steps, **fields)

    def images(self, files: Iterable[Path]) -> None:
        """Emit an image event, with ``file``, for every picture among the files."""
        for path in files:
            if path.suffix == ".png":
                self.emit("image", file=path)

    def open_run(self, folder: Path) -> None:
        """From now on also write ``events.jsonl`` and ``log.txt`` (appending) in a run folder that
        exists.
        """
        self.add(JsonLines.to_file(folder / "events.jsonl"))
        self.add(PlainLines.to_file(folder / "log.txt"))
        for make_sink in self._of_run:
            self.add(make_sink(folder))

    def add(self, sink: Sink) -> None:
        with self._lock:
            self._sinks.append(sink)

    def close(self) -> None:
        with self._lock:
            sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pass(self, stage: str, step: int, steps: int) -> bool:
        if not self.due(stage, step, steps):
            return False
        self._last_progress[stage] = time.monotonic()
        return True

    def _write(self, sink: Sink, event: Event) -> str:
        """Write to one sink; on failure drop it and say so in the returned text."""
        try:
            sink.write(event)
        except BrokenPipeError:
            self._sinks.remove(sink)
            interrupts.ask("Cancelled: the program that read the events has gone away.")
        except OSError as error:
            self._sinks.remove(sink)
            return f"{getattr(sink, 'name', type(sink).__name__)} is no longer written: {error}"
        return ""


def read_events(path: Path) -> Iterator[Event]:
    """The events of a JSON-lines file. Lines torn by a kill are skipped."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") in KINDS:
                yield event


def to_json(value: Any) -> Any:
    """A JSON-ready copy: paths become text, 0-d arrays and tensors numbers, NaN and infinity
    null.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    for method in ("tolist", "item"):
        if callable(getattr(value, method, None)):
            return to_json(getattr(value, method)())
    return str(value)


def relayed(events: Events, name: str) -> Events:
    """Events of one stage, passed on to ``events`` with the stage named, and closed with the stage.

    A run adds its own log files to the events it is given; the next run must not write into them.
    """
    return Events([_Relay(events, name)])


class _Relay:
    """A sink that passes events on; only the demo itself starts and ends."""

    def __init__(self, events: Events, name: str) -> None:
        self._events = events
        self._name = name

    def write(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("start", "done"):
            return
        fields = {key: value for key, value in event.items() if key not in ("event", "time")}
        if "stage" in fields:
            fields["stage"] = f"{self._name}: {fields['stage']}"
        self._events.emit(kind, **fields)

    def close(self) -> None:
        """The events behind stay open."""
