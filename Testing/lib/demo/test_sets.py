"""Data sets of simulated subjects: folders, geometry, intensities, what subjects share, cards.

A made-up package stands for those that carry real scans: a bright organ on the left of a body and
bone at its back, stored with axes in another order.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from MedSSLLib.benchmark.data import open_data
from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.events import Events
from MedSSLLib.demo import anatomies, recipes, sets
from MedSSLLib.demo.acquisition import ct_values, mr_values
from MedSSLLib.demo.anatomies import Anatomy, PackagedScan, RenderedHead, cropped, rendered_head
from MedSSLLib.demo.atlas import Atlas
from MedSSLLib.demo.data import gather
from MedSSLLib.demo.deformation import flow_of, random_velocity
from MedSSLLib.demo.recipes import SAMPLE_SETS, Acquisition, card
from MedSSLLib.demo.sets import draw_subject, seen_by, write_sample_set
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume, orient
from Testing.lib.case_helpers import each

AIR, FLESH, ORGAN, BONE = -1000, 40, 160, 700
BODY = Geometry((30, 26, 24), (3.0, 3.0, 4.0), (-40.0, 12.0, -100.0))  # 90 x 78 x 96 mm
ORGAN_AT, BONE_AT = np.array([18.0, 0.0, 0.0]), np.array([0.0, 22.0, 0.0])  # left; posterior


def body():
    """Hounsfield units and label of the body, axes left, posterior, superior."""
    middle = BODY.points((np.array(BODY.size) - 1) / 2)
    index = np.moveaxis(np.indices(BODY.shape), 0, -1)[..., ::-1]
    x = BODY.points(index) - middle
    grey = np.full(BODY.shape, AIR, np.int16)
    label = np.zeros(BODY.shape, np.uint8)
    grey[np.hypot(x[..., 0] / 40, x[..., 1] / 34) < 1] = FLESH
    organ = np.linalg.norm(x - ORGAN_AT, axis=-1) < 13
    bone = np.hypot(x[..., 0], x[..., 1] - BONE_AT[1]) < 8
    for place, value, number in ((organ, ORGAN, 5), (bone, BONE, 9)):
        grey[place], label[place] = value, number
    label[organ & (x[..., 2] > 0)] = 6  # the organ has two values in the source
    return Volume(grey, BODY), Volume(label, BODY)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A set of the made-up package, which is found as installed ones are."""
    folder = tmp_path / "installed" / "toypackage"
    for name, volume in zip(("scan", "label"), body(), strict=True):
        io.write_image(folder / f"{name}.nii.gz", orient(volume, "RIA"))
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    source = PackagedScan(
        "toypackage",
        "toys==1.2",
        "scan.nii.gz",
        "label.nii.gz",
        {"organ": (5, 6), "bone": (9,)},
        "CT",
    )
    recipe = replace(
        SAMPLE_SETS["chest-ct"],
        source=source,
        extent=(72.0, 64.0, 60.0),
        centre=(0.0, 0.0, 0.0),
        protocols={
            "Thick": Acquisition((3.0, 3.0, 6.0), noise=10),
            "Thin": Acquisition((4.0, 4.0, 4.0), noise=20),
        },
        scales=((4.0, 3.0), (2.0, 0.5)),
        shifts=(0.0, 0.0),
    )
    monkeypatch.setitem(recipes.SAMPLE_SETS, "toy", recipe)
    return recipe


def read(folder, name):
    image = io.read_image(folder / "images" / f"{name}.nii.gz")
    return image, io.read_label(folder / "labels" / f"{name}.nii.gz", image.geometry, case=name)


def centroid(label, value):
    k, j, i = np.nonzero(label.array == value)
    return label.geometry.points(np.stack([i, j, k], axis=-1)).mean(axis=0)


# ------------------------------------------------------------------------------------------------
# folders


def test_the_command_makes_a_folder_that_the_benchmark_reads(toy, tmp_path, capsys):
    out = tmp_path / "made"
    code = main(["benchmark", "data", "toy", "--out", str(out), "--subjects", "12", "--seed", "4"])
    assert code == 0 and "card.md" in capsys.readouterr().out
    project, choices = open_data(out, tmp_path / "p", ("1", "2", "8"), 3, seed=0)
    test, pool = {c.name for c in project.test}, {c.name for c in project.pool}
    splits = json.loads((out / "splits.json").read_text())
    assert (len(test), len(pool)) == (3, 9) and not test & pool
    assert (set(splits["test"]), set(splits["pool"])) == (test, pool)
    assert project.classes == ("background", "organ", "bone")
    assert project.modalities == ("CT",)
    for count, some in choices.items():
        assert len(some) == 3 and all(len(set(names)) == int(count) for names in some)
        assert all(set(names) <= pool for names in some)
    with (out / "metadata.csv").open() as stream:
        rows = {row["case"]: row["scanner"] for row in csv.DictReader(stream)}
    assert sorted(rows.values()) == ["Thick"] * 6 + ["Thin"] * 6
    for names in (*splits["labelled"]["2"], *splits["labelled"]["8"]):
        thick = sum(rows[name] == "Thick" for name in names)
        assert 2 * thick == len(names), "scanners take turns"


def test_images_are_in_hounsfield_units_and_labels_on_what_they_name(toy, tmp_path):
    write_sample_set("toy", tmp_path / "made", subjects=4)
    for number, expected in ((1, (3.0, 3.0, 6.0)), (2, (4.0, 4.0, 4.0))):
        image, label = read(tmp_path / "made", f"toy_{number:02d}")
        assert image.geometry.spacing == expected and image.geometry.code == "LPS"
        assert image.geometry.close_to(label.geometry)
        assert image.array.dtype == np.int16 and image.array.min() >= -1024
        for value, hounsfield in ((1, ORGAN), (2, BONE)):
            inside = image.array[ndimage.binary_erosion(label.array == value)]
            assert np.median(inside) == pytest.approx(hounsfield, abs=0.03 * hounsfield + 4)
        flesh = image.array[(label.array == 0) & (image.array > -100)]
        assert np.median(flesh) == pytest.approx(FLESH, abs=6)
        moved = centroid(label, 1) - centroid(label, 2)
        np.testing.assert_allclose(moved, ORGAN_AT - BONE_AT, atol=7)  # pose, deformation
        millilitres = (label.array == 1).sum() * label.geometry.voxel_ml
        assert millilitres == pytest.approx(4 / 3 * np.pi * 1.3**3, rel=0.35)


def test_the_same_seed_gives_the_same_and_more_subjects_change_none(toy, tmp_path):
    made = {}
    for name, count, seed in (("a", 5, 3), ("b", 4, 3), ("c", 4, 2)):
        write_sample_set("toy", tmp_path / name, subjects=count, seed=seed)
        made[name] = [read(tmp_path / name, f"toy_{n:02d}") for n in range(1, 5)]
    for first, same, other in zip(*made.values(), strict=True):
        for part in (0, 1):
            np.testing.assert_array_equal(first[part].array, same[part].array)
            assert first[part].geometry == same[part].geometry
            assert (first[part].array != other[part].array).any()


def test_no_two_subjects_share_a_deformation(toy, tmp_path, monkeypatch):
    """With one pose for all, the second moments of the organ differ by the deformation alone."""
    monkeypatch.setattr(sets, "random_pose", lambda *_, **__: np.eye(3))
    write_sample_set("toy", tmp_path / "made", subjects=6)
    shapes = []
    for number in range(1, 7):
        _, label = read(tmp_path / "made", f"toy_{number:02d}")
        k, j, i = np.nonzero(label.array == 1)
        shapes.append(np.cov(label.geometry.points(np.stack([i, j, k], axis=-1)).T))
    for first, second in combinations(shapes[::2], 2):  # of one scanner
        assert np.abs(first - second).max() > 0.02 * np.abs(first).max()


@each(
    ("name", "subjects", "seed", "words"),
    [
        ("toys", 6, 0, "no data set 'toys'.*chest-ct"),
        ("toy", 3, 0, "at least 4"),
        ("toy", 6, -1, "a seed from 0"),
    ],
)
def test_what_cannot_be_made_is_refused(toy, tmp_path, name, subjects, seed, words):
    with pytest.raises(InputError, match=words):
        write_sample_set(name, tmp_path / "made", subjects=subjects, seed=seed)
    assert not (tmp_path / "made").exists()


def test_a_folder_with_files_is_left_alone_and_a_failure_leaves_none(toy, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        write_sample_set("toy", tmp_path / "mine", subjects=4)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["scan.txt"]
    monkeypatch.setattr(sets, "card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_sample_set("toy", tmp_path / "made", subjects=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["installed", "mine"]


def test_the_demo_takes_a_set_too(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sets, "write_sample_set", lambda name, out, **_: _small(write_sample_set, name, out)
    )
    cohort = gather("toy", tmp_path / "demo", 0, Events())
    project = cohort.project(tmp_path / "p", seed=0)
    assert cohort.name == "toy" and "one body" in cohort.words
    assert [len(project.test), len(project.labelled)] == [1, 2]


def _small(write, name, out):
    return write(name, out, subjects=6)


# ------------------------------------------------------------------------------------------------
# bodies


def test_a_packages_scan_keeps_its_place_and_its_classes(toy):
    scan, label = body()
    for steps, within in (((1, 1, 1), 1e-3), ((2, 2, 1), 0.4)):  # blocks are filled in part
        found = replace(toy.source, thinned=steps).load()
        np.testing.assert_allclose(found.geometry.spacing, np.multiply(BODY.spacing, steps))
        for number, values in enumerate(toy.source.merged.values()):
            weight = found.classes[number]
            index = np.moveaxis(np.indices(weight.shape), 0, -1)[..., ::-1]
            where = np.average(found.geometry.points(index).reshape(-1, 3), 0, weight.ravel())
            drawn = replace(label, array=np.isin(label.array, values).astype(np.uint8))
            np.testing.assert_allclose(where, centroid(drawn, 1), atol=within)
        assert found.grey.mean() == pytest.approx(scan.array.mean(), rel=1e-4)


def test_a_missing_package_says_how_to_install_it_alone(toy):
    gone = replace(toy.source, package="toypackage_gone")
    with pytest.raises(MedSSLError, match='"--no-deps" "toys==1.2"'):
        gone.load()
    without_files = replace(toy.source, image="other.nii.gz")
    with pytest.raises(MedSSLError, match="toypackage is missing"):
        without_files.load()


def test_a_scan_goes_on_mirrored_and_a_head_with_air():
    ramp = np.arange(20.0) * np.ones((4, 4, 1))
    grid = Geometry((20, 4, 4), (10.0, 10.0, 10.0))
    for beyond, first in (("reflect", [3, 2, 1, 0]), ("edge", [0, 0, 0, 0])):
        whole = Anatomy(ramp, ramp[None] / 20, grid, beyond)
        part = cropped(whole, np.array([45.0, 15.0, 15.0]), np.array([90.0, 10.0, 10.0]))
        assert part.geometry.origin[0] == -30, "a margin of 25 mm, in whole voxels"
        row = part.grey[2, 2]
        np.testing.assert_array_equal(row[:4], first)
        np.testing.assert_array_equal(row[3:15], np.arange(12))
        np.testing.assert_allclose(part.classes[0], part.grey / 20)


def test_a_rendered_head_has_the_numbers_of_tissue():
    z, y, x = np.indices((56, 56, 56)) - 28
    radius = np.sqrt(x * x + y * y + z * z)
    grey = ((radius < 8) & (radius >= 5)).astype(float)
    white = (radius < 5).astype(float)
    brain = (radius < 9).astype(float)  # fluid outside
    head = rendered_head(brain, grey, white)
    line = head[28, 28, 28:]  # outwards
    assert line[1] == pytest.approx(29, abs=1) and line[6] == pytest.approx(37, abs=1)
    assert line[11:16].min() > 450, "skull"
    assert -100 < line[18] < 0, "fat"
    assert line[-1] == -1000 and head.max() < 1300


def test_a_head_is_not_mirrored(monkeypatch):
    """RAS maps with ventricles on the right become LPS maps with them on the right: minus x."""
    maps = np.zeros((5, 40, 44, 30))
    maps[:3, 4:-4, 4:-4, 4:-4] = 0.5
    maps[3, 26:30, 30:34, 8:12] = 1
    origin = np.array([-19, -30, -10])
    monkeypatch.setattr(anatomies, "load_atlas", lambda: Atlas(maps, origin))
    head = RenderedHead().load()
    k, j, i = np.nonzero(head.classes[0] > 0.5)
    where = head.geometry.points(np.stack([i, j, k], -1)).mean(0)
    np.testing.assert_allclose(where, [-(27.5 - 19), -(31.5 - 30), 9.5 - 10])


# ------------------------------------------------------------------------------------------------
# scanners


def test_noise_of_ct_has_its_deviation_and_grain_within_slices():
    flat = np.full((12, 60, 60), 50.0)
    values = ct_values(flat, 20, 0.8, np.random.default_rng(1)).astype(float) - 50
    assert 16 < values.std() < 25 and abs(values.mean()) < 1
    along, across = ((values[:, :, 1:] * values[:, :, :-1]), (values[1:] * values[:-1]))
    assert along.mean() > 0.4 * values.var()
    assert abs(across.mean()) < 0.03 * values.var()
    edges = ct_values(np.array([[[-3000.0, 9000.0]] * 2] * 2), 1, 0.5, np.random.default_rng(1))
    assert (edges.min(), edges.max()) == (-1024, 3071)


def test_mr_is_brighter_where_the_signal_is_and_never_negative(toy):
    recipe = replace(toy, source=replace(toy.source, modality="MR"))
    whole = recipe.body()
    assert 0.9 < whole.grey.max() < 1.5
    drawn = draw_subject(whole, recipe, "Thick", np.random.default_rng(1))
    organ, bone = (drawn.image.array[drawn.label.array == value].mean() for value in (1, 2))
    assert drawn.image.array.dtype == np.uint16 and organ < bone
    assert mr_values(np.zeros((3, 3, 3)), 0.0, 100, np.random.default_rng(1)).max() == 0


def test_thick_slices_mix_tissue_along_their_axis_alone():
    """A point becomes a Gaussian whose width is 0.35 of the voxel where that is the coarser one."""
    point = np.zeros((15, 9, 9))
    point[7, 4, 4] = 1
    grid = Geometry((9, 9, 15), (3.0, 3.0, 2.0))
    seen = seen_by(Anatomy(point, point[None], grid), Acquisition((3.0, 3.0, 6.0), noise=1))
    for array in (seen.grey, seen.classes[0]):
        along = array.sum((1, 2))
        spread = ((np.arange(15) - 7) ** 2 * 4.0 * along).sum()
        assert spread == pytest.approx((0.35 * 6) ** 2, rel=0.05)
        assert array[:, 4, 4].sum() == pytest.approx(1)


def test_shifts_change_a_class_and_nothing_else(toy):
    whole = toy.body()
    quiet = replace(toy, protocols={"Thick": Acquisition((3.0, 3.0, 6.0), noise=0)})
    shifted = replace(quiet, shifts=(100.0, 0.0))
    first, second = (
        draw_subject(whole, recipe, "Thick", np.random.default_rng(7))
        for recipe in (quiet, shifted)
    )
    np.testing.assert_array_equal(first.label.array, second.label.array)
    change = second.image.array.astype(int) - first.image.array
    assert abs(np.median(change[first.label.array == 1])) > 10
    assert not change[first.label.array == 2].any()


@each("name", list(SAMPLE_SETS))
def test_deformations_do_not_fold(name):
    velocity = random_velocity((16, 16, 16), SAMPLE_SETS[name].scales, np.random.default_rng(2))
    flow = flow_of(velocity / 5.0)
    jacobian = np.stack([np.stack(np.gradient(part), axis=-1) for part in flow], axis=-2)
    assert np.linalg.det(jacobian + np.eye(3)).min() > 0
    assert 2 < np.abs(flow * 5).max() < 40


# ------------------------------------------------------------------------------------------------
# cards


@each("name", list(SAMPLE_SETS))
def test_a_card_says_what_is_real_whose_it_is_and_how_hard(name):
    if name == "head-ct":
        pytest.importorskip(
            "nilearn", reason="the head needs nilearn: pip install 'MedSSLLib[demo]'"
        )
    rows = {}
    for line in card(name, 24, 0).splitlines():
        if line.startswith("| ") and line.count("|") == 3:
            what, words = (part.strip() for part in line.strip("|").split("|"))
            rows[what] = words
    assert {"source", "origin", "licence", "cite", "real", "simulated", "how hard"} <= set(rows)
    assert all(words for what, words in rows.items() if what), "nothing is left open"
    assert rows["cases"] == "18 for training and 6 for testing"
    assert "doi:" in rows["cite"] and "Dice" in rows["how hard"]
    recipe = SAMPLE_SETS[name]
    assert all(what in rows["classes"] for what in recipe.source.merged)
    assert len(recipe.shifts) == len(recipe.source.merged)
    measured = Path(__file__).parents[2] / "bench" / "results" / f"{name}-60-steps.json"
    if measured.is_file():  # not where only the library and its tests are
        (record,) = json.loads(measured.read_text())["records"]
        assert f"Dice {record['summary']['dice']:.3f} after 60 steps" in rows["how hard"]
        for dice in record["per_class"].values():
            assert dice < 0.005 or f"{dice:.2f}" in rows["how hard"]
