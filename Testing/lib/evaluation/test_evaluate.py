"""Metrics against closed forms, naive loops and the rules for absent classes."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from MedSSLLib.cli.tables import print_metrics
from MedSSLLib.core.errors import InputError
from MedSSLLib.evaluation.evaluate import bootstrap_interval, evaluate_folder, summarise
from MedSSLLib.evaluation.metrics import METRICS, evaluate_case
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated, counted_mask
from Testing.lib.case_helpers import each

ONE = {"1": 1}


def box(shape, low, high, value=1):
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return array


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    squares = sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing, strict=True))
    return (squares <= radius**2).astype(np.uint8)


def naive_boundary(mask):
    """Millimetre-free list of foreground voxels with a face neighbour outside, by plain loops."""
    found = []
    for voxel in itertools.product(*(range(n) for n in mask.shape)):
        if not mask[voxel]:
            continue
        for axis, step in itertools.product(range(3), (-1, 1)):
            near = list(voxel)
            near[axis] += step
            inside = 0 <= near[axis] < mask.shape[axis]
            if not inside or not mask[tuple(near)]:
                found.append(voxel)
                break
    return found


def naive_distances(prediction, reference, spacing):
    edges = [naive_boundary(mask) for mask in (prediction, reference)]
    directed = []
    for mine, other in (edges, edges[::-1]):
        directed.append(
            [
                min(math.dist(np.multiply(a, spacing), np.multiply(b, spacing)) for b in other)
                for a in mine
            ]
        )
    return directed


@each("spacing", [(1.0, 1.0, 1.0), (4.0, 1.5, 0.7)])
@each("seed", [0, 1])
def test_distances_equal_naive_loops(seed, spacing):
    generator = np.random.default_rng(seed)
    prediction, reference = (generator.random((5, 6, 7)) < p for p in (0.3, 0.5))
    record = evaluate_case(prediction.astype(int), reference.astype(int), spacing, ONE, 1.0)["1"]
    forward, backward = naive_distances(prediction, reference, spacing)
    assert record["hd95_mm"] == pytest.approx(
        max(np.percentile(forward, 95), np.percentile(backward, 95)), abs=1e-5
    )
    assert record["assd_mm"] == pytest.approx(np.mean(forward + backward), abs=1e-5)


@each("axis", [0, 1, 2])
def test_shifted_boxes_in_closed_form(axis):
    """A box moved by s along one axis: Dice 1 - s/n, HD95 s mm, surface Dice by areas, not
    counts.
    """
    spacing, size, shift = np.array([5.0, 2.0, 1.0]), np.array([12, 30, 60]), 3
    low = np.array([2, 2, 2])
    moved = low + shift * (np.arange(3) == axis)
    tolerance = 1.5 * spacing[axis]
    boxes = box(size + 7, moved, moved + size), box(size + 7, low, low + size)
    record = evaluate_case(*boxes, spacing, ONE, tolerance)["1"]
    assert record["dice"] == pytest.approx(1 - shift / size[axis])
    assert record["hd95_mm"] == pytest.approx(shift * spacing[axis])
    length, (a, b) = size[axis] * spacing[axis], np.delete(size * spacing, axis)
    outer, inner = (
        0,
        a * b - (a - 2 * tolerance) * (b - 2 * tolerance),
    )  # of the inner end face its rim agrees
    sides = 2 * (a + b) * (length - shift * spacing[axis] + tolerance)
    expected = (outer + inner + sides) / (2 * a * b + 2 * (a + b) * length)
    assert record["surface_dice"] == pytest.approx(expected, abs=0.015)
    assert record["volume_ml"] == pytest.approx(length * a * b / 1000)


def test_concentric_balls():
    """Radii 12 and 9 mm: distances 3 mm within the voxel size, Dice 2 v / (V + v), volumes of
    spheres.
    """
    spacing = (2.0, 1.0, 1.0)
    shape, centre = (17, 33, 33), (8, 16, 16)
    record = evaluate_case(
        ball(shape, centre, 9, spacing), ball(shape, centre, 12, spacing), spacing, ONE, 3.6
    )["1"]
    assert record["assd_mm"] == pytest.approx(3, abs=0.5)
    assert record["hd95_mm"] == pytest.approx(3, abs=1.0)
    assert record["surface_dice"] > 0.9
    assert record["dice"] == pytest.approx(2 * 9**3 / (9**3 + 12**3), rel=0.03)
    assert record["volume_ml"] == pytest.approx(4 / 3 * math.pi * 9**3 / 1000, rel=0.05)
    assert evaluate_case(
        ball(shape, centre, 9, spacing), ball(shape, centre, 12, spacing), spacing, ONE, 1.0
    )["1"]["surface_dice"] == pytest.approx(0, abs=0.02)


def test_identity_symmetry_and_image_border():
    shape = (6, 8, 9)
    reference = box(shape, (0, 0, 0), shape)
    record = evaluate_case(reference, reference, (3, 1, 1), ONE, 1)["1"]
    assert (record["dice"], record["hd95_mm"], record["assd_mm"], record["surface_dice"]) == (
        1,
        0,
        0,
        1,
    )
    other = box(shape, (1, 2, 3), (4, 8, 9))
    one, two = (
        evaluate_case(a, b, (3, 1, 1), ONE, 1)["1"]
        for a, b in ((reference, other), (other, reference))
    )
    for metric in METRICS[:4]:
        assert one[metric] == pytest.approx(two[metric])
    assert (one["volume_ml"], one["reference_ml"]) == (two["reference_ml"], two["volume_ml"])


def test_distances_scale_with_millimetres_and_follow_the_axes():
    generator = np.random.default_rng(4)
    prediction, reference = (
        (generator.random((5, 7, 6)) < 0.4).astype(int),
        ball((5, 7, 6), (2, 3, 3), 2),
    )
    base = evaluate_case(prediction, reference, (3, 2, 1), ONE, 1)["1"]
    double = evaluate_case(prediction, reference, (6, 4, 2), ONE, 2)["1"]
    turned = evaluate_case(
        prediction.transpose(2, 0, 1), reference.transpose(2, 0, 1), (1, 3, 2), ONE, 1
    )["1"]
    for metric, factor in (
        ("dice", 1),
        ("hd95_mm", 2),
        ("assd_mm", 2),
        ("surface_dice", 1),
        ("volume_ml", 8),
    ):
        assert double[metric] == pytest.approx(factor * base[metric], rel=1e-5)
        assert turned[metric] == pytest.approx(base[metric], rel=1e-5)


def test_absent_classes():
    empty, full = np.zeros((4, 5, 6), int), box((4, 5, 6), (1, 1, 1), (3, 4, 4))
    both = evaluate_case(empty, empty, (1, 1, 1), ONE, 1)["1"]
    assert both == dict.fromkeys(METRICS[:4]) | {"volume_ml": 0, "reference_ml": 0}
    for pair in ((empty, full), (full, empty)):
        record = evaluate_case(*pair, (1, 1, 1), ONE, 1)["1"]
        assert (record["dice"], record["surface_dice"]) == (0, 0)
        assert (record["hd95_mm"], record["assd_mm"]) == (None, None)


def test_only_annotated_slices_count():
    reference = box((10, 8, 8), (2, 2, 2), (8, 6, 6))
    prediction = reference.copy()
    prediction[4] = 0  # wrong on a slice that is not annotated
    counted = counted_mask(reference.shape, Annotated.of([(2, [3, 6])]))
    record = evaluate_case(prediction, reference, (2, 1, 1), ONE, 1, counted)["1"]
    assert record["dice"] == 1
    assert record["volume_ml"] == pytest.approx(2 * 16 * 2 / 1000)
    assert record["hd95_mm"] is record["assd_mm"] is record["surface_dice"] is None
    prediction[6] = 0
    assert evaluate_case(prediction, reference, (2, 1, 1), ONE, 1, counted)["1"][
        "dice"
    ] == pytest.approx(2 / 3)
    everything = np.ones(reference.shape, bool)
    assert evaluate_case(prediction, reference, (2, 1, 1), ONE, 1, everything) == evaluate_case(
        prediction, reference, (2, 1, 1), ONE, 1
    )


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match="shape"):
        evaluate_case(np.zeros((2, 3, 4), int), np.zeros((4, 3, 2), int), (1, 1, 1), ONE, 1)


def test_summary_is_mean_over_cases_of_mean_over_classes():
    def record(dice):
        return dict.fromkeys(METRICS, dice)

    cases = {
        "a": {"1": record(0.8), "2": record(0.4)},
        "b": {"1": record(0.5), "2": record(None)},
        "c": {"1": record(None), "2": record(None)},
    }
    summary = summarise(cases)["dice"]
    assert summary["per_case"] == {"a": pytest.approx(0.6), "b": 0.5, "c": None}
    assert summary["mean"] == pytest.approx(0.55)
    assert summary["per_class"] == {"1": pytest.approx(0.65), "2": 0.4}
    assert (summary["n"], summary["undefined"]) == (2, 3)


OBLIQUE = Geometry(
    (8, 7, 6), (1.0, 2.0, 3.0), (5.0, -3.0, 2.0), (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
)


def folders(tmp_path, **cases):
    """Write {case: (prediction or None, reference or None)} and return both folders."""
    for side, place in enumerate(("predictions", "references")):
        for case, pair in cases.items():
            if pair[side] is not None:
                io.write_image(tmp_path / place / f"{case}.nii.gz", Volume(pair[side], OBLIQUE))
    return tmp_path / "predictions", tmp_path / "references"


def test_folder_gives_the_documented_file(tmp_path):
    one, two = box((6, 7, 8), (1, 1, 1), (5, 5, 5)), box((6, 7, 8), (1, 1, 1), (5, 5, 5), value=7)
    predictions, references = folders(tmp_path, a=(one, one), b=(two, two))
    result = evaluate_folder(predictions, references, tmp_path / "out" / "metrics.json", 2.0)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert list(result["cases"]["a"]) == ["1", "7"]
    assert result["cases"]["a"]["1"]["volume_ml"] == pytest.approx(64 * 6 / 1000)
    assert result["cases"]["a"]["7"]["dice"] is None
    assert set(result["summary"]) == set(METRICS)
    dice = result["summary"]["dice"]
    assert (dice["mean"], dice["n"], dice["undefined"], dice["per_class"]) == (
        1,
        2,
        2,
        {"1": 1, "7": 1},
    )


def test_structures_that_a_prediction_lacks_are_counted(tmp_path, capsys):
    """Case a lacks one of two classes, b both; c has one that the reference has not."""
    both = box((6, 7, 8), (1, 1, 1), (5, 5, 5)) + box((6, 7, 8), (1, 1, 1), (2, 5, 5))
    one, nothing = np.where(both == 2, 0, both), np.zeros_like(both)
    folder = folders(tmp_path, a=(one, both), b=(nothing, both), c=(both, one))
    result = evaluate_folder(*folder, None, 2.0)
    assert result["missed"] == 3
    assert result["summary"]["hd95_mm"]["undefined"] == 4
    print_metrics(result)
    assert "3 structures missed: in the reference, not in the prediction" in capsys.readouterr().out
    assert evaluate_folder(folder[1], folder[1], None, 2.0)["missed"] == 0


@each(("axis", "millimetres"), [(0, 3.0), (1, 2.0), (2, 1.0)])
def test_files_are_measured_in_their_own_spacing(tmp_path, axis, millimetres):
    """One voxel along k, j or i of the array is 3, 2 or 1 mm in the files."""
    reference = box((6, 7, 8), (1, 1, 1), (4, 5, 6))
    predictions, references = folders(tmp_path, a=(np.roll(reference, 1, axis=axis), reference))
    record = evaluate_folder(predictions, references, None, 1.0)["cases"]["a"]["1"]
    assert record["hd95_mm"] == pytest.approx(millimetres)


def test_good_cases_go_on_and_bad_ones_are_named(tmp_path):
    good = box((6, 7, 8), (1, 1, 1), (5, 5, 5))
    predictions, references = folders(
        tmp_path, good=(good, good), extra=(good, None), missing=(None, good)
    )
    shifted = Geometry(OBLIQUE.size, OBLIQUE.spacing, (50.0, 0.0, 0.0), OBLIQUE.direction)
    io.write_image(references / "elsewhere.nii.gz", Volume(good, OBLIQUE))
    io.write_image(predictions / "elsewhere.nii.gz", Volume(good, shifted))
    io.write_image(references / "torn.nii.gz", Volume(good, OBLIQUE))
    (predictions / "torn.nii.gz").write_bytes(b"not an image")
    io.write_image(references / "twice.nii.gz", Volume(good, OBLIQUE))
    for extension in ("nii.gz", "nrrd"):
        io.write_image(predictions / f"twice.{extension}", Volume(good, OBLIQUE))
    result = evaluate_folder(predictions, references, None, 1.0)
    assert list(result["cases"]) == ["good"]
    assert (result["missing"], result["extra"]) == (["missing"], ["extra"])
    assert sorted(result["errors"]) == ["elsewhere", "torn", "twice"]
    assert all(case in text for case, text in result["errors"].items())


def test_nothing_to_score_and_bad_tolerance(tmp_path):
    good = box((6, 7, 8), (1, 1, 1), (5, 5, 5))
    predictions, references = folders(tmp_path, left=(good, None), right=(None, good))
    with pytest.raises(InputError, match="left.*right"):
        evaluate_folder(predictions, references, None, 1.0)
    with pytest.raises(InputError, match="tolerance"):
        evaluate_folder(references, references, None, 0.0)
    with pytest.raises(InputError, match="nowhere"):
        evaluate_folder(tmp_path / "nowhere", references, None, 1.0)


def test_annotated_slices_of_a_folder(tmp_path):
    reference = box((6, 7, 8), (1, 1, 1), (5, 5, 5))
    prediction = reference.copy()
    prediction[2] = 0
    predictions, references = folders(tmp_path, a=(prediction, reference))
    sparse = evaluate_folder(
        predictions, references, None, 1.0, annotated={"a": Annotated.of([(2, [3])])}
    )
    assert sparse["cases"]["a"]["1"]["dice"] == 1
    assert evaluate_folder(predictions, references, None, 1.0)["cases"]["a"]["1"]["dice"] < 1


def test_voxels_to_be_ignored_do_not_count_and_values_of_no_class_are_told(tmp_path):
    """Four reference voxels, two of them ignored; the prediction has two right ones, two on the
    ignored, one wrong.
    """
    reference, prediction = np.zeros((2, 6, 7, 8), np.uint8)
    reference[3, 3, 2:4], reference[3, 3, 4:6] = 1, 9
    prediction[3, 3, 2:6], prediction[3, 3, 6], prediction[0, 0, 0] = 1, 1, 5
    predictions, references = folders(tmp_path, a=(prediction, reference))
    result = evaluate_folder(predictions, references, None, 1.0, classes={"organ": 1, "Ignore": 9})
    assert list(result["cases"]["a"]) == ["organ"] and result["unknown"] == {"a": [5]}
    record = result["cases"]["a"]["organ"]
    assert record["dice"] == 2 * 2 / (3 + 2) and record["hd95_mm"] is None, (
        "the surface is not known there"
    )
    both = {"a": Annotated.of([(2, [3])])}
    sparse = evaluate_folder(
        predictions, references, None, 1.0, classes={"organ": 1, "ignore": 9}, annotated=both
    )
    assert sparse["cases"]["a"]["organ"]["dice"] == 2 * 2 / (3 + 2)


def test_a_place_that_cannot_be_written_is_refused_before_scoring(tmp_path):
    good = box((6, 7, 8), (1, 1, 1), (5, 5, 5))
    predictions, references = folders(tmp_path, a=(good, good))
    (tmp_path / "file").touch()
    for out, words in (
        (tmp_path, "is a folder, expected"),
        (tmp_path / "file" / "x" / "m.json", "not a folder"),
    ):
        with pytest.raises(InputError, match=words):
            evaluate_folder(predictions, references, out, 1.0)


def test_bootstrap_matches_the_normal_interval_for_many_cases():
    generator = np.random.default_rng(0)
    differences = generator.normal(0.05, 0.1, 400)
    mean, low, high = bootstrap_interval(differences)
    half = 1.96 * differences.std() / math.sqrt(400)
    assert mean == pytest.approx(differences.mean())
    assert low == pytest.approx(mean - half, abs=0.002)
    assert high == pytest.approx(mean + half, abs=0.002)


def test_bootstrap_knows_that_few_choices_weigh_more_than_many_cases():
    """All variation between choices: the interval must not shrink with the number of cases."""
    by_choice = np.array([[-0.1], [0.0], [0.1], [0.2], [0.05]])
    few, many = (bootstrap_interval(np.repeat(by_choice, n, axis=1)) for n in (2, 200))
    half = 1.96 * by_choice.std() / math.sqrt(5)
    assert many[2] - many[1] == pytest.approx(2 * half, rel=0.15)
    assert few[2] - few[1] == pytest.approx(many[2] - many[1], rel=0.1)


def test_bootstrap_leaves_undefined_out_and_is_deterministic():
    values = np.array([[0.1, np.nan, 0.3], [0.2, 0.2, np.nan]])
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values)[0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="defined"):
        bootstrap_interval(np.array([np.nan]))
