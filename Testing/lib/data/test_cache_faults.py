"""The cache: entries follow content and settings, damage and races do no harm."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from MedSSLLib.core import hashes
from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.data import array_store
from MedSSLLib.data import cache as cache_module
from MedSSLLib.data.cache import Cache
from MedSSLLib.project.manifest import Case
from Testing.lib.cache_helpers import GRID, PLAN, VALUES, contents, never, whole, write_case


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def case(source):
    return write_case(source, "one")


# -- keys
# ------------------------------------------------------------------------------------------------


def aged(case):
    """Let the files look old, so that their hashes may be remembered."""
    for path in (*case.images, case.label):
        os.utime(path, (1e9, 1e9))
    return case


def test_second_preparation_computes_and_hashes_nothing(tmp_path, monkeypatch):
    case = aged(write_case(tmp_path / "source", "one"))
    Cache(tmp_path / "cache", PLAN).prepare([case], labels=True, values=VALUES)
    for name in ("preprocess_image", "label_on_grid", "write_entry"):
        monkeypatch.setattr(cache_module, name, never)
    monkeypatch.setattr(hashes, "content_hash", never)
    again = Cache(tmp_path / "cache", PLAN.model_copy(update={"patch": (8, 8, 8)}))
    calls = []
    assert not again.prepare(
        [case], labels=True, values=VALUES, progress=lambda *n: calls.append(n)
    ).refused
    assert calls == [(1, 1)]
    assert whole(again, "one").shape == again.shape("one")


def test_other_names_of_the_same_file_share_an_entry(case, tmp_path):
    link = tmp_path / "two.nii.gz"
    link.symlink_to(case.images[0])
    copy = tmp_path / "three.nii.gz"
    shutil.copyfile(case.images[0], copy)
    cache = Cache(tmp_path / "cache", PLAN)
    cache.prepare([case, Case("two", (link,)), Case("three", (copy,))])
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1
    np.testing.assert_array_equal(whole(cache, "two"), whole(cache, "three"))


def test_changed_file_makes_another_entry(tmp_path):
    case = aged(write_case(tmp_path / "source", "one", seed=0))
    cache = Cache(tmp_path / "cache", PLAN)
    cache.prepare([case])
    before = whole(cache, "one")
    aged(write_case(tmp_path / "source", "one", seed=1))
    os.utime(case.images[0], (1e9 + 1, 1e9 + 1))
    cache.prepare([case])
    assert not np.array_equal(before, whole(cache, "one"))


def test_freshly_written_files_are_hashed_again(tmp_path, monkeypatch):
    """A file may change twice within one tick of the clock with the same size."""
    case = write_case(tmp_path / "source", "one")
    with hashes.Hashes(tmp_path / "hashes.json") as memo:
        memo.of(case.images[0])
    assert not (tmp_path / "hashes.json").exists()
    monkeypatch.setattr(time, "time", lambda: os.stat(case.images[0]).st_mtime + 10)
    with hashes.Hashes(tmp_path / "hashes.json") as memo:
        memo.of(case.images[0])
    assert (tmp_path / "hashes.json").exists()


def test_folder_of_files_is_known_by_all_of_them(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(b"slice %d" % number)
        os.utime(folder / f"{number}.dcm", (1e9, 1e9))

    def value():
        with hashes.Hashes(tmp_path / "hashes.json") as memo:
            return memo.of(folder)

    first = value()
    assert value() == first
    (folder / "1.dcm").write_bytes(b"slice X")
    os.utime(folder / "1.dcm", (1e9 + 5, 1e9 + 5))
    assert value() != first


def test_broken_memory_of_hashes_is_no_obstacle(case, tmp_path):
    (tmp_path / "hashes.json").write_text("[1, 2")
    assert not Cache(tmp_path, PLAN).prepare([case]).refused


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": (1.3, 1.2, 1.2)},
        {"slice_axis": 0},
        {"modality": ("CT",)},
        {"dim": 2, "slice_axis": "own"},
    ],
)
def test_settings_that_matter_make_other_entries(case, tmp_path, change):
    Cache(tmp_path, PLAN).prepare([case])
    Cache(tmp_path, PLAN.model_copy(update=change)).prepare([case])
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_entries_record_settings_and_version(case, tmp_path):
    Cache(tmp_path, PLAN).prepare([case])
    (entry,) = (tmp_path / "images").iterdir()
    info = array_store.read_info(entry)
    assert info["settings"]["version"] == cache_module.VERSION
    assert info["settings"]["spacing"] == list(PLAN.spacing)
    assert "patch" not in info["settings"]


# -- faults
# ------------------------------------------------------------------------------------------------


def test_bad_cases_are_listed_and_the_others_go_on(case, tmp_path):
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(case.images[0].read_bytes()[:2000])
    other = write_case(tmp_path, "other", replace(GRID, origin=(50.0, 0.0, 0.0)))
    cases = [
        Case("torn", (torn,)),
        Case("gone", (tmp_path / "gone.nii.gz",)),
        case,
        replace(case, name="bare", label=None),
        replace(case, name="elsewhere", label=other.label),
    ]
    cache = Cache(tmp_path / "cache", PLAN)
    seen = []
    prepared = cache.prepare(cases, labels=True, values=VALUES, progress=lambda *n: seen.append(n))
    refused = prepared.refused
    assert [case.name for case in prepared.usable] == ["one"]
    assert [bad.name for bad, _ in refused] == ["torn", "gone", "bare", "elsewhere"]
    assert all(str(error).startswith(f"{bad.name}: ") for bad, error in refused)
    assert all(error.remedy for _, error in refused)
    assert seen == [(n, 5) for n in range(1, 6)]
    assert whole(cache, "one").size
    assert not [name for name in contents(tmp_path / "cache") if "tmp" in name or "lock" in name]


def damage_truncate(entry):
    path = entry / "data.b2nd"
    path.write_bytes(path.read_bytes()[:-100])


def damage_truncate_in_the_same_instant(entry):
    times = os.stat(entry / "data.b2nd").st_mtime_ns
    damage_truncate(entry)
    os.utime(entry / "data.b2nd", ns=(times, times))


def damage_flip(entry):
    path = entry / "data.b2nd"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def damage_no_info(entry):
    (entry / "info.json").unlink()


def damage_half_info(entry):
    path = entry / "info.json"
    path.write_text(path.read_text()[:60])


def damage_no_data(entry):
    (entry / "data.b2nd").unlink()


def damage_empty_files(entry):
    (entry / "info.json").write_text(
        '{"format": "medssl-cache-entry", "format_version": 1, "files": {}}'
    )


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_truncate_in_the_same_instant,
        damage_flip,
        damage_no_info,
        damage_half_info,
        damage_no_data,
        damage_empty_files,
    ],
)
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_damaged_entries_are_made_again(case, tmp_path, damage, kind):
    cache = Cache(tmp_path, PLAN)
    cache.prepare([case], labels=True, values=VALUES)
    image, label = whole(cache, "one"), cache.label("one", (0, 0, 0), (9, 9, 9))
    (entry,) = (tmp_path / kind).iterdir()
    (entry / ".tmp-1234-data.b2nd").write_bytes(b"left by a killed process")
    damage(entry)
    again = Cache(tmp_path, PLAN)
    assert not again.prepare([case], labels=True, values=VALUES).refused
    np.testing.assert_array_equal(whole(again, "one"), image)
    np.testing.assert_array_equal(again.label("one", (0, 0, 0), (9, 9, 9)), label)
    assert not list(entry.glob(".tmp*"))


def test_damage_found_while_reading_is_said_and_repaired(case, tmp_path):
    cache = Cache(tmp_path, PLAN)
    cache.prepare([case], labels=True, values=VALUES)
    (entry,) = (tmp_path / "images").iterdir()
    times = os.stat(entry / "data.b2nd").st_mtime_ns
    data = bytearray((entry / "data.b2nd").read_bytes())
    data[40:-40] = bytes(len(data) - 80)
    (entry / "data.b2nd").write_bytes(data)
    os.utime(entry / "data.b2nd", ns=(times, times))  # so that preparation trusts it
    again = Cache(tmp_path, PLAN)
    again.prepare([case])
    with pytest.raises(MedSSLError, match="damaged"):
        whole(again, "one")
    assert not again.prepare([case]).refused
    np.testing.assert_array_equal(whole(again, "one").shape, again.shape("one"))


def test_interrupted_writing_leaves_no_entry(case, tmp_path, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(array_store, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path, PLAN).prepare([case])
    monkeypatch.undo()
    (entry,) = (tmp_path / "images").iterdir()
    assert array_store.read_info(entry) is None
    assert not Cache(tmp_path, PLAN).prepare([case]).refused
    assert array_store.read_info(entry) is not None


def test_moved_cache_stays_valid(case, tmp_path, monkeypatch):
    Cache(tmp_path / "a", PLAN).prepare([case])
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # new times
    monkeypatch.setattr(cache_module, "preprocess_image", never)
    assert not Cache(tmp_path / "b", PLAN).prepare([case]).refused


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_explained(case, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MedSSLError, match="permission"):
        Cache(tmp_path / "cache", PLAN).prepare([case])


# -- several processes
# ------------------------------------------------------------------------------------------------


def prepare_in_child(folder, cases, start, results):
    made = []
    real = cache_module.write_entry
    cache_module.write_entry = lambda entry, *rest, **more: (
        made.append(str(entry)) or real(entry, *rest, **more)
    )
    cache = Cache(folder, PLAN)
    start.wait()
    refused = cache.prepare(cases, labels=True, values=VALUES).refused
    results.put((len(refused), made, [float(whole(cache, case.name).sum()) for case in cases]))


def test_processes_that_prepare_one_cache_share_the_work(tmp_path):
    cases = [write_case(tmp_path / "source", f"case{n}", seed=n) for n in range(4)]
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    children = [
        context.Process(target=prepare_in_child, args=(tmp_path / "cache", cases, start, results))
        for _ in range(3)
    ]
    for child in children:
        child.start()
    start.set()
    answers = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    made = [entry for _, entries, _ in answers for entry in entries]
    assert sorted(made) == sorted(set(made)) and len(made) == 8  # each entry was made once
    assert all(refused == 0 and sums == answers[0][2] for refused, _, sums in answers)
    left = contents(tmp_path / "cache")
    assert not [name for name in left if "tmp" in name or "lock" in name]
