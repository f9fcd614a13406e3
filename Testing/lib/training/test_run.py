"""``Run``: what it reads of a run's folder, and how often."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import RunFolder, find_start
from Testing.lib.core_helpers import tiny_project

TINY = [
    *["--steps", "2", "--batch", "2", "--dim", "3d", "--device", "cpu", "--quiet"],
    *["--set", "network.widths=[4,8]", "--set", "training.voxels=512"],
]
_opened: Counter[str] | None = None


def _hear(event: str, arguments: tuple) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | Path):
        _opened[str(arguments[0])] += 1


sys.addaudithook(_hear)  # cannot be taken away again, so it only counts when asked to


@contextmanager
def counted_opens() -> Iterator[Counter[str]]:
    """How often each file is opened, by whatever part of Python."""
    global _opened
    _opened = Counter()
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """Four cases, a pre-trained encoder and a model that finds something everywhere."""
    made = tiny_project(tmp_path_factory.mktemp("run"))
    folder = str(made.folder)
    assert main(["pretrain", folder, "--method", "byol", "--name", "encoder", *TINY]) == 0
    cases = ["--labelled", "case0,case1"]
    learn = ["--steps", "40", "--set", "optimiser.lr=0.02"]
    assert main(["finetune", folder, "--name", "model", *cases, *TINY, *learn]) == 0
    return made


COMMANDS = {
    "finetune": ["finetune", "--init", "encoder"],
    "finetune on a model": ["finetune", "--init", "model", "--set", "training.folds=2"],
    "selftrain": ["selftrain", "--from", "model", "--labelled", "case0,case1", "--rounds", "1"],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_settings_of_the_run_started_from_are_read_once(project, kind):
    command, _, start, *_ = COMMANDS[kind]
    words = [command, str(project.folder), *COMMANDS[kind][1:], "--name", kind.replace(" ", "-")]
    with counted_opens() as opened:
        assert main([*words, *TINY]) == 0
    assert opened[str(project.run_folder(start) / "config.json")] == 1


def test_predict_reads_the_settings_of_a_run_once(project, tmp_path):
    words = ["predict", str(project.folder), "--run", "model", "--out", str(tmp_path), "--quality"]
    with counted_opens() as opened:
        assert main([*words, "--flips", "--device", "cpu", "--quiet"]) == 0
    assert opened[str(project.run_folder("model") / "config.json")] == 1


def test_what_is_asked_twice_is_read_once_and_another_run_reads_anew(project):
    run = RunFolder(project.run_folder("encoder"))
    with counted_opens() as opened:
        assert run.config.command == "pretrain" and run.plan is run.plan
        assert run.data.classes == project.classes and run.precision
        assert run.labels_seen == frozenset()
    assert opened == {str(run.folder / "config.json"): 1}
    with counted_opens() as opened:
        assert RunFolder(run.folder).config == run.config
    assert sum(opened.values()) == 1


def test_a_weight_file_is_a_start_of_its_own_and_tells_of_its_run_where_it_lies_in_one(
    project, tmp_path
):
    run = find_start(project, "model")
    assert run is not None and run.labels_seen == {"case0", "case1"} and run.tensors
    inside = find_start(project, str(run.weights_file))
    assert inside is not None and inside.labels_seen == run.labels_seen
    (tmp_path / "alone.safetensors").write_bytes(run.weights_file.read_bytes())
    alone = find_start(project, str(tmp_path / "alone.safetensors"))
    assert alone is not None and not alone.recorded and alone.labels_seen == frozenset()
    assert alone.tensors.keys() == run.tensors.keys()
    assert find_start(project, "none") is None and find_start(project, "") is None
    with pytest.raises(InputError, match="does not exist"):
        find_start(project, "no-such-run")
