"""How soon live training answers: a real process on real data, times as a person sees them.

    python Testing/bench/bench_live.py --data DIR/cardiac [--rounds 8] [--out FILE.json]

A project of some cases is made from a folder with images/ and labels/. In every round a further
slice is drawn: the label file is written, then the manifest. Measured are the seconds

* from the slice being marked to the first preview of the shown slice that knows it (goal: 15),
* from there to the preview of the whole volume that knows it (from being marked; goal: 40),
* from `show` of another case to its shown slice (goal: 2),

with median, 10th and 90th percentile, the memory of the process, and the load of the computer,
without which the times say little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from MedSSLLib.benchmark.data import open_data  # noqa: E402
from MedSSLLib.benchmark.effort.annotator import Annotator  # noqa: E402
from MedSSLLib.images import io  # noqa: E402
from MedSSLLib.images.labels import slice_axis  # noqa: E402
from Testing.lib.live_helpers import LiveProcess  # noqa: E402

PATIENCE = 600.0  # seconds for an answer
GOALS = {"first": 15.0, "whole": 40.0, "show": 2.0}


def person_of(data: Path, folder: Path, cases: int) -> Annotator:
    """A person before a project of some cases, with the labels hidden."""
    everything, _ = open_data(data, folder / "all", (), 1, 0)
    chosen = [case for case in everything.pool if case.label][:cases]
    truths = {case.name: case.label for case in chosen if case.label}
    project = everything.at(folder / "project")
    others = {case.name for case in project.cases} - set(truths)

    def fewer(manifest):  # type: ignore[no-untyped-def]
        for name in others:
            manifest.cases.pop(name, None)
        return manifest

    project.change(fewer)
    for name in truths:
        project.set_label(name, None)
    project.save()
    return Annotator(project, truths, folder / "drawn")


def rounds_of(person: Annotator, live: LiveProcess, count: int) -> list[dict[str, float]]:
    """Draw a slice a round, in one case after another, from the middle outwards."""
    names, rows = list(person.truths), []
    for number in range(count):
        name = names[number % len(names)]
        case = person.project.case(name)
        axis = slice_axis(io.read_header(case.images[0]))
        shown = np.flatnonzero(np.moveaxis(person.truth(name), 2 - axis, 0).any((1, 2)))
        turn = number // len(names)
        index = int(shown[len(shown) // 2 + (turn + 1) // 2 * (-1) ** turn])
        asked = time.time()
        live.ask(f"show {name} {axis} {index}")
        row = {}
        if number:
            answer = live.wait_for("preview", PATIENCE, case=name)
            row["show"] = answer["arrived"] - asked
        person.draw(name, (axis, index))
        marked = time.time()
        epoch = live.wait_for("annotation", PATIENCE, case=name)["epoch"]
        knows = lambda value, epoch=epoch: value >= epoch  # noqa: E731
        first = live.wait_for("preview", PATIENCE, case=name, knows=knows)
        whole = first
        if not first["whole"]:
            whole = live.wait_for("preview", PATIENCE, case=name, knows=knows, whole=True)
        row |= {"first": first["arrived"] - marked, "whole": whole["arrived"] - marked}
        rows.append(row | {"load": os.getloadavg()[0]})
        print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    return rows


def percentiles(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, 10th and 90th percentile of every time."""
    found = {}
    for key in (*GOALS, "load"):
        values = [row[key] for row in rows if key in row]
        if values:
            low, middle, high = np.percentile(values, [10, 50, 90])
            found[key] = {"p10": low, "median": middle, "p90": high, "count": len(values)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        person = person_of(options.data, Path(folder), options.cases)
        with LiveProcess(person.project.folder, settings={}) as live:
            live.wait_for("progress", PATIENCE, state="waiting")
            rows = rounds_of(person, live, options.rounds)
            resident = max(event["resident_mib"] for event in live.of("progress"))
            live.end()
    found = percentiles(rows)
    content = {"bench": "live", "format_version": 1, "data": options.data.name}
    content |= {"seconds": found, "resident_mib": resident, "rows": rows, "cores": os.cpu_count()}
    for key, goal in GOALS.items():
        if key in found:
            times = found[key]
            print(
                f"{key}: median {times['median']:.1f} s ({times['p10']:.1f} to {times['p90']:.1f}),"
                f" goal {goal:g} s"
            )
    print(f"memory {resident} MiB; load {found['load']['median']:.1f} on {os.cpu_count()} cores")
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
