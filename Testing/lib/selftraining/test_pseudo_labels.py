"""Pseudo-labels of a round: the grid, what is drawn stays, clean-up, filters, alarms."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MedSSLLib.core.errors import GuardError, InputError
from MedSSLLib.data.plan import make_plan
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.inference.model import Model
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining import pseudo_labels
from MedSSLLib.selftraining.pseudo_labels import (
    CollapsedError,
    PseudoOptions,
    absent,
    drift,
    leak_words,
    pseudo_labelled,
    select_cases,
    taken_from,
    write_pseudo_labels,
)
from Testing.lib.case_helpers import each

PROJECT = SimpleNamespace(
    values=(0, 3, 700),
    classes=("background", "a", "b"),
    labels={0: "background", 3: "a", 9: "ignore", 700: "b"},
    ignore_value=9,
)


class Foreseen(Model):
    """A model whose probabilities come from ``predicted``."""

    def probabilities(self, volumes, *, flips=False):
        return None, None


MODEL = Foreseen(
    network=None,
    plan=None,
    values=PROJECT.values,
    classes=PROJECT.classes,
    device=torch.device("cpu"),
    precision="32",
    single_component=(1, 2),
)


def probabilities_of(classes, sure=0.75):
    return np.stack([np.where(classes == c, sure, (1 - sure) / 2) for c in range(3)])


def predicted(monkeypatch, classes, sure=0.75):
    """Let the model predict a class map [k, j, i] of the source grid."""
    monkeypatch.setattr(pseudo_labels, "on_source", lambda *_: probabilities_of(classes, sure))


def case_on(tmp_path, geometry, name="x", label=None, annotated=None):
    image = np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32)
    io.write_image(tmp_path / f"{name}.nrrd", Volume(image, geometry))
    path = None
    if label is not None:
        path = tmp_path / f"{name}-label.nrrd"
        io.write_image(path, Volume(label.astype(np.int16), geometry))
    return Case(name, (tmp_path / f"{name}.nrrd",), path, annotated)


def box(shape, value=1):
    classes = np.zeros(shape, np.uint8)
    classes[1:4, 2:6, 2:6] = value
    return classes


def test_files_lie_on_the_source_grid_with_the_values_of_the_project(
    tmp_path, monkeypatch, geometry
):
    classes = box(geometry.shape, 2)
    predicted(monkeypatch, classes, sure=np.linspace(0.6, 0.9, classes.size).reshape(classes.shape))
    case = case_on(tmp_path, geometry)
    summary = write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / "r", PseudoOptions())
    label, sure = (io.read_image(tmp_path / "r" / part / "x.nii.gz") for part in ("", "confidence"))
    assert label.geometry.close_to(geometry) and sure.geometry.close_to(geometry)
    assert np.array_equal(label.array, 700 * (classes == 2))
    assert np.allclose(sure.array.ravel(), np.linspace(0.6, 0.9, classes.size), atol=0.0026)
    assert summary["cases"]["x"]["voxels"] == {"a": 0, "b": 48} and summary["kept"] == ["x"]
    assert summary["cases"]["x"]["confidence"] == pytest.approx(
        sure.array[classes > 0].mean(), abs=0.003
    )
    assert absent(summary) == ["a"]


def test_drawn_slices_are_kept_exactly_except_where_they_say_ignore(tmp_path, monkeypatch):
    geometry = Geometry((8, 8, 6))
    drawn = np.zeros((6, 8, 8), np.int16)
    drawn[3, :, :4], drawn[3, 0, 0], drawn[3, 3, 3] = 700, 3, 9
    predicted(monkeypatch, box((6, 8, 8)))
    case = case_on(tmp_path, geometry, label=drawn, annotated=Annotated.of([(2, [3])]))
    write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / "r", PseudoOptions(shapes=False))
    made = io.read_image(tmp_path / "r" / "x.nii.gz").array
    expected = 3 * box((6, 8, 8)).astype(int)
    expected[3] = np.where(drawn[3] == 9, expected[3], drawn[3])
    assert np.array_equal(made, expected) and made[3, 3, 3] == 3


def test_the_summary_has_the_seconds_that_all_cases_took(tmp_path, monkeypatch, geometry):
    predicted(monkeypatch, box(geometry.shape))
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pseudo_labels, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(
        Foreseen, "probabilities", lambda *_: (setattr(clock, "now", clock.now + 1.5), None)
    )
    cases = [case_on(tmp_path, geometry, name) for name in ("x", "y")]
    assert (
        write_pseudo_labels(PROJECT, MODEL, cases, tmp_path / "r", PseudoOptions())["seconds"]
        == 3.0
    )


def test_a_finished_folder_is_not_made_again(tmp_path, monkeypatch):
    predicted(monkeypatch, box((6, 8, 8)))
    case = case_on(tmp_path, Geometry((8, 8, 6)))
    first = write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / "r", PseudoOptions())
    monkeypatch.setattr(pseudo_labels, "on_source", None)
    assert write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / "r", PseudoOptions()) == first


def test_accepted_pseudo_labels_stay_as_a_person_left_them(tmp_path, monkeypatch):
    geometry = Geometry((8, 8, 6))
    cases = [case_on(tmp_path, geometry, name) for name in ("x", "y")]
    looked_at = np.zeros((6, 8, 8), np.int16)
    looked_at[2:4, 1:3] = 700
    for name in ("x", "y"):
        io.write_image(tmp_path / "old" / f"{name}.nii.gz", Volume(looked_at, geometry))
    predicted(monkeypatch, box((6, 8, 8)))
    options = PseudoOptions(accept=("x",), fixed=tmp_path / "old")
    write_pseudo_labels(PROJECT, MODEL, cases, tmp_path / "r", options)
    x, y = (io.read_image(tmp_path / "r" / f"{name}.nii.gz").array for name in ("x", "y"))
    assert np.array_equal(x, looked_at) and np.array_equal(y, 3 * box((6, 8, 8)))


def test_what_an_accepted_pseudo_label_says_to_ignore_is_left_to_the_model(tmp_path, monkeypatch):
    geometry = Geometry((8, 8, 6))
    looked_at = np.zeros((6, 8, 8), np.int16)
    looked_at[:, :4] = 9
    io.write_image(tmp_path / "old" / "x.nii.gz", Volume(looked_at, geometry))
    predicted(monkeypatch, box((6, 8, 8)))
    options = PseudoOptions(accept=("x",), fixed=tmp_path / "old")
    write_pseudo_labels(PROJECT, MODEL, [case_on(tmp_path, geometry)], tmp_path / "r", options)
    expected = 3 * box((6, 8, 8)).astype(int)
    expected[:, 4:] = 0
    assert np.array_equal(io.read_image(tmp_path / "r" / "x.nii.gz").array, expected)


def test_drawn_slices_do_not_hide_a_model_that_finds_nothing(tmp_path, monkeypatch):
    """Neither at once nor from round to round, nor do they make a case worth keeping; the summary
    is the model's.
    """
    drawn = np.full((6, 8, 8), 700, np.int16)
    geometry, annotated = Geometry((8, 8, 6)), Annotated.of([(2, [3])])
    cases = [case_on(tmp_path, geometry, name, drawn, annotated) for name in ("x", "y")]
    predicted(monkeypatch, np.zeros((6, 8, 8), np.uint8))
    with pytest.raises(CollapsedError, match="no foreground"):
        write_pseudo_labels(PROJECT, MODEL, cases, tmp_path / "a", PseudoOptions())
    maps = iter([box((6, 8, 8)), np.zeros((6, 8, 8), np.uint8)])
    monkeypatch.setattr(pseudo_labels, "on_source", lambda *_: probabilities_of(next(maps)))
    made = write_pseudo_labels(PROJECT, MODEL, cases, tmp_path / "b", PseudoOptions())
    assert made["kept"] == ["x"] and absent(made) == ["b"]
    assert (
        made["cases"]["x"]["voxels"] == {"a": 48, "b": 0} and made["cases"]["y"]["confidence"] == 0
    )
    assert made["cases"]["x"]["confidence"] == pytest.approx(0.75), (
        "the model's own, not that with the shapes"
    )
    assert io.read_label(tmp_path / "b" / "x.nii.gz", geometry).array[3].min() == 700


def test_no_foreground_anywhere_is_a_collapse_that_names_the_remedy(tmp_path, monkeypatch):
    predicted(monkeypatch, np.zeros((6, 8, 8), np.uint8))
    options = PseudoOptions(start="first")
    with pytest.raises(CollapsedError, match="Train run 'first' longer, or annotate"):
        write_pseudo_labels(
            PROJECT, MODEL, [case_on(tmp_path, Geometry((8, 8, 6)))], tmp_path / "f", options
        )
    with pytest.raises(CollapsedError, match="no foreground.*first stage longer.*annotate"):
        write_pseudo_labels(
            PROJECT,
            MODEL,
            [case_on(tmp_path, Geometry((8, 8, 6)))],
            tmp_path / "r",
            PseudoOptions(),
        )
    assert not (tmp_path / "r" / "summary.json").exists()


def test_clean_up_keeps_the_largest_component_and_fills_its_hole(tmp_path, monkeypatch):
    solid = np.zeros((6, 8, 8), np.uint8)
    solid[0:5, 0:5, 0:5] = 1
    holed = solid.copy()
    holed[2, 2, 2], holed[5, 7, 7] = 0, 1
    predicted(monkeypatch, holed)
    case = case_on(tmp_path, Geometry((8, 8, 6)))
    for clean, expected in (("components", solid), ("none", holed)):
        write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / clean, PseudoOptions(clean=clean))
        assert np.array_equal(io.read_image(tmp_path / clean / "x.nii.gz").array, 3 * expected), (
            clean
        )


@each(
    ("known", "left"),
    [
        ({"single_component": (2,)}, True),
        ({"single_component": (1, 2)}, False),
        ({"single_component": ()}, True),
        ({"connected_on_slices": (1,)}, False),
        ({"connected_on_slices": (2,)}, True),
    ],
)
def test_classes_of_several_pieces_keep_them(tmp_path, monkeypatch, known, left):
    two = box((6, 8, 8))
    two[5, 7, 7] = 1
    predicted(monkeypatch, two)
    model = replace(MODEL, **{"single_component": (), **known})
    write_pseudo_labels(
        PROJECT, model, [case_on(tmp_path, Geometry((8, 8, 6)))], tmp_path / "r", PseudoOptions()
    )
    assert io.read_image(tmp_path / "r" / "x.nii.gz").array[5, 7, 7] == 3 * left


@each("shapes", [True, False])
def test_a_piece_that_a_person_has_drawn_goes_on_beside_the_slice(tmp_path, monkeypatch, shapes):
    """Other labels show class 1 in one piece; on one slice of this case a person has drawn two."""
    two = np.zeros((6, 8, 12), np.uint8)
    two[1:5, 1:6, 1:6], two[1:5, 2:4, 9:11] = 1, 1  # 100 voxels and 16
    predicted(monkeypatch, two)
    geometry = Geometry((12, 8, 6))
    options = PseudoOptions(shapes=shapes)
    for name, drawn_on, stays in (("alone", None, False), ("drawn", 2, True)):
        given = {"annotated": Annotated.of([(2, [drawn_on])])} if drawn_on else {}
        case = case_on(tmp_path, geometry, name, 3 * two if drawn_on else None, **given)
        write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / f"r-{name}", options)
        found = io.read_image(tmp_path / f"r-{name}" / f"{name}.nii.gz").array
        assert (found[3, 2:4, 9:11] == 3 * stays).all() and (found[3, 1:6, 1:6] == 3).all(), name


def test_between_drawn_slices_the_pseudo_label_follows_their_shapes_too(tmp_path, monkeypatch):
    """Drawn is one square on two slices; the model, not sure, sees another class in it and a square
    elsewhere.
    """
    drawn, seen = np.zeros((2, 12, 16, 16), np.uint8)
    drawn[:, 3:9, 3:9] = 2
    seen[:, 3:9, 3:9], seen[:, 3:9, 11:15] = 1, 2
    predicted(monkeypatch, seen, sure=0.4)
    geometry, annotated = Geometry((16, 16, 12), (1.0, 1.0, 1.0)), Annotated.of([(2, [2, 8])])
    label = 350 * drawn.astype(np.int16)
    cases = [case_on(tmp_path, geometry, "x", label, annotated), case_on(tmp_path, geometry, "y")]
    found = {}
    cases.append(case_on(tmp_path, geometry, "z", label, Annotated.of([])))
    for shapes in (True, False):
        write_pseudo_labels(
            PROJECT,
            MODEL,
            cases,
            tmp_path / str(shapes),
            PseudoOptions(clean="none", shapes=shapes),
        )
        for name in ("x", "y", "z"):
            found[shapes, name] = io.read_image(tmp_path / str(shapes) / f"{name}.nii.gz").array
    for shapes, inside, elsewhere in ((True, 700, 0), (False, 3, 700)):
        between = found[shapes, "x"][3:8, 4:8]
        assert (between[..., 4:8] == inside).all() and (between[..., 12:14] == elsewhere).all()
    for name in ("y", "z"):
        assert np.array_equal(found[True, name], found[False, "y"]), "no slice of it counts"
    confidence = io.read_image(tmp_path / "True" / "confidence" / "x.nii.gz").array
    assert confidence[5, 15, 0] > 0.5, "far from what is drawn the shapes are surer than the model"


def test_a_class_that_the_drawn_slices_miss_stays_in_the_pseudo_label(tmp_path, monkeypatch):
    """All drawn slices lie at one end; the model is sure of another class at the other end."""
    drawn, seen = np.zeros((2, 24, 16, 16), np.uint8)
    drawn[1:7, 3:9, 3:9], seen[1:7, 3:9, 3:9], seen[16:22, 3:9, 3:9] = 1, 1, 2
    predicted(monkeypatch, seen, sure=0.8)
    case = case_on(
        tmp_path,
        Geometry((16, 16, 24), (1.0, 1.0, 3.0)),
        "x",
        3 * drawn,
        Annotated.of([(2, [1, 4, 6])]),
    )
    write_pseudo_labels(PROJECT, MODEL, [case], tmp_path / "r", PseudoOptions())
    assert np.array_equal(io.read_image(tmp_path / "r" / "x.nii.gz").array == 700, seen == 2)


def test_the_consistency_is_the_mean_dice_between_the_plain_prediction_and_its_variants(
    tmp_path, monkeypatch
):
    first, second, third = np.zeros((3, 6, 8, 8), np.uint8)
    first[0:2], second[1:3], third[0:2] = 1, 1, 1
    predicted(monkeypatch, first)
    variants = [torch.from_numpy(probabilities_of(part)) for part in (first, second, third)]
    geometry = Geometry((8, 8, 6))
    plan = make_plan([geometry], modality="MR")
    monkeypatch.setattr(Foreseen, "each_variant", lambda *_: iter(variants))
    model = replace(MODEL, plan=plan)
    options = PseudoOptions(filter="consistency", threshold=0.5)
    row = write_pseudo_labels(
        PROJECT, model, [case_on(tmp_path, geometry)], tmp_path / "r", options
    )["cases"]["x"]
    assert row["agreement"] == pytest.approx(0.75)  # 2 * 1 / (2 + 2) slices, and 1
    assert foreground_dice(first, np.zeros_like(first)) == 0 and foreground_dice(first, first) == 1
    assert foreground_dice(first * 0, first * 0) == 0


def rows(**cases):
    return {
        name: {"voxels": {"a": a}, "confidence": c, "agreement": g}
        for name, (a, c, g) in cases.items()
    }


def test_filters_acceptance_and_rejection():
    table = rows(p=(5, 0.9, 0.2), q=(5, 0.5, 0.9), r=(0, 0.99, 0.99))
    assert select_cases(table, PseudoOptions()) == ["p", "q"], "no foreground, nothing to learn"
    assert select_cases(table, PseudoOptions(filter="confidence")) == ["p"]
    assert select_cases(table, PseudoOptions(filter="consistency")) == ["q"]
    assert select_cases(table, PseudoOptions(filter="confidence", accept=("q",))) == ["p", "q"]
    assert select_cases(table, PseudoOptions(reject=("p",))) == ["q"]
    assert select_cases(table, PseudoOptions(accept=("r",))) == ["p", "q", "r"], (
        "a person says that it shows nothing"
    )
    assert select_cases(table, PseudoOptions(filter="confidence", threshold=0.5)) == ["p", "q"], (
        "the limit itself passes"
    )


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (PseudoOptions(filter="confidence", threshold=1.0), "Lower the threshold"),
        (PseudoOptions(reject=("p",)), "Take some out of --reject"),
    ],
)
def test_when_no_pseudo_label_is_left_the_cause_and_the_remedy_are_said(options, remedy):
    with pytest.raises(GuardError, match=f"No pseudo-label is left.*{remedy}") as caught:
        select_cases(rows(p=(5, 0.9, 0.9)), options)
    assert not isinstance(caught.value, CollapsedError)


def summary(*voxels):
    return {"cases": {str(i): {"voxels": {"a": a, "b": b}} for i, (a, b) in enumerate(voxels)}}


def test_the_drift_alarm():
    before = summary((10, 10), (20, 0))
    assert drift(before, summary((90, 10), (0, 1))) == [], "three times is still allowed"
    (warning,) = drift(before, summary((91, 10), (0, 1)))
    assert "class a grew 3.0 times" in warning
    with pytest.raises(CollapsedError, match="class b has vanished"):
        drift(before, summary((10, 0), (10, 0)))
    assert drift(summary((1, 0)), summary((1, 0))) == [], "what was never there has not vanished"


def test_kept_pseudo_labels_become_dense_labels_and_a_missing_file_is_named(tmp_path):
    cases = [Case("x", (tmp_path,), None, Annotated.of([(2, [1])])), Case("y", (tmp_path,))]
    (tmp_path / "x.nii.gz").touch()
    (made,) = pseudo_labelled(cases, tmp_path, ["x"])
    assert made.label == tmp_path / "x.nii.gz" and made.annotated is None
    with pytest.raises(InputError, match="y.*is missing"):
        pseudo_labelled(cases, tmp_path, ["x", "y"])


def test_pieces_that_are_not_taught_are_told_in_one_sentence():
    one = {"taken_away": {"left": {"pieces": 1, "ml": 0.25}}}
    two = {"taken_away": {"left": {"pieces": 2, "ml": 0.5}, "right": {"pieces": 1, "ml": 1.0}}}
    summary = {"cases": {"a": one, "b": two, "c": {"taken_away": {}}, "d": one, "e": one}}
    (said,) = taken_from(summary)
    assert (
        "lie 5 pieces of left (1.25 ml) and 1 piece of right (1 ml), taught as background, in a, "
        "b, d and 1 more. To keep"
    ) in said
    both = {"cases": {"a": one, "b": {"in_doubt": two["taken_away"]}}}
    (said,) = taken_from(both)
    assert "1 piece of left (0.25 ml), taught as background, in a; and 2 pieces of left" in said
    assert "of right (1 ml), shown, but teaching nothing, in b. To keep" in said
    assert taken_from({"cases": {"c": {"taken_away": {}}}}) == []


def test_growing_pseudo_labels_are_told():
    def summary(*voxels):
        return {"cases": {str(n): {"voxels": {"a": v, "b": 1}} for n, v in enumerate(voxels)}}

    first = summary(9, 19)
    assert leak_words(first, summary(19, 24)) == "", "1.5 times"
    assert "grown to 1.8 times" in leak_words(first, summary(29, 23))
    assert leak_words(first, first) == leak_words(first, summary(0, 0)) == ""
