"""Without a project, structures are compared by the names that segmentations carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.evaluation.evaluate import evaluate_folder
from Testing.lib.case_helpers import each
from Testing.lib.fidelity.files import save
from Testing.lib.fidelity.kind_06_segmentations import seg

SHAPE = (12, 10, 8)
NAMES = ("liver", "spleen")


def structures(liver: slice, spleen: slice) -> dict[str, np.ndarray]:
    """Masks of two boxes along the first axis."""
    masks = {}
    for name, part in zip(NAMES, (liver, spleen), strict=True):
        masks[name] = np.zeros(SHAPE, bool)
        masks[name][part, 2:6, 2:6] = True
    return masks


TRUTH = structures(slice(1, 5), slice(6, 10))
HALF = structures(slice(3, 5), slice(6, 10))
"""Half of the liver: Dice 2 * 2 / (2 + 4); and the spleen as it is: 1."""
DICE = {"liver": pytest.approx(2 / 3), "spleen": 1.0}


def painted(masks: dict[str, np.ndarray], values: dict[str, int]) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for name, mask in masks.items():
        label[mask] = values[name]
    return label


def named(path: Path, masks: dict[str, np.ndarray], values: dict[str, int], **called: str) -> None:
    """A segmentation with these values, whose segments are stored by value."""
    names = sorted(values, key=lambda name: values[name])
    numbers = [values[name] for name in names]
    words = [called.get(name, name) for name in names]
    seg(path.with_name(f"{path.name}.seg.nrrd"), painted(masks, values), words, values=numbers)


def plain(path: Path, masks: dict[str, np.ndarray], values: dict[str, int]) -> None:
    save(path.with_name(f"{path.name}.nii.gz"), painted(masks, values))


ONE_TWO, TWO_ONE = {"liver": 1, "spleen": 2}, {"liver": 2, "spleen": 1}
SEVEN, FIVE_NINE = {"liver": 7, "spleen": 1}, {"liver": 5, "spleen": 9}


@each("references", [(ONE_TWO, TWO_ONE), (TWO_ONE, ONE_TWO), (SEVEN, ONE_TWO), (ONE_TWO, SEVEN)])
@each("predictions", [(ONE_TWO, ONE_TWO), (TWO_ONE, ONE_TWO), (SEVEN, TWO_ONE), (FIVE_NINE, SEVEN)])
def test_structures_are_compared_by_name_whatever_their_values(tmp_path, references, predictions):
    for case, expected, predicted in zip("ab", references, predictions, strict=True):
        named(tmp_path / "r" / case, TRUTH, expected)
        named(tmp_path / "p" / case, HALF, predicted, liver="Liver ")
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert not result["errors"] and not result["unknown"]
    for case in "ab":
        rows = result["cases"][case]
        assert {name.strip().lower(): row["dice"] for name, row in rows.items()} == DICE, case
    assert len(result["summary"]["dice"]["per_class"]) == 2


@each("side", ["r", "p"])
def test_values_of_plain_files_have_the_names_that_all_others_agree_on(tmp_path, side):
    """Numbers without a name keep theirs."""
    other = TRUTH | {"cyst": np.roll(TRUTH["liver"], 4, axis=1)}
    for case in "ab":
        (named if side == "r" else plain)(tmp_path / "r" / case, TRUTH, FIVE_NINE)
        (named if side == "p" else plain)(tmp_path / "p" / case, HALF, FIVE_NINE)
    for part in ("p", "r"):
        plain(tmp_path / part / "c", other, FIVE_NINE | {"cyst": 6})
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert list(result["cases"]["a"]) == ["liver", "6", "spleen"], "in the order of their values"
    assert result["cases"]["c"]["6"]["dice"] == 1
    assert {name: result["cases"]["b"][name]["dice"] for name in NAMES} == DICE


@each("second", [TWO_ONE, {"liver": 3, "spleen": 2}])
def test_numbers_that_the_names_do_not_agree_on_are_refused(tmp_path, second):
    """Case c has names on both sides and is scored."""
    for case, values in (("a", ONE_TWO), ("b", second), ("c", ONE_TWO)):
        named(tmp_path / "r" / case, TRUTH, values)
        for old in (tmp_path / "p").glob(f"{case}.*"):
            old.unlink()
        (named if case == "c" else plain)(tmp_path / "p" / case, HALF, ONE_TWO)
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert list(result["cases"]) == ["c"] and sorted(result["errors"]) == ["a", "b"]
    assert {name: result["cases"]["c"][name]["dice"] for name in NAMES} == DICE
    for case, why in result["errors"].items():
        assert why.startswith(f"{case}: {tmp_path / 'p' / case}.nii.gz: ")
        assert "a.seg.nrrd" in why and "b.seg.nrrd" in why and "'liver'" in why
        assert "--project" in why
    scored = evaluate_folder(tmp_path / "p", tmp_path / "r", None, classes=ONE_TWO)
    for case in "abc":
        assert {name: scored["cases"][case][name]["dice"] for name in NAMES} == DICE
    (tmp_path / "p" / "c.seg.nrrd").unlink()
    with pytest.raises(InputError, match="no case could be scored.*do not agree on values"):
        evaluate_folder(tmp_path / "p", tmp_path / "r", None)


def test_plain_references_need_predictions_whose_names_agree(tmp_path):
    for case, values in (("a", ONE_TWO), ("b", TWO_ONE)):
        plain(tmp_path / "r" / case, TRUTH, ONE_TWO)
        named(tmp_path / "p" / case, HALF, values)
    with pytest.raises(InputError, match="do not agree on values: 1 is 'liver' in .*--project"):
        evaluate_folder(tmp_path / "p", tmp_path / "r", None)


def test_a_name_that_slicer_gives_is_a_number(tmp_path):
    """Segment_1 says nothing: it is the liver of the other files, unless they do not agree."""
    unnamed = {"liver": "Segment_1", "spleen": "Segment_2"}
    for case in "0a":  # the first case has them in its reference, the second in its prediction
        named(tmp_path / "r" / case, TRUTH, ONE_TWO, **(unnamed if case == "0" else {}))
        named(tmp_path / "p" / case, HALF, ONE_TWO, **(unnamed if case == "a" else {}))
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    for case in "0a":
        assert {name: row["dice"] for name, row in result["cases"][case].items()} == DICE
    for part in ("r", "p"):
        (tmp_path / part / "0.seg.nrrd").unlink()
    named(tmp_path / "r" / "b", TRUTH, TWO_ONE)
    named(tmp_path / "p" / "b", HALF, TWO_ONE)
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert list(result["cases"]) == ["b"] and "p/a.seg.nrrd: has values without" in str(result)
    for part in ("r", "p"):
        for case in "ab":
            named(tmp_path / part / case, TRUTH, ONE_TWO if part == "r" else TWO_ONE, **unnamed)
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert list(result["cases"]["a"]) == ["Segment_1", "Segment_2"]
    assert result["summary"]["dice"]["mean"] == 1


def test_predictions_called_otherwise_are_refused_and_new_names_are_rows(tmp_path):
    cyst = {"cyst": np.roll(TRUTH["liver"], 4, axis=1)}
    for case in "ab":
        named(tmp_path / "r" / case, TRUTH, ONE_TWO)
    named(tmp_path / "p" / "a", HALF, ONE_TWO, liver="hepar")
    named(tmp_path / "p" / "b", HALF | cyst, ONE_TWO | {"cyst": 3})
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert "'hepar', which is no class here" in result["errors"]["a"]
    assert {name: row["dice"] for name, row in result["cases"]["b"].items()} == DICE | {"cyst": 0}
    assert sorted(result["errors"]) == ["a"]


def test_a_new_name_meets_no_value_that_another_file_got(tmp_path):
    """Both structures are 1 in their references, so that one of them gets another value."""
    liver, spleen = ({name: TRUTH[name]} for name in NAMES)
    cyst = {"cyst": np.roll(TRUTH["liver"], 4, axis=1)}
    named(tmp_path / "r" / "a", liver, {"liver": 1})
    named(tmp_path / "r" / "b", spleen, {"spleen": 1})
    named(tmp_path / "p" / "a", liver | cyst, {"liver": 1, "cyst": 2})
    named(tmp_path / "p" / "b", spleen, {"spleen": 1})
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert not result["errors"]
    assert result["summary"]["dice"]["per_class"] == {"liver": 1, "cyst": 0, "spleen": 1}


def test_a_segment_called_ignore_does_not_count(tmp_path):
    named(tmp_path / "r" / "a", TRUTH, ONE_TWO, liver="ignore")
    named(tmp_path / "p" / "a", HALF, ONE_TWO, liver="ignore")
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert {name: row["dice"] for name, row in result["cases"]["a"].items()} == {"spleen": 1}
