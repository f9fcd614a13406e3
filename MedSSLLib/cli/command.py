"""What a sub-command is, and the options that several of them share."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TextIO

from MedSSLLib.config.lengths import PRESETS
from MedSSLLib.core.errors import InputError, did_you_mean, printable
from MedSSLLib.core.events import Events

Run = Callable[[argparse.Namespace, Events], int | None]
SEL = "SEL is a comma-separated list of case names, @FILE with one name a line, or '' for none."


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Attributes:
        name: as typed.
        help: one line for the list of commands, also the head of its own help.
        arguments: adds its options to a parser.
        run: does the work; returns an exit code, or None for 0. Errors are raised, never printed.
        usage: what follows the name, in short.
        examples: complete command lines.
        detail: more text for its own help.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Run
    usage: str
    examples: tuple[str, ...]
    detail: str = ""


def output_options(parser: argparse.ArgumentParser, *, events: bool = True) -> None:
    """``--events --quiet --debug``."""
    group = parser.add_argument_group("output")
    if events:
        group.add_argument(
            "--events",
            metavar="-|FILE",
            help="write progress as JSON lines to stdout (-) or a file",
        )
    group.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def tolerance_option(parser: argparse.ArgumentParser) -> None:
    """``--tolerance`` of commands that score."""
    parser.add_argument(
        "--tolerance",
        type=positive(float),
        default=1.0,
        metavar="MM",
        help="tolerance of surface Dice (default: 1 mm)",
    )


def device_options(group: argparse._ArgumentGroup) -> None:
    """``--device --precision``."""
    group.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    group.add_argument(
        "--precision",
        choices=("auto", "32", "bf16", "16"),
        help="number format (default: auto: half precision on cards and, to train, CPUs that "
        "have it)",
    )


def training_options(
    parser: argparse.ArgumentParser,
    presets: Iterable[str] = PRESETS,
    lengths: str = "quick: a few minutes; standard (default): 15 minutes of pre-training, 10 of "
    "fine-tuning, 20 of self-training; overnight: 2, 1 and 7 hours; paper: the published scale, "
    "for gcl with SGD, for pgl with LARS",
) -> None:
    """The *common* options of commands that train.

    Args:
        parser: of the command.
        presets: that it has.
        lengths: what they are.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--name", metavar="RUN", help="name of the run folder (default: made from the method)"
    )
    group.add_argument(
        "--preset",
        choices=tuple(presets),
        default="standard",
        help=lengths,
    )
    group.add_argument(
        "--dim", choices=("auto", "2d", "3d"), help="slices or volumes (default: auto)"
    )
    _length_options(group)
    device_options(group)
    group.add_argument(
        "--devices", type=positive(int), metavar="N", help="number of devices (default: 1)"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change any setting; may be repeated ('medssl settings' lists them)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with an unfinished run (--name RUN, or the latest), for as long as it was to "
        "take",
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="also write scalars for TensorBoard"
    )
    output_options(parser)


def _length_options(group: argparse._ArgumentGroup) -> None:
    """``--steps --minutes --batch --seed``."""
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive(int), metavar="N", help="optimiser steps")
    length.add_argument(
        "--minutes",
        type=positive(float),
        metavar="M",
        help="training time; the schedule is fitted to it",
    )
    group.add_argument(
        "--batch", type=positive(int), metavar="N", help="samples a step, over all devices"
    )
    group.add_argument(
        "--seed", type=seed, metavar="N", help="seed of everything random (default: 0)"
    )


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type: a number greater than 0."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number greater than 0")
        return value

    return convert


def seed(text: str) -> int:
    """An argparse type: a whole number from 0, as every generator of random numbers takes it."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 (and below 2**63)")
    return value


def method(text: str) -> str:
    """An argparse type: a pre-training method by name, or ``FILE.py:CLASS``. Runs no file yet."""
    from MedSSLLib.methods import METHODS, known_methods
    from MedSSLLib.methods.outside import FILE_AND_CLASS

    if text in ("auto", *METHODS) or FILE_AND_CLASS.fullmatch(text) or text in known_methods():
        return text
    hint = did_you_mean(text, known_methods())
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a method ({', '.join(known_methods())}) nor FILE.py:CLASS. {hint}"
    )


def parse_settings(items: list[str]) -> dict[str, str]:
    """``["a.b=1"]`` -> ``{"a.b": "1"}``.

    Raises InputError for an item without ``=`` or a key given twice.
    """
    settings: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise InputError(
                f"--set {item!r} is not KEY=VALUE", remedy="Example: --set optimiser.lr=1e-3"
            )
        if key.strip() in settings:
            raise InputError(f"--set gives {key.strip()!r} twice", remedy="Keep one of them")
        settings[key.strip()] = value.strip()
    return settings


def print_json(value: object) -> None:
    """Print a value for programs."""
    import json

    from MedSSLLib.core.events import to_json

    print(json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False))


def for_terminal(text: str, stream: TextIO) -> str:
    """A line as a person reads it: control characters escaped, on a terminal folded at spaces.

    Lines with a command to copy stay whole.
    """
    text = printable(text)
    commands = ("medssl ", " -m pip ", "  ")
    if not stream.isatty() or any(command in text for command in commands):
        return text
    return folded(text, shutil.get_terminal_size().columns)


def folded(text: str, width: int) -> str:
    """A text in lines of `width` characters, broken at spaces alone."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def announce(args: argparse.Namespace, text: str) -> None:
    """The first line of a command that takes a moment to start, on stderr, unless ``--quiet``.

    To be said before PyTorch, MONAI or matplotlib are imported, which takes seconds.
    """
    if not args.quiet:
        print(for_terminal(text, sys.stderr), file=sys.stderr, flush=True)


def say(args: argparse.Namespace, text: str) -> None:
    """A result line for people, on stdout, unless ``--quiet``. Control characters are escaped."""
    if not args.quiet:
        print("\n".join(for_terminal(line, sys.stdout) for line in text.split("\n")), flush=True)
