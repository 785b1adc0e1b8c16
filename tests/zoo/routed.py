"""A mixture of experts that runs only the expert that a token is sent to (Fedus et al., Switch Transformers, 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RoutedExperts(nnx.Module):
    """Scatters tokens [M, C] to the places of their experts, runs all experts, and gathers what they made."""

    def __init__(self, width: int, hidden: int, num_experts: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(width, num_experts, use_bias=False, rngs=rngs)
        self.up = nnx.Param(init(rngs.params(), (num_experts, width, hidden), jnp.float32))
        self.down = nnx.Param(init(rngs.params(), (num_experts, hidden, width), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(self.router(x), axis=-1)
        expert = jnp.argmax(gates, axis=-1)
        place = jnp.cumsum(jax.nn.one_hot(expert, gates.shape[-1], dtype=jnp.int32), axis=0)
        place = jnp.take_along_axis(place, expert[:, None], axis=1)[:, 0] - 1
        places = jnp.zeros((gates.shape[-1], *x.shape), x.dtype).at[expert, place].add(x)
        hidden = nnx.relu(jnp.einsum("emi,eih->emh", places, self.up[...]))
        outputs = jnp.einsum("emh,eho->emo", hidden, self.down[...])
        return outputs[expert, place] * jnp.take_along_axis(gates, expert[:, None], axis=1)


class RoutedNetwork(nnx.Module):
    """Residual layers of experts over a sequence [N, T, F], whose tokens are routed one by one; a classifier."""

    def __init__(
        self,
        *,
        features: int,
        width: int,
        hidden: int,
        depth: int,
        num_experts: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = nnx.Linear(features, width, rngs=rngs)
        self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(depth))
        self.layers = nnx.List(RoutedExperts(width, hidden, num_experts, rngs=rngs) for _ in range(depth))
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x).reshape(-1, x.shape[-1])).reshape(x.shape)
        return self.head(jnp.mean(x, axis=1))
