"""``medssl`` and ``python -m MedSSLLib``: the command line; Ctrl-C ends it quietly from the first
moment to the last.

Once a command runs, `stopping` hears the signals. Here they are heard before, while the command
line itself is imported and its words are parsed, and after, while Python clears up: the work is
then done and its exit code stands.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Read by OpenMP when PyTorch is loaded. Threads that wait actively slow each other down several
times where other programs, Slicer for one, use the processor too."""

_CANCELLED_CODE = 3
_CANCELLED_WORDS = "medssl: Cancelled.\n"
_READY = "ready"
"""The word that has a process import what trainings need, and wait for its command. Importing
takes several seconds, which whoever knows that a command will come (the Slicer module) spares the
person who asks for it."""
_IMPORTED = (
    "lightning_fabric",
    "MedSSLLib.selftraining.selftrain",
    "MedSSLLib.pretraining.pretrain",
    "MedSSLLib.finetuning.complete",
    "MedSSLLib.inference.predict",
    "MedSSLLib.live.live",
)


def main() -> int:
    """Run one command; returns the exit code."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    try:
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if sys.argv[1:] == [_READY]:
            sys.argv[1:] = _awaited_command()
            if not sys.argv[1:]:
                return 0
        from MedSSLLib.cli.main import main as run

        code = run()
    except KeyboardInterrupt:
        code = _CANCELLED_CODE
        sys.stderr.write(_CANCELLED_WORDS)
    _close_ears(code)
    return code


def _awaited_command() -> list[str]:
    """Import what commands need, then wait for the words of one on standard input: a JSON list on a
    line. What follows on standard input is the command's. Without a line there is no command.
    """
    with _ended_by_a_word(), contextlib.suppress(ImportError):  # the command says what is missing
        for name in _IMPORTED:
            importlib.import_module(name)
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:
            return []
        line += read
    return [str(word) for word in json.loads(line)]


@contextlib.contextmanager
def _ended_by_a_word() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process at once: nothing is written yet, and libraries that are
    being imported take an exception for a fault of their own, or abort.
    """
    import signal

    def end(*_: object) -> None:
        os.write(2, _CANCELLED_WORDS.encode())
        os._exit(_CANCELLED_CODE)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close_ears(code: int) -> None:
    """From now on Ctrl-C changes nothing, and SIGTERM ends the process without a word."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only answer that lasts while Python ends
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))


if __name__ == "__main__":
    raise SystemExit(main())
