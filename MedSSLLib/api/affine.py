"""Grids as affine matrices in NIfTI's convention, for arrays that come without a file.

Here an array is ``[i, j, k]`` and the affine leads from ``(i, j, k, 1)`` to millimetres towards
Right, Anterior and Superior (RAS), as in nibabel. A :class:`~MedSSLLib.images.geometry.Volume` is
``[k, j, i]`` with millimetres towards Left, Posterior and Superior (LPS), as in SimpleITK.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.geometry import Geometry, Volume, triple

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR = 1e-3  # cosine of the angle between two axes that is still taken for a rounding error


def volume_of(
    array: np.ndarray, affine: np.ndarray | None = None, spacing: Sequence[float] | None = None
) -> Volume:
    """The volume of an array.

    Args:
        array: ``[i, j, k]``, numbers.
        affine: ``[4, 4]`` from voxel indices to mm in RAS.
        spacing: mm along i, j, k; without an affine the axes then point right, forward and up. One
            of both must be given.

    Raises:
        InputError: not three axes, values that are not finite, an affine that is none of a grid, or
            a spacing that is no three lengths.
    """
    values = np.asarray(array)
    if values.ndim != 3:
        raise InputError(
            f"an array of {values.ndim} axes is no volume",
            remedy="Give [i, j, k]; several channels as a list of such arrays",
        )
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise InputError(
            f"an array of type {values.dtype} must hold finite numbers",
            remedy="Replace what is not finite, for example by 0",
        )
    if affine is None:
        if spacing is None:
            raise InputError(
                "an array does not say how large its voxels are",
                remedy="Give affine=, or spacing= in mm along its three axes",
            )
        if len(spacing) != 3 or not np.isfinite(spacing).all() or min(spacing) <= 0:
            raise InputError(
                f"the spacing {list(spacing)} is no three lengths",
                remedy="Give mm along the three axes, above 0; affine= says which way they point",
            )
        affine = np.diag([*spacing, 1.0])
    return Volume(
        np.ascontiguousarray(values.transpose(2, 1, 0)),
        grid_of_affine(np.asarray(affine, float), triple(values.shape)),
    )


def grid_of_affine(affine: np.ndarray, size: tuple[int, int, int]) -> Geometry:
    """The grid of an affine ``[4, 4]`` in RAS, for `size` voxels along i, j, k.

    Raises:
        InputError: another shape, voxels without a size, or sheared axes.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(
            f"the affine has shape {affine.shape} or is not finite", remedy="Give a 4 x 4 matrix"
        )
    lps = _RAS_FROM_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    if (spacing <= 0).any():
        raise InputError(
            f"the voxels have the size {spacing.tolist()} mm", remedy="Give sizes greater than 0"
        )
    direction = lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _SHEAR:
        raise InputError(
            "the axes of the affine are not at right angles",
            remedy="Resample the image to a grid without shear",
        )
    return Geometry(
        size=triple(int(n) for n in size),
        spacing=triple(float(mm) for mm in spacing),
        origin=triple(float(mm) for mm in lps[:3, 3]),
        direction=tuple(float(x) for x in direction.ravel()),
    )


def affine_of(geometry: Geometry) -> np.ndarray:
    """The affine ``[4, 4]`` of a grid, in RAS."""
    return _RAS_FROM_LPS @ geometry.matrix
