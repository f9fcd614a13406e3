"""``run_selftrain`` on a tiny project: what it reads, what it leaves behind, how it resumes, what
it refuses.
"""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MedSSLLib.cli.tables import run_row
from MedSSLLib.config.commands import SelfTrainConfig, self_train_options
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import CancelledError, GuardError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.finetuning.mixing_task import Mix
from MedSSLLib.inference.model import Model, PredictOptions, load_model, predict_case
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import summary
from MedSSLLib.reporting.run_report import write_run_report
from MedSSLLib.selftraining import job as job_module
from MedSSLLib.selftraining import selftrain
from MedSSLLib.selftraining.job import Job
from MedSSLLib.selftraining.pseudo_labels import CollapsedError
from MedSSLLib.selftraining.round_tasks import with_fraction
from MedSSLLib.selftraining.start import warn_of_idle_settings
from MedSSLLib.training import devices
from MedSSLLib.training.checkpoint import load_tensors
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config, tiny_project

SHAPE = (8, 16, 16)


def project_of(folder, cases=3):
    """Bright boxes of label 1 and brighter ones of label 2; only case0's label is one, the others
    are garbage.
    """
    rng = np.random.default_rng(0)
    for index in range(cases):
        label = np.zeros(SHAPE, np.uint8)
        label[2:7, 3 + index : 11 + index, 3:8], label[2:7, 3 + index : 11 + index, 8:13] = 1, 2
        image = rng.normal(100, 5, SHAPE) + 60 * label
        for part, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(
                sitk.GetImageFromArray(array), str(folder / part / f"case{index}.nii.gz")
            )
    made = Project.create(
        folder / "p", folder / "imagesTr", labels=folder / "labelsTr", labelled="case0"
    )
    for index in range(1, cases):
        (folder / "labelsTr" / f"case{index}.nii.gz").write_bytes(b"must not be opened")
    return made


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return project_of(tmp_path_factory.mktemp("selftrain"))


def settings(**changes):
    values = {
        "method": "local-contrast",
        "dim": "2d",
        "training__steps": 10,
        "optimiser__lr": 1e-2,
        "options__rounds": 2,
        "options__keep": "last",
        "training__batch": 3,
        "options__clean": "none",
        "training__ema": 0.0,
    }
    return tiny_config("selftrain", **(values | changes))


def weights(folder):
    return load_tensors(folder / "weights.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def timed_apart(folder):
    """Seconds of a run, and its other figures."""
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = [part.pop("seconds") for row in metrics["rounds"] for part in (row, row["pseudo"])]
    first = load_tensors(folder / "stages" / "stage-1.safetensors")[1]["figures"]["seconds"]
    total = metrics.pop("seconds")
    assert total == pytest.approx(first + sum(seconds), abs=0.1)
    return total, metrics


def stopping_in(folder, stage):
    """Events that ask the run in `folder` to stop as soon as `stage` moves."""

    class Stopper:
        def write(self, event):
            if event["event"] == "progress" and event["stage"] == stage:
                (folder / "stop").touch()

        def close(self):
            pass

    return Events([Stopper()], min_interval=0)


@pytest.mark.parametrize(
    ("dim", "recipe"), [("2d", "mixing"), ("3d", "mixing"), ("2d", "contrast"), ("3d", "contrast")]
)
def test_a_run_from_scratch_leaves_pseudo_labels_figures_and_a_model_that_predicts(
    project, dim, recipe
):
    """The labels of unlabelled cases are garbage: opening one would stop the run or drop the
    case.
    """
    events, record = loud()
    config = settings(name=f"scratch-{dim}-{recipe}", dim=dim, options__recipe=recipe)
    folder = selftrain.run_selftrain(project, config, events)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["round"] for row in metrics["rounds"]] == [1, 2] and metrics["steps"] == 10
    assert {e["stage"] for e in record.of("progress")} >= {
        "stage-1",
        "pseudo-1",
        "round-1",
        "pseudo-2",
        "round-2",
    }
    for number in (1, 2):
        assert {p.name for p in (folder / "pseudo" / f"round-{number}").glob("*.nii.gz")} == {
            "case1.nii.gz",
            "case2.nii.gz",
        }
    assert all(
        0 <= row["separation"] <= 2 if recipe == "contrast" else "separation" not in row
        for row in metrics["rounds"]
    )
    options = json.loads((folder / "config.json").read_text())["config"]["options"]
    assert set(options) == set(SelfTrainConfig.model_fields) and options["rounds"] == 2
    model = load_model(folder, "cpu")
    from MedSSLLib.images import io

    label, probabilities = predict_case(
        model, [io.read_image(project.case("case1").images[0])], PredictOptions()
    )
    assert label.array.shape == SHAPE and probabilities.shape == (3, *SHAPE)
    assert record.events[-1]["event"] == "done"
    assert not [e for e in record.of("warning") if "class" not in e["message"]], (
        "no case was refused"
    )


def test_a_run_from_a_run_starts_every_round_from_its_weights(project):
    """With a rate of nothing the result is the start; then accept and reject act, and 'from'
    refuses other runs.
    """
    start = run_finetune(
        project,
        tiny_config(
            name="start",
            dim="2d",
            training__steps=40,
            optimiser__lr=1e-2,
            training__batch=4,
            network__deep_supervision="true",
        ),
        Events(),
    )
    still = {
        "options__start": "start",
        "optimiser__lr": 1e-30,
        "optimiser__weight_decay": 0.0,
        "training__steps": 2,
    }
    folder = selftrain.run_selftrain(project, settings(name="again", **still), Events())
    a, b = weights(start), weights(folder)
    learned = [n for n in a if n.endswith("weight")]
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in learned)
    assert not (folder / "stages" / "stage-1.safetensors").exists()

    looked_at = folder / "pseudo" / "round-2" / "case1.nii.gz"
    image = sitk.ReadImage(str(looked_at))
    edited = sitk.GetImageFromArray(
        np.where(np.arange(16) < 4, 2, read(looked_at)).astype(np.int16)
    )
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(looked_at))
    third = settings(
        name="third",
        **still | {"options__start": "again"},
        options__accept=["case1"],
        options__reject=["case2"],
        options__rounds=1,
    )
    folder = selftrain.run_selftrain(project, third, Events())
    assert np.array_equal(read(folder / "pseudo" / "round-1" / "case1.nii.gz"), read(looked_at))
    assert json.loads((folder / "pseudo" / "round-1" / "summary.json").read_text())["kept"] == [
        "case1"
    ]


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_annotated_slices_are_labels_and_the_rest_of_the_volume_is_pseudo_labelled(project, dim):
    before = set(project.cache_folder.glob("labels/*/"))
    config = settings(name=f"sparse-{dim}", dim=dim, annotated_slices=2, options__rounds=1)
    folder = selftrain.run_selftrain(project, config, Events())
    (annotated,) = json.loads((folder / "config.json").read_text())["data"]["annotated"]["case0"]
    made, truth = (
        read(folder / "pseudo" / "round-1" / "case0.nii.gz"),
        read(project.case("case0").label),
    )
    assert annotated["axis"] == 2 and len(annotated["indices"]) == 2
    assert np.array_equal(made[annotated["indices"]], truth[annotated["indices"]])
    assert not np.array_equal(made, truth)
    assert not list(folder.rglob("preprocessed")), "what training read of it is removed"
    assert len(set(project.cache_folder.glob("labels/*/")) - before) == 1, (
        "the slices, no pseudo-label"
    )


def test_what_the_joint_stage_reads(project, monkeypatch):
    """True labels alone teach segmentation; contrast sees labelled and kept pseudo-labelled
    cases.
    """
    seen = []
    plain = selftrain.fit

    def fit(context, task, budget, stage):
        seen.append((stage, task))
        return plain(context, task, budget, stage)

    monkeypatch.setattr(selftrain, "fit", fit)
    config = settings(
        name="reads",
        options__recipe="contrast",
        options__rounds=1,
        options__reject=["case2"],
        training__foreground=0.25,
    )
    selftrain.run_selftrain(project, config, Events())
    (_, first), (_, joint) = seen
    assert first.sampler.cases == joint.labelled.sampler.cases == ("case0",)
    assert sorted(joint.contrast.cases) == ["case0", "case1"], (
        "a whole label is in the labelled batches, often enough"
    )
    assert joint.contrast.seed != joint.labelled.sampler.seed
    assert joint.contrast.foreground == 0.25, "pseudo-labels also teach what is no structure"
    contrast_only = settings(
        name="contrast",
        options__recipe="contrast",
        options__rounds=1,
        options__pseudo_weight=0.0,
        options__clean="crf",
    )
    selftrain.run_selftrain(project, contrast_only, Events())
    assert seen[-1][1].contrast.foreground == 1.0, "contrast alone needs structures"
    drawn = settings(
        name="drawn",
        options__recipe="contrast",
        options__rounds=1,
        options__drawn_share=0.75,
        annotated_slices=2,
    )
    selftrain.run_selftrain(project, drawn, Events())
    assert sorted(seen[-1][1].contrast.cases) == ["case0"] * 6 + ["case1", "case2"], (
        "drawn on, though a pseudo-label"
    )


@each("weight", [0.0, 0.3])
def test_what_mixing_reads(project, monkeypatch, weight):
    """Labelled cases on one side, pseudo-labelled ones alone on the other; contrast where asked.

    The time has room for two rounds of three.
    """
    seen = []
    plain = selftrain.fit

    def fit(context, task, budget, stage):
        seen.append(task)
        return plain(context, task, budget, stage)

    monkeypatch.setattr(selftrain, "fit", fit)
    monkeypatch.setattr(selftrain.Job, "fit_rounds", lambda job, _: setattr(job, "fitting", 2))
    config = settings(
        name=f"mixing-{weight}",
        options__rounds=3,
        options__weight=weight,
        options__rectangle=[0.2, 0.3],
        options__alone_every=3,
        options__plain_every=3,
        options__confident=0.6,
        training__foreground=0.25,
    )
    folder = selftrain.run_selftrain(project, config, Events())
    joint = seen[-1]
    earlier, mixing = (task.mixing if weight else task for task in seen[-2:])
    assert earlier.mix.plain_every == 0, "patches as they are in the last round alone"
    assert getattr(joint, "weight", 0.0) == weight
    assert mixing.sampler.cases == ("case0",) and sorted(mixing.other.cases) == ["case1", "case2"]
    assert mixing.sampler.seed != mixing.other.seed and mixing.other.foreground == 0.25
    assert mixing.mix == Mix(share=(0.2, 0.3), alone_every=3, threshold=0.6, plain_every=3)
    assert mixing.other.soft.folder == folder / "pseudo" / "round-2"


def test_a_run_from_a_run_takes_its_labelled_cases_where_the_project_has_none(tmp_path):
    """``init --labelled ''``, ``finetune --labelled case0``, ``selftrain --from``."""
    project_of(tmp_path)
    project = Project.create(
        tmp_path / "q", tmp_path / "imagesTr", labels=tmp_path / "labelsTr", labelled=""
    )
    assert project.classes == ("background",)
    first = tiny_config("finetune", name="first", training__steps=20, labelled=("case0",))
    run_finetune(project, first, Events())
    config = settings(name="second", dim="auto", options__start="first", options__rounds=1)
    folder = selftrain.run_selftrain(project, config, Events())
    assert RunFolder(folder).data.labelled == ("case0",)
    named = settings(name="third", options__start="first", options__rounds=1, labelled=("case0",))
    selftrain.run_selftrain(project, named.override({"dim": "auto"}), Events())
    with pytest.raises(InputError, match="no labelled case .* tells its classes"):
        selftrain.run_selftrain(project, config.override({"name": "n", "labelled": ()}), Events())


@each(
    ("drawn", "others", "share", "times"),
    [
        (1, 89, 0.5, 89),
        (4, 86, 0.5, 22),
        (8, 22, 0.25, 1),
        (2, 8, 0.0, 1),
        (5, 1, 0.5, 1),
        (1, 10, 0.75, 30),
        (0, 3, 0.5, 0),
        (3, 0, 0.5, 1),
    ],
)
def test_partly_drawn_cases_are_a_share_of_the_joint_batches(drawn, others, share, times):
    first, rest = (
        [Case(f"{kind}{n}", ()) for n in range(count)]
        for kind, count in (("d", drawn), ("o", others))
    )
    cases = with_fraction(first, rest, share)
    assert Counter(case.name for case in cases) == {
        **{c.name: times for c in first},
        **{c.name: 1 for c in rest},
    }
    if times > 1:
        assert abs(drawn * times / len(cases) - share) < 0.02


@pytest.mark.parametrize("stage", ["stage-1", "round-1", "pseudo-2", "round-2"])
def test_a_stopped_run_resumes_to_the_same_bits_and_skips_what_is_done(project, stage):
    whole = project.run_folder("whole")
    if not whole.exists():
        selftrain.run_selftrain(project, settings(name="whole"), Events())
    folder = project.run_folder(f"stopped-{stage}")
    with pytest.raises(CancelledError):
        selftrain.run_selftrain(project, settings(name=folder.name), stopping_in(folder, stage))
    assert not (folder / "weights.safetensors").exists()
    events, record = loud()
    selftrain.run_selftrain(project, settings(name=folder.name, resume=True), events)
    assert same(weights(whole), weights(folder))
    stages = ["stage-1", "round-1", "pseudo-2", "round-2"]
    done = set(stages[: stages.index(stage)])
    assert not done & {e["stage"] for e in record.of("progress")}
    totals, timeless = zip(*(timed_apart(f) for f in (whole, folder)), strict=True)
    assert timeless[0] == timeless[1] and min(totals) > 0


@pytest.mark.parametrize("stage", ["pseudo-2", "round-2"])
def test_a_run_of_slices_with_soft_labels_and_without_restart_resumes_to_the_same_bits(
    project, stage
):
    options = {"annotated_slices": 2, "options__soft": True, "options__restart": False}
    whole, cut = project.run_folder("uncut"), project.run_folder(f"cut-{stage}")
    if not whole.exists():
        selftrain.run_selftrain(project, settings(name="uncut", **options), Events())
    with pytest.raises(CancelledError, match=f"--resume --name {cut.name}"):
        selftrain.run_selftrain(
            project, settings(name=cut.name, **options), stopping_in(cut, stage)
        )
    selftrain.run_selftrain(project, settings(name=cut.name, resume=True), Events())
    assert same(weights(whole), weights(cut))


def test_a_run_stopped_before_its_first_step_says_to_start_again_and_can_be(project):
    start = run_finetune(
        project,
        tiny_config(
            name="begin", dim="2d", training__steps=40, optimiser__lr=1e-2, training__batch=4
        ),
        Events(),
    )
    folder = project.run_folder("early")
    config = settings(name="early", options__start=start.name, options__rounds=1, training__steps=2)
    with pytest.raises(CancelledError, match="start the run again"):
        selftrain.run_selftrain(project, config, stopping_in(folder, "pseudo-1"))
    assert selftrain.run_selftrain(project, config, Events()) == folder


def test_settings_of_fine_tuning_that_do_nothing_are_named(project):
    def told(**options):
        said = []
        context = SimpleNamespace(config=settings(**options), warn=said.append)
        warn_of_idle_settings(context, self_train_options(context.config))
        return said

    assert told() == told(semi="mean-teacher") == told(mixup=0.2) == told(options__soft=True) == []
    for given in ({"semi": "mean-teacher"}, {"mixup": 0.2}):
        assert "first model only" in told(options__start="first", **given)[0]
    assert "options.soft does nothing" in told(options__soft=True, options__pseudo_weight=0.0)[0]
    assert "training.folds does nothing" in told(training__folds=2)[0]


def test_clean_up_knows_which_classes_are_one_piece(tmp_path, monkeypatch):
    """Case0's second structure is in two pieces; three slices do not tell, and see one in each."""
    project = project_of(tmp_path)
    path = project.case("case0").label
    label = read(path)
    label[0, 0, 0:4] = label[7, 13:, 12:] = 2
    sitk.WriteImage(sitk.GetImageFromArray(label), str(path))
    seen, shapes = [], []

    def stop(project, model, cases, folder, options, *rest):
        seen.append((model.single_component, model.connected_on_slices))
        shapes.append(options.shapes)
        raise CollapsedError("seen")

    monkeypatch.setattr(selftrain, "write_pseudo_labels", stop)
    for name, slices in (("dense", None), ("slices", 3)):
        with pytest.raises(GuardError, match="seen"):
            selftrain.run_selftrain(
                project,
                settings(
                    name=name,
                    annotated_slices=slices,
                    training__steps=2,
                    options__shapes=bool(slices),
                ),
                Events(),
            )
    assert seen == [((1,), ()), ((), (1, 2))] and shapes == [False, True]
    for name, known in zip(("dense", "slices"), seen, strict=True):
        data = RunFolder(project.run_folder(name)).data
        assert (data.single_component, data.connected_on_slices) == known, (
            "so that predictions know it as well"
        )


def test_pseudo_labels_keep_the_pieces_that_predictions_keep():
    pieces = {
        "single_component": (1,),
        "connected_on_slices": (2,),
        "single_foreground": True,
    }
    context = SimpleNamespace(
        project=SimpleNamespace(values=(0, 1, 2), classes=("background", "a", "b")),
        device=torch.device("cpu"),
        precision="bf16",
    )
    data = SimpleNamespace(plan=None)
    job = Job(context=context, data=data, options=SelfTrainConfig(), model=None, **pieces)
    made = job.model_of(torch.nn.Conv2d(1, 3, 1))
    assert {name: getattr(made, name) for name in pieces} == pieces
    assert made.precision == "bf16" and not made.network.training


def test_a_guard_keeps_the_last_good_model(project, monkeypatch):
    """Class 2 vanishes from the second round's pseudo-labels: round 1's model is bad, stage 1's is
    kept.
    """
    plain = selftrain.write_pseudo_labels

    def vanishing(project, model, cases, folder, *rest):
        summary = plain(project, model, cases, folder, *rest)
        for row in summary["cases"].values():
            row["voxels"][project.classes[2]] = 0 if folder.name == "round-2" else 9
        return summary

    monkeypatch.setattr(selftrain, "write_pseudo_labels", vanishing)
    folder = project.run_folder("guard")
    with pytest.raises(GuardError, match="vanished"):
        selftrain.run_selftrain(project, settings(name="guard", training__steps=20), Events())
    assert same(weights(folder), load_tensors(folder / "stages" / "stage-1.safetensors")[0])
    assert "vanished" in json.loads((folder / "metrics.json").read_text())["stopped"]
    load_model(folder, "cpu")


def test_growth_is_that_since_the_round_before(project, monkeypatch):
    sizes = iter([10, 100, 110])

    def summary_of(project, model, cases, folder, *rest):
        if not cases:
            voxels = dict.fromkeys(project.classes[1:], next(sizes))
            return {"cases": {"case1": {"voxels": voxels, "confidence": 1.0}}, "kept": []}

    monkeypatch.setattr(selftrain, "write_pseudo_labels", summary_of)
    monkeypatch.setattr(selftrain, "fit", lambda *_: {"steps": 0, "seconds": 0.0, "best": None})
    events, record = loud()
    selftrain.run_selftrain(project, settings(name="grows", options__rounds=3), events)
    assert [e["message"].split(" times")[0] for e in record.of("warning")] == [
        *(f"The class {name} grew 10.0" for name in project.classes[1:]),
        "Pseudo-labels have grown to 11.0",
    ]


def test_a_model_without_foreground_stops_the_run_and_is_not_kept(project, monkeypatch):
    def nothing(context, task, budget, stage):
        with torch.no_grad():
            task.module.head.bias.copy_(torch.tensor([100.0, 0, 0]))
        return {"steps": 0, "seconds": 0.0, "best": None}

    monkeypatch.setattr(selftrain, "fit", nothing)
    with pytest.raises(GuardError, match="no foreground"):
        selftrain.run_selftrain(project, settings(name="nothing"), Events())
    assert not (project.run_folder("nothing") / "weights.safetensors").exists()


def test_a_collapse_is_put_down_to_the_run_started_from():
    job = Job(context=None, data=None, options=SelfTrainConfig(start="first"), model=None)
    assert job.pseudo.start == "first"


def test_when_the_filter_leaves_nothing_the_first_model_is_kept(project, tmp_path):
    config = settings(name="filtered", options__filter="confidence", options__threshold=1.0)
    with pytest.raises(GuardError, match="filter 'confidence'"):
        selftrain.run_selftrain(project, config, Events())
    folder = project.run_folder("filtered")
    assert same(weights(folder), load_tensors(folder / "stages" / "stage-1.safetensors")[0])
    row = run_row(summary(folder))
    assert row["state"] == "stopped by a guard"
    page = write_run_report(project, "filtered", tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert "stopped by a guard" in page and "No pseudo-label is left after the filter" in page


def test_labels_of_cases_outside_the_selection_stay_closed_though_they_are_annotated(tmp_path):
    """A case with annotated slices that --labelled leaves out is an unlabelled case like any
    other.
    """
    from MedSSLLib.images.labels import Annotated

    project = project_of(tmp_path)
    project.set_label("case1", tmp_path / "labelsTr" / "case1.nii.gz")
    project.set_annotated("case1", Annotated.of([(2, [3])]))
    config = settings(labelled='["case0"]', options__rounds=1, training__steps=5)
    folder = selftrain.run_selftrain(project, config, Events())
    assert {p.name for p in (folder / "pseudo" / "round-1").glob("*.nii.gz")} == {
        "case1.nii.gz",
        "case2.nii.gz",
    }


@each(
    ("change", "words"),
    [
        ({"options__round": 2}, "round"),
        ({"options__matching": "both"}, "matching"),
        ({"options__start": "no"}, "does not exist"),
        ({"options__accept": ["case0"]}, "case0.*no pseudo-label"),
        ({"options__accept": ["case1"], "options__reject": ["case1"]}, "accepted and rejected"),
    ],
)
def test_settings_that_do_not_fit_are_refused(project, change, words):
    with pytest.raises(InputError, match=words):
        selftrain.run_selftrain(project, settings(**change), Events())


def test_an_unlabelled_scan_that_cannot_be_read_is_named_and_left_out(tmp_path):
    project = project_of(tmp_path)
    scan = project.case("case1").images[0]
    scan.write_bytes(scan.read_bytes()[:-200])
    events, record = loud()
    config = settings(options__rounds=1, training__steps=4)
    folder = selftrain.run_selftrain(project, config, events)
    (warning,) = (e["message"] for e in record.of("warning") if "class" not in e["message"])
    assert "case1" in warning and scan.name in warning
    facts = json.loads((folder / "config.json").read_text())["data"]
    assert facts["unlabelled"] == ["case2"]
    made = (folder / "pseudo" / "round-1").glob("*.nii.gz")
    assert {path.name for path in made} == {"case2.nii.gz"}


def test_without_unlabelled_cases_or_slices_there_is_nothing_to_learn(tmp_path):
    project = project_of(tmp_path, cases=1)
    with pytest.raises(InputError, match="no unlabelled case or slice"):
        selftrain.run_selftrain(project, settings(), Events())


def test_a_class_without_a_labelled_voxel_is_named(tmp_path):
    project = project_of(tmp_path, cases=2)
    project.set_labels({0: "background", 1: "left", 2: "right", 3: "missing"})
    with pytest.raises(InputError, match="missing"):
        selftrain.run_selftrain(project, settings(), Events())


def test_a_single_foreground_class_is_warned_about_and_runs(tmp_path):
    project = tiny_project(tmp_path, cases=2).with_labelled("case0")
    events, record = loud()
    config = settings(
        options__recipe="contrast",
        options__rounds=1,
        training__steps=60,
        options__first_share=0.9,
    )
    selftrain.run_selftrain(project, config, events)
    assert "one foreground class" in record.of("warning")[0]["message"]


def test_the_paper_preset_leaves_out_what_the_paper_does_not_have():
    from MedSSLLib.config.run import RunConfig

    paper = self_train_options(RunConfig.build("selftrain", preset="paper"))
    found = (paper.pseudo_weight, paper.drawn_share, paper.shapes, paper.restart)
    assert found == (0, 0, False, True)
    assert (paper.recipe, paper.rounds, paper.weight) == ("contrast", 3, 0.1)


@pytest.mark.parametrize(("preset", "rounds"), [("quick", 2), ("standard", 5), ("paper", 3)])
def test_rounds_of_the_presets(preset, rounds):
    config = RunConfig.build("selftrain", preset=preset, method="local-contrast")
    assert self_train_options(config).rounds == rounds


def test_the_recipe_decides_what_is_not_given():
    assert (SelfTrainConfig().rounds, SelfTrainConfig().weight) == (5, 0)
    contrast = SelfTrainConfig(recipe="contrast", weight=0.3)
    assert (contrast.rounds, contrast.weight) == (3, 0.3)


@pytest.mark.parametrize("restart", [False, True])
def test_a_round_goes_on_from_the_one_before_unless_it_starts_again(project, monkeypatch, restart):
    """With `restart` every round starts from the first model, as in the released code."""
    begun, real = {}, selftrain.fit

    def fit(context, task, budget, stage):
        net = getattr(task.module, "network", task.module)
        begun[stage] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        return real(context, task, budget, stage)

    def model(network, **rest):
        teachers.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return Model(network=network, **rest)

    teachers = []
    monkeypatch.setattr(selftrain, "fit", fit)
    monkeypatch.setattr(job_module, "Model", model)
    folder = selftrain.run_selftrain(
        project, settings(name=f"starts-{restart}", options__restart=restart), Events()
    )
    first, ends = (
        load_tensors(folder / "stages" / f"{name}.safetensors")[0]
        for name in ("stage-1", "round-1")
    )
    assert len(teachers) == 2 and same(teachers[0], first) and same(teachers[1], ends), (
        "the last model teaches"
    )
    assert same(begun["round-1"], first) and not same(begun["stage-1"], first)
    assert same(begun["round-2"], first if restart else ends) and not same(first, ends)


def test_pseudo_labels_are_predicted_in_the_number_format_of_training(project, monkeypatch):
    monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda: True)
    formats = []
    monkeypatch.setattr(
        job_module, "Model", lambda **given: formats.append(given["precision"]) or Model(**given)
    )
    folder = selftrain.run_selftrain(project, settings(name="formats", options__rounds=1), Events())
    assert (
        formats == ["bf16"]
        and json.loads((folder / "config.json").read_text())["precision"] == "bf16"
    )
