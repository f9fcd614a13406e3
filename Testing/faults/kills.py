"""Kill training at random moments, from its start to its end, and resume: the weights must not
change by a bit. Live training is killed while a person draws: nothing drawn may be lost or changed,
and the run that goes on knows all of it.

    python Testing/faults/kills.py [--kills 20] [--only selftrain] [--out kills.json]

For each command runs are started, killed with SIGKILL and resumed until they are done, until there
were so many kills. Every file with its final name is read back after every kill. On one thread; a
few minutes a command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from MedSSLLib.project.project import Project  # noqa: E402
from MedSSLLib.training.checkpoint import load_tensors  # noqa: E402
from MedSSLLib.training.run_folder import RunFolder  # noqa: E402
from Testing.lib.core_helpers import tiny_project  # noqa: E402
from Testing.lib.kill_helpers import Victim, config, train  # noqa: E402
from Testing.lib.live_helpers import LiveProcess, Person  # noqa: E402
from Testing.lib.selftraining.test_selftrain import project_of  # noqa: E402

METHODS = {
    "pretrain": ("pgl", "gcl"),
    "finetune": ("supervised",),
    "selftrain": ("local-contrast",),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="least kills of each command")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*METHODS, "live"),
        help="only these commands; other results are kept",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults" / "kills.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        projects = {"selftrain": project_of(Path(folder, "two"))}
        plain = tiny_project(Path(folder, "one"))
        chosen = options.only or (*METHODS, "live")
        rows = (
            json.loads(options.out.read_text())["runs"]
            if options.only and options.out.exists()
            else []
        )
        rows = [row for row in rows if row["command"] not in chosen]
        rows += [
            row
            for name in chosen
            if name != "live"
            for row in killed(projects.get(name, plain), name, options.kills)
        ]
        if "live" in chosen:
            rows.append(killed_live(Path(folder, "three"), options.kills))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"format_version": 1, "runs": rows}, indent=1) + "\n", encoding="utf-8"
    )
    for command in dict.fromkeys(row["command"] for row in rows):
        mine = [row for row in rows if row["command"] == command]
        print(
            f"{command}: {sum(row['kills'] for row in mine)} kills in {len(mine)} runs, "
            f"{sum(row['restarts'] for row in mine)} of them before the first checkpoint, "
            f"{sum(row['files'] for row in mine)} files read back, "
            f"{sum(bool(row['wrong']) for row in mine)} runs that are not as they should be"
        )
    return 1 if any(row["wrong"] for row in rows) else 0


def killed(project, command, least):
    """Rows of the runs of a command, with `least` kills in all."""
    rng = np.random.default_rng(len(command))
    rows, whole, seconds = [], {}, {}
    while sum(row["kills"] for row in rows) < least:
        method = METHODS[command][len(rows) % len(METHODS[command])]
        if method not in whole:
            started = time.monotonic()
            whole[method] = train(project.folder, config(method, name=f"{method}-whole"))
            seconds[method] = time.monotonic() - started
        victim = Victim(project, method, f"{method}-{len(rows)}")
        while not victim.done and len(victim.problems) < 3:
            victim.run_and_kill(rng.uniform(0, 0.7 * seconds[method]), from_checkpoint=False)
        wrong = victim.problems or victim.differs_from(whole[method])
        rows.append(
            {
                "command": command,
                "method": method,
                "kills": victim.kills,
                "restarts": victim.restarts,
                "files": victim.files,
                "wrong": wrong,
            }
        )
        print(rows[-1], flush=True)
    return rows


def killed_live(folder, kills):
    """A row of one person who goes on drawing while live training is killed again and again."""
    rng = np.random.default_rng(len("live"))
    cases = 1 + kills // 5  # ten slices each, at most two of which are drawn between two kills
    person = Person(folder, cases)
    slices = [(f"case{case}", index) for case in range(cases) for index in range(1, 11)]
    row = {"command": "live", "method": "", "kills": 0, "restarts": 0, "files": 0, "wrong": []}
    drawn = {}
    while row["kills"] < kills:
        goes_on = [] if (run := _unfinished(person)) is None else ["--resume", "--name", run]
        row["restarts"] += not goes_on and row["kills"] > 0
        with LiveProcess(person.folder, *goes_on) as live:
            time.sleep(rng.uniform(0, 8))  # starting takes some of them
            for _ in range(rng.integers(1, 3)):
                name, index = slices[len(drawn)]
                drawn[name, index] = None
                person.draw(name, index)
                time.sleep(rng.uniform(0, 4))
            if (code := live.end("KILL")) != -9:
                row["wrong"].append(f"it had ended with {code}: {live.said[-300:]}")
        row["kills"] += 1
        row["files"] += _read_back(person, drawn, row["wrong"])
        print({"kills": row["kills"], "drawn": len(drawn), "wrong": row["wrong"]}, flush=True)
    run = _unfinished(person)
    with LiveProcess(person.folder, *(["--resume", "--name", run] if run else [])) as live:
        live.wait_for("progress", state="idle")
        if live.end() != 0:
            row["wrong"].append(f"it does not go on: {live.said[-300:]}")
    newest = sorted((person.folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)[-1]
    known = RunFolder(newest).data.annotated
    found = {(name, n) for name, parts in known.items() for part in parts for n in part["indices"]}
    if found != set(drawn):
        row["wrong"].append(f"the run knows {len(found)} of {len(drawn)} slices")
    return row


def _unfinished(person):
    """The name of a live run that can go on."""
    for run in Project.open(person.folder).runs():
        there = RunFolder(person.folder / "runs" / run["name"])
        if there.recorded and there.has_checkpoint and not there.finished:
            return str(run["name"])
    return None


def _read_back(person, drawn, wrong):
    """Number of files read; what is wrong with them goes to the list."""
    files, project = 0, Project.open(person.folder)
    for name in sorted({name for name, _ in drawn}):
        expected = sorted(index for case, index in drawn if case == name)
        case = project.case(name)
        if not case.annotated or sorted(dict(case.annotated.slices)[2]) != expected:
            wrong.append(f"{name}: slices {case.annotated} instead of {expected}")
        before = hashlib.sha256((person.labels / f"{name}.nii.gz").read_bytes()).hexdigest()
        person.write(name, expected)
        after = hashlib.sha256((person.labels / f"{name}.nii.gz").read_bytes()).hexdigest()
        if before != after:
            wrong.append(f"{name}: its label file was changed")
        files += 1
    return files + sum(_is_whole(path, wrong) for path in (person.folder / "runs").rglob("[!.]*.*"))


def _is_whole(path, wrong):
    """Whether a file is one that is read back; what is wrong with it goes to the list."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_tensors(path)
    except Exception as error:
        wrong.append(f"{path.name}: {error}")
    return path.suffix in (".json", ".safetensors")


if __name__ == "__main__":
    sys.exit(main())
