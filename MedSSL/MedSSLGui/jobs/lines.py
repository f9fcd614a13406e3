"""From a process's raw output to events: lines may arrive joined or cut anywhere. No Qt in here."""

import json


class LineSplitter:
    """Collects bytes and gives whole lines. A line longer than `limit` bytes is cut, so memory stays bounded."""

    def __init__(self, limit=1 << 20):
        self._rest = b""
        self._limit = limit

    def feed(self, data):
        """Whole lines, decoded, that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._limit:
            lines.append(self._rest)
            self._rest = b""
        return [_text(line) for line in lines]

    def finish(self):
        """What is left when the process has ended: no line, or one."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest.strip() else []


def parseEvent(line):
    """The event of a JSON line, or None for any other text."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _text(line):
    return line.decode("utf-8", "replace").rstrip("\r")
