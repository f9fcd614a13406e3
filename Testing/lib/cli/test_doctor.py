"""The doctor: on this machine, on a bare Python, and with broken packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from MedSSLLib.cli import doctor
from MedSSLLib.training.devices import training_precision
from Testing.lib.case_helpers import each

ROOT = Path(__file__).parents[3]


def _entry(problem: str, version: str = "", needed: bool = True) -> dict:
    return {"version": version, "wanted": ">=1", "needed": needed, "problem": problem}


@pytest.fixture(scope="module")
def facts():
    """What the doctor finds here; every package is imported once, by a process of its own."""
    return doctor.examine()


def test_this_environment_is_complete_and_named(facts):
    assert facts["ok"], facts["problems"]
    assert facts["packages"]["torch"]["version"] and facts["devices"]["threads"] >= 1
    assert facts["memory_gib"] > 0 and facts["disk_gib"] > 0 and facts["threads"]["cores"] >= 1
    text = doctor.as_text(facts)
    assert (
        "All is ready.\nNext: medssl demo" in text and facts["packages"]["monai"]["version"] in text
    )
    json.dumps(facts, allow_nan=False)


def test_a_bare_python_is_told_what_to_install(tmp_path):
    """-S hides site-packages: nothing but the standard library, as on a fresh machine."""
    code = (
        "from MedSSLLib.cli import doctor; doctor._probe = lambda m: ({x: 'ModuleNotFoundError: x' "
        "for x in m}, {});"
        "import MedSSLLib.cli.main as c, sys; sys.exit(c.main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 1, done.stderr
    assert "Training cannot work yet." in done.stdout and "torch: not installed" in done.stdout
    assert f'"{sys.executable}" -m pip install' in done.stdout and '"monai>=1.6"' in done.stdout


def test_a_package_that_crashes_python_is_found_and_the_others_are_still_judged(
    monkeypatch, tmp_path
):
    (tmp_path / "crashing.py").write_text("import os; os.abort()")
    (tmp_path / "failing.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken, _ = doctor._import_all(["json", "crashing", "failing", "absent_package"])
    assert broken["json"] == ""
    assert broken["crashing"] == "importing it crashes Python"
    assert broken["failing"] == "RuntimeError: half installed"
    assert broken["absent_package"].startswith("ModuleNotFoundError")


def test_missing_and_broken_packages_give_one_fatal_problem_with_a_command_that_names_them():
    packages = {
        "torch": _entry("not installed"),
        "monai": _entry("RuntimeError: x", "1.6"),
        "numpy": _entry("", "2.0"),
    }
    (problem,) = doctor._package_problems(packages)
    assert problem["fatal"] and '"torch>=' in problem["fix"] and '"monai>=' in problem["fix"]
    assert "numpy" not in problem["fix"] and "--force-reinstall" in problem["fix"]


def test_devices_say_where_training_takes_bfloat16(facts):
    assert doctor._device_names({"cuda": [], "bfloat16": False}) == ["cpu"]
    assert doctor._device_names({"bfloat16": True}) == ["cpu (in bfloat16 when it trains)"]
    trained_in = training_precision("auto", torch.device("cpu"))
    assert facts["devices"]["bfloat16"] == (trained_in == "bf16")


PROCESSOR = """
from types import SimpleNamespace as Part
version, cpu = Part(cuda=None), Part(get_capabilities=lambda: {{{0!r}: True}})
cuda = Part(device_count=lambda: 0, get_device_properties=None)
backends = Part(mps=Part(is_available=lambda: False))
get_num_threads = int
"""


@each(("feature", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx2", False)])
def test_either_feature_of_a_processor_is_enough_for_bfloat16(
    tmp_path, monkeypatch, feature, expected
):
    (tmp_path / "torch.py").write_text(PROCESSOR.format(feature))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor._import_all(["torch"])[1]["bfloat16"] is expected


def test_optional_packages_are_advice_only():
    (problem,) = doctor._package_problems({"nilearn": _entry("not installed", needed=False)})
    assert not problem["fatal"] and "demo" in problem["what"]


def test_an_old_version_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.4.9+cu1")
    assert doctor._package("monai", "1.5", "")["problem"] == "version 1.4.9+cu1 is older than 1.5"
    assert doctor._package("monai", "1.4.9", "")["problem"] == ""


def test_a_card_that_torch_cannot_use_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    facts = {
        "python": "3.12.1",
        "disk_gib": 100.0,
        "memory_gib": 16.0,
        "devices": {"cuda": [], "cuda_build": ""},
    }
    (problem,) = doctor._machine_problems(facts)
    assert "without CUDA" in problem["what"]


@each(
    ("changes", "word"),
    [
        ({"disk_gib": 0.3}, "disk"),
        ({"memory_gib": 1.0}, "memory"),
        ({"python": "3.9.7"}, "too old"),
    ],
)
def test_scarce_resources_are_told(changes, word, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    facts = {"python": "3.11.2", "disk_gib": 100.0, "memory_gib": 16.0, "devices": {}} | changes
    (problem,) = doctor._machine_problems(facts)
    assert word in problem["what"] and problem["fix"]


@each(("text", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("3.0rc1", (3,)), ("1.10", (1, 10))])
def test_versions_compare_as_numbers(text, numbers):
    assert doctor._numbers(text) == numbers
