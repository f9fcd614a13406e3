"""The speed benchmark: ratios by hand, references that do what they claim, and a tiny run of
everything.
"""

import json
import re
import time

import pytest
import torch

from MedSSLLib.benchmark import speed, speed_step
from MedSSLLib.benchmark.speed import SpeedOptions, run_speed
from MedSSLLib.benchmark.speed_predict import bare_prediction, fewest_patches
from MedSSLLib.benchmark.speed_report import speed_figure, speed_markdown, speed_rows, write_report
from MedSSLLib.benchmark.speed_views import Views
from MedSSLLib.benchmark.timing import Comparison, in_turn
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.images.geometry import Geometry
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import Record


def test_a_ratio_is_the_median_over_pairs_and_is_judged_in_its_own_direction():
    slow = Comparison(
        "step", "a", ours=(2.0, 6.0, 3.0), reference=(1.0, 2.0, 2.0), goal=2.0
    ).record()
    assert slow["ratios"] == [2.0, 3.0, 1.5] and (
        slow["ratio"],
        slow["lowest"],
        slow["highest"],
    ) == (2.0, 1.5, 3.0)
    assert slow["met"] and slow["ours_s"] == 3.0 and slow["reference_s"] == 2.0
    quick = Comparison(
        "views", "b", ours=(1.0, 1.0, 2.0), reference=(4.0, 6.0, 9.0), goal=5.0, faster=True
    ).record()
    assert quick["ratios"] == [4.0, 6.0, 4.5] and quick["ratio"] == 4.5 and not quick["met"]
    assert not Comparison("step", "a", (2.1,), (1.0,), 2.0).record()["met"]


def test_works_take_turns_and_warm_ones_do_not_count():
    calls = []
    ours, reference = in_turn(
        lambda: calls.append("o"), lambda: (calls.append("r"), time.sleep(0.01)), 3, warm=2
    )
    assert calls == ["o", "r"] * 5 and len(ours) == len(reference) == 3
    assert min(ours) >= 0 and min(reference) >= 0.01


def test_warm_pairs_are_the_first(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("MedSSLLib.benchmark.timing.seconds", lambda work, device: next(ticks))
    assert in_turn(print, print, 3, warm=2) == ((4, 6, 8), (5, 7, 9))


@each(
    "shape, patch, count",
    [
        ((5, 7, 9), (5, 7, 9), 1),
        ((5, 7, 9), (4, 4, 4), 2 * 2 * 3),
        ((5, 3), (4, 4), 2),
        ((8, 4), (4, 4), 2),
    ],
)
def test_the_fewest_patches_cover_every_voxel(shape, patch, count):
    image = torch.arange(1.0, 1 + torch.tensor(shape).prod()).reshape(1, *shape)
    patches = fewest_patches(image, patch)
    assert len(patches) == count and all(p.shape == (1, 1, *patch) for p in patches)
    assert set(torch.cat([p.ravel() for p in patches]).tolist()) - {0.0} == set(
        image.ravel().tolist()
    )


def test_the_bare_prediction_passes_every_slice_and_nothing_more():
    seen = []
    bare_prediction(lambda x: seen.append(x.shape), torch.zeros(1, 5, 6, 9), (6, 8), 4)
    assert [tuple(s) for s in seen] == [(4, 1, 6, 8), (4, 1, 6, 8), (2, 1, 6, 8)], (
        "5 slices of 2 patches, batches of 4"
    )


def test_unknown_parts_are_refused():
    with pytest.raises(InputError, match="flying cannot be measured"):
        SpeedOptions(("step", "flying"))
    assert (
        SpeedOptions().count == 9
        and SpeedOptions(quick=True).count == 3
        and SpeedOptions(pairs=2).count == 2
    )


@pytest.fixture
def tiny(monkeypatch):
    """Everything so small that a run takes seconds."""
    grids = {"2d": Geometry((20, 24, 8), (1.4, 1.4, 8.0)), "3d": Geometry((16, 16, 16))}
    monkeypatch.setattr(speed_step, "GRIDS", grids)
    monkeypatch.setattr(speed, "QUICK_VOLUME", Geometry((12, 10, 8)))
    monkeypatch.setattr(
        speed, "QUICK_NETWORK", {"network.widths": "[4, 8]", "training.voxels": "512"}
    )
    views = {"3d": Views((16, 16, 16), (16, 16, 16), 2), "2d": Views((1, 32, 32), (32, 32), 2)}
    monkeypatch.setattr(speed, "VIEWS", views)


def test_a_tiny_run_measures_everything_and_is_reported(tiny, tmp_path, capsys):
    assert (
        main(
            [
                "benchmark",
                "speed",
                "--quick",
                "--pairs",
                "1",
                "--threads",
                "1",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "speed"),
            ]
        )
        == 0
    )
    content = json.loads((tmp_path / "speed" / "speed.json").read_text("utf-8"))
    names = [(row["part"], row["name"]) for row in content["results"]]
    assert names == [(part, name) for part, some in speed.SPEED_PARTS.items() for name in some]
    assert all(
        row["ours_s"] > 0 and row["reference_s"] > 0 and len(row["ratios"]) == 1
        for row in content["results"]
    )
    assert content["machine"]["threads"] == 1 and content["quick"] and content["device"] == "cpu"
    shown = capsys.readouterr().out
    text = (tmp_path / "speed" / "speed.md").read_text("utf-8")
    for part in (
        "training step, pgl-3d",
        "prediction, heart",
        "two views of a batch, 2d",
        "nothing about the goals",
    ):
        assert part in shown and part in text
    assert (
        "missed" not in text and (tmp_path / "speed" / "speed.png").read_bytes()[:4] == b"\x89PNG"
    )


def test_the_whole_step_moves_weights_as_training_does(tiny, monkeypatch):
    """What is timed as a step is a step: weights change, the batch is the next one, and the bare
    step trains too.
    """
    seen = []
    real = speed_step.in_turn

    def watched(ours, reference, pairs, **kwargs):
        weights = [p.detach().clone() for p in ours.trainer.parameters]
        reference()
        middle = [p.detach().clone() for p in ours.trainer.parameters]
        ours()
        after = list(ours.trainer.parameters)
        seen.append(
            (
                any((a != b).any() for a, b in zip(weights, middle, strict=True)),
                any((a != b).any() for a, b in zip(middle, after, strict=True)),
                ours.step,
            )
        )
        return real(ours, reference, pairs, **kwargs)

    monkeypatch.setattr(speed_step, "in_turn", watched)
    for name in ("finetune-3d", "gcl-2d"):
        speed_step.measure_step(name, 1, batch=4, settings=speed.QUICK_NETWORK)
    assert seen == [(True, True, 1)] * 2


def test_the_file_is_kept_up_to_date_and_events_tell_the_way(tiny, tmp_path, monkeypatch):
    path, sizes, record = tmp_path / "speed.json", [], Record()
    measure = speed._MEASURES["views"]

    def watched(name, options, device):
        sizes.append(len(json.loads(path.read_text())["results"]) if path.exists() else 0)
        return measure(name, options, device)

    monkeypatch.setitem(speed._MEASURES, "views", watched)
    before = torch.get_num_threads()
    run_speed(
        SpeedOptions(("views",), pairs=1, threads=2, device="cpu", quick=True),
        Events([record]),
        path,
    )
    assert sizes == [0, 1] and torch.get_num_threads() == before
    assert [event["row"] for event in record.of("metric")] == ["views 3d", "views 2d"]
    assert [(event["step"], event["steps"]) for event in record.of("progress")][-1] == (2, 2)


CONTENT = {
    "quick": False,
    "pairs": 9,
    "device": "cpu",
    "versions": {"torch": "2", "medssl": "1"},
    "machine": {"processor": "x", "cores": 2, "threads": 1},
    "results": [
        Comparison("step", "finetune-2d", (1.05, 1.2), (1.0, 1.0), 1.10).record(),
        Comparison("predict", "heart", (0.9,), (1.0,), 1.2).record(),
        Comparison("views", "3d", (0.01,), (0.062,), 5.0, faster=True).record(),
    ],
}


def test_the_table_says_what_was_met_and_what_was_missed(tmp_path):
    rows = speed_rows(CONTENT)
    assert [row[-1] for row in rows] == ["missed", "met", "met"]
    assert rows[0][:5] == [
        "training step, finetune-2d",
        "1.12 s",
        "1.00 s",
        "1.12 (1.05 to 1.20)",
        "≤ 1.10",
    ]
    assert rows[2][1:5] == ["10 ms", "62 ms", "6.20 (6.20 to 6.20)", "≥ 5.00"]
    text = speed_markdown(CONTENT)
    assert len(re.findall(r"^\|", text, re.MULTILINE)) == 2 + len(rows) and "2 cores" in text
    assert [path.name for path in write_report(CONTENT, tmp_path)] == ["speed.md", "speed.png"]


def test_the_figure_draws_ratio_range_and_goal_in_one_panel_for_each_direction():
    left, right = speed_figure(CONTENT["results"]).axes
    drawn = [sorted(line.get_xdata()) for line in left.lines]
    assert [1.05, 1.2] in drawn and [1.1] in drawn and [1.125] in drawn, "range, goal, median"
    assert [label.get_text() for label in right.get_yticklabels()] == ["views 3d"]
    assert len(speed_figure(CONTENT["results"][:2]).axes) == 1
