"""``new-method``: a pre-training method of one's own to begin with, and its test."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path

from MedSSLLib.cli.command import Command, output_options, say
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events

_TEMPLATES = Path(__file__).parents[1] / "methods"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="such as my-idea; the class is then MyIdea")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder (default: the current one)"
    )
    output_options(parser, events=False)


def new_method(args: argparse.Namespace, events: Events) -> None:
    file, kind = write_method(args.name, args.out)
    say(args, f"Written: {file} and {file.with_name(f'test_{file.name}')}")
    say(args, f"Next: medssl pretrain PROJECT --method {file}:{kind}")


def write_method(name: str, folder: Path) -> tuple[Path, str]:
    """Write ``NAME.py`` and ``test_NAME.py``; returns the first file and the name of its class.

    Raises:
        InputError: the name cannot be that of a class, or is taken by a method or a file.
    """
    from MedSSLLib.core.files import write_text
    from MedSSLLib.methods import METHODS

    words = [word for word in re.split(r"[-_ ]+", name) if word]
    module = "_".join(words).lower()
    kind = "".join(word[:1].upper() + word[1:] for word in words)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", kind) or keyword.iskeyword(module):
        raise InputError(
            f"{name!r} cannot be the name of a method",
            remedy="Use letters and digits, such as my-idea",
        )
    if kind.lower() in METHODS:
        raise InputError(f"method {kind.lower()!r} exists", remedy="Choose another name")
    file = folder / f"{module}.py"
    test = folder / f"test_{module}.py"
    for path in (file, test):
        if path.exists():
            raise InputError("exists", file=path, remedy="Choose another name or --out")
    for source, path in (("template.py", file), ("template_test.py", test)):
        text = (_TEMPLATES / source).read_text(encoding="utf-8")
        text = text.replace("MedSSLLib.methods.template", module)
        write_text(path, text.replace("template", module).replace("Template", kind))
    return file, kind


COMMANDS = (
    Command(
        "new-method",
        "Write a pre-training method of your own to begin with.",
        _arguments,
        new_method,
        "NAME [--out DIR]",
        ("medssl new-method my-idea", "medssl new-method my-idea --out methods/"),
        "Writes my_idea.py, one file with settings, losses and a network that trains as it is, and "
        "test_my_idea.py. Change them, and learn by 'pretrain --method my_idea.py:MyIdea'. A file "
        "that you name is run with your rights: name only files that you trust.",
    ),
)
