"""``settings``, ``doctor``, ``demo``: finding one's way, and checking this computer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from MedSSLLib.commands.base import Command, output_options
from MedSSLLib.events import Events


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("for_command", choices=("pretrain", "finetune", "selftrain"), metavar="COMMAND",
                        help="pretrain, finetune or selftrain")  # fmt: skip
    parser.add_argument("--preset", choices=("quick", "standard", "paper"), default="standard")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def settings(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.commands import tables
    from MedSSLLib.config import RunConfig

    rows = tables.setting_rows(RunConfig.build(args.for_command, preset=args.preset))
    if args.json:
        print(json.dumps([dict(zip(("key", "value", "help"), row, strict=True)) for row in rows], indent=1))
    else:
        tables.print_table(("--set KEY", "value", "what it is"), rows)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def doctor(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.doctor import as_text, examine

    facts = examine(Path.cwd())
    if args.json:
        print(json.dumps(facts, indent=1))
    elif not (args.quiet and facts["ok"]):
        print(as_text(facts))
    return 0 if facts["ok"] else 1


COMMANDS = (
    Command(
        "settings", "List every setting that --set can change.", _settings_arguments, settings,
        "COMMAND [options]",
        ("medssl settings finetune", "medssl settings pretrain --preset quick"),
    ),
    Command(
        "doctor", "Check packages, devices, memory and disk.", _doctor_arguments, doctor, "[--json]",
        ("medssl doctor", "medssl doctor --json"),
        "Says what is missing and the command that fixes it. Exit code 1 when training cannot work.",
    ),
)  # fmt: skip
