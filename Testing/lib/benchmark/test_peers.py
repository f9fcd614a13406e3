"""The adapters of other programs: what they are given, that scoring is ours, and a real run of the
MONAI script.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MedSSLLib.benchmark.tables import load_studies
from MedSSLLib.core.errors import InputError
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume

ROOT = Path(__file__).parents[3]
PEERS = ROOT / "Testing" / "bench" / "peers"
OBLIQUE = Geometry(
    (20, 18, 12),
    (1.1, 0.9, 2.5),
    (-7.0, 12.0, 33.0),
    (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0),
)


@pytest.fixture
def module(monkeypatch):
    """module(name): an adapter's code, imported from its folder."""
    monkeypatch.syspath_prepend(str(PEERS))
    yield importlib.import_module
    for name in ("peer", "environment", "nnunet"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    """Four cases with values 3 and 7 on an oblique, left-handed grid; two for training, two for
    testing.
    """
    for index in range(4):
        label = np.zeros(OBLIQUE.shape, np.uint8)
        label[3:9, 4:11, 4 + index : 12 + index] = 3
        label[5:8, 6:9, 6 + index : 9 + index] = 7
        image = (np.random.default_rng(index).normal(100, 5, label.shape) + 20 * label).astype(
            np.float32
        )
        io.write_image(tmp_path / "data" / "images" / f"c{index}.nii.gz", Volume(image, OBLIQUE))
        io.write_image(tmp_path / "data" / "labels" / f"c{index}.nii.gz", Volume(label, OBLIQUE))
    splits = {
        "unit": "case",
        "test": ["c2", "c3"],
        "labelled": {"1": [["c1"], ["c0"]], "2": [["c0", "c1"]]},
    }
    (tmp_path / "data" / "splits.json").write_text(json.dumps(splits))
    return tmp_path / "data"


def arguments(data, out, **given):
    defaults = {"labelled": "1:1", "minutes": 2.0, "threads": 1, "like": None, "tolerance": 2.0}
    return argparse.Namespace(data=data, out=out, **(defaults | given))


def same_grid(first, second):
    """Whether two files lie on the same grid, as far as NIfTI's single-precision quaternions keep
    it.
    """
    a, b = io.read_header(first), io.read_header(second)
    parts = ((a.spacing, b.spacing), (a.origin, b.origin), (a.direction, b.direction))
    return a.size == b.size and all(np.allclose(x, y, atol=1e-5) for x, y in parts)


def truth(job, args):
    """A peer that knows the answer for c2 and says background for c3."""
    for case in job.project.test:
        label = io.read_label(case.label, OBLIQUE).array
        classes = np.searchsorted(job.project.values, label)
        job.write_prediction(case.name, classes * (case.name == "c2"))
    return {"steps": 5, "training_s": 1.0}


def test_choices_are_read_from_the_splits_or_named(module, data):
    chosen = module("peer").chosen
    assert chosen("1:1", data) == ("1", 1, ("c0",)) and chosen("c1, c0", data) == (
        "2",
        0,
        ("c1", "c0"),
    )
    assert chosen("c0", data) == ("1", 1, ("c0",)), "the choice that has these names"
    splits = json.loads((data / "splits.json").read_text())
    splits["labelled"]["4"] = [
        ["c0", "c1", "c2", "c3"],
        ["c1", "c0", "c2", "c3"],
        ["c1", "c2", "c3", "c0"],
    ]
    (data / "splits.json").write_text(json.dumps(splits))
    assert chosen("3:1", data) == chosen("c1,c2,c3", data) == ("3", 1, ("c1", "c2", "c3")), (
        "as the benchmark takes it"
    )
    for wrong in ("1:2", "3:2", "5:0", "1:x"):
        with pytest.raises(InputError, match="no choice"):
            chosen(wrong, data)


def test_predictions_are_scored_on_the_source_grid_with_the_project_s_values(
    module, data, tmp_path
):
    peer = module("peer")
    record = peer._record("oracle", truth, arguments(data, tmp_path / "out"))
    assert (
        record["dice"] == {"c2": 1.0, "c3": 0.0}
        and record["labelled"] == ["c0"]
        and record["choice"] == 1
    )
    path = tmp_path / "out" / "oracle-1-1" / "predictions" / "c2.nii.gz"
    assert same_grid(path, data / "images" / "c2.nii.gz")
    assert set(np.unique(io.read_image(path).array)) == {0, 3, 7}
    peer._record("oracle", truth, arguments(data, tmp_path / "out", labelled="2:0"))
    (study,) = load_studies([tmp_path / "out" / "results.json"])
    assert [(r["count"], r["choice"]) for r in study.records] == [("1", 1), ("2", 0)]


def test_what_a_peer_gets_are_labelled_cases_as_class_indices_and_test_images_alone(
    module, data, tmp_path
):
    seen = {}

    def look(job, args):
        job.write_data(tmp_path / "given")
        paths = (tmp_path / "given").rglob("*.nii.gz")
        seen["files"] = sorted(path.relative_to(tmp_path / "given").as_posix() for path in paths)
        paths = tmp_path / "given" / "train-labels" / "c0.nii.gz", data / "labels" / "c0.nii.gz"
        label, source = map(io.read_image, paths)
        assert same_grid(*paths)
        assert np.array_equal(
            label.array, np.array([0, 0, 0, 1, 0, 0, 0, 2])[source.array.astype(int)]
        )
        return truth(job, args)

    module("peer")._record("look", look, arguments(data, tmp_path / "out"))
    assert seen["files"] == [
        "test/c2.nii.gz",
        "test/c3.nii.gz",
        "train-labels/c0.nii.gz",
        "train/c0.nii.gz",
    ]


def test_a_missing_or_misshapen_prediction_is_an_error(module, data, tmp_path):
    peer = module("peer")
    with pytest.raises(InputError, match="2 test cases have no prediction"):
        peer._record("lazy", lambda job, args: {"steps": 0}, arguments(data, tmp_path / "a"))
    with pytest.raises(InputError, match="shape"):
        peer._record(
            "wide",
            lambda job, args: job.write_prediction("c2", np.zeros((2, 2, 2), int)),
            arguments(data, tmp_path / "b"),
        )


def test_rows_stand_beside_ours_only_where_ours_trained_no_longer(module, data, tmp_path):
    peer, ours = module("peer"), tmp_path / "ours.json"
    settings = {"minutes": "2.0", "tolerance": "2.0", "rows": "random", "preset": "standard"}
    records = [
        {
            "row": "random",
            "count": "1",
            "choice": 1,
            "labelled": ["c0"],
            "dice": {"c2": 0.5, "c3": 0.5},
            "summary": {"dice": 0.5},
            "steps": 3,
            "training_s": 120.0,
        }
    ]
    content = {
        "bench": "protocol",
        "data": "data",
        "settings": settings,
        "versions": {},
        "records": records,
    }
    ours.write_text(json.dumps(content))
    peer._record("oracle", truth, arguments(data, tmp_path / "out", like=ours))
    (study,) = load_studies([ours, tmp_path / "out" / "results.json"])
    assert study.rows("1") == ["random", "oracle"]
    peer._record("oracle", truth, arguments(data, tmp_path / "more", like=ours, minutes=3.0))
    with pytest.raises(InputError, match=r"2.0 minutes, longer than 1.0"):
        peer._record("oracle", truth, arguments(data, tmp_path / "less", like=ours, minutes=1.0))
    records[0]["training_s"] = 121.0
    ours.write_text(json.dumps(content))
    peer._record(
        "oracle", truth, arguments(data, tmp_path / "step", like=ours)
    )  # its last step ended after 2 minutes
    records.append(
        records[0]
        | {
            "row": "random+selftrain",
            "training_s": 180.0,
            "command_s": 100.0,
            "base": {"training_s": 110.0},
        }
    )
    for seconds, minutes, words in ((60.0, 2.9, "3.0 minutes"), (100.0, 3.2, "3.5 minutes")):
        records[1]["command_s"] = (
            seconds  # with the base's 110: less, then more than the 180 of training
        )
        ours.write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            peer._record(
                "oracle", truth, arguments(data, tmp_path / "less", like=ours, minutes=minutes)
            )


def test_an_environment_gets_our_torch_first_and_keeps_it(module):
    environment = module("environment")
    (pinned,) = (
        x for x in (ROOT / "constraints.txt").read_text().splitlines() if x.startswith("torch==")
    )
    first, second = environment.commands("nnunet", Path("/p/bin/python"), ["--no-cache"])
    assert (
        first[-1] == pinned
        and second[-2:] == [pinned, environment.PEERS["nnunet"]]
        and "--no-cache" in first
    )
    assert environment.interpreter("nnunet", Path("/p")) == Path("/p/bin/python")


def test_the_raw_data_set_of_nnunet_has_its_form(module, data, tmp_path):
    nnunet, seen = module("nnunet"), {}

    def look(job, args):
        raw = nnunet.prepare_raw(job, tmp_path / "n")
        seen["files"] = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.*"))
        seen["description"] = json.loads((raw / "dataset.json").read_text())
        return truth(job, args)

    nnunet.peer._record("x", look, arguments(data, tmp_path / "out"))
    assert seen["files"] == [
        "dataset.json",
        "imagesTr/c0_0000.nii.gz",
        "imagesTs/c2_0000.nii.gz",
        "imagesTs/c3_0000.nii.gz",
        "labelsTr/c0.nii.gz",
    ]
    assert seen["description"]["labels"] == {"background": 0, "class1": 1, "class2": 2}
    assert seen["description"]["numTraining"] == 1


@pytest.mark.long
def test_the_monai_script_trains_and_predicts_on_an_oblique_grid(data, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(PEERS / "monai_dynunet.py"),
            "--data",
            str(data),
            "--labelled",
            "2:0",
            "--minutes",
            "0.05",
            "--threads",
            "1",
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "out" / "results.json").read_text())["records"]
    assert record["row"] == "MONAI" and record["steps"] >= 1 and set(record["dice"]) == {"c2", "c3"}
    path = tmp_path / "out" / "MONAI-2-0" / "predictions" / "c2.nii.gz"
    assert same_grid(path, data / "images" / "c2.nii.gz")


@pytest.mark.parametrize("patch", [(8, 10, 12), (10, 12)])
def test_batchgenerators_make_views_of_the_patch_and_leave_the_sample_alone(module, patch):
    """Not part of what is installed for tests: its environment is that of the comparison."""
    pytest.importorskip("batchgeneratorsv2")
    make = module("batchgenerators").one_view(patch)
    sample = torch.randn(1, *(2 * n for n in patch))
    before = sample.clone()
    views = [make(sample) for _ in range(4)]
    assert all(view.shape == (1, *patch) for view in views) and torch.equal(sample, before)
    assert not torch.equal(views[0], views[1])
