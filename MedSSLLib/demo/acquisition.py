"""What scanners make of tissue: grey values of MR and Hounsfield units of CT, with their noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

HOUNSFIELD = (-1024, 3071)
"""The least and the largest value that a CT scanner writes."""


def mr_values(
    signal: np.ndarray, noise: float, gain: float, generator: np.random.Generator
) -> np.ndarray:
    """Grey values uint16 of a signal near [0, 1]: bias field, Rician noise and gain are drawn."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in signal.shape), indexing="ij", sparse=True)
    bias = sum(generator.normal(0, 0.12) * a + generator.normal(0, 0.08) * a * a for a in axes)
    signal = signal * np.exp(bias)
    sigma = noise * generator.uniform(0.7, 1.3)
    noisy = np.hypot(
        signal + generator.normal(0, sigma, signal.shape), generator.normal(0, sigma, signal.shape)
    )
    return np.clip(noisy * gain * generator.uniform(0.7, 1.4), 0, 65535).astype(np.uint16)


def ct_values(
    hounsfield: np.ndarray, noise: float, grain: float, generator: np.random.Generator
) -> np.ndarray:
    """Hounsfield units int16 with noise drawn around those given, ``[k, j, i]``.

    Args:
        hounsfield: without noise.
        noise: standard deviation in HU, of which 0.8 to 1.25 times is drawn.
        grain: width of the noise's grain in a slice, in pixels; slices are independent.
        generator: what is drawn from.
    """
    grains = ndimage.gaussian_filter(generator.normal(size=hounsfield.shape), (0, grain, grain))
    grains *= noise * generator.uniform(0.8, 1.25) / grains.std()
    return np.clip(np.rint(hounsfield + grains), *HOUNSFIELD).astype(np.int16)
