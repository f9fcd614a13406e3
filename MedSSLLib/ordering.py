"""Orders that need no state: which case comes at which position, and which samples belong to which process."""

from __future__ import annotations

import numpy as np

from MedSSLLib.errors import InputError


def shuffled_order(seed: int, position: int, n: int) -> int:
    """Element at `position` of an endless sequence of random permutations of ``range(n)``."""
    epoch, offset = divmod(position, n)
    return int(np.random.default_rng([seed, epoch, 7]).permutation(n)[offset])


def own_samples(n: int, part: int, parts: int, equal: bool = False) -> np.ndarray:
    """Which of n samples belong to a part; where parts must be `equal`, the last ones may belong to none.

    Raises:
        InputError: there are fewer samples than parts.
    """
    if n < parts:
        raise InputError(f"a batch of {n} cannot be split over {parts} processes or micro-batches",
                         remedy="Raise --batch, or lower --devices or training.accumulate")
    return np.arange(n - n % parts if equal else n)[part::parts]
