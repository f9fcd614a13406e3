"""What PythonQt refuses, read from the source; the names of slicer, qt and ctk in use; files, sizes, texts."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = ROOT / "MedSSL"
SOURCES = sorted(MODULE.rglob("*.py"))
UI = sorted((MODULE / "Resources" / "UI").glob("*.ui"))
ALLOWED_AT_FILE_SCOPE = {"slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy", "MedSSLGui"}

# Every name of the application's Python that the module uses. A new one belongs here after a look into the
# documentation of the oldest and the newest supported Slicer.
CONTRACT = Path(__file__).with_name("contract.txt")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def dotted(node):
    """ "qt.Qt.ItemIsEnabled" of an attribute chain on a plain name, "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def problems(code):
    """What PythonQt would refuse in `code`, as (line, text)."""
    found = []
    for node in ast.walk(ast.parse(code)):
        name = dotted(node.func) if isinstance(node, ast.Call) else ""
        if (
            name.startswith(("qt.", "ctk.", "slicer.q"))
            and node.keywords
            and name.split(".")[-1][0].isupper()
            or (name.startswith(("qt.", "ctk.")) and getattr(node, "keywords", None))
        ):
            found.append((node.lineno, f"keyword arguments for {name}"))
        if isinstance(node, ast.Attribute) and re.match(r"qt\.(\w+\.)+\w+\.\w+$", dotted(node)):
            found.append((node.lineno, f"scoped enum {dotted(node)}"))
        if name in ("isinstance", "issubclass") and re.search(
            r"\bqt\.(QWidget|QAbstract\w+|QObject|QFrame)\b", ast.unparse(node)
        ):
            found.append((node.lineno, "isinstance with a C++ base class"))
        if isinstance(node, ast.Attribute) and dotted(node) in (
            "qt.QThread",
            "qt.QThreadPool",
            "qt.QRunnable",
        ):
            found.append((node.lineno, f"{dotted(node)} does not exist"))
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Attribute) and t.attr == "singleShot" for t in node.targets
        ):
            found.append((node.lineno, "singleShot cannot be assigned"))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "connect"
            and any(isinstance(a, ast.Lambda) and a.args.vararg for a in node.args)
        ):
            found.append((node.lineno, "*args in a slot: name the parameters"))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Call)
        ):
            if dotted(node.func.value.func).startswith(
                ("qt.Q", "ctk.ctk")
            ) and node.func.attr not in ("value",):
                found.append((node.lineno, "a call chained on a temporary"))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "_"
            and not (node.args and isinstance(node.args[0], ast.Constant))
        ):
            found.append((node.lineno, "only constants can be translated"))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "connect"
        ):
            found += [(node.lineno, text) for text in slot_problems(node)]
        if name == "qt.QProcess" and [dotted(each) for each in node.args] != ["slicer.app"]:
            found.append((node.lineno, "a process that the application does not own"))
        if isinstance(node, ast.Attribute) and dotted(node) == "qt.Signal":
            found.append((node.lineno, "a qt.Signal that lives at exit crashes Slicer"))
        if isinstance(node, ast.ClassDef) and "qt.QObject" in [dotted(b) for b in node.bases]:
            found.append((node.lineno, "a QObject of Python that lives at exit crashes Slicer"))
        if isinstance(node, ast.Attribute) and dotted(node) == "sys.executable":
            found.append((node.lineno, "sys.executable is empty in Slicer"))
    return found


def slot_problems(node):
    """What is risky about a connection: PythonQt takes a signal's first overload and passes what that one has."""
    for slot in node.args:
        if isinstance(slot, ast.Attribute) and slot.attr in ("emit", "start"):
            yield "connected to a C++ method: write a method of our own"
        if (
            isinstance(node.func.value, ast.Attribute)
            and node.func.value.attr == "finished"
            and (
                isinstance(node.func.value.value, ast.Name)
                and node.func.value.value.id == "process"
            )
            and not (isinstance(slot, ast.Lambda) and not slot.args.args)
        ):
            yield "QProcess.finished gives (code) in one version and (code, status) in another: take none"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_that_pythonqt_refuses(path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "qt.QPushButton(text='a')",
        "x = qt.Qt.ItemFlag.ItemIsEnabled",
        "isinstance(b, qt.QWidget)",
        "qt.QThread()",
        "timer.singleShot = True",
        "a.connect(lambda *args: f())",
        "qt.QTableWidget(1, 1).horizontalHeader()",
        "_(f'{x}')",
        "sys.executable",
        "class A(qt.QObject): pass",
        "class A: s = qt.Signal()",
        "a.changed.connect(self.other.emit)",
        "qt.QProcess()",
        "process.finished.connect(self._onFinished)",
        "process.finished.connect(lambda code: f(code))",
    ],
)
def test_the_check_itself_refuses(code):
    assert problems(code)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_file_scope_is_light_and_quiet(path):
    body = tree(path).body
    for node in body:
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else ([node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else [])
        )
        for name in names:
            top = name.split(".")[0]
            assert top in ALLOWED_AT_FILE_SCOPE or top in __import__("sys").stdlib_module_names, (
                f"{path.name}: {name}"
            )
        if isinstance(node, ast.Expr) and path.name != "__init__.py":
            assert isinstance(node.value, ast.Constant), (
                f"{path.name}:{node.lineno} runs something at file scope"
            )


def code_lines(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if text else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_budgets(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert code_lines(node) <= 50, f"{path.name}: {node.name} is too long"
            assert len(node.args.args) <= 7, f"{path.name}: {node.name} has too many arguments"


def used_names():
    """Dotted names of slicer, qt and ctk in the module: class or function, and class members."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            name = dotted(node) if isinstance(node, ast.Attribute) else ""
            if re.match(r"(slicer|qt|ctk)\.", name):
                found.add(".".join(name.split(".")[:3]))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slicer"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if not any(other.startswith(name + ".") for other in found)}


def test_the_contract_lists_every_name_in_use():
    listed = set(CONTRACT.read_text().split())
    assert used_names() - listed == set(), "names in use that the contract does not list"
    assert listed - used_names() == set(), "names in the contract that nothing uses"


def test_the_bench_has_every_name_in_use(application):
    import ctk
    import qt
    import slicer
    import slicer_bench

    slicer_bench.load_module(MODULE / "MedSSL.py")
    absent = {
        "slicer.packaging.load_requirements",
        "slicer.util.loadScene",
        "slicer.util.saveScene",
        "slicer.util.exit",
        "slicer.util.pip_install",
        "slicer.modules.medsslJobQueue",
        "slicer.modules.medsslLive",
        "slicer.modules.medsslReady",
        "slicer.packaging",
    }
    roots = {"qt": qt, "ctk": ctk, "slicer": slicer}
    missing = []
    for name in sorted(used_names() - absent):
        first, *rest = name.split(".")
        thing = roots[first]
        for part in rest:
            thing = getattr(thing, part, None)
        if thing is None:
            missing.append(name)
    assert missing == []


def widgets(path):
    return [node for node in ElementTree.parse(path).iter("widget")]


def properties(widget):
    return {
        node.get("name"): "".join(node.itertext()).strip() for node in widget.findall("property")
    }


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_every_control_explains_itself(path):
    for widget in widgets(path):
        kind = widget.get("class")
        if kind in (
            "QWidget",
            "QFrame",
            "QLabel",
            "QGroupBox",
            "qMRMLWidget",
            "ctkCollapsibleButton",
        ):
            continue
        assert properties(widget).get("toolTip"), (
            f"{path.name}: {widget.get('name')} has no tooltip"
        )


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_parameters_of_the_ui_exist(path):
    code = (MODULE / "MedSSLGui" / "parameters.py").read_text()
    for widget in widgets(path):
        name = properties(widget).get("SlicerParameterName")
        assert not name or re.search(rf"^    {name}: ", code, re.M), f"{path.name}: {name}"


def test_the_main_widgets_keep_their_names():
    names = {widget.get("name") for path in UI for widget in widgets(path)}
    names |= set(
        re.findall(r'setObjectName\("(\w+)"\)', "".join(path.read_text() for path in SOURCES))
    )
    assert {
        "pretrainButton",
        "fineTuneButton",
        "selfTrainButton",
        "cancelButton",
        "predictButton",
        "addVolumesButton",
        "markSliceButton",
        "projectPathEdit",
        "caseTable",
        "progressBar",
        "statusLabel",
    } <= names


def unknown_names(text):
    """Words in bold that no panel shows."""
    shown = {" ".join((node.text or "").split()) for path in UI for node in texts(path)}
    code = "".join(path.read_text() for path in SOURCES)
    found = [" ".join(word.split()) for word in re.findall(r"\*\*(.+?)\*\*", text, re.S)]
    return [word for word in found if f'_("{word}")' not in code and not named(word, shown)]


def named(word, shown):
    return word in {part.strip() for each in shown for part in (each, *re.split("[:◀▶]", each))}


def texts(path):
    return ElementTree.parse(path).iter("string")


def test_the_tutorial_names_only_what_there_is():
    tutorial = (ROOT / "Resources" / "Documentation" / "Tutorial.md").read_text(encoding="utf-8")
    names = {"MedSSL", "PGL", "GCL", "Live"}
    assert [word for word in unknown_names(tutorial) if word not in names] == []
    assert unknown_names("**Compare with: reference**") == ["Compare with: reference"]


def test_every_widget_the_code_names_is_in_a_ui_file():
    names = {widget.get("name") for path in UI for widget in widgets(path)}
    for path in SOURCES:
        for name in re.findall(r"\bui\.(\w+)\b", path.read_text()):
            assert name in names, f"{path.name}: {name}"
