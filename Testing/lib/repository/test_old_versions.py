"""Projects and runs of earlier versions, made by them and kept in `data_files`, go on being used.

``version_0_1`` was made by 0.1.0 before the library had packages: three scans, two with labels; an
encoder (gcl), a model and a run that was stopped after 3 of 6 steps, both fine-tuned on it. Beside
the project lies what that version itself made of it: its predictions, and the weights of the
stopped run once it went on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from MedSSLLib.cli.main import main
from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from MedSSLLib.training.checkpoint import load_tensors
from MedSSLLib.training.run_folder import RunFolder

KEPT = Path(__file__).parents[1] / "data_files" / "version_0_1"
EXPECTED = KEPT / "expected"
SIMPLE = ["--device", "cpu", "--quiet"]


@pytest.fixture
def project(tmp_path) -> Project:
    """A copy of the old project."""
    shutil.copytree(KEPT / "project", tmp_path / "project")
    return Project.open(tmp_path / "project")


def test_it_opens_and_lists_its_cases_and_runs(project, capsys):
    assert [case.name for case in project.labelled] == ["scan0", "scan1"]
    assert [case.patient for case in project.cases] == ["a", "b", "c"]
    assert main(["status", str(project.folder)]) == 0
    assert main(["runs", str(project.folder)]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("scan2", "encoder", "model", "stopped"))
    for name in ("encoder", "model", "stopped"):
        assert main(["show", str(project.folder), name]) == 0


def test_what_it_recorded_is_understood(project):
    run = RunFolder(project.run_folder("model"))
    assert run.config.init == "encoder" and run.precision == "32" and run.plan.dim == 2
    assert run.data.single_component == (1, 2), "recorded as one_piece"
    assert run.data.connected_on_slices == (), "recorded as undivided"
    assert run.labels_seen == {"scan0", "scan1"}


def test_its_model_predicts_what_it_predicted_then(project, tmp_path):
    words = ["predict", str(project.folder), "--run", "model", "--out", str(tmp_path / "now")]
    assert main([*words, *SIMPLE]) == 0
    for name in ("scan0", "scan1", "scan2"):
        then, now = (
            io.read_image(folder / f"{name}.nii.gz") for folder in (EXPECTED, tmp_path / "now")
        )
        assert now.geometry.close_to(then.geometry)
        assert (now.array != then.array).mean() < 1e-3, "other processors round otherwise"


def test_its_encoder_is_a_start(project):
    words = ["--init", "encoder", "--steps", "1", "--batch", "2", "--name", "new", *SIMPLE]
    assert main(["finetune", str(project.folder), *words]) == 0
    run = RunFolder(project.run_folder("new"))
    assert run.config.network.widths == (4, 8)
    report = (run.folder / "transfer.txt").read_text(encoding="utf-8")
    assert report.startswith("36 tensors loaded, 0 adapted, 0 newly initialised, 0 in the file")


def test_its_stopped_run_goes_on_to_the_same_weights(project):
    words = ["finetune", str(project.folder), "--resume", "--name", "stopped", *SIMPLE]
    assert main(words) == 0
    folder = project.run_folder("stopped")
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 6
    then, now = (
        load_tensors(path)[0]
        for path in (EXPECTED / "stopped.safetensors", folder / "weights.safetensors")
    )
    assert now.keys() == then.keys()
    for name, tensor in then.items():
        torch.testing.assert_close(now[name], tensor, rtol=1e-3, atol=1e-4)
    moved = load_tensors(KEPT / "project/runs/stopped/checkpoint/finetune.safetensors")[0]
    change = max(
        float((now[name] - moved[f"module.{name}"]).abs().max())
        for name in now
        if "num_batches" not in name
    )
    assert change > 1e-2 and np.isfinite(change), "so that equal weights say something"
