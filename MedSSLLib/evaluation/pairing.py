"""Which file of a folder belongs to which case: one rule for scores, reports and benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import case_name
from MedSSLLib.project.sources.grouping import named_after_cases


def by_case(
    files: Iterable[Path], cases: Collection[str] = ()
) -> tuple[dict[str, Path], dict[str, InputError]]:
    """Files by case: that of its own name, else CASE_seg and the like, as `medssl init` takes them.

    Args:
        files: image files of one folder.
        cases: names that are looked for; a file whose name says nothing of them keeps its own.

    Returns:
        The files by name, in Unicode NFC, whichever form the file system has; and the refusals of
        cases with two files, of which nobody knows which one counts.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(case_name(file), []).append(file)
    named = named_after_cases({name: of[0] for name, of in groups.items()}, cases)
    found = {name: list(groups[case_name(file)]) for name, file in named.items()}
    for name in sorted(found.keys() - set(cases)):
        (belongs,) = named_after_cases({name: found[name][0]}, cases)
        # CASE_seg and CASE_mask without CASE itself: the second is as good as the first
        if belongs != name and belongs not in groups:
            found[belongs] += found.pop(name)
    twice = {}
    for name, of in found.items():
        if len(of) > 1:
            twice[name] = InputError(
                f"has {len(of)} files: {', '.join(file.name for file in of)}",
                case=name,
                file=of[0].parent,
                remedy="Keep one of them.",
            )
    return {name: of[0] for name, of in found.items()}, twice
