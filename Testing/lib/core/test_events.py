"""Events: complete lines, throttling, faults of a sink, and what people see."""

import io
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.core.errors import CancelledError
from MedSSLLib.core.events import Events, read_events, to_json
from MedSSLLib.core.sinks import JsonLines, PlainLines, Rate
from MedSSLLib.core.words import amount, describe, duration, sparkline
from Testing.lib.case_helpers import each


class Memory:
    def __init__(self) -> None:
        self.events: list[dict] = []
        self.closed = False

    def write(self, event: dict) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


class Failing(Memory):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, event: dict) -> None:
        raise self.error


def test_an_event_is_one_json_line_with_kind_and_time():
    stream = io.StringIO()
    with Events([JsonLines.to_stream(stream)]) as events:
        events.emit("metric", name="dice", value=0.5, path=Path("a") / "b", note="line\nbreak é")
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time") > 1.6e9
    expected_path = str(Path("a") / "b")
    assert event == {
        "event": "metric",
        "name": "dice",
        "value": 0.5,
        "path": expected_path,
        "note": "line\nbreak é",
    }


@pytest.mark.parametrize("fields", [{"event": 1}, {"time": 2}])
def test_reserved_fields_and_unknown_kinds_are_refused(fields):
    with pytest.raises(ValueError):
        Events().emit("start", **fields)
    with pytest.raises(ValueError):
        Events().emit("finished")


def test_values_become_plain_json():
    values = {
        "nan": math.nan,
        "inf": np.float32(np.inf),
        "int": np.int64(3),
        "row": np.arange(2),
        5: {1.5},
    }
    assert to_json(values) == {"nan": None, "inf": None, "int": 3, "row": [0, 1], "5": [1.5]}


def test_progress_is_throttled_per_stage_but_first_and_last_step_pass():
    sink = Memory()
    events = Events([sink], min_interval=1000)
    for stage in ("a", "b"):
        for step in range(1, 101):
            events.progress(stage, step, 100, {"loss": 1 / step}, seconds_left=100 - step)
    assert [(e["stage"], e["step"]) for e in sink.events] == [
        ("a", 1),
        ("a", 100),
        ("b", 1),
        ("b", 100),
    ]
    assert sink.events[1]["losses"] == {"loss": 0.01} and sink.events[1]["seconds_left"] == 0


def test_losses_are_not_read_when_the_event_is_not_due():
    class Costly:
        def item(self) -> float:
            raise AssertionError("read")

    events = Events([Memory()], min_interval=1000)
    events.progress("a", 1, 10, {"loss": 1.0})
    events.progress("a", 2, 10, {"loss": Costly()})


def test_a_full_disk_drops_that_sink_and_tells_the_others():
    good, bad = Memory(), Failing(OSError(28, "No space left on device"))
    events = Events([bad, good])
    events.emit("start", run="r")
    events.emit("done")
    assert [e["event"] for e in good.events] == ["start", "warning", "done"]
    assert "No space left" in good.events[1]["message"]


def test_a_reader_that_went_away_cancels_once():
    good = Memory()
    events = Events([Failing(BrokenPipeError()), good])
    with pytest.raises(CancelledError):
        events.emit("start")
    events.emit("error", message="cancelled")
    assert good.events[-1]["event"] == "error"


def test_lines_from_many_threads_stay_whole(tmp_path):
    file = tmp_path / "events.jsonl"
    with Events([JsonLines.to_file(file)]) as events:
        emit = lambda n: [events.emit("metric", thread=n, text="x" * 5000) for _ in range(50)]  # noqa: E731
        threads = [threading.Thread(target=emit, args=(n,)) for n in range(4)]
        [t.start() for t in threads], [t.join() for t in threads]
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 200


@each("cut", range(1, 60, 7))
def test_a_torn_last_line_is_skipped_and_does_not_spoil_the_next(tmp_path, cut):
    file = tmp_path / "events.jsonl"
    with Events([JsonLines.to_file(file)]) as events:
        events.emit("start", run="r")
        events.emit("checkpoint", step=7, path="runs/r/checkpoint")
    file.write_bytes(file.read_bytes()[:-cut])
    torn = [e["event"] for e in read_events(file)]
    assert torn == (["start", "checkpoint"] if cut == 1 else ["start"])
    with Events([JsonLines.to_file(file)]) as events:
        events.emit("done")
    assert [e["event"] for e in read_events(file)] == [*torn, "done"]


def test_a_run_folder_gets_events_and_a_readable_log(tmp_path):
    with Events() as events:
        events.open_run(tmp_path)
        events.emit("start", command="finetune", run="heart")
        events.progress("fit", 10, 100, {"dice": 0.25}, seconds_left=61)
        events.emit("warning", message="only one labelled case")
    assert [e["event"] for e in read_events(tmp_path / "events.jsonl")] == [
        "start",
        "progress",
        "warning",
    ]
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert "start: command finetune, run heart" in log[0]
    assert "fit 10/100  dice 0.25  1:01 left" in log[1]
    assert "warning: only one labelled case" in log[2]


def test_tensorboard_scalars_are_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from MedSSLLib.reporting.tensorboard import TensorBoardScalars

    with Events(of_run=[TensorBoardScalars]) as events:
        events.open_run(tmp_path)
        events.progress("fit", 3, 10, {"dice": 0.5}, figures={"feature_std": 0.25})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (scalar,) = board.Scalars("fit/dice")
    assert (scalar.step, scalar.value) == (3, 0.5)
    (scalar,) = board.Scalars("fit/feature_std")
    assert (scalar.step, scalar.value) == (3, 0.25)


def test_text_from_outside_cannot_move_the_cursor_or_add_lines():
    evil = "[red]case\x1b[2J\n\u202e"
    text = describe({"event": "warning", "time": 0, "message": evil, "case": evil})
    assert "\x1b" not in text and "\n" not in text and "\u202e" not in text and "[red]" in text


def test_a_report_keeps_its_lines_and_its_text_stays_harmless():
    report = "2 tensors loaded\n  new head.weight: not in the file\n  unused \x1b[2Jevil"
    text = describe(
        {"event": "metric", "time": 0, "stage": "transfer", "tensors_loaded": 2, "report": report}
    )
    assert text.split("\n") == [
        "metric: stage transfer, tensors loaded 2",
        "  2 tensors loaded",
        "    new head.weight: not in the file",
        "    unused \\x1b[2Jevil",
    ]


def test_lines_show_the_figures_of_a_method():
    event = {
        "event": "progress",
        "time": 0.0,
        "stage": "pretrain",
        "step": 1,
        "steps": 2,
        "losses": {"loss": 1.5},
        "figures": {"feature_std": 0.81234, "ema_momentum": 0.9985, "gradient/cosine/a-b": 0.1},
    }
    assert describe(event) == "pretrain 1/2  loss 1.5  feature std 0.8123  ema momentum 0.9985"


def test_plain_lines_show_rate_and_respect_their_interval():
    stream = io.BytesIO()
    lines = PlainLines(stream, interval=10)
    for step in range(1, 31):
        event = {"time": 100.0 + step, "step": step * 2, "steps": 60}
        lines.write({"event": "progress", "stage": "s", "losses": {"l": 1.0}, **event})
        lines.write({"event": "progress", "stage": "scans", **event})
    shown = stream.getvalue().decode().splitlines()
    assert [line for line in shown if line.startswith("s ")] == [
        "s 2/60  l 1",
        "s 22/60  l 1  2.0 steps/s",
        "s 42/60  l 1  2.0 steps/s",
        "s 60/60  l 1  2.0 steps/s",
    ]
    assert shown[-1] == "scans 60/60", "scans are no steps"


def test_a_stage_that_rests_says_so_once_and_its_rest_is_none_of_its_rate():
    stream = io.BytesIO()
    lines = PlainLines(stream, interval=10)
    course = [(0, 0, "waiting"), (11, 0, "waiting"), (20, 10, "training"), (31, 32, "training")]
    course += [(60, 32, "idle"), (90, 32, "idle"), (100, 34, "training"), (111, 56, "training")]
    for when, step, state in course:
        event = {"time": 1000.0 + when, "step": step, "steps": 0, "state": state}
        losses = {"segmentation": 0.5} if step else {}
        lines.write({"event": "progress", "stage": "live", "losses": losses, **event})
    assert stream.getvalue().decode().splitlines() == [
        "live 0  waiting for a first slice",
        "live 10  segmentation 0.5",
        "live 32  segmentation 0.5  2.0 steps/s",
        "live 32  resting",
        "live 34  segmentation 0.5",
        "live 56  segmentation 0.5  2.0 steps/s",
    ]


def test_only_the_asked_kinds_are_shown():
    stream = io.BytesIO()
    lines = PlainLines(stream, kinds=("warning",))
    lines.write({"event": "start", "time": 0.0})
    lines.write({"event": "warning", "time": 0.0, "message": "m"})
    assert stream.getvalue() == b"warning: m\n"


@each(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3671, "1:01:11")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sparkline_runs_from_lowest_to_highest_and_needs_two_values():
    assert sparkline([1.0]) == "" and sparkline([1.0, math.nan]) == ""
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 3]) == "▁▁▁"
    assert len(sparkline(range(500), width=12)) == 12


def test_rate_is_steps_over_seconds():
    rate = Rate()
    values = [rate.update({"stage": "s", "time": t, "step": 3 * t}) for t in range(5)]
    assert values[0] == 0 and values[-1] == pytest.approx(3.0)


def test_measures_have_three_digits_and_no_power_of_ten():
    said = [
        amount(value) for value in (0.0, 0.01234, 0.25, 1.5, 99.94, 99.96, 151.4, 7330.0, 1.2e6)
    ]
    assert said == ["0", "0.0123", "0.25", "1.5", "99.9", "100", "151", "7,330", "1,200,000"]
