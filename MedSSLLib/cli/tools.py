"""``runs``, ``show``, ``report``, ``demo``, ``settings``, ``doctor``: finding one's way."""

from __future__ import annotations

import argparse
from pathlib import Path

from MedSSLLib.cli.command import (
    Command,
    announce,
    method,
    output_options,
    positive,
    print_json,
    say,
    seed,
    tolerance_option,
)
from MedSSLLib.cli.train import TYPED
from MedSSLLib.config.lengths import PRESETS
from MedSSLLib.core.events import Events


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def runs(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    rows = [tables.run_row(run) for run in project.runs()]
    if args.json:
        print_json(rows)
        return
    tables.print_runs(rows)
    if not rows:
        say(args, "No runs yet.")
    say(args, next_line(project, args.project))


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("run", metavar="RUN", help="name of a run")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, the whole configuration included"
    )
    output_options(parser, events=False)


def show(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project
    from MedSSLLib.project.runs import summary

    project = Project.open(args.project)
    run = summary(project.require_run(args.run))
    if args.json:
        print_json(run)
        return
    tables.print_run(run)
    say(args, next_line(project, args.project))


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--run", required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="segmentations by this run, to score and show",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="labels that no training has read: scores the "
        "pseudo-labels of every round of self-training",
    )
    tolerance_option(parser)
    output_options(parser, events=False)


def report(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    project.require_run(args.run)
    announce(args, f"Writing the report of {args.run} ...")
    from MedSSLLib.reporting.run_report import write_run_report

    written = write_run_report(
        project,
        args.run,
        args.out,
        tolerance_mm=args.tolerance,
        predictions=args.predictions,
        references=args.references,
        events=events,
    )
    events.emit("done", command="report")  # bars stay above the last lines
    say(args, f"Report: {written}")
    say(args, "Next: open it in a browser")


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "for_command",
        choices=("pretrain", "finetune", "selftrain", "complete", "live"),
        metavar="COMMAND",
        help="pretrain, finetune, selftrain, complete or live",
    )
    parser.add_argument("--preset", choices=PRESETS, default="standard")
    parser.add_argument(
        "--method",
        type=method,
        default="pgl",
        metavar="METHOD|FILE.py:CLASS",
        help="whose own settings pretrain shows (default: pgl)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def settings(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.methods import known_methods, outside
    from MedSSLLib.methods.options import configured, own_options

    fixed = {
        "selftrain": "local-contrast",
        "finetune": "supervised",
        "complete": "supervised",
        "live": "supervised",
    }
    name = fixed.get(args.for_command) or outside.named(args.method)
    if args.for_command == "pretrain" and not args.json:
        others = ", ".join(other for other in known_methods() if other != name)
        print(f"options.* are those of --method {name}; see also --method {others}.", flush=True)
    config = configured(args.for_command, preset=args.preset, method=name)
    rows = [row for row in tables.setting_rows(config) if row[0] not in ("options", *TYPED)]
    rows += tables.setting_rows(own_options(args.for_command, name, config.options), "options.")
    if args.json:
        names = ("key", "value", "help")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    tables.print_table(("--set KEY", "value", "what it is"), rows)
    say(args, f"Next: medssl {args.for_command} PROJECT --set KEY=VALUE changes one")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def doctor(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.cli.doctor import as_text, examine

    announce(args, "Trying every package ...")
    facts = examine(Path.cwd())
    if args.json:
        print_json(facts)
    elif not (args.quiet and facts["ok"]):
        print(as_text(facts))
    return 0 if facts["ok"] else 1


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        default="simulated",
        metavar="WHICH",
        help="simulated (default, needs no network), hippocampus (downloaded), a set of `medssl "
        "benchmark data`, or a folder with images and labels",
    )
    parser.add_argument(
        "--budget",
        choices=("quick", "standard"),
        default="quick",
        help="a few minutes (default) or about half an hour",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="new folder (default: medssl-demo, medssl-demo-2 ...)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N"
    )
    output_options(parser)


def demo(args: argparse.Namespace, events: Events) -> None:
    out = args.out or _free_folder()
    announce(args, f"Demo in {out} ...")
    from MedSSLLib.cli import tables
    from MedSSLLib.demo.demo import run_demo

    result = run_demo(args.data, args.budget, out, events, device=args.device, seed=args.seed)
    if not args.quiet:
        tables.print_table(*result.table())
    say(args, result.verdict())
    say(args, f"Picture: {result.picture}")
    say(args, f"Report: {result.report}")
    say(args, "Next: medssl init heart --images scans/ begins with scans of your own")


def _free_folder() -> Path:
    number = 1
    while (folder := Path("medssl-demo" if number == 1 else f"medssl-demo-{number}")).exists():
        number += 1
    return folder


def data_set_arguments(data: argparse.ArgumentParser) -> None:
    """Of `medssl benchmark data`."""
    data.add_argument("name", metavar="NAME", help="chest-ct, spine-ct, spine-mr or head-ct")
    data.add_argument(
        "--subjects", type=positive(int), default=24, metavar="N", help="how many (default: 24)"
    )
    data.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)"
    )


def make_data_set(args: argparse.Namespace, events: Events) -> None:
    """`medssl benchmark data`: simulated subjects in a folder."""
    from MedSSLLib.demo.sets import write_sample_set

    def progress(done: int, total: int) -> None:
        events.progress("simulate", done, total)

    write_sample_set(args.name, args.out, subjects=args.subjects, seed=args.seed, progress=progress)
    events.emit("done", command="benchmark")
    say(args, f"What it is: {args.out / 'card.md'}")
    say(args, f"Next: medssl benchmark labels --data {args.out} --quick --out first-look")


COMMANDS = (
    Command(
        "runs",
        "List the runs of a project.",
        _runs_arguments,
        runs,
        "PROJECT [--json]",
        ("medssl runs heart", "medssl runs heart --json"),
    ),
    Command(
        "show",
        "Show one run: results, settings, files.",
        _show_arguments,
        show,
        "PROJECT RUN [--json]",
        ("medssl show heart finetune-1",),
    ),
    Command(
        "report",
        "Write a run's report as one HTML file.",
        _report_arguments,
        report,
        "PROJECT --run RUN --out FILE.html [options]",
        (
            "medssl report heart --run finetune-1 --out report.html",
            "medssl report heart --run finetune-1 --predictions segmentations/ --out report.html",
        ),
        "Curves, settings and environment; with --predictions also scores and overlays of the "
        "best, the median "
        "and the worst case. The file is self-contained.",
    ),
    Command(
        "demo",
        "See it work: a simulated cohort, a few annotated slices, a report.",
        _demo_arguments,
        demo,
        "[--data simulated|hippocampus|DIR] [--budget quick|standard] [--out DIR]",
        ("medssl demo", "medssl demo --data scans/ --budget standard --out heart-demo"),
        "Annotates 3 slices in each of 2 subjects, trains models for the same time, from slices "
        "alone and from the unlabelled scans too, segments other subjects, and writes tables, a "
        "picture and an HTML report. The standard budget takes half an hour and pre-trains.",
    ),
    Command(
        "settings",
        "List every setting that --set can change.",
        _settings_arguments,
        settings,
        "COMMAND [options]",
        ("medssl settings finetune", "medssl settings pretrain --method gcl --preset quick"),
    ),
    Command(
        "doctor",
        "Check packages, devices, memory and disk.",
        _doctor_arguments,
        doctor,
        "[--json]",
        ("medssl doctor", "medssl doctor --json"),
        "Says what is missing and the command that fixes it. Exit code 1 when training cannot "
        "work.",
    ),
)
