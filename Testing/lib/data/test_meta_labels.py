"""Meta labels from cases: positions, columns, missing values, what is dropped and what is
refused.
"""

import csv
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.meta_labels import MISSING, build_metalabels, encode, quantile
from Testing.lib.case_helpers import each


@dataclass(frozen=True)
class FakeCase:
    name: str
    patient: str
    metadata: dict = field(default_factory=dict)


def cohort(**columns):
    """Four cases of two patients."""
    return [
        FakeCase(f"case{i}", f"p{i // 2}", {name: values[i] for name, values in columns.items()})
        for i in range(4)
    ]


@each("count", [1, 2, 3, 4, 5, 7, 8, 9, 10, 17, 100])
@each("parts", [1, 2, 4])
def test_quantile_is_the_formula(count, parts):
    found = [quantile(i, count, parts) for i in range(count)]
    assert found == [min(int(i // (count / parts)), parts - 1) for i in range(count)]
    sizes = np.bincount(found, minlength=parts)
    assert sizes.max() - sizes.min() <= 1 and found == sorted(found)


def test_encode():
    classes, codes = encode(["ES", " ED ", "", None, "n/a", "NaN", "ED"])
    assert (
        classes == ("ED", "ES")
        and codes.tolist() == [1, 0, -1, -1, -1, -1, 0]
        and codes.dtype == np.int64
    )


def test_every_usable_label_by_default():
    labels = build_metalabels(
        cohort(phase=["ED", "ES", "ED", ""], height=["170", "170", "181", "181"]), [8, 9, 8, 3]
    )
    assert labels.names == ("patient", "position", "phase")
    assert labels.counts == {"patient": 2, "position": 4, "phase": 2}
    assert labels.of(0, 0) == {"patient": 0, "position": 0, "phase": 0}
    assert labels.of(1, 8) == {"patient": 0, "position": 3, "phase": 1}
    assert labels.of(3, 1) == {"patient": 1, "position": 1, "phase": MISSING}
    assert "as patient does" in labels.dropped["height"]
    used, _ = labels.describe()
    assert used.endswith("phase (2 classes, missing for 1 of 4 cases).")


@each(
    ("values", "reason"),
    [
        (["A", "A", "A", "A"], "one class only"),
        (["A", "", "A", "NA"], "one class only"),
        (["", "", "", ""], "no values"),
        (["A", "B", "C", "D"], "one member only"),
        (["A", "B", "", ""], "one member only"),
        (["1.5", "2", "1.5", "2"], "numbers"),
        (["x", "x", "y", "y"], "as patient does"),
    ],
)
def test_unusable_columns_are_dropped_with_the_reason(values, reason):
    labels = build_metalabels(cohort(column=values), [8] * 4)
    assert labels.names == ("patient", "position") and reason in labels.dropped["column"]
    assert labels.describe()[-1] == f"Not used: column ({labels.dropped['column']})."


def test_reasons_are_said_of_one_column_and_of_several():
    labels = build_metalabels(cohort(column=["1", "2", "1", "2"]), [8] * 4)
    reason = labels.dropped["column"]
    assert labels.describe()[-1].endswith(
        "column (it holds numbers; name it to use it as categories)."
    )
    several = replace(labels, dropped={"a": reason, "b": reason})
    words = "Not used: a, b (they hold numbers; name one to use it as categories)."
    assert several.describe()[-1] == words


def test_an_unknown_column_is_answered_with_what_was_meant():
    with pytest.raises(InputError, match="Did you mean 'patient'?"):
        build_metalabels(cohort(), [8] * 4, names=["patent"])


def test_a_column_that_all_scans_of_a_patient_share_serves_when_it_is_named():
    """Two scanners of three patients: with two scans each the patient knows it, with one scan each
    it does not.
    """

    def cases(scanners, patients):
        return [
            FakeCase(f"c{i}", p, {"scanner": s})
            for i, (s, p) in enumerate(zip(scanners, patients, strict=True))
        ]

    several = cases("aabbaa", "ppqqrr")
    labels = build_metalabels(several, [8] * 6)
    assert (
        labels.names == ("patient", "position")
        and "all scans of a patient" in labels.dropped["scanner"]
    )
    assert build_metalabels(several, [8] * 6, ("scanner",)).names == ("scanner",)
    unknown = cases(["a", "a", "b", "", "a", "a"], "ppqqrr")
    assert "all scans of a patient" in build_metalabels(unknown, [8] * 6).dropped["scanner"], (
        "no value is no other one"
    )
    assert "scanner" in build_metalabels(cases("aabbab", "ppqqrr"), [8] * 6).names
    assert "scanner" in build_metalabels(cases("aabbaa", "pqrstu"), [8] * 6).names
    assert (
        "scanner" in build_metalabels(cases(["a", "", "b", "", "a", "b"], "ppqqrs"), [8] * 6).names
    )


def test_a_column_repeated_under_another_name_is_dropped():
    labels = build_metalabels(
        cohort(sex=["f", "m", "m", "f"], gender=["1f", "2m", "2m", "1f"]), [8] * 4
    )
    assert (
        labels.names == ("patient", "position", "sex") and "as sex does" in labels.dropped["gender"]
    )


def test_named_labels_keep_their_order_and_may_hold_numbers():
    labels = build_metalabels(
        cohort(site=["3", "3", "4", "4"]), [8] * 4, ("site", "position", "site")
    )
    assert labels.names == ("site", "position") and labels.of(2, 0)["site"] == 1


def test_named_but_unusable_labels():
    cases = cohort(site=["A"] * 4)
    labels = build_metalabels(cases, [8] * 4, ("site", "patient"))
    assert labels.names == ("patient",) and labels.dropped == {"site": "it has one class only"}
    with pytest.raises(InputError, match="no meta label is usable: site it has one class only"):
        build_metalabels(cases, [8] * 4, ("site",))


def test_unknown_column_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"'scanner' does not exist.*patient, position, phase"):
        build_metalabels(cohort(phase=["a", "b", "a", "b"]), [8] * 4, ("patient", "scanner"))


def test_columns_missing_in_some_cases():
    cases = [*cohort(phase=["ED", "ES", "ED", "ES"]), FakeCase("late", "p9")]
    labels = build_metalabels(cases, [8] * 5)
    assert labels.of(4, 0) == {"patient": 2, "position": 0, "phase": MISSING}


def test_patients_need_two_samples():
    alone = [FakeCase(f"c{i}", f"p{i}") for i in range(3)]
    assert build_metalabels(alone, [8, 8, 8]).names == ("patient", "position")
    assert build_metalabels(alone, None).names == ()
    assert "one member only" in build_metalabels(alone, None).dropped["patient"]
    assert "3D patch" in build_metalabels(alone, None).dropped["position"]
    assert build_metalabels(cohort(), None).names == ("patient",)
    assert "no case has 4 slices" in build_metalabels(alone, [3, 2, 1]).dropped["position"]
    assert build_metalabels([], []).names == ()


def test_torch_is_not_imported():
    code = "import sys, MedSSLLib.data.meta_labels; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False
        ).returncode
        == 0
    )


def test_heart_metadata():
    """The shared heart data: patient, position and phase come out as the documents' m = 1, 2, 3."""
    folder = os.environ.get("MEDSSL_DATA") or Path(__file__).parents[4] / "shared" / "data"
    table = Path(folder) / "cardiac" / "metadata.csv"
    if not table.exists():
        pytest.skip("the heart data is not here")
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = [FakeCase(row.pop("case"), row["patient_id"], row) for row in rows]
    labels = build_metalabels(cases, [int(row["size_z"]) for row in rows])
    assert labels.names == ("patient", "position", "phase") and "name it" in labels.dropped["group"]
    assert (
        labels.counts["patient"] == len({case.patient for case in cases})
        and labels.counts["phase"] == 2
    )
    assert math.isclose(np.mean(labels.of_case["phase"]), 0.5, abs_tol=0.1)
    assert (
        "as patient does" in labels.dropped["patient_id"]
        and "numbers" in labels.dropped["height_cm"]
    )
