"""Networks that a user could write, for `--network own_networks:NAME`: factories that work, and some that cannot."""

from __future__ import annotations

import jax.numpy as jnp
from cli_tasks import SmallNet
from flax import nnx

__all__ = ["SmallNet"]


def seeded(rngs: nnx.Rngs) -> nnx.Module:
    return SmallNet(rngs)


def positional(streams, /) -> nnx.Module:
    return SmallNet(streams)


def by_keyword(*, rngs) -> nnx.Module:
    return SmallNet(rngs)


def alone() -> nnx.Module:
    return SmallNet(nnx.Rngs(7))


def with_default(rngs=None, width=8) -> nnx.Module:
    return SmallNet(rngs)


made = SmallNet(nnx.Rngs(3))
not_callable = 5


def no_network(rngs):
    return {"first": rngs}


def needs_more(rngs, width):
    return SmallNet(rngs)


class Block(nnx.Module):
    """A residual block of two layers; the channels between them can be pruned."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(6, 10, rngs=rngs)
        self.down = nnx.Linear(10, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class Stack(nnx.Module):
    """Five equal blocks on embedded tokens."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(7, 6, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(5)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Heads(nnx.Module):
    """Attention with two heads of four channels each."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x).mean(1))


class Attending(nnx.Module):
    """A layer with a norm in front of attention, whose channels have none."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(self.norm(self.stem(x))).mean(1))


class Gated(nnx.Module):
    """Splits its channels into two halves, whose size is a number of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(5, 16, rngs=rngs)
        self.down = nnx.Linear(8, 3, rngs=rngs)
        self.hidden = 8

    def __call__(self, x):
        y = self.up(x)
        return self.down(nnx.relu(y[:, : self.hidden]) * y[:, self.hidden :])


def reads_values(rngs) -> nnx.Module:
    """Reads values while it is built, so that shapes alone are not enough to build it."""
    net = SmallNet(rngs)
    net.scale = float(net.first.kernel[0, 0])
    return net


def one_layer(rngs) -> nnx.Module:
    return nnx.Linear(5, 2, rngs=rngs)


class BareArrays(nnx.Module):
    """Arrays in all places where Flax finds them without a variable, and variables without arrays."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = jnp.arange(4.0)[None]
        self.named = nnx.data({"shift": jnp.ones(4)})
        self.listed = nnx.List([jnp.ones((1, 4), jnp.bfloat16)])
        self.steps, self.kind = nnx.Variable(2), nnx.Variable("sum")
        self.norm = nnx.WeightNorm(nnx.Linear(5, 6, rngs=rngs), rngs=rngs)
        self.spectral = nnx.SpectralNorm(nnx.Linear(6, 6, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.spectral(nnx.relu(self.norm(x))))
        x = self.head(x) * self.table + self.named["shift"].reshape(1, -1)
        for _ in range(self.steps.get_value() if self.kind.get_value() == "sum" else 0):
            x = x + self.listed[0]
        return x
