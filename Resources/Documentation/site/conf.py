"""Settings of the documentation (Sphinx); build.py says how it is built."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from MedSSLLib import __version__  # noqa: E402

project, author, version, release = "MedSSL", "The MedSSL contributors", __version__, __version__
copyright = "the MedSSL contributors, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
include_patterns = [
    "index.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Resources/Documentation/*.md",
    "Testing/bench/**.md",
    "Testing/faults/*.md",
    "Testing/gpu/*.md",
    "Testing/gui/slicer_bench/*.md",
    "api/*.rst",
]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header"
]  # the README's table of pictures comes before its first sub-heading
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
html_theme = "furo"
html_title = "MedSSL"
html_logo = str(ROOT / "Resources" / "MedSSL.png")
html_favicon = html_logo
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


ELSEWHERE = ("pydantic.", "torch.", "enum.")  # base classes that have no page here


def plain_text_of_types(app, environment, node, content):
    """Types in signatures and base classes without a page here stay text; what a docstring refers
    to must exist.
    """
    return content if "refwarn" not in node or node["reftarget"].startswith(ELSEWHERE) else None


def whole_sentence(app, what, name, thing, options, lines):
    """Napoleon takes "Sides: in voxels." of an attribute for a type and its description; put it
    together again.
    """
    kinds = [n for n, line in enumerate(lines) if line.startswith(":type: ")]
    if what in ("attribute", "data", "property") and kinds:
        lines[0] = f"{lines[kinds[0]].removeprefix(':type: ')}: {lines[0]}"
        del lines[kinds[0]]


def setup(app):
    app.connect("missing-reference", plain_text_of_types)
    app.connect("autodoc-process-docstring", whole_sentence, priority=900)
