"""A Slicer as it is after installing: neither PyTorch nor pydantic. Projects open, runs are listed, Install is offered.

It runs in an interpreter of its own, in which the packages cannot be imported; the processes it starts neither.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKED = ("torch", "pydantic", "monai", "safetensors", "blosc2", "lightning_fabric")

_SITE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import importlib.util
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {BLOCKED!r} else _find(name, *rest)
"""

_WORK = """
    import json, sys
    from pathlib import Path
    sys.path[:0] = [{root!r}, {gui!r}]
    import slicer_bench
    slicer_bench.start({folder!r})
    from conftest import Driver, wait_until
    loaded = slicer_bench.load_module(Path({root!r}) / "MedSSL" / "MedSSL.py")
    loaded.open()
    user = Driver(loaded)
    assert user.find("installFrame").isVisibleTo(loaded.panel)
    assert "torch" in user.find("installLabel").text()
    project = Path({folder!r}) / "project"
    user.open_project(project)
    run = project / "runs" / "first"
    run.mkdir(parents=True)
    config = {{"command": "finetune", "init": "none", "preset": "quick"}}
    (run / "config.json").write_text(json.dumps({{"config": config}}))
    (run / "metrics.json").write_text(json.dumps({{"dice": 0.5, "seconds": 10}}))
    (run / "weights.safetensors").write_bytes(b"")
    user.click("sampleDataButton")
    user.settle()
    assert len(user.store.cases) == 6, user.status()
    table = user.find("caseTable")
    assert wait_until(lambda: table.item(5, 4) and table.item(5, 4).text() == "72 × 72 × 12", 30)
    user.store.changed.emit()
    wait_until(lambda: False, 0.2)
    assert user.find("runsTable").item(0, 0).text() == "first"
    assert user.find("modelComboBox").currentText() == "first"
    for name in ("data", "pretrain", "annotate", "train", "review"):
        user.shell.open(name)
    user.click("loadCaseButton")
    user.settle()
    assert user.shell.panels["annotate"].view is not None, user.status()
    user.click("pretrainButton")
    assert wait_until(lambda: "Press Install" in user.status(), 60), user.status()
    assert not set({blocked!r}) & set(sys.modules)
    print("all of it")
    sys.stdout.flush()
    import os
    os._exit(0)
"""


@pytest.mark.timeout(300)
def test_projects_open_and_the_panels_show_without_torch_and_pydantic(tmp_path):
    pytest.importorskip("PySide6")
    from slicer_bench import forks

    (tmp_path / "sitecustomize.py").write_text(_SITE)
    code = textwrap.dedent(_WORK).format(
        root=str(ROOT),
        gui=str(Path(__file__).resolve().parent),
        folder=str(tmp_path),
        blocked=BLOCKED,
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "QT_QPA_PLATFORM": "offscreen", forks.REAL: "1"},
    )
    assert done.returncode == 0 and "all of it" in done.stdout, done.stdout + done.stderr


def test_the_block_itself_works(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_SITE)
    for name in BLOCKED:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        assert done.returncode == 1 and b"No module named" in done.stderr
