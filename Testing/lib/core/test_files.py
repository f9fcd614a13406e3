"""Atomic files, versioned JSON, locks and content hashes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.core import files
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import (
    FileLock,
    atomic_path,
    content_hash,
    detached_files,
    is_inside,
    read_json,
    refuse_overwriting,
    write_json,
)
from Testing.lib.case_helpers import each


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestRefuseOverwriting:
    def test_the_same_file_by_any_name_is_refused(self, tmp_path: Path) -> None:
        source, other = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
        source.write_bytes(b"scan")
        (tmp_path / "link.nii.gz").symlink_to(source)
        os.link(
            source, tmp_path / "A.nii.gz"
        )  # one file of two names, as on a file system that ignores case
        (tmp_path / "here").symlink_to(tmp_path, target_is_directory=True)
        for name in ("a.nii.gz", "link.nii.gz", "A.nii.gz", "here/a.nii.gz", "new/../a.nii.gz"):
            with pytest.raises(
                InputError, match=r"a scan or a label in use.*Choose another --out"
            ) as caught:
                refuse_overwriting([other, tmp_path / name], [tmp_path / "gone.nii.gz", source])
            assert caught.value.file == str(tmp_path / name)
            with pytest.raises(InputError):
                refuse_overwriting([source], [tmp_path / name])

    def test_other_files_and_folders_are_not(self, tmp_path: Path) -> None:
        source = tmp_path / "series"
        source.mkdir()
        (tmp_path / "a.nii.gz").write_bytes(b"an earlier prediction")
        (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "nowhere")
        refuse_overwriting(
            [tmp_path / name for name in ("a.nii.gz", "dangling.nii.gz", "new.nii.gz")], [source]
        )
        refuse_overwriting([source / "a.nii.gz"], [source])

    def test_a_label_that_is_missing_is_not_replaced_by_a_prediction(self, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            refuse_overwriting([tmp_path / "x" / ".." / "lost.nii.gz"], [tmp_path / "lost.nii.gz"])


class TestAtomicPath:
    def test_the_file_appears_whole_and_keeps_its_extensions(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "new" / "a.nii.gz") as temporary:
            assert temporary.name.endswith(".nii.gz")
            assert temporary.parent == tmp_path / "new"
            temporary.write_text("x")
            assert not (tmp_path / "new" / "a.nii.gz").exists()
        assert leftovers(tmp_path / "new") == ["a.nii.gz"]

    def test_a_failure_keeps_the_old_file_and_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("old")
        with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert (tmp_path / "a.txt").read_text() == "old"
        assert leftovers(tmp_path) == ["a.txt"]

    @each(
        ("code", "words"),
        [
            (errno.ENOSPC, "disk is full"),
            (errno.EROFS, "may not be written"),
            (errno.EACCES, "may not be written"),
        ],
    )
    def test_full_and_read_only_disks_are_explained(
        self, tmp_path: Path, code: int, words: str
    ) -> None:
        with pytest.raises(MedSSLError, match=words) as caught, atomic_path(tmp_path / "a"):
            raise OSError(code, os.strerror(code))
        assert caught.value.exit_code == 1
        assert leftovers(tmp_path) == []

    def test_a_really_full_disk(self, tmp_path: Path) -> None:
        tmp_path.joinpath("disk").mkdir()
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "disk"],
                capture_output=True,
                check=False,
            )
            if sys.platform == "linux"
            else None
        )
        if mounted is None or mounted.returncode:
            pytest.skip("a small disk can only be mounted by root on Linux")
        try:
            write_json(tmp_path / "disk" / "a.json", {"old": 1})
            with pytest.raises(MedSSLError, match="disk is full"):
                write_json(tmp_path / "disk" / "a.json", {"new": "x" * 200_000})
            assert read_json(tmp_path / "disk" / "a.json") == {"old": 1}
            assert leftovers(tmp_path / "disk") == ["a.json"]
        finally:
            subprocess.run(["umount", tmp_path / "disk"], check=True)

    def test_long_names_still_have_a_temporary_name(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 240 + ".json")
        write_json(path, {})
        assert path.exists()

    def test_kill_during_writing_leaves_old_or_new(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_json(path, {"n": 0, "fill": ""})
        code = (
            "import sys; from MedSSLLib.core.files import write_json\n"
            "for n in range(10**9): write_json(sys.argv[1], {'n': n, 'fill': 'x' * 100_000})"
        )
        for delay in (0.5, 0.53, 0.56):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(path)], cwd=Path(files.__file__).parents[2]
            )
            time.sleep(delay)
            process.kill()
            process.wait()
            assert isinstance(read_json(path)["n"], int)


class TestJson:
    def test_round_trip_with_unicode_paths_numpy_and_nan(self, tmp_path: Path) -> None:
        write_json(
            tmp_path / "a.json",
            {
                "é": Path("x/y"),
                "n": np.int64(3),
                "a": np.ones(2),
                "t": (1, float("nan")),
                "i": float("inf"),
                4: None,
            },
        )
        assert read_json(tmp_path / "a.json") == {
            "é": str(Path("x/y")),
            "n": 3,
            "a": [1.0, 1.0],
            "t": [1, None],
            "i": None,
            "4": None,
        }

    def test_version(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_json(path, {"format": "thing", "format_version": 2})
        assert read_json(path, format_name="thing", newest_version=2)["format_version"] == 2
        with pytest.raises(InputError, match="newer version of MedSSL.*Update MedSSL"):
            read_json(path, format_name="thing", newest_version=1)
        with pytest.raises(InputError, match="has the format 'thing'"):
            read_json(path, format_name="other", newest_version=2)

    @each("version", [None, "1", 0, True, 1.5])
    def test_impossible_versions(self, tmp_path: Path, version: object) -> None:
        write_json(tmp_path / "a.json", {"format": "thing", "format_version": version})
        with pytest.raises(InputError, match="format version"):
            read_json(tmp_path / "a.json", format_name="thing", newest_version=2)

    @each("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"text"', b"{'a': 1}"])
    def test_foreign_content(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_json(tmp_path / "a.json")
        assert caught.value.file == str(tmp_path / "a.json")
        assert caught.value.remedy

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises(InputError):
                read_json(path)


def hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    FileLock(path).acquire()
    ready.set()
    time.sleep(60)


class TestFileLock:
    def test_a_second_process_is_told_who_holds_it(self, tmp_path: Path) -> None:
        with FileLock(tmp_path / "lock") as lock:
            assert lock.owner() is not None
            with pytest.raises(
                MedSSLError, match=f"process {os.getpid()} on {socket.gethostname()} since 20"
            ):
                FileLock(tmp_path / "lock", timeout=0.1).acquire()
        assert leftovers(tmp_path) == []
        with FileLock(tmp_path / "lock", timeout=0):
            pass

    def test_it_is_released_when_its_body_fails(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), FileLock(tmp_path / "lock"):
            raise RuntimeError
        FileLock(tmp_path / "lock", timeout=0).acquire()

    @pytest.mark.skipif(sys.platform == "win32", reason="uses kill -9")
    def test_a_killed_owner_leaves_a_stale_record_that_does_not_block(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        process = context.Process(target=hold, args=(tmp_path / "lock", ready))
        process.start()
        assert ready.wait(60)
        with pytest.raises(MedSSLError, match=f"process {process.pid}"):
            FileLock(tmp_path / "lock", timeout=0).acquire()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert (tmp_path / "lock").exists()
        with FileLock(tmp_path / "lock", timeout=5) as lock:
            assert (lock.owner() or {})["pid"] == os.getpid()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_does_not_keep_its_dead_parents_lock(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, sys, time; from MedSSLLib.core.files import FileLock\n"
            "lock = FileLock(sys.argv[1]); lock.acquire(); child = os.fork()\n"
            "if child == 0: os.close(1); time.sleep(60); os._exit(0)\n"
            "print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        parent = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "lock")],
            stdout=subprocess.PIPE,
            cwd=Path(files.__file__).parents[2],
            check=False,
        )
        child = int(parent.stdout)
        try:
            os.kill(child, 0)
            FileLock(tmp_path / "lock", timeout=2).acquire()
        finally:
            os.kill(child, signal.SIGKILL)

    def test_many_processes_count_without_losing_a_step(self, tmp_path: Path) -> None:
        (tmp_path / "n").write_text("0")
        code = (
            "import sys, pathlib; from MedSSLLib.core.files import FileLock\n"
            "p = pathlib.Path(sys.argv[1])\n"
            "for _ in range(25):\n"
            "    with FileLock(p / 'lock', timeout=60): (p / 'n').write_text(str(int((p / "
            "'n').read_text()) + 1))"
        )
        root = Path(files.__file__).parents[2]
        crowd = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
            for _ in range(4)
        ]
        assert [process.wait() for process in crowd] == [0] * 4
        assert (tmp_path / "n").read_text() == "100"

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_text("precious")
        try:
            (tmp_path / "lock").symlink_to(tmp_path / "target")
        except OSError:
            pytest.skip("links cannot be made here")
        if not hasattr(os, "O_NOFOLLOW"):
            pytest.skip("this system always follows links")
        with pytest.raises(MedSSLError, match="cannot be locked"):
            FileLock(tmp_path / "lock").acquire()
        assert (tmp_path / "target").read_text() == "precious"


class TestContentHash:
    def test_it_depends_on_content_not_on_the_name(self, tmp_path: Path) -> None:
        for name, content in (
            ("a", b"x" * 10_000),
            ("b", b"x" * 10_000),
            ("c", b"x" * 9_999 + b"y"),
        ):
            (tmp_path / name).write_bytes(content)
        a, b, c = (content_hash(tmp_path / name) for name in "abc")
        assert a == b != c
        assert len(a) == 32

    def test_a_folder_counts_all_its_files_and_their_names(self, tmp_path: Path) -> None:
        folder = tmp_path / "series"
        folder.mkdir()
        (folder / "1").write_bytes(b"ab")
        (folder / "2").write_bytes(b"c")
        first = content_hash(folder)
        (folder / ".hidden").write_bytes(b"z")
        assert content_hash(folder) == first
        (folder / "1").write_bytes(b"a")
        (folder / "2").write_bytes(b"bc")
        assert content_hash(folder) != first

    def test_a_detached_data_file_counts(self, tmp_path: Path) -> None:
        (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
        (tmp_path / "a.raw").write_bytes(b"1")
        first = content_hash(tmp_path / "a.mhd")
        (tmp_path / "a.raw").write_bytes(b"2")
        assert content_hash(tmp_path / "a.mhd") != first

    def test_a_vanished_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gone"):
            content_hash(tmp_path / "gone")

    @each("name", ["../a.raw", "/etc/passwd", "LIST", "a%03d.raw 1 9 1", "C:\\a.raw", "..\\a.raw"])
    def test_a_header_may_not_point_elsewhere(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "a.mhd").write_text(f"NDims = 3\nElementDataFile = {name}\n")
        with pytest.raises(InputError, match="not one file beside it"):
            detached_files(tmp_path / "a.mhd")


@each(
    ("text", "inside"),
    [
        ("a/b.nii.gz", True),
        ("./imagesTr/a b.nii.gz", True),
        ("é/ü", True),
        ("a..b", True),
        ("", False),
        ("../a", False),
        ("a/../../b", False),
        ("/a", False),
        ("C:/a", False),
        ("c:a", False),
        ("a\\..\\b", False),
        ("\\\\host\\a", False),
        ("~/a", False),
        ("a\nb", False),
        ("a\0b", False),
    ],
)
def test_is_inside(text: str, inside: bool) -> None:
    assert is_inside(text) is inside


def test_json_written_is_valid_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, {"y": float("-inf")}]})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "x": [1, {"y": None}]
    }
