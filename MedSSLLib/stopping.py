"""Asking a command to stop, by Ctrl-C or SIGTERM, at a place where nothing is lost.

A training loop runs inside ``deferred()`` and looks at ``requested()`` after each step: the first signal then
only asks. Everywhere else, and at the second signal, CancelledError is raised on the spot.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from MedSSLLib.errors import CancelledError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked = threading.Event()
_depth = 0


def requested() -> bool:
    """Whether a signal asked the command to stop."""
    return _asked.is_set()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first signal only sets :func:`requested`. May be nested.

    A loop that ends with an exception has heard the request; one that ends before it looked leaves it to the next.
    """
    global _depth
    _depth += 1
    try:
        yield
    except BaseException:
        _asked.clear()
        raise
    finally:
        _depth -= 1


@contextmanager
def on_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM inside. Outside the main thread signals are left alone."""
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(reason: str) -> None:
    """Ask the command to stop. Raises CancelledError with the reason unless inside :func:`deferred` and new."""
    if _asked.is_set() or not _depth:
        raise CancelledError(reason)
    _asked.set()


def _handle(number: int, frame: FrameType | None) -> None:
    ask("Cancelled.")
