"""House rules that no linter checks: sizes, light imports, one list of requirements, files that
must agree.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from MedSSLLib import __version__
from MedSSLLib.cli import doctor
from Testing.lib.case_helpers import each

ROOT = Path(__file__).parents[3]
SOURCES = sorted([*ROOT.glob("MedSSLLib/**/*.py"), *ROOT.glob("MedSSL/**/*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LIGHT = {  # module -> packages that importing it must not load
    "MedSSLLib": {"torch", "monai", "numpy", "SimpleITK", "pydantic", "rich", "matplotlib"},
    "MedSSLLib.cli.main": {
        "torch",
        "monai",
        "numpy",
        "SimpleITK",
        "pydantic",
        "rich",
        "matplotlib",
    },
    "MedSSLLib.cli.doctor": {
        "torch",
        "monai",
        "numpy",
        "SimpleITK",
        "pydantic",
        "rich",
        "matplotlib",
    },
    "MedSSLLib.core.events": {
        "torch",
        "monai",
        "numpy",
        "SimpleITK",
        "pydantic",
        "rich",
        "matplotlib",
    },
    "MedSSLLib.config.run": {"torch", "monai", "numpy", "SimpleITK", "matplotlib"},
    "MedSSLLib.methods": {"torch", "monai", "numpy", "SimpleITK"},
    "MedSSLLib.project.project": {"torch", "monai", "matplotlib", "blosc2", "nilearn"},
    "MedSSLLib.images.io": {"torch", "monai", "matplotlib", "blosc2", "nilearn"},
    "MedSSLLib.images.labels": {"torch", "monai", "matplotlib", "blosc2", "SimpleITK"},
}
FOREIGN = r"(eval|exec|compile)|(pickle|marshal|shelve|dill)\..*|os\.(system|popen)"
APPLICATION_FILE_SCOPE = {
    "slicer",
    "vtk",
    "qt",
    "ctk",
    "SimpleITK",
    "numpy",
    "MedSSLGui",
    "MedSSL",
    "MedSSLLib",
}


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _name(requirement: str) -> str:
    return re.split(r"[\s\[><=!~;]", requirement, maxsplit=1)[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, signature included."""
    assert function.end_lineno
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    inside = (
        docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
    )
    return function.end_lineno - function.lineno + 1 - inside


def test_sizes_stay_within_the_budget():
    """Files up to 400 lines, functions up to 50."""
    large = {}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 400:
            large[_relative(path)] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > 50:
                large[f"{_relative(path)}, {node.name}"] = _body_lines(node)
    assert not large, "split these"


def test_nothing_in_the_sources_runs_foreign_code():
    found = {_relative(path): _foreign(ast.parse(path.read_text("utf-8"))) for path in SOURCES}
    assert not {path: calls for path, calls in found.items() if calls}


@each(
    "code",
    [
        "eval(text)",
        "exec(text)",
        "compile(text, name, mode)",
        "pickle.load(file)",
        "marshal.loads(data)",
        "shelve.open(name)",
        "dill.loads(data)",
        "os.system(text)",
        "os.popen(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=shell)",
        "torch.load(file, weights_only=False)",
    ],
)
def test_what_runs_foreign_code_is_found(code):
    assert _foreign(ast.parse(f"def f():\n    return [{code}]\n")) == [code]


def test_what_runs_no_foreign_code_is_not_complained_about():
    code = "re.compile(a); run(b, shell=False); torch.load(c, weights_only=True); model.eval()"
    assert _foreign(ast.parse(code)) == []


def _foreign(tree: ast.Module) -> list[str]:
    """Calls that may run code that is not in the sources."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            re.fullmatch(FOREIGN, ast.unparse(node.func))
            or given.get("shell", "False") != "False"
            or given.get("weights_only", "True") != "True"
        ):
            found.append(ast.unparse(node))
    return found


@each("module", LIGHT)
def test_light_modules_stay_light(module):
    code = f"import sys, {module}; print(*(set(sys.modules) & set({sorted(LIGHT[module])!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_lightning_is_imported_by_trainings_alone():
    """It takes a second, which every prediction and evaluation would wait for."""
    early = set()
    for path in ROOT.glob("MedSSLLib/**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom | ast.Import) and "lightning" in ast.unparse(node):
                early.add(path.name)
    assert not early


def test_workers_that_commands_import_exist():
    """Commands import their workers when they run: a wrong name would be seen by a user only."""
    missing = set()
    for path in ROOT.glob("MedSSLLib/cli/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("MedSSLLib"):
                missing |= {f"{path.name}: {name}" for name in _not_there(node)}
    assert not missing


def _not_there(node: ast.ImportFrom) -> set[str]:
    """Names that an import from the library asks for and that do not exist."""
    assert node.module
    file = ROOT.joinpath(*node.module.split("."))
    source = file.with_suffix(".py")
    source = source if source.exists() else file / "__init__.py"
    there = _defined(source)
    asked = {alias.name for alias in node.names if not file.joinpath(f"{alias.name}.py").exists()}
    return {f"{node.module}.{name}" for name in asked - there}


def _defined(source: Path) -> set[str]:
    """Names that a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_application_side_imports_only_what_slicer_has_at_file_scope():
    strange = set()
    for path in ROOT.glob("MedSSL/**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            tops = {module.split(".")[0] for module in modules} - APPLICATION_FILE_SCOPE
            strange |= {f"{_relative(path)}: {top}" for top in tops - sys.stdlib_module_names}
    assert not strange


def test_the_doctor_asks_for_what_the_package_requires():
    wanted = {_name(text): text.split(">=")[1] for text in PROJECT["dependencies"]}
    assert wanted == doctor.REQUIRED
    extras = [
        text
        for extra in ("demo", "export", "tensorboard")
        for text in PROJECT["optional-dependencies"][extra]
    ]
    assert {_name(text): text.split(">=")[1] for text in extras} == {
        k: v[0] for k, v in doctor.OPTIONAL.items()
    }


def test_requirements_are_lower_bounds_only():
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for text in [*PROJECT["dependencies"], *extras]:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+>=[0-9.]+", text), text


def test_the_application_installs_the_same_but_never_what_slicer_brings():
    path = ROOT / "Resources" / "requirements.txt"
    if not path.exists():
        pytest.skip("the extension is not in this checkout")
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = {_name(line): line for line in lines if line}
    own = {"torch", "numpy", "SimpleITK", "pydicom"}
    assert not own & set(found)
    expected = {_name(text): text for text in PROJECT["dependencies"] if _name(text) not in own}
    assert found == expected


def test_constraints_pin_every_requirement_to_a_public_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    pinned = {_normal(name) for name in pins}
    assert {_normal(_name(text)) for text in [*PROJECT["dependencies"], *extras]} <= pinned


def test_the_installed_package_has_this_version_and_command():
    try:
        distribution = importlib.metadata.distribution("MedSSLLib")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from the sources without installing")
    assert distribution.version == __version__
    commands = {
        entry.name: entry.value
        for entry in distribution.entry_points
        if entry.group == "console_scripts"
    }
    assert commands == {"medssl": "MedSSLLib.__main__:main"}


def test_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {__version__}" in citation
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count(f"## {__version__}") <= 1


def test_commands_in_the_readme_exist():
    from MedSSLLib.cli import main as cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("  #")[0].split() for line in lines if line.startswith("medssl ")]
    assert calls, "the README shows how it is used"
    for words in calls:
        words = words[: words.index(">")] if ">" in words else words
        try:
            cli.build_parser().parse_args(words[1:])
        except SystemExit as stop:
            assert stop.code == 0, " ".join(words)


def test_the_readme_shows_the_targets_of_the_makefile():
    readme, makefile = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile")
    )
    for target in re.findall(r"(?:^|`)make ([\w-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_picture_shows_every_package_in_the_order_of_the_contract():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.split("```text")[1].split("```")[0].partition("MedSSLLib/")[2]
    shown = re.findall(r"^  (\w+)/ ", picture, re.MULTILINE)
    real = {path.parent.name for path in ROOT.glob("MedSSLLib/*/__init__.py")}
    assert set(shown) == real
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = tools["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["type"] == "layers")
    assert [name for name in layers if name in real] == shown


def test_no_folder_of_the_library_is_full():
    modules = [p.parent for p in ROOT.glob("MedSSLLib/**/*.py") if p.name != "__init__.py"]
    assert not {_relative(folder): n for folder, n in Counter(modules).items() if n > 12}


def test_no_path_of_a_machine_is_in_the_tree():
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("no git checkout")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".cff", ".ui", ".json"}
            and path.name != Path(__file__).name
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"(?<![\w.])/(work|root|farm)/\w", text), name
