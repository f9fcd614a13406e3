"""Random smooth deformations of space, and looking up values in a deformed body.

A deformation is a random diffeomorphism: a stationary velocity field on coarse nodes, integrated by
scaling and squaring (Arsigny et al. 2006), so that nothing folds.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

KNOTS = 5.0
"""Distance in mm between the nodes of a velocity field."""


def random_velocity(
    nodes: tuple[int, int, int],
    scales: tuple[tuple[float, float], ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """Smooth random velocities ``[3, *nodes]`` in mm; the sum of several scales.

    Args:
        nodes: number of nodes along each axis.
        scales: width of a Gaussian (in nodes) and root mean square (mm) of each scale.
        generator: what is drawn from.
    """
    velocity = np.zeros((3, *nodes))
    for sigma, amplitude in scales:
        noise = ndimage.gaussian_filter(
            generator.normal(size=velocity.shape), (0, sigma, sigma, sigma)
        )
        velocity += amplitude * noise / noise.std()
    return velocity


def flow_of(velocity: np.ndarray, squarings: int = 5) -> np.ndarray:
    """Displacement (in nodes) of the flow of a stationary velocity field after unit time."""
    grid = index_grid(velocity.shape[1:])
    flow = velocity / 2**squarings
    for _ in range(squarings):
        flow = flow + all_values_at(flow, grid + np.moveaxis(flow, 0, -1))
    return flow


def random_pose(
    generator: np.random.Generator, *, degrees: float, stretch: float, shear: float
) -> np.ndarray:
    """A random linear map [3, 3]: turned by some degrees, stretched, sheared."""
    turned = rotation_matrix(np.deg2rad(generator.normal(0, degrees, 3)))
    scaled = turned @ np.diag(generator.uniform(1 - stretch, 1 + stretch, 3))
    return scaled + np.triu(generator.normal(0, shear, (3, 3)), 1)


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """Rotation about the first axis, then the second, then the third (radians)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def index_grid(shape: tuple[int, ...]) -> np.ndarray:
    """The index of every element of an array, ``[*shape, ndim]``."""
    return np.moveaxis(np.indices(shape), 0, -1)


def values_at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``values`` at continuous indices ``[..., ndim]``.

    Outside, the edge value goes on.
    """
    return ndimage.map_coordinates(values, np.moveaxis(places, -1, 0), order=1, mode="nearest")


def all_values_at(channels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """As :func:`values_at`, for every channel; stacked."""
    return np.stack([values_at(values, places) for values in channels])
