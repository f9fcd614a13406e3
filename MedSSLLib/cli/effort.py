"""``benchmark effort``: how much must be drawn until a model is good."""

from __future__ import annotations

import argparse
from pathlib import Path

from MedSSLLib.cli.command import parse_settings, positive, say
from MedSSLLib.cli.tables import print_table
from MedSSLLib.core.events import Events


def effort_arguments(effort: argparse.ArgumentParser) -> None:
    """The options of the command."""
    effort.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR|PROJECT",
        help="as for labels; the labels of cases that are not test cases are drawn from",
    )
    effort.add_argument(
        "--ways",
        default="live,live-no-mixing,even,complete",
        metavar="A,B",
        help="live, live-no-mixing, even, complete (default: all)",
    )
    effort.add_argument(
        "--slices", type=positive(int), default=16, metavar="N", help="most slices (default: 16)"
    )
    effort.add_argument(
        "--seeds", type=positive(int), default=3, metavar="N", help="repetitions (default: 3)"
    )
    effort.add_argument(
        "--seconds",
        type=positive(float),
        default=30.0,
        metavar="S",
        help="that a person takes for a slice; counted, not waited for (default: 30)",
    )
    effort.add_argument(
        "--rate",
        type=positive(float),
        default=2.0,
        metavar="N",
        help="steps a second of training meanwhile (default: 2)",
    )
    effort.add_argument(
        "--tests", type=positive(int), metavar="N", help="test cases scored (default: all)"
    )
    effort.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N"
    )
    effort.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of every training",
    )


def run_effort_command(args: argparse.Namespace, events: Events) -> None:
    """Run it, print its table and write its report."""
    from MedSSLLib.benchmark.data import open_data
    from MedSSLLib.benchmark.effort import Effort, run_effort
    from MedSSLLib.benchmark.effort_report import (
        EFFORT_COLUMNS,
        effort_notes,
        effort_rows,
        write_effort_report,
    )

    effort = Effort(
        ways=tuple(text.strip() for text in args.ways.split(",") if text.strip()),
        slices=args.slices,
        seeds=args.seeds,
        seconds=args.seconds,
        rate=args.rate,
        tests=args.tests,
        device=args.device,
        settings=parse_settings(args.set),
    )
    name = args.data.resolve().name
    project, _ = open_data(args.data, args.out / "project" / name, (), 1, 0)
    content = run_effort(project, effort, args.out, events)
    if not args.quiet:
        print_table(EFFORT_COLUMNS, effort_rows(content))
    for text in effort_notes(content):
        say(args, text)
    files = write_effort_report(content, args.out)
    events.images(files)
    say(args, f"Report: {files[-1]}")
