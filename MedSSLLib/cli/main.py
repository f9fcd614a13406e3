"""The command line: parsing, exit codes, signals and streams.

No science, and nothing heavy at import time.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn

from MedSSLLib import __version__
from MedSSLLib.cli import annotate, apply, benchmark, new_method, panel, projects, tools, train
from MedSSLLib.cli.command import Command, folded, for_terminal
from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import (
    CancelledError,
    InputError,
    MedSSLError,
    did_you_mean,
    is_out_of_memory,
)
from MedSSLLib.core.events import Events, Sink
from MedSSLLib.core.packages import OPTIONAL, REQUIRED, install_command
from MedSSLLib.core.sinks import Bar, JsonLines, PlainLines, for_people

GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    ("A folder of scans", projects.COMMANDS),
    ("Annotating less", annotate.COMMANDS),
    ("Training", train.COMMANDS),
    ("Using a model", apply.COMMANDS),
    ("Comparing methods", (*benchmark.COMMANDS, *new_method.COMMANDS)),
    ("Finding your way", tools.COMMANDS),
)
DONE, FAILED, BAD_INPUT, CANCELLED, GUARD = range(5)
_SHORT_HELP = """\
medssl: learn from unlabelled scans, annotate a few slices, segment the rest.

Begin with a folder of scans:
  medssl init heart --images scans/         make a project of them
  medssl suggest heart --budget 3           which slices to annotate
  medssl finetune heart                     train on what is annotated
  medssl selftrain heart --from finetune-1  learn from the other scans too
  medssl predict heart --run selftrain-1 --out segmentations/

  medssl demo        see it work on simulated scans, in a few minutes
  medssl doctor      is everything installed?
  medssl --help      all commands; medssl COMMAND --help explains one"""
_PURPOSE = "Learn from unlabelled scans, annotate a few slices, segment the rest."
_EXAMPLES = """\
From a folder of scans to segmentations:
  medssl init heart --images scans/ --labels masks/
  medssl finetune heart --minutes 10 --name first
  medssl predict heart --run first --out segmentations/

Exit codes: 0 done, 1 failed, or some cases left out (the others are taken or
written; training only warns of them), 2 bad input or usage, 3 cancelled
(checkpoint kept), 4 stopped by a guard (loss not finite, collapse, no memory).
'medssl COMMAND --help' explains a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Failures are explained on stderr, never raised."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not (sys.argv[1:] if argv is None else argv):
        print(_SHORT_HELP, file=sys.stderr)
        return BAD_INPUT
    parser = build_parser()
    try:
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            _refuse(parser, args.command, unknown)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    try:
        return _run(args)
    except BrokenPipeError:  # the reader of our output has enough, as in `medssl runs P | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint about an unknown word names the word that was probably meant."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        hint = did_you_mean(str(value), known)
        if isinstance(action, argparse._SubParsersAction):
            finding = f"{value!r} is no command. {hint or 'medssl --help lists them.'}"
        else:
            finding = f"{value!r} is none of {', '.join(known)}. {hint}"
        raise argparse.ArgumentError(action, finding.rstrip())

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        text = f"{self.prog}: error: {message}"
        if sys.stderr.isatty():
            text = folded(text, shutil.get_terminal_size().columns)
        self.exit(BAD_INPUT, f"{text}\n")


def _refuse(parser: argparse.ArgumentParser, command: str, unknown: list[str]) -> None:
    """Leave with the usage of the command, and the option that was probably meant."""
    (chosen,) = _within(parser, command)
    known = _options(chosen)
    name = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
    hint = did_you_mean(name, sorted(known)) if name else ""
    chosen.error(f"unrecognized arguments: {' '.join(unknown)}. {hint}".rstrip(". "))


def _within(parser: argparse.ArgumentParser, name: str = "") -> list[argparse.ArgumentParser]:
    """The parsers of the sub-commands, or that of one."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [sub for key, sub in action.choices.items() if name in ("", key)]
    return found


def _options(parser: argparse.ArgumentParser) -> set[str]:
    own = {text for action in parser._actions for text in action.option_strings}
    return own.union(*map(_options, _within(parser)))


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``medssl`` with every sub-command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "medssl",
        usage="medssl COMMAND ...",
        epilog=_EXAMPLES,
        formatter_class=raw,
        allow_abbrev=False,
        description=f"{_PURPOSE}\n\n{_command_list()}",
    )
    parser.add_argument("--version", action="version", version=f"medssl {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="medssl"
    )
    for _, group in (*GROUPS, ("", panel.HIDDEN)):
        for command in group:
            examples = "\n".join(["examples:", *(f"  {line}" for line in command.examples)])
            sub = commands.add_parser(
                command.name,
                epilog=examples,
                formatter_class=raw,
                allow_abbrev=False,
                usage=_usage(command),
                description="\n".join(filter(None, (command.help, wrapped(command.detail)))),
            )
            command.arguments(sub)
            sub.set_defaults(work=command.run)
    return parser


def _command_list() -> str:
    lines = []
    for title, group in GROUPS:
        lines += [f"{title}:", *(f"  {command.name:<11}{command.help}" for command in group), ""]
    return "\n".join(lines).rstrip()


def wrapped(text: str) -> str:
    """Fold a paragraph for help texts, as wide as argparse folds those of options."""
    return "\n" + textwrap.fill(text, _help_width()) if text else ""


def _usage(command: Command) -> str:
    """``medssl NAME ...``, folded below the name."""
    start = f"medssl {command.name} "
    indent = " " * len(f"usage: {start}")
    lines = folded(command.usage, max(30, _help_width() - len(indent)))
    return start + lines.replace("\n", f"\n{indent}")


def _help_width() -> int:
    return min(100, max(40, shutil.get_terminal_size().columns - 2))


def _scalars(folder: Path) -> Sink:
    """The sink of ``--tensorboard``."""
    from MedSSLLib.reporting.tensorboard import TensorBoardScalars

    return TensorBoardScalars(folder)


def _run(args: argparse.Namespace) -> int:
    events_to = getattr(args, "events", None)
    own_stdout = private_stdout() if events_to == "-" else contextlib.nullcontext(sys.stdout)
    with own_stdout as stdout:
        events = Events(of_run=[_scalars] if getattr(args, "tensorboard", False) else [])
        try:
            with interrupts.on_signals(lambda error: _failed(error, args, events)), events:
                for sink in _sinks(args, events_to, stdout):
                    events.add(sink)
                return _guarded(args, events)
        except (
            MedSSLError,
            CancelledError,
        ) as error:  # the events could not be opened or delivered
            return _complain(error, args.debug)


def _guarded(args: argparse.Namespace, events: Events) -> int:
    """Run the command; a failure becomes an event, a message and an exit code."""
    try:
        code = args.work(args, events)
        if hasattr(args, "events") and events.last_kind != "done":
            events.emit("done", command=args.command)
        return code or DONE
    except BrokenPipeError:
        raise
    except (Exception, CancelledError, KeyboardInterrupt) as error:
        with interrupts.deferred():  # said once: a second Ctrl-C comes too late
            return _failed(error, args, events)


def _failed(error: BaseException, args: argparse.Namespace, events: Events) -> int:
    """Make an event and a message of an error; returns the exit code."""
    code, message = explain(error)
    with contextlib.suppress(MedSSLError, CancelledError):
        events.emit("error", message=message, exit_code=code, where=_place(error))
    events.close()
    return _complain(error, args.debug)


def _complain(error: BaseException, debug: bool) -> int:
    code, message = explain(error)
    if code == CANCELLED and _is_helper():
        return code  # Ctrl-C reaches every process of a parallel run; one line says it
    if debug:
        traceback.print_exception(error)
    lines = f"medssl: {message}".splitlines()
    text = "\n".join(for_terminal(line, sys.stderr) for line in lines)
    print(text, file=sys.stderr, flush=True)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error: the one place where they are decided."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, (MedSSLError, CancelledError)):
        return error.exit_code, text
    if isinstance(error, KeyboardInterrupt) or _cut_short(error):
        return CANCELLED, "Cancelled."
    if is_out_of_memory(error):
        text = text.split("\n")[0]
        advice = "Use a smaller --batch, or a smaller patch with --set training.voxels=N."
        return GUARD, f"Out of memory ({text or kind}). {advice}"
    if isinstance(error, ModuleNotFoundError):
        return FAILED, _explain_missing(error)
    if isinstance(error, OSError):
        return FAILED, _explain_os_error(error)
    return (
        FAILED,
        f"Unexpected {kind}: {text}\nPlease report it, with the traceback that --debug shows.",
    )


def _explain_missing(error: ModuleNotFoundError) -> str:
    """What installs a package; of those that nobody asked for, who knows."""
    name = (error.name or "").partition(".")[0].replace("_", "-")
    needed = REQUIRED | {optional: version for optional, (version, _) in OPTIONAL.items()}
    known = {package.lower(): package for package in needed}
    if name.lower() not in known:
        return f"The package {error.name} is missing. 'medssl doctor' looks for what is."
    package = known[name.lower()]
    remedy = install_command(f"{package}>={needed[package]}")
    return f"The package {package} is missing. Install it: {remedy}"


def _cut_short(error: BaseException) -> bool:
    """Whether a library turned the stop of its work into an error of its own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (CancelledError, OSError)):
        seen = seen.__cause__ or seen.__context__
    return isinstance(seen, CancelledError)


def _explain_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full. Free some space and run the command again."
    return f"{where}{error.strerror or error}."


def _place(error: BaseException) -> str:
    """File, line and function where an error arose.

    So a log without a traceback still says where.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"


def _is_helper() -> bool:
    """Whether this is not the first process of a parallel run."""
    return any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK"))


def _sinks(
    args: argparse.Namespace, events_to: str | None, stdout: IO[str]
) -> Iterator[JsonLines | PlainLines | Bar]:
    """Where events go besides the run folder. In a parallel run only the first process speaks."""
    if _is_helper():
        args.quiet = True
        return
    if events_to == "-":
        yield JsonLines.to_stream(stdout)
    elif events_to:
        try:
            yield JsonLines.to_file(Path(events_to))
        except OSError as error:
            raise InputError(
                f"--events cannot be written ({error.strerror})", file=events_to
            ) from None
    yield for_people(quiet=args.quiet)


@contextlib.contextmanager
def private_stdout() -> Iterator[IO[str]]:
    """Yield the real stdout, for events alone.

    Whatever else prints here or in children goes to stderr.
    """
    sys.stdout.flush()
    try:
        real = sys.stdout.fileno() == 1
    except (AttributeError, OSError, ValueError):
        real = False
    if not real:
        stream = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
        return
    copy = os.dup(1)
    os.dup2(2, 1)
    try:
        with (
            open(copy, "w", encoding="utf-8", closefd=False) as own,
            contextlib.redirect_stdout(sys.stderr),
        ):
            yield own
    finally:
        os.dup2(copy, 1)
        os.close(copy)
