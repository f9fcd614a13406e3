"""Which file belongs to which case: alike in evaluate, report, rounds and benchmarks."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.benchmark.protocol import score_test_cases
from MedSSLLib.core.errors import InputError
from MedSSLLib.evaluation.evaluate import evaluate_folder
from MedSSLLib.evaluation.pairing import by_case
from MedSSLLib.evaluation.scoring import dice_against, score_predictions
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each

GRID = Geometry((8, 7, 6))
COMPOSED = "Müller é"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def found(names: list[str], cases: list[str]) -> tuple[dict[str, str], list[str]]:
    files, twice = by_case([Path(name) for name in names], cases)
    return {case: file.name for case, file in files.items()}, sorted(twice)


@each(
    ("names", "cases", "expected", "twice"),
    [
        (["c.nii.gz", "d.nrrd"], ["c"], {"c": "c.nii.gz", "d": "d.nrrd"}, []),
        (["c_seg.nii.gz"], ["c"], {"c": "c_seg.nii.gz"}, []),
        (["label-c.nii.gz"], ["c"], {"c": "label-c.nii.gz"}, []),
        (["c_seg.nii.gz"], ["c_seg", "c"], {"c_seg": "c_seg.nii.gz"}, []),
        (["c_seg.nii.gz"], ["d"], {"c_seg": "c_seg.nii.gz"}, []),
        (["c.nii.gz", "c_seg.nii.gz"], ["c"], {"c": "c.nii.gz", "c_seg": "c_seg.nii.gz"}, []),
        (["c.nii.gz", "c.nrrd"], ["c"], {"c": "c.nii.gz"}, ["c"]),
        (["c_seg.nii.gz", "c_seg.nrrd"], ["c"], {"c": "c_seg.nii.gz"}, ["c"]),
        (["c_label.nii.gz", "c_seg.nii.gz"], ["c"], {"c": "c_label.nii.gz"}, ["c"]),
        ([f"{DECOMPOSED}.nii"], [COMPOSED], {COMPOSED: f"{DECOMPOSED}.nii"}, []),
        ([f"{DECOMPOSED}_gt.nii"], [COMPOSED], {COMPOSED: f"{DECOMPOSED}_gt.nii"}, []),
        ([f"{DECOMPOSED}.nii", f"{COMPOSED}.nii"], [], {COMPOSED: f"{DECOMPOSED}.nii"}, [COMPOSED]),
    ],
)
def test_names_of_files_and_cases(names, cases, expected, twice):
    assert found(names, cases) == (expected, twice)


def half(value: int = 1, stop: int = 4) -> np.ndarray:
    array = np.zeros(GRID.shape, np.uint8)
    array[1:stop] = value
    return array


def write(folder: Path, name: str, array: np.ndarray) -> None:
    io.write_image(folder / name, Volume(array, GRID))


@each(
    ("prediction", "reference"),
    [("c.nii.gz", "c_seg.nii.gz"), ("c_mask.nrrd", "c.nii.gz"), ("c_seg.nii", "c_seg.nii.gz")],
)
def test_labels_named_beside_scans_are_scored(tmp_path, prediction, reference):
    """`medssl init --labels` takes case_seg.nii.gz as the label of the case."""
    for part, name in (("p", prediction), ("r", reference)):
        for old in (tmp_path / part).glob("*"):
            old.unlink()
        write(tmp_path / part, name, half())
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert len(result["cases"]) == 1 and result["summary"]["dice"]["mean"] == 1
    assert result["missing"] == result["extra"] == []


def test_names_of_macos_belong_to_the_cases_that_predict_wrote(tmp_path):
    write(tmp_path / "p", f"{COMPOSED}.nii.gz", half())
    write(tmp_path / "r", f"{DECOMPOSED}.nii.gz", half())
    result = evaluate_folder(tmp_path / "p", tmp_path / "r", None)
    assert list(result["cases"]) == [COMPOSED]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    generator = np.random.default_rng(0)
    for name in ("a", "b", DECOMPOSED):
        image = generator.normal(100, 10, GRID.shape).astype(np.float32)
        write(tmp_path / "images", f"{name}.nii.gz", image)
        write(tmp_path / "labels", f"{name}.nii.gz", half())
        write(tmp_path / "out", f"{name}.nii.gz", half())
    made = Project.create(
        tmp_path / "project", tmp_path / "images", labels=tmp_path / "labels", test=f"b,{COMPOSED}"
    )
    assert [case.name for case in made.test] == [COMPOSED, "b"] and not made.refused
    return made


def test_a_report_scores_no_case_with_two_predictions(project, tmp_path):
    scored = score_predictions(project, tmp_path / "out", "mine")
    assert set(scored.metrics["cases"]) == {"b", COMPOSED}
    write(tmp_path / "out", "b.nrrd", half(stop=2))
    scored = score_predictions(project, tmp_path / "out", "mine")
    assert list(scored.metrics["cases"]) == list(scored.predictions) == [COMPOSED]
    why = scored.metrics["errors"]["b"]
    assert "b.nii.gz" in why and "b.nrrd" in why
    result = evaluate_folder(tmp_path / "out", tmp_path / "labels", None)
    assert result["errors"]["b"] == why, "evaluate says the same"


def test_a_benchmark_refuses_two_predictions_of_a_case(project, tmp_path):
    assert set(score_test_cases(project, tmp_path / "out", 1.0)["dice"]) == {"b", COMPOSED}
    write(tmp_path / "out", "b.nrrd", half(stop=2))
    with pytest.raises(InputError, match=r"b\.nii\.gz, b\.nrrd"):
        score_test_cases(project, tmp_path / "out", 1.0)


def test_pseudo_labels_are_scored_by_one_label_a_case(project, tmp_path):
    expected = dict.fromkeys([case.name for case in project.pool], 1.0)
    pseudo = tmp_path / "pseudo"
    for name in expected:
        write(pseudo, f"{name}.nii.gz", half())
    assert dice_against(project, pseudo, tmp_path / "labels") == expected
    name = next(iter(expected))
    write(tmp_path / "labels", f"{name}.nrrd", half(stop=2))
    with pytest.raises(InputError, match="has 2 files"):
        dice_against(project, pseudo, tmp_path / "labels")
