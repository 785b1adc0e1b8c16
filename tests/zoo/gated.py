"""Networks with gates: experts that are all computed and mixed, and an MLP with its gate in one kernel."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


class ExpertMixture(nnx.Module):
    """All experts on every token, mixed by a softmax gate; kernels stacked [E, c_in, c_out]."""

    def __init__(self, width: int, hidden: int, num_experts: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(width, num_experts, use_bias=False, rngs=rngs)
        self.up = nnx.Param(init(rngs.params(), (num_experts, width, hidden), jnp.float32))
        self.up_bias = nnx.Param(jnp.zeros((num_experts, hidden)))
        self.down = nnx.Param(init(rngs.params(), (num_experts, hidden, width), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(self.router(x), axis=-1)
        hidden = jnp.einsum("nti,eih->nteh", x, self.up[...]) + self.up_bias[...][None, None]
        outputs = jnp.einsum("nteh,eho->nteo", nnx.relu(hidden), self.down[...])
        return jnp.einsum("nteo,nte->nto", outputs, gates)


class MixtureOfExperts(nnx.Module):
    """Residual layers of experts over a sequence [N, T, F], then a classifier on the mean."""

    def __init__(
        self,
        *,
        features: int,
        width: int,
        hidden: int,
        depth: int,
        num_experts: int,
        num_classes: int,
        experts: Callable[..., nnx.Module] = ExpertMixture,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = nnx.Linear(features, width, rngs=rngs)
        self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(depth))
        self.layers = nnx.List(experts(width, hidden, num_experts, rngs=rngs) for _ in range(depth))
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(jnp.mean(x, axis=1))


class FusedGLU(nnx.Module):
    """A gated MLP whose gate and value come out of one kernel, split in halves."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.gate_up = nnx.Linear(width, 2 * hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(nnx.sigmoid(gate) * up)


class GatedMLP(nnx.Module):
    """Residual gated layers on features [N, F]."""

    def __init__(
        self, *, features: int, width: int, hidden: int, depth: int, num_classes: int, rngs: nnx.Rngs
    ) -> None:
        self.stem = nnx.Linear(features, width, rngs=rngs)
        self.layers = nnx.List(FusedGLU(width, hidden, rngs=rngs) for _ in range(depth))
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)
