"""Recurrent classifiers of sequences [N, T, F]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Cell = Callable[..., nnx.RNNCellBase]


class RecurrentClassifier(nnx.Module):
    """Recurrent layers one after another, then a dense layer on the last step or on the mean of all."""

    def __init__(
        self,
        cell: Cell,
        *,
        features: int,
        hidden: int,
        num_layers: int,
        num_classes: int,
        read: Literal["last", "mean"] = "last",
        rngs: nnx.Rngs,
    ) -> None:
        widths = [features] + [hidden] * num_layers
        self.layers = nnx.List(
            nnx.RNN(cell(c_in, c_out, rngs=rngs)) for c_in, c_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = nnx.Linear(hidden, num_classes, rngs=rngs)
        self.read = read

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1] if self.read == "last" else jnp.mean(x, axis=1))


class BidirectionalClassifier(nnx.Module):
    """Two recurrent nets that read in both directions, their outputs concatenated."""

    def __init__(self, cell: Cell, *, features: int, hidden: int, num_classes: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Bidirectional(
            nnx.RNN(cell(features, hidden, rngs=rngs)), nnx.RNN(cell(features, hidden, rngs=rngs))
        )
        self.head = nnx.Linear(2 * hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.mean(self.layer(x), axis=1))
