"""``benchmark``: which training suits one's own data, and what MedSSL costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.cli.command import (
    Command,
    announce,
    output_options,
    parse_settings,
    positive,
    say,
    seed,
)
from MedSSLLib.cli.tables import print_table
from MedSSLLib.cli.tools import data_set_arguments, make_data_set
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events

if TYPE_CHECKING:
    from MedSSLLib.benchmark.tables import Study
    from MedSSLLib.project.project import Project


_DEVICES = "auto (default), cpu, cuda or cuda:N"


def _arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind",
        metavar="labels|tables|effort|speed|data",
        required=True,
        help="run it, tables only, drawing, times, or data to run it on",
        prog="medssl benchmark",
    )
    labels = kinds.add_parser("labels", help="run the protocol", allow_abbrev=False)
    _labels_arguments(labels)
    _labels_lengths(labels)
    tables = kinds.add_parser(
        "tables", help="tables and figures of result files", allow_abbrev=False
    )
    tables.add_argument(
        "--results",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="results.json, effort.json",
    )
    effort = kinds.add_parser(
        "effort", help="how much must be drawn, by a scripted person", allow_abbrev=False
    )
    _effort_arguments(effort)
    speed = kinds.add_parser(
        "speed", help="steps, predictions and views against the bare work", allow_abbrev=False
    )
    _speed_arguments(speed)
    data = kinds.add_parser("data", help="make a data set, without a network", allow_abbrev=False)
    data_set_arguments(data)
    for sub in (labels, tables, effort, speed, data):
        sub.add_argument(
            "--out", type=Path, required=sub is not speed, metavar="DIR", help="folder of results"
        )
        output_options(sub)


def _labels_arguments(labels: argparse.ArgumentParser) -> None:
    """What is compared, and on which data."""
    labels.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR|PROJECT",
        help="a project, a folder with "
        "images/, labels/ and perhaps splits.json, or a Decathlon folder",
    )
    labels.add_argument("--counts", metavar="N,N,all", help="labelled volumes (default: 1,2,8)")
    labels.add_argument(
        "--choices", type=positive(int), metavar="N", help="choices of each (default: 3)"
    )
    labels.add_argument(
        "--methods",
        default="random,pgl",
        metavar="A,B",
        help="random, a pre-training method (or FILE.py:CLASS), each "
        "but random with -frozen; then -3-slices (or another number); then +mean-teacher, +mixup, "
        "+mixing-teacher, +mixing, +selftrain or +longer (default: random,pgl)",
    )
    labels.add_argument(
        "--preset", choices=("quick", "standard", "paper"), help="size, steps (default: standard)"
    )
    labels.add_argument(
        "--quick",
        action="store_true",
        help="a first look in minutes: one choice of 2 labelled volumes, half a minute a run; "
        "what else is typed counts",
    )
    labels.add_argument("--device", default="auto", metavar="NAME", help=_DEVICES)
    labels.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)"
    )
    labels.add_argument(
        "--tolerance", type=positive(float), default=1.0, metavar="MM", help="of surface Dice"
    )
    _labels_settings(labels)


def _labels_settings(labels: argparse.ArgumentParser) -> None:
    """Settings of all runs of a kind."""
    for option, what in (
        ("set", "fine-tuning"),
        ("pretrain-set", "pre-training"),
        ("selftrain-set", "self-training"),
    ):
        labels.add_argument(
            f"--{option}",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"setting of every {what}",
            dest=option.replace("-", "_"),
        )


def _labels_lengths(labels: argparse.ArgumentParser) -> None:
    """How long every run takes."""
    length = labels.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=positive(int), metavar="N", help="of every run (default: the preset's)"
    )
    length.add_argument(
        "--minutes-per-run", type=positive(float), metavar="M", help="or minutes of every run"
    )
    before = labels.add_mutually_exclusive_group()
    before.add_argument(
        "--pretrain-steps", type=positive(int), metavar="N", help="steps of every pre-training"
    )
    before.add_argument(
        "--pretrain-minutes", type=positive(float), metavar="M", help="or minutes of it"
    )


def _effort_arguments(effort: argparse.ArgumentParser) -> None:
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
    numbers: tuple[tuple[str, type[int] | type[float], float | None, str], ...] = (
        ("slices", int, 16, "most slices (default: 16)"),
        ("seeds", int, 3, "repetitions (default: 3)"),
        ("seconds", float, 30.0, "of a person for a slice; counted, not waited for (default: 30)"),
        ("rate", float, 10.0, "steps a second of training meanwhile (default: 10)"),
        ("tests", int, None, "test cases scored (default: all)"),
    )
    for name, kind, usual, words in numbers:
        effort.add_argument(
            f"--{name}", type=positive(kind), default=usual, metavar="N", help=words
        )
    effort.add_argument("--device", default="auto", metavar="NAME", help=_DEVICES)
    effort.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of every training"
    )


def _speed_arguments(speed: argparse.ArgumentParser) -> None:
    speed.add_argument(
        "--parts",
        default="step,predict,views",
        metavar="A,B",
        help="step, predict, views (default: all)",
    )
    speed.add_argument(
        "--pairs",
        type=positive(int),
        metavar="N",
        help="timed pairs of each (default: 9, quick: 3)",
    )
    threads = "threads of PyTorch (default: its own)"
    speed.add_argument("--threads", type=positive(int), metavar="N", help=threads)
    speed.add_argument("--device", default="auto", metavar="NAME", help=_DEVICES)
    speed.add_argument(
        "--quick",
        action="store_true",
        help="small sizes: shows that it works, says nothing of goals",
    )


def benchmark(args: argparse.Namespace, events: Events) -> None:
    words = {
        "labels": "Comparing ways of training",
        "effort": "Drawing by script",
        "speed": "Timing this computer",
        "data": "Drawing subjects",
    }
    announce(args, f"{words.get(args.kind, 'Reading results')} ...")
    if args.kind in _RUN_APART:
        return _RUN_APART[args.kind](args, events)
    project = _run_labels(args, events) if args.kind == "labels" else None
    from MedSSLLib.benchmark.effort.report import load_efforts, write_efforts
    from MedSSLLib.benchmark.recommendations import recommendations
    from MedSSLLib.benchmark.report import write_tables
    from MedSSLLib.benchmark.tables import load_studies

    efforts, files = load_efforts(args.results if args.kind == "tables" else [])
    if args.kind == "labels":
        files = [args.out / "results.json"]
    studies, written = load_studies(files), write_efforts(efforts, args.out)
    if studies or not efforts:
        written += write_tables(studies, args.out, project)
    events.images(written)
    events.emit("done", command="benchmark")  # bars stay above the results
    for study in studies:
        if not args.quiet:
            _print_study(study)
        for text in recommendations(study):
            say(args, f"{study.data}: {text}")
    for page in (path for path in written if path.suffix == ".html"):
        say(args, f"Report: {page}")
    goes_on = "the same command with more --counts, --choices or --methods goes on"
    say(args, f"Next: {goes_on if args.kind == 'labels' else 'look at the reports'}")


def _print_study(study: Study) -> None:
    """The scores of a study on a terminal, a table for each number of labelled volumes."""
    from MedSSLLib.benchmark.tables import SHOWN, shown, table_row

    for count in study.counts:
        rows = []
        for name in study.rows(count):
            row = dict(zip(SHOWN, shown(table_row(study, count, name)), strict=True))
            dice = row["Dice"].partition(" ")[0]
            against = row["against random"].replace("–", "")
            rows.append((name, dice, against, row["HD95, mm"], row["training, s"]))
        head = (f"{study.volumes(count)} labelled", "Dice", "against random", "HD95, mm", "s")
        print_table(head, rows)


def _run_speed(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.benchmark.speed import SpeedOptions, run_speed
    from MedSSLLib.benchmark.speed_report import SPEED_COLUMNS, notes, speed_rows, write_report

    parts = tuple(text.strip() for text in args.parts.split(",") if text.strip())
    options = SpeedOptions(parts, args.pairs, args.threads, args.device, args.quick)
    content = run_speed(options, events, args.out / "speed.json" if args.out else None)
    files = write_report(content, args.out) if args.out else []
    events.images(files)
    events.emit("done", command="benchmark")
    if not args.quiet:
        print_table(SPEED_COLUMNS, speed_rows(content))
    for text in (*notes(content), *(f"Written: {path}" for path in files)):
        say(args, text)


def _run_effort(args: argparse.Namespace, events: Events) -> None:
    """Run it, print its table and write its report."""
    from MedSSLLib.benchmark.data import open_data
    from MedSSLLib.benchmark.effort.report import (
        EFFORT_COLUMNS,
        effort_notes,
        effort_rows,
        write_effort_report,
    )
    from MedSSLLib.benchmark.effort.trials import Effort, run_effort

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
    folder = args.out / "project" / args.data.resolve().name
    project, _ = open_data(args.data, folder, (), 1, 0)
    content = run_effort(project, effort, args.out, events)
    files = write_effort_report(content, args.out)
    events.images(files)
    events.emit("done", command="benchmark")
    if not args.quiet:
        print_table(EFFORT_COLUMNS, effort_rows(content))
    for text in effort_notes(content):
        say(args, text)
    say(args, f"Report: {files[-1]}")
    say(args, "Next: the same command with more --seeds or --ways goes on")


_RUN_APART = {"speed": _run_speed, "effort": _run_effort, "data": make_data_set}


def _row(text: str) -> str:
    """A row's name as typed, with a method's name in the place of FILE.py:CLASS."""
    from MedSSLLib.methods import outside

    found = outside.FILE_AND_CLASS.match(text)
    return outside.named(found[0]) + text[found.end() :] if found else text


def _run_labels(args: argparse.Namespace, events: Events) -> Project:
    _fill_in(args)
    counts = tuple(text.strip() for text in args.counts.split(",") if text.strip())
    usable = [text == "all" or (text.isdigit() and int(text) > 0) for text in counts]
    if not counts or not all(usable):
        raise InputError(
            f"--counts {args.counts!r} is not a list of numbers", remedy="Example: --counts 1,2,8"
        )
    from MedSSLLib.benchmark.data import open_data, planned
    from MedSSLLib.benchmark.protocol import Protocol, run_labels
    from MedSSLLib.benchmark.recommendations import forecast

    protocol = Protocol(
        tuple(_row(text.strip()) for text in args.methods.split(",")),
        steps=args.steps,
        minutes=args.minutes_per_run,
        pretrain_steps=args.pretrain_steps,
        pretrain_minutes=args.pretrain_minutes,
        preset=args.preset,
        seed=args.seed,
        device=args.device,
        settings=parse_settings(args.set),
        pretrain_settings=parse_settings(args.pretrain_set),
        selftrain_settings=parse_settings(args.selftrain_set),
        tolerance=args.tolerance,
    )
    name = args.data.resolve().name
    project, choices = open_data(
        args.data, args.out / "project" / name, counts, args.choices, args.seed
    )
    scored = sum(bool(case.label) for case in project.test)
    say(args, forecast(protocol, len(planned(choices, protocol.rows)), scored))
    run_labels(project, choices, protocol, args.out / "results.json", events)
    return project


_USUAL: dict[str, tuple[Any, Any]] = {
    "counts": ("1,2,8", "2"),
    "choices": (3, 1),
    "preset": ("standard", "quick"),
    "minutes_per_run": (None, 0.5),
    "pretrain_minutes": (None, 0.5),
}
"""Options of ``labels`` that are not typed: their values, and those with ``--quick``."""
_OTHER_LENGTH = {"minutes_per_run": "steps", "pretrain_minutes": "pretrain_steps"}


def _fill_in(args: argparse.Namespace) -> None:
    """Give the options that were not typed their values."""
    for option, (usual, quick) in _USUAL.items():
        typed = getattr(args, option)
        steps = getattr(args, _OTHER_LENGTH.get(option, ""), None)
        if typed is None and steps is None:
            setattr(args, option, quick if args.quick else usual)


COMMANDS = (
    Command(
        "benchmark",
        "Compare ways of training on your own labelled data; measure speed.",
        _arguments,
        benchmark,
        "labels --data DIR|PROJECT --out DIR [options] | tables --results FILE... --out DIR | "
        "effort --data DIR|PROJECT --out DIR [options] | speed [--out DIR] | "
        "data NAME --out DIR [options]",
        (
            "medssl benchmark labels --data heart --quick --out first-look",
            "medssl benchmark labels --data heart --counts 1,2,8 --choices 3 --methods "
            "random,pgl,pgl+mixing --minutes-per-run 10 --pretrain-minutes 30 --out compared",
            "medssl benchmark tables --results a/results.json b/results.json --out both",
            "medssl benchmark effort --data heart --slices 12 --seeds 1 --out heart-effort",
            "medssl benchmark speed --out speed",
            "medssl benchmark data head-ct --out head-ct",
        ),
        "Trains every method on the same labelled volumes, scores test cases, and says which one "
        "to take, with its evidence, from 3 choices of labelled volumes up. Every run has the same "
        "length: +mixing (self-training) and +selftrain (with the local contrast, as published) go "
        "on from the row before them for as long again, pre-training comes before; -3-slices "
        "trains on three slices of every labelled volume. A count that splits.json lacks takes the "
        "first volumes of the next larger one. Takes hours, with --quick minutes; run it again to "
        "go on where it was stopped, or to add methods and counts; other settings need another "
        "--out. effort lets a scripted person draw and measures slices, voxels and contour until "
        "test cases reach a Dice of 0.70, 0.80 and 0.85. speed measures this computer, without "
        "data: what training, prediction and augmentation cost over the bare network and against "
        "MONAI, in some ten minutes. data makes a set of simulated subjects of one real body from "
        "files that small packages carry; its card.md says what is real.",
    ),
)
