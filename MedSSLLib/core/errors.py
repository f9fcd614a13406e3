"""Errors that a user can act on, each with the exit code of the command line.

Exit codes: 0 done, 1 failed, 2 bad input or usage, 3 cancelled (checkpoint kept), 4 stopped by a
guard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class MedSSLError(Exception):
    """A failure that is explained to the user without a traceback."""

    exit_code = 1


class InputError(MedSSLError):
    """Something given by the user cannot be used.

    The message reads ``case: file: finding. remedy``; parts that are not given are left out.
    """

    exit_code = 2

    def __init__(
        self, finding: str, *, case: str = "", file: str | os.PathLike[str] = "", remedy: str = ""
    ) -> None:
        self.finding = finding.rstrip(". ")
        self.case = case
        self.file = os.fspath(file)
        self.remedy = remedy
        super().__init__(self.finding)

    def __str__(self) -> str:
        where = [part for part in (printable(self.case), printable(self.file)) if part]
        text = ": ".join([*where, printable(self.finding)]) + "."
        return f"{text} {self.remedy}" if self.remedy else text

    def for_case(self, case: str) -> InputError:
        """The same error with the case named, unless it already names one."""
        return type(self)(self.finding, case=self.case or case, file=self.file, remedy=self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.finding, self.case, self.file, self.remedy)


class CancelledError(BaseException):
    """The user stopped the command; a checkpoint is kept.

    No Exception, so that code that goes on after a failure, ours or a library's, does not take it
    for one.
    """

    exit_code = 3


class GuardError(MedSSLError):
    """A guard stopped the command: loss not finite, collapse, no memory."""

    exit_code = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, or what torch raises for a device and for the
    CPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def naming(case: str, file: str = "") -> Iterator[None]:
    """Name the case, and the file where none is named, in every InputError raised within."""
    try:
        yield
    except InputError as error:
        if (error.case or not case) and (error.file or not file):
            raise
        raise InputError(
            error.finding, case=error.case or case, file=error.file or file, remedy=error.remedy
        ) from error.__cause__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"Did you mean 'finetune'?"``, or "" where nothing is like the name."""
    lower = {text.lower(): text for text in known}
    near = get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"Did you mean {lower[near[0]]!r}?" if near else ""


def printable(text: str) -> str:
    """`text` with control, bidirectional and other unprintable characters shown as escapes (safe in
    a terminal).
    """
    return "".join(
        char
        if char.isprintable()
        else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )


def _rebuild(kind: type[InputError], finding: str, case: str, file: str, remedy: str) -> InputError:
    return kind(finding, case=case, file=file, remedy=remedy)
