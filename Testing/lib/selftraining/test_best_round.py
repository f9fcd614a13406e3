"""Which model is kept: by held-out Dice, else by agreement with labels and with itself."""

import json

import numpy as np
import pytest
import torch

from MedSSLLib.data.plan import Plan
from MedSSLLib.inference.model import Model
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining import selftrain
from MedSSLLib.selftraining.best_round import (
    CASES,
    Judgement,
    agreement,
    best_of,
    in_words,
    judge,
    some,
)
from MedSSLLib.training.checkpoint import load_tensors
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import MemoryReader, loud
from Testing.lib.selftraining.test_selftrain import project, settings, weights  # noqa: F401


class Threshold(torch.nn.Module):
    """Class 1 where the image exceeds a value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), 20 * (x - self.value)], 1)


def model(value):
    plan = Plan(
        dim=2,
        spacing=(None, 1.0, 1.0),
        slice_axis="own",
        modality=("MR",),
        channels=1,
        patch=(16, 16),
        strides=((1, 1), (2, 2)),
    )
    return Model(
        network=Threshold(value).eval(),
        plan=plan,
        values=(0, 1),
        classes=("background", "one"),
        device=torch.device("cpu"),
        precision="32",
    )


def reader(cases=6):
    """Smooth bumps between 0 and 2; what exceeds 1 is labelled."""
    place = np.linspace(-1, 1, 32)
    bump = 2 * np.exp(-4 * (place[:, None] ** 2 + place**2))
    images = {f"c{i}": np.tile(bump, (1, 3, 1, 1)).astype(np.float32) for i in range(cases)}
    return MemoryReader(images, {name: (x[0] > 1).astype(np.uint8) for name, x in images.items()})


def test_held_out_dice_decides_alone():
    source = reader()
    found = judge(model(1.0), source, held_out=["c0"], labelled=["c1"], unlabelled=["c2"])
    assert found.held_out == found.labelled == found.score == 1 and found.agreement is None
    source.labels["c1"] = (source.images["c1"][0] > 0.3).astype(np.uint8)
    worse = judge(model(1.5), source, held_out=["c0"], labelled=["c1"], unlabelled=["c2"])
    truth, mine = (source.images["c0"][0] > v for v in (1.0, 1.5))
    expected = 2 * (truth & mine).sum() / (truth.sum() + mine.sum())
    assert worse.score == pytest.approx(expected, abs=1e-6) and worse.labelled < expected - 0.05


def test_without_held_out_cases_agreement_counts_and_labels_a_little():
    found = judge(model(1.2), reader(), held_out=[], labelled=["c1"], unlabelled=["c2", "c3"])
    assert found.held_out is None and 0 < found.labelled < 1
    assert found.score == pytest.approx((0.1 * found.labelled + found.agreement) / 1.1)
    # what is learnt by heart is given up, and the model is better; or it is worse in all
    assert Judgement(None, 0.89, (0.971,)).score > Judgement(None, 0.92, (0.964,)).score
    assert Judgement(None, 0.70, (0.965,)).score < Judgement(None, 0.92, (0.964,)).score
    alone = judge(model(1.2), reader(), held_out=[], labelled=["c1"], unlabelled=[])
    assert alone.agreement is None and alone.score == alone.labelled


def test_a_prediction_that_hangs_on_contrast_agrees_less():
    image = reader().images["c0"]
    steep = np.where(image > 1, 4.0, -4.0).astype(np.float32)
    assert agreement(model(0.0), steep) > 0.95
    assert agreement(model(0.0), steep) > agreement(model(1.2), image)


@each("n", [1, CASES, CASES + 1, 13, 16, 40])
def test_some_cases_are_of_different_patients_and_phases(n):
    cases = [Case(str(i), (), metadata={"patient": str(i // 2)}) for i in range(n)]
    chosen = [int(name) for name in some(cases)]
    assert len(chosen) == min(n, CASES) and chosen == sorted(chosen)
    if n > 2 * CASES:
        assert len({i // 2 for i in chosen}) == CASES
        assert sum(i % 2 for i in chosen if i < n - n % 2) in (1, 2), "both phases"
        assert max(np.diff(chosen)) <= n / 2, "spread over the project"


def test_the_best_is_kept_and_of_equals_the_last():
    good, bad = Judgement(None, 0.9, (0.85,) * 2), Judgement(None, 0.7, (0.8,) * 2)
    assert best_of({"first": bad, "round-1": good, "round-2": good}) == "round-2"
    assert best_of({"first": good, "round-1": bad}) == "first"
    words = in_words({"first": good, "round-1": bad}, "first")
    assert "the first model is kept" in words and "0.791 against 0.855" in words
    assert "no labelled case is held out" in words
    held = {"first": Judgement(0.9, 1.0), "round-1": Judgement(0.8, 1.0)}
    assert "held-out cases" in in_words(held, best_of(held))


def test_some_thousandths_of_agreement_say_nothing():
    """But those of held-out cases do."""
    near, far, last = (Judgement(None, 0.9, (value,) * 2) for value in (0.908, 0.93, 0.9))
    assert best_of({"round-1": near, "round-2": last}) == "round-2"
    assert best_of({"round-1": near, "round-2": far, "round-3": last}) == "round-2"
    held = [Judgement(value, 1.0) for value in (0.804, 0.8)]
    assert best_of(dict(zip(("round-1", "round-2"), held, strict=True))) == "round-1"


def test_agreement_that_differs_as_much_between_scans_says_nothing():
    """Four scans of a run on one class: round 4 seemed 0.03 ahead, and was 0.03 behind."""
    last = Judgement(None, 0.9, (0.9, 0.88, 0.84, 0.88))
    uneven = Judgement(None, 0.9, (0.89, 0.89, 0.95, 0.89))  # 0.03, twice the error is 0.06
    even = Judgement(None, 0.9, (0.93, 0.9, 0.87, 0.92))  # 0.03, and 0.008
    assert best_of({"round-1": uneven, "round-2": last}) == "round-2"
    assert best_of({"first": even, "round-1": uneven, "round-2": last}) == "first"
    uneven = Judgement(None, 0.9, (0.97, 0.9, 0.97, 0.92))
    assert uneven.score > even.score, "the better one of those that are clearly better"
    assert best_of({"first": even, "round-1": uneven, "round-2": last}) == "round-1"


def test_scans_that_collapse_decide_though_the_others_stay():
    """Twice the error can never be less than what one scan of four, or two, have lost."""
    before = Judgement(None, 0.9, (0.95,) * 4)
    for collapsed in ((0.0, 0.95, 0.95, 0.95), (0.0, 0.0, 0.95, 0.95)):
        after = Judgement(None, 0.9, collapsed)
        assert best_of({"first": before, "round-1": after}) == "first"
    one_turned = Judgement(None, 0.9, (0.763, 0.959, 0.962, 0.957))  # of a run with three classes
    its_second = Judgement(None, 0.9, (0.909, 0.954, 0.951, 0.953))
    assert best_of({"round-2": its_second, "round-5": one_turned}) == "round-5"


def test_one_scan_alone_must_lose_much():
    last = Judgement(None, 0.9, (0.8,))
    assert best_of({"first": Judgement(None, 0.9, (0.89,)), "round-1": last}) == "round-1"
    assert best_of({"first": Judgement(None, 0.9, (0.93,)), "round-1": last}) == "first"


@each("keep", ["best", "last"])
def test_a_run_keeps_the_better_model_and_says_so(project, monkeypatch, keep):  # noqa: F811
    """The first model is judged best here."""
    found = iter(
        [Judgement(None, 0.9, (0.9,)), Judgement(None, 0.9, (0.5,)), Judgement(None, 0.8, (0.7,))]
    )
    monkeypatch.setattr(selftrain, "judge", lambda *args, **kwargs: next(found))
    events, record = loud()
    config = settings(name=f"keeps-{keep}", options__keep=keep)
    folder = selftrain.run_selftrain(project, config, events)
    stages = {
        name: load_tensors(folder / "stages" / f"{name}.safetensors")[0]
        for name in ("stage-1", "round-2")
    }
    kept = weights(folder)
    expected = stages["stage-1" if keep == "best" else "round-2"]
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    metrics = json.loads((folder / "metrics.json").read_text())
    said = [e["message"] for e in record.of("warning") if "ended worse" in e["message"]]
    assert len(said) == (keep == "best")
    assert metrics.get("kept") == ("first" if keep == "best" else None)
    if keep == "best":
        assert metrics["judged"]["round-2"] == {"labelled": 0.8, "agreement": 0.7, "score": 0.7091}
