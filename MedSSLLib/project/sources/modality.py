"""Which modality the scans of a project have, and whether all have the same. Part of `ingest`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import contradicts, is_dicom_source, modality_of, shows_air
from MedSSLLib.project.sources.grouping import Found

Modalities = tuple[str, ...]
"""One modality a channel."""


def choose_modality(known: Modalities | None, cases: Sequence[Found]) -> tuple[Modalities, str]:
    """The modality that is `known` (of the project, or declared), else that of most scans; and a
    warning where scans differ ("" where they do not).

    DICOM says what it is, so every series is asked. Of other files the first, middle and last are
    read and the beginning of all: a CT shows air there. Where some do, the others are read too. To
    a modality that is known they are compared one by one.
    """
    if known:
        return known, _contradictions(known, cases)
    counts = Counter(len(found.images) for found in cases)
    channels = counts.most_common(1)[0][0] if counts else 1
    kinds = _kinds([found for found in cases if len(found.images) == channels])
    if not kinds:
        return ("MR",) * channels, ""
    chosen = Counter(kinds.values()).most_common(1)[0][0]
    return chosen, _mixture(kinds, chosen)


def _kinds(cases: Sequence[Found]) -> dict[str, Modalities]:
    """The modalities of the cases that tell them, by name."""
    looked_at = {cases[place].name for place in (0, len(cases) // 2, -1) if cases}
    air = {case.name: any(map(_shows_air, case.images)) for case in cases}
    found: dict[str, Modalities] = {}
    for case in cases:
        told = case.name in looked_at or all(map(is_dicom_source, case.images))
        # where others show air, a file that does not may be another modality, or a CT without air
        if told or any(air.values()):
            kind = _kind(case)
            if kind is not None:
                found[case.name] = kind
    return found


def _kind(case: Found) -> Modalities | None:
    with suppress(InputError):
        return tuple(modality_of(image) for image in case.images)
    return None  # refused later, with its file


def _shows_air(image: Path) -> bool:
    try:
        return shows_air(image)
    except (InputError, OSError, EOFError):
        return False


def _mixture(kinds: dict[str, Modalities], chosen: Modalities) -> str:
    groups: dict[Modalities, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    if len(groups) < 2:
        return ""
    words = ", ".join(
        f"{len(names)} like {'+'.join(kind)} ({_some(names)})" for kind, names in groups.items()
    )
    return (
        f"the scans differ in kind: {words}; all are taken as {'+'.join(chosen)}. Make a project "
        "for each, or say which it is with --modality"
    )


def _contradictions(known: Modalities, cases: Sequence[Found]) -> str:
    """A warning of scans that seem to be of other modalities."""
    found: dict[str, list[str]] = {}
    for case in cases:
        with suppress(InputError, OSError, EOFError):  # refused later, with its file
            for image, modality in zip(case.images, known, strict=False):
                if words := contradicts(image, modality):
                    found.setdefault(words, []).append(case.name)
    return "; ".join(
        f"{words}, in {len(names)} scan{'s' * (len(names) > 1)} ({_some(names)}), taken as "
        f"{'+'.join(known)} all the same. "
        + (
            "Is the modality right? CT must be in Hounsfield units"
            if len(names) == len(cases)
            else "Make a project for each kind"
        )
        for words, names in found.items()
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
