"""What several models see in the slices of a case, each on a grid of its own."""

import numpy as np
import pytest
import torch

from MedSSLLib.active_learning import slice_table
from MedSSLLib.active_learning.slice_table import class_uncertainty
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.slices import slice_operator
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import slice_axis
from MedSSLLib.inference.model import Model
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import GRIDS

CPU = torch.device("cpu")


@each("name", GRIDS)
def test_models_that_are_sure_of_opposite_things_are_unsure_together(name, tmp_path):
    """Two sure models with plans of different grids differ only where the image is bright: one bit
    a voxel there.
    """
    geometry = GRIDS[name]
    array = np.full(geometry.shape, -1.0, np.float32)
    axis = slice_axis(geometry)
    np.moveaxis(array, 2 - axis, 0)[-2:] = 1
    io.write_image(tmp_path / "case.nii.gz", Volume(array, geometry))
    (case,) = Project.create(tmp_path / "p", tmp_path / "case.nii.gz").cases
    plan = make_plan([geometry], modality="MR", dim="3d")
    finer = plan.model_copy(update={"spacing": tuple(0.8 * mm for mm in plan.spacing)})

    class Sure(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x):
            found = 40 * (2 * (x > 0) * (self.sign > 0) - 1.0)
            return torch.cat([-found, found], 1)

    yes, no = (
        Model(
            network=Sure(s),
            plan=p,
            values=(0, 1),
            classes=("background", "thing"),
            device=CPU,
            precision="32",
        )
        for s, p in ((1, plan), (-1, finer))
    )
    image, grid = preprocess_image([Volume(array, geometry)], plan)
    along, rows = slice_operator(geometry, grid, axis)
    alone, both = (
        rows
        @ class_uncertainty(
            slice_table._predicted(
                slice_table.Viewer(plan, None, CPU, yes, others), case, image, grid, False
            ),
            grid,
            along,
        )[:, 0]
        for others in ((), (no,))
    )
    sides = np.array(geometry.size) * geometry.spacing
    assert alone.max() < 1e-3, "each is sure of itself"
    assert both[-1] == pytest.approx(sides.prod() / sides[axis], rel=0.05), (
        "where they differ, on the source's slices"
    )
    assert both[: len(both) // 2].max() < 1e-3
