"""What makes the library easy to read: a name means one thing, lines are short, loops are loops."""

import ast
from collections import defaultdict
from pathlib import Path

import MedSSLLib

ROOT = Path(__file__).parents[3]
SOURCES = sorted(ROOT.glob("MedSSLLib/**/*.py"))
# what each of several modules has to offer; the functions of the face are named after the commands
SHARED = {"COMMANDS", "main", *MedSSLLib.__all__}
DENSITY = 70  # comprehensions and conditional expressions a thousand lines of code
WIDTH = 40  # characters a line of code, without its indentation
DENSE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)


def test_a_public_name_is_defined_in_one_place():
    places = defaultdict(list)
    for path in SOURCES:
        for name in public_names(ast.parse(path.read_text(encoding="utf-8"))):
            places[name].append(path.relative_to(ROOT).as_posix())
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not {name: where for name, where in twice.items() if name not in SHARED}


def test_lines_are_short_and_loops_are_loops():
    lines = characters = dense = 0
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        code = code_lines(text)
        lines += len(code)
        characters += sum(map(len, code))
        dense += sum(isinstance(node, DENSE) for node in ast.walk(ast.parse(text)))
    assert characters / lines <= WIDTH
    assert 1000 * dense / lines <= DENSITY


def test_what_is_counted():
    text = '"""A module.\n\nOf two names."""\n\n# why\nA, _B = 1, 2  # two\n\n\n'
    text += 'def f():\n    "It."\n    A = 3\n'
    assert public_names(ast.parse(text)) == {"A", "f"}
    assert code_lines(text) == ["A, _B = 1, 2  # two", "def f():", "A = 3"]


def public_names(tree: ast.Module) -> set[str]:
    """Functions, classes and values that a module defines at its top level, without imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inside = [part for target in targets for part in ast.walk(target)]
            names |= {part.id for part in inside if isinstance(part, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def code_lines(text: str) -> list[str]:
    """Lines without their indentation; comments, empty lines and docstrings are left out."""
    words = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else ():
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                words |= set(range(part.lineno, part.end_lineno + 1))
    lines = [line.strip() for line in text.splitlines()]
    return [
        line
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#") and number not in words
    ]
