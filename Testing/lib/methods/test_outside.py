"""Methods from a file and from another package: found, run, recorded, missed, never fetched by
themselves.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from MedSSLLib.cli import main as cli
from MedSSLLib.cli.new_method import write_method
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import read_events
from MedSSLLib.core.files import read_json
from MedSSLLib.methods import METHODS, known_methods, load_method, outside
from MedSSLLib.methods.options import configured
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import tiny_project

SMALL = ["--steps", "2", "--batch", "4", "--device", "cpu"]
SMALL += ["--set", "network.widths=[4,8]", "--set", "training.voxels=512"]
TINY = [*SMALL, "--dim", "2d"]


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch):
    monkeypatch.setattr(outside, "_added", {})


@pytest.fixture
def mine(tmp_path):
    """A method as ``new-method`` writes it; FILE.py:CLASS."""
    file, kind = write_method("mine", tmp_path)
    return f"{file}:{kind}"


def run(*words):
    return cli.main([str(word) for word in words])


def forgotten():
    """As in a new process, which was given no file."""
    outside._added.clear()


def stopped(project, word, name):
    """A run that was stopped before its last step."""
    assert run("pretrain", project.folder, "--method", word, "--name", name, *TINY) == 0
    folder = project.run_folder(name)
    (folder / "weights.safetensors").unlink()
    (folder / "metrics.json").unlink()
    assert list((folder / "checkpoint").glob("*.safetensors")), "it can go on"
    return folder


# ------------------------------------------------------------------------------------------------
# from a file


def test_a_method_in_a_file_trains_and_is_recorded(tmp_path, mine, capsys):
    project = tiny_project(tmp_path / "p")
    assert run("pretrain", project.folder, "--method", mine, *TINY) == 0, capsys.readouterr().err
    folder = project.run_folder("mine-1")
    recorded = read_json(folder / "config.json")
    file = mine.rpartition(":")[0]
    assert recorded["config"]["method"] == "mine"
    assert recorded["data"]["method"] == {
        "name": "mine",
        "class": "Mine",
        "file": file,
        "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
    }
    assert recorded["config"]["options"]["variance_weight"] == 1
    forgotten()
    words = [
        "finetune",
        project.folder,
        "--init",
        "mine-1",
        "--name",
        "after",
        *TINY[:2],
        *TINY[4:],
    ]
    assert run(*words) == 0, "its encoder needs no file"
    Path(file).unlink()
    page = tmp_path / "report.html"
    assert run("report", project.folder, "--run", "mine-1", "--out", page) == 0
    assert "variance_weight" in page.read_text(encoding="utf-8")
    assert run("show", project.folder, "mine-1") == 0
    assert run("status", project.folder) == 0


def test_what_new_method_writes_passes_its_own_test(tmp_path):
    file, kind = write_method("My idea", tmp_path)
    assert (file.name, kind) == ("my_idea.py", "MyIdea")
    test = tmp_path / "test_my_idea.py"
    for path in (file, test):
        assert "emplate" not in path.read_text(encoding="utf-8")
    told = tmp_path / "told.txt"
    process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(test, told))
    process.start()
    process.join()
    text = told.read_text(encoding="utf-8")
    assert process.exitcode == 0 and "4 passed" in text, text


def run_pytest(test, told):
    """Run pytest on a file; in a fork, which has torch already."""
    os.chdir(test.parent)
    sys.stdout = open(told, "w", encoding="utf-8")  # noqa: SIM115 (the process ends)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    code = pytest.main([*options, "--rootdir", str(test.parent), str(test)])
    sys.stdout.flush()
    os._exit(code)


@each("name", ["pgl", "Sim-CLR", "1st", "a/b", "", "class", "../up"])
def test_new_method_refuses_names_that_cannot_be(name, tmp_path):
    with pytest.raises(InputError, match="name|exists"):
        write_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_method_overwrites_nothing(tmp_path):
    (tmp_path / "test_mine.py").write_text("precious")
    assert run("new-method", "mine", "--out", tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


@each(
    ("text", "word", "finding"),
    [
        ("x = 1\n", "Mine", "has no class 'Mine'. It has no class derived from Method"),
        ("1 / 0\n", "Mine", "cannot be run (ZeroDivisionError: division by zero)"),
        ("raise SystemExit(0)\n", "Mine", "cannot be run (SystemExit: 0)"),
        ("import no_such_package\n", "Mine", "cannot be run (ModuleNotFoundError"),
        ("def f(:\n", "Mine", "cannot be run (SyntaxError"),
        ("class Mine: ...\n", "Mine", "'Mine' is no method"),
        ("from MedSSLLib.methods.byol import BYOL\n", "BYOL", "the name of a method of MedSSL"),
    ],
)
def test_a_file_that_gives_no_method_is_refused(text, word, finding, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert run("settings", "pretrain", "--method", f"{file}:{word}") == 2
    message = capsys.readouterr().err
    assert finding in message and str(file) in message and "Traceback" not in message
    assert known_methods() == tuple(METHODS)


def test_a_missing_file_and_an_unknown_method_are_usage_errors(tmp_path, capsys):
    assert run("settings", "pretrain", "--method", f"{tmp_path}/none.py:Mine") == 2
    assert "does not exist" in capsys.readouterr().err
    assert run("settings", "pretrain", "--method", "mine") == 2
    assert "neither a method (pgl, gcl" in capsys.readouterr().err


def test_a_changed_file_is_read_anew_and_leaves_no_compiled_copy(tmp_path, mine):
    """Within one second and with the same size, as Python's own cache would not notice."""
    file = Path(mine.rpartition(":")[0])
    assert load_method(outside.named(mine)).Config().variance_weight == 1
    before = outside.origin("mine")["sha256"]
    file.write_text(file.read_text().replace("1.0, ge=0", "2.0, ge=0"))
    assert load_method(outside.named(mine)).Config().variance_weight == 2
    assert outside.origin("mine")["sha256"] != before
    assert not list(tmp_path.rglob("__pycache__"))


def test_presets_and_options_of_a_file_count(mine, capsys):
    name = outside.named(mine)
    assert configured("pretrain", method=name, preset="paper").options == {"hidden": 2048}
    assert configured("pretrain", method=name, preset="quick").options == {}
    assert run("settings", "pretrain", "--method", mine, "--preset", "paper") == 0
    shown = capsys.readouterr().out
    assert "options.variance_weight" in shown and "2048" in shown


def test_the_benchmark_takes_a_file_for_a_row(mine):
    from MedSSLLib.benchmark.protocol import parse_row
    from MedSSLLib.cli.benchmark import _row

    row = _row(f"{mine}-frozen+mixup")
    assert row == "mine-frozen+mixup" and parse_row(row).encoder == "mine"
    assert _row("pgl-3-slices") == "pgl-3-slices"


# ------------------------------------------------------------------------------------------------
# going on


def test_a_run_goes_on_with_its_file_only(tmp_path, mine, capsys):
    project = tiny_project(tmp_path / "p")
    folder = stopped(project, mine, "broken")
    resume = ["pretrain", project.folder, "--name", "broken", "--resume", "--device", "cpu"]
    forgotten()
    assert run(*resume, "--method", "pgl") == 2
    message = capsys.readouterr().err
    assert f"Give it again: --method {mine}" in message and "sha" in message.lower()
    assert run(*resume, "--method", mine) == 0
    assert (folder / "weights.safetensors").exists()


def test_a_run_says_that_its_file_is_gone_or_has_changed(tmp_path, mine, capsys):
    project = tiny_project(tmp_path / "p")
    folder = stopped(project, mine, "broken")
    resume = ["pretrain", project.folder, "--name", "broken", "--resume", "--device", "cpu"]
    file = Path(mine.rpartition(":")[0])
    moved = file.rename(tmp_path / "moved.py")
    forgotten()
    assert run(*resume, "--method", "pgl") == 2
    assert "That file is gone: restore it" in capsys.readouterr().err
    moved.write_text(moved.read_text() + "\n# a later thought\n")
    assert run(*resume, "--method", f"{moved}:Mine") == 0
    warnings = [e["message"] for e in read_events(folder / "events.jsonl") if "message" in e]
    assert [text for text in warnings if "has changed since run broken began" in text]


# ------------------------------------------------------------------------------------------------
# never by itself


def test_what_a_run_records_is_never_imported(tmp_path, mine):
    """A run folder from somebody else names a file; nothing that opens it runs that file."""
    project = tiny_project(tmp_path / "p")
    folder = stopped(project, mine, "theirs")
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: ...\n")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["data"]["method"] |= {"file": str(trap), "class": "Trap"}
    for method in (f"{trap}:Trap", "trap", "trap:Trap", str(trap), f"{trap.stem}.py:Trap"):
        content["config"]["method"] = method
        path.write_text(json.dumps(content))
        forgotten()
        sys.path.insert(0, str(tmp_path))
        try:
            name = ["--name", "theirs", "--resume", "--device", "cpu"]
            assert run("pretrain", project.folder, "--method", "pgl", *name) == 2
            for words in (["show", project.folder, "theirs"], ["status", project.folder]):
                assert run(*words) == 0
            run("report", project.folder, "--run", "theirs", "--out", tmp_path / "r.html")
            run("finetune", project.folder, "--init", "theirs", *TINY)
        finally:
            sys.path.remove(str(tmp_path))
        with pytest.raises(InputError, match="does not exist"):
            load_method(method)
        assert not (tmp_path / "sprung").exists(), method
    with pytest.raises(InputError):
        outside.named(f"{trap}:Trap")
    assert (tmp_path / "sprung").exists(), "the trap works when a person names it"


# ------------------------------------------------------------------------------------------------
# from another package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """install(NAME, VERSION, LINE): a package in a folder on ``sys.path`` with an entry point."""

    def install(name, version, line):
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{outside.ENTRY_POINTS}]\n{line}\n")
        file, _ = write_method(f"{name}_code", folder)
        monkeypatch.syspath_prepend(str(folder))
        return file

    yield install
    for name in [name for name in sys.modules if name.endswith("_code")]:
        del sys.modules[name]


def test_a_package_offers_a_method(tmp_path, package, capsys):
    package("theirs", "1.2", "idea = theirs_code:TheirsCode")
    assert known_methods() == (*METHODS, "idea")
    assert "theirs_code" not in sys.modules, "knowing a name imports nothing"
    project = tiny_project(tmp_path / "p")
    assert run("pretrain", project.folder, "--method", "idea", *TINY) == 0
    recorded = read_json(project.run_folder("idea-1") / "config.json")
    assert recorded["data"]["method"] == {
        "name": "idea",
        "class": "theirs_code:TheirsCode",
        "package": "theirs",
        "version": "1.2",
    }


def test_a_package_that_is_gone_updated_or_twice_there(package, monkeypatch):
    began = {"name": "idea", "class": "a:B", "package": "theirs", "version": "1.0"}
    with pytest.raises(InputError, match=r"package theirs 1.0, .* pip install theirs==1.0"):
        outside.compare_origins("r", began, outside.origin("idea"))
    package("theirs", "1.2", "idea = theirs_code:TheirsCode")
    sentence = outside.compare_origins("r", began, outside.origin("idea"))
    assert "package theirs 1.0" in sentence and "package theirs 1.2" in sentence
    assert outside.compare_origins("r", began | {"version": "1.2"}, outside.origin("idea")) == ""
    package("others", "3", "idea = others_code:OthersCode")
    with pytest.raises(InputError, match="others and theirs both have a method 'idea'"):
        load_method("idea")
    with pytest.raises(InputError, match="learns by the method 'idea' of package one"):
        outside.compare_origins("r", began | {"package": "one"}, outside.origin("idea"))


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("idea = not_there:X", "cannot be imported .ModuleNotFoundError"),
        ("idea = theirs_code:low_variance", "is no method"),
    ],
)
def test_a_package_without_what_it_promises(line, finding, package):
    package("theirs", "1.2", line)
    with pytest.raises(InputError, match=finding):
        load_method("idea")


def test_no_package_takes_the_name_of_our_methods(package):
    package("theirs", "1.2", "pgl = theirs_code:TheirsCode")
    assert known_methods() == tuple(METHODS)
    assert load_method("pgl").__name__ == "PGL" and outside.origin("pgl") == {}


# ------------------------------------------------------------------------------------------------
# from a notebook


def test_a_class_is_a_method_too(mine):
    kind = load_method(outside.named(mine))
    forgotten()
    assert outside.add_class(kind) == "mine" and load_method("mine") is kind
    assert outside.origin("mine")["file"] == mine.rpartition(":")[0]
    typed = type("Typed", (kind,), {"__module__": "__main__notebook"})
    assert outside.add_class(typed) == "typed"
    assert outside.origin("typed") == {
        "name": "typed",
        "class": "Typed",
        "module": "__main__notebook",
    }
    with pytest.raises(InputError, match="is no method"):
        outside.add_class(RunConfig)
