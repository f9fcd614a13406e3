"""What the benchmark must not do: mix settings, hide length, claim more than its choices and
patients show.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.benchmark import protocol
from MedSSLLib.benchmark.data import open_data
from MedSSLLib.benchmark.protocol import Protocol, run_labels, score_test_cases
from MedSSLLib.benchmark.recommendations import markdown, recommendations
from MedSSLLib.benchmark.records import difference, differences
from MedSSLLib.benchmark.tables import load_studies, table_rows
from MedSSLLib.core.errors import InputError
from MedSSLLib.evaluation.evaluate import averaged_within
from MedSSLLib.evaluation.scoring import interval
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from Testing.lib.benchmark_helpers import (
    TINY,
    make_folder,
    record,
    result_file,
    tiny_protocol,
    without_training,
)
from Testing.lib.core_helpers import loud

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """``run(protocol, file)`` on a project with two choices of one label; and the list of runs that
    were trained.
    """
    trained = without_training(monkeypatch)
    project, choices = open_data(make_folder(tmp_path / "data"), tmp_path / "p", ("1",), 2, seed=0)

    def run(protocol, file="r.json", chosen=choices):
        return run_labels(project, chosen, protocol, tmp_path / file, loud()[0])

    run.trained, run.project, run.choices, run.folder = trained, project, choices, tmp_path
    return run


def test_rows_of_slices_train_and_self_train_on_slices_alone(runs):
    content = runs(
        tiny_protocol("random", "random-2-slices", "random-2-slices+selftrain"),
        chosen={"1": [["case0"]]},
    )
    assert [config.annotated_slices for config in runs.trained] == [None, 2, 2]
    assert runs.trained[2].options["start"] == runs.trained[1].name == "random-2-slices-1-0-bench"
    assert content["records"][2]["base"]["steps"] == content["records"][1]["steps"]
    runs(
        tiny_protocol("random-2-slices+longer", "random-2-slices+mixup"), chosen={"1": [["case0"]]}
    )
    assert [config.annotated_slices for config in runs.trained[3:]] == [2, 2]


def test_rows_of_slices_are_judged_against_random_with_as_many_slices(tmp_path):
    scores = {"random": 0.8, "random-2-slices": 0.5, "random-2-slices+mixup": 0.6, "pgl": 0.7}
    records = [record(row, c, [dice, dice + 0.1]) for row, dice in scores.items() for c in range(3)]
    whole, slices = recommendations(load_studies([result_file(tmp_path / "r.json", records)])[0])
    assert whole.startswith(
        "With 2 labelled volumes: stay with random; the best other, pgl, is worse"
    )
    assert slices.startswith(
        "With 2 labelled volumes (2 slices of each): take random-2-slices+mixup (+0.100 Dice"
    )
    assert "against random-2-slices, 95 % interval" in slices


# ------------------------------------------------------------------------------------------------
# settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 60}, "steps 2 there, 60 here"),
        ({"steps": None, "minutes": 3.0}, "minutes not set there, 3.0 here"),
        ({"seed": 5}, "seed 0 there, 5 here"),
        ({"preset": "quick"}, "preset standard there, quick here"),
        ({"pretrain_steps": 9}, "pretrain_steps"),
        ({"settings": {**TINY, "optimiser.lr": "1"}}, "settings .*lr"),
        ({"tolerance": 2.0}, "tolerance"),
    ],
)
def test_a_result_file_keeps_one_set_of_settings(runs, changes, named):
    before = runs(tiny_protocol("random"))
    other = Protocol(**{**vars(tiny_protocol("random", "pgl")), **changes})
    with pytest.raises(InputError, match=rf"r\.json.*other settings.*{named}.*--out.*--tag"):
        runs(other)
    assert json.loads((runs.folder / "r.json").read_text()) == before and len(runs.trained) == 2


def test_rows_counts_and_choices_may_be_added(runs):
    runs(tiny_protocol("random"), chosen={"1": runs.choices["1"][:1]})
    two = {"1": runs.choices["1"], "2": [[case.name for case in runs.project.pool][:2]]}
    content = runs(tiny_protocol("pgl"), chosen=two)
    assert [(r["row"], r["count"], r["choice"]) for r in content["records"]] == [
        ("random", "1", 0),
        ("pgl", "1", 0),
        ("pgl", "1", 1),
        ("pgl", "2", 0),
    ]
    settings = content["settings"]
    assert (settings["rows"], settings["count"], settings["choices"]) == ("random,pgl", "1,2", "2")
    assert set(runs(tiny_protocol("random"))["difference_to_random"]["1"]) == {"pgl"}


def test_the_number_format_that_was_used_is_kept(runs, monkeypatch):
    monkeypatch.setattr(protocol, "training_precision", lambda name, device: "32")
    content = runs(tiny_protocol("random"))
    assert content["settings"]["precision"] == content["records"][0]["precision"] == "32"
    monkeypatch.setattr(protocol, "training_precision", lambda name, device: "bf16")
    with pytest.raises(InputError, match="precision 32 there, bf16 here"):
        runs(tiny_protocol("random", "pgl"))


def test_rows_are_added_to_files_that_lack_newer_settings(runs):
    early = {
        "count": "1",
        "choices": "3",
        "rows": "random",
        "minutes": "10.0",
        "steps": "2",
        "set": "[]",
        "pretrain_minutes": "10.0",
        "pretrain_steps": "2",
        "tolerance": "1.0",
        "tag": "bench",
    }
    old = record("random", 0, [0.5, 0.6], count="1") | {"labelled": runs.choices["1"][0]}
    result_file(runs.folder / "r.json", [old], settings=early, data=runs.project.name)
    protocol = Protocol(("pgl",), steps=2, pretrain_steps=2, device="cpu")
    content = runs(protocol, chosen={"1": runs.choices["1"][:1]})
    assert [r["row"] for r in content["records"]] == ["random", "pgl"]
    assert "precision" not in content["settings"], "nobody knows it of the old row"
    with pytest.raises(InputError, match="other settings: steps 2 there, 3 here"):
        runs(Protocol(("pgl",), steps=3, pretrain_steps=2, device="cpu"))
    with pytest.raises(InputError, match="other settings: set not set there, .*network.widths"):
        runs(tiny_protocol("pgl"))


def test_the_result_files_of_this_project_take_rows_of_the_same_settings(tmp_path):
    from MedSSLLib.benchmark.records import read_results

    path = RESULTS / "cardiac-1-selftrain.json"
    if not path.exists():
        pytest.skip("no result file is in this checkout")
    given = {"steps": 250, "pretrain_minutes": 10.0, "tolerance": 2.0, "tag": "t1"}
    protocol = Protocol(("pgl",), selftrain_settings={"options.rounds": "1"}, **given)
    _, records = read_results(path, "cardiac", vars(protocol) | {"precision": "32"})
    assert len(records) == 6
    with pytest.raises(InputError, match="selftrain_set"):
        read_results(path, "cardiac", vars(Protocol(("pgl",), **given)))


def test_rows_that_would_differ_in_network_or_patch_are_refused():
    """A pre-trained encoder brings its patch along, a random start would take the default one."""
    smaller = {"training.voxels": "32768"}
    with pytest.raises(
        InputError, match="more than their start: training.voxels 32768 in pre-training, None in"
    ):
        Protocol(("random", "pgl"), steps=2, pretrain_settings=smaller)
    assert Protocol(("random", "pgl"), steps=2, pretrain_settings=smaller, settings=smaller)
    assert Protocol(("random", "random+selftrain"), steps=2, pretrain_settings=smaller)
    with pytest.raises(InputError, match="network.widths"):
        Protocol(("byol",), steps=2, settings={"network.widths": "[4,8]"})


def test_a_choice_with_other_labelled_volumes_is_refused(runs):
    runs(tiny_protocol("random"))
    with pytest.raises(InputError, match=r"r\.json.*choice 0 of 1 has .*--out"):
        runs(tiny_protocol("random"), chosen={"1": runs.choices["1"][::-1]})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 60}, "length 2 steps there, 60 steps here"),
        ({"steps": None, "minutes": 3.0}, "3.0 minutes here"),
        ({"seed": 5}, "seed 0 there, 5 here"),
        ({"preset": "quick"}, "preset standard"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_settings_is_not_taken_for_this_one(runs, changes, named, finished):
    runs(tiny_protocol("random"))
    if not finished:
        run = runs.project.run_folder("random-1-0-bench")
        (run / "weights.safetensors").unlink()
        (run / "checkpoint").mkdir()
        (run / "checkpoint" / "a.safetensors").touch()
    with pytest.raises(InputError, match=f"random-1-0-bench.*{named}.*--tag"):
        runs(Protocol(**{**vars(tiny_protocol("random")), **changes}), file="other.json")
    assert len(runs.trained) == 2


def test_a_run_with_other_labels_or_another_pre_training_is_refused(runs):
    runs(tiny_protocol("pgl"))
    with pytest.raises(InputError, match="labelled case"):
        runs(tiny_protocol("pgl"), file="other.json", chosen={"1": runs.choices["1"][::-1]})
    shutil.rmtree(runs.project.run_folder("pgl-1-0-bench"))
    changed = Protocol(**{**vars(tiny_protocol("pgl")), "pretrain_steps": 7})
    with pytest.raises(
        InputError, match="run 'pgl-bench' has other settings: length 2 steps there, 7 steps here"
    ):
        runs(changed, file="other.json")
    given = tiny_protocol("pgl").pretrain_settings | {"options.view_scale": [0.5, 0.9]}
    scaled = Protocol(**{**vars(tiny_protocol("pgl")), "pretrain_settings": given})
    with pytest.raises(
        InputError,
        match=r"'pgl-bench' has other settings: options.view_scale .*, \[0.5, 0.9\] here",
    ):
        runs(scaled, file="third.json")


# ------------------------------------------------------------------------------------------------
# length


def test_self_training_counts_with_the_row_it_goes_on_from(runs):
    protocol = Protocol(("pgl", "pgl+selftrain"), steps=8, pretrain_steps=20, device="cpu")
    first, second = (r for r in runs(protocol)["records"] if r["choice"] == 0)
    assert (first["steps"], first["training_s"], first["pretraining_s"]) == (8, 2.0, 5.0)
    assert (second["steps"], second["training_s"], second["pretraining_s"]) == (16, 4.0, 5.0)
    assert second["base"] == {"steps": 8, "training_s": 2.0} and "base" not in first
    again = {r["row"]: r["steps"] for r in runs(protocol)["records"]}
    assert again == {"pgl": 8, "pgl+selftrain": 16}, "nothing is added twice"


def test_the_longer_row_trains_on_labels_alone_for_as_long_as_self_training_and_its_row(runs):
    rows = ("random", "random+selftrain", "random+longer")
    own = {"training.steps": "5"}
    for more, expected in (({}, 16), ({"selftrain_settings": own}, 13)):
        protocol = Protocol(rows, steps=8, device="cpu", tag=f"to-{expected}", **more)
        steps = {r["row"]: r["steps"] for r in runs(protocol, file=f"{expected}.json")["records"]}
        assert steps == {"random": 8, "random+selftrain": expected, "random+longer": expected}
    assert Protocol(rows, minutes=3.0).whole_length() == {"training__minutes": 6.0}


def test_early_files_get_the_length_of_the_row_below(tmp_path):
    records = [record("random", c, [0.5, 0.6]) for c in range(3)]
    records += [record("random+selftrain", c, [0.6, 0.7]) for c in range(3)]
    (study,) = load_studies([result_file(tmp_path / "r.json", records)])
    rows = {row["row"]: row for row in table_rows([study])}
    assert (rows["random"]["steps"], rows["random+selftrain"]["steps"]) == (10, 20)
    (text,) = recommendations(study)
    assert "take random+selftrain" in text
    assert (
        "random+selftrain trained longer than random, 20 steps against 10: part of a gain" in text
    )
    records += [record("random+longer", c, [0.58, 0.67]) for c in range(3)]
    (study,) = load_studies([result_file(tmp_path / "s.json", records)])
    (text,) = recommendations(study)
    assert (
        "trained as long on the labels alone, it has +0.025 (+0.02" in text
        and "part of a gain" not in text
    )


def test_the_caveat_speaks_of_time_where_time_was_the_limit_and_is_silent_for_equal_lengths(
    tmp_path,
):
    base = [record("random", c, [0.5, 0.6]) for c in range(3)]
    more = [record("pgl", c, [0.6, 0.7]) | {"steps": 900, "training_s": 2.05} for c in range(3)]

    def words(**settings):
        return recommendations(
            load_studies([result_file(tmp_path / "r.json", base + more, settings=settings)])[0]
        )[0]

    assert "900 steps against 10" in words(steps="900")
    assert "longer" not in words(minutes="1.0")
    for entry in more:
        entry["training_s"] = 4.0
    assert "4 s against 2" in words(minutes="1.0")


# ------------------------------------------------------------------------------------------------
# comparisons


def test_rows_are_compared_over_the_choices_that_all_have(tmp_path):
    """Choice 3 is easy: only pgl was scored there, and gcl is better wherever both were."""
    records = [record("random", c, [0.5, 0.6]) for c in range(4)]
    records += [record("pgl", c, [0.55, 0.65]) for c in range(3)] + [record("pgl", 3, [0.98, 0.99])]
    records += [record("gcl", c, [0.6, 0.7]) for c in range(3)]
    (study,) = studies = load_studies([result_file(tmp_path / "r.json", records)])
    rows = {row["row"]: row for row in table_rows(studies)}
    assert {row["choices"] for row in rows.values()} == {3}
    assert rows["pgl"]["dice"] == pytest.approx(0.6) and rows["gcl"]["dice"] == pytest.approx(0.65)
    assert rows["pgl"]["against_random"] == pytest.approx(0.05)
    (text,) = recommendations(study)
    assert "take gcl" in text and "over 3 choices" in text


def test_rows_without_a_common_choice_are_not_compared(tmp_path):
    records = [record("random", 0, [0.5, 0.6]), record("pgl", 1, [0.6, 0.7])]
    studies = load_studies([result_file(tmp_path / "r.json", records)])
    assert (
        "no choice of labelled volumes was scored with every row" in recommendations(studies[0])[0]
    )
    assert [row["dice"] for row in table_rows(studies)] == pytest.approx([0.55, 0.65])


# ------------------------------------------------------------------------------------------------
# patients


def test_averages_within_patients_equal_plain_loops():
    values = np.array([[1.0, 2.0, np.nan, 5.0], [np.nan, 3.0, np.nan, 7.0]])
    found = averaged_within(values, ["b", "a", "c", "b"])
    assert found == pytest.approx(np.array([[3.0, 2.0, np.nan], [7.0, 3.0, np.nan]]), nan_ok=True)


def test_scans_of_a_patient_are_no_further_evidence(tmp_path):
    """Every patient scanned six times with the same result: the interval is that of one scan a
    patient.
    """
    gains = np.array([-0.1, 0.0, 0.05, 0.2, 0.1, -0.02])
    one = [record("random", 0, np.full(6, 0.5)), record("pgl", 0, 0.5 + gains)]
    many = [record("random", 0, np.full(36, 0.5)), record("pgl", 0, np.repeat(0.5 + gains, 6))]
    expected, by_case = differences(one)["pgl"], differences(many)["pgl"]
    for entry in many:
        entry["patients"] = {f"c{n}": f"p{n // 6}" for n in range(36)}
    found = difference(many, "pgl", "random")
    assert (found["low"], found["high"]) == pytest.approx(
        (expected["low"], expected["high"]), abs=0.01
    )
    assert by_case["high"] - by_case["low"] < 0.6 * (found["high"] - found["low"])
    wide, narrow = (
        table_rows(load_studies([result_file(tmp_path / "r.json", rows)]))[1]
        for rows in (many, [{k: v for k, v in entry.items() if k != "patients"} for entry in many])
    )
    for low, high in (("dice_low", "dice_high"), ("random_low", "random_high")):
        assert narrow[high] - narrow[low] < 0.6 * (wide[high] - wide[low])


def test_the_interval_of_a_report_counts_patients():
    per_case = {f"c{n}": value for n, value in enumerate([0.4, 0.4, 0.4, 0.8])}
    assert interval(per_case, {"c0": "a", "c1": "a", "c2": "a", "c3": "b"})[0] == pytest.approx(0.6)
    assert interval(per_case)[0] == pytest.approx(0.5)


def test_records_keep_the_patients_that_the_project_knows(tmp_path):
    data = make_folder(tmp_path / "data")
    plain, _ = open_data(data, tmp_path / "p", ("1",), 1, seed=0)
    (data / "metadata.csv").write_text(
        "case,patient\n" + "\n".join(f"case{n},P{n // 2}" for n in range(8))
    )
    known, _ = open_data(data, tmp_path / "q", ("1",), 1, seed=0)
    assert "patients" not in scored(plain)
    assert scored(known)["patients"] == {c.name: f"P{int(c.name[4:]) // 2}" for c in known.test}


def scored(project, change=lambda array: array):
    """The record of perfect predictions, changed."""
    for case in project.test:
        volume = io.read_label(case.label, io.read_header(case.label), case=case.name)
        changed = Volume(change(volume.array.copy()), volume.geometry)
        io.write_image(project.folder / "out" / f"{case.name}.nii.gz", changed)
    return score_test_cases(project, project.folder / "out", 1.0)


# ------------------------------------------------------------------------------------------------
# missed structures


def test_missed_structures_are_counted_beside_the_distance(tmp_path):
    project, _ = open_data(make_folder(tmp_path / "data"), tmp_path / "p", ("1",), 1, seed=0)
    assert scored(project)["missed"] == 0
    found = scored(project, lambda array: np.where(array == project.values[-1], 0, array))
    assert found["missed"] == len(project.test)
    assert scored(project, lambda array: array * 0)["missed"] == len(project.test) * len(
        project.values[1:]
    )
    records = [record("random", c, [0.5, 0.6]) | {"missed": c} for c in range(3)] + [
        record("pgl", 0, [0.5, 0.6])
    ]
    records += [record("pgl", c, [0.5, 0.6]) | {"missed": 0} for c in (1, 2)]
    studies = load_studies([result_file(tmp_path / "r.json", records)])
    assert [row["missed"] for row in table_rows(studies)] == [3, None], (
        "not known of a record of an early file"
    )
    text = markdown(studies)
    assert "| 3.0 (3 missed) |" in text and "| 3.0 |" in text
