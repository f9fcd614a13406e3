"""The simulated cohort: physical space, anatomy, noise, determinism."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math

import numpy as np
import pytest

pytest.importorskip(
    "nilearn", reason="the demo cohort needs nilearn: pip install 'MedSSLLib[demo]'"
)

from MedSSLLib.core.errors import InputError
from MedSSLLib.demo import simulate
from MedSSLLib.demo.atlas import Atlas, load_atlas
from MedSSLLib.demo.simulate import (
    CLASSES,
    SCANNERS,
    blurred,
    sample_displacement,
    simulate_cohort,
    simulate_subject,
)
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from Testing.lib.case_helpers import each


@pytest.fixture(scope="module")
def atlas():
    """The template; every cohort of this file is made from it, read and blurred once."""
    atlas = load_atlas()
    atlas.maps.flags.writeable = False
    once = functools.cache(lambda scanner: blurred(atlas, scanner))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "load_atlas", lambda: atlas)
        patch.setattr(simulate, "blurred", lambda template, scanner: once(scanner))
        yield atlas


@pytest.fixture(scope="module")
def scans(atlas):
    """One subject (one seed) in every scanner: the same anatomy in the same place."""
    return {
        name: simulate_subject(simulate.blurred(atlas, protocol), name, np.random.default_rng(5))
        for name, protocol in SCANNERS.items()
    }


def centroid(label, value):
    k, j, i = np.nonzero(label.array == value)
    return label.geometry.points(np.stack([i, j, k], axis=-1)).mean(axis=0)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@each("pair", list(itertools.combinations(SCANNERS, 2)))
def test_scanners_see_the_same_anatomy_in_the_same_place(scans, pair):
    """Axes, tilts and spacings differ, millimetres do not: independent of how the grid was
    sampled.
    """
    first, second = (scans[name] for name in pair)
    moved = io.resample_volume(second.label, first.label.geometry, interpolation="nearest")
    for value, least in ((1, 0.75), (2, 0.75)):
        assert np.linalg.norm(centroid(first.label, value) - centroid(second.label, value)) < 1.5
        assert dice(first.label.array == value, moved.array == value) > least


def test_grids_are_what_the_protocols_say(scans):
    spacings = {name: scan.image.geometry.spacing for name, scan in scans.items()}
    assert max(spacings["Axial2D"]) / min(spacings["Axial2D"]) > 1.5
    assert len(set(spacings["Sagittal3D"])) == 1
    for name, scan in scans.items():
        direction = np.reshape(scan.image.geometry.direction, (3, 3))
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(direction) == pytest.approx(1)
        straight = np.allclose(np.sort(np.abs(direction).ravel())[:6], 0)
        assert scan.image.geometry.code == ("PIR" if name == "Sagittal3D" else "LPS")
        assert straight == (scan.metadata["orientation"] == "straight") == (name == "Sagittal3D")


def test_classes_have_the_volumes_and_grey_values_of_a_brain(scans):
    for scan in scans.values():
        label, image = scan.label.array, scan.image.array.astype(float)
        millilitres = [(label == value).sum() * scan.label.geometry.voxel_ml for value in range(4)]
        assert 5 < millilitres[1] < 60
        assert 12 < millilitres[2] < 60
        assert 200 < millilitres[3] < 700
        ventricles, deep, white = (image[label == value].mean() for value in (1, 2, 3))
        assert ventricles < deep < white


def test_ventricles_lie_inside_and_left_equals_right(scans):
    """The template is symmetric; under a mild deformation both halves stay alike."""
    for scan in scans.values():
        k, j, i = np.nonzero(scan.label.array == 1)
        x = scan.label.geometry.points(np.stack([i, j, k], axis=-1))[:, 0]
        left = (x > centroid(scan.label, 3)[0]).mean()
        assert 0.25 < left < 0.75


def test_right_stays_right(atlas):
    """A template with its right half of the ventricles alone: the label lies on the patient's right
    (LPS: minus x).
    """
    half = atlas.maps.copy()
    x = np.arange(half.shape[1]) + atlas.origin[0]  # RAS: right is positive
    half[3, x < 0] = 0
    for name in SCANNERS:
        one_sided = simulate_subject(
            Atlas(half, atlas.origin), name, np.random.default_rng(5)
        ).label
        assert centroid(one_sided, 1)[0] < centroid(one_sided, 3)[0] - 8


@each("seed", range(4))
def test_deformations_are_invertible(atlas, seed):
    """Positive Jacobian determinant of x + u(x) everywhere (nodes 5 mm apart)."""
    displacement = sample_displacement(atlas, 4.0, np.random.default_rng(seed)) / 5.0
    jacobian = np.stack(
        [np.stack(np.gradient(part), axis=-1) for part in displacement], axis=-2
    ) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0
    assert 1 < np.abs(displacement * 5).max() < 25


def test_widening_widens(atlas):
    """Forward volume change of the ventricles: the mean inverse Jacobian of the pull-back grows
    with it.
    """
    sizes = []
    for widening in (-1.0, 0.0, 4.0):
        displacement = sample_displacement(atlas, widening, np.random.default_rng(3)) / 5.0
        jacobian = np.stack(
            [np.stack(np.gradient(part), axis=-1) for part in displacement], axis=-2
        )
        determinant = np.linalg.det(jacobian + np.eye(3))
        coarse = atlas.maps[3][::5, ::5, ::5] > 0.5
        sizes.append(
            (1 / determinant[: coarse.shape[0], : coarse.shape[1], : coarse.shape[2]])[
                coarse
            ].mean()
        )
    assert sizes[0] < sizes[1] < 0.9 * sizes[2]


def test_noise_in_air_is_rayleigh(scans):
    """Rician noise without signal: mean / standard deviation = sqrt(pi/2) / sqrt(2 - pi/2)."""
    scan = scans["Oblique3D"]
    air = scan.image.array[:, :6, :6].astype(float)
    expected = math.sqrt(math.pi / 2) / math.sqrt(2 - math.pi / 2)
    slices = [
        plane.mean() / plane.std() for plane in air
    ]  # the bias field does not reach what has no signal
    assert np.mean(slices) == pytest.approx(expected, rel=0.1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, atlas):
    return simulate_cohort(tmp_path_factory.mktemp("cohort"), subjects=5, seed=2)


def test_cohort_files(cohort):
    with (cohort / "metadata.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [row["case"] for row in rows]
    assert [row["scanner"] for row in rows] == [list(SCANNERS)[n % 3] for n in range(5)]
    for name in names:
        image = io.read_image(cohort / "images" / f"{name}.nii.gz", case=name)
        label = io.read_label(cohort / "labels" / f"{name}.nii.gz", image.geometry, case=name)
        assert set(np.unique(label.array)) == {0, 1, 2, 3}
        assert image.array.max() > 100
    splits = json.loads((cohort / "splits.json").read_text())
    assert sorted(splits["pool"] + splits["test"]) == names
    assert splits["classes"] == CLASSES
    assert all(
        set(choice) <= set(splits["pool"])
        for choices in splits["labelled"].values()
        for choice in choices
    )
    assert all(len(choice) == 2 for choice in splits["labelled"]["2"])


def test_same_seed_same_subjects_and_more_subjects_change_none(cohort, tmp_path):
    """The cohort has five."""
    again = simulate_cohort(tmp_path / "same", subjects=4, seed=2)
    other = simulate_cohort(tmp_path / "other", subjects=4, seed=3)
    for name in ("subject01", "subject04"):
        first, same, different = (
            io.read_image(folder / "images" / f"{name}.nii.gz") for folder in (cohort, again, other)
        )
        assert isinstance(first, Volume)
        assert first.geometry == same.geometry
        np.testing.assert_array_equal(first.array, same.array)
        assert first.array.shape != different.array.shape or (first.array != different.array).any()


def test_too_few_subjects(tmp_path):
    with pytest.raises(InputError, match="at least 4"):
        simulate_cohort(tmp_path, subjects=3)
