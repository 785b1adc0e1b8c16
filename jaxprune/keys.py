"""Random keys derived from what they are for, never from call order.

`derive(key, "mutate", generation, member)` is the same key whatever was drawn before it, so a run gives
the same result after any interruption and on any number of devices.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def derive(key: jax.Array, *meaning: str | int) -> jax.Array:
    """Folds each part of `meaning` into `key`: words by their CRC-32, whole numbers as they are.

    Args:
      key: a typed key (`jax.random.key(seed)`).
      *meaning: what the new key is for, such as `"mutate", generation, member`; numbers in [0, 2**32).

    Returns:
      A new typed key, a function of `key` and `meaning` alone.

    Example:
      >>> key = jax.random.key(0)
      >>> bool(derive(key, "mutate", 3) == derive(key, "mutate", 3))
      True
    """
    for part in meaning:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, number)
    return key


def generator(key: jax.Array) -> np.random.Generator:
    """A NumPy generator seeded by `key`, for the many small draws of tree surgery on the host.

    Example:
      >>> int(generator(jax.random.key(0)).integers(10)) in range(10)
      True
    """
    words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=words))
