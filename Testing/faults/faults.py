"""Faults that are planted one at a time to test the tests; `faults.toml` has the list.

A fault is anchored by its function and by the tokens of the text that it replaces, so a change of
layout does not lose it. Where the code itself changes, its fault moves with it: a quick test and
`mutation.py` refuse a fault that no longer fits.
"""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, TESTS = "MedSSLLib", "Testing/lib"
LIST = Path(__file__).with_name("faults.toml")
_LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
}


class Span(NamedTuple):
    """Where a piece of text lies in its file, in characters."""

    start: int
    end: int


class Fault(NamedTuple):
    """One fault: what it does in words, where, and the test files that should notice.

    Attributes:
        topic, name: what it does.
        file: below MedSSLLib.
        function: qualified name of the function or class that it is in; '' for the whole file.
        old, new: the text as it is, and with the fault.
        tests: test files below Testing/lib that should notice, without `test_` and `.py`.
    """

    topic: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    function: str = ""

    @property
    def path(self) -> Path:
        return Path(LIBRARY, self.file)

    @property
    def test_files(self) -> tuple[str, ...]:
        """Raises ValueError for a file that is not there: pytest would fail, as if it had noticed
        the fault.
        """
        names = (test.rpartition("/") for test in self.tests)
        files = tuple(f"{TESTS}/{folder}/test_{name}.py" for folder, _, name in names)
        if missing := [file for file in files if not (ROOT / file).is_file()]:
            raise ValueError(f"fault {self.name!r}: there is no {', '.join(missing)}")
        return files

    def planted(self, text: str) -> str:
        """The source with the fault. Raises ValueError unless the old text occurs exactly once."""
        inside = span_of(text, self.function) if self.function else Span(0, len(text))
        found = [s for s in occurrences(text, self.old) if inside.start <= s.start < inside.end]
        if len(found) != 1 or self.old == self.new:
            where = f"{self.path}, {self.function or 'the whole file'}"
            raise ValueError(
                f"fault {self.name!r}: its text occurs {len(found)} times in {where}:\n{self.old}"
            )
        return replaced(text, found[0], self.new)


def faults() -> list[Fault]:
    """All faults, in the order of the list."""
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))["fault"]
    made = [Fault(**{**row, "tests": tuple(row["tests"])}) for row in rows]
    names = [fault.name for fault in made]
    if len(set(names)) != len(names):
        raise ValueError("two faults have the same name")
    return made


def occurrences(text: str, pattern: str) -> list[Span]:
    """Where the tokens of a pattern occur one after the other.

    A pattern that is no code of its own, part of a docstring say, is looked for as it stands.
    """
    wanted = [word for word, _ in _tokens(pattern)]
    have = _tokens(text)
    words = [word for word, _ in have]
    length = len(wanted)
    found = [
        Span(have[first][1].start, have[first + length - 1][1].end)
        for first in range(len(words) - length + 1)
        if length and words[first : first + length] == wanted
    ]
    if not found and text.count(pattern) == 1:
        start = text.index(pattern)
        found = [Span(start, start + len(pattern))]
    return found


def replaced(text: str, span: Span, new: str) -> str:
    """The text with another piece in a span; a statement that goes away leaves `pass`."""
    piece = new.strip()
    before, after = text[: span.start], text[span.end :]
    alone = not before.rpartition("\n")[2].strip() and not after.partition("\n")[0].strip()
    return before + (piece or ("pass" if alone else "")) + after


def span_of(text: str, name: str) -> Span:
    """The span of a function or class, by its qualified name. Raises ValueError without one."""
    starts = list(accumulate((len(line) for line in text.splitlines(True)), initial=0))
    first, *others = name.split(".")
    nodes = [node for node in _named(text) if node.name == first]
    for part in others:
        inside = [child for node in nodes for child in ast.walk(node)]
        nodes = [node for node in inside if getattr(node, "name", None) == part]
    places = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if len(places) != 1:
        raise ValueError(f"{len(places)} functions are named {name!r}")
    decorators = [decorator.lineno for decorator in places[0].decorator_list]
    return Span(starts[min([places[0].lineno, *decorators]) - 1], starts[places[0].end_lineno])


@lru_cache(maxsize=64)
def _named(text: str) -> list[Any]:
    """Every node of a source that has a name: most files have several faults."""
    return [node for node in ast.walk(ast.parse(text)) if hasattr(node, "name")]


@lru_cache(maxsize=64)
def _tokens(code: str) -> list[tuple[str, Span]]:
    """Words of a piece of code and where they lie, without layout, comments, trailing commas."""
    starts = list(accumulate((len(line) for line in code.splitlines(True)), initial=0))
    found: list[tuple[str, Span]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type in _LAYOUT or not token.string.strip():
                continue
            if token.string in (")", "]", "}") and found and found[-1][0] == ",":
                found.pop()
            (row, column), (last_row, last_column) = token.start, token.end
            span = Span(starts[row - 1] + column, starts[last_row - 1] + last_column)
            found.append((_word(token), span))
    except (tokenize.TokenError, IndentationError):
        pass  # a pattern may end within brackets
    return found


def _word(token: tokenize.TokenInfo) -> str:
    """A token's text; strings without regard to their quotes."""
    if token.type == tokenize.STRING:
        try:
            return repr(ast.literal_eval(token.string))
        except (SyntaxError, ValueError):
            pass  # a formatted string
    return token.string
