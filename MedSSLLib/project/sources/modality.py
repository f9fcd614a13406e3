"""Which modality the scans of a project have, and whether all have the same. Part of `ingest`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import is_dicom_source, modality_of, shows_air
from MedSSLLib.project.sources.grouping import Found

Modalities = tuple[str, ...]
"""One modality a channel."""


def choose_modality(known: Modalities | None, cases: Sequence[Found]) -> tuple[Modalities, str]:
    """The modality that is `known` (of the project, or declared), else that of most scans; and a
    warning where scans differ ("" where they do not).

    DICOM says what it is, so every series is asked. Of other files the first, middle and last are
    read and the beginning of all: a CT shows air there. Where some do, the others are read too.
    """
    if known:
        found = {
            case.name: _kind(case)
            for case in cases
            if len(case.images) == len(known) and all(map(is_dicom_source, case.images))
        }
        others = {name: kind for name, kind in found.items() if kind is not None and kind != known}
        return known, "; ".join(filter(None, [_contradiction(known, others), _air(known, cases)]))
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


def _contradiction(known: Modalities, others: dict[str, Modalities]) -> str:
    if not others:
        return ""
    said = sorted({"+".join(kind) for kind in others.values()})
    return (
        f"DICOM of {len(others)} scans says {', '.join(said)} ({_some(list(others))}), they are "
        f"taken as {'+'.join(known)} as the other scans. Make a project for each kind"
    )


def _air(known: Modalities, cases: Sequence[Found]) -> str:
    """A warning of other files than DICOM that show air as in CT, where no channel is one."""
    if "CT" in known:
        return ""
    plain = [case for case in cases if not any(map(is_dicom_source, case.images))]
    named = [
        case.name
        for case in plain
        if any(map(_shows_air, case.images)) and "CT" in (_kind(case) or ())
    ]
    if not named:
        return ""
    return (
        f"{len(named)} scans have values as of CT, below -500 ({_some(named)}), they are taken as "
        f"{'+'.join(known)} as the other scans. Make a project for each kind"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
