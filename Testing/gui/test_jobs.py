"""The runner and the queue on small programs of our own: lines, crashes, cancelling, whole process trees."""

import os
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
from conftest import wait_until

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "MedSSL"))


@pytest.fixture()
def queue(application):
    from MedSSLGui.jobs.jobqueue import JobQueue

    queue = JobQueue()
    queue.seen, queue.outcomes = [], []
    queue.reported.connect(queue.seen.append)
    queue.progress.connect(queue.seen.append)
    queue.finished.connect(queue.outcomes.append)
    yield queue
    queue.waiting.clear()
    queue.runner.kill()
    wait_until(lambda: queue.current is None, 10)


def job(code, title="test"):
    from MedSSLGui.jobs.runner import Job

    return Job(title, ["-c", textwrap.dedent(code)])


def run(queue, code, seconds=30):
    queue.add(job(code))
    assert wait_until(lambda: queue.outcomes, seconds)
    return queue.outcomes[0]


def test_lines_joined_and_cut(queue):
    outcome = run(
        queue,
        """
        import os, time
        for part in (b'{"event": "met', b'ric", "n": 1}\\n{"event": "metric", "n": 2}\\nplain \\xff text\\n{"event": "metric"',
                     b', "n": 3}\\n[1]\\n{"event": 5}\\n{broken\\n{"event": "metric", "n": 4}'):
            os.write(1, part); time.sleep(0.05)
        """,
    )
    assert [event["n"] for event in queue.seen] == [1, 2, 3, 4]
    assert outcome.state == "done" and outcome.log[0].startswith("plain ")


def test_a_flood_of_progress_is_thinned(queue):
    outcome = run(
        queue,
        """
        import json
        for n in range(20000):
            print(json.dumps({"event": "progress", "stage": "s", "step": n, "steps": 20000, "losses": {}}))
        """,
    )
    assert outcome.state == "done"
    assert queue.seen[-1]["step"] == 19999 and len(queue.seen) < 2000


@pytest.mark.parametrize(
    "code, state",
    [(0, "done"), (1, "failed"), (2, "failed"), (3, "cancelled"), (4, "stopped"), (77, "crashed")],
)
def test_exit_codes(queue, code, state):
    assert run(queue, f"import sys; sys.exit({code})").state == state


def test_a_crash_is_a_message_with_the_log(queue):
    outcome = run(queue, "import os; print('last words', flush=True); os.abort()")
    assert (
        outcome.state == "crashed"
        and "last words" in outcome.message
        and "last words" in outcome.log
    )


def test_the_error_event_is_the_message(queue):
    outcome = run(
        queue,
        """
        import json, sys
        print("noise"); print(json.dumps({"event": "error", "message": "case a: b.nii: is empty."})); sys.exit(2)
        """,
    )
    assert outcome.state == "failed" and outcome.message == "case a: b.nii: is empty."


def test_a_program_that_is_missing(queue, monkeypatch):
    monkeypatch.setenv("PATH", "")
    outcome = run(queue, "pass")
    assert outcome.state == "failed" and "PythonSlicer" in outcome.message


def test_cancel_asks_first(queue):
    queue.add(
        job("""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *a: (print("checkpoint written", flush=True), sys.exit(3)))
        print("ready", flush=True)
        while True: time.sleep(0.05)
        """)
    )
    lines = []
    queue.line.connect(lines.append)
    assert wait_until(lambda: lines, 20)
    queue.cancel()
    assert wait_until(lambda: queue.outcomes, 10)
    assert (
        queue.outcomes[0].state == "cancelled" and queue.outcomes[0].log[-1] == "checkpoint written"
    )


def test_cancel_ends_the_whole_tree_of_a_job_that_does_not_listen(queue):
    import psutil

    queue.add(
        job("""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
        """)
    )
    lines = []
    queue.line.connect(lines.append)
    assert wait_until(lambda: lines, 20)
    pids = [int(pid) for pid in lines[0].split()]
    queue.cancel(0.5)
    assert wait_until(lambda: queue.outcomes, 10)
    assert queue.outcomes[0].state == "cancelled"

    def gone(pid):
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    assert wait_until(lambda: all(gone(pid) for pid in pids), 5)


def test_one_runs_one_waits_a_third_is_refused(queue):
    assert queue.add(job("import time; time.sleep(0.5)", "first"))
    assert queue.add(job("pass", "second"))
    assert not queue.add(job("pass", "third"))
    assert queue.current.title == "first" and [each.title for each in queue.waiting] == ["second"]
    assert wait_until(lambda: len(queue.outcomes) == 2, 30)
    assert [outcome.job.title for outcome in queue.outcomes] == [
        "first",
        "second",
    ] and queue.current is None


def test_cancel_drops_the_waiting_job(queue):
    queue.add(job("import time; time.sleep(60)", "first"))
    queue.add(job("pass", "second"))
    wait_until(lambda: False, 0.3)
    queue.cancel(0.2)
    assert wait_until(lambda: queue.outcomes, 10)
    wait_until(lambda: False, 0.2)
    assert len(queue.outcomes) == 1 and queue.current is None


def test_the_end_of_the_application_stops_the_job(queue):
    queue.add(job("import time; time.sleep(600)"))
    wait_until(lambda: False, 0.3)
    start = time.monotonic()
    queue.stopNow()
    assert time.monotonic() - start < 8 and queue.current is None


def test_a_job_that_writes_much_keeps_the_windows_alive(queue):
    """The longest time the event loop stood still while a job writes 5 MB of lines and events."""
    from PySide6 import QtCore

    gaps, last = [], [time.perf_counter()]

    def tick():
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    timer = QtCore.QTimer()
    timer.timeout.connect(tick)
    timer.start(5)
    queue.add(
        job("""
        import json, time
        for n in range(400):
            print(json.dumps({"event": "progress", "stage": "s", "step": n, "steps": 400, "losses": {"a": 1.0}}), flush=True)
            print("x" * 10000, flush=True); time.sleep(0.002)
        """)
    )
    assert wait_until(lambda: queue.outcomes, 60)
    timer.stop()
    assert len(gaps) > 50
    assert sorted(gaps)[int(0.99 * len(gaps))] < 0.1


def test_tasks_run_in_small_steps(application):
    from MedSSLGui.jobs.stepper import Stepper

    stepper, results, errors = Stepper(), [], []

    def work(count):
        for _number in range(count):
            time.sleep(0.002)
            yield
        return count

    def broken():
        yield
        raise ValueError("no")

    stepper.start(work(40), results.append)
    stepper.start(broken(), results.append, errors.append)
    stepper.start(work(2), results.append)
    assert wait_until(lambda: not stepper.isBusy(), 10)
    assert results == [40, 2] and str(errors[0]) == "no"


# -- short commands, which the bench forks ----------------------------------------------------------------------------


def medssl(queue, *words):
    from MedSSLGui.jobs.runner import Job

    queue.add(Job("test", ["-m", "MedSSLLib", *map(str, words), "--events", "-"]))


def test_a_forked_command_is_what_a_started_one_is(queue, cohort, tmp_path, monkeypatch):
    from slicer_bench import forks

    image, found = cohort / "images" / "heart_01.nii.gz", []
    for real in ("", "1"):
        monkeypatch.setenv(forks.REAL, real)
        for words in (
            ("facts", tmp_path / "none"),
            ("unpack", tmp_path, "--read", "a", "image", image),
        ):
            queue.seen.clear()
            queue.outcomes.clear()
            medssl(queue, *words)
            assert wait_until(lambda: queue.outcomes, 30)
            events = [{key: event[key] for key in event if key != "time"} for event in queue.seen]
            outcome = queue.outcomes[0]
            found.append((events, outcome.state, outcome.exitCode, outcome.message, outcome.log))
    assert found[:2] == found[2:]
    assert [facts[1:3] for facts in found[:2]] == [("failed", 2), ("done", 0)]


@pytest.mark.parametrize("end, code", [("cancel", 3), ("kill", None)])
def test_a_forked_command_hears_and_ends_with_its_launcher(queue, tmp_path, end, code):
    medssl(queue, "phantoms", tmp_path, "--count", 2000)
    written = lambda: len(list(tmp_path.rglob("*.nii.gz")))  # noqa: E731
    assert wait_until(written, 30)
    getattr(queue if end == "cancel" else queue.runner, end)()
    assert wait_until(lambda: queue.outcomes, 10)
    assert code is None or queue.outcomes[0].exitCode == code
    assert queue.outcomes[0].state == ("cancelled" if code else "crashed")
    wait_until(lambda: False, 0.3)
    count = written()
    wait_until(lambda: False, 0.5)
    assert written() == count < 4000


def test_a_process_that_has_ended_is_no_tree(monkeypatch):
    """Qt's number of it is 0, which on macOS is the ancestor of all processes; Linux has none of that number."""
    import psutil
    from MedSSLGui.jobs import processes

    assert processes.processTree(os.getpid())[0].pid == os.getpid()
    ancestor = SimpleNamespace(children=lambda recursive: ["all processes"])
    monkeypatch.setattr(psutil, "Process", lambda number: ancestor)
    assert processes.processTree(0) == [] and processes.processTree(-1) == []
