"""Networks without weights: shapes and dtypes in place of arrays, made in seconds at any size."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx


class StillStream(nnx.RngStream):
    """Gives the same key each time; Flax's own counts, and counting traced values takes time quadratic in them."""

    def __call__(self) -> jax.Array:
        """The key."""
        return self.key[...]


def without_weights(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """What `make(rngs)` makes, with shapes and dtypes in place of arrays, so that nothing is computed or stored.

    Enough for `trace_structure`, `count_macs` and `count_parameters`. It is `nnx.eval_shape` with random streams that
    do not count, which saves most of its time on deep networks.

    Args:
      make: the network's class, or a function that makes it from `nnx.Rngs`.

    Returns:
      A network that cannot be run.

    Example:
      >>> without_weights(lambda rngs: nnx.Linear(3, 5, rngs=rngs)).kernel.shape
      (3, 5)
    """

    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        rngs.default = StillStream(0, tag="default")  # type: ignore[attr-defined]
        return make(rngs)

    return nnx.eval_shape(build)
