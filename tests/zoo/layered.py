"""Layers stacked along a leading axis and run by `nnx.scan`, and blocks under `nnx.remat`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import MLP
from .language_models import Block, SeparateAttention


def stack(create: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose every array has a leading axis of `depth` layers."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create_layers(rngs: nnx.Rngs) -> nnx.Module:
        return create(rngs)

    return create_layers(rngs)


def run_layers(layers: nnx.Module, x: jax.Array) -> jax.Array:
    """`x` through all layers of a stack."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def step(x: jax.Array, layer: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return layer(x)

    return step(x, layers)


class ResidualMLP(nnx.Module):
    """x + MLP(norm(x))."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, hidden, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.mlp(self.norm(x))


class ScannedMLP(nnx.Module):
    """A dense stem, stacked residual blocks, a dense head: [N, F] to [N, K]."""

    def __init__(
        self, *, features: int, width: int, hidden: int, depth: int, num_classes: int, rngs: nnx.Rngs
    ) -> None:
        self.stem = nnx.Linear(features, width, rngs=rngs)
        self.layers = stack(lambda rngs: ResidualMLP(width, hidden, rngs=rngs), depth, rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(run_layers(self.layers, self.stem(x)))


class TokenModel(nnx.Module):
    """Tokens, learned positions, something in the middle, and a dense layer for the logits."""

    def __init__(
        self, *, vocabulary: int, max_length: int, width: int, depth: int, num_heads: int, rngs: nnx.Rngs
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(max_length, width, rngs=rngs)
        self.layers = self.make_layers(width, depth, num_heads, rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def make_layers(self, width: int, depth: int, num_heads: int, rngs: nnx.Rngs) -> nnx.Module:
        raise NotImplementedError

    def middle(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])[None])
        return self.head(self.norm(self.middle(x)))


class ScannedTransformer(TokenModel):
    """Decoder blocks stacked and scanned."""

    def make_layers(self, width: int, depth: int, num_heads: int, rngs: nnx.Rngs) -> nnx.Module:
        return stack(
            lambda rngs: Block(width, num_heads, attention=SeparateAttention, rngs=rngs), depth, rngs
        )

    def middle(self, x: jax.Array) -> jax.Array:
        return run_layers(self.layers, x)


class RematTransformer(TokenModel):
    """Decoder blocks whose activations are computed again in the backward pass."""

    def make_layers(self, width: int, depth: int, num_heads: int, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.List(Block(width, num_heads, attention=SeparateAttention, rngs=rngs) for _ in range(depth))

    def middle(self, x: jax.Array) -> jax.Array:
        @nnx.remat
        def run(block: Block, x: jax.Array) -> jax.Array:
            return block(x)

        for block in self.layers:
            x = run(block, x)
        return x
