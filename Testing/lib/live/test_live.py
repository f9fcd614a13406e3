"""``medssl live`` as a process: what is drawn is learnt and shown, and nothing drawn is lost."""

import hashlib
import json

import numpy as np
import pytest

from MedSSLLib.cli.main import main
from MedSSLLib.core.files import read_json
from MedSSLLib.inference.model import load_model
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.live_helpers import LiveProcess, Person

pytestmark = pytest.mark.timeout(900)  # every test starts processes, on whatever else runs


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path, test="case3")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_drawn_is_learnt_shown_scored_and_kept(person):
    """The way of a person through it, from nothing drawn to a run like any other."""
    with LiveProcess(person.folder) as live:
        assert live.wait_for("start")["command"] == "live"
        live.ask("show case0 2 5")
        assert live.wait_for("progress", state="waiting")["slices"] == 0
        path = person.draw("case0", 5)
        told = live.wait_for("annotation")
        assert (told["case"], told["version"], told["changed"]) == ("case0", 1, [[2, 5]])
        preview = live.wait_for("preview", case="case0", knows=1)
        assert preview["slices"] == [5, 5] and preview["axis"] == 2 and preview["seconds"] >= 0
        whole = live.wait_for("preview", case="case0", whole=True)
        assert whole["slices"] is None and whole["knows"] >= 1
        array = np.load(whole["path"], mmap_mode="r")
        assert array.shape == (12, 20, 20) and array.dtype == np.uint8 and array.max() <= 1
        assert not live.of("score"), "nothing was predicted before the first slice"

        live.ask("show case1 2 6\nshow nobody\nshow case2 2 12")
        said = [live.wait_for("warning")["message"] for _ in range(2)]
        assert "nobody" in said[0] and "case2: has no slice 12 along axis 2" in said[1]
        live.wait_for("preview", case="case1", slices=[6, 6])
        before = digest(path)
        person.draw("case1", 6)
        score = live.wait_for("score")
        assert (score["case"], score["axis"], score["index"]) == ("case1", 2, 6)
        assert 0 <= score["dice"] <= 1 and 0 <= score["changed"] <= 1 and score["proposed"]
        live.wait_for("preview", case="case1", knows=2)
        assert digest(path) == before, "a preview changes nothing that is drawn"

        with LiveProcess(person.folder) as second:
            assert second.end("close") == 1, "one process a project"
            assert "in use by process" in second.said and str(live.pid) in second.said

        live.ask("suggest 3")
        slices = [live.wait_for("suggestion") for _ in range(3)]
        assert all(one["case"] in ("case0", "case1", "case2") for one in slices)
        assert all(one["why"] and one["proposal"] for one in slices)
        drawn = {("case0", 5), ("case1", 6)}
        assert not drawn & {(one["case"], one["index"]) for one in slices}
        live.ask("save kept")
        assert live.wait_for("saved")["run"] == "kept"
        live.ask("save kept")
        assert "exists already" in live.wait_for("warning")["message"]
        live.ask("dance")
        assert "Known are" in live.wait_for("warning")["message"]
        live.ask("suggest")
        assert "Write suggest N" in live.wait_for("warning")["message"]
        live.ask("suggest 40")
        assert "of 40 slices are suggested" in live.wait_for("warning")["message"]
        live.wait_for("progress", state="idle", resident_mib=lambda n: n > 0)
        assert live.end() == 0
        assert live.events[-1]["event"] == "done" and live.events[-1]["run"] == "live-1"
        for words in ("waiting for a first slice", "case0: 1 slice drawn", "Draw next: case"):
            assert words in live.said
        assert "case1, slice 6 along k: Dice 0." in live.said
    runs = {run["name"]: run for run in Project.open(person.folder).runs()}
    assert all(runs[name]["finished"] and not runs[name]["problem"] for name in ("kept", "live-1"))
    run = RunFolder(person.folder / "runs" / "live-1")
    assert run.data.labelled == ("case0", "case1") and "case3" not in run.data.unlabelled
    assert run.data.annotated == {
        "case0": [{"axis": 2, "indices": [5]}],
        "case1": [{"axis": 2, "indices": [6]}],
    }
    assert run.metrics["slices"] == 2 and run.metrics["last_slices"]["slices"] == 1
    assert load_model(run).classes == ("background", "blob")
    out = person.folder / "out"
    code = main(["predict", str(person.folder), "--run", "live-1", "--out", str(out), "-q"])
    assert code == 0 and (out / "case3.nii.gz").exists()


@pytest.mark.long
def test_it_learns_the_structure_and_a_taken_away_slice_teaches_no_more(person):
    with LiveProcess(person.folder) as live:
        live.ask("show case2 2 6")
        person.draw("case0", 3, 5, 7)
        person.draw("case1", 4, 6, 8)
        live.wait_for("progress", state="idle")
        live.ask("refresh")
        person.write("case1", [])
        told = live.wait_for("annotation", case="case1", slices=0)
        assert told["removed"] == [[2, 4], [2, 6], [2, 8]] and told["changed"] == []
        assert live.end() == 0
    assert RunFolder(person.folder / "runs" / "live-1").data.labelled == ("case0",)


@pytest.mark.long
def test_a_corrected_slice_is_scored_against_what_was_predicted_before_it_was_drawn(person):
    """Accepting a proposal as it is and correcting it afterwards is one slice, scored anew."""
    with LiveProcess(person.folder) as live:
        person.draw("case0", 5, 6)
        live.wait_for("annotation")
        live.ask("show case1 2 6")
        live.wait_for("preview", case="case1", knows=1)
        person.draw("case1", 6)
        first = live.wait_for("score")

        def other(array):
            array[6] = 0

        person.write("case1", [6], other)
        second = live.wait_for("score")
        assert (second["case"], second["index"]) == ("case1", 6)
        # nothing of the structure is drawn there any more
        assert second["changed"] != first["changed"] and second["dice"] != first["dice"]
        live.end()
    scores = RunFolder(person.folder / "runs" / "live-1").metrics["scores"]
    assert len(scores) == 1 and scores[0]["dice"] == second["dice"]


@pytest.mark.long
@pytest.mark.parametrize("how, code", [("close", 0), ("TERM", 3)])
def test_where_nothing_was_drawn_nothing_is_left(person, how, code):
    with LiveProcess(person.folder) as live:
        live.wait_for("progress", state="waiting")
        assert live.end(how) == code
    assert not (person.folder / "runs" / "live-1").exists()


@pytest.mark.long
@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_a_stopped_process_goes_on_where_it_was(person, how):
    with LiveProcess(person.folder) as live:
        person.draw("case0", 5, 6)
        live.ask("show case0 2 5")
        live.wait_for("preview", knows=1)
        live.wait_for("progress", state="idle")
        live.wait_for("checkpoint") if not live.of("checkpoint") else None
        code = live.end(how)
        assert code == (3 if how == "TERM" else -9)
    folder = person.folder / "runs" / "live-1"
    step = read_json(folder / "live.json")["epoch"]
    assert step == 1 and not (folder / "weights.safetensors").exists()
    person.draw("case1", 6)
    with LiveProcess(person.folder, "--resume", "--name", "live-1") as live:
        told = live.wait_for("annotation")
        assert (told["case"], told["epoch"]) == ("case1", 2), "what it knew is not told again"
        assert live.wait_for("score")["case"] == "case1", "it predicts from where it was"
        live.ask("show case0 2 5")
        live.wait_for("preview", case="case0", knows=2)
        assert min(e["step"] for e in live.of("progress") if e["step"]) > 12
        assert live.end() == 0
    assert RunFolder(folder).data.labelled == ("case0", "case1")
    if how == "TERM":
        with LiveProcess(person.folder, "--resume", "--name", "live-1") as live:
            live.wait_for("progress", state="training")
            assert live.end() == 0, "a live run that was finished may go on"


@pytest.mark.long
@pytest.mark.parametrize("limit, steps", [("--minutes=0.03", None), ("--steps=15", 15)])
def test_a_limit_ends_as_a_finished_run(person, limit, steps):
    person.draw("case0", 5, 6)
    with LiveProcess(person.folder, limit) as live:
        done = live.wait_for("done")
        assert done["run"] == "live-1" and done["slices"] == 2
        assert steps is None or done["steps"] == steps
        assert live.end("wait") == 0


@pytest.mark.long
def test_pause_keeps_answering_and_takes_no_step(person):
    with LiveProcess(person.folder) as live:
        person.draw("case0", 5, 6)
        live.ask("show case0 2 5")
        live.wait_for("preview", knows=1)
        live.ask("pause")
        assert live.wait_for("saved")["run"] == "live-1"
        first = live.wait_for("progress", state="paused")
        live.ask("show case1 2 6")
        shown = live.wait_for("preview", case="case1", whole=True)
        assert shown["step"] == first["step"]
        live.ask("resume")
        live.wait_for("progress", step=lambda step: (step or 0) > first["step"])
        assert live.end() == 0


@pytest.mark.long
def test_a_new_class_keeps_what_was_learnt(person):
    with LiveProcess(person.folder) as live:
        person.draw("case0", 5, 6)
        live.wait_for("progress", state="idle")
        person.project.set_labels({0: "background", 1: "blob", 2: "spot"})
        person.project.save()

        def spot(array):
            array[7, 9:11, 9:11] = 2

        person.write("case0", [5, 6, 7], spot)
        live.wait_for("annotation", version=2)
        live.ask("show case0 2 7")
        live.wait_for("preview", case="case0", knows=2)
        assert live.end() == 0
    run = RunFolder(person.folder / "runs" / "live-1")
    assert run.data.classes == ("background", "blob", "spot")
    assert load_model(run).network.head.weight.shape[0] == 3


@pytest.mark.long
def test_strokes_teach_and_the_rest_of_their_slice_does_not(person):
    def strokes(array):
        inside = array[5] == 1
        array[5] = 255
        array[5][inside & (np.arange(20) % 3 == 0)] = 1
        array[5, 0] = 0

    person.write("case0", [5, 6], strokes, partly=[5])
    with LiveProcess(person.folder) as live:
        told = live.wait_for("annotation")
        assert told["slices"] == 2
        live.ask("show case0 2 5")
        live.wait_for("preview", knows=1)
        assert live.end() == 0
    facts = json.loads((person.folder / "runs" / "live-1" / "config.json").read_text())["data"]
    assert facts["annotated"] == {"case0": [{"axis": 2, "indices": [5, 6], "partly": [5]}]}
    assert facts["values"] == [0, 1]
