"""Requests to live training: one a line, on standard input or in a file that grows."""

from __future__ import annotations

import os
import queue
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from MedSSLLib.core.errors import InputError
from MedSSLLib.live.watch import SlicePlace

FORMS = {
    "show": "show CASE [AXIS INDEX], axis 0, 1 or 2",
    "suggest": "suggest N, a whole number from 1 to 1000",
    "refresh": "refresh",
    "pause": "pause",
    "resume": "resume",
    "save": "save NAME",
    "stop": "stop",
}
LONGEST = 4096  # bytes of a line


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        kind: show, suggest, refresh, pause, resume, save or stop.
        name: of the case (show) or of the run (save).
        place: the slice that is looked at (show).
        count: of slices (suggest).
    """

    kind: str
    name: str = ""
    place: SlicePlace | None = None
    count: int = 0


def parse_request(line: str) -> Request:
    """The request of a line.

    Names of cases may hold spaces, so two numbers at the end of ``show`` are axis and index.

    Raises:
        InputError: it is none.
    """
    kind, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if kind in ("refresh", "pause", "resume", "stop") and not rest:
        return Request(kind)
    if kind == "save" and rest:
        return Request(kind, name=rest)
    if kind == "suggest" and rest.isdecimal() and 0 < int(rest) <= 1000:
        return Request(kind, count=int(rest))
    if kind == "show" and rest:
        return _show(rest)
    asked = repr(line.strip()[:80])
    if kind in FORMS:
        raise InputError(f"the request {asked} cannot be read", remedy=f"Write {FORMS[kind]}")
    raise InputError(f"the request {asked} is not known", remedy=f"Known are {', '.join(FORMS)}")


def _show(rest: str) -> Request:
    words = rest.rsplit(" ", 2)
    if len(words) == 3 and words[1] in ("0", "1", "2") and words[2].isdecimal():
        return Request("show", name=words[0].strip(), place=(int(words[1]), int(words[2])))
    return Request("show", name=rest)


class RequestSource(Protocol):
    """Where lines come from."""

    def lines(self) -> list[str]: ...

    def wait(self, seconds: float) -> None: ...


class Lines:
    """Complete lines out of pieces of bytes; one that is too long is handed on cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now."""
        *done, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            done, self._rest = [*done, self._rest], b""
        texts = (line[:LONGEST].decode("utf-8", "replace").strip() for line in done)
        return [text for text in texts if text]


class FromStream:
    """Lines of a stream such as standard input; its end asks to stop.

    A thread reads, so that nobody waits. It reads the bare descriptor: a thread that holds the lock
    of a buffered stream would hinder the interpreter from ending.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._descriptor = (stream or sys.stdin.buffer).fileno()
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._heard = threading.Event()
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def lines(self) -> list[str]:
        """What has been asked since the last call."""
        self._heard.clear()
        found = []
        while not self._queue.empty():
            found.append(self._queue.get())
        return found

    def wait(self, seconds: float) -> None:
        """Until something is asked, or for so long."""
        self._heard.wait(seconds)

    def _read(self) -> None:
        lines = Lines()
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:
                data = b""
            for line in lines.feed(data) if data else ["stop"]:
                self._queue.put(line)
            self._heard.set()
            if not data:
                return


class FromFile:
    """Lines that a script appends to a file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._lines = Lines()
        self._pause = threading.Event()

    def lines(self) -> list[str]:
        """What has been asked since the last call."""
        try:
            with open(self._path, "rb") as stream:
                stream.seek(self._place)
                data = stream.read()
        except OSError:
            return []
        self._place += len(data)
        return self._lines.feed(data)

    def wait(self, seconds: float) -> None:
        """For so long."""
        self._pause.wait(seconds)


class Nobody:
    """No requests: live training ends by its time limit or a signal."""

    def lines(self) -> list[str]:
        """None."""
        return []

    def wait(self, seconds: float) -> None:
        """For so long."""
        threading.Event().wait(seconds)


def requests_from(place: str | None) -> RequestSource:
    """The source that ``--requests`` names: '-' standard input, a file, None nobody."""
    if place is None:
        return Nobody()
    return FromStream() if place == "-" else FromFile(Path(place))
