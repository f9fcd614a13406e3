"""``config.json`` holds every option of a method, and runs of earlier versions, which hold the
given ones, go on.
"""

import json

import pytest

from MedSSLLib.benchmark.protocol import _finished
from MedSSLLib.cli import tables
from MedSSLLib.config.commands import SelfTrainConfig, live_options
from MedSSLLib.config.run import RunConfig, as_begun
from MedSSLLib.core.errors import CancelledError, InputError
from MedSSLLib.core.events import Events
from MedSSLLib.methods import METHODS, load_method
from MedSSLLib.methods.options import changed_settings, configured, own_options
from MedSSLLib.pretraining import pretrain
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.run_report import add_configuration
from MedSSLLib.training.run_folder import RunFolder, open_run
from MedSSLLib.training.trainer import STOP_FILE
from Testing.lib.core_helpers import loud, tiny_config, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("options"))


def config(method="gcl", **changes):
    return tiny_config(
        "pretrain",
        method=method,
        **{"dim": "2d", "training__batch": 4, "training__steps": 3} | changes,
    )


def stopped(project, name, **changes):
    """The folder of a run that was asked to stop after its first step."""
    events, record = loud()
    folder = project.run_folder(name)
    write = record.write

    def stop(event):
        write(event)
        if event["event"] == "progress" and event["stage"] == "pretrain":
            (folder / STOP_FILE).touch()

    record.write = stop
    with pytest.raises(CancelledError):
        run_pretrain(project, config(name=name, **changes), events)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_all_options_of_a_method_are_recorded(project, method):
    folder = run_pretrain(
        project, config(method, name=method, training__steps=1, options__flip="0.25"), Events()
    )
    recorded = json.loads((folder / "config.json").read_text())["config"]["options"]
    defaults = json.loads(load_method(method).Config().model_dump_json())
    assert recorded == defaults | {"flip": 0.25} and set(recorded) == set(
        load_method(method).Config.model_fields
    )


def test_a_resumed_run_keeps_the_defaults_it_began_with(project, monkeypatch):
    stopped(project, "began")
    kind, used = load_method("gcl"), []
    later = kind.Config(temperature=0.7)
    monkeypatch.setattr(kind.Config.model_fields["temperature"], "default", later.temperature)
    kind.Config.model_rebuild(force=True)
    try:
        assert kind.Config().temperature == 0.7
        build = pretrain.build_task
        monkeypatch.setattr(pretrain, "build_task", lambda *a: used.append(build(*a)) or used[-1])
        run_pretrain(project, tiny_config("pretrain", name="began", resume=True), Events())
    finally:
        monkeypatch.undo()
        kind.Config.model_rebuild(force=True)
    assert used[0][0].module.config.temperature == 0.1 == kind.Config().temperature


def test_a_run_that_recorded_the_given_options_only_goes_on(project):
    folder = stopped(project, "early", options__top_k="2")
    content = json.loads((folder / "config.json").read_text())
    content["config"]["options"] = {"top_k": "2"}  # as given, not converted
    (folder / "config.json").write_text(json.dumps(content))
    asked = config(name="early", options__top_k="2")
    assert not _finished(project, asked)
    assert run_pretrain(project, asked.override({"resume": True}), Events()) == folder
    assert _finished(project, asked) and _finished(project, RunFolder(folder).config)
    assert own_options("pretrain", "gcl", RunFolder(folder).config.options).top_k == 2


def test_a_run_goes_on_without_the_options_that_came_later(project):
    """It can record nothing of them, and goes on as it began; a run of now keeps what it
    recorded.
    """
    folder = stopped(project, "before", training__voxels=1024)
    path, asked = folder / "config.json", config(name="before", resume=True)
    assert open_run(project, asked)[1].options["pixel_level"] is None
    content = json.loads(path.read_text())
    del content["config"]["options"]["pixel_level"]
    path.write_text(json.dumps(content))
    assert open_run(project, asked)[1].options["pixel_level"] == -1
    old, new = (
        as_begun(RunConfig.build("selftrain", overrides={"options": given}))
        for given in ({"rounds": 2}, {"rounds": 2, "shapes": True, "drawn_share": 0.5})
    )
    then = {"recipe": "contrast", "keep": "last", "plain_every": 0}
    assert old.options == {"rounds": 2, "shapes": False, "drawn_share": 0.0} | then
    assert new.options == {"rounds": 2, "shapes": True, "drawn_share": 0.5} | then
    assert as_begun(RunConfig.build("finetune")).options == {}


def test_a_number_named_start_is_no_run(project):
    folder = run_pretrain(
        project, config(name="begin", training__steps=1, options__start=0.5), Events()
    )
    assert RunFolder(folder).config.origin == "none"
    assert tables._start(json.loads((folder / "config.json").read_text())["config"]) == "none"
    assert (
        tables._start({"command": "selftrain", "options": {"start": "first"}, "init": "none"})
        == "first"
    )


def test_which_settings_are_of_a_method(project):
    assert type(own_options("selftrain", "local-contrast", {"rounds": 2})) is SelfTrainConfig
    assert own_options("complete", "supervised", {"case": "a"}).case == "a"
    assert own_options("finetune", "supervised", {}) is None
    with pytest.raises(InputError, match="options.top_k"):
        own_options("pretrain", "gcl", {"top_kk": 2})


def test_the_report_lists_all_options_and_marks_the_changed_ones(tmp_path):
    given = RunConfig.build("pretrain", method="gcl", overrides={"options.beta": "0.25"})
    recorded = given.override(
        {"options": own_options("pretrain", "gcl", given.options).model_dump(mode="json")}
    )
    page = Page("x", "y")
    add_configuration(page, recorded.model_dump(mode="json"))
    text = page.write(tmp_path / "page.html", "").read_text(encoding="utf-8")
    changed, everything = text.split("All settings")
    assert (
        "options.beta" in changed
        and "options.temperature" not in changed
        and "options.view_scale" not in changed
    )
    assert all(f"options.{name}" in everything for name in load_method("gcl").Config.model_fields)
    assert "null" in everything and "null" not in changed


def test_a_live_run_of_an_earlier_version_goes_on_without_what_its_plan_tells():
    before = {"slice_voxels": 16384, "known_after": 7}
    config = RunConfig.build("live", overrides={"options": before})
    assert live_options(as_begun(config)).known_after == 7


@pytest.mark.parametrize(
    "given, changed",
    [
        ({}, {}),
        ({"training.steps": 3000}, {"training.steps": "3000"}),
        ({"training.steps": 5}, {"training.steps": "5"}),
        ({"training.minutes": 3}, {"training.minutes": "3.0"}),
        ({"training.grid": None}, {"training.grid": "null"}),
    ],
)
def test_what_differs_from_a_preset_makes_the_run_again(given, changed):
    """Also steps that are those of the preset, whose time limit does not count beside them."""
    config = configured("finetune", overrides=given)
    found = changed_settings(config.model_dump(mode="json"))
    assert found == changed
    assert configured("finetune", overrides=found) == config


def test_for_the_night_a_method_changes_what_it_changes_in_the_standard_preset(monkeypatch):
    kind = load_method("gcl").Config
    monkeypatch.setattr(kind, "presets", {"standard": {"optimiser.lr": 0.5}})
    rates = [
        configured("pretrain", preset=one, method="gcl").optimiser.lr
        for one in ("quick", "standard", "overnight")
    ]
    assert rates[0] != rates[1] == rates[2] == 0.5
