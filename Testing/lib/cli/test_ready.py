"""``python -m MedSSLLib ready``: a process that imports what commands need, and waits for one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import MedSSLLib.__main__ as program
from Testing.lib.core_helpers import tiny_project

ROOT = Path(__file__).parents[3]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
LIGHT = "import sys, MedSSLLib.__main__ as m; m._IMPORTED = {}; sys.argv = ['medssl', 'ready']; "


def waiting(imported: tuple[str, ...] = (), before: str = "") -> subprocess.Popen[str]:
    """A process that waits, with these modules imported first, after other code."""
    return subprocess.Popen(
        [sys.executable, "-c", before + LIGHT.format(imported) + "sys.exit(m.main())"],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def told(process: subprocess.Popen[str], *words: object) -> tuple[int, str, str]:
    """Exit code and output of a command."""
    out, err = process.communicate(json.dumps([str(word) for word in words]) + "\n", timeout=60)
    return process.returncode, out, err


def test_a_command_runs_as_it_does_by_itself(tmp_path):
    project = tiny_project(tmp_path)
    words = ["status", project.folder]
    alone = subprocess.run(
        [sys.executable, "-m", "MedSSLLib", *words], env=ENV, capture_output=True, encoding="utf-8"
    )
    assert (
        told(waiting(), *words) == (0, alone.stdout, alone.stderr) and "case0" not in alone.stderr
    )
    code, _, err = told(waiting(), "status", tmp_path / "nothing")
    assert code == 2 and "is not a project" in err


def test_what_follows_on_standard_input_is_the_commands():
    """Live training reads its requests there, without a buffer between."""
    process = waiting()
    assert process.stdin is not None
    code = "import os, sys, MedSSLLib.cli.main as c; "
    code += "c.main = lambda: print(sys.argv[1:], os.read(0, 99)) or 7; "
    process.kill()
    process = subprocess.Popen(
        [sys.executable, "-c", code + LIGHT.format(()) + "sys.exit(m.main())"],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(b'["live", "a b", "\\u00fc"]\nshow case\nstop\n', timeout=60)
    assert out.decode() == "['live', 'a b', 'ü'] b'show case\\nstop\\n'\n"
    assert process.returncode == 7


def test_without_a_command_it_ends():
    process = waiting()
    assert process.communicate("", timeout=60) == ("", "") and process.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_while_it_imports(number, tmp_path):
    """A library that takes an exception for a fault of its own does not keep the process."""
    code = "import sys, time\nprint('begun', flush=True)\ntry:\n    time.sleep(30)\n"
    (tmp_path / "slow.py").write_text(code + "except BaseException:\n    raise ImportError\n")
    words = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    process = waiting(("slow",), words)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (3, "", "medssl: Cancelled.\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_asked_to_stop_while_it_waits():
    process = waiting(("json",))
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and err == "medssl: Cancelled.\n"


def test_a_package_that_is_missing_is_told_by_the_command():
    """Not by the process that waits: the panel says what the command says."""
    process = waiting(("no_such_package",))
    assert told(process, "--version")[:1] == (0,)


def test_what_is_imported_is_there_and_brings_what_takes_long():
    assert "lightning_fabric" in program._IMPORTED
    for name in program._IMPORTED[1:]:
        path = ROOT / Path(*name.split("."))
        assert path.with_suffix(".py").is_file(), name
