"""The label-efficiency protocol with one number of labelled volumes and one result file, for runs
spread over time.

    python Testing/bench/protocol.py --data DIR --count 8 --minutes 10 --out results.json
    python Testing/bench/protocol.py --data DIR --count 1 --choices 3 \\
        --rows random,pgl,pgl-frozen,byol,restoration \\
        --pretrain-minutes 10 --minutes 3 --out results.json

The work is done by ``MedSSLLib.benchmark.protocol``, which also says what a row is; ``medssl
benchmark labels`` runs the same with several numbers at once, and ``medssl benchmark tables
--results FILE ...`` makes tables and figures of files. Runs are kept in ``--work`` under names that
end with ``--tag``, so that result files can share pre-trained encoders.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from MedSSLLib.benchmark.data import open_data
from MedSSLLib.benchmark.protocol import Protocol, run_labels
from MedSSLLib.cli.command import parse_settings
from MedSSLLib.core.events import Events
from MedSSLLib.core.sinks import PlainLines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-projects"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", default="1", help="labelled volumes: 1, 2, 8 or all")
    parser.add_argument("--choices", type=int, default=1)
    parser.add_argument("--rows", default="random")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pretrain-minutes", type=float, default=10.0)
    parser.add_argument("--pretrain-steps", type=int)
    parser.add_argument("--tolerance", type=float, default=1.0, help="of surface Dice, mm")
    parser.add_argument("--seed", type=int, default=0, help="of every training")
    parser.add_argument("--tag", default="bench", help="part of the run names")
    parser.add_argument("--set", action="append", default=[], help="setting of every fine-tuning")
    parser.add_argument(
        "--pretrain-set", action="append", default=[], help="setting of every pre-training"
    )
    parser.add_argument(
        "--selftrain-set", action="append", default=[], help="setting of every self-training"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    protocol = Protocol(
        tuple(args.rows.split(",")),
        steps=args.steps,
        minutes=None if args.steps else args.minutes,
        pretrain_steps=args.pretrain_steps,
        pretrain_minutes=None if args.pretrain_steps else args.pretrain_minutes,
        settings=parse_settings(args.set),
        pretrain_settings=parse_settings(args.pretrain_set),
        selftrain_settings=parse_settings(args.selftrain_set),
        seed=args.seed,
        tolerance=args.tolerance,
        tag=args.tag,
    )
    project, choices = open_data(
        args.data, args.work / args.data.name, (args.count,), args.choices, seed=0
    )
    with Events([PlainLines.to_stderr(("metric", "warning"))]) as events:
        result = run_labels(project, choices, protocol, args.out, events)
    for record in result["records"]:
        summary = {
            key: round(value, 4) for key, value in record["summary"].items() if value is not None
        }
        print(record["row"], record["count"], record["choice"], summary)
    json.dump(result["difference_to_random"], sys.stdout, indent=1)


if __name__ == "__main__":
    main()
