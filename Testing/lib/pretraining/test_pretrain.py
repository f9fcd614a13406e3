"""``run_pretrain`` with every method: reads no label, leaves an encoder that fine-tuning takes
over.
"""

import json

import pytest
import SimpleITK as sitk
import torch

from MedSSLLib.benchmark.data import require_one_dimension
from MedSSLLib.core.errors import GuardError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import Plan
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.methods import METHODS, load_method
from MedSSLLib.methods.base import MethodConfig
from MedSSLLib.pretraining import pretrain
from MedSSLLib.pretraining.pretrain import run_pretrain, view_patch
from MedSSLLib.pretraining.task import COLLAPSED, READINGS, PretrainTask
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("pretrain"))


def config(method, **changes):
    return tiny_config(
        "pretrain",
        method=method,
        **{"training__batch": 4, "dim": "2d", "training__steps": 3} | changes,
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_an_encoder_without_reading_labels(project, monkeypatch, method):
    monkeypatch.setattr(io, "read_label", lambda *a, **k: pytest.fail("a label was read"))
    events, record = loud()
    folder = run_pretrain(project, config(method, name=method), events)
    tensors, facts = load_tensors(folder / "weights.safetensors")
    assert tensors and all(n.startswith("encoder.") for n in tensors)
    assert facts == {"kind": "encoder", "method": method}
    steps = [e for e in record.of("progress") if e["stage"] == "pretrain"]
    assert [e["step"] for e in steps] == [1, 2, 3]
    data = json.loads((folder / "config.json").read_text())["data"]
    assert data["unlabelled"] == ["case0", "case1", "case2", "case3"]
    monkeypatch.undo()
    events, record = loud()
    target = run_finetune(project, tiny_config(init=method, dim="auto", training__steps=1), events)
    transfer = next(e for e in record.of("metric") if e["stage"] == "transfer")
    assert transfer["tensors_loaded"] == len(tensors)
    assert "0 newly initialised, 0 in the file not used" in (target / "transfer.txt").read_text()


def test_a_collapsed_run_is_stopped():
    task = PretrainTask(None, None, None)
    for healthy in ({"feature_std": 0.3}, {}):
        for _ in range(READINGS - 1):
            task.check({"feature_std": 1e-5}, 0.5)
        task.check(healthy, 0.5)
    for _ in range(2 * READINGS):
        task.check({"feature_std": 1e-5}, 0.01)
    for _ in range(READINGS - 1):
        task.check({"feature_std": 1e-5}, 0.5)
    with pytest.raises(GuardError, match="collapsed"):
        task.check({"feature_std": 1e-5}, 0.5)


def test_crops_without_contrast_do_not_stop_a_healthy_run(tmp_path, monkeypatch):
    """Half of each volume is air: one sample a step is often constant, whose features are nearly
    alike. How nearly depends on the processor, so the limit is put above them.
    """
    limit = 30 * COLLAPSED
    monkeypatch.setattr("MedSSLLib.pretraining.task.COLLAPSED", limit)
    project = tiny_project(tmp_path, cases=2, shape=(40, 20, 20))
    for path in (tmp_path / "data" / "imagesTr").iterdir():
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        image[:26] = 0
        sitk.WriteImage(sitk.GetImageFromArray(image), str(path))
    events, record = loud()
    run_pretrain(project, config("simclr", dim="3d", training__batch=1, training__steps=24), events)
    spreads = [
        event["figures"]["feature_std"] for event in record.of("progress") if event.get("figures")
    ]
    assert min(spreads) < limit < max(spreads)


def test_a_run_that_compares_nothing_is_stopped():
    """One batch without a shared place happens by chance; ten in a row do not."""
    task = PretrainTask(None, None, None)
    for _ in range(3):
        for _ in range(READINGS - 1):
            task.check({"shared": 0.0}, 0.5)
        task.check({"shared": 0.01}, 0.5)
    with pytest.raises(GuardError, match="options.min_overlap"):
        for _ in range(READINGS):
            task.check({"shared": 0.0}, 0.5)


def test_views_that_cannot_meet_stop_the_run_with_advice(tmp_path):
    """Views of a small part of a volume that need not overlap."""
    project = tiny_project(tmp_path, cases=2, shape=(60, 60, 60))
    apart = config(
        "pgl",
        name="apart",
        dim="3d",
        training__batch=1,
        training__steps=60,
        options='{"min_overlap": 0.0, "view_scale": [0.2, 0.2]}',
    )
    with pytest.raises(GuardError, match="no place in common"):
        run_pretrain(project, apart, loud()[0])


@pytest.mark.parametrize("method", ["gcl", "pgl"])
def test_ranges_that_fall_are_refused(project, method):
    with pytest.raises(
        InputError, match="'options.view_scale' is .*, it must begin with the smaller number"
    ):
        run_pretrain(
            project,
            config(method, options='{"view_scale": [1.4, 1.1], "view_of": "patch"}'),
            Events(),
        )


def test_a_batch_that_cannot_be_split_evenly_is_said(project):
    events, record = loud()
    run_pretrain(
        project, config("byol", name="uneven", training__batch=5, training__accumulate=2), events
    )
    assert [
        "uses 4 samples; choose a multiple of 2" in e["message"] for e in record.of("warning")
    ] == [True]
    with pytest.raises(InputError, match="a batch of 2 cannot be split over 4"):
        run_pretrain(project, config("byol", training__batch=2, training__accumulate=4), Events())


def test_a_network_that_is_taken_over_is_told(project):
    run_pretrain(project, config("byol", name="wide"), Events())
    for widths, count in (((4, 8), 0), ((4, 16), 1)):
        events, record = loud()
        changes = {"init": "wide", "dim": "auto", "training__steps": 1, "network__widths": widths}
        run_finetune(project, tiny_config(**changes), events)
        told = [e["message"] for e in record.of("metric") if "taken over" in e.get("message", "")]
        assert len(told) == count and all(
            "widths [4, 8], norm batch, not [4, 16]" in text for text in told
        )


def test_the_time_of_a_resumed_run_is_that_of_all_its_sessions(project):
    folder = run_pretrain(project, config("byol", name="twice"), Events())
    (folder / "weights.safetensors").unlink()
    tensors, facts = load_tensors(folder / "checkpoint" / "pretrain.safetensors")
    facts["state"]["elapsed"] = 100.0
    save_tensors(folder / "checkpoint" / "pretrain.safetensors", tensors, facts)
    run_pretrain(project, config("byol", name="twice", resume=True), Events())
    assert json.loads((folder / "metrics.json").read_text())["seconds"] >= 100


@pytest.mark.parametrize("method", ["gcl", "simclr"])
def test_embeddings_that_are_all_alike_stop_the_run_with_advice(project, monkeypatch, method):
    from MedSSLLib.networks.unet import Encoder

    forward = Encoder.forward

    def alike(self, x):
        return [features * 1e-9 + 1 for features in forward(self, x)]

    short = config(method, name=f"alike-{method}", training__steps=30)
    events, record = loud()
    folder = run_pretrain(project, short.override({"name": f"normal-{method}"}), events)
    assert (folder / "weights.safetensors").exists()
    spreads = [
        event["figures"]["feature_std"] for event in record.of("progress") if event.get("figures")
    ]
    assert min(spreads) > 10 * COLLAPSED
    monkeypatch.setattr(Encoder, "forward", alike)
    with pytest.raises(GuardError, match="collapsed .*Lower optimiser.lr"):
        run_pretrain(project, short, loud()[0])


def test_unknown_options_and_methods_are_refused(project):
    with pytest.raises(
        InputError, match="'options.momentun' does not exist. Did you mean 'options.momentum'"
    ):
        run_pretrain(project, config("byol", options='{"momentun": 0.9}'), Events())
    with pytest.raises(InputError, match="method 'magic' does not exist"):
        run_pretrain(project, config("magic"), Events())


def test_methods_that_make_their_own_corruptions_get_clean_views(project):
    """Restoration compares with the view itself: noise or blur on it would be learnt."""
    from contextlib import ExitStack

    from MedSSLLib.pretraining.pretrain import build_task
    from MedSSLLib.training.context import fill_cache, open_context
    from MedSSLLib.training.planning import choose_plan

    noisy = {"augment__noise": 1.0, "augment__blur": 1.0}
    for method, changed in (("restoration", False), ("byol", True)):
        with ExitStack() as stack:
            context = open_context(project, config(method, **noisy), Events(), stack)
            plan = choose_plan(context, project.pool)
            cache, cases = fill_cache(context, plan, project.pool, labels=False)
            task, _ = build_task(context, plan, cache, cases)
            changes = task.host_batch(0, 0, 1).changes
            assert any(map(bool, changes.values())) is changed


@each(
    ("patch", "strides", "voxels"),
    [
        ((192, 160), ((1, 1), (2, 2), (2, 2), (2, 2)), None),
        ((64, 64, 64), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), None),
        ((16, 96, 96), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), None),
        ((8, 8, 8), ((1, 1, 1), (2, 2, 2)), 512),
        ((512, 16), ((1, 1), (2, 2), (2, 2)), 1024),
    ],
)
def test_a_view_is_whole_strides_and_near_the_budget(patch, strides, voxels):
    dim = len(patch)
    plan = Plan(
        dim=dim,
        spacing=(1, 1, 1),
        slice_axis=2,
        modality=("MR",),
        channels=1,
        patch=patch,
        strides=strides,
    )
    view = view_patch(plan, voxels)
    total = torch.tensor(strides).prod(0).tolist()
    assert all(n % t == 0 and 0 < n <= p for n, t, p in zip(view, total, patch, strict=True))
    budget = voxels or {2: 96 * 96, 3: 32**3}[dim]
    assert torch.tensor(view).prod() <= 2 * budget


def test_every_method_declares_its_views():
    for name in METHODS:
        kind = load_method(name)
        assert (
            issubclass(kind.Config, MethodConfig) and kind.views >= 1 and set(kind.dims) <= {2, 3}
        )
        assert all(field.description for field in kind.Config.model_fields.values()), name


def test_views_larger_than_the_image_are_refused():
    from MedSSLLib.methods import load_method
    from MedSSLLib.pretraining.pretrain import method_options

    kind = load_method("gcl")
    with pytest.raises(InputError, match="view_of=patch"):
        method_options(kind, tiny_config("pretrain", method="gcl", options__view_scale=(2.4, 3.2)))
    settings = {"options__view_scale": (2.4, 3.2), "options__view_of": "patch"}
    assert (
        method_options(kind, tiny_config("pretrain", method="gcl", **settings)).view_of == "patch"
    )


def test_shares_of_anchors_with_positives_are_reported(tmp_path):
    """Two patients in each group: the own case and the other patient's are told apart, in figures
    and model card.
    """
    project = tiny_project(tmp_path)
    for number, case in enumerate(project.cases):
        project.set_metadata(case.name, {"group": "AB"[number % 2]})
    folder = run_pretrain(project, config("gcl", training__batch=16, training__steps=1), loud()[0])
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["anchors_with_positive"] == {"patient": 1.0, "position": 1.0, "group": 1.0}
    assert figures["anchors_with_positive_in_another_patient"] == {"position": 1.0, "group": 1.0}
    assert (
        "- anchors_with_positive_in_another_patient, position: 1\n"
        in (folder / "model_card.md").read_text()
    )
    with pytest.raises(InputError, match="--batch 4 or more"):
        run_pretrain(project, config("gcl", training__batch=2, training__steps=1), loud()[0])


def test_gcl_learns_from_slices_where_volumes_would_be_chosen(project):
    folder = run_pretrain(project, config("pgl", name="volumes", dim="auto"), Events())
    assert RunFolder(folder).plan.dim == 3
    folder = run_pretrain(project, config("gcl", name="slices", dim="auto"), Events())
    assert RunFolder(folder).plan.dim == 2
    assert set(json.loads((folder / "metrics.json").read_text())["meta"]) == {"patient", "position"}
    with pytest.raises(InputError, match="gcl learns from slices"):
        require_one_dimension(project, "auto", ["gcl", "pgl"])
    require_one_dimension(project, "2d", ["gcl"])
    require_one_dimension(project, "auto", ["pgl"])


def test_gcl_without_a_usable_label_is_refused(tmp_path):
    project = tiny_project(tmp_path)
    with pytest.raises(InputError, match="no meta label is usable.*--method simclr"):
        run_pretrain(project, config("gcl", dim="3d"), Events())
    run_pretrain(
        project, config("gcl", dim="3d", name="instance", options='{"instance": true}'), Events()
    )


def test_an_unknown_label_is_refused_before_anything_is_read(project, monkeypatch):
    monkeypatch.setattr(pretrain, "fill_cache", lambda *a, **k: pytest.fail("preprocessed before"))
    with pytest.raises(InputError, match="meta label 'Phase' does not exist.*patient, position"):
        run_pretrain(project, config("gcl", options='{"meta": ["Phase"]}'), Events())


def test_a_run_does_not_go_on_with_other_meta_labels(tmp_path):
    project = tiny_project(tmp_path)
    for number, case in enumerate(project.cases):
        project.set_metadata(case.name, {"phase": "ED" if number % 2 else "ES"})
    (run_pretrain(project, config("gcl", name="begun"), Events()) / "weights.safetensors").unlink()
    for case in project.cases:
        project.set_metadata(case.name, {"phase": "ED"})
    with pytest.raises(
        InputError, match=r"meta labels were .*phase \(2 classes\), and are patient"
    ):
        run_pretrain(project, config("gcl", name="begun", resume=True), Events())


def test_batch_norm_over_several_processes_is_shared_or_said():
    def net(norm):
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), norm)

    events, record = loud()
    alone, shared = net(torch.nn.BatchNorm2d(4)), net(torch.nn.BatchNorm2d(4))
    pretrain.synchronise_batch_norm(alone, torch.device("cpu"), events)
    assert "network.norm=group" in record.of("warning")[0]["message"]
    pretrain.synchronise_batch_norm(shared, torch.device("cuda"), events)
    assert isinstance(shared[1], torch.nn.SyncBatchNorm) and not isinstance(
        alone[1], torch.nn.SyncBatchNorm
    )
    assert list(shared.state_dict()) == list(alone.state_dict())
    pretrain.synchronise_batch_norm(net(torch.nn.GroupNorm(2, 4)), torch.device("cpu"), events)
    assert len(record.of("warning")) == 1
