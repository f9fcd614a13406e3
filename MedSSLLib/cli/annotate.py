"""``suggest``: which slices to annotate next; ``complete``: from a few to a volume; ``live``: the
model learns while a person draws.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from MedSSLLib.cli.command import (
    Command,
    announce,
    device_options,
    output_options,
    positive,
    say,
    seed,
    training_options,
)
from MedSSLLib.cli.train import check_start, configuration, given_by, warn_of_unused
from MedSSLLib.config.lengths import PRESET_STEPS
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events

if TYPE_CHECKING:
    from MedSSLLib.images.geometry import Geometry
    from MedSSLLib.project.project import Project

NICENESS = 5  # of 0 to 19: other programs come first
_STRATEGIES = ("hybrid", "coverage", "uncertainty", "even", "random")


def _suggest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "--budget", type=positive(int), required=True, metavar="N", help="number of slices"
    )
    parser.add_argument(
        "--run", metavar="RUN", help="a finished run: pre-trained (coverage), or trained (all)"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="RUN",
        help="a further trained run, repeatable: where the models disagree counts as unsure",
    )
    parser.add_argument(
        "--strategy",
        choices=_STRATEGIES,
        default="hybrid",
        help="represent all slices (coverage), where the model is unsure (uncertainty), both, of "
        "scans it doubts (hybrid, default), evenly spaced, or random",
    )
    parser.add_argument(
        "--per-case",
        type=positive(int),
        default=3,
        metavar="K",
        help="most new slices of one case (default: 3)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)"
    )
    parser.add_argument(
        "--flips",
        action="store_true",
        help="average predictions over mirrored images: 4 to 8 times slower",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file (default: PROJECT/suggestions.json)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    device_options(parser.add_argument_group("device"))
    output_options(parser)


def suggest(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    for run in (args.run, *args.also):
        if run:
            project.require_run(run)
    if args.run:
        announce(args, f"Looking at the slices of {args.project} with {args.run} ...")
    from MedSSLLib.active_learning.suggest import SUGGESTIONS_FILE, SuggestOptions, run_suggest
    from MedSSLLib.cli import tables
    from MedSSLLib.core.files import load_json

    options = SuggestOptions(
        args.budget,
        args.strategy,
        args.per_case,
        args.seed,
        args.flips,
        args.device or "auto",
        args.precision or "auto",
        tuple(args.also),
    )
    found = run_suggest(project, args.run, options, events, args.out)
    path = args.out or project.folder / SUGGESTIONS_FILE
    if args.json:
        print(json.dumps(load_json(path), indent=1, ensure_ascii=False))
        return
    rows, planes = [], []
    for item in found:
        plane, where = slice_words(_geometry(project, item.case), item.axis, item.index)
        rows.append((str(item.rank), item.case, where, item.reason))
        planes.append(plane)
    if not args.quiet:
        tables.print_table(("", "case", "slice", "why"), rows)
    say(args, f"Written to {tables.shown_path(path)}, where slices count from 0.")
    plane = max(planes, key=planes.count)
    say(
        args,
        "Next: draw them in 3D Slicer's module MedSSL; or elsewhere, and then\n"
        f"  medssl add {shlex.quote(str(args.project))} --labels FOLDER --drawn {plane}",
    )


def _geometry(project: Project, case: str) -> Geometry:
    from MedSSLLib.images.io import read_header

    return read_header(project.case(case).images[0])


_PLANES = (
    ("sagittal", "left of the rightmost"),
    ("coronal", "behind the foremost"),
    ("axial", "above the lowest"),
)
"""For slices across L, P and S: how they are called, and where the distance counts from."""


def slice_words(geometry: Geometry, axis: int, index: int) -> tuple[str, str]:
    """The plane of a slice, and ``"axial 6 of 35, 12 mm above the lowest"``.

    Args:
        geometry: of the scan.
        axis: the slice lies across it, 0 i, 1 j, 2 k.
        index: of the slice along it, from 0.
    """
    column = [row[axis] for row in geometry.matrix]
    across = max(range(3), key=lambda n: abs(column[n]))
    plane, side = _PLANES[across]
    count = geometry.size[axis]
    steps = index if column[across] > 0 else count - 1 - index
    distance = steps * geometry.spacing[axis]
    where = f"{distance:.0f} mm {side}" if steps else f"the {side.rpartition(' ')[2]}"
    return plane, f"{plane} {index + 1} of {count}, {where}"


def _complete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--case", metavar="C", help="the case to complete")
    parser.add_argument(
        "--init", metavar="RUN|FILE|none", help="pre-trained weights to start from (default: none)"
    )
    parser.add_argument(
        "--annotated-slices",
        type=positive(int),
        metavar="N",
        help="use only N slices of a full label, evenly spaced, to try it out",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for CASE.nii.gz (default: the run folder)"
    )
    training_options(
        parser, PRESET_STEPS["complete"], "100, 400 (standard, the default) or 4,000 steps"
    )


def complete(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Completing a volume of {args.project} ...")
    if not (args.case or args.resume):
        raise InputError(
            "complete needs a case", remedy="Give --case NAME; 'medssl status' lists the cases"
        )
    extra = {"options.case": project.case(args.case).name} if args.case else {}
    if args.out:
        extra["options.out"] = str(args.out.absolute())
    config = configuration(args, "supervised", extra)
    warn_of_unused(config, given_by(args, extra), project, events)
    from MedSSLLib.cli.tables import shown_path
    from MedSSLLib.finetuning.complete import run_complete

    say(args, f"Completed: {shown_path(run_complete(project, config, events))}")
    say(args, "Next: look at it and correct what is wrong; it is a suggestion, not a label.")


def _live_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "--init",
        metavar="RUN|FILE|none",
        help="weights to start from (default: the latest pre-trained encoder, if there is one)",
    )
    parser.add_argument("--case", metavar="C", help="the case that is looked at first")
    parser.add_argument(
        "--requests",
        metavar="-|FILE",
        help="take requests from standard input (-) or a file that grows, one a line",
    )
    training_options(parser, PRESET_STEPS["live"], "size of the network (default: standard)")


def live(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.core.files import FileLock
    from MedSSLLib.project.project import Project
    from MedSSLLib.project.runs import LIVE_LOCK

    project = Project.open(args.project)
    with FileLock(project.folder / LIVE_LOCK, timeout=0):
        pass  # a second process is refused before PyTorch is imported
    announce(args, f"Learning from what is drawn in {args.project} ...")
    check_start(project, args.init)
    if args.init is None and not args.resume:
        args.init = _latest_encoder(project)
        if args.init:
            announce(args, f"Starting from {args.init} (--init takes another, or none)")
    config = configuration(args, "supervised", {})
    warn_of_unused(config, given_by(args, {}), project, events)
    from MedSSLLib.live.live import run_live
    from MedSSLLib.live.requests import requests_from

    _let_others_first()
    source = requests_from(args.requests)
    folder = run_live(project, config, events, source, args.case or "", args.steps)
    if folder is None:
        say(args, "Nothing was drawn, so nothing was learnt.")
        return
    from MedSSLLib.cli.tables import shown_path
    from MedSSLLib.project.next_step import next_line

    say(args, f"Learnt: run {folder.name}. It is in {shown_path(folder)}")
    say(args, next_line(project, args.project, after="live", run=folder.name))


def _latest_encoder(project: Project) -> str | None:
    """The name of the newest finished pre-training run."""
    found = None
    for run in project.runs():
        settings = (run["config"] or {}).get("config") or {}
        if run["finished"] and settings.get("command") == "pretrain":
            found = str(run["name"])
    return found


def _let_others_first() -> None:
    """Lower the priority of this process, so that windows stay alive."""
    import psutil

    own = psutil.Process()
    try:
        if sys.platform == "win32":
            own.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            own.nice(max(own.nice(), NICENESS))
    except psutil.Error:
        return  # a system that does not allow it runs it as it is


COMMANDS = (
    Command(
        "suggest",
        "Say which slices to annotate next.",
        _suggest_arguments,
        suggest,
        "PROJECT --budget N [--run RUN] [options]",
        (
            "medssl suggest heart --budget 6",
            "medssl suggest heart --budget 6 --run learned",
            "medssl suggest heart --budget 12 --run first --strategy uncertainty --json",
            "medssl suggest heart --budget 12 --run from-pgl --also from-gcl",
        ),
        "Ranks slices of all cases but the test cases, with a reason each; labels are not read. "
        "Slices count from 0 "
        "on the axes i, j, k of the image, as in medssl.json. Annotated slices count as chosen. "
        "Without a run, "
        "hybrid is even; with a pre-training run it is coverage.",
    ),
    Command(
        "complete",
        "Fill in a volume between its annotated slices.",
        _complete_arguments,
        complete,
        "PROJECT --case C [options]",
        (
            "medssl complete heart --case case03 --init gcl-1",
            "medssl complete heart --case case03 --minutes 2 --out completed/",
            "medssl complete heart --case case17 --annotated-slices 3",
        ),
        "Trains on the annotated slices of that case, and combines the network with the shapes "
        "interpolated between "
        "them. Annotated slices stay exactly as drawn. Every other slice is a suggestion to be "
        "checked.",
    ),
    Command(
        "live",
        "Learn while you draw, and show at once what was learnt.",
        _live_arguments,
        live,
        "PROJECT [options]",
        (
            "medssl live heart --minutes 30",
            "medssl live heart --init gcl-1 --case case03 --requests - --events -",
            "medssl live heart --resume --name live-1",
        ),
        "Trains on the annotated slices of the project for as long as it runs, and takes in what "
        "is drawn, changed or removed meanwhile. Requests: show CASE [AXIS INDEX], suggest N, "
        "refresh, pause, resume, save NAME, stop. Answers are the events preview, suggestion, "
        "score and saved (--events). It rests when nothing changes and the loss is flat. Nothing "
        "that is drawn is ever changed, and a preview is never taken for a label.",
    ),
)
