"""Result files of one protocol with several seeds taken together: each case's Dice is its mean over
the seeds.

    python Testing/bench/seeds.py FILE FILE ... [--choices N]

Prints, as JSON, the mean Dice of every row and its paired difference to ``random`` with the 95 %
interval of the benchmark, over choices x patients. Only the seed, and the tag of the run names, may
differ between the files.
"""

from __future__ import annotations

import argparse
import json
from ast import literal_eval
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.benchmark.records import BASELINE, differences
from MedSSLLib.core.files import load_json


def protocol(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a result file without what a seed changes."""
    settings = {
        key: value
        for key, value in content["settings"].items()
        if key not in ("tag", "seed", "rows")
    }
    own = literal_eval(settings["settings"])
    own.pop("seed", None)
    return {**settings, "settings": own, "data": content["data"]}


def averaged(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of the rows and choices that all files have, Dice averaged over the files.

    Raises:
        SystemExit: the files differ in more than the seed.
    """
    if any(protocol(content) != protocol(files[0]) for content in files):
        raise SystemExit("the files differ in more than the seed")
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for content in files:
        for record in content["records"]:
            found[record["row"], record["count"], record["choice"]].append(record)
    return [
        {
            "row": row,
            "count": count,
            "choice": choice,
            "patients": same[0].get("patients", {}),
            "dice": {
                case: _mean(record["dice"].get(case) for record in same) for case in same[0]["dice"]
            },
        }
        for (row, count, choice), same in found.items()
        if len(same) == len(files)
    ]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--choices", type=int, default=10**6, help="the first N choices of labelled volumes only"
    )
    args = parser.parse_args()
    records = [
        r for r in averaged([load_json(path) for path in args.files]) if r["choice"] < args.choices
    ]
    found: dict[str, Any] = {}
    for count in dict.fromkeys(record["count"] for record in records):
        mine = [record for record in records if record["count"] == count]
        gaps = differences(mine)
        for row in dict.fromkeys(record["row"] for record in mine):
            scores = [_mean(record["dice"].values()) for record in mine if record["row"] == row]
            gap = {} if row == BASELINE else gaps[row]
            found[f"{row}, {count} labelled"] = {
                "dice": _mean(scores),
                "choices": len(scores),
                "against random": gap,
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
