"""Figures, overlays and HTML reports: right numbers, right side up, nothing active, everything
escaped.
"""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.words import duration_words
from MedSSLLib.evaluation.scoring import extremes, interval, score_predictions
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.methods import options
from MedSSLLib.project.project import Project
from MedSSLLib.reporting import run_report
from MedSSLLib.reporting.html import Page, number
from MedSSLLib.reporting.overlays import (
    Panel,
    best_slice,
    make_panel,
    overlay_figure,
    volume_panels,
)
from MedSSLLib.reporting.plots import (
    class_spread,
    dice_against_labels,
    dice_against_steps,
    paired_cases,
    reliability_diagram,
    running_mean,
    to_png,
    training_curves,
    volume_agreement,
)
from MedSSLLib.reporting.run_report import annotation_words, training_series, write_run_report
from Testing.lib.case_helpers import each

EVIL = "<script>alert('x')</script>\u202e&\"$\\frac{$"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_escapes_everything_and_loads_nothing():
    page = Page(EVIL, EVIL, EVIL)
    page.cards([(EVIL, EVIL, EVIL)])
    page.section(EVIL, EVIL)
    page.bullets([EVIL])
    page.facts({EVIL: EVIL, "empty": ""})
    page.table([EVIL, "n"], [[EVIL, number(0.5, note=EVIL)]], caption=EVIL)
    page.code(EVIL + "\n" + EVIL)
    page.fold(EVIL)
    page.figures((paired_cases({EVIL: 0.1}, {EVIL: 0.2}, (EVIL, EVIL)), EVIL))
    page.unfold()
    text = page.html(EVIL)
    reader = Reader(text)
    assert "script" not in reader.tags
    assert "\u202e" not in text
    sources = [value for key, value in reader.attributes if key in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert base64.b64decode(sources[0].split(",")[1])[:8] == b"\x89PNG\r\n\x1a\n"
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert sum("<script>alert('x')</script>" in word for word in reader.words) >= 10


def test_numbers_stand_right_and_undefined_is_a_dash():
    page = Page("t")
    page.section("s")
    page.table(["class", "Dice"], [["a", number(0.12345)], ["b", number(None)]])
    text = page.html()
    assert '<td class="n">0.123</td>' in text
    assert '<td class="n">–</td>' in text
    assert '<th class="n">Dice</th>' in text
    assert "<th>class</th>" in text


def test_running_mean_is_a_mean_and_skips_nan():
    values = np.array([1.0, 2.0, 6.0, np.nan, 4.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.5, 3.0, 4.0, 5.0, 4.0])
    np.testing.assert_allclose(running_mean(values[:3], 1), values[:3])
    np.testing.assert_allclose(
        running_mean(np.array([1.0, 3.0]), 3), [1.0, 2.0]
    )  # a run of two readings


def test_figures_draw_what_they_are_given():
    curves = training_curves(
        {"a": {"dice": [(1, 0.5), (2, 0.25)]}, "b": {"dice": [(1, 1.0), (2, 0.5)], "ce": [(1, 2)]}}
    )
    assert [axes.get_title(loc="left") for axes in curves.axes] == ["dice", "ce"]
    np.testing.assert_array_equal(curves.axes[0].lines[0].get_ydata(), [0.5, 0.25])
    pairs = paired_cases(
        {"x": 0.2, "y": 0.4, "z": None}, {"x": 0.6, "y": 0.3, "z": 0.9}, ("one", "two")
    )
    drawn = [list(line.get_ydata()) for line in pairs.axes[0].lines]
    assert drawn[:2] == [[0.2, 0.6], [0.4, 0.3]]
    np.testing.assert_allclose(drawn[2], [0.3, 0.45])
    agreement = volume_agreement({"c": [(12, 10), (8, 10), (13, 10)]}).axes[0]
    limits = [line.get_ydata()[0] for line in agreement.lines if len(set(line.get_ydata())) == 1]
    spread = 1.96 * np.std([2, -2, 3], ddof=1)
    np.testing.assert_allclose(sorted(limits), sorted([0, 1, 1 - spread, 1 + spread]))


@each(
    "figure",
    [
        lambda: training_curves({}),
        lambda: paired_cases({}, {}, ("a", "b")),
        lambda: class_spread({"case": {EVIL: None}}),
        lambda: volume_agreement({"c": [(1, 1)]}),
        lambda: dice_against_labels({EVIL: {1: (0.5, 0.4, 0.6), 8: (0.8, 0.7, 0.9)}}),
        lambda: dice_against_steps({EVIL: {100: (0.5, 0.4, 0.6)}}),
        lambda: reliability_diagram(
            {"count": [3, 0], "confidence": [0.4, 0], "accuracy": [0.5, 0]}, 0.1
        ),
    ],
)
def test_figures_survive_little_data_and_odd_names(figure):
    assert to_png(figure(), dpi=30)[:4] == b"\x89PNG"


@each("letters", [3, 16, 30])
def test_the_legend_of_many_methods_lies_inside_the_figure(letters):
    names = [f"{n}".ljust(letters, "m") for n in range(7)]
    figure = dice_against_labels({name: {1: (0.5, 0.4, 0.6)} for name in names})
    figure.draw_without_rendering()
    box, (axes,) = figure.legends[0].get_window_extent(), figure.axes
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names and len(
        figure.legends
    ) == 1
    assert not box.overlaps(axes.get_window_extent()) and axes.get_window_extent().height > 200


def test_the_axis_says_what_is_counted():
    axes = dice_against_labels({"even": {3: (0.5, 0.4, 0.6)}}, xlabel="annotated slices").axes[0]
    assert axes.get_xlabel() == "annotated slices" and [
        t.get_text() for t in axes.get_xticklabels()
    ] == ["3"]


def test_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    to_png(paired_cases({"a": 0.1}, {"a": 0.2}, ("x", "y")), dpi=30)
    assert dict(matplotlib.rcParams) == before


AXIAL_RAS = Geometry((6, 8, 5), (1.0, 1.5, 3.0), (0, 0, 0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def marked(geometry, point):
    """A volume that is 1 at the voxel nearest to a position (LPS mm, relative to the centre), 0
    elsewhere.
    """
    middle = geometry.points((np.array(geometry.size) - 1) / 2)
    i, j, k = np.rint(geometry.indices(middle + np.array(point))).astype(int)
    array = np.zeros(geometry.shape)
    array[k, j, i] = 1
    return Volume(array, geometry)


@each(
    "direction",
    [
        (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0),
        (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0),
        (1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0),
    ],
)
def test_panels_hang_as_radiologists_expect(direction):
    """Whatever the file's axes: front up, patient's right on the left, in axial slices."""
    geometry = Geometry((7, 9, 5), (1.0, 1.5, 4.0), (3.0, 2.0, 1.0), direction)
    front_right = marked(geometry, (-3.0, -6.0, 0.0))  # LPS: minus x is right, minus y is front
    label = Volume((front_right.array > 0).astype(np.uint8), geometry)
    panel = make_panel("t", front_right, {"reference": label}, [1])
    row, column = np.argwhere(panel.labels["reference"] == 1)[0]
    assert (row, column) == (0, 0)
    assert panel.letters == ("R", "L")
    assert panel.aspect == pytest.approx(1.5)


@pytest.mark.parametrize(("axis", "letters"), [(0, ("A", "P")), (1, ("R", "L"))])
def test_head_is_up_in_sagittal_and_coronal_slices(axis, letters):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    geometry = Geometry((7, 7, 7), (spacing[0], spacing[1], spacing[2]))
    high = marked(geometry, (0.0, 0.0, 3.0))
    panel = make_panel(
        "t", high, {"reference": Volume((high.array > 0).astype(np.uint8), geometry)}, [1]
    )
    assert np.argwhere(panel.labels["reference"])[0][0] == 0
    assert panel.letters == letters


def test_best_slice_prefers_all_classes_over_one_large():
    label = np.zeros((4, 10, 10), int)
    label[0, :, :] = 1
    label[2, 2:6, 2:6] = 1
    label[2, 7:9, 7:9] = 2
    assert best_slice(label, 2, [1, 2]) == 2
    assert best_slice(np.zeros((5, 3, 3)), 2, [1]) == 2


def test_overlay_figure_has_a_row_per_case_and_escapes_names():
    geometry = Geometry((8, 8, 4))
    image = Volume(np.random.default_rng(0).random(geometry.shape), geometry)
    label = Volume((image.array > 0.5).astype(np.uint8), geometry)
    panels = [
        make_panel(EVIL, image, {"scan": None, "reference": label, EVIL: label}, [1])
        for _ in range(2)
    ]
    figure = overlay_figure(panels, [EVIL])
    assert len(figure.axes) == 6
    assert to_png(figure, dpi=30)[:4] == b"\x89PNG"


def test_extremes_and_words():
    assert extremes({"a": 0.1, "b": 0.9, "c": 0.5, "d": None}) == [
        ("best", "b"),
        ("median", "c"),
        ("worst", "a"),
    ]
    assert len(extremes({"a": 0.5})) == 1
    assert extremes({"a": None}) == []
    assert [duration_words(s) for s in (12, 100, 7000)] == ["12 s", "2 min", "1 h 57 min"]
    assert annotation_words({"a": [{"axis": 2, "indices": [1, 4]}]}) == "a: k 1, 4"
    mean, low, high = interval({"a": 0.4, "b": 0.6, "c": None})
    assert (mean, low, high) == (pytest.approx(0.5), 0.4, 0.6)


def test_training_series_keeps_the_last_value_of_a_step(tmp_path):
    lines = [
        {"event": "progress", "time": 1, "stage": "preprocess", "step": 1, "steps": 2},
        {
            "event": "progress",
            "time": 1,
            "stage": "finetune",
            "step": 1,
            "steps": 9,
            "losses": {"dice": 0.9, "ce": None},
        },
        {
            "event": "progress",
            "time": 1,
            "stage": "finetune",
            "step": 2,
            "steps": 9,
            "losses": {"dice": 0.8},
        },
        {"event": "metric", "time": 1, "stage": "finetune", "step": 2, "score": 0.4},
        {
            "event": "progress",
            "time": 1,
            "stage": "finetune",
            "step": 2,
            "steps": 9,
            "losses": {"dice": 0.7},
        },
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "prog')
    assert training_series(path) == {
        "finetune": ({"dice": [(1, 0.9), (2, 0.7)]}, {"score": [(2, 0.4)]})
    }
    assert training_series(tmp_path / "none.jsonl") == {}


@pytest.fixture
def project(tmp_path):
    """Four cases, two of them for testing, a finished run without weights, and predictions one
    voxel off.
    """
    geometry = Geometry((12, 11, 8), (1.0, 1.0, 2.0))
    generator = np.random.default_rng(0)
    for name in "abcd":
        label = np.zeros(geometry.shape, np.uint8)
        label[2:6, 3:8, 3:8] = 1
        image = generator.normal(label * 100.0 + 50, 10).astype(np.float32)
        io.write_image(tmp_path / "images" / f"{name}.nii.gz", Volume(image, geometry))
        io.write_image(tmp_path / "labels" / f"{name}.nii.gz", Volume(label, geometry))
        io.write_image(
            tmp_path / "out" / f"{name}.nii.gz", Volume(np.roll(label, 1, axis=2), geometry)
        )
    project = Project.create(
        tmp_path / "p", tmp_path / "images", labels=tmp_path / "labels", labelled="a,b", test="c,d"
    )
    run = project.run_folder("r")
    run.mkdir(parents=True)
    from MedSSLLib.config.run import RunConfig

    config = RunConfig.build(
        "finetune", preset="quick", overrides={"optimiser.lr": 0.005, "name": "r"}
    )
    facts = {
        "format": "medssl-run",
        "format_version": 1,
        "config": config.model_dump(mode="json"),
        "plan": {"dim": 3, "channels": 1, "spacing": [2, 1, 1], "patch": [8, 8, 8]},
        "versions": {"torch": "2"},
        "data": {"labelled": ["a", EVIL], "annotated": {"a": [{"axis": 2, "indices": [3]}]}},
        "started": 1e9,
    }
    (run / "config.json").write_text(json.dumps(facts))
    events = [
        {
            "event": "progress",
            "time": 1,
            "stage": "finetune",
            "step": n,
            "steps": 30,
            "losses": {"dice": 1 / n},
        }
        for n in range(1, 31)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "metrics.json").write_text(json.dumps({"steps": 30, "seconds": 61.0}))
    return project


def test_scores_cover_the_test_cases_only(project, tmp_path):
    scored = score_predictions(project, tmp_path / "out", "mine")
    assert sorted(scored.metrics["cases"]) == ["c", "d"]
    assert scored.per_case["c"] == pytest.approx(0.8)
    with pytest.raises(InputError, match="no prediction"):
        (tmp_path / "other").mkdir()
        io.write_image(
            tmp_path / "other" / "z.nii.gz", io.read_image(tmp_path / "out" / "c.nii.gz")
        )
        score_predictions(project, tmp_path / "other", "mine")


def test_run_report_holds_the_results_and_is_whole(project, tmp_path):
    path = write_run_report(project, "r", tmp_path / "r.html", predictions=tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    words = " ".join(Reader(text).words)
    for expected in (
        "Run r",
        "0.800",
        "test cases, never seen in training",
        "optimiser.lr",
        "0.005",
        "k 3",
        "Limits",
    ):
        assert expected in words
    assert text.count("data:image/png") == 4
    assert not re.search(r"(src|href)=.?http", text)


@each(
    ("data", "words"),
    [
        ({"unlabelled": ["a", "b", "c"]}, "on 3 unlabelled scans."),
        ({"labelled": ["a"], "unlabelled": []}, "on 1 labelled scan."),
        ({"labelled": ["a"], "unlabelled": ["b"]}, "on 1 labelled and 1 unlabelled scans."),
        ({}, "from gcl."),
    ],
)
def test_a_report_tells_the_scans_that_trained(data, words):
    assert run_report._lead({"command": "finetune", "init": "gcl"}, data).endswith(words)


@each(
    ("value", "words"),
    [
        (["a", "b"], "a, b"),
        ([2.4, 3.2], "[2.4, 3.2]"),
        (True, "true"),
        (None, ""),
        ("Ölung", "Ölung"),
        (1e-05, "1e-05"),
        ([], "[]"),
        ([[1, 2], [2, 2]], "[[1, 2], [2, 2]]"),
    ],
)
def test_settings_are_shown_as_they_can_be_given(value, words):
    assert options.as_typed(value) == words


def test_a_report_names_what_differs_from_the_preset_once(project, tmp_path):
    text = write_run_report(project, "r", tmp_path / "r.html").read_text(encoding="utf-8")
    changed = text.split("<h2>Configuration</h2>")[1].split("<details>")[0]
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", changed) == [("optimiser.lr", "0.005")]


def test_run_report_without_predictions_says_so(project, tmp_path):
    text = write_run_report(project, "r", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No predictions were given" in text
    assert text.count("data:image/png") == 1
    with pytest.raises(InputError):
        write_run_report(project, "nothing", tmp_path / "n.html")


def test_long_column_titles_stay_inside_the_picture():
    names = (
        "scan",
        "reference",
        "random weights",
        "pre-trained, mean teacher",
        "pre-trained, self-trained",
    )
    panel = Panel("case", np.zeros((12, 10)), dict.fromkeys(names), 1.0, ("R", "L"))
    figure = overlay_figure([panel], ["a"])
    to_png(figure, dpi=int(figure.dpi))
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False)), (
        "titles do not touch"
    )


def test_estimates_stand_beside_the_scores(project, tmp_path):
    entry = {"dice": 0.7, "low": 0.6, "high": 0.8, "review": False}
    content = {"format": "medssl-quality", "format_version": 1, "run": "r"}
    content["cases"] = {"c": entry, "d": entry | {"low": None, "high": None, "dice": 0.5}}
    (tmp_path / "out" / "quality.json").write_text(json.dumps(content))
    path = write_run_report(project, "r", tmp_path / "r.html", predictions=tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert "estimated Dice</th>" in text
    assert "0.70 (0.60 to 0.80)" in text
    assert "0.50 uncalibrated" in text, "no number without its interval or that word"


def test_a_completed_volume_is_shown_from_end_to_end(project, tmp_path):
    folder = project.run_folder("r")
    facts = json.loads((folder / "config.json").read_text())
    facts["config"] |= {"command": "complete", "options": {"case": "a"}}
    (folder / "config.json").write_text(json.dumps(facts))
    image = io.read_image(project.case("a").images[0])
    label = np.zeros(image.array.shape, np.uint8)
    label[1:7, 3:8, 3:8] = 1
    io.write_image(folder / "a.nii.gz", Volume(label, image.geometry))
    project.set_annotated("a", Annotated.of([(2, [4])]))
    project.save()
    text = write_run_report(project, "r", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>The volume</h2>" in text and "5 slices of a, evenly spaced" in text
    case = project.case("a")
    panels = volume_panels(image, Volume(label, image.geometry), (1,), case.annotated)
    titles = [panel.title for panel in panels]
    assert titles == [
        "slice 2 of 8",
        "slice 3 of 8",
        "slice 5 of 8, drawn",
        "slice 6 of 8",
        "slice 7 of 8",
    ]
    for panel in panels:
        assert panel.labels["filled in"].sum() == 25, "the block, five by five"


def test_pictures_open_at_full_size_without_a_script():
    page = Page("t")
    page.section("s")
    page.figures((paired_cases({"a": 0.1}, {"a": 0.2}, ("x", "y")), "c"))
    text = page.html()
    assert re.search(r'<label class="zoom"[^>]*><input type="checkbox"><img class="chart"', text)
    assert ".zoom input:checked + img { max-width: none; width: auto;" in text
    assert "@media screen and (max-width: 560px)" in text
