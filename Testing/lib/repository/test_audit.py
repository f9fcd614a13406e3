"""What other packages bring: permissive licences, no version known to be vulnerable, an audit that
says what it saw.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

from Testing.faults import audit
from Testing.lib.case_helpers import each

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|BSD|[0-3]-clause bsd|0BSD|BSD-[23]-Clause|Apache|PSF|Python Software Foundation|"
    r"Python-2\.0|ISC|HPND|Zlib|CC0|Unlicense|CNRI-Python)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(
    r"\b(A?GPL|LGPL|GNU|EUPL|SSPL|CC-BY-NC|proprietary|commercial)", re.IGNORECASE
)
WEAK = {"certifi", "tqdm"}  # Mozilla Public License: files stay under it, what uses them does not
CUDA = (
    "nvidia-",
    "cuda-",
)  # NVIDIA's own terms; they come with a CUDA build of torch and with no other


def requirements(name: str) -> list[str]:
    """Names that a distribution needs here without extras."""
    found = []
    for text in importlib.metadata.requires(name) or ():
        need, _, marker = text.partition(";")
        if "extra" in marker or not applies(marker):
            continue
        found.append(audit.normal(re.split(r"[\s\[(<>=!~]", need.strip(), maxsplit=1)[0]))
    return found


def applies(marker: str) -> bool:
    from packaging.markers import Marker

    return not marker.strip() or Marker(marker).evaluate()


def run_time() -> list[str]:
    """Every distribution that the package needs at run time, directly or not."""
    todo = [audit.normal(re.split(r"[>=]", text)[0]) for text in PROJECT["dependencies"]]
    found: list[str] = []
    while todo:
        name = todo.pop()
        if name not in found and not name.startswith(CUDA):
            found.append(name)
            todo += requirements(name)
    return sorted(found)


def licence(name: str) -> str:
    """What a distribution says of its licence: expression, classifiers, or the start of its
    text.
    """
    facts = importlib.metadata.metadata(name)
    classifiers = [
        text for text in facts.get_all("Classifier") or () if text.startswith("License ::")
    ]
    return " ".join(
        [facts.get("License-Expression") or "", *classifiers, (facts.get("License") or "")[:200]]
    )


@each("name", run_time())
def test_the_licence_is_permissive(name):
    text = licence(name)
    assert PERMISSIVE.search(text) or (name in WEAK and "MPL" in text), text
    assert not COPYLEFT.search(text), text


def test_pins_and_bounds_are_not_known_to_be_vulnerable(capsys):
    assert audit.known_here() == []
    assert {
        row["package"] for row in json.loads(audit.ADVISORIES.read_text())["advisories"]
    } <= set(audit.pins())


@each(
    ("pin", "bound", "found"),
    [
        ("torch==2.9.1", "torch>=2.8", ["torch 2.9.1: CVE-2026-24747, fixed in 2.10.0"]),
        ("torch==2.10.0", "torch>=2.5", ["torch 2.5: CVE-2025-32434, fixed in 2.6.0"]),
        ("monai==1.6", "monai>=1.6", []),
        ("Monai==1.5.2", "monai>=1.6", ["monai 1.5.2: GHSA-89gg-p5r5-q6r4, fixed in 1.6.0"]),
    ],
)
def test_a_vulnerable_version_is_named(tmp_path, monkeypatch, pin, bound, found):
    (tmp_path / "c.txt").write_text(f"# comment\n{pin}\n")
    (tmp_path / "p.toml").write_text(f'[project]\ndependencies = ["{bound}"]\n')
    monkeypatch.setattr(audit, "CONSTRAINTS", tmp_path / "c.txt")
    monkeypatch.setattr(audit, "PROJECT", tmp_path / "p.toml")
    assert audit.known_here() == found


def test_what_was_not_looked_up_is_not_called_safe():
    """pip-audit itself says that no vulnerability was found where the service knows no package at
    all.
    """
    skipped = {"name": "a", "skip_reason": "not found"}
    sound = {"name": "b", "version": "1", "vulns": []}
    entries = [{"id": "X-1", "fix_versions": ["3"]}, {"id": "X-2", "fix_versions": []}]
    bad = {"name": "c", "version": "2", "vulns": entries}
    assert audit.judged([skipped, skipped]) == (
        "pip-audit: NOT AUDITED, the service knows none of the 2 packages (a mirror?)",
        [],
    )
    text, found = audit.judged([skipped, sound, bad])
    assert (
        text
        == "pip-audit: 2 of 3 versions looked up, 2 vulnerabilities; 1 are not known to the service"
    )
    assert found == ["c 2: X-1, fixed in 3", "c 2: X-2, fixed in no version"]


def test_without_an_answer_in_time_it_says_so_and_goes_on(capsys, monkeypatch):
    def late(*args, timeout, **options):
        raise audit.subprocess.TimeoutExpired(args[0], timeout)

    monkeypatch.setattr(audit.subprocess, "run", late)
    assert audit.audited(3) == [] and "NOT AUDITED, no answer within 3 s" in capsys.readouterr().out
