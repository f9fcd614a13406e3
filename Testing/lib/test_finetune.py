"""``run_finetune`` on a tiny project: what it learns from, what it leaves behind, what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib import finetune
from MedSSLLib.checkpoint import load_tensors, save_tensors
from MedSSLLib.errors import InputError
from MedSSLLib.events import Events
from MedSSLLib.finetune import LabelledData, cross_validate, run_finetune, stage_budget
from MedSSLLib.manifest import Case
from MedSSLLib.networks import Encoder
from MedSSLLib.runfolder import read_plan
from Testing.lib.core_helpers import loud, tiny_config, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("finetune"))


def weights(folder):
    return load_tensors(folder / "weights.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_a_run_leaves_a_complete_folder_and_learns(project):
    events, record = loud()
    config = tiny_config(name="learn", dim="2d", training__steps=120, optimiser__lr=1e-2, training__batch=4)
    folder = run_finetune(project, config, events)
    assert folder == project.run_folder("learn")
    kept = {p.name for p in folder.iterdir()} - {".lock"}
    assert kept >= {
        "config.json",
        "events.jsonl",
        "log.txt",
        "weights.safetensors",
        "checkpoint",
        "metrics.json",
        "model_card.md",
    }
    facts = json.loads((folder / "config.json").read_text())
    assert facts["config"]["training"]["steps"] == 120 and facts["versions"]["torch"] == torch.__version__
    assert sorted(facts["data"]["labelled"]) == ["case0", "case1", "case2", "case3"]
    losses = [e["losses"]["segmentation"] for e in record.of("progress") if e["stage"] == "finetune"]
    assert len(losses) == 120 and np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])
    assert record.of("start")[0]["run"] == "learn" and record.events[-1]["event"] == "done"
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 120


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(project):
    first = weights(run_finetune(project, tiny_config(name="s1", seed=1), Events()))
    assert same(first, weights(run_finetune(project, tiny_config(name="s2", seed=1), Events())))
    assert not same(first, weights(run_finetune(project, tiny_config(name="s3", seed=2), Events())))


def test_another_seed_starts_from_another_network(project):
    still = {"optimiser__lr": 1e-30, "training__steps": 1, "optimiser__weight_decay": 0.0}
    a, b = (weights(run_finetune(project, tiny_config(name=f"w{s}", seed=s, **still), Events())) for s in (0, 1))
    assert not torch.equal(a["head.weight"], b["head.weight"])


def test_only_the_named_labels_are_read(project, monkeypatch):
    from MedSSLLib import io

    read = []
    plain = io.read_label
    monkeypatch.setattr(io, "read_label", lambda path, *a, **k: read.append(path.name) or plain(path, *a, **k))
    run_finetune(
        project, tiny_config(name="named", labelled='["case1"]', annotated_slices=2, training__steps=1), Events()
    )
    assert set(read) == {"case1.nii.gz"}
    facts = json.loads((project.run_folder("named") / "config.json").read_text())["data"]
    assert facts["labelled"] == ["case1"] and len(facts["annotated"]["case1"][0]["indices"]) == 2


def test_a_transferred_encoder_is_used_reported_and_can_be_frozen(project):
    first = run_finetune(project, tiny_config(name="source"), Events())
    events, record = loud()
    config = tiny_config(name="target", init="source", freeze_encoder=True, network__widths=(6, 12))
    second = run_finetune(project, config, events)
    a, b = weights(first), weights(second)
    assert {n for n in a if n.startswith("encoder.")} and read_plan(first) == read_plan(second)
    assert all(torch.equal(a[n], b[n]) for n in a if n.startswith("encoder.")), "frozen, in weights and statistics"
    assert not torch.equal(a["head.weight"], b["head.weight"])
    transfer = next(e for e in record.of("metric") if e["stage"] == "transfer")
    assert transfer["tensors_loaded"] == sum(n.startswith("encoder.") for n in a)
    assert (second / "transfer.txt").exists()


def test_the_encoder_rate_slows_the_encoder_alone(project):
    run_finetune(project, tiny_config(name="base", training__steps=2), Events())
    a = weights(project.run_folder("base"))
    options = {"init": "base", "optimiser__encoder_lr": 1e-9, "optimiser__weight_decay": 0.0}
    b = weights(run_finetune(project, tiny_config(name="slow", **options), Events()))
    convolutions = [n for n in a if n.startswith("encoder.") and n.endswith("conv.weight")]
    assert all(torch.allclose(a[n], b[n], atol=1e-7) for n in convolutions)


@pytest.mark.parametrize(("change", "words"), [
    ({"init": "never"}, "does not exist"), ({"init": "x.safetensors"}, "does not exist"),
    ({"labelled": '["nobody"]'}, "nobody"), ({"training__batch": 1, "training__accumulate": 2}, "cannot be split"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(project, change, words):
    with pytest.raises(InputError, match=words):
        run_finetune(project, tiny_config(**change), Events())


def test_weights_of_another_kind_are_refused(project, tmp_path):
    alien = Encoder(2, 1, (4, 8), ((1, 1), (2, 2))).state_dict()
    save_tensors(tmp_path / "alien.safetensors", alien, {})
    with pytest.raises(InputError, match="2D or 3D"):
        run_finetune(project, tiny_config(init=str(tmp_path / "alien.safetensors")), Events())


def test_cross_validation_scores_every_case_once_within_the_budget(project):
    config = tiny_config(name="cv", training__folds=2, training__steps=9, training__validate_every=1.0)
    folder = run_finetune(project, config, Events())
    rows = json.loads((folder / "metrics.json").read_text())["cross_validation"]
    assert sorted(c for row in rows for c in row["cases"]) == ["case0", "case1", "case2", "case3"]
    states = [load_tensors(p)[1]["state"]["step"] for p in (folder / "checkpoint").glob("*.safetensors")]
    assert len(states) == 3 and sum(states) == 9, "folds and final fit share the budget"


def test_patients_stay_on_one_side_of_every_fold(monkeypatch):
    monkeypatch.setattr(finetune, "build_network", lambda *a: None)
    monkeypatch.setattr(finetune, "make_task", lambda ready, data, net: data)
    splits = []
    monkeypatch.setattr(finetune, "fit", lambda ready, data, *a: splits.append(data) or {"best": 0.5})
    cases = tuple(Case(f"c{i}", (), metadata={"patient": f"p{i // 2}"}) for i in range(12))
    ready = SimpleNamespace(config=tiny_config(training__folds=3), events=Events())
    rows = cross_validate(ready, LabelledData(None, None, cases[2:], cases[:2]), None)
    for data in splits:
        assert {c.patient for c in data.training}.isdisjoint(c.patient for c in data.held_out)
        assert len(data.training) == 8 and len(data.held_out) == 4
    assert sorted(name for row in rows for name in row["cases"]) == sorted(case.name for case in cases)
    ready.config = tiny_config(training__folds=9)
    assert len(cross_validate(ready, LabelledData(None, None, cases), None)) == 6, "no more folds than patients"


def test_minutes_become_seconds_of_a_stage():
    assert stage_budget(tiny_config(training__minutes=2), 0.5)._seconds == 60
    assert stage_budget(tiny_config(training__steps=9), 1 / 3).steps == 3


def test_a_refused_selection_leaves_no_run_folder(tmp_path):
    """A test case must not be labelled; the run that asked for it is not listed afterwards."""
    project = tiny_project(tmp_path)
    project.set_roles(labelled=project.cases[0].name, test=project.cases[-1].name)
    project.save()
    with pytest.raises(InputError):
        run_finetune(project, tiny_config(labelled=json.dumps([project.cases[-1].name])), Events())
    assert project.runs() == []
