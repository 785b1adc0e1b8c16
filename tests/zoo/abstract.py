"""A network's shapes without its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from jaxprune.nets.factories import without_weights


def abstract(make: Callable[..., nnx.Module], **settings: object) -> nnx.Module:
    """What `make(rngs, **settings)` makes, with shapes and dtypes in place of arrays.

    Example:
      >>> abstract(lambda rngs: nnx.Linear(3, 5, rngs=rngs)).kernel.shape
      (3, 5)
    """

    return without_weights(partial(make, **settings))


def call(network: nnx.Module, inputs: Any) -> Any:
    """What a network makes of a batch, or of a tuple of inputs."""
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def output_of(model: nnx.Module, inputs: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what the model makes of the inputs, in evaluation mode."""
    view = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graphdef, state = nnx.split(view)
    return jax.eval_shape(lambda state, x: call(nnx.merge(graphdef, state), x), state, inputs)
