"""The process that waits for a job: taken by those it is for, kept and ended at the right times."""

import json
import sys
import time

import psutil
import pytest
from conftest import ROOT, small_cases, wait_until

sys.path.insert(0, str(ROOT / "MedSSL"))
ENDS = 20


@pytest.fixture()
def roomy(application, monkeypatch):
    """A computer with the memory for one; pytest's own variable, which is another in each phase, is not a job's."""
    from MedSSLGui.jobs import processes, ready

    monkeypatch.setattr(ready, "LEAST_FREE_GIB", 0.0)
    environment = processes.jobEnvironment
    monkeypatch.setattr(
        processes,
        "jobEnvironment",
        lambda: [entry for entry in environment() if not entry.startswith("PYTEST_")],
    )
    return ready


@pytest.fixture()
def closed(application):
    """Once the panel is closed, no process waits any more."""
    yield
    assert not waiting()


@pytest.fixture()
def user(closed, user, roomy):
    """A user of such a computer."""
    return user


@pytest.fixture()
def opened(user, cohort, tmp_path):
    """A project of two scans whose Train panel is open, and a process that waits; the numbers of processes begun."""
    small_cases(cohort / "images", tmp_path / "small", (1, 2))
    user.open_with(tmp_path / "project", sorted((tmp_path / "small").iterdir()))
    assert not waiting(), "the first panel starts nothing that takes long to begin"
    user.shell.open("train")
    assert wait_until(waiting, 10)
    return user


def waiting():
    """Number of the process that waits, 0 for none."""
    from MedSSLGui.jobs.ready import sharedReady

    kept = sharedReady()
    return kept._process.processId() if kept._isRunning() else 0


def gone(number):
    return not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_a_job_is_run_by_the_process_that_waits_and_another_waits_after_it(opened):
    user, seen = opened, []
    user.queue.started.connect(lambda job: seen.append(waiting()))
    user.queue.reported.connect(lambda event: seen.append(event["event"]))
    first = waiting()
    words = ["-m", "MedSSLLib", "predict", str(user.store.folder), "--run", "none"]
    assert user.shell.session.startJob("Predict", [*words, "--out", "x", "--events", "-"])
    assert wait_until(lambda: user.queue.current is not None, 10)
    runner = user.queue.runner
    assert runner._process.processId() == first and seen == [first] and not waiting()
    user.finish_jobs()
    assert "none" in user.status(), "what the job says of a run that is not there"
    assert seen[1:] == ["error"] and any("none" in line for line in runner.log)
    second = wait_until(waiting, 10)
    assert second not in (0, first)
    user.shell.exit()
    assert not waiting() and wait_until(lambda: gone(second), ENDS), "another module is shown"
    user.shell.enter()
    assert wait_until(waiting, 10)


def test_a_job_of_the_process_that_waits_can_be_cancelled(opened):
    user, outcomes = opened, []
    user.queue.finished.connect(outcomes.append)
    words = ["-m", "MedSSLLib", "pretrain", str(user.store.folder), "--minutes", "9"]
    number = waiting()
    assert user.shell.session.startJob("Pre-train", [*words, "--events", "-"])
    assert wait_until(lambda: user.queue.current is not None, 10)
    user.queue.cancel()
    assert wait_until(lambda: outcomes, 60)
    assert outcomes[0].state == "cancelled" and wait_until(lambda: gone(number), ENDS)


@pytest.fixture()
def kept(roomy, monkeypatch):
    """A waiting process that imports nothing, and prints the line that it is told."""
    monkeypatch.setattr(roomy, "_ARGUMENTS", ["-c", "import sys; print(sys.stdin.readline())"])
    one = roomy.ReadyProcess()
    one.prepare()
    assert wait_until(one._isRunning, 10)
    yield one
    one.drop()


def job(name):
    return ["-m", "MedSSLLib", name, "a b", "--cases", 'x"y', "--minutes", 0.5, "--events", "-"]


def test_who_takes_it(kept, monkeypatch):
    for other in (["-c", "pass", "pretrain"], ["-m", "pip", "predict"], job("facts")):
        assert kept.take(other) is None and kept._isRunning()
    process = kept.take(job("predict"))
    assert process.waitForFinished(10000)
    assert json.loads(bytes(process.readAllStandardOutput().data())) == [
        *("predict", "a b", "--cases", 'x"y', "--minutes", "0.5", "--events", "-")
    ]
    assert kept.take(job("predict")) is None, "it is taken once"


def test_not_in_another_environment(kept, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    number = kept._process.processId()
    assert kept.take(job("live")) is None
    assert wait_until(lambda: gone(number), ENDS)


def test_not_where_memory_is_short(kept, roomy, monkeypatch):
    kept.drop()
    monkeypatch.setattr(roomy, "LEAST_FREE_GIB", 1e6)
    kept.prepare()
    assert not kept._isRunning() and kept.take(job("live")) is None
    monkeypatch.setattr(roomy, "LEAST_FREE_GIB", 0.0)
    kept.prepare()
    assert wait_until(kept._isRunning, 10)


def test_it_ends_when_nobody_comes_and_when_it_dies_another_takes_its_place(
    kept, roomy, monkeypatch
):
    first = kept._process.processId()
    psutil.Process(first).kill()
    assert wait_until(lambda: not kept._isRunning(), 10)
    assert kept.take(job("live")) is None
    monkeypatch.setattr(roomy, "IDLE_MINUTES", 1 / 120)
    ended = []
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(roomy.processes, "endTree", ended.append)
        kept.prepare()
    assert not ended, "Qt's number of a process that has ended is 0, on macOS that of all of them"
    starting = kept._process
    kept.prepare()  # it is starting: it stays
    assert kept._process is starting
    assert wait_until(kept._isRunning, 10)
    second, started = kept._process.processId(), time.monotonic()
    assert second != first
    assert wait_until(lambda: gone(second), ENDS) and time.monotonic() - started > 0.3
    assert kept.take(job("live")) is None


def test_one_waits_no_longer_while_packages_are_installed(opened, monkeypatch):
    import slicer

    seen = []
    number = waiting()

    def install(*_):
        """As Slicer does, which runs the event loop meanwhile."""
        opened.shell.refresh()
        wait_until(waiting, 1)
        seen.append(waiting())

    monkeypatch.setattr(slicer.util, "pip_install", install, raising=False)
    opened.shell.session.installer.install("wheels")
    assert seen and not any(seen) and wait_until(lambda: gone(number), ENDS)
