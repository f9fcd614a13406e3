"""Files as users have them, one variant each: does what the file means survive, or is it said why
not?

A kind of data is a module `kind_*.py` of this folder. Each variant is a function there that makes
files in an empty folder, lets the library work on them and compares with what it knows, in another
way than through the library:

    @variant("label ids", "five digits, NIfTI")
    def five_digits(folder: Path) -> str | None: ...

What it returns or raises is the verdict: None for data that came through, a string for data that
came through with a warning (the string is the warning), an InputError for a refusal (it must have a
remedy), an AssertionError for a result that is silently wrong. `expect` is the verdict that the
test of the same folder demands; `python Testing/bench/data_fidelity.py` prints them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from MedSSLLib.core.errors import InputError

HANDLED, WARNED, REFUSED = "handled", "handled, with a warning", "refused with a message"
WRONG, FAILED = "SILENT WRONG", "FAILED"

Check = Callable[[Path], "str | None"]


@dataclass(frozen=True)
class Variant:
    """One way in which data of a kind come, with the verdict that is right for it."""

    kind: str
    name: str
    check: Check
    expect: str


@dataclass(frozen=True)
class Verdict:
    """What became of a variant, and in which words."""

    word: str
    detail: str = ""


VARIANTS: list[Variant] = []


def variant(kind: str, name: str, expect: str = HANDLED) -> Callable[[Check], Check]:
    """Register a check under the kind and name that the table shows."""

    def register(check: Check) -> Check:
        VARIANTS.append(Variant(kind, name, check, expect))
        return check

    return register


def all_variants() -> list[Variant]:
    """The variants of all modules beside this one, by kind."""
    for path in sorted(Path(__file__).parent.glob("kind_*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")
    return list(VARIANTS)


def judge(found: Variant, folder: Path) -> Verdict:
    """Run a variant in an empty folder."""
    try:
        warning = found.check(folder)
    except InputError as error:
        if error.remedy:
            return Verdict(REFUSED, str(error).replace(f"{folder}/", ""))
        return Verdict(FAILED, f"a refusal without a remedy: {error}")
    except AssertionError as error:
        return Verdict(WRONG, (str(error) or "the result differs").split("\n")[0])
    except Exception as error:  # what a user would see as a traceback
        return Verdict(FAILED, f"{type(error).__name__}: {error}")
    return Verdict(WARNED, warning.replace(f"{folder}/", "")) if warning else Verdict(HANDLED)
