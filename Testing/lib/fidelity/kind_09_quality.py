"""An estimated Dice must not reassure where nothing is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedSSLLib.evaluation.quality import Raw, estimate_text, judged, review_text
from Testing.lib.fidelity.registry import variant

KIND = "estimated quality"
GOOD = Raw((0.95, 0.9), (0.95, 0.9))


def known(patients: int, errors: float = 0.02) -> list[list[tuple[float, float]]]:
    return [[(0.9, 0.9 + errors * (-1) ** n)] for n in range(patients)]


for held_out in (0, 1, 3):

    def uncalibrated(folder: Path, patients: int = held_out) -> str | None:
        entry = judged(GOOD, known(patients))
        assert entry["review"] is None, f"review is {entry['review']}"
        assert "uncalibrated" in estimate_text(entry), "a number without interval"
        return None

    variant(KIND, f"{held_out} held-out patients")(uncalibrated)


@variant(KIND, "enough held-out patients")
def calibrated(folder: Path) -> str | None:
    entry = judged(GOOD, known(8))
    assert entry["review"] is False and f"{entry['low']:.2f} to" in estimate_text(entry)
    return None


@variant(KIND, "a wide interval")
def wide(folder: Path) -> str | None:
    entry = judged(GOOD, known(8, 0.3))
    assert entry["review"] is True and review_text(entry).startswith("yes: Dice may be")
    return None


@variant(KIND, "nothing found")
def nothing(folder: Path) -> str | None:
    entry = judged(None, [])
    assert entry["review"] is True and "0" not in estimate_text(entry)
    return None


@variant(KIND, "a class that all labels have is missing")
def missing(folder: Path) -> str | None:
    assert judged(GOOD, [], ["lesion"])["review"] is True
    return None


@variant(KIND, "dice and per_class")
def same_meaning(folder: Path) -> str | None:
    for patients in (0, 8):
        entry = judged(GOOD, known(patients))
        assert abs(np.mean(entry["per_class"]) - entry["dice"]) < 1e-9, "two meanings"
    return None


@variant(KIND, "probabilities that are no numbers")
def not_a_number(folder: Path) -> str | None:
    entry = judged(Raw((np.nan, 0.9), (np.nan, 0.9)), known(8))
    assert entry["dice"] is None and entry["review"] is True, "passes as estimated"
    return None
