"""The grid that shows the labelled structures with their surroundings, or leaves the scans' spacing
alone.
"""

import numpy as np
import pytest

from MedSSLLib.data.plan import CROPPED_CT, LINEAR_CT, make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.project.project import Project
from MedSSLLib.training.planning import (
    AROUND,
    grid_for,
    plan_around,
    scan_sides,
    structure_sides,
)
from MedSSLLib.training.run_folder import RunFolder
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import loud, tiny_config


def planner(geometries, budget, dim="auto"):
    return lambda grid: make_plan(
        geometries, modality="MR", voxel_budget=budget, grid=grid, dim=dim
    )


def geometry(size, spacing):
    return Geometry(size, spacing, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


@each(
    ("size", "spacing", "budget", "sides"),
    [
        ((256, 240, 10), (1.5, 1.5, 10.0), 64 * 64, (80, 110, 100)),
        ((256, 240, 10), (1.5, 1.5, 10.0), 64 * 64, (80, 30, 30)),
        ((256, 240, 10), (1.5, 1.5, 10.0), 64 * 64, (80, 350, 350)),
        ((120, 120, 120), (1.0, 1.0, 1.0), 32**3, (40, 50, 30)),
        ((40, 50, 36), (1.0, 1.0, 1.0), 96 * 1024, (20, 40, 20)),
    ],
)
def test_a_patch_shows_the_structures_with_their_surroundings(size, spacing, budget, sides):
    scans = [geometry(size, spacing)]
    planned = planner(scans, budget)
    plain = planned(None)
    extent = scan_sides(scans, plain)
    np.testing.assert_allclose(sorted(extent), sorted(np.multiply(size, spacing)))
    grid = grid_for(np.asarray(sides, float), extent, planned)

    def shown(plan):
        mm = np.asarray(plan.spacing[3 - plan.dim :], float)
        wanted = np.minimum(AROUND * np.asarray(sides), extent)[3 - plan.dim :]
        return (np.asarray(plan.patch) * mm - wanted) / (np.prod(plan.strides, axis=0) * mm)

    assert (shown(planned(grid)) >= -0.5).all(), "but for half of a step of the patch"
    if grid is None:
        assert planned(grid) == plain
    else:
        assert grid <= 4.2 * min(spacing) and not (shown(plain) >= -0.5).all()
        assert not (shown(planned(grid / 1.08)) >= -0.5).all(), "no coarser than it has to be"


@each(
    ("size", "spacing", "sides", "patch", "mm"),
    [
        # a heart: 64 pixels show 1.5 times 103 mm, but for half a step of the patch
        ((256, 240, 10), (1.5, 1.5, 10.0), (80, 103, 103), (64, 64), 2.22),
        # fits as it is: small in the scan, so what surrounds it is shown
        ((256, 240, 10), (1.5, 1.5, 10.0), (80, 40, 40), (128, 128), 1.5),
        # would be more than twice as coarse: the usual patch, coarser too
        ((256, 240, 10), (1.5, 1.5, 10.0), (80, 160, 160), (128, 128), 1.69),
        # volumes: the usual patch
        ((40, 40, 40), (1.0, 1.0, 1.0), (18, 18, 18), (40, 40, 40), 1.0),
    ],
)
def test_large_structures_of_slices_have_a_small_patch_on_a_coarser_grid(
    size, spacing, sides, patch, mm
):
    scans = [geometry(size, spacing)]

    def planned(voxels, grid):
        return make_plan(scans, modality="MR", voxel_budget=voxels, grid=grid)

    plain = planned(None, None)
    found = plan_around(np.asarray(sides, float), scan_sides(scans, plain), planned)
    assert found.spacing[1] == pytest.approx(mm, rel=0.06)
    assert found.patch == patch


@pytest.fixture
def project(tmp_path):
    """Scans of 96x96x6 at 2x2x8 mm, a block of 100 x 60 mm on three slices."""
    grid = geometry((96, 96, 6), (2.0, 2.0, 8.0))
    for index in range(3):
        label = np.zeros(grid.shape, np.uint8)
        label[2:5, 20:50, 30:80] = 1
        image = np.random.default_rng(index).normal(100, 9, grid.shape) + 50 * label
        io.write_image(tmp_path / "i" / f"c{index}.nii.gz", Volume(image.astype(np.float32), grid))
        io.write_image(tmp_path / "l" / f"c{index}.nii.gz", Volume(label, grid))
    return Project.create(tmp_path / "p", tmp_path / "i", labels=tmp_path / "l", labelled="c0,c1")


def test_the_sides_of_structures_are_measured_in_mm_along_the_plan(project):
    plan = planner([io.read_header(c.images[0]) for c in project.pool], 64 * 64)(None)
    assert plan.dim == 2
    sides = structure_sides(project, project.labelled, plan)
    assert sides[0] == 24 and sorted(sides[1:]) == [60, 100]
    project.set_annotated("c0", Annotated.of([(2, [0])]))
    project.set_annotated("c1", Annotated.of([(2, [0])]))
    assert structure_sides(project, project.labelled, plan) is None, "nothing is drawn there"


@pytest.mark.parametrize(("grid", "finest"), [("auto", 2.163), (None, 2.0), (3.0, 3.0), (1.0, 2.0)])
def test_the_setting_decides(project, grid, finest):
    changes = {} if grid == "auto" else {"training__grid": grid}
    config = tiny_config("finetune", training__steps=2, training__voxels=64 * 64, **changes)
    events, _ = loud()
    plan = RunFolder(run_finetune(project, config.override({"dim": "2d"}), events)).plan
    assert plan.spacing[1:] == pytest.approx((finest, finest), rel=0.04)


def plan_of(project, command, **changes):
    """The plan of a 2D run of two steps whose patch is left to the plan."""
    config = tiny_config(command, training__steps=2, training__voxels=None, **changes)
    train = run_pretrain if command == "pretrain" else run_finetune
    events, _ = loud()
    return RunFolder(train(project, config.override({"dim": "2d"}), events)).plan


@pytest.mark.parametrize(
    ("preset", "patch", "mm"), [("standard", (64, 64), 2.163), ("paper", (96, 96), 2.0)]
)
def test_a_run_takes_the_small_patch_but_for_the_published_scale(project, preset, patch, mm):
    plan = plan_of(project, "finetune", preset=preset)
    assert plan.patch == patch and plan.spacing[1:] == pytest.approx((mm, mm), rel=0.04)


def test_ct_is_compressed_but_for_the_published_scale_and_older_encoders(project):
    """What an encoder was trained on is what a run from it sees, whatever is the default now."""
    project.set_modality("CT")
    assert plan_of(project, "pretrain", method="simclr", name="new").intensities == CROPPED_CT
    old = plan_of(project, "pretrain", method="pgl", preset="paper", name="old")
    assert old.intensities == LINEAR_CT, "PGL, section 3.1"
    for encoder, rule in (("new", CROPPED_CT), ("old", LINEAR_CT)):
        assert plan_of(project, "finetune", init=encoder).intensities == rule
    scan = Volume(
        np.linspace(-1000, 300, 96 * 96 * 6).reshape(6, 96, 96),
        geometry((96, 96, 6), (2.0, 2.0, 8.0)),
    )
    image, _ = preprocess_image(scan, old.model_copy(update={"spacing": (None, 2.0, 2.0)}))
    assert image.max() == pytest.approx(5 / 3) and image.min() == pytest.approx(-8 / 3)


def test_runs_from_an_encoder_and_from_random_weights_have_the_same_field(project):
    """Pre-training reads no label, so its own patch and grid follow from the scans alone."""
    encoder = plan_of(project, "pretrain", method="simclr", name="encoder")
    assert encoder.patch == (96, 96) and encoder.spacing[1] == 2.0
    random, tuned = plan_of(project, "finetune"), plan_of(project, "finetune", init="encoder")
    assert tuned == random and random.patch == (64, 64)
    asked = plan_of(project, "pretrain", method="simclr", name="asked", training__grid=3.0)
    assert plan_of(project, "finetune", init="asked") == asked, "what was asked for is kept"
