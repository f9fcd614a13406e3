"""Ctrl-C and SIGTERM at any moment of a command: one line, exit code 3, no traceback, nothing half
done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MedSSLLib.cli import main as cli
from MedSSLLib.core.errors import CancelledError
from MedSSLLib.project.project import Project
from Testing.lib.core_helpers import tiny_project

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
ROOT = Path(__file__).parents[3]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
TINY = [
    "--dim",
    "2d",
    "--steps",
    "100000",
    "--batch",
    "2",
    "--device",
    "cpu",
    "--set",
    "network.widths=[4,8]",
    "--set",
    "training.voxels=512",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("interrupt"), 3)


def interrupted(words: list[str], sign: str, number: int = signal.SIGINT) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a command that gets a signal when `sign` appears there.

    ``-X importtime`` writes a line for every import that ends: a clock that does not depend on the
    machine's speed.
    """
    command = [sys.executable, "-X", "importtime", "-m", "MedSSLLib", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENV,
        preexec_fn=_hear,
    )  # noqa: PLW1509
    assert process.stderr
    try:
        for line in process.stderr:
            if line.rpartition("| ")[2].strip() == sign or line.startswith(sign):
                process.send_signal(number)
                break
        else:
            pytest.fail(f"{sign!r} did not appear")
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, [
        line for line in rest.splitlines() if not line.startswith("import time:")
    ]


def _hear() -> None:
    """A shell's background job, and what it starts, ignores Ctrl-C; these tests may run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


MOMENTS = [
    ("MedSSLLib.core.errors", signal.SIGINT),
    pytest.param("argparse", signal.SIGTERM, marks=pytest.mark.long),
    pytest.param("pydantic", signal.SIGINT, marks=pytest.mark.long),
    ("torch._C", signal.SIGTERM),
    pytest.param("torch.nn", signal.SIGINT, marks=pytest.mark.long),
    # a start with all of torch: finetune and complete, below, are interrupted in torch.nn
    pytest.param("MedSSLLib.training.trainer", signal.SIGINT, marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "number"), MOMENTS)
def test_an_import_that_is_interrupted_ends_in_one_line(project, sign, number):
    code, lines = interrupted(
        ["pretrain", str(project.folder), "--method", "pgl", *TINY], sign, number
    )
    assert code == 3 and lines[-1].startswith(("medssl: Cancelled.", "medssl: Stopped at step ")), (
        lines
    )
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    assert not list(project.folder.rglob(".tmp-*"))


COMMANDS = {
    "init": (["{}/new", "--images", "{}/data/imagesTr"], "MedSSLLib.project.project"),
    "add": (["{}/project", "{}/data/labelsTr"], "MedSSLLib.cli.main"),
    "status": (["{}/project"], "numpy"),
    "runs": (["{}/project"], "MedSSLLib.project.project"),
    "show": (["{}/project", "run"], "MedSSLLib.cli.main"),
    "settings": (["finetune"], "pydantic"),
    "suggest": (["{}/project", "--budget", "2", "--strategy", "even"], "numpy"),
    "complete": (["{}/project", "--case", "case0", "--annotated-slices", "3", *TINY], "torch.nn"),
    "finetune": (["{}/project", *TINY], "torch.nn"),
    "selftrain": (["{}/project", "--init", "none", *TINY], "numpy"),
    "predict": (["{}/project", "--run", "run", "--out", "{}/out"], "numpy"),
    "evaluate": (
        ["--predictions", "{}/a", "--references", "{}/b", "--out", "{}/m.json"],
        "MedSSLLib.cli.main",
    ),
    "export": (["{}/project", "--run", "run", "--to", "onnx", "--out", "{}/m.onnx"], "numpy"),
    "import": (["{}/project", "--from", "{}/x.safetensors"], "MedSSLLib.cli.main"),
    "report": (["{}/project", "--run", "run", "--out", "{}/r.html"], "numpy"),
    "benchmark": (["labels", "--data", "{}/project", "--out", "{}/b"], "numpy"),
    "live": (["{}/project"], "MedSSLLib.cli.main"),
    "demo": (["--out", "{}/demo"], "numpy"),
    "doctor": ([], "MedSSLLib.cli.main"),
    "set": (["{}/project", "--classes", "0=background,1=x"], "MedSSLLib.cli.main"),
    "relocate": (["{}/project", "{}/data", "{}/elsewhere"], "MedSSLLib.cli.main"),
    "new-method": (["mine"], "MedSSLLib.cli.main"),
}


def test_no_command_is_forgotten():
    assert set(COMMANDS) | {"pretrain"} == {
        command.name for _, group in cli.GROUPS for command in group
    }


# the others are interrupted at the same moments
IN_SHORT = ("init", "status", "complete", "finetune", "selftrain", "predict", "live", "demo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.long) for name in COMMANDS],
)
def test_every_command_that_is_interrupted_ends_quietly(project, command):
    words, sign = COMMANDS[command]
    place = str(project.folder.parent)
    code, lines = interrupted([command, *(word.replace("{}", place) for word in words)], sign)
    assert not [line for line in lines if "Traceback" in line]
    if lines and lines[-1].startswith(("medssl: Cancelled.", "medssl: Stopped")):
        assert code == 3
        assert not list(project.folder.parent.rglob(".tmp-*"))
    else:
        # on a busy machine the signal may come when the command has ended, or has just refused
        assert code in (0, 2)


@pytest.mark.slow
def test_while_it_trains_a_signal_keeps_a_checkpoint(project):
    words = ["pretrain", str(project.folder), "--method", "pgl", "--name", "stopped", *TINY]
    code, lines = interrupted(words, "pretrain 1/")
    assert (
        code == 3 and lines[-1].startswith("medssl: Stopped at step ") and "--resume" in lines[-1]
    )
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    assert list(project.run_folder("stopped").glob("checkpoint/*.safetensors"))
    assert not list(project.folder.rglob(".tmp-*"))


# -------------------------------------------------------------------- without torch: what happens
# inside an import

_PROGRAM = """
import sys
from MedSSLLib.cli import main as cli
from MedSSLLib.cli.command import Command
def work(args, events):
    try:
        import waiting
    except Exception:
        print("taken for a missing package", flush=True)
    waiting.after()
arguments = next(c for c in cli.train.COMMANDS if c.name == "finetune").arguments
cli.GROUPS = (("g", [Command("finetune", "h", arguments, work, "", ())]),)
sys.exit(cli.main(["finetune", "p", "--events", "-"]))
"""
_MODULE = """
import time
print("ready", flush=True)
time.sleep({seconds})
print("imported", flush=True)
def after():
    time.sleep(60)
"""


def importing(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    """A command that is in the middle of an import."""
    (tmp_path / "waiting.py").write_text(_MODULE.format(seconds=seconds))
    env = ENV | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=env,
    )
    assert process.stderr and process.stderr.readline() == "ready\n"  # stdout is for events alone
    return process


def test_a_short_import_is_waited_for(tmp_path):
    process = importing(tmp_path, 0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3 and err == "imported\nmedssl: Cancelled.\n"
    assert '"event": "error"' in out and '"exit_code": 3' in out


@pytest.mark.parametrize("again", [False, True])
def test_a_long_import_is_not_waited_for(tmp_path, again):
    process = importing(tmp_path, 60)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (
        process.returncode == 3
        and err == "medssl: Cancelled.\n"
        and time.monotonic() - started < 20
    )
    assert out.count('"event": "error"') == 1 and '"exit_code": 3' in out


def test_the_stop_that_a_library_wraps_is_still_a_stop():
    error = RuntimeError("a library's own words")
    error.__context__ = CancelledError("Cancelled.")
    assert cli.explain(error) == (cli.CANCELLED, "Cancelled.")
    failed = OSError(28, "No space left on device")
    failed.__context__ = CancelledError("Cancelled.")
    assert cli.explain(failed)[0] == cli.FAILED


def test_a_command_that_is_done_keeps_its_exit_code(project, tmp_path):
    """Ctrl-C while Python clears up, after the command's last word."""
    late = (
        "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    code = f"{late}import sys, MedSSLLib.__main__ as m\n"
    code += f"sys.argv = ['medssl', 'runs', {str(project.folder)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(m.main())"],
        capture_output=True,
        encoding="utf-8",
        env=ENV,
    )
    assert done.returncode == 0, done.stderr
    assert not [
        word for word in ("Traceback", "KeyboardInterrupt", "Cancelled") if word in done.stderr
    ]
