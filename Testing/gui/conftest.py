"""The bench for all tests here; they are skipped, with the reason, where its parts are not installed."""

import gc
import os
import shutil
import sys
import time
import traceback
import weakref
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
for entry in (str(ROOT), str(Path(__file__).resolve().parent)):
    if entry not in sys.path:
        sys.path.insert(0, entry)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_THREADER", "Platform")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


LONG = ("test_click_path", "test_live", "test_models", "test_real_slicer", "test_situations")


def pytest_collection_modifyitems(items):
    """Files with few but long tests begin first; the others fill up each process's time."""
    items.sort(key=lambda item: (*LONG, item.path.stem).index(item.path.stem))


def _missing():
    """Why the bench cannot start here, "" when it can."""
    for name in ("PySide6.QtWidgets", "slicer"):
        try:
            __import__(name)
        except Exception as error:
            return f"{name} cannot be imported ({error}); pip install -e '.[gui]' and the Qt and GL libraries"
    return ""


@pytest.fixture(scope="session")
def application(tmp_path_factory):
    reason = _missing()
    if reason:
        pytest.skip(reason)
    import slicer_bench

    started = slicer_bench.start(str(tmp_path_factory.mktemp("bin")))
    gc.collect()
    gc.freeze()  # each test collects what its panel leaves, and need not look at all of Slicer
    return started


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.bench_exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End without Python's own clearing up, in which Qt's and VTK's parts fall in an order that may crash.

    Everything has been reported by now, and that closed panels are freed is asserted after each test.
    """
    if hasattr(sys.modules.get("slicer"), "app") and not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.bench_exit_status)


BRIEF_MINUTES = 0.02
SMALL = 16, 56  # the heart, of 72 voxels in the plane

WATCH = []
"""The watch that measures how long the window stands still, while one runs (fixture `watch`)."""


def wait_until(condition, seconds=30.0):
    """Run the event loop until `condition()`; its last value."""
    from PySide6 import QtTest

    end = time.monotonic() + seconds
    value = condition()
    while not value and time.monotonic() < end:
        for each in WATCH:
            each.resume()
        QtTest.QTest.qWait(10 if not WATCH else 100)
        for each in WATCH:
            each.pause()
        value = condition()
    return value


def in_loop(call, action=""):
    """Run `call()` inside the event loop, as a click is; its result. `action` names it for the watch."""
    from PySide6 import QtCore

    results = []
    for each in WATCH:
        each.action = action or each.action
    QtCore.QTimer.singleShot(0, lambda: results.append(call()))
    assert wait_until(lambda: results, 60)
    return results[0]


@pytest.fixture()
def watch(application):
    """Measures how long the window stands still during the test."""
    from slicer_bench.watch import Watch

    watch = Watch()
    watch.start()
    WATCH.append(watch)
    yield watch
    WATCH.remove(watch)
    watch.stop()


class Driver:
    """What a user sees and does."""

    def __init__(self, loaded):
        self.loaded = loaded
        self.messages = []

    @property
    def shell(self):
        return self.loaded.widget.shell

    @property
    def store(self):
        return self.shell.session.store

    @property
    def queue(self):
        return self.shell.session.queue

    def find(self, name):
        return self.loaded.find(name)

    def click(self, name):
        button = self.find(name)
        assert button.isEnabled(), f"{name} is disabled: {self.status()}"
        if WATCH:
            in_loop(button.click, button.text() or name)
        else:
            button.click()

    def status(self):
        return self.find("statusLabel").text()

    def open_project(self, path):
        self.find("projectPathEdit").setCurrentPath(str(path))
        self.click("openProjectButton")
        assert self.store.isOpen(), self.status()

    def open_with(self, folder, paths):
        """A project with these files as cases; the panel adds them once, later ones are copies of that project.

        `folder` lies as deep below the folder of all tests as every `tmp_path / NAME`, for the paths in the project.
        """
        names = [Path(path).name.partition(".")[0] for path in paths]
        made = folder.parents[1] / " ".join(["added", *names]) / folder.name
        if made.is_dir():
            shutil.copytree(made, folder)
        self.open_project(folder)
        if not made.is_dir():
            self.shell.panels["data"].addPaths([str(path) for path in paths])
            self.settle()
            shutil.copytree(folder, made)
        self.settle()
        assert self.store.cases, self.status()
        assert all(case.images[0].is_file() for case in self.store.cases)

    def train_briefly(self, name):
        """Into the box of a training's time limit; a tenth of a minute, the least a person can give, is long here."""
        box = self.find(name)
        box.setDecimals(2)
        box.setValue(BRIEF_MINUTES)

    def settle(self, seconds=60.0):
        """Until helpers and steps have ended."""
        session = self.shell.session
        assert wait_until(lambda: not session.isHelperBusy(), seconds), (
            "still busy: " + self.status()
        )
        wait_until(lambda: False, 0.05)

    def finish_jobs(self, seconds=400.0):
        """Until the queue is empty."""
        assert wait_until(lambda: self.queue.current is None and not self.queue.waiting, seconds), (
            self.status()
        )
        self.settle()


@pytest.fixture()
def user(application, monkeypatch):
    """The module, opened; afterwards everything is put away."""
    import slicer
    import slicer_bench

    loaded = slicer_bench.load_module(ROOT / "MedSSL" / "MedSSL.py")
    # a process that waits costs seconds of processor time: test_ready.py has some
    monkeypatch.setattr("MedSSLGui.jobs.ready.LEAST_FREE_GIB", float("inf"))
    loaded.open()
    driver = Driver(loaded)
    driver.shell.session.said.connect(lambda text, kind: driver.messages.append((kind, text)))
    escaped = []
    monkeypatch.setattr(
        sys,
        "excepthook",
        lambda kind, error, trace: escaped.append(
            "".join(traceback.format_exception(kind, error, trace))
        ),
    )
    yield driver
    queue, shell = driver.queue, weakref.ref(driver.shell)
    queue.waiting.clear()
    queue.runner.kill()
    wait_until(lambda: queue.current is None, 10)
    loaded.close()
    slicer.bench_clear_scene()
    wait_until(lambda: False, 0.05)
    gc.collect()
    assert not escaped, "an exception escaped from a slot:\n" + "\n".join(escaped)
    assert shell() is None, (
        "the closed panel is still held by a connection; it would leak with every reload"
    )


@pytest.fixture()
def cohort(tmp_path_factory):
    """Six small heart-like volumes and their labels, made once."""
    import subprocess

    folder = Path(tmp_path_factory.getbasetemp()) / "cohort"
    if not folder.is_dir():
        subprocess.run(
            [sys.executable, "-m", "MedSSLLib", "phantoms", str(folder), "--count", "6"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return folder


def small_cases(cohort, folder, numbers):
    """Images of the cohort, cut to their middle, into a folder: networks are as quick on them as they can be."""
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    for number in numbers:
        name = f"heart_{number:02d}.nii.gz"
        image = sitk.ReadImage(str(cohort / name))
        low, high = SMALL
        sitk.WriteImage(image[low:high, low:high, :], str(folder / name))
