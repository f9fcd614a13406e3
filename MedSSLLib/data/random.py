"""Random orders and generators that need no state: which case comes at which position, which noise
a sample gets.
"""

from __future__ import annotations

import numpy as np
import torch

from MedSSLLib.core.errors import InputError


def shuffled_order(seed: int, position: int, n: int) -> int:
    """Element at `position` of an endless sequence of random permutations of ``range(n)``."""
    epoch, offset = divmod(position, n)
    return int(np.random.default_rng([seed, epoch, 7]).permutation(n)[offset])


def own_samples(n: int, part: int, parts: int, equal: bool = False) -> np.ndarray:
    """Which of n samples belong to a part; where parts must be `equal`, the last ones may belong to
    none.

    Raises:
        InputError: there are fewer samples than parts.
    """
    if n < parts:
        raise InputError(
            f"a batch of {n} cannot be split over {parts} processes or micro-batches",
            remedy="Raise --batch, or lower --devices or training.accumulate",
        )
    return np.arange(n - n % parts if equal else n)[part::parts]


def noise_generator(device: torch.device, seed: int) -> torch.Generator | None:
    """A seeded generator on the device; the meta device has none."""
    return (
        None
        if device.type == "meta"
        else torch.Generator(device=device).manual_seed(mixed_seed(seed))
    )


def mixed_seed(*numbers: int) -> int:
    """A seed of 32 bits in which every bit of all numbers counts: torch's CPU generator drops the
    higher bits.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
