"""Predicted quality: closed forms, coverage of the interval by simulation, ranks by hand, and the
files.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib.cli.main import main
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.evaluation.evaluate import evaluate_folder
from MedSSLLib.evaluation.quality import (
    Raw,
    calibrated,
    compared,
    drop_estimate,
    estimate_text,
    expected_dice,
    judged,
    review_text,
    spearman,
    spearman_interval,
)
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.inference.model import Model, PredictOptions
from MedSSLLib.inference.quality_estimator import QualityEstimator, raw_quality, recorded_cases
from MedSSLLib.inference.sliding_window import PERTURBATIONS, predict_varied
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.run_folder import RunData, RunFolder, write_config
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config, tiny_project
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
    assert expected_dice(np.stack([1 - p1, p1]), prediction.astype(int))[0] == pytest.approx(
        np.mean(dice), abs=0.003
    )


def singly(pairs):
    """Every (raw, true) pair is another patient's."""
    return [[pair] for pair in pairs]


def test_the_shift_and_the_interval_by_hand():
    assert calibrated(0.8, []) == (0.8, None, None)
    estimate, low, high = calibrated(0.8, singly([(0.9, 0.8), (0.7, 0.6)]))
    assert estimate == pytest.approx(0.7) and low is None and high is None, "two cases are too few"
    errors = np.array([-0.1, 0.0, 0.05, -0.2, 0.1])
    known = singly((0.5, 0.5 + e) for e in errors)
    estimate, low, high = calibrated(0.5, known)
    lows, highs = [], []
    for n, own in enumerate(errors):
        mean = np.mean(np.delete(errors, n))
        lows.append(0.5 + mean - abs(own - mean))
        highs.append(0.5 + mean + abs(own - mean))
    assert estimate == pytest.approx(0.5 + errors.mean())
    assert (low, high) == pytest.approx((min(lows), max(highs))), "6 x 0.2 = 1: the outermost of 5"
    assert calibrated(0.99, [[(0.5, 0.9)]])[0] == 1.0, "no Dice above 1"


def test_the_interval_covers_new_cases_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(1500):
        true = 0.5 + rng.normal(0, 0.05, 9)
        raw = true + 0.1 + rng.normal(0, 0.02, 9)
        _, low, high = calibrated(raw[0], singly(zip(raw[1:], true[1:], strict=True)))
        inside.append(low <= true[0] <= high)
    assert 0.76 <= np.mean(inside) <= 0.92


def test_cases_of_one_patient_count_as_one_patient():
    single = singly((0.5, 0.5 + e) for e in (-0.1, 0.0, 0.05, -0.2, 0.1))
    repeated = [pairs * times for pairs, times in zip(single, (1, 4, 2, 3, 1), strict=True)]
    assert calibrated(0.5, repeated) == pytest.approx(calibrated(0.5, single)), (
        "a scan read twice says nothing new"
    )
    assert calibrated(0.5, [pairs * 5 for pairs in single[:3]])[1:] == (None, None), (
        "3 patients are too few"
    )


def test_the_interval_of_patients_with_several_cases_by_hand():
    """Nine patients at level 0.8 (rank 2): votes of 1 / cases are counted from the outside until
    they reach 2.
    """
    errors = [list(np.random.default_rng(n).normal(0, 0.1, 1 + n % 3)) for n in range(9)]
    lows, highs = [], []
    for n, own in enumerate(errors):
        rest = np.mean([np.mean(e) for m, e in enumerate(errors) if m != n])
        lows += [(0.5 + rest - abs(e - rest), 1 / len(own)) for e in own]
        highs += [(0.5 + rest + abs(e - rest), 1 / len(own)) for e in own]

    def reached(values):
        votes = 0.0
        for value, vote in values:
            votes += vote
            if votes > 2 - 1e-6:
                return value
        raise AssertionError

    found = calibrated(0.5, [[(0.5, 0.5 + e) for e in own] for own in errors])
    mean = np.mean([np.mean(own) for own in errors])
    assert found == pytest.approx(
        (0.5 + mean, reached(sorted(lows)), reached(sorted(highs, reverse=True)))
    )


def test_the_interval_covers_cases_of_new_patients():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(1500):
        errors = rng.normal(0, 0.05, 9)[:, None] + rng.normal(0, 0.005, (9, 5))
        _, low, high = calibrated(0.5, [[(0.5, 0.5 + e) for e in own] for own in errors[1:]])
        inside.append(low <= 0.5 + errors[0, 0] <= high)
    assert 0.76 <= np.mean(inside) <= 0.92


def test_review():
    assert judged(None, [])["review"] and judged(None, [])["dice"] == 0
    for raw in (Raw((0.9,), (0.9,)), Raw((0.5,), (0.7,))):
        for known in ([], singly([(0.9, 0.8)] * 3)):
            entry = judged(raw, known)
            assert entry["review"] is None and not entry["calibrated"], "nothing is known"
            assert estimate_text(entry) == f"{entry['dice']:.2f} uncalibrated"
            assert review_text(entry).startswith("not known")
    assert judged(Raw((0.9,), (0.9,)), [], ["lesion"])["review"] is True, "whatever the estimate"
    assert estimate_text(judged(None, [])) == "nothing found"
    wide = singly((0.9, 0.9 + e) for e in (-0.4, 0.05, 0.1, -0.1, 0.08, 0.02))
    entry = judged(Raw((0.9,), (0.9,)), wide)
    assert entry["dice"] > 0.7 > entry["low"] and entry["review"], "the lower end decides"
    assert entry["why"] == f"Dice may be as low as {entry['low']:.2f}" and entry["calibrated"]
    assert estimate_text(entry).endswith(f"({entry['low']:.2f} to {entry['high']:.2f})")
    narrow = singly((0.9, 0.9 + e) for e in (-0.01, 0.01, 0.02, -0.02, 0.0))
    assert judged(Raw((0.9,), (0.9,)), narrow)["review"] is False


def test_dice_and_per_class_mean_the_same():
    raw = Raw((0.8, None, 0.6), (0.7, None, 0.9))
    assert raw.per_class == pytest.approx((0.75, None, 0.75), nan_ok=True)
    raw = Raw((0.8, None, 0.5), (0.7, None, 0.6))
    for known in ([], singly((0.6, 0.6 + e) for e in (-0.1, -0.05, 0.02, -0.08))):
        entry = judged(raw, known)
        defined = [value for value in entry["per_class"] if value is not None]
        assert len(defined) == 2 and np.mean(defined) == pytest.approx(entry["dice"])


def test_rank_correlation_by_hand():
    first, second = np.array([1.0, 2, 2, 5]), np.array([10.0, 30, 20, 40])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([1.0, 3, 2, 4])
    assert spearman(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(first, -(first**3)) == pytest.approx(-1)
    assert spearman(first[:2], second[:2]) is None and spearman(np.ones(4), second) is None
    entries = {
        f"c{n}": {"dice": d, "low": d - 0.1, "high": d + 0.1, "review": d < 0.5}
        for n, d in enumerate((0.4, 0.6, 0.8))
    }
    found = compared(
        {"cases": entries | {"other": entries["c0"]}},
        {"c0": 0.45, "c1": 0.9, "c2": 0.95, "c3": None},
    )
    assert found["n"] == 3 and found["spearman"] == pytest.approx(1)
    assert found["mean_absolute_error"] == pytest.approx((0.05 + 0.3 + 0.15) / 3)
    assert found["inside_interval"] == pytest.approx(1 / 3) and found["review"] == ["c0", "other"]
    assert found["left_out"] == [] and found["spearman_interval"] is None


def test_cases_whose_labels_the_run_used_are_not_compared():
    entries = {
        f"c{n}": {"dice": d, "low": d - 0.1, "high": d + 0.1, "review": False}
        for n, d in enumerate((0.7, 0.8, 0.9, 0.6))
    }
    quality = {"cases": entries, "seen": ["c3", "unscored"]}
    found = compared(quality, {"c0": 0.75, "c1": 0.85, "c2": 0.95, "c3": 0.1})
    assert (found["n"], found["left_out"]) == (3, ["c3"]) and found["spearman"] == pytest.approx(1)
    assert found["mean_absolute_error"] == pytest.approx(0.05) and found["inside_interval"] == 1


def test_the_interval_of_a_rank_correlation_by_hand_and_by_chance():
    """tanh(atanh 0.6 +- 1.96 sqrt(1.18 / 27)) for 30 cases; it holds the truth of normal data 95
    times of 100.
    """
    z, half = 0.5 * np.log(1.6 / 0.4), 1.96 * np.sqrt(1.18 / 27)
    expected = [(np.exp(2 * x) - 1) / (np.exp(2 * x) + 1) for x in (z - half, z + half)]
    assert spearman_interval(0.6, 30) == pytest.approx(expected, abs=1e-4)
    assert spearman_interval(0.6, 3) is None and spearman_interval(None, 30) is None
    assert spearman_interval(1.0, 30) == pytest.approx((1, 1), abs=1e-3)
    rng, r, hits = np.random.default_rng(0), 0.7, 0
    truth = 6 / np.pi * np.arcsin(r / 2)  # of a bivariate normal distribution (Pearson 1907)
    for _ in range(400):
        first = rng.normal(size=40)
        low, high = spearman_interval(
            spearman(first, r * first + np.sqrt(1 - r**2) * rng.normal(size=40)), 40
        )
        hits += low <= truth <= high
    assert 0.92 < hits / 400 < 0.98


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
    facts = {
        "plan": plan,
        "values": (0, 1),
        "classes": ("background", "thing"),
        "device": torch.device("cpu"),
        "precision": "32",
    }
    raw, classes = raw_quality(Model(network=Threshold(0.0), **facts), image)
    assert raw.agreement > 0.95 and raw.expected > 0.95
    assert (classes == (image[0] > 0)).all()
    fragile, same = raw_quality(
        Model(network=Threshold(0.9), **facts), image
    )  # a contrast of 0.8 leaves nothing above 0.9
    assert (
        same == classes
    ).all() and 0.5 < fragile.agreement <= 0.75  # one of four variants finds nothing
    nothing, _ = raw_quality(Model(network=Threshold(0.0), **facts), -np.ones_like(image))
    assert nothing is None


@each("contrast, zoom", PERTURBATIONS)
def test_variants_come_back_on_the_same_grid(contrast, zoom):
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=2)
    rows, columns = np.mgrid[:40, :30].astype(np.float32)
    image = np.stack([rows - columns + k for k in range(5)])[None] / 40
    found = predict_varied(
        lambda x: torch.cat([0 * x, x], 1), image, plan, torch.device("cpu"), (contrast, zoom)
    )[1]
    mean = image.mean()
    expected = 1 / (1 + np.exp(-((image[0] - mean) * contrast + mean)))
    assert np.abs(found.numpy() - expected)[:, 3:-3, 3:-3].max() < 2e-3


def test_predict_writes_the_estimate_and_evaluate_compares_it(tmp_path, capsys):
    from MedSSLLib.finetuning.finetune import run_finetune

    project = tiny_project(tmp_path, 12)
    run_finetune(
        project,
        tiny_config(
            name="m",
            dim="2d",
            training__steps=40,
            optimiser__lr=1e-2,
            labelled=[f"case{n}" for n in range(2, 12)],
        ),
        Events(),
    )
    facts = json.loads((project.run_folder("m") / "config.json").read_text())["data"]
    assert facts["validation"]
    out = tmp_path / "out"
    arguments = [
        "predict",
        str(project.folder),
        "--run",
        "m",
        "--out",
        str(out),
        "--quality",
        "--quiet",
    ]
    assert main([*arguments, "--cases", "case0,case1"]) == 0
    assert main([*arguments, "--cases", "case2,case3"]) == 0
    content = json.loads((out / "quality.json").read_text())
    assert content["format"] == "medssl-quality" and sorted(content["cases"]) == [
        "case0",
        "case1",
        "case2",
        "case3",
    ]
    assert len(content["known"]) == len(facts["validation"])
    result = evaluate_folder(out, tmp_path / "data" / "labelsTr", None)
    true = result["summary"]["dice"]["per_case"]
    used = {*facts["labelled"], *facts["validation"]}
    assert set(content["seen"]) == used and result["quality"]["left_out"] == sorted(
        used & true.keys()
    )
    new = true.keys() - used
    assert result["quality"]["n"] == len(new) > 0
    error = np.mean([abs(content["cases"][name]["dice"] - true[name]) for name in new])
    assert result["quality"]["mean_absolute_error"] == pytest.approx(error)
    assert main([word for word in arguments if word != "--quality"]) == 0
    assert not (out / "quality.json").exists(), "estimates of replaced predictions"
    assert "quality" not in evaluate_folder(
        _copy(out, tmp_path / "plain"), tmp_path / "data" / "labelsTr", None
    )


def _copy(source, target):
    for path in source.glob("*.nii.gz"):
        volume = io.read_image(path)
        io.write_image(target / path.name, Volume(volume.array, volume.geometry))
    return target


def test_estimates_of_another_run_are_dropped_and_those_of_the_same_kept(tmp_path):
    model = SimpleNamespace(classes=("background", "a"))
    for run, name in (("one", "x"), ("two", "y"), ("two", "z")):
        path = QualityEstimator(model=model, run=run).write(tmp_path, {name: {}})
    assert json.loads(path.read_text())["cases"] == {"y": {}, "z": {}}


def test_held_out_cases_count_on_the_slices_that_were_annotated_then(tmp_path):
    then, now = Annotated.of([(2, [4])]), Annotated.of([(2, [4, 5])])
    cases = [
        Case(name, images=(tmp_path / name,), label=tmp_path / name, annotated=now)
        for name in ("a", "b")
    ]
    project = SimpleNamespace(cases=cases)
    data = RunData(classes=("a",), values=(0,), annotated={"a": then.to_json()})
    events, record = loud()
    run = SimpleNamespace(name="r", data=data)
    found = recorded_cases(project, run, ("a", "b", "gone"), events)
    assert [(case.name, case.annotated) for case in found] == [("a", then), ("b", None)]
    assert "gone" in record.of("warning")[0]["message"]


@pytest.mark.parametrize("dim", [2, 3])
def test_the_estimate_is_of_the_pieces_that_are_written(dim):
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=dim)
    image = -np.ones((1, 8, 32, 32), np.float32)
    image[:, :, 12:28, :] = 1
    image[:, :, 2:10, 4:16] = 1  # so near that its probabilities would count
    block = np.zeros(image.shape[1:], bool)
    block[:, 12:28] = True
    model = Model(
        network=Threshold(0.0),
        plan=plan,
        values=(0, 1),
        classes=("background", "thing"),
        device=torch.device("cpu"),
        precision="32",
        single_component=(1,),
    )
    raw, classes = raw_quality(model, image)
    assert ((classes == 1) == block).all() and raw.expected > 0.985
    whole, both = raw_quality(model, image, components="all")
    assert ((both == 1) == (image[0] > 0)).all() and whole.expected > 0.95
    everywhere, same = raw_quality(replace(model, single_component=()), image, components="largest")
    assert (same == classes).all() and everywhere.dice == raw.dice
    surest, third = raw_quality(
        replace(model, single_component=(), connected_on_slices=(1,)), image
    )
    assert (third == classes).all() and surest.dice == raw.dice


class Haze(torch.nn.Module):
    """Class 1 where the image is bright, and a probability of 0.3 everywhere else."""

    def forward(self, x):
        logit = torch.where(x > 0, 5.0, float(np.log(0.3 / 0.7)))
        return torch.cat([torch.zeros_like(x), logit], 1)


def test_small_probabilities_far_from_what_is_written_do_not_count():
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=2)
    image = -np.ones((1, 8, 64, 64), np.float32)
    image[:, 2:6, 20:40, 20:40] = 1
    model = Model(
        network=Haze(),
        plan=plan,
        values=(0, 1),
        classes=("background", "thing"),
        device=torch.device("cpu"),
        precision="32",
    )
    raw, classes = raw_quality(model, image)
    block = np.pad(classes == 1, 3)
    around = (
        sum(
            np.roll(block, (a, b, c), (0, 1, 2))
            for a in range(-3, 4)
            for b in range(-3, 4)
            for c in range(-3, 4)
            if abs(a) + abs(b) + abs(c) <= 3
        )[3:-3, 3:-3, 3:-3]
        > 0
    )
    inside, count = torch.sigmoid(torch.tensor(5.0)).item(), int((classes == 1).sum())
    haze = 0.3 * int((around & (classes == 0)).sum())
    assert raw.expected == pytest.approx(
        2 * inside * count / (count * (1 + inside) + haze), abs=0.02
    )


class Sided(torch.nn.Module):
    """Class 1 everywhere, most certain in the first columns, and against it in the last ones."""

    def forward(self, x):
        ramp = torch.linspace(3, -1, x.shape[-1]).expand_as(x)
        return torch.cat([-ramp, ramp], 1)


def test_the_estimate_is_of_predictions_averaged_over_flips_where_those_are_written():
    plan = make_plan([GRIDS["axial"]], modality="MR", dim=2)
    image = np.random.default_rng(0).normal(size=(1, 4, 32, 32)).astype(np.float32)
    model = Model(
        network=Sided(),
        plan=plan,
        values=(0, 1),
        classes=("background", "thing"),
        device=torch.device("cpu"),
        precision="32",
    )
    raw, plain = raw_quality(model, image)
    averaged, flipped = raw_quality(model, image, flips=True)
    assert (plain[..., -4:] == 0).all() and (flipped == 1).all()
    assert raw.agreement > 0.9 and averaged.agreement == 1


def judged_project(folder, rare_in=range(5), **recorded):
    """A project whose labels have values 5 and, in some cases, 9; a run of it; a model that never
    finds 9.
    """
    project = tiny_project(folder, 5)
    for number, case in enumerate(project.cases):
        label = io.read_label(case.label, io.read_header(case.images[0]))
        array = (5 * label.array).astype(np.uint8)
        if number in rare_in:
            array[:, :4, :4] = 9
        io.write_image(case.label, Volume(array, label.geometry))
    project.set_labels({0: "background", 1: "declared later", 5: "thing", 9: "rare"})
    project.save()
    plan = make_plan(
        [io.read_header(case.images[0]) for case in project.cases], modality="MR", dim=3
    )
    facts = {"classes": ["background", "thing", "rare"], "values": [0, 5, 9], **recorded}
    write_config(project.run_folder("r"), tiny_config(name="r"), plan, facts)

    class Finds(Threshold):
        def forward(self, x):
            found = super().forward(x)
            return torch.cat([found, 0 * found[:, :1] - 30], 1)

    model = Model(
        network=Finds(1.2),
        plan=plan,
        values=(0, 5, 9),
        classes=("background", "thing", "rare"),
        device=torch.device("cpu"),
        precision="32",
        single_component=(1,),
    )
    return project, model


def run_of(project):
    return RunFolder(project.run_folder("r"))


def test_held_out_labels_are_read_in_the_classes_of_the_model(tmp_path):
    project, model = judged_project(tmp_path, (), validation=["case0", "case1", "case2"])
    project.set_metadata("case0", {"patient": "p"})
    project.set_metadata("case2", {"patient": "p"})
    found = QualityEstimator.of(
        project, run_of(project), model, PredictOptions(components="all", flips=True), Events()
    )
    assert [len(patient) for patient in found.known] == [2, 1]
    assert all(true > 0.9 for patient in found.known for _, true in patient)
    assert (found.components, found.flips, found.usual) == ("all", True, {1})
    content = json.loads(found.write(tmp_path, {}).read_text())
    assert content["calibration"].startswith("not calibrated: labelled cases of 2 patients")
    many = replace(found, known=found.known * 4)
    assert many.calibration == "calibrated on 12 held-out labelled cases of 8 patients"


def test_a_class_that_all_labels_show_and_the_prediction_lacks_is_reviewed(tmp_path):
    project, model = judged_project(
        tmp_path, (0, 1, 2), validation=["case0", "case1"], labelled=["case2", "case3"]
    )
    found = QualityEstimator.of(project, run_of(project), model, PredictOptions(), Events())
    volumes = [io.read_image(path) for path in project.case("case4").images]
    image, _ = preprocess_image(volumes, model.plan)
    entry = replace(found, known=()).entry(image)
    assert entry["dice"] > 0.8 and entry["review"] and "rare" in entry["why"]
    seldom = replace(found, known=(), usual=frozenset({1}))
    assert seldom.entry(image)["review"] is None and seldom.entry(image)["dice"] == entry["dice"]
    assert found.usual == {1, 2}, "of the held-out cases"


def test_without_held_out_cases_the_training_labels_say_which_classes_are_usual(tmp_path):
    project, model = judged_project(tmp_path, (0, 1), validation=[], labelled=["case0", "case1"])
    assert QualityEstimator.of(
        project, run_of(project), model, PredictOptions(), Events()
    ).usual == {1, 2}


def test_held_out_cases_that_cannot_be_read_are_named(tmp_path):
    project, model = judged_project(tmp_path, validation=["case0", "case1", "case2"])
    torn = project.case("case1").label
    torn.write_bytes(torn.read_bytes()[:100])
    events, record = loud()
    assert (
        len(QualityEstimator.of(project, run_of(project), model, PredictOptions(), events).known)
        == 2
    )
    assert any("case1" in event["message"] for event in record.of("warning"))


def test_a_new_prediction_takes_the_estimate_of_the_old_one_away(tmp_path):
    path = QualityEstimator(model=SimpleNamespace(classes=("background", "a")), run="one").write(
        tmp_path, {"x": {}, "y": {}}
    )
    drop_estimate(tmp_path, "one", "z")
    drop_estimate(tmp_path, "one", "x")
    assert json.loads(path.read_text())["cases"] == {"y": {}}
    before = path.read_bytes()
    drop_estimate(tmp_path, "one", "y")
    assert not path.exists(), "nothing is left"
    path.write_bytes(before)
    drop_estimate(tmp_path, "two", "z")
    assert not path.exists(), "of another run"
    drop_estimate(tmp_path, "two", "z")
