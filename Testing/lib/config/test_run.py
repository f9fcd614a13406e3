"""Run configurations: presets, overrides, and refusals that name the setting."""

import json

import pytest
from pydantic import ValidationError

from MedSSLLib.config.run import RunConfig, setting_names
from MedSSLLib.core.errors import InputError
from MedSSLLib.methods.options import configured
from MedSSLLib.methods.pgl import PGLConfig
from Testing.lib.case_helpers import each

COMMANDS = ("pretrain", "finetune", "selftrain")


@each("command, minutes", [("pretrain", 15), ("finetune", 10), ("selftrain", 20)])
def test_a_preset_is_a_time_limit_and_steps_that_are_named_are_none(command, minutes):
    usual, night = (RunConfig.build(command, preset=one) for one in ("standard", "overnight"))
    assert usual.training.minutes == minutes < 4 * minutes < night.training.minutes
    assert night.override({"preset": "standard", "training.minutes": minutes}) == usual
    for given, expected in (
        ({"overrides": {"training.steps": 5}}, (5, None)),
        ({"of_method": {"training.steps": 5}}, (5, None)),
        ({"overrides": {"training.steps": 5, "training.minutes": 3}}, (5, 3)),
        ({"overrides": {"training.minutes": 3}}, (usual.training.steps, 3)),
    ):
        length = RunConfig.build(command, **given).training
        assert (length.steps, length.minutes) == expected
    assert RunConfig.build(command, preset="quick").training.minutes is None
    assert RunConfig.build(command, preset="paper").training.minutes is None


def test_presets_without_a_length_of_a_command_are_refused_with_those_that_have_one():
    for command in ("complete", "live"):
        assert RunConfig.build(command).training.minutes is None
        with pytest.raises(InputError, match="no preset 'overnight'") as refused:
            RunConfig.build(command, preset="overnight")
        assert refused.value.remedy == "Use quick, standard or paper"
    with pytest.raises(InputError) as refused:
        RunConfig.build("finetune", preset="huge")
    assert refused.value.remedy == "Use quick, standard, overnight or paper"


@each("command", COMMANDS)
def test_presets_grow_and_stay_valid(command):
    steps = [
        RunConfig.build(command, preset=p).training.steps for p in ("quick", "standard", "paper")
    ]
    assert steps == sorted(steps) and steps[0] < steps[1] < steps[2]


def test_the_paper_preset_of_gcl_has_the_optimiser_and_the_pixel_level_of_the_paper():
    assert configured("pretrain", preset="paper", method="gcl").options == {"pixel_level": -1}
    gcl = configured("pretrain", preset="paper", method="gcl").optimiser
    assert (gcl.name, gcl.lr, gcl.momentum, gcl.weight_decay) == ("sgd", 0.1, 0.9, 1e-5)
    usual = RunConfig.build("pretrain").optimiser
    for command, preset, method in (
        ("pretrain", "standard", "gcl"),
        ("pretrain", "paper", "byol"),
        ("finetune", "paper", "supervised"),
    ):
        assert configured(command, preset=preset, method=method).optimiser == usual
    given = {"optimiser.name": "lars"}
    assert (
        configured("pretrain", preset="paper", method="gcl", overrides=given).optimiser.name
        == "lars"
    )


def test_the_paper_preset_of_pgl_is_that_of_its_re_implementation():
    """16 x 96 x 96 voxels, LARS 0.2 with 2 of 500 epochs of warm-up, batch 128, heads 4096 to 256;
    BYOL's momentum.
    """
    pgl = configured("pretrain", preset="paper", method="pgl")
    assert (pgl.optimiser.name, pgl.optimiser.lr, pgl.optimiser.warmup) == ("lars", 0.2, 0.004)
    assert (pgl.training.batch, pgl.training.voxels) == (
        128,
        147456,
    ) and 128 % pgl.training.accumulate == 0
    assert pgl.options == {"hidden": 4096, "out": 256, "momentum": 0.996}
    assert (pgl.augment.contrast, pgl.augment.low_resolution) == (0, 0)
    assert PGLConfig(**pgl.options).momentum == 0.996


@pytest.mark.parametrize("scale", ["[1.25, 0.8]", (1.25, 0.8)])
def test_a_range_that_falls_is_refused(scale):
    with pytest.raises(
        InputError, match="'augment.scale' is .*, it must begin with the smaller number"
    ):
        RunConfig.build("finetune", overrides={"augment.scale": scale})
    assert RunConfig.build("finetune", overrides={"augment.scale": (1, 1)}).augment.scale == (1, 1)


def test_overrides_beat_settings_and_settings_beat_presets():
    config = RunConfig.build(
        "finetune", preset="quick", seed=3, overrides={"training.steps": "7", "seed": 4}
    )
    assert config.training.steps == 7 and config.seed == 4
    assert RunConfig.build("finetune", name=None, seed=None) == RunConfig.build("finetune")


@each(
    ("key", "text", "value"),
    [
        ("optimiser.lr", "1e-3", 1e-3),
        ("network.widths", "[4, 8]", (4, 8)),
        ("training.minutes", "null", None),
        ("network.deep_supervision", "true", True),
        ("augment.scale", "[0.5, 2]", (0.5, 2.0)),
        ("device", "cuda:1", "cuda:1"),
        ("labelled", '["a", "b"]', ("a", "b")),
        ("name", "007", "007"),
        ("training.batch", "3", 3),
    ],
)
def test_text_values_become_what_the_field_wants(key, text, value):
    config = RunConfig.build("finetune", overrides={key: text})
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


@each(
    ("key", "near"),
    [
        ("optimizer.lr", "optimiser.lr"),
        ("training.step", "training.steps"),
        ("sed", "seed"),
        ("optimiser.lr.x", "optimiser.lr"),
        ("training", None),
    ],
)
def test_an_unknown_setting_names_the_nearest(key, near):
    with pytest.raises(InputError) as caught:
        RunConfig.build("finetune", overrides={key: "1"})
    assert key in str(caught.value) and (near is None or near in str(caught.value))


@each(
    ("key", "value"),
    [
        ("training.steps", "0"),
        ("training.steps", "many"),
        ("optimiser.lr", "-1"),
        ("network.norm", "layer"),
        ("augment.flip", "1.5"),
        ("training.minutes", "0"),
        ("seed", "-1"),
        ("dim", "4d"),
    ],
)
def test_a_value_that_does_not_fit_is_named(key, value):
    with pytest.raises(InputError, match=key):
        RunConfig.build("finetune", overrides={key: value})
    with pytest.raises(InputError, match=key):
        RunConfig.build("finetune").override({key: value})


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="preset 'huge'"):
        RunConfig.build("finetune", preset="huge")


def test_a_configuration_survives_json_and_is_immutable():
    config = RunConfig.build(
        "pretrain", method="gcl", overrides={"options.meta": ["patient"], "training.minutes": "3"}
    )
    assert config.options == {"meta": ["patient"]}
    assert (
        RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    )
    with pytest.raises(ValidationError):
        config.seed = 3
    assert (
        config.override({"training.steps": 9}).training.minutes == 3 and config.training.steps != 9
    )


def test_every_setting_has_a_name_and_every_number_a_source():
    names = setting_names()
    assert len(names) == len(set(names)) and {
        "optimiser.lr",
        "options",
        "seed",
        "augment.noise",
    } <= set(names)
    for group in ("network", "optimiser", "augment", "training"):
        fields = RunConfig.model_fields[group].annotation.model_fields
        assert all(field.description for field in fields.values()), group


def test_intensity_changes_are_those_of_the_pgl_code_and_more_frequent_in_training_on_scans():
    before, after, one = (
        RunConfig.build(command).augment for command in ("pretrain", "finetune", "complete")
    )
    places = {"rotation", "scale"}
    assert one.model_dump(exclude=places) == before.model_dump(exclude=places), (
        "completing sees one scan only"
    )
    assert (before.noise, before.brightness, before.gamma) == (0.1, 0.5, 0.5)
    for kind in ("noise", "brightness", "contrast", "gamma"):
        assert getattr(after, kind) > getattr(before, kind)
    assert RunConfig.build("pretrain", overrides={"augment.noise": 0.7}).augment.noise == 0.7


def test_slices_are_turned_and_zoomed_further_than_volumes_unless_told_otherwise():
    augment = RunConfig.build("finetune").augment
    assert [augment.largest_rotation(dim) for dim in (2, 3)] == [45, 15]
    assert [augment.zoom(dim) for dim in (2, 3)] == [(0.65, 1.5), (0.8, 1.25)]
    told = RunConfig.build(
        "finetune", overrides={"augment.rotation": "0", "augment.scale": "[0.9, 1.1]"}
    ).augment
    assert told.largest_rotation(2) == told.largest_rotation(3) == 0
    assert told.zoom(2) == told.zoom(3) == (0.9, 1.1)
    one_scan = RunConfig.build("complete").augment
    assert (one_scan.largest_rotation(2), one_scan.zoom(2)) == (15, (0.8, 1.25))
