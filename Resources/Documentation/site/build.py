"""Build the documents and the API reference as a static site, warnings as errors, without a
network.

    python Resources/Documentation/site/build.py [OUT] [--check]        (`make docs`; OUT is
    build/docs)

The README becomes the front page; pages of the API are made from the docstrings of every module. A
link, a reference or a picture that leads nowhere is an error.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FILES = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")
FACES = ("MedSSLLib", "MedSSLLib.api")  # names that are described where they are defined
NOT_SHOWN = ("__main__", ".monai_bundle_scripts", ".template_test")
FOLDERS = (
    "Resources",
    "Testing/bench",
    "Testing/faults",
    "Testing/gpu",
    "Testing/gui/slicer_bench",
)
PAGES = {
    "Guides": (
        "Resources/Documentation/Tutorial",
        "Resources/Documentation/Live",
        "Resources/Documentation/Python",
        "Resources/Documentation/Methods",
        "Resources/Documentation/Data",
        "Resources/Documentation/Results",
    ),
    "Behind it": (
        "Testing/bench/NOTES",
        "Testing/bench/peers/README",
        "Testing/faults/README",
        "Testing/gpu/README",
        "Testing/gui/slicer_bench/README",
        "CONTRIBUTING",
        "CHANGELOG",
        "api/index",
    ),
}
# the reference in parts: what each is, and its modules with all that is in them; the rest is inside
PARTS = {
    "Use it": (
        "What ``import MedSSLLib as medssl`` gives, for scripts and notebooks.",
        ("MedSSLLib.api", "MedSSLLib.core.errors", "MedSSLLib.project.project"),
    ),
    "Extend it": (
        "What a pre-training method of your own stands on, and those that there are.",
        (
            "MedSSLLib.methods",
            "MedSSLLib.data.batch",
            "MedSSLLib.networks",
            "MedSSLLib.losses",
            "MedSSLLib.config.run",
        ),
    ),
    "Inside": ("Everything else, for those who change MedSSL itself.", ("MedSSLLib",)),
}


def part_of(module: str) -> str:
    """The part of the reference that a module stands in."""
    if module == "MedSSLLib":
        return "Use it"
    return next(
        title
        for title, (_, tops) in PARTS.items()
        if any(module == top or module.startswith(f"{top}.") for top in tops)
    )


def modules() -> list[str]:
    """Every module of the library, packages before what is in them."""
    paths = sorted((ROOT / "MedSSLLib").rglob("*.py"))
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
    ]
    return sorted(name for name in names if not name.endswith(NOT_SHOWN))


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n")[0]


def write_sources(folder: Path) -> None:
    """What Sphinx reads: copies of the documents, the front page, and a page for every module."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("site", "__pycache__")
        )
    trees = "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in PAGES.items()
    )
    (folder / "index.md").write_text(
        (ROOT / "README.md").read_text(encoding="utf-8") + trees, encoding="utf-8"
    )
    names = modules()
    title = "API reference"
    text = f"{title}\n{'=' * len(title)}\n\nFrom the docstrings, in three parts.\n"
    for part, (purpose, _) in PARTS.items():
        inside = [name for name in names if part_of(name) == part]
        text += f"\n{part}\n{'-' * len(part)}\n\n{purpose}\n\n.. list-table::\n   :widths: auto\n\n"
        text += "".join(f"   * - :mod:`{name}`\n     - {summary(name)}\n" for name in inside)
        listed = "\n   ".join(inside)
        text += f"\n.. toctree::\n   :hidden:\n   :caption: {part}\n\n   {listed}\n"
    (folder / "api" / "index.rst").write_text(text, encoding="utf-8")
    for name in names:
        title = (name.removeprefix("MedSSLLib.") or name).replace(
            "_", "\\_"
        )  # short names fit beside the page
        heading = f"{title}\n{'=' * len(title)}\n\n"
        text = f"{heading}.. automodule:: {name}\n"
        if name not in FACES:
            text += "   :members:\n   :show-inheritance:\n"
        (folder / "api" / f"{name}.rst").write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    from sphinx.cmd.build import build_main

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "out", nargs="?", type=Path, default=ROOT / "build" / "docs", help="folder (%(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="look for broken links and references; write no page"
    )
    arguments = parser.parse_args(words)
    check, out = arguments.check, arguments.out.resolve()
    source = out.parent / "docs-source"
    write_sources(source)
    options = [
        "-b",
        "dummy" if check else "html",
        "-c",
        str(Path(__file__).parent),
        "-W",
        "--keep-going",
        "-n",
        "-E",
        "-q",
    ]
    code: int = build_main([*options, "-d", str(out.parent / "docs-cache"), str(source), str(out)])
    print(
        ("No broken link or reference" if check else f"Built: {out / 'index.html'}")
        if code == 0
        else "See above"
    )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
