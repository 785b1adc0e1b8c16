"""Moments of networks with many classes on a device: each statistic of each layer is computed alone, when it is read.

The moments of the other classes take as much memory as those of the classes, and their sums several times that. One
program for all of them, which saves launches, would hold all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from jaxprune.language.axes import Type
from jaxprune.observation.moments import Moments
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import View
from jaxprune.scoring.layer_batches import moments_by_name, moments_of
from jaxprune.types import Array

LARGE_BYTES = 1 << 28
"""Networks whose means of classes take more than this are handled layer by layer."""


def is_large(members: tuple[tuple[Operands, ...], ...], view: View) -> bool:
    """Tells whether the moments of a network are too large to be handled at once.

    Args:
      members: operands of the network, by batch.
      view: whether the moments are those of all examples or of the sample.
    """
    return sum(moments_of(layer, view).offset.nbytes for own in members for layer in own) > LARGE_BYTES


class LargeMoments(Mapping[str, Array | tuple[Array, ...]]):
    """Class sizes and moments by name, in the form in which programs take them.

    Args:
      members: operands of the network, by batch.
      view: whether the moments are those of all examples or of the sample.
      stored: brings the values of all batches into that form, see `Programs.stored`.
    """

    def __init__(
        self,
        members: tuple[tuple[Operands, ...], ...],
        view: View,
        stored: Callable[[list[Array], Type], Array | tuple[Array, ...]],
    ) -> None:
        self._moments = [[moments_of(layer, view) for layer in own] for own in members]

        def joined(by_batch: list[list[Array]], type: Type) -> Array | tuple[Array, ...]:
            return stored([jnp.concatenate(own) for own in by_batch], type)

        self._joined = jax.jit(joined, static_argnums=1)
        self._values: dict[str, Array | tuple[Array, ...]] = {}

    def __getitem__(self, name: str) -> Array | tuple[Array, ...]:
        if name not in self._values:
            by_batch = [[_statistic(moments, name) for moments in own] for own in self._moments]
            self._values[name] = self._joined(by_batch, () if by_batch[0][0].ndim == 3 else ("D",))
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(moments_by_name(jnp, self._moments[0][0]))

    def __len__(self) -> int:
        return len(list(iter(self)))


@partial(jax.jit, static_argnums=1)
def _statistic(moments: Moments, name: str) -> jax.Array:
    """Returns [1, K or 1, C, *axes] one statistic of one layer."""
    return jnp.asarray(moments_by_name(jnp, jax.tree.map(lambda leaf: leaf[None], moments))[name])
