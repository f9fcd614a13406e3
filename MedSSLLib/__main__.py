"""``medssl`` and ``python -m MedSSLLib``: the command line; Ctrl-C ends it quietly from the first
moment to the last.

Once a command runs, `stopping` hears the signals. Here they are heard before, while the command
line itself is imported and its words are parsed, and after, while Python clears up: the work is
then done and its exit code stands.
"""

import os
import sys

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Read by OpenMP when PyTorch is loaded. Threads that wait actively slow each other down several
times where other programs, Slicer for one, use the processor too."""


def main() -> int:
    """Run one command; returns the exit code."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    try:
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from MedSSLLib.cli.main import main as run

        code = run()
    except KeyboardInterrupt:
        code = 3
        sys.stderr.write("medssl: Cancelled.\n")
    _close_ears(code)
    return code


def _close_ears(code: int) -> None:
    """From now on Ctrl-C changes nothing, and SIGTERM ends the process without a word."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only answer that lasts while Python ends
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))


if __name__ == "__main__":
    raise SystemExit(main())
