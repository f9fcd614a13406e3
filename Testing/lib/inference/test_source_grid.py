"""Probabilities on the grid of the source, slab by slab, against SimpleITK's resampling."""

import numpy as np
import torch

from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.inference import source_grid
from MedSSLLib.inference.source_grid import in_source_order, source_slabs
from Testing.lib.case_helpers import each
from Testing.lib.grid_helpers import GRIDS, SPACINGS, every_dim, every_grid, noise, plan_for


@every_grid
@every_dim
@each("spacing", SPACINGS)
@each("most", [2**25, 900])
@each("slab", [1, 3, 100])
def test_slabs_equal_the_resampling_of_the_whole(monkeypatch, name, dim, spacing, most, slab):
    monkeypatch.setattr(source_grid, "SLAB", most)
    source = GRIDS[name]
    _, grid = preprocess_image(noise(source), plan_for(source, dim, SPACINGS[spacing]))
    p = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0)).softmax(0)
    slabs = list(source_slabs(p.split(slab, 1), grid, source))
    assert all(part.numel() <= max(most, 3 * part[0, 0].numel()) for part in slabs)
    found = torch.cat(slabs, 1).numpy()
    for index in range(3):
        mine = in_source_order(found[index], grid, source)
        theirs = io.resample_volume(
            Volume(p[index].numpy(), grid), source, outside=float(index == 0)
        )
        np.testing.assert_allclose(mine, theirs.array, atol=2e-4)
