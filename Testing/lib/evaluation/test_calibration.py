"""Calibration: bins by hand, the temperature that made the logits, properties of scaling."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import make_plan
from MedSSLLib.evaluation.calibration import (
    calibration_of,
    fit_temperature,
    folder_calibration,
    helpful_temperature,
    nll,
    probability_path,
    reliability,
    sampled,
    softened,
)
from MedSSLLib.evaluation.evaluate import evaluate_folder
from MedSSLLib.finetuning.finetune import held_out_calibration
from MedSSLLib.finetuning.labelled_data import LabelledData
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE, Annotated
from MedSSLLib.project.manifest import Case
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import MemoryReader


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def draw(rng, probabilities):
    return (probabilities.cumsum(1) < rng.uniform(size=(len(probabilities), 1))).sum(1)


def test_bins_by_hand():
    p = np.array([[0.95, 0.05], [0.85, 0.15], [0.4, 0.6], [0.5, 0.5], [0.0, 1.0]])
    truth = np.array([0, 1, 1, 0, 1])
    data = reliability(p, truth, bins=10)
    assert data.count.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 2], (
        "0.5 belongs to (0.4, 0.5], 0.6 to (0.5, 0.6]"
    )
    assert data.accuracy[[4, 5, 8, 9]].tolist() == [1, 1, 0, 1]
    assert data.ece == pytest.approx((0.5 + 0.4 + 0.85 + 2 * (1 - 0.975)) / 5)


def test_perfect_calibration_has_no_error_and_overconfidence_its_excess():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(0, 2, (200_000, 3)))
    assert reliability(p, draw(rng, p)).ece < 0.005
    coin = rng.integers(0, 2, 100_000)
    assert reliability(np.tile([0.9, 0.1], (100_000, 1)), coin).ece == pytest.approx(0.4, abs=0.01)


@each("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_logits_is_found(true):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (60_000, 4))
    truth = draw(rng, softmax(logits / true))
    p = softmax(logits)
    assert fit_temperature(p, truth) == pytest.approx(true, rel=0.03)
    np.testing.assert_allclose(softened(p, true), softmax(logits / true), atol=1e-6)
    grid = [nll(softened(p, t), truth) for t in np.geomspace(0.3, 6, 12)]
    assert nll(softened(p, fit_temperature(p, truth)), truth) <= min(grid) + 1e-6


def test_scaling_keeps_the_predicted_class_and_the_sum():
    p = softmax(np.random.default_rng(2).normal(0, 4, (500, 5)))
    for t in (0.3, 4.0):
        q = softened(p, t)
        assert (q.argmax(1) == p.argmax(1)).all()
        np.testing.assert_allclose(q.sum(1), 1)
    np.testing.assert_allclose(softened(p.T, 2.0, axis=0).T, softened(p, 2.0))
    assert softened(p, 1.0) is p


def test_held_out_cases_are_scaled_by_the_others():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (3, 20_000, 3))
    cases = [(softmax(x), draw(rng, softmax(x / 3))) for x in logits]
    found = calibration_of(cases)
    assert found["temperature"] == pytest.approx(3, rel=0.05) and found["voxels"] == 60_000
    assert (
        found["ece"] > 0.1 and found["ece_scaled"] < 0.02 and found["ece_foreground_scaled"] < 0.1
    )
    assert sum(found["bins"]["count"]) == 60_000
    alone = calibration_of(cases[:1])
    assert alone["ece_scaled"] is None and alone["temperature"] == pytest.approx(3, rel=0.06)


def scan(rng, n=20_000):
    """Logits of a scan: most voxels are plain background, some lie near two structures."""
    return np.column_stack([np.zeros(n), rng.normal(-5, 4, n), rng.normal(-6, 4, n)])


def test_the_predictions_choose_the_voxels_near_structures():
    """Of the two plain background voxels neither counts, also not the wrong one; false foreground
    does.
    """
    p = np.array([[0.1, 0.9], [0.1, 0.9], [0.999, 0.001], [0.999, 0.001]])
    assert calibration_of([(p, np.array([0, 1, 0, 1]))])["ece_foreground"] == pytest.approx(
        0.9 - 0.5
    )


def test_a_calibrated_model_has_no_error_near_structures():
    rng = np.random.default_rng(6)
    cases = [(p, draw(rng, p)) for p in (softmax(scan(rng)) for _ in range(4))]
    found = calibration_of(cases)
    assert found["ece_foreground"] < 0.01 and found["ece_foreground_scaled"] < 0.01
    assert found["temperature"] == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("true", [0.7, 1.5])
def test_a_temperature_that_calibrates_is_used(true):
    rng = np.random.default_rng(7)
    cases = [(softmax(x), draw(rng, softmax(x / true))) for x in (scan(rng) for _ in range(4))]
    found = calibration_of(cases)
    assert helpful_temperature(found) == pytest.approx(true, rel=0.05)
    assert found["ece_foreground_scaled"] < 0.01 < 0.03 < found["ece_foreground"]


def test_the_same_voxels_count_before_and_after_scaling():
    rng = np.random.default_rng(8)
    (p, a), (q, b) = cases = [
        (softmax(x), draw(rng, softmax(x / 3))) for x in (scan(rng, 9_000) for _ in range(2))
    ]
    after = np.concatenate([softened(p, fit_temperature(q, b)), softened(q, fit_temperature(p, a))])
    near, truth = np.concatenate([p, q])[:, 0] < 0.99, np.concatenate([a, b])
    assert (after[:, 0] < 0.99).sum() > near.sum() + 1_000
    assert calibration_of(cases)["ece_foreground_scaled"] == pytest.approx(
        reliability(after[near], truth[near]).ece
    )


def test_a_patient_takes_no_part_in_its_own_temperature():
    """Of two patients that need different temperatures each gets the other's, which shows."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (2, 8_000, 3))
    (p, a), (q, b) = cases = [
        (softmax(x), draw(rng, softmax(x / t))) for x, t in zip(logits, (1, 4), strict=True)
    ]
    crossed = np.concatenate(
        [softened(p, fit_temperature(q, b)), softened(q, fit_temperature(p, a))]
    )
    assert fit_temperature(q, b) > 3 > 1.3 > fit_temperature(p, a)
    expected = pytest.approx(reliability(crossed, np.concatenate([a, b])).ece)
    assert (
        calibration_of(cases)["ece_scaled"] == expected
        and calibration_of(cases)["ece_scaled"] > 0.1
    )
    scans = [(p[:3_000], a[:3_000]), (p[3_000:], a[3_000:]), (q, b)]
    assert calibration_of(scans, ["one", "one", "two"])["ece_scaled"] == expected
    assert calibration_of(scans[:2], ["one", "one"])["ece_scaled"] is None


def test_a_run_measures_its_held_out_cases_by_patient():
    rng = np.random.default_rng(9)
    images = {name: rng.normal(size=(1, 2, 8, 8)).astype(np.float32) for name in "ab"}
    reader = MemoryReader(images, {name: (x[0] > 0).astype(np.uint8) for name, x in images.items()})
    context = SimpleNamespace(
        is_first=True, device=torch.device("cpu"), config=SimpleNamespace(seed=0)
    )
    net = torch.nn.Conv2d(1, 2, 1)
    for patients, measured in ((("p", "q"), True), (("p", "p"), False)):
        cases = tuple(
            Case(n, (), metadata={"patient": p}) for n, p in zip("ab", patients, strict=True)
        )
        plan = make_plan([Geometry((8, 8, 2))], modality="MR", dim=2)
        found = held_out_calibration(context, LabelledData(plan, reader, (), cases), net)
        assert found["cases"] == 2 and (found["ece_scaled"] is not None) == measured


def test_only_counted_voxels_are_sampled():
    label = np.full((2, 3, 4), IGNORE, np.uint8)
    label[1] = np.arange(12).reshape(3, 4) % 2
    p = np.random.default_rng(4).uniform(size=(2, 2, 3, 4))
    rows, truth = sampled(p, label, IGNORE, 0)
    np.testing.assert_array_equal(rows, p[:, 1].reshape(2, 12).T)
    np.testing.assert_array_equal(truth, np.arange(12) % 2)


def test_written_probabilities_are_compared_with_the_references(tmp_path):
    """Two cases: one always 0.8 sure of class 5 and right on 3 of 4 voxels, one annotated on a
    single slice.
    """
    geometry = Geometry((2, 2, 3), (1.0, 1.0, 2.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    truth = np.full((3, 2, 2), 5, np.int16)
    truth[:, 0, 0] = 0
    for name in ("a", "a_1"):
        io.write_image(tmp_path / f"{name}.nii.gz", Volume(truth, geometry))
        for n, (kind, value) in enumerate({"left ear": 0.8, "other": 0.05}.items(), 1):
            written = Volume(np.full((3, 2, 2), value, np.float32), geometry)
            io.write_image(probability_path(tmp_path, name, n, kind), written)
    references = {name: tmp_path / f"{name}.nii.gz" for name in ("a", "a_1", "without")}
    found = folder_calibration(
        tmp_path, references, {"left ear": 5, "other": 9}, {"a_1": Annotated.of([(2, [1])])}
    )
    assert (found["cases"], found["voxels"]) == (2, 12 + 4)
    assert found["ece"] == pytest.approx(0.05, abs=1e-6) == found["ece_foreground"]
    assert folder_calibration(tmp_path, references, {"nose": 5}) is None
    elsewhere = Volume(
        np.full((3, 2, 2), 0.8, np.float32), replace(geometry, spacing=(1.0, 1.0, 3.0))
    )
    io.write_image(probability_path(tmp_path, "a", 1, "left ear"), elsewhere)
    with pytest.raises(InputError, match="grid"):
        folder_calibration(tmp_path, references, {"left ear": 5, "other": 9})


def test_the_temperature_is_used_only_where_it_helped():
    assert (
        helpful_temperature(
            {"temperature": 2.0, "ece_foreground": 0.2, "ece_foreground_scaled": 0.1}
        )
        == 2.0
    )
    assert (
        helpful_temperature(
            {"temperature": 2.0, "ece_foreground": 0.2, "ece_foreground_scaled": 0.3}
        )
        == 1.0
    )
    assert (
        helpful_temperature(
            {"temperature": 2.0, "ece_foreground": 0.2, "ece_foreground_scaled": None}
        )
        == 1.0
    )
    assert helpful_temperature({"measured": False, "why": "none held out"}) == 1.0


def test_bad_probabilities_do_not_cost_the_scores(tmp_path):
    geometry = Geometry((2, 2, 3), (1.0, 1.0, 2.0))
    label = Volume(np.tile(np.array([[0, 1], [1, 2]], np.int16), (3, 1, 1)), geometry)
    io.write_image(tmp_path / "p" / "a.nii.gz", label)
    io.write_image(tmp_path / "r" / "a.nii.gz", label)
    place = probability_path(tmp_path / "p", "a", 1, "ear")
    io.write_image(place, Volume(np.full((3, 2, 2), 0.8, np.float32), geometry))
    found = evaluate_folder(tmp_path / "p", tmp_path / "r", tmp_path / "m.json", classes={"ear": 1})
    assert found["calibration"]["voxels"] == 9, "a value of no class does not count"
    place.write_bytes(place.read_bytes()[:20])
    found = evaluate_folder(tmp_path / "p", tmp_path / "r", tmp_path / "m.json", classes={"ear": 1})
    assert found["summary"]["dice"]["mean"] == 1 and "a_1_ear" in found["errors"]["probabilities"]
    assert "calibration" not in found and (tmp_path / "m.json").exists()
