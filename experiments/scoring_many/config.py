"""What `run.py` scores: the network is an ordinary Flax NNX module, as a user would write it."""

from __future__ import annotations

import jax
from flax import nnx

NUM_FORMULAS = 1000
SEED = 0
NUM_IMAGES = 500
EPOCHS = 4
BATCH_SIZE = 50
ALIKE = 0.7  # mean magnitude of the rank correlation at which two clusters become one
NUM_SHOWN = 10


class Mine(nnx.Module):
    """Three convolutions, the last two around a skip connection, and a dense layer: two groups and the hidden one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, 24, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(24, rngs=rngs)
        self.inner = nnx.Conv(24, 32, (3, 3), strides=2, rngs=rngs)
        self.outer = nnx.Conv(32, 32, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, 8, 8, 1] images to [N, 10] logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.relu(self.inner(x))
        x = nnx.relu(x + self.outer(x))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))
