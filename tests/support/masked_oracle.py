"""An oracle: computes what a slim network must compute with the masked full-size network.

Arrays are zeroed where they belong to pruned channels. Where zeros would still change the result, the network is
changed: normalisations take their statistics over kept channels, a softmax over experts leaves pruned experts out, and
attention divides by the root of the kept size of a head. Nothing is cut, traced again or resized.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import axis_keep, keep_mask
from jaxprune.structure.model_state import Path, merge_model, split_model

NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm)

Kept = Mapping[str, tuple[int, ...]]


class IsKept(nnx.Variable):
    """Booleans that say which channels a layer of the oracle counts."""


class Oracle(NamedTuple):
    """A full-size network that computes what the slim one must."""

    model: nnx.Module
    masked: dict[Path, np.ndarray]
    """The network's arrays with zeros for pruned channels, and no other change."""
    is_plain: bool
    """Whether masking is the only change: nothing normalises over pruned channels or scales by their number."""


def oracle_of(model: nnx.Module, structure: Structure, kept: Kept) -> Oracle:
    """Builds the oracle of a network; run it under `counting_kept_channels`."""
    indices = {name: np.asarray(channels, np.int32) for name, channels in kept.items()}
    graphdef, flat, rest = split_model(model, "evaluation")
    stays = {path: keep_mask(structure.layouts[path], structure.shapes[path], indices) for path in flat}
    masked = {path: np.where(stays[path], np.asarray(array), 0) for path, array in flat.items()}
    arrays = dict(masked)
    factors = _query_factors(model, structure, indices)
    for path, factor in factors.items():
        arrays[path] = (arrays[path] * factor).astype(arrays[path].dtype)
    copy = merge_model(graphdef, jax.device_put(arrays), rest)  # `jnp.asarray` compiles for each new shape
    is_plain = not factors
    for path, module in list(nnx.iter_modules(copy)):
        if isinstance(module, NORMS):
            is_kept = stays[(*path, "scale")]
            module.is_kept = IsKept(jax.device_put(is_kept))
            is_plain &= bool(is_kept.all())
        if hasattr(module, "router"):
            is_kept = _along(structure, (*path, "router", "kernel"), -1, indices)
            module.router = Silenced(module.router, is_kept)
            is_plain &= bool(is_kept.all())
    return Oracle(copy, masked, is_plain)


class Silenced(nnx.Module):
    """A layer whose pruned outputs get no share of a softmax."""

    def __init__(self, layer: nnx.Module, is_kept: np.ndarray) -> None:
        self.layer = layer
        self.is_kept = IsKept(jax.device_put(is_kept))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        return jnp.where(jnp.broadcast_to(self.is_kept[...], y.shape), y, -1e30)


@contextmanager
def counting_kept_channels() -> Iterator[None]:
    """Makes Flax's norms take their statistics over the channels in `is_kept`, with the masks that they support."""
    patches = [mock.patch.object(norm, "__call__", _counting(norm.__call__)) for norm in NORMS]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _counting(call: Any) -> Any:
    def normalise(self: nnx.Module, x: jax.Array) -> jax.Array:
        is_kept = jnp.broadcast_to(self.is_kept[...], x.shape)
        return jnp.where(is_kept, call(self, x, mask=is_kept), 0)  # a pruned group of a GroupNorm has no mean

    return normalise


def _query_factors(
    model: nnx.Module, structure: Structure, kept: Mapping[str, np.ndarray]
) -> dict[Path, np.ndarray]:
    """Returns factors for the queries of attention that turn the root of a full head's size into that of a kept head's.

    Queries come from a layer of that name, or are the first third of what `qkv` makes.
    """
    factors: dict[Path, np.ndarray] = {}
    for path, module in nnx.iter_modules(model):
        for name, parts in (("query", 1), ("qkv", 3)):
            if not (hasattr(module, name) and hasattr(module, "num_heads")):
                continue
            kernel = (*path, name, "kernel")
            if isinstance(module, nnx.MultiHeadAttention):  # [C, heads, d]
                heads, dims = (_along(structure, kernel, axis, kept) for axis in (-2, -1))
                is_kept = heads[:, None] & dims
            else:
                line = _along(structure, kernel, -1, kept)
                is_kept = line[: len(line) // parts].reshape(module.num_heads, -1)
            sizes = is_kept.sum(1)
            assert len({*sizes[sizes > 0].tolist()}) == 1, f"heads of {kernel} keep {sizes} dimensions"
            if sizes.max() == is_kept.shape[1]:
                continue
            for array in ("kernel", "bias"):
                if (array_path := (*path, name, array)) in structure.shapes:
                    line = np.ones(structure.shapes[array_path][-1])
                    line[: len(line) // parts] = math.sqrt(is_kept.shape[1] / sizes.max())
                    factors[array_path] = line
    return factors


def _along(structure: Structure, path: Path, axis: int, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns [length] booleans of one axis: which indices stay."""
    return np.asarray(axis_keep(structure.layouts[path][axis], structure.shapes[path][axis], kept))
