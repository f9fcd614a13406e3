"""The counts of the tests of faults, bad input and security, as README.md beside this file.

    python Testing/faults/counts.py                 the page again, from result files and from the tests themselves
    python Testing/faults/counts.py --time quick    run that part (quick or full), keep how long it took, then the page

Nothing in the page is typed by hand but the words; a test compares it with what this would write.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from Testing.faults.faults import ROOT, faults  # noqa: E402

HERE = Path(__file__).parent
PAGE, TIMES, KILLS, MUTANTS = (HERE / name for name in ("README.md", "times.json", "kills.json", "mutants.json"))
COMMANDS = {"quick": "make test-faults", "full": "make test"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--time", choices=tuple(COMMANDS), help="run this part of the tests and measure it")
    options = parser.parse_args()
    code = measured(options.time) if options.time else 0
    PAGE.write_text(page(), encoding="utf-8")
    return code


def measured(part: str) -> int:
    """Run a part of the tests in one process; its times go to times.json. Returns pytest's exit code."""
    chosen = ["-m", "not slow", *quick_files()] if part == "quick" else []
    before, started = os.times(), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *chosen], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
    after = os.times()
    print(done.stdout[-2000:])
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    known = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {"format_version": 1}
    known[part] = {"wall_s": round(time.monotonic() - started), "processor_s": round(processor),
                   "result": done.stdout.strip().splitlines()[-1], "load": round(os.getloadavg()[0], 1),
                   "cores": os.cpu_count(), "python": platform.python_version()}  # fmt: skip
    TIMES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return done.returncode


def quick_files() -> list[str]:
    """The test files of `make test-faults`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    names = re.search(r"^FAULTS = (.*)$", text, re.MULTILINE)
    assert names
    return [f"Testing/lib/test_{name}.py" for name in names[1].split()]


def page() -> str:
    """The Markdown page."""
    lines = [
        "# Faults, bad input, security: what is tested, and how often", "",
        "Made by `python Testing/faults/counts.py`; do not edit.", "",
        "| what | count | again with |", "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in [*kill_rows(), *input_rows(), mutant_row(), *fuzz_rows(), *time_rows()]),
        "", "Times are of one process; on a machine that others use too, the processor time says more than the clock.",
        "The tests of `make test-faults` are those of " + ", ".join(
            f"`{Path(name).stem.removeprefix('test_')}`" for name in quick_files()) + ", less the slow ones.",
        "[MUTANTS.md](MUTANTS.md) lists the planted faults, `make audit` looks up known vulnerabilities.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def kill_rows() -> list[tuple[str, str, str]]:
    """Kills by command, with what they did to the weights."""
    runs = json.loads(KILLS.read_text(encoding="utf-8"))["runs"]
    rows = []
    for command in dict.fromkeys(run["command"] for run in runs):
        mine = [run for run in runs if run["command"] == command]
        kills, files = (sum(run[key] for run in mine) for key in ("kills", "files"))
        wrong = sum(bool(run["wrong"]) for run in mine)
        rows.append((f"`{command}` killed with SIGKILL and resumed",
                     f"{kills} kills in {len(mine)} runs, {wrong} with other weights; {files} files read back whole",
                     f"`python Testing/faults/kills.py --only {command}`"))  # fmt: skip
    return rows


def input_rows() -> list[tuple[str, str, str]]:
    """Kinds of bad input: the tables of the tests."""
    tables = (("images", "test_bad_input.py", "IMAGES"), ("labels", "test_bad_input.py", "LABELS"),
              ("moments at which a command is interrupted", "test_interrupt.py", "MOMENTS"))  # fmt: skip
    rows = [(f"kinds of bad {what}" if what[0] != "m" else what, str(entries(file, name)),
             f"`make test ARGS=\"-k {file[5:-3]}\"`") for what, file, name in tables]  # fmt: skip
    text = (ROOT / "Testing/lib/test_bad_projects.py").read_text(encoding="utf-8")
    found = len(re.findall(r"^@refused_with\(", text, re.MULTILINE))
    return [*rows, ("kinds of bad folders and projects", str(found), '`make test ARGS="-k bad_projects"`')]


def entries(file: str, name: str) -> int:
    """Entries of a table at the top of a test file."""
    for node in ast.parse((ROOT / "Testing/lib" / file).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value: Any = node.value  # type: ignore[attr-defined]
            return len(value.keys if isinstance(value, ast.Dict) else value.elts)
    raise LookupError(f"{file} has no table {name}")


def mutant_row() -> tuple[str, str, str]:
    """Planted faults."""
    rows = json.loads(MUTANTS.read_text(encoding="utf-8"))["faults"]
    left = len(faults()) - len(rows)
    caught = f"{sum(row['caught'] for row in rows)} of {len(rows)} caught" + (f", {left} not yet tried" if left else "")
    return "faults planted in the code", caught, "`python Testing/faults/mutation.py`"


def fuzz_rows() -> list[tuple[str, str, str]]:
    """Cases that hypothesis and loops over random bytes make in one run."""
    text = (ROOT / "Testing/lib/test_fuzz.py").read_text(encoding="utf-8")
    drawn = sum(int(number) for number in re.findall(r"max_examples=(\d+)", text))
    return [("drawn settings, options, tables, manifests, lists, weight files, grids", f"{drawn} cases",
             '`make test ARGS="-k fuzz"`'),
            ("image headers and torch files with random bytes changed", "360 + 600 cases",
             '`make test ARGS="-k \'random_damage or any_bytes\'"`')]  # fmt: skip


def time_rows() -> list[tuple[str, str, str]]:
    """How long the parts took."""
    times = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
    rows = []
    for part, command in COMMANDS.items():
        row = times.get(part)
        text = "not yet measured" if row is None else (
            f"{row['processor_s']} s of one core, {row['wall_s']} s on the clock at a load of {row['load']} on "
            f"{row['cores']} cores: {row['result'].strip('= ')}")
        rows.append((f"time of the {part} part, `{command}`", text, f"`python Testing/faults/counts.py --time {part}`"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
