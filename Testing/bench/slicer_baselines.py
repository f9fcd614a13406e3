"""What Slicer makes of drawn slices: "Fill between slices" and "Grow from seeds", by the classes
that Slicer runs.

    PYTHON_WITH_SLICER_CORE Testing/bench/slicer_baselines.py FOLDER

FOLDER holds CASE.npz with ``image`` and ``drawn`` ([k, j, i]; drawn slices, 255 elsewhere),
``spacing`` (i, j, k) and ``classes``; each gets CASE.fill.npy and CASE.grow.npy. Run by
bench_complete.py in an environment of its own.

* Fill between slices: vtkITKMorphologicalContourInterpolator on the drawn structures (Zukic et al.
  2016).
* Grow from seeds: vtkImageGrowCutSegment with every pixel of the drawn slices as a seed, the
  background's too, over the whole volume.
"""

import os
import sys
from pathlib import Path

os.environ["ITK_GLOBAL_DEFAULT_THREADER"] = "Platform"

import numpy as np  # noqa: E402
import slicer  # noqa: E402
import vtk  # noqa: E402
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402

NOT_DRAWN = 255


def vtk_image(array, spacing, kind):
    """A vtkImageData of an array [k, j, i]."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    image.SetSpacing(*spacing)
    flat = np.ascontiguousarray(array).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=kind))
    return image


def array_of(image, shape):
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape).copy()


def fill_between_slices(drawn, spacing):
    seeds = np.where(drawn == NOT_DRAWN, 0, drawn).astype(np.int16)
    interpolator = slicer.vtkITKMorphologicalContourInterpolator()
    interpolator.SetInputData(vtk_image(seeds, spacing, vtk.VTK_SHORT))
    interpolator.Update()
    return array_of(interpolator.GetOutput(), drawn.shape).astype(np.uint8)


def grow_from_seeds(image, drawn, spacing, classes):
    seeds = np.where(drawn == NOT_DRAWN, 0, np.where(drawn == 0, classes, drawn)).astype(np.int16)
    grow = slicer.vtkImageGrowCutSegment()
    grow.SetIntensityVolume(vtk_image(image.astype(np.float32), spacing, vtk.VTK_FLOAT))
    grow.SetSeedLabelVolume(vtk_image(seeds, spacing, vtk.VTK_SHORT))
    grow.Update()
    grown = array_of(grow.GetOutput(), drawn.shape)
    return np.where(grown == classes, 0, grown).astype(np.uint8)


def main():
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        with np.load(path) as job:
            spacing, drawn = tuple(job["spacing"].tolist()), job["drawn"]
            np.save(path.with_suffix(".fill.npy"), fill_between_slices(drawn, spacing))
            np.save(
                path.with_suffix(".grow.npy"),
                grow_from_seeds(job["image"], drawn, spacing, int(job["classes"])),
            )


if __name__ == "__main__":
    main()
