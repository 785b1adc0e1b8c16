"""A selective state-space network (Gu and Dao, Mamba, 2023): a gated block around a scan over time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class SelectiveScan(nnx.Module):
    """A diagonal state [N, C, S] for each channel, with steps, inputs and outputs that depend on the sequence."""

    def __init__(self, channels: int, state: int, rank: int, *, rngs: nnx.Rngs) -> None:
        self.select = nnx.Linear(channels, rank + 2 * state, use_bias=False, rngs=rngs)
        self.step = nnx.Linear(rank, channels, rngs=rngs)
        self.log_decay = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, state + 1), (channels, 1))))
        self.skip = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        rank, state = self.step.kernel.shape[0], self.log_decay.shape[1]
        low_rank, entry, exit_ = jnp.split(self.select(x), [rank, rank + state], axis=-1)
        step = nnx.softplus(self.step(low_rank))
        decay = jnp.exp(step[..., None] * -jnp.exp(self.log_decay[...])[None, None])
        drive = (step * x)[..., None] * entry[:, :, None]

        def advance(h: jax.Array, slices: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            decay, drive, exit_ = slices
            h = decay * h + drive
            return h, jnp.einsum("ncs,ns->nc", h, exit_)

        by_time = [jnp.moveaxis(each, 1, 0) for each in (decay, drive, exit_)]
        _, y = jax.lax.scan(advance, jnp.zeros_like(by_time[1][0]), tuple(by_time))
        return jnp.moveaxis(y, 0, 1) + x * self.skip[...][None, None]


class StateSpaceBlock(nnx.Module):
    """Values through a depthwise convolution over time and the scan, gated by the other half of one projection."""

    def __init__(self, width: int, inner: int, state: int, rank: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * inner, use_bias=False, rngs=rngs)
        self.conv = nnx.Conv(inner, inner, (4,), padding="CAUSAL", feature_group_count=inner, rngs=rngs)
        self.scan = SelectiveScan(inner, state, rank, rngs=rngs)
        self.down = nnx.Linear(inner, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        values, gates = jnp.split(self.up(self.norm(x)), 2, axis=-1)
        return x + self.down(self.scan(nnx.silu(self.conv(values))) * nnx.silu(gates))


class StateSpaceModel(nnx.Module):
    """Blocks over tokens [N, T], and logits for each of them from the table of tokens."""

    def __init__(
        self, *, vocabulary: int, width: int, inner: int, state: int, rank: int, depth: int, rngs: nnx.Rngs
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.List(StateSpaceBlock(width, inner, state, rank, rngs=rngs) for _ in range(depth))
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))
