"""Probabilities on the grid of the source, slab by slab, against SimpleITK's resampling."""

import itertools

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
def test_slabs_equal_the_resampling_of_the_whole(monkeypatch, name, dim, spacing):
    source = GRIDS[name]
    _, grid = preprocess_image(noise(source), plan_for(source, dim, SPACINGS[spacing]))
    p = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0)).softmax(0)
    theirs = [
        io.resample_volume(Volume(part.numpy(), grid), source, outside=float(index == 0)).array
        for index, part in enumerate(p)
    ]
    for most, slab in itertools.product((2**25, 900), (1, 3, 100)):
        monkeypatch.setattr(source_grid, "SLAB", most)
        slabs = list(source_slabs(p.split(slab, 1), grid, source))
        assert all(part.numel() <= max(most, 3 * part[0, 0].numel()) for part in slabs)
        found = torch.cat(slabs, 1).numpy()
        for index, whole in enumerate(theirs):
            mine = in_source_order(found[index], grid, source)
            words = f"class {index}, slabs of {slab}, {most} voxels at most"
            np.testing.assert_allclose(mine, whole, atol=2e-4, err_msg=words)
