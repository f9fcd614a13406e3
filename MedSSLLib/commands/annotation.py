"""``suggest``: which slices to annotate next."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from MedSSLLib.commands.base import Command, device_options, output_options, positive, say, seed
from MedSSLLib.events import Events

_STRATEGIES = ("hybrid", "coverage", "uncertainty", "even", "random")


def _suggest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--budget", type=positive(int), required=True, metavar="N", help="number of slices")
    parser.add_argument("--run", metavar="RUN", help="a finished run: pre-trained (coverage), or trained (all)")
    parser.add_argument(
        "--also", action="append", default=[], metavar="RUN",
        help="a further trained run, repeatable: where the models disagree counts as unsure",
    )  # fmt: skip
    parser.add_argument(
        "--strategy", choices=_STRATEGIES, default="hybrid",
        help="represent all slices (coverage), where the model is unsure (uncertainty), both (hybrid, default), "
        "evenly spaced, or random",
    )  # fmt: skip
    parser.add_argument(
        "--per-case", type=positive(int), default=3, metavar="K", help="most new slices of one case (default: 3)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--flips", action="store_true", help="average predictions over mirrored images: 4 to 8 times slower"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default: PROJECT/suggestions.json)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    device_options(parser.add_argument_group("device"))
    output_options(parser)


def suggest(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project import Project

    project = Project.open(args.project)
    from MedSSLLib.commands import tables
    from MedSSLLib.files import load_json
    from MedSSLLib.suggest import FILE_NAME, SuggestOptions, run_suggest

    options = SuggestOptions(
        args.budget, args.strategy, args.per_case, args.seed, args.flips, args.device or "auto",
        args.precision or "auto", tuple(args.also),
    )  # fmt: skip
    found = run_suggest(project, args.run, options, events, args.out)
    path = args.out or project.folder / FILE_NAME
    if args.json:
        print(json.dumps(load_json(path), indent=1, ensure_ascii=False))
        return
    if not args.quiet:
        rows = [(str(item.rank), item.case, f"{'ijk'[item.axis]} {item.index}", item.reason) for item in found]
        tables.print_table(("", "case", "slice", "why"), rows)
    say(args, f"{len(found)} slices suggested, written to {path}")


COMMANDS = (
    Command(
        "suggest", "Say which slices to annotate next.", _suggest_arguments, suggest,
        "PROJECT --budget N [--run RUN] [options]",
        ("medssl suggest heart --budget 6",
         "medssl suggest heart --budget 6 --run learned",
         "medssl suggest heart --budget 12 --run first --strategy uncertainty --json",
         "medssl suggest heart --budget 12 --run from-pgl --also from-gcl"),
        "Ranks slices of all cases but the test cases, with a reason each; labels are not read. Slices count from 0 "
        "on the axes i, j, k of the image, as in medssl.json. Annotated slices count as chosen. Without a run, "
        "hybrid is even; with a pre-training run it is coverage.",
    ),
)  # fmt: skip
