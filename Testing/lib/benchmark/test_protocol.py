"""The label-efficiency protocol: what is run and read, what the tables and the words say, and old
result files.
"""

import copy
import csv
import io as streams
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.benchmark import protocol
from MedSSLLib.benchmark.data import open_data
from MedSSLLib.benchmark.protocol import Protocol, run_labels
from MedSSLLib.benchmark.recommendations import markdown, recommendations
from MedSSLLib.benchmark.records import differences, parse_row, unlike
from MedSSLLib.benchmark.report import filled, write_tables
from MedSSLLib.benchmark.tables import load_studies, table_rows
from MedSSLLib.cli.main import main
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import CancelledError, InputError
from MedSSLLib.methods import METHODS
from MedSSLLib.project.project import Project
from Testing.lib.benchmark_helpers import (
    TINY,
    make_folder,
    record,
    result_file,
    tiny_protocol,
    write_settings,
)
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, write_case

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    """Images and labels of eight cases, no splits."""
    return make_folder(tmp_path / "data")


# ------------------------------------------------------------------------------------------------
# rows and data


@each(
    ("row", "expected"),
    [
        ("random", ("random", False, 0, "")),
        ("pgl-frozen", ("pgl", True, 0, "")),
        ("gcl-sum", ("gcl-sum", False, 0, "")),
        ("pgl+selftrain", ("pgl", False, 0, "selftrain")),
        ("random+longer", ("random", False, 0, "longer")),
        ("gcl-no-filter-frozen+mixup", ("gcl-no-filter", True, 0, "mixup")),
        ("pgl-3-slices", ("pgl", False, 3, "")),
        ("gcl-sum-frozen-12-slices+selftrain", ("gcl-sum", True, 12, "selftrain")),
    ],
)
def test_rows_are_read_by_their_grammar(row, expected):
    assert parse_row(row) == expected


@each(
    "row",
    [
        "",
        "pg",
        "pgl+",
        "pgl+nothing",
        "random-frozen",
        "pgl-frozen-frozen",
        "pgl-0-slices",
        "pgl-slices",
        "random-3-slices-frozen",
        "random 3-slices",
    ],
)
def test_unknown_rows_are_refused_before_anything_runs(row):
    with pytest.raises(InputError, match="unknown"):
        Protocol((row,))


@each("command", ["pretrain", "finetune", "selftrain"])
def test_without_a_length_every_row_has_the_steps_of_the_preset_and_no_time_limit(command):
    """By the minutes of a preset a row would have as many steps as there then is time for."""
    preset = RunConfig.build(command).training
    assert preset.minutes
    usual = Protocol(("random",)).config(command, "a").training
    assert (usual.minutes, usual.steps) == (None, preset.steps)
    given = {"training.minutes": 2.0}
    asked = Protocol(("random",), settings=given, pretrain_settings=given, selftrain_settings=given)
    assert asked.config(command, "a").training.minutes == 2
    with pytest.raises(InputError, match="'overnight' is a time limit"):
        Protocol(("random",), preset="overnight")


def test_test_cases_and_choices_are_drawn_apart(folder, tmp_path):
    project, choices = open_data(folder, tmp_path / "p", ("1", "2", "all"), 3, seed=0)
    test, pool = {c.name for c in project.test}, {c.name for c in project.pool}
    assert len(test) == 2 and not test & pool and len(pool) == 6
    assert [len(choices[count]) for count in ("1", "2", "all")] == [3, 3, 1]
    for count, sets in choices.items():
        assert len({tuple(names) for names in sets}) == len(sets)
        assert all(
            set(names) <= pool and len(names) == (6 if count == "all" else int(count))
            for names in sets
        )
    assert not project.labelled, "no label is read before a choice names it"
    again = open_data(folder, tmp_path / "p", ("1", "2", "all"), 3, seed=0)
    assert again[1] == choices and {c.name for c in again[0].test} == test
    with pytest.raises(InputError, match="7 labelled volumes are asked for, 6 are left"):
        open_data(folder, tmp_path / "p", ("7",), 1, seed=0)


def test_patients_are_not_split_between_test_and_training(folder, tmp_path):
    rows = [f"case{n},P{n // 2}" for n in range(8)]
    (folder / "metadata.csv").write_text("\n".join(["case,patient", *rows]) + "\n")
    project, _ = open_data(folder, tmp_path / "p", ("1",), 1, seed=3)
    assert (
        not {c.patient for c in project.test} & {c.patient for c in project.pool} and project.test
    )


def test_splits_decide_where_there_are_any(folder, tmp_path):
    splits = {"test": ["case1", "case4"], "labelled": {"1": [["case0"], ["case7"], ["case2"]]}}
    (folder / "splits.json").write_text(json.dumps(splits))
    project, choices = open_data(folder, tmp_path / "p", ("1",), 2, seed=0)
    assert [c.name for c in project.test] == ["case1", "case4"] and choices == {
        "1": [["case0"], ["case7"]]
    }
    with pytest.raises(InputError, match="no choice of 2"):
        open_data(folder, tmp_path / "p", ("2",), 2, seed=0)


def test_methods_may_have_any_name(monkeypatch):
    monkeypatch.setitem(METHODS, "moco_v3", "somewhere:Class")
    assert parse_row("moco_v3-frozen-3-slices+mixup") == ("moco_v3", True, 3, "mixup")


def test_a_count_that_the_splits_lack_is_the_start_of_the_next_larger_one(folder, tmp_path):
    three = [["case7", "case5", "case2"], ["case5", "case7", "case3"], ["case0", "case2", "case3"]]
    labelled = {"1": [["case0"]], "3": three, "10": [["case0"] * 10]}
    (folder / "splits.json").write_text(json.dumps({"test": ["case1"], "labelled": labelled}))
    _, choices = open_data(folder, tmp_path / "p", ("2", "1"), 2, seed=0)
    assert choices == {"2": [["case7", "case5"], ["case0", "case2"]], "1": [["case0"]]}, (
        "two that begin alike are one"
    )
    for count in ("11", "0"):
        with pytest.raises(InputError, match=f"no choice of {count}"):
            open_data(folder, tmp_path / "p", (count,), 2, seed=0)


def test_splits_may_name_patients(tmp_path):
    for number, name in enumerate(("a_1", "a_2", "b_1", "c_1")):
        write_case(tmp_path, name, number, shape=(6, 8, 8))
    (tmp_path / "imagesTr").rename(tmp_path / "images")
    (tmp_path / "labelsTr").rename(tmp_path / "labels")
    (tmp_path / "splits.json").write_text(
        json.dumps({"unit": "patient", "test": ["a"], "labelled": {"1": [["b_1"]]}})
    )
    project, _ = open_data(tmp_path, tmp_path / "p", ("1",), 1, seed=0)
    assert [c.name for c in project.test] == ["a_1", "a_2"]


def test_a_project_is_copied_and_its_unread_labels_stay_unread(folder, tmp_path):
    theirs = Project.create(
        tmp_path / "theirs",
        folder / "images",
        labels=folder / "labels",
        labelled="case0,case1,case2",
        test="case6,case7",
    )
    before = (tmp_path / "theirs" / "medssl.json").read_bytes()
    project, choices = open_data(theirs.folder, tmp_path / "p", ("all",), 1, seed=0)
    assert choices == {"all": [["case0", "case1", "case2"]]}
    assert [c.name for c in project.test] == ["case6", "case7"] and len(project.pool) == 6
    assert (tmp_path / "theirs" / "medssl.json").read_bytes() == before
    assert project.case("case0").images[0].is_file()


# ------------------------------------------------------------------------------------------------
# running


def test_the_command_runs_resumes_and_reports(folder, tmp_path, monkeypatch):
    started, run = [], protocol._run
    monkeypatch.setattr(
        protocol,
        "_run",
        lambda worker, project, config, events: (
            started.append(config),
            run(worker, project, config, events),
        ),
    )
    sets = [f"{key}={value}" for key, value in TINY.items()]
    words = [
        "benchmark",
        "labels",
        "--data",
        str(folder),
        "--counts",
        "2",
        "--choices",
        "1",
        "--steps",
        "2",
        "--methods",
        "random,restoration-frozen",
        "--pretrain-steps",
        "2",
        "--out",
        str(tmp_path / "out"),
        "-q",
        "--device",
        "cpu",
    ]
    words += [word for text in sets for word in ("--set", text)] + [
        word for text in sets if "batch" not in text for word in ("--pretrain-set", text)
    ]
    assert main(words) == 0
    assert [config.command for config in started] == ["finetune", "pretrain", "finetune"]
    assert (
        started[0].init == "none"
        and started[2].init == started[1].name
        and started[2].freeze_encoder
    )
    assert started[0].labelled == started[2].labelled and len(started[0].labelled) == 2
    out = tmp_path / "out"
    content = json.loads((out / "results.json").read_text())
    first, second = content["records"]
    assert set(first["dice"]) == set(second["dice"]) and len(first["dice"]) == 2
    gap = np.mean([second["dice"][case] - first["dice"][case] for case in first["dice"]])
    assert content["difference_to_random"]["2"]["restoration-frozen"]["mean"] == pytest.approx(gap)
    for name in ("tables.md", "tables.csv", "cases.csv", "report.html"):
        assert (out / name).stat().st_size > 50, name
    assert len(list((out / "figures").glob("*.png"))) == 2
    metrics = next((out / "project").glob("*/predictions/random-2-0-bench/metrics.json"))
    assert set(json.loads(metrics.read_text())["cases"]) == set(first["dice"])
    assert main(words) == 0 and len(started) == 3, "nothing is run twice"


def test_a_stopped_run_is_taken_up_again_and_self_training_starts_from_its_row(
    folder, tmp_path, monkeypatch
):
    project, choices = open_data(folder, tmp_path / "p", ("1",), 1, seed=0)
    events, _ = loud()
    calls = []

    def trained(project, config, events):
        calls.append(config)
        if len(calls) == 1:
            raise CancelledError("Cancelled.")
        run = project.run_folder(config.name)
        (run / "checkpoint").mkdir(parents=True, exist_ok=True)
        write_settings(run, config)
        (run / "weights.safetensors").touch()
        (run / "metrics.json").write_text('{"steps": 2, "seconds": 1.0}')

    for name in ("run_finetune", "run_selftrain"):
        monkeypatch.setattr(protocol, name, trained)
    monkeypatch.setattr(
        protocol,
        "run_predict",
        lambda project, run, out, events, **_: [
            (
                out.mkdir(parents=True, exist_ok=True),
                (out / f"{case.name}.nii.gz").write_bytes(case.label.read_bytes()),
            )
            for case in project.test
        ],
    )
    with pytest.raises(CancelledError):
        run_labels(
            project,
            choices,
            tiny_protocol("random", "random+selftrain"),
            tmp_path / "r.json",
            events,
        )
    stopped = project.run_folder(calls[0].name)
    (stopped / "checkpoint").mkdir(parents=True)
    (stopped / "checkpoint" / "a.safetensors").touch()
    result = run_labels(
        project, choices, tiny_protocol("random", "random+selftrain"), tmp_path / "r.json", events
    )
    assert [config.resume for config in calls] == [False, True, False]
    assert calls[2].command == "selftrain" and calls[2].options["start"] == calls[0].name
    assert [r["summary"]["dice"] for r in result["records"]] == [1.0, 1.0]
    with pytest.raises(InputError, match="holds results of"):
        result_file(tmp_path / "r.json", [], data="other")
        run_labels(project, choices, tiny_protocol("random"), tmp_path / "r.json", events)


def test_minutes_become_steps_once_so_that_no_row_is_shorter(folder, tmp_path, monkeypatch):
    """Though the computer is ever busier: each run by the clock would be shorter than the last."""
    project, choices = open_data(folder, tmp_path / "p", ("1", "2"), 1, seed=0)
    events, _ = loud()
    lengths = []
    run_finetune = protocol.run_finetune

    def slower(project, config, events):
        if minutes := config.training.minutes:
            assert minutes == 0.05
            config = config.override({"training.minutes": 0.003 / (1 + len(lengths))})
        lengths.append((config.name, config.training.minutes, config.training.steps))
        run_finetune(project, config, events)
        if minutes:  # as if these minutes had been what was asked for
            path = project.run_folder(config.name) / "config.json"
            content = json.loads(path.read_text())
            content["config"]["training"]["minutes"] = minutes
            path.write_text(json.dumps(content))

    monkeypatch.setattr(protocol, "run_finetune", slower)
    one_round = {"selftrain_settings": TINY | {"options.rounds": "1"}}
    rows = ("random+mixing", "random")
    asked = replace(tiny_protocol(*rows, **one_round), steps=None, minutes=0.05)
    first = run_labels(project, {"1": choices["1"]}, asked, tmp_path / "r.json", events)
    result = run_labels(project, choices, asked, tmp_path / "r.json", events)
    assert [minutes is None for _, minutes, _ in lengths] == [False, True], lengths
    steps = {(r["row"], r["count"]): r["steps"] for r in result["records"]}
    once = int(result["settings"]["measured_steps"])
    assert once > 0 and result["settings"]["minutes"] == "0.05"
    assert steps == {(row, count): once * rows[::-1].index(row) + once for row, count in steps}
    assert len(steps) == 4
    assert first["records"] == result["records"][:2]
    (study,) = load_studies([tmp_path / "r.json"])
    assert study.length().startswith(f"training 0.05 min ({once} steps)")


# ------------------------------------------------------------------------------------------------
# tables and words


def test_differences_are_paired_over_the_choices_that_both_rows_have():
    random = np.random.default_rng(0)
    base = [random.uniform(0.5, 0.9, 12) for _ in range(3)]
    records = [record("random", c, base[c]) for c in range(3)]
    records += [record("pgl", c, base[c] + 0.05) for c in (0, 2)]  # the same gain in every case
    found = differences(records)["pgl"]
    assert found["choices"] == [0, 2]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.05, 0.05, 0.05))


def test_undefined_cases_are_left_out_on_both_sides():
    first, second = record("random", 0, [0.5, 0.5, 0.5]), record("pgl", 0, [0.6, 0.6, 0.6])
    second["dice"]["c0"] = None
    first["dice"]["c1"] = None
    assert differences([first, second])["pgl"]["mean"] == pytest.approx(0.1)


def study_of(tmp_path, records):
    return load_studies([result_file(tmp_path / "results.json", records)])[0]


def test_the_words_follow_the_interval(tmp_path):
    random = np.random.default_rng(1)
    base = random.uniform(0.5, 0.9, 20)
    gain, noise = base + 0.04 + random.normal(0, 0.01, 20), random.normal(0, 0.05, 20)
    noise -= noise.mean()

    def words(dice, choices=3):
        rows = [
            record(row, c, values)
            for c in range(choices)
            for row, values in (("random", base), ("pgl", dice))
        ]
        return recommendations(study_of(tmp_path, rows))[0]

    assert re.match(
        r"With 2 labelled volumes: take pgl \(\+0\.0[34]\d Dice against random, 95 % interval",
        words(gain),
    )
    assert "no difference shown" in words(base + noise) and "pgl" in words(base + noise)
    assert "stay with random" in words(base - 0.1)
    for dice in (gain, base - 0.1):
        text = words(dice, choices=2)
        assert "three are needed for advice" in text and "of test cases only" in text
        assert "take pgl" not in text and "stay with" not in text
    (text,) = recommendations(study_of(tmp_path, [record("pgl", 0, base)]))
    assert "nothing to compare" in text


def test_the_best_of_many_rows_needs_a_wider_interval(tmp_path):
    random = np.random.default_rng(2)
    base = random.uniform(0.5, 0.9, 20)
    rows = [record("random", 0, base)] + [
        record(name, 0, base + 0.01) for name in ("pgl", "gcl", "byol", "simclr")
    ]
    (text,) = recommendations(study_of(tmp_path, rows))
    assert "98.8 % interval" in text  # 1 - 0.05 / 4


def test_tables_hold_the_means_and_the_comparison_with_the_row_below(tmp_path):
    base = np.linspace(0.5, 0.9, 9)
    records = [
        record("random", 0, base),
        record("pgl", 0, base + 0.1),
        record("pgl+mixup", 0, base + 0.08),
    ]
    (study,) = studies = [study_of(tmp_path, records)]
    rows = {row["row"]: row for row in table_rows(studies)}
    assert rows["pgl"]["dice"] == pytest.approx(0.8) and rows["pgl"]["against_base"] is None
    assert rows["pgl+mixup"]["against_random"] == pytest.approx(0.08)
    assert rows["pgl+mixup"]["against_base"] == pytest.approx(-0.02)
    assert rows["random"]["against_random"] is None
    text = markdown(studies)
    assert "| pgl+mixup | 0.780 (" in text and "training 10 steps" in text
    write_tables(studies, tmp_path / "out")
    table = list(csv.DictReader(streams.StringIO((tmp_path / "out" / "cases.csv").read_text())))
    assert len(table) == 27 and {row["row"] for row in table} == {"random", "pgl", "pgl+mixup"}
    assert study.rows("2")[0] == "random"


def test_files_are_put_together_only_where_they_may_be_compared(tmp_path):
    one = result_file(tmp_path / "a.json", [record("random", 0, [0.5, 0.6])])
    two = result_file(tmp_path / "b.json", [record("pgl", 0, [0.5, 0.6])])
    other = result_file(
        tmp_path / "c.json", [record("pgl", 0, [0.5, 0.6])], settings={"steps": "99"}
    )
    assert [len(study.records) for study in load_studies([one, two, other])] == [2, 1]
    contrary = result_file(tmp_path / "d.json", [record("random", 0, [0.1, 0.6])])
    with pytest.raises(InputError, match="other values"):
        load_studies([one, contrary])
    with pytest.raises(InputError, match="not a result"):
        load_studies([result_file(tmp_path / "e.json", [], bench="speed")])
    with pytest.raises(InputError, match="no result yet"):
        write_tables(load_studies([result_file(tmp_path / "f.json", [])]), tmp_path / "out")


def test_earlier_result_files_are_read(tmp_path, capsys):
    """Files without a count in the records, as the first version of the script wrote them."""
    files = sorted((ROOT / "Testing" / "bench" / "results").glob("*.json"))
    protocol = [path for path in files if json.loads(path.read_text()).get("bench") == "protocol"]
    if not protocol:
        pytest.skip("no result file is in this checkout")
    content = json.loads(protocol[0].read_text())
    earlier = copy.deepcopy(content)
    for entry in earlier["records"]:
        entry.pop("count", None)
    (tmp_path / "old.json").write_text(json.dumps(earlier))
    words = [
        "benchmark",
        "tables",
        "--results",
        str(tmp_path / "old.json"),
        "--out",
        str(tmp_path / "out"),
        "-q",
    ]
    assert main([*words, "--events", "-"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = {event["file"] for event in events if event["event"] == "image"}
    assert shown == {str(path) for path in (tmp_path / "out" / "figures").glob("*.png")} and shown
    (row, *_) = csv.DictReader(streams.StringIO((tmp_path / "out" / "tables.csv").read_text()))
    expected = np.mean([r["summary"]["dice"] for r in content["records"] if r["row"] == row["row"]])
    assert float(row["dice"]) == pytest.approx(expected, abs=1e-9)


def test_columns_without_any_value_are_left_out():
    rows = [["a", "–", "1", "–"], ["b", "–", "–", "0"]]
    expected = ["name", "once", "last"], [["a", "1", "–"], ["b", "–", "0"]]
    assert filled(("name", "never", "once", "last"), rows) == expected


def test_options_given_as_text_are_those_that_a_run_has_recorded():
    """A benchmark that is started again with ``--selftrain-set options.rounds=2`` goes on."""
    recorded = RunConfig.build(
        "selftrain", overrides={"options": {"rounds": 2, "recipe": "mixing"}}
    )
    asked = RunConfig.build("selftrain", overrides={"options.rounds": "2"})
    assert unlike(recorded, asked) == []
    more = RunConfig.build("selftrain", overrides={"options.rounds": "3"})
    assert unlike(recorded, more) == ["options.rounds 2 there, 3 here"]
