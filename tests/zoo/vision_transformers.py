"""Networks on image patches: MLP-Mixer, ViT and DeiT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .attention_parts import MLP, attend, exact_gelu, merge_heads


class PatchEmbedding(nnx.Module):
    """Patches of an image as tokens: [N, H, W, 3] to [N, H/p * W/p, C]."""

    def __init__(self, patch: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.projection = nnx.Conv(3, width, (patch, patch), (patch, patch), padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.projection(x)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


class MixerBlock(nnx.Module):
    """An MLP across positions, then one across channels."""

    def __init__(
        self, num_tokens: int, width: int, token_hidden: int, channel_hidden: int, *, rngs: nnx.Rngs
    ) -> None:
        self.token_norm = nnx.LayerNorm(width, rngs=rngs)
        self.token_mixing = MLP(num_tokens, token_hidden, activation=exact_gelu, rngs=rngs)
        self.channel_norm = nnx.LayerNorm(width, rngs=rngs)
        self.channel_mixing = MLP(width, channel_hidden, activation=exact_gelu, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = self.token_mixing(jnp.swapaxes(self.token_norm(x), 1, 2))
        x = x + jnp.swapaxes(mixed, 1, 2)
        return x + self.channel_mixing(self.channel_norm(x))


class MLPMixer(nnx.Module):
    """MLP-Mixer (Tolstikhin et al., 2021)."""

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depth: int,
        token_hidden: int,
        channel_hidden: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        num_tokens = (image // patch) ** 2
        self.stem = PatchEmbedding(patch, width, rngs=rngs)
        self.blocks = nnx.List(
            MixerBlock(num_tokens, width, token_hidden, channel_hidden, rngs=rngs) for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=1))


class JointAttention(nnx.Module):
    """Self-attention whose one projection is reshaped to [N, T, 3, heads, d] and taken apart by index."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        return self.out(merge_heads(attend(query, key, value)))


class EncoderBlock(nnx.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = JointAttention(width, num_heads, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=exact_gelu, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionTransformer(nnx.Module):
    """ViT (Dosovitskiy et al., 2021); with `distilled`, DeiT with its distillation token (Touvron et al., 2021)."""

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        distilled: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        init = nnx.initializers.normal(0.02)
        num_extra = 2 if distilled else 1
        num_tokens = (image // patch) ** 2 + num_extra
        self.stem = PatchEmbedding(patch, width, rngs=rngs)
        self.extra_tokens = nnx.List(
            nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32)) for _ in range(num_extra)
        )
        self.positions = nnx.Param(init(rngs.params(), (1, num_tokens, width), jnp.float32))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.blocks = nnx.List(EncoderBlock(width, num_heads, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.heads = nnx.List(nnx.Linear(width, num_classes, rngs=rngs) for _ in range(num_extra))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        extra = [
            jnp.broadcast_to(token[...], (x.shape[0], 1, token.shape[-1])) for token in self.extra_tokens
        ]
        x = self.dropout(jnp.concatenate([*extra, x], axis=1) + self.positions[...])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        # Both heads of DeiT are averaged, as it is evaluated.
        return sum(head(x[:, i]) for i, head in enumerate(self.heads)) / len(self.heads)
