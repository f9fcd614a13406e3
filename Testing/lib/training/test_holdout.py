"""What is held out: whole patients, and never a case whose label trained the weights that a run
starts from.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from MedSSLLib.core.files import write_json
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.images.labels import Annotated
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining import selftrain
from MedSSLLib.training.holdout import hold_out, split_holdout
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config, tiny_project

CASES = [Case(f"c{i:02}", (), metadata={"patient": f"p{i // 2:02}"}) for i in range(24)]


def patients(cases):
    return {case.patient for case in cases}


def test_patients_stay_on_one_side_of_the_holdout():
    training, held_out = split_holdout(CASES, tiny_config())
    assert patients(training).isdisjoint(patients(held_out))
    assert len(held_out) == 2 and len(training) + len(held_out) == 24
    assert split_holdout(CASES[:9], tiny_config())[1] == (), "too few to hold any out"


def test_cases_with_few_annotated_slices_neither_count_nor_are_held_out():
    few, enough = (Annotated.of([(2, list(range(n)))]) for n in (4, 5))
    assert split_holdout([replace(c, annotated=few) for c in CASES], tiny_config())[1] == ()
    assert len(split_holdout([replace(c, annotated=enough) for c in CASES], tiny_config())[1]) == 2
    mixed = [replace(c, annotated=few) if i % 2 and i > 3 else c for i, c in enumerate(CASES)]
    assert split_holdout(mixed, tiny_config())[1] == (), "four scans of two patients are left"
    mixed = [replace(c, annotated=few) if i >= 20 else c for i, c in enumerate(CASES)]
    for seed in range(8):
        training, held_out = split_holdout(mixed, tiny_config(seed=seed, training__holdout=0.4))
        assert (
            len(held_out) == 8
            and all(case.annotated is None for case in held_out)
            and len(training) == 16
        )


def test_partly_drawn_slices_do_not_make_a_case_one_that_can_be_held_out():
    some = Annotated.of([(2, list(range(4)))], [(2, [7, 8])])
    assert (
        some.count > 5
        and split_holdout([replace(c, annotated=some) for c in CASES], tiny_config())[1] == ()
    )


def test_labels_of_strokes_alone_train_but_do_not_judge(tmp_path):
    """Fourteen labels, eight of which know one voxel of 24: six are too few to hold any out."""
    project = tiny_project(tmp_path, 14, shape=(6, 8, 8))
    assert train(project, "whole", ALL)[1]["validation"]
    for case in project.cases[:8]:
        volume = io.read_label(case.label, io.read_header(case.images[0]))
        label = volume.array.copy()
        known = label[2, :4, :4].copy()
        label[:] = 255
        label[2, :4, :4] = known
        io.write_image(case.label, replace(volume, array=label))
    names = dict(zip(project.values, project.classes, strict=True))
    project.set_labels({**names, 255: "ignore"})
    warnings, data = train(project, "strokes", ALL)
    assert len(warnings) == 1 and "8 cases" in warnings[0] and "10% of their voxels" in warnings[0]
    assert data["validation"] == [] and sorted(data["labelled"]) == sorted(ALL)
    some = split_holdout(CASES, tiny_config(training__holdout=0.4), strokes={"c00", "c05"})[1]
    assert some and patients(some).isdisjoint({"p00", "p02"})


@each("seed", range(5))
def test_patients_who_were_seen_are_not_held_out(seed):
    seen = patients(CASES) - {"p03", "p07"}
    config = tiny_config(seed=seed, training__holdout=0.3)
    assert patients(split_holdout(CASES, config, seen)[1]) == {"p03", "p07"}
    assert split_holdout(CASES, config, patients(CASES)) == (tuple(CASES), ())


def test_held_out_cases_are_held_out_again_with_further_scans_of_their_patients():
    for seed in range(5):
        assert patients(split_holdout(CASES, tiny_config(seed=seed), {"p01"}, {"c06"})[1]) == {
            "p03"
        }
    assert "p03" not in patients(split_holdout(CASES, tiny_config(), {"p03"}, {"c06"})[1]), (
        "another scan was seen"
    )


def test_a_run_that_goes_on_keeps_its_split(tmp_path):
    write_json(
        tmp_path / "config.json",
        {
            "format": "medssl-run",
            "format_version": 1,
            "data": {"classes": ["a"], "values": [0], "validation": ["c05", "c20"]},
        },
    )
    context = SimpleNamespace(run=RunFolder(tmp_path), config=tiny_config(resume=True))
    training, held_out = hold_out(context, None, CASES)
    assert [case.name for case in held_out] == ["c05", "c20"] and len(training) == 22


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Fourteen cases, and a run 'first' of twelve of them."""
    project = tiny_project(tmp_path_factory.mktemp("holdout"), 14, shape=(6, 8, 8))
    train(project, "first", ALL[:12])
    return project


ALL = [f"case{i}" for i in range(14)]
QUICK = {"training__steps": 1, "training__batch": 1, "network__widths": (4, 4), "dim": "2d"}


def train(project, name, labelled, command="finetune", **changes):
    """The warnings about what is held out, and the data on record."""
    events, record = loud()
    method = {"selftrain": "local-contrast", "finetune": "supervised", "pretrain": "byol"}[command]
    run = {
        "selftrain": selftrain.run_selftrain,
        "finetune": run_finetune,
        "pretrain": run_pretrain,
    }[command]
    config = tiny_config(
        command, method=method, name=name, labelled=json.dumps(list(labelled)), **QUICK | changes
    )
    folder = run(project, config, events)
    warnings = [
        event["message"] for event in record.of("warning") if "held out" in event["message"]
    ]
    return warnings, json.loads((folder / "config.json").read_text())["data"]


def data_of(project, run):
    return json.loads((project.run_folder(run) / "config.json").read_text())["data"]


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch):
    """Self-training without its rounds: what is held out is settled before them."""
    monkeypatch.setattr(selftrain, "_round", lambda job, number, net, first: net)


@pytest.mark.parametrize(
    ("command", "start"), [("selftrain", "options__start"), ("finetune", "init")]
)
class TestARunThatStartsFromAnother:
    def test_holds_the_same_cases_out_whatever_its_seed(self, project, command, start):
        (before,) = data_of(project, "first")["validation"]
        for seed in (1, 2, 3):
            warnings, data = train(
                project, f"{command}-{seed}", ALL[:13], command, seed=seed, **{start: "first"}
            )
            assert data["validation"] == [before] and not warnings
        card = (project.run_folder(f"{command}-3") / "model_card.md").read_text()
        assert "- started from: first" in card

    def test_draws_from_new_cases_where_those_are_not_labelled(self, project, command, start):
        known = data_of(project, "first")["labelled"]
        warnings, data = train(
            project, f"{command}-new", [*known, "case13"], command, **{start: "first"}
        )
        assert data["validation"] == ["case13"] and not warnings

    def test_holds_nothing_out_where_all_are_known_and_says_why(self, project, command, start):
        known = data_of(project, "first")["labelled"]
        (warning,), data = train(project, f"{command}-none", known, command, **{start: "first"})
        assert data["validation"] == [] and "run 'first'" in warning and "trained on" in warning

    def test_knows_what_trained_the_run_before_that_one(self, project, command, start):
        known = data_of(project, "first")["labelled"]
        train(project, f"{command}-second", [*known[1:], "case13"], command, **{start: "first"})
        second = data_of(project, f"{command}-second")
        assert known[0] not in second["labelled"] and known[0] in second["seen_before"]
        warnings, data = train(
            project, f"{command}-third", known, command, **{start: f"{command}-second"}
        )
        assert data["validation"] == [] and len(warnings) == 1


def test_a_pretrained_encoder_changes_nothing_unless_labels_trained_what_it_started_from(project):
    known = data_of(project, "first")["labelled"]
    train(project, "encoder", known, "pretrain", training__batch=2)
    assert "seen_before" not in data_of(project, "encoder")
    warnings, data = train(project, "on-encoder", known, init="encoder")
    assert len(data["validation"]) == 1 and not warnings
    train(project, "further", known, "pretrain", training__batch=2, init="first")
    assert train(project, "on-further", known, init="further")[1]["validation"] == []


def test_folds_over_cases_that_trained_the_start_are_warned_about(project):
    events, record = loud()
    run_finetune(
        project, tiny_config(name="folds", init="first", training__folds=2, **QUICK), events
    )
    assert [e for e in record.of("warning") if "Dice of the folds will be too high" in e["message"]]
