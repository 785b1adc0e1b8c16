"""The order of examples in each epoch, and the random numbers of each place, as pure functions of the seed.

Element i of epoch e depends on (seed, e, i) alone: whoever makes a batch, in whichever process and after any
interruption, makes the same one. All numbers come from the raw output of the Philox generator, which NumPy keeps the
same from version to version, unlike its shuffles.
"""

from __future__ import annotations

import functools

import numpy as np

MAX_SEED = 2**64 - 1
"""The largest seed."""

_ORDER, _DRAWS = 0, 1
"""What a stream of random numbers is for."""

_OUTPUTS = 4
"""Numbers that Philox gives for each value of its counter."""


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Shuffles the examples for an epoch.

    Args:
      seed: in [0, 2**64).
      epoch: in [0, 2**32).
      num_examples: N, >= 1.

    Returns:
      [N] int64, read-only: a permutation of 0 .. N - 1. The last two results are kept.

    Example:
      >>> sorted(epoch_order(0, 3, 5).tolist())
      [0, 1, 2, 3, 4]
    """
    order = np.argsort(_philox(seed, epoch, _ORDER).random_raw(num_examples), kind="stable")
    order.flags.writeable = False
    return order


def epoch_draws(seed: int, epoch: int, first: int, last: int, num_draws: int) -> np.ndarray:
    """Draws uniform random numbers for consecutive places of an epoch.

    Args:
      seed: in [0, 2**64).
      epoch: in [0, 2**32).
      first: first place, >= 0.
      last: place after the last.
      num_draws: how many numbers each place gets, >= 1; all calls for one purpose have to agree in it.

    Returns:
      [last - first, num_draws] float64 in [0, 1); a row depends on seed, epoch and its place alone.

    Example:
      >>> bool((epoch_draws(0, 3, 0, 10, 5)[6] == epoch_draws(0, 3, 6, 7, 5)[0]).all())
      True
    """
    blocks = -(-num_draws // _OUTPUTS)  # of the counter, for each place
    bits = _philox(seed, epoch, _DRAWS, start=first * blocks).random_raw((last - first) * blocks * _OUTPUTS)
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    return uniform.reshape(last - first, blocks * _OUTPUTS)[:, :num_draws]


def _philox(seed: int, epoch: int, purpose: int, *, start: int = 0) -> np.random.Philox:
    """A stream of random numbers from a value of its counter on."""
    return np.random.Philox(key=np.array([seed, purpose << 32 | epoch], np.uint64), counter=start)
