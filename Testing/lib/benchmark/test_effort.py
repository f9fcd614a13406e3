"""The scripted person: its work by hand, its ways on a tiny project, and what is read back."""

import json

import numpy as np
import pytest

from MedSSLLib.benchmark.effort.annotator import Annotator, Corrected, outline, work_on
from MedSSLLib.benchmark.effort.report import (
    effort_figure,
    effort_rows,
    load_efforts,
    reached,
    write_effort_report,
)
from MedSSLLib.benchmark.effort.trials import WAYS, Effort, run_effort
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.project.project import Project
from Testing.lib.core_helpers import tiny_project
from Testing.lib.live_helpers import TINY

SMALL = {key: value for key, value in TINY.items() if not key.startswith("options")}


def square(low, high, value=1):
    array = np.zeros((12, 12), np.uint8)
    array[low:high, low:high] = value
    return array


def test_work_by_hand():
    truth = square(2, 6)
    assert work_on(truth, None, 1.5, 2) == (16, 12 * 1.5), "a square of 4 has 12 edge voxels"
    assert work_on(truth, truth, 1.5, 2) == (0, 0)
    assert work_on(truth, square(2, 6, value=2), 1.0, 3) == (16, 12)
    # a square that is one column short: that column, and of the outline what lies in it
    short = truth.copy()
    short[:, 5] = 0
    voxels, contour = work_on(truth, short, 1.0, 2)
    assert voxels == 4 and contour == 4
    assert work_on(np.zeros_like(truth), truth, 1.0, 2) == (16, 0), "to erase needs no outline"
    truth[0] = IGNORE
    assert work_on(truth, None, 1.0, 2) == (16, 12), "what is unknown is nobody's work"


def test_the_border_of_the_image_is_an_outline():
    assert outline(np.ones((3, 3), bool)).sum() == 8


def test_slices_after_which_it_is_scored():
    assert Effort(slices=16).scored == (1, 2, 3, 4, 6, 9, 14, 16)
    assert Effort(slices=1).scored == (1,)
    assert Effort(seconds=30, rate=1.5).steps == 45
    with pytest.raises(InputError, match="unknown"):
        Effort(ways=("magic",))


@pytest.fixture
def data(tmp_path):
    """Four cases of which one is a test case; labels of all."""
    project = tiny_project(tmp_path, spacing=(1.0, 1.0, 3.0))
    project.set_roles(labelled="", test="case3")
    project.save()
    return project


def test_the_person_writes_what_is_true_on_the_drawn_slices_and_nothing_else(data, tmp_path):
    truths = {case.name: case.label for case in data.pool}
    own = data.at(tmp_path / "own")
    own.set_label("case0", None)
    own.save()
    person = Annotator(own, truths, tmp_path / "drawn")
    person.draw("case0", (2, 5))
    person.draw("case0", (1, 9), np.zeros((12, 20), np.uint8))
    case = Project.open(own.folder).case("case0")
    assert case.annotated.slices == ((1, (9,)), (2, (5,))) and case.role == "labelled"
    found = io.read_label(case.label, io.read_header(case.images[0])).array
    truth = person.truth("case0")
    expected = np.zeros_like(truth)
    expected[5], expected[:, 9] = truth[5], truth[:, 9]
    assert np.array_equal(found, expected)
    first, second = int(truth[5].sum()), int(truth[:, 9].sum())
    assert person.slices == 2 and person.voxels == person.structure == first + second
    assert person.corrected == Corrected(1, second, second), "an empty proposal is one too"
    person.draw("case1", (2, 5), person.truth("case1")[5])
    assert person.voxels == first + second and person.structure > person.voxels
    assert person.corrected == Corrected(2, second, person.structure - first), (
        "a right one costs nothing"
    )


@pytest.mark.slow
def test_every_way_is_run_scored_and_read_back(data, tmp_path):
    effort = Effort(slices=3, seeds=1, seconds=2, rate=2, device="cpu", settings=SMALL)
    before = {case.name: case.label.read_bytes() for case in data.cases}
    out = tmp_path / "out"
    content = run_effort(data, effort, out, Events())
    ways = {way: [r for r in content["records"] if r["way"] == way] for way in WAYS}
    assert [r["slices"] for r in ways["live"]] == [1, 2, 3]
    assert [r["slices"] for r in ways["even"]] == [1, 2, 3]
    assert [r["steps"] for r in ways["even"]] == [4, 8, 12]
    assert [r["slices"] for r in ways["complete"]] == [3]
    for record in content["records"]:
        assert 0 <= record["mean"] <= 1 and record["dice"].keys() == {"case3"}
        assert record["voxels"] > 0 and record["contour_mm"] > 0
        assert record["structure"] > 0 and record["corrected"]["slices"] < record["slices"]
    assert {case.name: case.label.read_bytes() for case in data.cases} == before
    written = (out / "effort.json").stat().st_mtime_ns
    again = run_effort(data, effort, out, Events())
    assert again["records"] == content["records"], "nothing is run twice"
    assert written == (out / "effort.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="other settings"):
        run_effort(data, Effort(slices=4, seeds=1), out, Events())
    (tmp_path / "earlier").mkdir()
    write_json(tmp_path / "earlier" / "effort.json", {**content, "format_version": 2})
    with pytest.raises(InputError, match="other settings .*format_version"):
        run_effort(data, effort, tmp_path / "earlier", Events())
    files = write_effort_report(content, out)
    assert [path.name for path in files] == ["effort.md", "effort.png", "effort.html"]
    assert all(path.stat().st_size > 200 for path in files)


def record(way, seed, slices, mean):
    given = {"voxels": 10 * slices, "contour_mm": 1.0 * slices, "steps": 1, "dice": {"a": mean}}
    given |= {"structure": 20 * slices, "corrected": {"slices": 0, "voxels": 0, "structure": 0}}
    return {"way": way, "seed": seed, "slices": slices, "mean": mean, **given}


def test_tables_takes_results_of_effort_and_puts_parts_together(tmp_path, capsys):
    def result(way, seed, rate=10.0):
        record = {"way": way, "slices": 3, "voxels": 9, "contour_mm": 1.0, "steps": 4}
        record |= {"seed": seed, "mean": 0.75, "dice": {"a": 0.7, "b": 0.8}, "structure": 20}
        record["corrected"] = {"slices": 2, "voxels": 1 + seed, "structure": 5}
        settings = {"slices": 3, "seconds": 30.0, "rate": rate}
        kind = {"bench": "effort", "format_version": 3, "data": "heart", "settings": settings}
        return {**kind, "records": [record]}

    files = [tmp_path / f"{number}.json" for number in range(4)]
    parts = [result("live", 0), result("live", 1), result("live", 1), result("even", 0, rate=2.0)]
    for file, content in zip(files, parts, strict=True):
        write_json(file, content)
    loaded, others = load_efforts(files)
    assert not others and [len(content["records"]) for content in loaded] == [2, 1]
    out = tmp_path / "out"
    words = ["benchmark", "tables", "--out", str(out), "--results", *map(str, files)]
    assert main(words) == 0
    assert "effort-heart.html" in capsys.readouterr().out
    names = sorted(path.name for path in out.glob("*.md"))
    assert names == ["effort-heart-2.md", "effort-heart.md"]
    text = (out / "effort-heart.md").read_text()
    assert "| 0.70 | live, with proposals | 3 | 9 | 1 | 2 of 2 |" in text
    assert "| 3 | live, with proposals | 0.750 | 0.750, 0.750 | 9 | 45 % | 30 % |" in text


def test_numbers_below_the_figure_are_written_out():
    one = {"way": "live", "seed": 0}
    records = [{**one, "slices": n, "voxels": 3000 * n, "mean": 0.1 * n} for n in (1, 3, 6, 7)]
    for axes in effort_figure(records).axes:
        axes.figure.canvas.draw()
        low, high = axes.get_xlim()
        texts = [label.get_text() for label in axes.get_xticklabels()]
        ticks = zip(axes.get_xticks(), texts, strict=True)
        shown = [text for value, text in ticks if low <= value <= high]
        assert shown in (["1", "3", "7"], ["5,000", "10,000", "20,000"])


def test_a_level_is_reached_at_the_first_scored_number_of_slices():
    trial = [record("live", 0, n, mean) for n, mean in [(4, 0.75), (1, 0.3), (2, 0.71), (3, 0.6)]]
    assert reached(trial, 0.7)["slices"] == 2 and reached(trial, 0.8) is None
    records = [*trial, record("live", 1, 6, 0.9), record("even", 0, 8, 0.4)]
    rows = effort_rows({"records": json.loads(json.dumps(records))})
    first = [row for row in rows if row[0] == "0.70"]
    assert first[0][2:] == ["4", "40", "4", "2 of 2"]
    assert first[1][2:] == ["–", "–", "–", "0 of 1"]
    assert [row for row in rows if row[0] == "0.80"][0][2:] == ["6", "60", "6", "1 of 2"]


def test_data_without_labels_to_draw_from_are_refused(data, tmp_path):
    for case in data.pool:
        data.set_label(case.name, None)
    with pytest.raises(InputError, match="no test case with a label, or no other"):
        run_effort(data, Effort(), tmp_path / "out", Events())
