"""kill -9 at random moments, then --resume: the same bits as a run that was left alone."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from MedSSLLib import finetune, pretrain
from MedSSLLib.checkpoint import load_tensors
from MedSSLLib.events import Events
from MedSSLLib.files import read_json
from MedSSLLib.methods import METHODS
from MedSSLLib.project import Project
from Testing.lib.core_helpers import tiny_config, tiny_project, torch

STEPS = 14


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("resume"))


def config(method, **changes):
    values = {"training__steps": STEPS, "dim": "2d", "training__batch": 4, "network__widths": (4, 8)} | changes
    return tiny_config("finetune" if method == "supervised" else "pretrain", method=method, **values)


def train(folder, run_config):
    """A run that writes a checkpoint after every step."""
    torch.set_num_threads(1)
    plain = finetune.loop_config
    work = finetune.run_finetune if run_config.command == "finetune" else pretrain.run_pretrain
    for module in (finetune, pretrain):
        module.loop_config = lambda *a: replace(plain(*a), checkpoint_seconds=0.0)
    try:
        return work(Project.open(folder), run_config, Events())
    finally:
        for module in (finetune, pretrain):
            module.loop_config = plain


def kill_somewhere(folder, run_config, run_folder, delay):
    """Fork a run and kill it some time after it first wrote a checkpoint, or on its way there when resumed."""
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, run_config))
    child.start()
    while child.is_alive() and not list((run_folder / "checkpoint").glob("*.safetensors")):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


@pytest.mark.parametrize("method", ["supervised", *METHODS])
def test_a_killed_run_resumes_to_the_same_bits(project, method):
    whole = train(project.folder, config(method, name=f"{method}-whole"))
    expected, facts = load_tensors(whole / "weights.safetensors")
    name = f"{method}-killed"
    folder = project.run_folder(name)
    rng = np.random.default_rng(sum(map(ord, method)))
    kills = 0
    for attempt in range(4):
        if (folder / "weights.safetensors").exists():
            break
        kill_somewhere(project.folder, config(method, name=name, resume=attempt > 0), folder, rng.uniform(0, 0.15))
        kills += 1
        for path in (folder / "checkpoint").glob("*.safetensors"):
            load_tensors(path)  # never torn
        read_json(folder / "config.json")
    if not (folder / "weights.safetensors").exists():
        train(project.folder, config(method, name=name, resume=True))
    found, again = load_tensors(folder / "weights.safetensors")
    assert kills and again == facts and found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) for n, t in expected.items())
    left = [p.name for p in folder.rglob("*") if p.name.startswith(".tmp-") and p.suffix != ".safetensors"]
    assert not left, "only the file being written at the kill may be left"
