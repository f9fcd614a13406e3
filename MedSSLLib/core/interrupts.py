"""Asking a command to stop, by Ctrl-C or SIGTERM, at a place where nothing is lost.

A training loop runs inside ``deferred()`` and looks at ``requested()`` after each step: the first
signal then only asks. Everywhere else, and at the second signal, CancelledError is raised on the
spot.

But never while a module is imported: libraries take an import that is cut short for a missing
package, or abort the process. The first signal then waits a little for the import to end; after
that, or at the second, the process ends without clearing up, as if it were killed, but with its
message and exit code.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from MedSSLLib.core.errors import CancelledError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 1.0  # seconds for an import to end
_asked = threading.Event()
_ended = threading.Event()
_waiting = False
_depth = 0


def _say_nothing(error: BaseException) -> int:
    return CancelledError.exit_code


_last_words: Callable[[BaseException], int] = _say_nothing


def requested() -> bool:
    """Whether a signal asked the command to stop."""
    return _asked.is_set()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first signal only sets :func:`requested`. May be nested.

    A loop that ends with an exception has heard the request; one that ends before it looked leaves
    it to the next.
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
def on_signals(last_words: Callable[[BaseException], int] = _say_nothing) -> Iterator[None]:
    """Handle SIGINT and SIGTERM inside. Outside the main thread signals are left alone.

    Args:
        last_words: says that the command ends, and gives its exit code, where nothing can be raised
            any more.
    """
    global _waiting, _last_words
    _last_words = last_words
    _asked.clear()
    _ended.clear()
    _waiting = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        _ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(reason: str) -> None:
    """Ask the command to stop. Raises CancelledError with the reason unless inside :func:`deferred`
    and new.
    """
    if _asked.is_set() or not _depth:
        raise CancelledError(reason)
    _asked.set()


def _handle(number: int, frame: FrameType | None) -> None:
    global _waiting
    if not _importing(frame) or (_depth and not _asked.is_set()):
        ask("Cancelled.")
    elif _waiting or _depth:
        os._exit(_last_words(CancelledError("Cancelled.")))
    else:
        _waiting = True
        threading.Thread(target=_remind, args=(number,), daemon=True).start()


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _remind(number: int) -> None:
    """Send the signal once more when the main thread imports nothing, or has done so for too
    long.
    """
    latest = time.monotonic() + _PATIENCE
    main = threading.main_thread().ident or 0
    while not _ended.wait(0.02):
        if time.monotonic() > latest or not _importing(sys._current_frames().get(main)):
            if hasattr(signal, "pthread_kill"):  # ends a wait too
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(signal.Signals(number))
            return
