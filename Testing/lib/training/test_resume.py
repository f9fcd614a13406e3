"""kill -9 at random moments, then --resume: the same bits as a run that was left alone.

Two kills a method here; twenty and more a command by ``Testing/faults/kills.py``.
"""

import sys

import numpy as np
import pytest

from MedSSLLib.core.files import write_json
from MedSSLLib.methods import METHODS
from MedSSLLib.project.project import Project
from Testing.lib.core_helpers import tiny_project
from Testing.lib.kill_helpers import Victim, config, train
from Testing.lib.selftraining.test_selftrain import project_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses fork and kill -9")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """One labelled case of three; the labels of the others are garbage."""
    return project_of(tmp_path_factory.mktemp("two"))


OF_ITS_OWN = ("pgl", "gcl")  # with state beyond weights: a target network, meta labels


@pytest.mark.parametrize(
    "method",
    [
        "supervised",
        "local-contrast",
        *OF_ITS_OWN,
        *(pytest.param(name, marks=pytest.mark.long) for name in METHODS if name not in OF_ITS_OWN),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(project, two_classes, method):
    project = two_classes if method == "local-contrast" else project
    whole = train(project.folder, config(method, name=f"{method}-whole"))
    victim = Victim(project, method, f"{method}-killed")
    rng = np.random.default_rng(sum(map(ord, method)))
    for _ in range(4):
        if victim.kills < 2 and not victim.done:
            victim.run_and_kill(rng.uniform(0, 0.15), from_checkpoint=True)
    victim.finish()
    assert victim.kills and not victim.problems and not victim.differs_from(whole)


def test_a_run_killed_before_its_first_checkpoint_gives_its_name_back(project):
    folder = project.run_folder("early")
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text('{"event": "start"}\n')
    write_json(
        folder / "config.json",
        {"format": "medssl-run", "format_version": 1, "config": {}, "plan": {}},
    )
    train(project.folder, config("supervised", name="early"))
    assert (folder / "weights.safetensors").exists() and Project.open(project.folder).runs()
