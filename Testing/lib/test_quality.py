"""Predicted quality: closed forms, coverage of the interval by simulation, ranks by hand, and the files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib import io, judge
from MedSSLLib.cli import main
from MedSSLLib.evaluate import evaluate_folder
from MedSSLLib.geometry import Volume
from MedSSLLib.inference import VARIANTS, predict_varied
from MedSSLLib.judge import Judge, held_out_cases, raw_quality
from MedSSLLib.labels import Annotated
from MedSSLLib.manifest import Case
from MedSSLLib.planning import make_plan
from MedSSLLib.predict import Model
from MedSSLLib.quality import Raw, calibrated, compared, expected_dice, judged, spearman
from Testing.lib.grid_helpers import GRIDS


def test_expected_dice_by_hand():
    p = np.array([[0.1, 0.4, 1.0, 0.8], [0.9, 0.6, 0.0, 0.2], [0, 0, 0, 0.0]])
    value, absent = expected_dice(p, p.argmax(0))
    assert value == pytest.approx(2 * 1.5 / (2 + 1.7)) and absent is None
    certain = np.eye(2)[[0, 1, 1]].T
    assert expected_dice(certain, certain.argmax(0)) == [1.0]


def test_expected_dice_is_the_mean_dice_of_truths_drawn_from_the_probabilities():
    rng = np.random.default_rng(0)
    p1 = rng.uniform(size=4000)
    prediction = p1 > 0.5
    truths = rng.uniform(size=(200, 4000)) < p1
    dice = [2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()) for truth in truths]
    assert expected_dice(np.stack([1 - p1, p1]), prediction.astype(int))[0] == pytest.approx(np.mean(dice), abs=0.003)


def test_the_shift_and_the_interval_by_hand():
    assert calibrated(0.8, []) == (0.8, None, None)
    estimate, low, high = calibrated(0.8, [(0.9, 0.8), (0.7, 0.6)])
    assert estimate == pytest.approx(0.7) and low is None and high is None, "two cases are too few"
    errors = np.array([-0.1, 0.0, 0.05, -0.2, 0.1])
    known = [(0.5, 0.5 + e) for e in errors]
    estimate, low, high = calibrated(0.5, known)
    lows, highs = [], []
    for n, own in enumerate(errors):
        mean = np.mean(np.delete(errors, n))
        lows.append(0.5 + mean - abs(own - mean))
        highs.append(0.5 + mean + abs(own - mean))
    assert estimate == pytest.approx(0.5 + errors.mean())
    assert (low, high) == pytest.approx((min(lows), max(highs))), "6 x 0.2 = 1: the outermost of 5"
    assert calibrated(0.99, [(0.5, 0.9)])[0] == 1.0, "no Dice above 1"


def test_the_interval_covers_new_cases_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(1500):
        true = 0.5 + rng.normal(0, 0.05, 9)
        raw = true + 0.1 + rng.normal(0, 0.02, 9)
        _, low, high = calibrated(raw[0], list(zip(raw[1:], true[1:], strict=True)))
        inside.append(low <= true[0] <= high)
    assert 0.76 <= np.mean(inside) <= 0.92


def test_review():
    assert judged(None, [])["review"] and judged(None, [])["dice"] == 0
    assert not judged(Raw(0.9, 0.9, (0.9,)), [])["review"]
    assert "0.60" in judged(Raw(0.5, 0.7, (0.7,)), [])["why"]
    wide = [(0.9, 0.9 + e) for e in (-0.4, 0.05, 0.1, -0.1, 0.08, 0.02)]
    entry = judged(Raw(0.9, 0.9, (0.9,)), wide)
    assert entry["dice"] > 0.7 > entry["low"] and entry["review"], "the lower end decides"


def test_rank_correlation_by_hand():
    first, second = np.array([1.0, 2, 2, 5]), np.array([10.0, 30, 20, 40])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([1.0, 3, 2, 4])
    assert spearman(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(first, -(first**3)) == pytest.approx(-1)
    assert spearman(first[:2], second[:2]) is None and spearman(np.ones(4), second) is None
    entries = {f"c{n}": {"dice": d, "low": d - 0.1, "high": d + 0.1, "review": d < 0.5}
               for n, d in enumerate((0.4, 0.6, 0.8))}
    found = compared({"cases": entries | {"other": entries["c0"]}}, {"c0": 0.45, "c1": 0.9, "c2": 0.95, "c3": None})
    assert found["n"] == 3 and found["spearman"] == pytest.approx(1)
    assert found["mean_absolute_error"] == pytest.approx((0.05 + 0.3 + 0.15) / 3)
    assert found["inside_interval"] == pytest.approx(1 / 3) and found["review"] == ["c0", "other"]


class Threshold(torch.nn.Module):
    """Class 1 where the image is brighter than a level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, x):
        logit = 20 * (x - self.level)
        return torch.cat([-logit, logit], 1)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_model_that_no_variant_changes_agrees_with_itself(dim):
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=dim)
    image = -np.ones((1, 8, 32, 32), np.float32)
    image[:, :, 8:24, :] = 1
    facts = plan, (0, 1), ("background", "thing"), torch.device("cpu"), "32"
    raw, classes = raw_quality(Model(Threshold(0.0), *facts), image)
    assert raw.agreement > 0.95 and raw.expected > 0.95
    assert (classes == (image[0] > 0)).all()
    fragile, same = raw_quality(Model(Threshold(0.9), *facts), image)  # a contrast of 0.8 leaves nothing above 0.9
    assert (same == classes).all() and 0.5 < fragile.agreement <= 0.75  # one of four variants finds nothing
    nothing, _ = raw_quality(Model(Threshold(0.0), *facts), -np.ones_like(image))
    assert nothing is None


@pytest.mark.parametrize("contrast, zoom", VARIANTS)
def test_variants_come_back_on_the_same_grid(contrast, zoom):
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=2)
    rows, columns = np.mgrid[:40, :30].astype(np.float32)
    image = np.stack([rows - columns + k for k in range(5)])[None] / 40
    found = predict_varied(lambda x: torch.cat([0 * x, x], 1), image, plan, torch.device("cpu"), contrast, zoom)[1]
    mean = image.mean()
    expected = 1 / (1 + np.exp(-((image[0] - mean) * contrast + mean)))
    assert np.abs(found.numpy() - expected)[:, 3:-3, 3:-3].max() < 2e-3


def test_predict_writes_the_estimate_and_evaluate_compares_it(tmp_path, capsys):
    from MedSSLLib.events import Events
    from MedSSLLib.finetune import run_finetune
    from Testing.lib.core_helpers import tiny_config, tiny_project

    project = tiny_project(tmp_path, 12)
    run_finetune(project, tiny_config(name="m", dim="2d", training__steps=40, optimiser__lr=1e-2), Events())
    facts = json.loads((project.run_folder("m") / "config.json").read_text())["data"]
    assert facts["validation"]
    out = tmp_path / "out"
    arguments = ["predict", str(project.folder), "--run", "m", "--out", str(out), "--quality", "--quiet"]
    assert main([*arguments, "--cases", "case0,case1"]) == 0
    assert main([*arguments, "--cases", "case2,case3"]) == 0
    content = json.loads((out / "quality.json").read_text())
    assert content["format"] == "medssl-quality" and sorted(content["cases"]) == ["case0", "case1", "case2", "case3"]
    assert len(content["known"]) == len(facts["validation"])
    result = evaluate_folder(out, tmp_path / "data" / "labelsTr", None)
    true = result["summary"]["dice"]["per_case"]
    assert result["quality"]["n"] == 4
    error = np.mean([abs(content["cases"][name]["dice"] - true[name]) for name in true])
    assert result["quality"]["mean_absolute_error"] == pytest.approx(error)
    assert "quality" not in evaluate_folder(_copy(out, tmp_path / "plain"), tmp_path / "data" / "labelsTr", None)


def _copy(source, target):
    for path in source.glob("*.nii.gz"):
        volume = io.read_image(path)
        io.write_image(target / path.name, Volume(volume.array, volume.geometry))
    return target


def test_estimates_of_another_run_are_dropped_and_those_of_the_same_kept(tmp_path):
    model = SimpleNamespace(classes=("background", "a"))
    for run, name in (("one", "x"), ("two", "y"), ("two", "z")):
        path = Judge(model, run).write(tmp_path, {name: {}})
    assert json.loads(path.read_text())["cases"] == {"y": {}, "z": {}}


def test_held_out_cases_count_on_the_slices_that_were_annotated_then(tmp_path, monkeypatch):
    then, now = Annotated.of([(2, [4])]), Annotated.of([(2, [4, 5])])
    cases = [Case(name, images=(tmp_path / name,), label=tmp_path / name, annotated=now) for name in ("a", "b")]
    project = SimpleNamespace(run_folder=lambda name: tmp_path, cases=cases)
    data = {"validation": ["a", "b", "gone"], "annotated": {"a": then.to_json()}}
    monkeypatch.setattr(judge, "read_run", lambda folder: {"data": data})
    assert [(case.name, case.annotated) for case in held_out_cases(project, "r")] == [("a", then), ("b", None)]
