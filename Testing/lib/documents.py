"""Snippets of the documents: fenced blocks, what they call, and the options that commands have."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "Resources" / "Documentation").glob("*.md")),
]
SHELL = {"sh", "bash", "console", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the line where the text begins."""

    language: str
    text: str
    line: int


def blocks(text: str, language: str = "") -> list[Block]:
    """Fenced blocks of a Markdown text, of one language if it is given."""
    pattern = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
    found = [Block(m[2], m[3], text.count("\n", 0, m.start(3)) + 1) for m in pattern.finditer(text)]
    return [block for block in found if language in ("", block.language)]


def shell_lines(text: str) -> list[str]:
    """Command lines of a document's shell blocks and of its indented code, continuations joined,
    comments gone.
    """
    code = [block.text for block in blocks(text) if block.language in SHELL]
    code += re.findall(
        r"(?:^(?: {4}|\t)\S.*\n?)+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    lines = [line.strip() for part in code for line in part.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def calls(line: str) -> list[list[str]]:
    """The words after each ``medssl`` (or ``python -m MedSSLLib``) of a line, up to a pipe,
    redirection or comment.
    """
    words = shlex.split(line, comments=True)
    found = []
    for index, word in enumerate(words):
        module = words[index - 2 : index + 1] == ["python", "-m", "MedSSLLib"]
        if module or (
            word == "medssl"
            and (index == 0 or words[index - 1] in ("&&", ";", "|") or "=" in words[0])
        ):
            rest = words[index + 1 :]
            ends = [n for n, text in enumerate(rest) if text in ("|", ">", ">>", "&&", ";", "2>")]
            found.append(rest[: ends[0]] if ends else rest)
    return found


def inline_code(text: str) -> list[str]:
    """Inline code of a Markdown text, or of a docstring with double backquotes, lines joined."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(part.split()) for part in re.findall(r"(?<!`)`{1,2}([^`]+)`{1,2}(?!`)", prose)]


def docstrings(folder: Path) -> dict[str, str]:
    """``FILE:LINE`` to docstring, of every module, class and function below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                found[f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"] = text
    return found


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The sub-commands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All option strings of a parser and of those below it."""
    own = {text for action in parser._actions for text in action.option_strings}
    return own.union(*(options(sub) for sub in sub_parsers(parser).values()))
