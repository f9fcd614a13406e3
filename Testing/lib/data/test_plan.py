"""Plans: the rules on made-up headers, invariances, and what comes out for the shared data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.plan import VOXELS_2D, VOXELS_3D, Plan, canonical_axes, make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, oriented
from Testing.lib.case_helpers import each


def plan_of(*pairs, **options):
    """A plan of (size, spacing) pairs."""
    return make_plan(
        [Geometry(size, spacing) for size, spacing in pairs], **{"modality": "MR", **options}
    )


def headers(folder):
    return [io.read_header(path) for path in sorted((folder / "images").iterdir())]


def test_hippocampus_is_covered_by_one_patch(data_folder):
    plan = make_plan(headers(data_folder / "hippocampus"), modality="MR")
    assert (plan.dim, plan.spacing, plan.slice_axis) == (3, (1.0, 1.0, 1.0), 2)
    assert plan.patch == (40, 56, 40)


def test_heart_is_worked_on_slice_by_slice(data_folder):
    plan = make_plan(headers(data_folder / "cardiac"), modality="MR")
    assert (plan.dim, plan.slice_axis, plan.spacing[0]) == (2, "own", None)
    assert 1.4 < plan.spacing[1] == plan.spacing[2] < 1.5
    assert plan.patch == (128, 128)


def test_isotropic_volume_gets_a_cube_within_the_budget():
    plan = plan_of(((256, 256, 256), (1.0, 1.0, 1.0)))
    assert plan.dim == 3
    assert max(plan.patch) - min(plan.patch) <= 8
    assert np.prod(plan.patch) <= VOXELS_3D


def test_thick_slices_forced_to_3d_get_a_flat_patch_and_late_halving():
    plan = plan_of(((512, 512, 100), (0.8, 0.8, 3.0)), dim="3d", modality="CT")
    d, h, w = plan.patch
    assert d < h and abs(h - w) <= 16
    assert plan.strides[:3] == (
        (1, 1, 1),
        (1, 2, 2),
        (2, 2, 2),
    )  # 3 mm against 0.8, then against 1.6


@each(("ratio", "slices", "dim"), [(2.9, 40, 3), (3.0, 40, 2), (1.0, 7, 2), (1.0, 8, 3)])
def test_dimension_rule(ratio, slices, dim):
    assert plan_of(((64, 64, slices), (1.0, 1.0, ratio))).dim == dim


def test_dimension_follows_the_median_case():
    flat, cube = ((64, 64, 12), (1.0, 1.0, 5.0)), ((64, 64, 64), (1.0, 1.0, 1.0))
    assert plan_of(flat, cube, cube).dim == 3
    assert plan_of(flat, flat, cube).dim == 2


@each("dim", ["2d", "2", 2])
def test_dimension_can_be_forced(dim):
    assert plan_of(((64, 64, 64), (1.0, 1.0, 1.0)), dim=dim).dim == 2


def test_3d_slice_axis_is_the_anatomical_one_of_most_anisotropic_cases():
    sagittal = ((10, 64, 64), (2.5, 1.0, 1.0))  # slices along L
    axial = ((64, 64, 30), (1.0, 1.0, 2.0))
    cube = ((64, 64, 64), (1.0, 1.0, 1.0))
    assert plan_of(sagittal, sagittal, axial, cube, cube, cube, dim="3d").slice_axis == 0
    assert plan_of(sagittal, axial, dim="3d").slice_axis == 2  # a tie
    assert plan_of(cube, dim="3d").slice_axis == 2


def test_spacing_is_the_median_of_every_case_in_its_own_slice_frame():
    axial = ((64, 64, 10), (1.0, 1.0, 5.0))
    sagittal = ((10, 64, 64), (6.0, 1.2, 1.2))
    assert plan_of(axial, sagittal, sagittal).spacing == (None, 1.2, 1.2)


@each("code", ["LPS", "RAS", "PSL", "SRA", "AIL"])
@each("dim", ["2d", "3d"])
def test_storage_order_does_not_change_the_plan(code, dim):
    tilt = np.deg2rad(20)
    direction = (np.cos(tilt), -np.sin(tilt), 0, np.sin(tilt), np.cos(tilt), 0, 0, 0, 1)
    source = Geometry(
        (200, 180, 30), (0.9, 0.9, 3.0), (1.0, 2.0, 3.0), tuple(float(x) for x in direction)
    )
    assert make_plan([oriented(source, code)], modality="MR", dim=dim) == make_plan(
        [source], modality="MR", dim=dim
    )


def test_canonical_axes_of_a_sagittal_scan():
    sagittal = Geometry((10, 20, 30), direction=(0, 0, 1, 1, 0, 0, 0, -1, 0))  # i = P, j = I, k = L
    assert canonical_axes(sagittal) == (1, 2, 0)


sizes = st.integers(4, 600)
spacings = st.floats(0.3, 8.0)


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(sizes, sizes, sizes),
    spacing=st.tuples(spacings, spacings, spacings),
    dim=st.sampled_from(["auto", "2d", "3d"]),
    budget=st.sampled_from([None, 4096, 2**17]),
)
@example(
    size=(6, 4, 410), spacing=(4.0, 0.5, 4.0), dim="auto", budget=4096
)  # an axis thinner than a voxel
def test_patch_keeps_its_promises(size, spacing, dim, budget):
    plan = plan_of((size, spacing), dim=dim, voxel_budget=budget)
    total = np.prod(plan.strides, axis=0)
    assert len(plan.patch) == plan.dim == len(plan.strides[0])
    assert np.prod(plan.patch) <= (budget or (VOXELS_2D if plan.dim == 2 else VOXELS_3D))
    assert plan.strides[0] == (1,) * plan.dim
    assert (np.array(plan.patch) % total == 0).all()
    assert (np.array(plan.patch)[total > 1] // total[total > 1] >= 4).all()
    fine = np.array([mm or 0 for mm in plan.spacing[3 - plan.dim :]])
    for stride in plan.strides[
        1:
    ]:  # an axis is halved only while it is not twice as coarse as the finest
        assert (fine[np.array(stride) == 2] < 2 * fine.min()).all()
        fine = fine * stride


@settings(max_examples=50, deadline=None)
@given(side=st.integers(8, 40), factor=st.floats(1.0, 2.5))
def test_a_volume_that_fits_is_covered(side, factor):
    plan = plan_of(((side, side, side), (factor, factor, factor)))
    assert min(plan.patch) >= side
    assert max(plan.patch) < side + 16


def test_a_larger_budget_never_shrinks_the_patch():
    volumes = [
        np.prod(plan_of(((256, 256, 256), (1.0, 1.0, 1.0)), voxel_budget=n).patch)
        for n in (2**12, 2**14, 2**16, 2**18, 2**20)
    ]
    assert volumes == sorted(set(volumes))


def test_modalities_are_one_per_channel():
    assert plan_of(((64, 64, 64), (1.0, 1.0, 1.0)), channels=2).modality == ("MR", "MR")
    with pytest.raises(InputError, match="2 channels but 1 modalities"):
        plan_of(((64, 64, 64), (1.0, 1.0, 1.0)), modality=("MR",), channels=2)


def test_refusals():
    with pytest.raises(InputError, match="no image"):
        make_plan([], modality="MR")
    with pytest.raises(InputError, match="4d"):
        plan_of(((64, 64, 64), (1.0, 1.0, 1.0)), dim="4d")


def test_plan_survives_json():
    plan = plan_of(((64, 64, 10), (1.0, 1.0, 5.0)))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
