"""What the moments of every set of examples tell, compiled whole: one by one, every operation would compile alone."""

from typing import NamedTuple

import jax
import numpy as np

from jaxprune.observation.moments import SETS, set_moments


class Found(NamedTuple):
    """What `SetMoments` tells."""

    num_examples: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    entry_mean: np.ndarray
    entry_variance: np.ndarray


def class_sets(moments):
    """Name -> `Found`, for all sets."""
    return jax.device_get(_class_sets(moments))


@jax.jit
def _class_sets(moments):
    sets = {name: set_moments(moments, name) for name in SETS}
    return {name: Found(*(getattr(found, field) for field in Found._fields)) for name, found in sets.items()}
