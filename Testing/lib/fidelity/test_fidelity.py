"""Every variant of every kind of data has the verdict that is right for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.lib.fidelity.registry import Variant, all_variants, judge


@pytest.mark.parametrize("found", all_variants(), ids=lambda v: f"{v.kind}: {v.name}")
def test_verdict(found: Variant, tmp_path: Path) -> None:
    verdict = judge(found, tmp_path)
    assert verdict.word == found.expect, verdict.detail


def test_names_are_unique_and_there_are_enough() -> None:
    names = [(found.kind, found.name) for found in all_variants()]
    assert len(set(names)) == len(names)
