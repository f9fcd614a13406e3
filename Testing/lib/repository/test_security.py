"""Files from strangers: no code of theirs runs, no path of theirs leaves the project, no text of
theirs is markup.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import write_json
from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import tiny_project

ROOT = Path(__file__).parents[3]
SOURCES = sorted([*ROOT.glob("MedSSLLib/**/*.py"), *ROOT.glob("MedSSL/**/*.py")])


class Bomb:
    """Pickled, this makes a file when it is read back."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("security"), 3)


def torch_file(path: Path, content: object) -> None:
    torch.save(content, path)


BOMBS = {
    "pickle": lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
    "torch": lambda path, bomb: torch_file(path, {"encoder.a": bomb}),
    "old torch": lambda path, bomb: torch.save(
        {"a": bomb}, path, _use_new_zipfile_serialization=False
    ),
    "zip": lambda path, bomb: zipfile.ZipFile(path, "w").writestr(
        "archive/data.pkl", pickle.dumps(bomb)
    ),
}


@each("kind", BOMBS)
@each("name", ["x.safetensors", "x.pt"])
def test_no_code_in_a_weight_file_runs(project, tmp_path, kind, name, capsys):
    mark = tmp_path / "code-ran"
    BOMBS[kind](tmp_path / name, Bomb(mark))
    mark.unlink(missing_ok=True)
    words = [
        "finetune",
        str(project.folder),
        "--init",
        str(tmp_path / name),
        "--dim",
        "2d",
        "--device",
        "cpu",
    ]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert name in message and "Traceback" not in message and "Unexpected" not in message
    assert not mark.exists() and not [
        run for run in project.runs() if run["name"].startswith("finetune-")
    ]


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "longer than the file": safetensors({"a": ENTRY}, bytes(8), 10**12),
    "longer than any memory": safetensors({}, b"", 2**64 - 1),
    "offsets outside": safetensors({"a": ENTRY | {"data_offsets": [0, 10**12]}}, bytes(8)),
    "offsets backwards": safetensors({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)),
    "overlap": safetensors({"a": ENTRY, "b": ENTRY}, bytes(8)),
    "size of the moon": safetensors({"a": ENTRY | {"shape": [2**40, 2**40]}}, bytes(8)),
    "nested": b"\x10\x27\0\0\0\0\0\0" + b"[" * 10_000,
    "unknown type": safetensors({"a": ENTRY | {"dtype": "PICKLE"}}, bytes(8)),
    "facts that are no object": safetensors(
        {"__metadata__": {"facts": "[1]"}, "a": ENTRY}, bytes(8)
    ),
    "facts nested too deep": safetensors(
        {"__metadata__": {"facts": "[" * 99_999}, "a": ENTRY}, bytes(8)
    ),
    "a version of words": safetensors(
        {"__metadata__": {"format_version": "two"}, "a": ENTRY}, bytes(8)
    ),
}


@each("kind", HEADERS)
def test_malicious_headers_of_weight_files_are_refused(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[kind])
    with pytest.raises(InputError, match="x.safetensors: cannot be read as safetensors"):
        load_tensors(path)


def test_a_checkpoint_that_fits_nothing_is_bad_input_and_stays(project, capsys):
    words = [
        "finetune",
        str(project.folder),
        "--dim",
        "2d",
        "--batch",
        "2",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--set",
        "network.widths=[4,8]",
        "--set",
        "training.voxels=512",
        "--name",
        "swapped",
    ]
    assert main(words) == 0
    folder = project.run_folder("swapped")
    (folder / "weights.safetensors").unlink()
    for path, facts in (
        ("supervised", {"state": {}}),
        ("supervised", {}),
        ("supervised", {"state": {"step": "x"}}),
    ):
        (checkpoint,) = (folder / "checkpoint").glob("*.safetensors")
        save_tensors(checkpoint, {"module.a": torch.ones(1)}, facts)
        assert main(["finetune", str(project.folder), "--resume", "--name", "swapped"]) == 2, path
        message = capsys.readouterr().err
        assert checkpoint.name in message and "Unexpected" not in message and checkpoint.exists()


@each("name", ["../out", "/tmp/out", "a/../../out", "..", "a/b", "C:\\out", "~root", "a\0b"])
@each("command", ["finetune", "predict", "show", "report"])
def test_run_names_stay_inside_the_project(project, tmp_path, name, command, capsys):
    words = {
        "finetune": ["--name", name],
        "predict": ["--run", name, "--out", str(tmp_path / "o")],
        "show": [name],
        "report": ["--run", name, "--out", str(tmp_path / "r.html")],
    }[command]
    before = {path for path in project.folder.parent.rglob("*") if "runs" not in path.parts}
    assert main([command, str(project.folder), *words]) == 2
    assert "name" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert before == {path for path in project.folder.parent.rglob("*") if "runs" not in path.parts}


def test_links_in_a_project_are_not_written_through(project, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (project.folder / "runs").mkdir(exist_ok=True)
    (project.folder / "runs" / "link").symlink_to(outside)
    assert main(["finetune", str(project.folder), "--name", "link", "--device", "cpu"]) == 2
    assert "outside the project" in capsys.readouterr().err
    write_json(tmp_path / "a.json", {"old": 1})
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    write_json(tmp_path / "b.json", {"new": 1})
    assert (
        json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
        and not (tmp_path / "b.json").is_symlink()
    )
    assert {p.name for p in outside.iterdir()} == {"precious"}
    (project.folder / "runs" / "link").unlink()


@each(
    "name", ["..", "../a", "/a", "a/b", "a\\b", "C:a", "a\nb", "\u202ea", "con", ".", "@a", "-rf"]
)
def test_case_names_of_a_manifest_stay_inside(project, tmp_path, name, capsys):
    content = json.loads((project.folder / "medssl.json").read_text())
    content["training"][0]["name"] = name
    write_json(tmp_path / "p" / "medssl.json", content)
    assert main(["status", str(tmp_path / "p")]) == 2
    message = capsys.readouterr().err
    assert "name" in message and "\n" not in message.strip() and "\u202e" not in message


def test_text_from_files_is_shown_literally_on_the_terminal(project, capsys):
    content = json.loads((project.folder / "medssl.json").read_text())
    content["training"][0]["metadata"] = {"[bold]x[/bold] \x1b[31m <script>": "y"}
    write_json(project.folder / "medssl.json", content)
    assert main(["status", str(project.folder)]) == 0
    text = capsys.readouterr().out
    assert "\x1b[31m" not in text and "[bold]x" in text.replace("\n", "")


def test_the_sources_hold_no_way_to_run_text(tmp_path):
    """Beside the linter's rules: words that neither side of the program may hold."""
    words = re.compile(
        r"\b(pickle\.|cPickle|marshal\.|shelve\.|dill\.|joblib\.|eval\(|exec\(|os\.system|os\.popen|"
        r"shell=True|torch\.load\(|allow_pickle=True|yaml\.load\(|extractall\(|unpack_archive\(|"
        r"__import__\(|socket\.(bind|listen)|http\.server|socketserver)"
    )
    found = {}
    for path in SOURCES:
        lines = [
            line.strip()
            for line in path.read_text(encoding="utf-8").splitlines()
            if words.search(line)
        ]
        lines = [line for line in lines if not ("weights_only=True)" in line or ".eval(" in line)]
        if lines:
            found[path.name] = lines
    assert not found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_command_listens_on_no_port(project):
    code = (
        "import sys, MedSSLLib.cli.main as c; c.main(['status', sys.argv[1], '--quiet']); import "
        "os\n"
        "print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if "
        "n.isdigit()"
        " and os.path.exists(f'/proc/self/fd/{n}')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(project.folder)],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert done.returncode == 0 and "socket:" not in done.stdout.splitlines()[-1]


def test_images_named_like_paths_are_written_beside_each_other(project, tmp_path):
    """A case is named after its file, whose name the file system already keeps free of
    separators.
    """
    for name in ("..nii.gz", "...nii.gz", "-rf.nii.gz"):
        assert os.sep not in io.case_name(tmp_path / name)
