"""A piece of work in Python: its events are shown, and it can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError, GuardError, is_out_of_memory
from MedSSLLib.core.events import Event, Events
from MedSSLLib.core.sinks import for_people


@contextmanager
def session(options: Mapping[str, Any]) -> Iterator[Events]:
    """Events that are shown; Ctrl-C becomes CancelledError, and memory that ran out GuardError."""
    with interrupts.on_signals(_interrupt), Events() as events:
        events.add(for_people(quiet=options.get("quiet", False)))
        if options.get("on_event"):
            events.add(_Callback(options["on_event"]))
        try:
            yield events
        except (Exception, CancelledError, KeyboardInterrupt) as error:
            told = _as_own(error)
            events.emit("error", message=str(told), exit_code=getattr(told, "exit_code", 1))
            if told is error:
                raise
            raise told from error


def _interrupt(error: BaseException) -> int:
    """In a module's import nothing else can be raised; the command line would end the process."""
    raise KeyboardInterrupt


def _as_own(error: BaseException) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return CancelledError("Cancelled.")
    if is_out_of_memory(error):
        return GuardError(
            f"Out of memory ({str(error).splitlines()[0] if str(error) else 'no more is known'}). "
            "Use a smaller batch, or a smaller patch (training.voxels)."
        )
    return error


class _Callback:
    """A sink that calls a function of the user, who may stop the work in it."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function

    def write(self, event: Event) -> None:
        try:
            self._function(event)
        except KeyboardInterrupt:
            interrupts.ask("Cancelled.")

    def close(self) -> None:
        """Nothing is open."""
