"""Plant each fault of faults.toml in a copy of the tree and run the tests that should notice.

    python Testing/faults/mutation.py                 all faults, about 15 minutes of one core
    python Testing/faults/mutation.py flip momentum   those whose name or topic contains a word
    python Testing/faults/mutation.py --new           those without a result yet

Results go to `build/faults/mutants.json`, where those of other faults are kept. Heavy packages are
imported once and every run is a fork of this process, which makes a fault cost seconds. The tests
that noticed a fault must pass without it, else the script fails. Exit code 1 when one survives.
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

RESULT = ROOT / "build" / "faults" / "mutants.json"
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
    parser.add_argument("words", nargs="*", help="only faults with one of these in name or topic")
    parser.add_argument("--new", action="store_true", help="only faults without a result")
    options = parser.parse_args()
    known, rows = faults(), known_rows()
    words = [word.lower() for word in options.words]
    chosen = [
        fault
        for fault in known
        if (not words or any(word in f"{fault.topic} {fault.name}".lower() for word in words))
        and not (options.new and fault.name in rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder))
        warm_up()
        for fault in chosen:
            rows[fault.name] = tried(fault, tree)
            write_result([rows[fault.name] for fault in known if fault.name in rows])
        confirm([rows[fault.name] for fault in chosen], tree)
    survivors = [fault.name for fault in chosen if not rows[fault.name]["caught"]]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults caught")
    print("\n".join(f"survived: {name}" for name in survivors))
    return 1 if survivors else 0


def known_rows() -> dict[str, dict[str, Any]]:
    """Results of earlier calls, by the fault's name."""
    if not RESULT.exists():
        return {}
    return {row["name"]: row for row in json.loads(RESULT.read_text())["faults"]}


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
        failed, seconds = run_tests(tree, ["-x", *fault.test_files])
    finally:
        source.write_text(before, encoding="utf-8")
    print(
        f"{'caught  ' if failed else 'SURVIVED'} {seconds:6.1f} s  {fault.topic}: {fault.name}",
        flush=True,
    )
    return {
        "topic": fault.topic,
        "name": fault.name,
        "file": fault.path.as_posix(),
        "tests": list(fault.tests),
        "caught": bool(failed),
        "by": failed,
        "seconds": seconds,
    }


def confirm(rows: list[dict[str, Any]], tree: Path) -> None:
    """Raises RuntimeError when a test that noticed a fault fails without any fault too."""
    names = sorted({name for row in rows for name in row["by"] if "::" in name})
    failed, _ = run_tests(tree, names) if names else ([], 0.0)
    if failed:
        raise RuntimeError(f"these tests fail without a fault: {', '.join(failed)}")


def run_tests(tree: Path, arguments: list[str]) -> tuple[list[str], float]:
    """Names of the tests that fail, and seconds of one core, from a fork of this process; 'time
    limit' if it hangs.
    """
    answer = tree.parent / "failed.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_in_child(tree, arguments, answer)
    deadline = time.monotonic() + LIMIT * (1 if "-x" in arguments else 5)
    while time.monotonic() < deadline:
        ended, _, used = os.wait4(child, os.WNOHANG)
        if ended:
            failed = (
                json.loads(answer.read_text())
                if answer.exists()
                else ["the tests ended without an answer"]
            )
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
    code = pytest.main(
        ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *arguments], [failures]
    )
    broken = [] if code in (0, 1) or failures.names else [f"pytest ended with {code}"]
    answer.write_text(json.dumps(failures.names + broken))
    sys.stdout.flush()
    os._exit(0)


def write_result(rows: list[dict[str, Any]]) -> None:
    import torch

    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
    content = {"format_version": 1, **facts, "faults": rows}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
