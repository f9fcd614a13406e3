"""Kill training at random moments, from its start to its end, and resume: the weights must not
change by a bit.

    python Testing/faults/kills.py [--kills 20] [--only selftrain] [--out kills.json]

For each command runs are started, killed with SIGKILL and resumed until they are done, until there
were so many kills. Every file with its final name is read back after every kill. On one thread; a
few minutes a command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from Testing.lib.core_helpers import tiny_project  # noqa: E402
from Testing.lib.kill_helpers import Victim, config, train  # noqa: E402
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
        choices=tuple(METHODS),
        help="only these commands; other results are kept",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults" / "kills.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        projects = {"selftrain": project_of(Path(folder, "two"))}
        plain = tiny_project(Path(folder, "one"))
        chosen = options.only or METHODS
        rows = (
            json.loads(options.out.read_text())["runs"]
            if options.only and options.out.exists()
            else []
        )
        rows = [row for row in rows if row["command"] not in chosen]
        rows += [
            row for name in chosen for row in killed(projects.get(name, plain), name, options.kills)
        ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"format_version": 1, "runs": rows}, indent=1) + "\n", encoding="utf-8"
    )
    for command in METHODS:
        mine = [row for row in rows if row["command"] == command]
        print(
            f"{command}: {sum(row['kills'] for row in mine)} kills in {len(mine)} runs, "
            f"{sum(row['restarts'] for row in mine)} of them before the first checkpoint, "
            f"{sum(row['files'] for row in mine)} files read back, "
            f"{sum(bool(row['wrong']) for row in mine)} runs with other weights"
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


if __name__ == "__main__":
    sys.exit(main())
