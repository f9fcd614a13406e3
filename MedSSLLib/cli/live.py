"""``live``: the model learns while a person draws."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from MedSSLLib.cli.command import Command, announce, say, training_options
from MedSSLLib.cli.train import check_start, configuration, given_by, warn_of_unused
from MedSSLLib.core.events import Events

if TYPE_CHECKING:
    from MedSSLLib.project.project import Project

NICENESS = 10  # of 0 to 19: other programs come first


def _arguments(parser: argparse.ArgumentParser) -> None:
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
    training_options(parser)


def live(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Learning from what is drawn in {args.project} ...")
    check_start(project, args.init)
    if args.init is None and not args.resume:
        args.init = _latest_encoder(project)
        if args.init:
            announce(args, f"Starting from {args.init} (--init takes another, or none)")
    config = configuration(args, "supervised", {})
    warn_of_unused(config, given_by(args, {}), project, events)
    _let_others_first()
    from MedSSLLib.live.live import run_live
    from MedSSLLib.live.requests import requests_from

    folder = run_live(project, config, events, requests_from(args.requests), args.case or "")
    if folder is None:
        say(args, "Nothing was drawn, so nothing was learnt.")
        return
    say(args, f"Learnt: run {folder.name}, which `medssl predict --run {folder.name}` takes.")


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
        "live",
        "Learn while you draw, and show at once what was learnt.",
        _arguments,
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
