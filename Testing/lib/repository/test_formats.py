"""Every file written: whole or not at all, and refused in words when a newer version has written
it.
"""

from __future__ import annotations

import ast
import json
import pickle
import random
import shutil
from pathlib import Path

import psutil
import pytest
import torch

from MedSSLLib.benchmark import records, tables
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_folder, read_json, write_json, write_text
from MedSSLLib.core.hashes import Hashes
from MedSSLLib.data import array_store
from MedSSLLib.inference import quality_estimator
from MedSSLLib.interop import monai_metadata
from MedSSLLib.interop.import_weights import read_tensors
from MedSSLLib.project.manifest import FILE_NAME, Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.relocation import copied
from MedSSLLib.project.runs import summary
from MedSSLLib.selftraining import pseudo_labels
from MedSSLLib.training import trainer
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import tiny_project

ROOT = Path(__file__).parents[3]
SOURCES = sorted([*ROOT.glob("MedSSLLib/**/*.py"), *ROOT.glob("MedSSL/**/*.py")])


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("formats"), 3)


# ------------------------------------------------------------------------------------------ newer
# versions


def newer(path: Path, format_name: str = "", **content: object) -> Path:
    """A file of format version 99."""
    write_json(path, {"format": format_name, "format_version": 99, **content})
    return path


READERS = {
    "run": lambda p: RunFolder(newer(p / "config.json", "medssl-run").parent).config,
    "quality": lambda p: quality_estimator.QualityEstimator(model=None, run="r").write(
        newer(p / "quality.json", "medssl-quality").parent, {}
    ),
    "pseudo-labels": lambda p: pseudo_labels.write_pseudo_labels(
        None, None, (), newer(p / "summary.json").parent, pseudo_labels.PseudoOptions()
    ),
    "benchmark": lambda p: records.read_results(
        newer(p / "results.json", bench="protocol", data="d"), "d", {}
    ),
    "benchmark table": lambda p: tables.load_studies([newer(p / "results.json", bench="protocol")]),
    "suggestions": lambda p: read_json(
        newer(p / "s.json", "medssl-suggestions"),
        format_name="medssl-suggestions",
        newest_version=1,
    ),
}


@each("kind", READERS)
def test_files_of_a_newer_version_say_so(tmp_path, kind):
    with pytest.raises(InputError, match="newer version of MedSSL.*Update MedSSL"):
        READERS[kind](tmp_path)


def test_a_project_of_a_newer_version_says_so(project, tmp_path):
    content = json.loads((project.folder / FILE_NAME).read_text())
    write_json(tmp_path / FILE_NAME, content | {"format_version": 99})
    with pytest.raises(InputError, match="newer version of MedSSL"):
        Project.open(tmp_path)


def test_weights_and_checkpoints_of_a_newer_version_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("MedSSLLib.training.checkpoint._FORMAT_VERSION", 99)
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="newer version of MedSSL"):
        load_tensors(tmp_path / "x.safetensors")


def test_a_run_of_a_newer_version_is_listed_with_its_problem(tmp_path):
    newer(tmp_path / "config.json", "medssl-run")
    assert "newer version" in summary(tmp_path)["problem"]


def test_a_cache_entry_of_a_newer_version_is_made_again(tmp_path):
    newer(tmp_path / "info.json", "medssl-cache-entry", files={"data.b2nd": {}})
    assert array_store.read_info(tmp_path) is None


def test_an_exported_model_names_its_format(monkeypatch):
    source = ast.unparse(ast.parse(Path(monai_metadata.__file__).read_text(encoding="utf-8")))
    assert "'format': 'medssl-model', 'format_version': 1" in source


# ------------------------------------------------------------------------------------------ whole
# or not at all

MODES = {mode + kind for mode in ("w", "a", "x", "r+", "w+") for kind in ("", "b")}
WRITES = {
    "write_text",
    "write_bytes",
    "savefig",
    "save",
    "save_file",
    "WriteImage",
    "copyfile",
    "copytree",
    "dump",
    "tofile",
}
INSIDE = {  # function -> why its plain writes are safe
    "keep_checkpoint": "the trainer's own, by save_tensors",
    "_fill": "inside atomic_folder",
    "_export_bundle": "a temporary folder of the system",
    "to_png": "into memory",
    "_into_temporary": "inside atomic_path",
    "readable_by_itk": "a temporary folder of the system",
}


OWN_SAVING = ("self.save(", "self.panel.save(", "project.save(", "Project(")


def plain_writes(path: Path) -> list[str]:
    """Calls that write a file, outside a ``with atomic_path`` or ``with atomic_folder``, and not
    into a buffer.
    """
    found: list[str] = []

    def visit(node: ast.AST, safe: bool, where: str) -> None:
        if isinstance(node, ast.FunctionDef):
            where, safe = node.name, node.name in INSIDE
        if isinstance(node, ast.With):
            safe = safe or any("atomic_" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and not safe:
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            words = ast.unparse(node)
            given = (*node.args, *(keyword.value for keyword in node.keywords))
            opened = name == "open" and any(
                str(getattr(arg, "value", "")) in MODES for arg in given
            )
            own = words.startswith(OWN_SAVING) or "buffer" in words
            if (name in WRITES and not own and isinstance(node.func, ast.Attribute)) or opened:
                found.append(f"{path.name}:{where}: {words[:70]}")
        for child in ast.iter_child_nodes(node):
            visit(child, safe, where)

    visit(ast.parse(path.read_text(encoding="utf-8")), False, "")
    return found


def test_no_file_is_written_in_place():
    """Events and logs are appended line by line, standard output is no file; the rest is written
    atomically.
    """
    appended = ("sinks.py:open_for_lines", "main.py:private_stdout")
    found = [
        text for path in SOURCES for text in plain_writes(path) if not text.startswith(appended)
    ]
    assert not found


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_appears_whole(tmp_path, existing):
    target = tmp_path / "deep" / "out"
    if existing:
        target.mkdir(parents=True)
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        write_text(folder / "sub" / "a.txt", "a")
        assert not (target / "sub").exists() and folder.parent == target.parent
    assert (target / "sub" / "a.txt").read_text() == "a\n" and [
        p.name for p in target.parent.iterdir()
    ] == ["out"]


def test_a_folder_that_fails_leaves_nothing_and_one_with_files_stays(tmp_path):
    with pytest.raises(ValueError, match="x"), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise ValueError("x")
    assert not list(tmp_path.iterdir())
    write_text(tmp_path / "out" / "kept", "kept")
    with pytest.raises(OSError), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["kept"]


def test_a_series_is_copied_whole(tmp_path, monkeypatch):
    (tmp_path / "series").mkdir()
    for name in "ab":
        (tmp_path / "series" / name).write_text(name)
        (tmp_path / "series" / name).chmod(0o444)
    case = Case("case", images=(tmp_path / "series",))
    copy = shutil.copytree

    def broken(*args, **options):
        copy(*args, **options)
        raise OSError(5, "broken")

    monkeypatch.setattr(shutil, "copytree", broken)
    with pytest.raises(OSError, match="broken"):
        copied(case, tmp_path / "p")
    assert not [p for p in (tmp_path / "p").rglob("*") if p.is_file()]
    monkeypatch.undo()
    assert sorted(p.name for p in copied(case, tmp_path / "p").images[0].iterdir()) == ["a", "b"]
    modes = [p.stat().st_mode for p in (tmp_path / "p").rglob("*") if p.is_file()]
    assert len(modes) == 2 and all(mode & 0o200 for mode in modes), (
        "files of a CD are read-only; copies are flushed"
    )


# ------------------------------------------------------------------------------------------------
# hostile content


def test_any_bytes_as_a_torch_file_are_refused_or_read(tmp_path):
    """600 files: two formats of torch.save and a plain pickle with bytes changed, left out and put
    in.
    """
    rng = random.Random(1)
    whole = []
    content = {
        "state_dict": {f"a{n}.weight": torch.ones(2, 2, 3, 3) for n in range(2)},
        "x": [1, {"k": "v"}],
    }
    for new in (True, False):
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
        whole.append((tmp_path / "w.pt").read_bytes())
    whole.append(pickle.dumps({"a": [1, 2]}))
    refused = 0
    for number in range(600):
        data = bytearray(whole[number % 3])
        for _ in range(rng.choice((1, 3, 20))):
            place = rng.randrange(min(len(data), rng.choice((40, 1500, len(data)))))
            new = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 5))))
            data[place : place + rng.choice((0, 1, 1, 9))] = new
            data = data or bytearray(1)
        (tmp_path / "x.pt").write_bytes(data)
        try:
            read_tensors(tmp_path / "x.pt")
        except InputError as error:
            refused += 1
            assert error.remedy and "x.pt" in str(error)
    assert refused > 300


def test_torch_files_are_not_read_by_a_torch_that_is_known_to_be_unsafe(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    monkeypatch.setattr("MedSSLLib.interop.import_weights.SAFE_UNPICKLER", False)
    with pytest.raises(InputError, match="CVE-2026-24747.*Update torch"):
        read_tensors(tmp_path / "x.pt")


@each("content", ['{"a": 5}', '{"a": []}', '{"a": [1, 2]}', '{"a": ["x"]}', '{"a": null}', "[]"])
def test_a_memory_of_hashes_that_makes_no_sense_is_ignored(tmp_path, content):
    (tmp_path / "scan").write_text("scan")
    (tmp_path / "h.json").write_text(
        content.replace('"a"', json.dumps(str((tmp_path / "scan").resolve())))
    )
    with Hashes(tmp_path / "h.json") as hashes:
        assert len(hashes.of(tmp_path / "scan")) == 32


# ------------------------------------------------------------------------------------ the network


def test_training_with_tensorboard_listens_on_no_port(project, monkeypatch):
    seen = []
    save = trainer.Trainer.save

    def watched(self):
        seen.append(
            [c for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        )
        save(self)

    monkeypatch.setattr(trainer.Trainer, "save", watched)
    words = [
        "--dim",
        "2d",
        "--batch",
        "2",
        "--steps",
        "2",
        "--set",
        "network.widths=[4,8]",
        "--set",
        "training.voxels=512",
        "--device",
        "cpu",
        "--quiet",
        "--tensorboard",
        "--name",
        "quiet",
    ]
    assert main(["pretrain", str(project.folder), "--method", "byol", *words]) == 0
    assert seen and not any(seen)
    assert list(project.run_folder("quiet").glob("tensorboard/*"))


# ------------------------------------------------------------------------------------ resume with
# nothing to resume


@each("command", [["pretrain", "--method", "pgl"], ["finetune"], ["selftrain", "--init", "none"]])
@each("name", ["", "none-such"])
def test_resume_with_nothing_to_resume_is_bad_input(project, command, name, capsys):
    words = [command[0], str(project.folder), *command[1:], "--resume", "--device", "cpu"]
    assert main([*words, "--name", name] if name else words) == 2
    assert "to resume" in capsys.readouterr().err
