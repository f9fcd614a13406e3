"""Random orders and generators that need no state.

They tell which case comes at which position, and which noise a sample gets.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from MedSSLLib.core.errors import InputError

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """What random numbers are drawn for, so that no two uses draw the same ones.

    A member is part of the seed beside the run's seed and, where there is one, the step. Its number
    must never change: later versions repeat a run bit for bit. Members of one number name uses that
    cannot meet, because different seeds stand beside them.
    """

    SEGMENTATION_BATCH = 1
    VIEW_BATCH = 3
    HELD_OUT_CASES = 5
    FOLDS = 6
    ORDER = 7
    MIXUP = 8
    TEACHER_VIEW = 9
    CONTRAST = 10
    BENCHMARK_TEST_PATIENTS = 11
    BENCHMARK_LABELLED_CASES = 12
    DEMO_TEST_PATIENTS = 7
    CLIENT_SLICES = 8
    RANDOM_SLICES = 9
    CALIBRATION_VOXELS = 10
    MIXING = 14
    MIXED_CONTRAST = 15


def random_stream(*numbers: int) -> np.random.Generator:
    """A generator that is a function of all numbers: seeds, steps, a :class:`Stream`."""
    return np.random.default_rng([int(number) for number in numbers])


def shuffled_order(seed: int, position: int, n: int) -> int:
    """Element at `position` of an endless sequence of random permutations of ``range(n)``."""
    epoch, offset = divmod(position, n)
    return int(random_stream(seed, epoch, Stream.ORDER).permutation(n)[offset])


def own_samples(n: int, micro_batch: int, micro_batches: int, *, equal: bool = False) -> np.ndarray:
    """Indices of those of n samples that belong to a micro-batch.

    Where micro-batches must be `equal` in size, the last samples may belong to none.

    Raises:
        InputError: there are fewer samples than micro-batches.
    """
    if n < micro_batches:
        raise InputError(
            f"a batch of {n} cannot be split over {micro_batches} processes or micro-batches",
            remedy="Raise --batch, or lower --devices or training.accumulate",
        )
    used = n - n % micro_batches if equal else n
    return np.arange(used)[micro_batch::micro_batches]


def noise_generator(device: torch.device, seed: int) -> torch.Generator | None:
    """A seeded generator on the device; the meta device has none."""
    import torch

    if device.type == "meta":
        return None
    return torch.Generator(device=device).manual_seed(mixed_seed(seed))


def mixed_seed(*numbers: int) -> int:
    """A seed of 32 bits in which every bit of all numbers counts.

    Torch's CPU generator drops the higher bits of a larger seed.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
