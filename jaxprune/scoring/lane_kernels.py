"""Kernels for operators that users register: their one-channel implementations laid over lanes, for each shape anew."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import cast

import jax
import jax.numpy as jnp

from jaxprune.language.operators import Implementation, Params
from jaxprune.scoring.kernels import Kernel, Spec, buffer_length
from jaxprune.scoring.lanes import apply_lanes
from jaxprune.types import Array


@cache
def lane_kernel(
    implement: Hashable, params: Params, specs: tuple[Spec, ...], out_shape: tuple[int, ...]
) -> Kernel:
    """An operator over all lanes of values with these specs.

    The kernel takes buffers, per value and axis [classes or 1, length] booleans that say what is real, and traced
    parameters; it gives a buffer of the most lanes that any of the values has.
    """

    def run(
        arrays: tuple[Array, ...], sizes: tuple[tuple[Array, ...], ...], traced: tuple[Array, ...]
    ) -> jax.Array:
        values = [
            array[: spec.entries].reshape(1, spec.classes, spec.channels, *spec.shape)
            for array, spec in zip(arrays, specs, strict=True)
        ]
        masks = tuple(tuple(mask[None, :, None] for mask in own) for own in sizes)
        result = apply_lanes(cast(Implementation, implement), values, masks, params or cast(Params, traced))
        padding = [(0, 0)] * 3 + [
            (0, size - found) for size, found in zip(out_shape, result.shape[3:], strict=True)
        ]
        flat = jnp.pad(result, padding).reshape(-1)
        return jnp.pad(flat, (0, buffer_length(len(flat)) - len(flat)))

    return Kernel(run, shared=(1, 2))
