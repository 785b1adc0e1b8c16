"""A mixture of experts that runs only the expert that a token is sent to (Fedus et al., Switch Transformers, 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RoutedExperts(nnx.Module):
    """Scatters the tokens of [N, T, C] to the places of their experts, runs all experts, and gathers what they made."""

    def __init__(self, width: int, hidden: int, num_experts: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(width, num_experts, use_bias=False, rngs=rngs)
        self.up = nnx.Param(init(rngs.params(), (num_experts, width, hidden), jnp.float32))
        self.down = nnx.Param(init(rngs.params(), (num_experts, hidden, width), jnp.float32))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = tokens.reshape(-1, tokens.shape[-1])
        gates = jax.nn.softmax(self.router(x), axis=-1)
        expert = jnp.argmax(gates, axis=-1)
        place = jnp.cumsum(jax.nn.one_hot(expert, gates.shape[-1], dtype=jnp.int32), axis=0)
        place = jnp.take_along_axis(place, expert[:, None], axis=1)[:, 0] - 1
        places = jnp.zeros((gates.shape[-1], *x.shape), x.dtype).at[expert, place].add(x)
        hidden = nnx.relu(jnp.einsum("emi,eih->emh", places, self.up[...]))
        outputs = jnp.einsum("emh,eho->emo", hidden, self.down[...])
        chosen = outputs[expert, place] * jnp.take_along_axis(gates, expert[:, None], axis=1)
        return chosen.reshape(tokens.shape)
