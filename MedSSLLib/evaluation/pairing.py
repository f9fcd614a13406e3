"""Which file of a folder belongs to which case: one rule for scores, reports and benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import case_name
from MedSSLLib.project.sources.grouping import case_segmented


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
    found: dict[str, list[Path]] = {}
    for name, of in groups.items():
        case = name if name in cases else case_segmented(name, cases)
        # without a file of the plain name CASE_seg and CASE_mask are as good as each other
        found.setdefault(case if case and case not in groups else name, []).extend(of)
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
