"""Whole commands on disks and files that fail them: full, read-only, vanished, changed, used twice
at once.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import CancelledError, InputError, MedSSLError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import FileLock, read_json
from MedSSLLib.data import array_store
from MedSSLLib.finetuning import finetune
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.project.project import Project
from MedSSLLib.training import stages
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from Testing.lib.core_helpers import tiny_project, torch
from Testing.lib.kill_helpers import PLAIN, config

GRID = Geometry((30, 30, 30))
WORDS = [
    "--dim",
    "2d",
    "--batch",
    "2",
    "--steps",
    "4",
    "--set",
    "network.widths=[4,8]",
    "--set",
    "training.voxels=512",
    "--device",
    "cpu",
    "--quiet",
]


@contextmanager
def mounted(folder: Path, *words: str):
    """A mount for the time of a test; skips where it is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *words, str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root on Linux may mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        yield folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return tiny_project(tmp_path, 3)


def filled(folder: Path, room: int) -> Path:
    """A file that leaves `room` bytes on the disk."""
    path = folder / "filler"
    path.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))
    return path


def whole_files(folder: Path) -> list[str]:
    """Reads back every file of a folder; names of those that are half-written."""
    bad = [str(path) for path in folder.rglob(".tmp-*")]
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                read_json(path)
            elif path.name.endswith(".nii.gz"):
                io.read_image(path)
        except InputError:
            bad.append(str(path))
    return bad


# ---------------------------------------------------------------------------------------------- a
# full disk


WRITERS = {
    "tensors": lambda p: save_tensors(p / "x.safetensors", {"a": torch.zeros(500_000)}, {}),
    "volume": lambda p: io.write_image(
        p / "x.nii.gz", Volume(np.random.default_rng(0).random(GRID.shape), GRID)
    ),
    "entry": lambda p: array_store.write_entry(
        p / "x", np.random.default_rng(0).random((1, 40, 60, 60)), 3, {}
    ),
    "table": lambda p: array_store.write_entry(
        p / "x", np.zeros((1, 4, 4, 4)), 3, {}, places=np.zeros((90_000, 3))
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_explains_a_full_disk_and_leaves_nothing(small_disk, kind):
    filled(small_disk, 40_000)
    with pytest.raises(MedSSLError, match="full|space") as caught:
        WRITERS[kind](small_disk)
    assert caught.value.exit_code == 1 and not isinstance(caught.value, InputError)
    assert not whole_files(small_disk) and not list(small_disk.rglob("info.json"))


@pytest.mark.parametrize("room", [8_000, 120_000])
def test_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    project, small_disk, room, capsys
):
    """The disk fills up at once, or later."""
    moved = small_disk / "p"
    shutil.copytree(project.folder, moved)
    manifest = (
        (moved / "medssl.json").read_text().replace('"../data', f'"{project.folder.parent}/data')
    )
    (moved / "medssl.json").write_text(manifest)
    filler = filled(small_disk, room)
    words = ["finetune", str(moved), "--name", "r", *WORDS]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert ("full" in message or "Free some space" in message) and "Traceback" not in message
    assert not whole_files(moved) and not (moved / "runs" / "r" / "weights.safetensors").exists()
    filler.unlink()
    begun = list((moved / "runs" / "r").glob("checkpoint/*.safetensors"))
    assert main([*words, *(["--resume"] if begun else [])]) == 0
    assert main(["finetune", str(project.folder), "--name", "r", *WORDS]) == 0
    expected, found = (
        load_tensors(p / "runs" / "r" / "weights.safetensors")[0] for p in (project.folder, moved)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_predictions_on_a_full_disk_stop_with_whole_files_only(project, small_disk, capsys):
    assert main(["finetune", str(project.folder), "--name", "r", *WORDS]) == 0
    filled(small_disk, 40_000)
    out = ["--out", str(small_disk / "out"), "--device", "cpu", "--probabilities", "--uncertainty"]
    assert main(["predict", str(project.folder), "--run", "r", *out]) == 1
    assert "space" in capsys.readouterr().err and not whole_files(small_disk)
    assert {p.name for p in small_disk.glob("out/*.nii.gz")} <= {"case0.nii.gz", "case1.nii.gz"}


# ---------------------------------------------------------------------------------------------- a
# read-only project


def test_a_read_only_project_can_be_read_and_refuses_the_rest(project, tmp_path, capsys):
    assert main(["finetune", str(project.folder), "--name", "r", *WORDS]) == 0
    before = {p: p.read_bytes() for p in project.folder.rglob("*") if p.is_file()}
    (tmp_path / "more").mkdir()
    shutil.copy(project.cases[0].images[0], tmp_path / "more" / "case9.nii.gz")
    with mounted(tmp_path / "frozen", "--bind", str(project.folder)) as frozen:
        subprocess.run(["mount", "-o", "remount,ro,bind", frozen], check=True)
        capsys.readouterr()
        assert (
            main(["status", str(frozen)])
            == main(["runs", str(frozen)])
            == main(["show", str(frozen), "r"])
            == 0
        )
        for words in (
            ["finetune", str(frozen), "--name", "s", *WORDS],
            ["add", str(frozen), str(tmp_path / "more")],
            ["pretrain", str(frozen), "--method", "byol", *WORDS],
        ):
            assert main(words) in (1, 2)
            message = capsys.readouterr().err
            assert (
                str(frozen) in message
                and "Traceback" not in message
                and "Unexpected" not in message
            )
        data = tmp_path / "data" / "imagesTr" / "case0.nii.gz"
        out = ["--images", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main(["predict", str(frozen), "--run", "r", *out]) == 0
    assert before == {p: p.read_bytes() for p in project.folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------ files that vanish
# or change


def interrupted(project, monkeypatch, name="r"):
    """A run that was stopped at its third step."""
    monkeypatch.setattr(
        stages, "loop_config", lambda *a: replace(PLAIN(*a), checkpoint_seconds=0.0)
    )
    real = finetune.SegmentationTask.host_batch

    def stop_later(task, step, part, parts):
        if step == 3:
            (project.run_folder(name) / "stop").touch()
        return real(task, step, part, parts)

    monkeypatch.setattr(finetune.SegmentationTask, "host_batch", stop_later)
    with pytest.raises(CancelledError, match="--resume"):
        finetune.run_finetune(project, config("supervised", name=name), Events())
    monkeypatch.undo()


def test_a_vanished_image_is_named_and_the_others_go_on(project, capsys):
    case = project.cases[1]
    case.images[0].unlink()
    assert (
        main(
            [
                "finetune",
                str(project.folder),
                "--name",
                "r",
                *(word for word in WORDS if word != "--quiet"),
            ]
        )
        == 0
    )
    assert f"{case.name}: {case.images[0]}" in capsys.readouterr().err
    assert case.name not in read_json(project.run_folder("r") / "config.json")["data"]["labelled"]


def test_an_image_that_vanishes_after_it_was_cached_is_not_trained_on(project, capsys):
    assert main(["finetune", str(project.folder), "--name", "r", *WORDS]) == 0
    project.cases[0].images[0].unlink()
    assert main(["finetune", str(project.folder), "--name", "s", *WORDS]) == 0
    assert project.cases[0].name in capsys.readouterr().err


@pytest.mark.parametrize("change", ["vanish", "other voxels", "other label", "new case"])
def test_a_run_does_not_go_on_with_other_data(project, monkeypatch, change, capsys):
    interrupted(project, monkeypatch)
    case = project.cases[0]
    path = case.label if change == "other label" else case.images[0]
    before = path.read_bytes()
    if change == "vanish":
        path.unlink()
    elif change == "new case":
        shutil.copy(path, path.with_name("extra.nii.gz"))
        shutil.copy(case.label, case.label.with_name("extra.nii.gz"))
        project.add([path.with_name("extra.nii.gz")], labels=case.label.parent)
        project.set_roles(labelled="case0,case1,case2,extra")
        project.save()
    else:
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(
            sitk.Flip(image, (True, False, False)) if path == case.label else image + 1, str(path)
        )
    words = ["finetune", str(project.folder), "--name", "r", "--resume"]
    assert main(words) == 2
    message = capsys.readouterr().err
    words_of = {"vanish": "cannot be used any more: case0", "new case": "new since it began: extra"}
    assert words_of.get(change, "have changed since it began") in message
    if change == "new case":
        project.set_roles(labelled="case0,case1,case2")
        project.save()
    else:
        path.write_bytes(before)
    if change in ("vanish", "new case"):
        assert main(words) == 0, "with the data of its beginning it goes on"


# ------------------------------------------------------------------------------------ two runs on
# one project


def test_a_run_that_is_going_on_is_not_touched_by_a_second_one(project, monkeypatch, capsys):
    monkeypatch.setitem(FileLock.__init__.__kwdefaults__, "timeout", 0.2)
    interrupted(project, monkeypatch)
    monkeypatch.setitem(FileLock.__init__.__kwdefaults__, "timeout", 0.2)
    folder = project.run_folder("r")
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    words = ["finetune", str(project.folder), "--name", "r", *WORDS]
    with FileLock(folder / ".lock"):
        for more, code in ((["--resume"], 1), ([], 2)):
            assert main([*words, *more]) == code
            message = capsys.readouterr().err
            assert f"process {os.getpid()}" in message if more else "exists already" in message
    assert files == {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_two_runs_of_one_project_at_once_both_end_with_their_own_weights(project):
    """Each finds entries of the cache that the other is making."""

    def run(name):
        os._exit(main(["finetune", str(project.folder), *WORDS, "--name", name]))

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=run, args=(name,)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0, 0]
    a, b = (load_tensors(project.run_folder(name) / "weights.safetensors")[0] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not whole_files(project.folder) and len(project.runs()) == 2


def test_system_errors_of_a_command_have_a_message_and_exit_code_1(project, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(project.folder))

    monkeypatch.setattr(finetune, "fill_cache", fail)
    assert main(["finetune", str(project.folder), *WORDS]) == 1
    assert os.strerror(errno.EIO) in capsys.readouterr().err and not project.runs()
