"""Selections of cases ("a,b", "@FILE", "") and the roles they give."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import case_name
from MedSSLLib.project.manifest import Case, Manifest


def names_in(selection: str) -> list[str]:
    """The names a selection lists, in order, each once: "a,b", or "@FILE" with commas or lines; ""
    lists none.

    Raises InputError for a file that cannot be read.
    """
    text = selection.strip()
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise InputError(
                "cannot be read as a list of cases",
                file=text[1:],
                remedy="Give a UTF-8 text file with one case a line.",
            ) from error
    names = (
        unicodedata.normalize("NFC", name.strip())
        for line in text.splitlines()
        for name in line.split(",")
    )
    return list(dict.fromkeys(name for name in names if name))


def selected(selection: str, cases: Mapping[str, Case]) -> list[str]:
    """Names of the cases that a selection lists, in its order, each once.

    A file name stands for its case, and a patient's name (where no case has it) for all cases of
    that patient. Raises InputError for unknown names, with similar ones.
    """
    found: dict[str, None] = {}
    unknown: list[str] = []
    for name in names_in(selection):
        matches = [match for match in (name, case_name(name)) if match in cases][:1]
        matches = matches or [case.name for case in cases.values() if case.patient == name]
        found |= dict.fromkeys(matches)
        unknown += [] if matches else [name]
    if unknown:
        similar = difflib.get_close_matches(unknown[0], sorted(cases), n=3)
        hint = (
            f"Did you mean {', '.join(similar)}?"
            if similar
            else "Case names are file names without extensions."
        )
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(f"no case is called {', '.join(unknown[:5])}{more}", remedy=hint)
    return list(found)


def with_roles(manifest: Manifest, labelled: str | None, test: str | None) -> Manifest:
    """A manifest in which exactly the selected cases are labelled, or test cases; None leaves those
    roles alone.

    Raises InputError for a case that is in both, or a labelled case without a label.
    """
    cases = manifest.cases
    tests = {name for name, case in cases.items() if case.role == "test"}
    tests = tests if test is None else set(selected(test, cases))
    marked = {name for name, case in cases.items() if case.role == "labelled"} - tests
    marked = marked if labelled is None else set(selected(labelled, cases))
    for name in sorted(marked & tests):
        raise InputError(
            "is a test case, so its label may not be read for training",
            case=name,
            remedy="Take it out of one of the two selections.",
        )
    for name in sorted(marked):
        if cases[name].label is None:
            raise InputError(
                "has no label", case=name, remedy="Select labelled cases, or add its label file."
            )
    roles = {
        name: "test" if name in tests else "labelled" if name in marked else "unlabelled"
        for name in cases
    }
    return replace(
        manifest, cases={name: replace(case, role=roles[name]) for name, case in cases.items()}
    )
