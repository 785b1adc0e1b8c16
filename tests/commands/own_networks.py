"""Factories for `--network own_networks:NAME`: networks of one's own, and some that cannot work."""

from __future__ import annotations

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
