"""Plant each fault of faults.py in a copy of the tree, run the tests that should notice, and write a table.

    python Testing/faults/mutation.py                 all faults, about 15 minutes of one core
    python Testing/faults/mutation.py flip momentum   those whose name or topic contains a word; the rest is kept
    python Testing/faults/mutation.py --new           those that mutants.json does not hold yet
    python Testing/faults/mutation.py --table         the table again, from mutants.json

Heavy packages are imported once and every run is a fork of this process, which makes a fault cost seconds. The
tests that noticed a fault must pass without it, else the script fails. Exit code 1 when a fault survives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from Testing.faults.faults import ROOT, Fault, faults  # noqa: E402

RESULT, TABLE = (Path(__file__).with_name(name) for name in ("mutants.json", "MUTANTS.md"))
LIMIT = 900.0  # seconds a fault may take on the clock; a fault that hangs the tests is noticed too


class Failures:
    """A pytest plug-in that keeps the names of failed tests."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="only faults whose name or topic contains one of these")
    parser.add_argument("--new", action="store_true", help="only faults without a result")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    options = parser.parse_args()
    known = faults()
    rows = {row["name"]: row for row in json.loads(RESULT.read_text())["faults"]} if RESULT.exists() else {}
    if not options.table:
        words = [word.lower() for word in options.words]
        chosen = [f for f in known if not words or any(w in f"{f.topic} {f.name}".lower() for w in words)]
        chosen = [f for f in chosen if not (options.new and f.name in rows)]
        with tempfile.TemporaryDirectory() as folder:
            tree = copied_tree(Path(folder))
            warm_up()
            for fault in chosen:
                rows[fault.name] = tried(fault, tree)
                write_result([rows[fault.name] for fault in known if fault.name in rows])
            confirm([rows[fault.name] for fault in chosen], tree)
    write_table()
    survivors = [row["name"] for row in json.loads(RESULT.read_text())["faults"] if not row["caught"]]
    print(f"{len(survivors)} survive" + (": " + ", ".join(survivors) if survivors else ""))
    return 1 if survivors else 0


def copied_tree(folder: Path) -> Path:
    """The files of the tree (not what git ignores) in a new folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "tree" / name)
    return folder / "tree"


def warm_up() -> None:
    """Import what takes long, so that forks have it; nothing of the library itself."""
    import blosc2  # noqa: F401
    import hypothesis  # noqa: F401
    import lightning_fabric  # noqa: F401
    import monai.inferers
    import monai.losses
    import monai.metrics
    import monai.networks.nets  # noqa: F401
    import pytest  # noqa: F401
    import SimpleITK  # noqa: F401, N813
    import torch

    torch.set_num_threads(1)


def tried(fault: Fault, tree: Path) -> dict[str, Any]:
    """The row of a fault: whether tests fail with it, and the first that does."""
    source = tree / fault.path
    before = source.read_text(encoding="utf-8")
    source.write_text(fault.planted(before), encoding="utf-8")
    try:
        failed, seconds = run_tests(tree, ["-x", *fault.tests])
    finally:
        source.write_text(before, encoding="utf-8")
    print(f"{'caught  ' if failed else 'SURVIVED'} {seconds:6.1f} s  {fault.topic}: {fault.name}", flush=True)
    return {"topic": fault.topic, "name": fault.name, "file": fault.path.as_posix(), "tests": list(fault.tests),
            "caught": bool(failed), "by": failed, "seconds": seconds}


def confirm(rows: list[dict[str, Any]], tree: Path) -> None:
    """Raises RuntimeError when a test that noticed a fault fails without any fault too."""
    names = sorted({name for row in rows for name in row["by"] if "::" in name})
    failed, _ = run_tests(tree, names) if names else ([], 0.0)
    if failed:
        raise RuntimeError(f"these tests fail without a fault: {', '.join(failed)}")


def run_tests(tree: Path, arguments: list[str]) -> tuple[list[str], float]:
    """Names of the tests that fail, and seconds of one core, from a fork of this process; 'time limit' if it hangs."""
    answer = tree.parent / "failed.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_in_child(tree, arguments, answer)
    deadline = time.monotonic() + LIMIT * (1 if "-x" in arguments else 5)
    while time.monotonic() < deadline:
        ended, _, used = os.wait4(child, os.WNOHANG)
        if ended:
            failed = json.loads(answer.read_text()) if answer.exists() else ["the tests ended without an answer"]
            return failed, round(used.ru_utime + used.ru_stime, 1)
        time.sleep(0.1)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return ["time limit"], LIMIT


def _run_in_child(tree: Path, arguments: list[str], answer: Path) -> None:
    """Run pytest on the copied tree and leave; never returns."""
    os.setpgid(0, 0)
    os.chdir(tree)
    data = os.environ.get("MEDSSL_DATA") or str(ROOT.parent / "shared" / "data")
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "MEDSSL_DATA": data}
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.split(".")[0] in ("Testing", "MedSSLLib")]:
        del sys.modules[name]
    sys.path[0] = str(tree)
    log = os.open(answer.with_name("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    import pytest

    failures = Failures()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *arguments], [failures])
    broken = [] if code in (0, 1) or failures.names else [f"pytest ended with {code}"]
    answer.write_text(json.dumps(failures.names + broken))
    sys.stdout.flush()
    os._exit(0)


def write_result(rows: list[dict[str, Any]]) -> None:
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
             "seconds": round(sum(row["seconds"] for row in rows), 1)}
    RESULT.write_text(json.dumps({"format_version": 1, **facts, "faults": rows}, indent=1) + "\n", encoding="utf-8")


def write_table() -> None:
    """MUTANTS.md from mutants.json."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    TABLE.write_text(table(result), encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """The Markdown table of a result."""
    rows = result["faults"]
    caught = sum(row["caught"] for row in rows)
    lines = [
        "# Faults planted in the code, and the tests that notice", "",
        "Made by `python Testing/faults/mutation.py` from `mutants.json`; do not edit. With `-x`, so that the test "
        "shown is the first of perhaps several that fail.", "",
        f"{caught} of {len(rows)} faults caught{_missing(rows)}, {result['seconds'] / 60:.0f} minutes of one core "
        f"(Python {result['python']}, torch {result['torch']}).", "",
        "| topic | fault | file | first test that fails | s |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        by = row["by"][0].removeprefix("Testing/lib/") if row["by"] else "**none**"
        by = by.replace("|", "\\|")
        lines.append(f"| {row['topic']} | {row['name']} | {row['file']} | `{by}` | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _missing(rows: list[dict[str, Any]]) -> str:
    left = len(faults()) - len(rows)
    return f" ({left} not yet tried)" if left else ""


if __name__ == "__main__":
    sys.exit(main())
