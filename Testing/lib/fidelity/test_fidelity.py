"""Every variant of every kind of data has the verdict that is right for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.lib.fidelity.registry import all_variants, judge


@pytest.mark.parametrize("kind", sorted({found.kind for found in all_variants()}))
def test_verdicts(kind: str, tmp_path: Path) -> None:
    wrong = {}
    variants = [found for found in all_variants() if found.kind == kind]
    for number, found in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        verdict = judge(found, folder)
        if verdict.word != found.expect:
            wrong[found.name] = f"{verdict.word}, not {found.expect}: {verdict.detail}"
    assert not wrong


def test_names_are_unique_and_there_are_enough() -> None:
    names = [(found.kind, found.name) for found in all_variants()]
    assert len(set(names)) == len(names)
