"""What the zoo knows about one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import nnx

Shapes = jax.ShapeDtypeStruct | tuple[jax.ShapeDtypeStruct, ...]


@dataclass(frozen=True)
class Entry:
    """One network in two sizes: `small` for tests that compute, `full` for published widths, built without weights.

    Attributes:
      name: the network's name, its key in `ZOO`.
      small: makes the tiny network from `nnx.Rngs`; it holds every structural feature of the full one.
      full: makes the network of the paper from `nnx.Rngs`; in fast tests only inside `nnx.eval_shape`.
      small_input: shape and dtype of a batch that the small network takes, or a tuple of these for several inputs.
      full_input: shape and dtype of a batch that the full network takes, likewise.
      num_parameters: published number of parameters of the full network, where there is one.
      notes: what is special about its structure.
      widths: the groups of the small network and their channels, where a test checks them.
    """

    name: str
    small: Callable[[nnx.Rngs], nnx.Module]
    full: Callable[[nnx.Rngs], nnx.Module]
    small_input: Shapes
    full_input: Shapes
    num_parameters: int | None = None
    notes: str = ""
    widths: Mapping[str, int] | None = None
