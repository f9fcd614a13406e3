"""``run_finetune`` on a tiny project: what it learns from, what it leaves behind, what it
refuses.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.finetuning import finetune
from MedSSLLib.finetuning.finetune import cross_validate, run_finetune
from MedSSLLib.finetuning.labelled_data import LabelledData
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated, sparse_label
from MedSSLLib.networks.unet import Encoder
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from MedSSLLib.training.run_folder import RunFolder
from MedSSLLib.training.stages import stage_budget
from Testing.lib.case_helpers import each
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
    config = tiny_config(
        name="learn", dim="2d", training__steps=120, optimiser__lr=1e-2, training__batch=4
    )
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
    assert (
        facts["config"]["training"]["steps"] == 120
        and facts["versions"]["torch"] == torch.__version__
    )
    assert sorted(facts["data"]["labelled"]) == ["case0", "case1", "case2", "case3"]
    losses = [
        e["losses"]["segmentation"] for e in record.of("progress") if e["stage"] == "finetune"
    ]
    assert len(losses) == 120 and np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])
    assert record.of("start")[0]["run"] == "learn" and record.events[-1]["event"] == "done"
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 120


def test_the_model_card_has_figures_in_words(project):
    folder = run_finetune(
        project, tiny_config(name="card", training__steps=1, network__widths=[4] * 8), Events()
    )
    text = (folder / "model_card.md").read_text()
    levels = len(json.loads((folder / "config.json").read_text())["plan"]["strides"])
    assert f"- channels per level: {', '.join(['4'] * levels)}\n" in text, (
        "those of the network, not those allowed"
    )
    card = text.split("## Figures of the training\n")[1].split("\n\n")[0]
    assert "- calibration, why: no labelled case was held out" in card and "- steps: 1" in card
    assert "None" not in card and "{" not in card


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(project):
    first = weights(run_finetune(project, tiny_config(name="s1", seed=1), Events()))
    assert same(first, weights(run_finetune(project, tiny_config(name="s2", seed=1), Events())))
    assert not same(first, weights(run_finetune(project, tiny_config(name="s3", seed=2), Events())))


def test_another_seed_starts_from_another_network(project):
    still = {"optimiser__lr": 1e-30, "training__steps": 1, "optimiser__weight_decay": 0.0}
    a, b = (
        weights(run_finetune(project, tiny_config(name=f"w{s}", seed=s, **still), Events()))
        for s in (0, 1)
    )
    assert not torch.equal(a["head.weight"], b["head.weight"])


def test_only_the_named_labels_are_read(project, monkeypatch):
    from MedSSLLib.images import io

    read = []
    plain = io.read_label
    monkeypatch.setattr(
        io, "read_label", lambda path, *a, **k: read.append(path.name) or plain(path, *a, **k)
    )
    run_finetune(
        project,
        tiny_config(name="named", labelled='["case1"]', annotated_slices=2, training__steps=1),
        Events(),
    )
    assert set(read) == {"case1.nii.gz"}
    facts = json.loads((project.run_folder("named") / "config.json").read_text())["data"]
    assert facts["labelled"] == ["case1"] and len(facts["annotated"]["case1"][0]["indices"]) == 2


def test_a_run_from_an_encoder_may_have_patches_of_another_size(project):
    """All else of the plan is the encoder's; without a size of its own the patch is, too."""
    quick = {"training__steps": 1, "init": "small"}
    fine = tiny_config(name="small", training__steps=1, training__grid=None)
    source = run_finetune(project, fine, Events())
    theirs = RunFolder(source).plan
    plans = {}
    for name, voxels in (("larger", 1500), ("alike", None)):
        config = tiny_config(name=name, training__voxels=voxels, **quick)
        plans[name] = RunFolder(run_finetune(project, config, Events())).plan
    assert plans["alike"] == theirs and np.prod(theirs.patch) <= 512
    assert 750 < np.prod(plans["larger"].patch) <= 1500
    assert plans["larger"].model_copy(update={"patch": theirs.patch}) == theirs


def test_a_transferred_encoder_is_used_reported_and_can_be_frozen(project):
    first = run_finetune(project, tiny_config(name="source"), Events())
    events, record = loud()
    config = tiny_config(name="target", init="source", freeze_encoder=True, network__widths=(6, 12))
    second = run_finetune(project, config, events)
    a, b = weights(first), weights(second)
    assert {n for n in a if n.startswith("encoder.")} and RunFolder(first).plan == RunFolder(
        second
    ).plan
    assert all(torch.equal(a[n], b[n]) for n in a if n.startswith("encoder.")), (
        "frozen, in weights and statistics"
    )
    assert not torch.equal(a["head.weight"], b["head.weight"])
    transfer = next(e for e in record.of("metric") if e.get("stage") == "transfer")
    assert transfer["tensors_loaded"] == sum(n.startswith("encoder.") for n in a)
    assert (second / "transfer.txt").exists()


def test_the_encoder_rate_slows_the_encoder_alone(project):
    run_finetune(project, tiny_config(name="base", training__steps=2), Events())
    a = weights(project.run_folder("base"))
    options = {"init": "base", "optimiser__encoder_lr": 1e-9, "optimiser__weight_decay": 0.0}
    b = weights(run_finetune(project, tiny_config(name="slow", **options), Events()))
    convolutions = [n for n in a if n.startswith("encoder.") and n.endswith("conv.weight")]
    assert all(torch.allclose(a[n], b[n], atol=1e-7) for n in convolutions)


@each(
    ("change", "words"),
    [
        ({"init": "never"}, "does not exist"),
        ({"init": "x.safetensors"}, "does not exist"),
        ({"init": "model.pth"}, "model.pth: is neither .*medssl import"),
        ({"init": "../runs/a"}, "is neither the name"),
        ({"labelled": '["nobody"]'}, "nobody"),
        ({"training__batch": 1, "training__accumulate": 2}, "cannot be split"),
    ],
)
def test_what_does_not_fit_is_refused(project, change, words):
    with pytest.raises(InputError, match=words):
        run_finetune(project, tiny_config(**change), Events())


def test_weights_of_another_kind_are_refused(project, tmp_path):
    alien = Encoder(2, 1, (4, 8), ((1, 1), (2, 2))).state_dict()
    save_tensors(tmp_path / "alien.safetensors", alien, {})
    with pytest.raises(InputError, match="2D or 3D"):
        run_finetune(project, tiny_config(init=str(tmp_path / "alien.safetensors")), Events())


def test_cross_validation_scores_every_case_once_within_the_budget(project):
    config = tiny_config(
        name="cv", training__folds=2, training__steps=9, training__validate_every=1.0
    )
    folder = run_finetune(project, config, Events())
    rows = json.loads((folder / "metrics.json").read_text())["cross_validation"]
    assert sorted(c for row in rows for c in row["cases"]) == ["case0", "case1", "case2", "case3"]
    states = [
        load_tensors(p)[1]["state"]["step"] for p in (folder / "checkpoint").glob("*.safetensors")
    ]
    assert len(states) == 3 and sum(states) == 9, "folds and final fit share the budget"


def test_patients_stay_on_one_side_of_every_fold(monkeypatch):
    monkeypatch.setattr(finetune, "build_network", lambda *a: None)
    monkeypatch.setattr(finetune, "make_task", lambda context, data, net: data)
    splits = []
    monkeypatch.setattr(
        finetune, "fit", lambda context, data, *a: splits.append(data) or {"best": 0.5}
    )
    cases = tuple(Case(f"c{i}", (), metadata={"patient": f"p{i // 2}"}) for i in range(12))
    context = SimpleNamespace(config=tiny_config(training__folds=3), start=None)
    rows = cross_validate(context, LabelledData(None, None, cases[2:], cases[:2]))
    for data in splits:
        assert {c.patient for c in data.training}.isdisjoint(c.patient for c in data.held_out)
        assert len(data.training) == 8 and len(data.held_out) == 4
    assert sorted(name for row in rows for name in row["cases"]) == sorted(
        case.name for case in cases
    )
    context.config = tiny_config(training__folds=9)
    assert len(cross_validate(context, LabelledData(None, None, cases))) == 6, (
        "no more folds than patients"
    )


def test_drawn_slices_tell_of_pieces_only_where_no_label_is_whole():
    label = np.zeros((5, 6, 6), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    annotated = Annotated.of([(2, [1, 3])])
    maps = {"whole": label, "drawn": sparse_label(label, annotated)}
    cache = SimpleNamespace(
        label=lambda name, *_: maps[name], shape=lambda name: (1, 5, 6, 6), fingerprint=lambda: ""
    )
    whole, drawn = Case("whole", ()), Case("drawn", (), annotated=annotated)
    for training, held_out, expected in (
        ((whole,), (), ([1], [])),
        ((drawn,), (), ([], [1])),
        ((whole, drawn), (), ([1], [])),
        ((drawn,), (whole,), ([1], [])),
    ):
        facts = LabelledData(None, cache, training, held_out).facts(2)
        assert (facts["single_component"], facts["connected_on_slices"]) == expected


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


def with_labels(folder, change):
    """A project of four cases in which `change(name, label)` gives the voxels of the labels, and
    its labels' folder.
    """
    project = tiny_project(folder)
    for case in project.cases:
        label = io.read_label(case.label, io.read_header(case.images[0]))
        io.write_image(case.label, Volume(change(case.name, label.array), label.geometry))
    return project, folder / "data" / "labelsTr"


def test_labels_without_any_structure_are_refused_and_leave_no_run(tmp_path):
    project, _ = with_labels(tmp_path, lambda name, label: label * 0)
    with pytest.raises(InputError, match="case0.*background alone"):
        run_finetune(project, tiny_config(name="empty"), Events())
    assert not project.run_folder("empty").exists()


def test_a_class_that_no_label_shows_is_named(tmp_path):
    project, _ = with_labels(tmp_path, lambda name, label: label)
    project.set_labels({1: "ellipsoid", 2: "tumour"})
    events, record = loud()
    run_finetune(project, tiny_config(training__steps=1), events)
    assert [e["message"].split(" shows ")[1] for e in record.of("warning")] == [
        "tumour: the model will not find it."
    ]


def test_a_label_with_unknown_values_is_named_with_its_file_and_the_others_go_on(tmp_path):
    project, labels = with_labels(
        tmp_path, lambda name, label: label * (9 if name == "case1" else 1)
    )
    project.set_labels({1: "ellipsoid"})
    for slices in (None, 2):
        events, record = loud()
        folder = run_finetune(
            project, tiny_config(training__steps=1, annotated_slices=slices), events
        )
        (warning,) = record.of("warning")
        assert warning["message"].startswith(
            f"case1: {labels / 'case1.nii.gz'}: the label has unknown values [9]"
        )
        assert json.loads((folder / "config.json").read_text())["data"]["labelled"] == [
            "case0",
            "case2",
            "case3",
        ]


def test_simulated_slices_are_some_of_the_drawn_ones_and_an_empty_label_has_some_too(tmp_path):
    project, _ = with_labels(tmp_path, lambda name, label: label * (name != "case2"))
    project.set_annotated("case0", Annotated.of([(0, [8, 10, 12])]))
    config = tiny_config(name="thin", annotated_slices=1, training__steps=1)
    facts = json.loads((run_finetune(project, config, Events()) / "config.json").read_text())[
        "data"
    ]["annotated"]
    assert facts["case0"] == [{"axis": 0, "indices": [10]}], (
        "the middle one; between them nothing is known"
    )
    assert facts["case2"] == [{"axis": 2, "indices": [6]}], "the middle of 12 slices"


def test_early_stopping_and_folds_that_cannot_take_place_are_said(tmp_path):
    project = tiny_project(tmp_path)
    for case in project.cases:
        project.set_metadata(case.name, {"patient": "one"})
    events, record = loud()
    run_finetune(
        project, tiny_config(training__folds=2, training__patience=3, training__steps=1), events
    )
    messages = " ".join(e["message"] for e in record.of("warning"))
    assert (
        "training.folds does nothing" in messages and "training.patience does not stop" in messages
    )
    with pytest.raises(InputError, match="'training.folds' is '1', it must be 2 or more, or 0"):
        tiny_config(training__folds="1")


def test_an_unlabelled_scan_that_cannot_be_used_is_named_and_the_others_teach(tmp_path):
    project = tiny_project(tmp_path)
    image = project.case("case3").images[0]
    io.write_image(image, Volume(np.full((12, 20, 20), 7, np.int16), io.read_header(image)))
    events, record = loud()
    config = tiny_config(
        name="semi", semi="mean-teacher", labelled=("case0", "case1"), training__steps=1
    )
    folder = run_finetune(project, config, events)
    warnings = [event["message"] for event in record.of("warning")]
    assert [text for text in warnings if "case3" in text and "is constant" in text], warnings
    data = json.loads((folder / "config.json").read_text())["data"]
    assert data["unlabelled"] == ["case2"]
