"""Random values for what initialisers leave at 0 or 1, so that tests of exactness can fail."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def randomise(model: nnx.Module, key: jax.Array) -> nnx.Module:
    """A copy of the model whose scales, biases, running means and variances are random; variances are positive.

    An abstract model (see `abstract`) gets all its arrays, kernels too: nothing is compiled on the way.

    Args:
      model: any NNX model; it is not changed.
      key: of the values.

    Example:
      >>> from zoo.abstract import abstract
      >>> norm = randomise(abstract(lambda rngs: nnx.BatchNorm(4, rngs=rngs)), jax.random.key(0))
      >>> bool((norm.var[...] > 0).all()), bool((norm.mean[...] != 0).all())
      (True, True)
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    graphdef, state = nnx.split(model)
    flat = [
        (path, variable.replace(_values(str(path[-1]), variable.get_value(), generator)))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), copy=True)


def _values(name: str, old: jax.Array | jax.ShapeDtypeStruct, generator: np.random.Generator) -> jax.Array:
    """New values of one array, or the old ones where they are there and nothing is to change."""
    if jnp.issubdtype(old.dtype, jnp.floating):
        if name in ("scale", "var"):
            return _array(generator.uniform(0.5, 1.5, old.shape), old.dtype)
        if name in ("bias", "mean"):
            return _array(generator.normal(0, 0.3, old.shape), old.dtype)
    if isinstance(old, jax.Array):
        return old
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), old.shape)  # stacked layers hold a key each
    if jnp.issubdtype(old.dtype, jnp.integer):
        return _array(np.zeros(old.shape), old.dtype)
    fan_in = max(1, math.prod(old.shape[:-1]))
    return _array(generator.normal(0, math.sqrt(2 / fan_in), old.shape), old.dtype)


def _array(values: np.ndarray, dtype: np.dtype) -> jax.Array:
    """The values as a JAX array; `jnp.asarray` would compile a program for each new shape."""
    return jax.device_put(values.astype(dtype))
