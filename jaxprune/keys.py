"""Random keys that depend on their purpose, never on the order of calls.

`derive(key, "mutate", generation, number)` is the same key whatever was drawn before it, so a run gives
the same result after any interruption and on any number of devices.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def derive(key: jax.Array, *purpose: str | int) -> jax.Array:
    """Derives a key by folding in each part of `purpose`: words by their CRC-32, whole numbers as they are.

    Args:
      key: a typed key (`jax.random.key(seed)`).
      *purpose: what the new key is for, such as `"mutate", generation, number`; numbers in [0, 2**32).

    Returns:
      A new typed key, a function of `key` and `purpose` alone.

    Example:
      >>> key = jax.random.key(0)
      >>> bool(derive(key, "mutate", 3) == derive(key, "mutate", 3))
      True
    """
    for part in purpose:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key


def generator(key: jax.Array) -> np.random.Generator:
    """Returns a NumPy generator seeded by `key`, for the many small draws on the host when formulas are changed.

    Example:
      >>> int(generator(jax.random.key(0)).integers(10)) in range(10)
      True
    """
    words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=words))
