"""A network's shapes without its weights, in a fraction of the time that `nnx.eval_shape` takes alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx


class StillStream(nnx.RngStream):
    """Gives the same key each time; Flax's own counts, and counting traced values takes time quadratic in them."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def abstract(make: Callable[..., nnx.Module], **settings: object) -> nnx.Module:
    """What `make(rngs, **settings)` makes, with shapes and dtypes in place of arrays.

    Example:
      >>> abstract(lambda rngs: nnx.Linear(3, 5, rngs=rngs)).kernel.shape
      (3, 5)
    """

    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        rngs.default = StillStream(0, tag="default")
        return make(rngs, **settings)

    return nnx.eval_shape(build)


def output_of(model: nnx.Module, inputs: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what the model makes of the inputs, in evaluation mode."""
    view = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graphdef, state = nnx.split(view)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, inputs)
