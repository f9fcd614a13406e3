"""Any text in settings, manifests, tables, lists and run folders: it works, or an InputError says
what is wrong.
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from MedSSLLib.cli import tables, train
from MedSSLLib.cli.main import build_parser
from MedSSLLib.config.commands import SelfTrainConfig, self_train_options
from MedSSLLib.config.run import RunConfig, setting_names
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import read_events
from MedSSLLib.core.files import write_json
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference.model import Model, PredictOptions, load_model, predict_case
from MedSSLLib.methods import METHODS, load_method
from MedSSLLib.pretraining.pretrain import method_options
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import summary
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import tiny_config
from Testing.lib.images.test_geometry import geometries

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
TEXTS = st.one_of(
    st.text(max_size=12),
    JUNK.map(lambda x: json.dumps(x)),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "nan",
            "inf",
            "-1",
            "1e400",
            "null",
            "[]",
            "{}",
            "[[1]]",
            "true",
            "auto",
            "9" * 40,
            "[1e999, 2]",
        ]
    ),
)


def numbers_in(value) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers_in(item)]
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in numbers_in(item)]
    return [float(value)] if isinstance(value, float) else []


# ------------------------------------------------------------------------------------------------
# settings

PARSER = build_parser()


@settings(max_examples=300, deadline=None)
@given(
    command=st.sampled_from(["pretrain", "finetune", "selftrain"]),
    value=TEXTS,
    key=st.sampled_from(setting_names()) | st.text("abcdeilmnoprstu._ ", max_size=20),
)
@example("finetune", "[]", "network.widths")
@example("finetune", "nan", "optimiser.weight_decay")
def test_any_setting_is_taken_or_refused_in_words(command, key, value):
    try:
        made = RunConfig.build(command, overrides={key: value})
    except InputError as error:
        text = str(error)
        assert (
            error.remedy
            and "Input should" not in text
            and "validation error" not in text
            and "https://" not in text
        )
    else:
        plain = made.model_dump(exclude={"options"})
        assert all(math.isfinite(x) for x in numbers_in(plain))
        assert (
            RunConfig.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made
            or made.options
        )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_option_of_a_method_is_taken_or_refused_in_words(data):
    name = data.draw(st.sampled_from([*METHODS, "local-contrast"]))
    kind = None if name == "local-contrast" else load_method(name)
    fields = (SelfTrainConfig if kind is None else kind.Config).model_fields
    key = data.draw(st.sampled_from(sorted(fields)) | st.text(max_size=8))
    command = "selftrain" if kind is None else "pretrain"
    try:
        made = RunConfig.build(command, method=name, overrides={f"options.{key}": data.draw(TEXTS)})
        options = self_train_options(made) if kind is None else method_options(kind, made)
    except InputError as error:
        assert error.remedy and "Input should" not in str(error)
    else:
        assert all(math.isfinite(x) for x in numbers_in(options.model_dump()))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("abc=._,[]\"'1 \n", max_size=20), max_size=3))
def test_any_words_after_set_are_parsed_or_refused(words):
    argv = ["finetune", "p", *(part for word in words for part in ("--set=" + word,))]
    try:
        train.configuration(PARSER.parse_args(argv), "supervised", {})
    except InputError as error:
        assert error.remedy


def test_every_setting_is_explained():
    kinds = [RunConfig, SelfTrainConfig, *(load_method(name).Config for name in METHODS)]
    for kind in kinds:
        for name, description in _descriptions(kind):
            assert description and description[-1] in ".)", f"{kind.__name__}.{name}"


def _descriptions(kind):
    for name, field in kind.model_fields.items():
        yield name, field.description
        if hasattr(field.annotation, "model_fields"):
            yield from _descriptions(field.annotation)


@each(
    ("key", "value", "words"),
    [
        (
            "training.steps",
            "many",
            "'training.steps' is 'many', it must be a whole number.*means: Optimiser steps",
        ),
        ("dim", "4d", "'dim' is '4d', it must be one of 'auto', '2d' or '3d'"),
        ("optimiser.lr", "0", "must be greater than 0"),
        ("seed", "-1", "must be 0 or more"),
        ("network.widths", "[4, 0]", r"'network.widths.1' is 0, it must be 1 or more"),
        ("augment.scale", "[-1, 2]", "must be greater than 0"),
        ("optimiser.lr", "inf", "a finite number"),
        ("lr", "1", "Did you mean 'optimiser.lr'"),
        ("step", "1", "Did you mean 'training.steps'"),
        ("optimizer.lr", "1", "Did you mean 'optimiser.lr'"),
        ("zzz", "1", "does not exist. `medssl settings"),
    ],
)
def test_refusals_name_the_setting_what_was_given_and_what_is_allowed(key, value, words):
    with pytest.raises(InputError, match=words):
        RunConfig.build("finetune", overrides={key: value})


# --------------------------------------------------------------------------- data sets, lists and
# run folders


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_dataset_json_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("d")
    io.write_image(
        folder / "a.nii.gz",
        Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), Geometry((4, 3, 2))),
    )
    content = {
        "name": "x",
        "modality": {"0": "MR"},
        "labels": {"0": "background"},
        "numTraining": 1,
        "training": [{"image": "./a.nii.gz"}],
        "test": [],
        "channel_names": {"0": "T1"},
        "file_ending": ".nii.gz",
    }
    target = data.draw(st.sampled_from([content, content["training"][0]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JUNK)
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    try:
        project = Project.create(folder / "p", folder / "dataset.json")
    except InputError as error:
        assert error.remedy and not (folder / "p" / "medssl.json").exists()
    else:
        assert Project.open(folder / "p").cases == project.cases


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30) | st.text("ab,@ \n.", max_size=12))
def test_any_selection_is_read_or_refused(tmp_path_factory, text):
    project = _three_cases(tmp_path_factory)
    try:
        assert {case.name for case in project.select(text)} <= {"a", "b", "c"}
    except InputError as error:
        assert error.remedy


_PROJECTS: list[Project] = []


def _three_cases(factory) -> Project:
    if not _PROJECTS:
        folder = factory.mktemp("three")
        for name in "abc":
            io.write_image(
                folder / "i" / f"{name}.nii.gz",
                Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), Geometry((4, 3, 2))),
            )
        _PROJECTS.append(Project.create(folder / "p", folder / "i"))
    return _PROJECTS[0]


def run_content() -> dict:
    plan = make_plan(
        [Geometry((16, 16, 16))], modality=("MR",), channels=1, dim="2d", voxel_budget=512
    )
    return {
        "format": "medssl-run",
        "format_version": 1,
        "config": tiny_config(dim="2d").model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "versions": {},
        "started": 1.0,
        "data": {
            "classes": ["background", "x"],
            "values": [0, 1],
            "labelled": [],
            "one_piece": [1],
        },
    }


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_run_folder_is_told_in_words(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("r")
    content = run_content()
    target = data.draw(
        st.sampled_from([content, content["config"], content["plan"], content["data"]])
    )
    key = data.draw(st.sampled_from(sorted(target)))
    if data.draw(st.booleans()):
        del target[key]
    else:
        target[key] = data.draw(JUNK)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(data.draw(JUNK)), encoding="utf-8")
    save_tensors(folder / "weights.safetensors", {"a": torch.ones(1)}, {})
    tables.run_row(summary(folder))  # never fails: `medssl runs` lists damaged runs too
    for read in (lambda p: RunFolder(p).config, lambda p: RunFolder(p).plan, load_model):
        try:
            read(folder)
        except InputError as error:
            assert error.remedy and "Traceback" not in str(error)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=80) | JUNK.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_as_events_are_skipped_or_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("e") / "events.jsonl"
    path.write_bytes(content + b'\n{"event": "done", "time": 1}\n')
    assert [event["event"] for event in read_events(path)][-1:] == ["done"]


@settings(max_examples=250, deadline=None)
@given(
    header=JUNK
    | st.fixed_dictionaries(
        {
            "a": st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "I64", "BOOL", "X"]),
                    "shape": st.lists(st.integers(-1, 2**62), max_size=3),
                    "data_offsets": st.lists(st.integers(-5, 2**62), max_size=3),
                }
            ),
            "__metadata__": st.dictionaries(
                st.sampled_from(["facts", "format_version"]), st.text(max_size=5), max_size=2
            ),
        }
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    body=st.binary(max_size=16),
)
def test_any_header_of_a_weight_file_is_read_or_refused(tmp_path_factory, header, length, body):
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    try:
        tensors, facts = load_tensors(path)
    except InputError as error:
        assert error.file == str(path) and error.remedy
    else:
        assert isinstance(facts, dict) and all(
            isinstance(t, torch.Tensor) for t in tensors.values()
        )


# ------------------------------------------------------------------------------------------------
# geometry


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from([".nii.gz", ".nrrd", ".mha"]))
def test_files_keep_any_grid_and_every_voxel(tmp_path_factory, geometry, ending):
    volume = Volume(
        np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32), geometry
    )
    path = tmp_path_factory.mktemp("g") / f"a{ending}"
    io.write_image(path, volume)
    back = io.read_image(path)
    assert np.array_equal(back.array, volume.array)
    assert back.geometry.close_to(geometry, tolerance=0.01)


class Threshold(torch.nn.Module):
    """A network that knows the answer: two classes, told apart by the sign of the image."""

    def forward(self, x):
        return torch.cat([-x, x], 1) * 1000


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from(["2d", "3d"]), st.integers(0, 2))
def test_a_prediction_lies_on_the_source_grid_voxel_by_voxel(geometry, dim, axis):
    """Whatever direction, handedness and spacing: orient, predict and resample back is the identity
    on labels.
    """
    low = np.arange(geometry.size[axis]) < geometry.size[axis] / 2
    array = np.moveaxis(
        np.broadcast_to(np.where(low, -100.0, 100.0), _moved_last(geometry.shape, axis)),
        -1,
        2 - axis,
    )
    plan = make_plan([geometry], modality=("MR",), channels=1, dim=dim, voxel_budget=512)
    plan = plan.model_copy(
        update={"spacing": (None, None, None)}
    )  # each case's own, so that nothing is lost
    model = Model(
        network=Threshold(),
        plan=plan,
        values=(0, 7),
        classes=("background", "x"),
        device=torch.device("cpu"),
        precision="32",
    )
    label, probabilities = predict_case(
        model, [Volume(array.astype(np.float32), geometry)], PredictOptions(components="all")
    )
    assert label.geometry == geometry and probabilities.shape == (2, *geometry.shape)
    assert np.array_equal(label.array, np.where(array > 0, 7, 0))


def _moved_last(shape, axis):
    return (*(n for index, n in enumerate(shape) if index != 2 - axis), shape[2 - axis])


def test_junk_is_written_as_json_that_can_be_read(tmp_path):
    write_json(tmp_path / "a.json", run_content())
    assert json.loads((tmp_path / "a.json").read_text())["format"] == "medssl-run"
