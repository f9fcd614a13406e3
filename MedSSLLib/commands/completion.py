"""``complete``: from a few drawn slices of a volume to all of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from MedSSLLib.commands.base import Command, positive, say, training_options
from MedSSLLib.commands.training import configuration, warn_of_unused
from MedSSLLib.errors import InputError
from MedSSLLib.events import Events


def _complete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--case", metavar="C", help="the case to complete")
    parser.add_argument("--init", metavar="RUN|FILE|none", help="pre-trained weights to start from (default: none)")
    parser.add_argument(
        "--annotated-slices", type=positive(int), metavar="N",
        help="use only N slices of a full label, evenly spaced, to try it out",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for CASE.nii.gz (default: the run folder)")
    training_options(parser)


def complete(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project import Project

    project = Project.open(args.project)
    if not (args.case or args.resume):
        raise InputError("complete needs a case", remedy="Give --case NAME; 'medssl status' lists the cases")
    extra = {"options.case": project.case(args.case).name} if args.case else {}
    if args.out:
        extra["options.out"] = str(args.out.absolute())
    config = configuration(args, "supervised", extra)
    warn_of_unused(args, config, extra, project, events)
    from MedSSLLib.complete import run_complete

    say(args, f"Completed: {run_complete(project, config, events)}")


COMMANDS = (
    Command(
        "complete", "Fill in a volume between its annotated slices.", _complete_arguments, complete,
        "PROJECT --case C [options]",
        ("medssl complete heart --case case03 --init gcl-1",
         "medssl complete heart --case case03 --minutes 2 --out completed/",
         "medssl complete heart --case case17 --annotated-slices 3"),
        "Trains on the annotated slices of that case, and combines the network with the shapes interpolated between "
        "them. Annotated slices stay exactly as drawn. Every other slice is a suggestion to be checked.",
    ),
)  # fmt: skip
