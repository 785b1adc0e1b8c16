"""A network of two inputs: images and texts are compared with each other (Radford et al., CLIP, 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .language_models import Block, SeparateAttention
from .layers import ConvNorm, mean_over_positions, run_all


class TextTower(nnx.Module):
    """Causal blocks over tokens [N, T]; the last token stands for the text."""

    def __init__(
        self, vocabulary: int, max_length: int, width: int, depth: int, num_heads: int, *, rngs: nnx.Rngs
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(max_length, width, rngs=rngs)
        blocks = (Block(width, num_heads, attention=SeparateAttention, rngs=rngs) for _ in range(depth))
        self.blocks = nnx.List(blocks)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])[None])
        return self.norm(run_all(self.blocks, x))[:, -1]


class ImageTextPair(nnx.Module):
    """Embeddings of images and texts in one space, of length one, and how alike each image is to its text."""

    def __init__(
        self,
        *,
        image_widths: Sequence[int],
        vocabulary: int,
        max_length: int,
        width: int,
        depth: int,
        num_heads: int,
        shared: int,
        rngs: nnx.Rngs,
    ) -> None:
        pairs = zip((3, *image_widths[:-1]), image_widths, strict=True)
        self.images = nnx.List(ConvNorm(c_in, c_out, 3, rngs, strides=2) for c_in, c_out in pairs)
        self.texts = TextTower(vocabulary, max_length, width, depth, num_heads, rngs=rngs)
        self.image_projection = nnx.Linear(image_widths[-1], shared, use_bias=False, rngs=rngs)
        self.text_projection = nnx.Linear(width, shared, use_bias=False, rngs=rngs)
        self.log_temperature = nnx.Param(jnp.zeros(()))

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        left = self.image_projection(mean_over_positions(run_all(self.images, images)))
        right = self.text_projection(self.texts(tokens))
        left, right = (each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (left, right))
        return jnp.exp(self.log_temperature[...]) * jnp.einsum("nc,nc->n", left, right)
