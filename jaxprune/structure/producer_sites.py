"""Where the channels of a group are made and read: what scoring looks at, for every producer of every group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies
from jaxprune.structure.model_state import Path
from jaxprune.structure.propagation import BATCH
from jaxprune.structure.trace import ChannelRead, LabelledValue
from jaxprune.types import Array


@dataclass(frozen=True, eq=False)
class ChannelIndices:
    """Indices of an array, or a value, that belong to each channel of a group.

    `axes` are laid out last, flat, and `positions` [C, m] are places there.
    """

    axes: tuple[int, ...]
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ProducerSite:
    """What is read for one producer of a group: its kernel, the norm after it, and its first consumer.

    `value` numbers the activations entering that consumer; `batch_axis` is their batch axis, and there is one value for
    each of `turns` (lengths of loops around it, outermost first).
    """

    group: str
    kernel: Path
    made: ChannelIndices
    gamma: tuple[Path, ChannelIndices] | None
    beta: tuple[Path, ChannelIndices] | None
    consumer: Path | None
    """The kernel that first reads the channels; None where they are multiplied with other activations."""
    consumed: ChannelIndices | None
    value: int
    seen: ChannelIndices
    batch_axis: int
    turns: tuple[int, ...]


def sites_of(
    families: ChannelFamilies, names: Sequence[str], turns: dict[int, tuple[int, ...]]
) -> tuple[dict[tuple[int, Path], ProducerSite], dict[int, str]]:
    """The site of each producer of each family, and why families have none.

    Args:
      families: of the network.
      names: theirs.
      turns: value -> lengths of the loops around it, for values in loops.
    """
    sites: dict[tuple[int, Path], ProducerSite] = {}
    missing: dict[int, str] = {}
    for family, makers in enumerate(families.producer_uses):
        for number in makers:
            production = families.trace.producer_uses[number]
            key = (family, production.kernel)
            if key in sites:  # of a shared kernel's uses the first one is read
                continue
            found = _site(families, family, number, names[family], turns)
            if isinstance(found, ProducerSite):
                sites[key] = found
            else:
                missing.setdefault(family, found)
    for family in missing:
        sites = {key: site for key, site in sites.items() if key[0] != family}
    return sites, missing


def _site(
    families: ChannelFamilies, family: int, number: int, name: str, turns: dict[int, tuple[int, ...]]
) -> ProducerSite | str:
    trace, production = families.trace, families.trace.producer_uses[number]
    uses = [trace.reads[index] for index in families.reads[family]]
    use = next((own for own in uses if number in own.value.producers), None)
    kernel = ".".join(str(part) for part in production.kernel)
    if use is None:
        return f"channels of {kernel} never enter a layer with weights"
    use = _before_reshapes(families, family, use)
    batch = [axis for axis, own in enumerate(use.value.fixed) if own == trace.labels.fixed_marker(BATCH)]
    seen = _place_in_value(families, family, use.value)
    made = place_in_array(families, family, production.kernel, sorted(production.axes))
    if len(batch) != 1 or seen is None or made is None:
        return f"activations of {kernel} have no plain batch and channel axes"
    gamma, beta = _norm(families, family, number, use)
    consumed = None
    if use.kernel is not None:
        consumed = place_in_array(families, family, use.kernel, sorted(use.kernel_axes))
    return ProducerSite(
        group=name,
        kernel=production.kernel,
        made=made,
        gamma=gamma,
        beta=beta,
        consumer=use.kernel if consumed is not None else None,
        consumed=consumed,
        value=use.value_number,
        seen=seen,
        batch_axis=batch[0],
        turns=turns.get(use.value_number, ()),
    )


def _before_reshapes(families: ChannelFamilies, family: int, use: ChannelRead) -> ChannelRead:
    """The same activations before they were laid out anew, as long as channels had an axis of their own there."""
    trace = families.trace
    place = _place_in_value(families, family, use.value)
    while place is not None and place.positions.shape[1] > 1 and use.value_number in trace.reshaped:
        number = trace.reshaped[use.value_number]
        before = trace.values[number]
        found = _place_in_value(families, family, before)
        if found is None or found.positions.shape[1] >= place.positions.shape[1]:
            break
        use, place = use._replace(value_number=number, value=before), found
    return use


def _place_in_value(families: ChannelFamilies, family: int, value: LabelledValue) -> ChannelIndices | None:
    found: ChannelIndices | None = None
    for own in value.fields:
        members, channels = families.locate(families.trace.labels.find(own.labels))
        if not (members == family).any():
            continue
        if found is not None:
            return None
        flat = np.where(members == family, channels, -1).reshape(-1)
        positions = positions_of(flat, len(families.channel_roots[family]))
        if positions is None:
            return None
        found = ChannelIndices(own.axes, positions)
    return found


def place_in_array(
    families: ChannelFamilies, family: int, path: Path, axes: Sequence[int]
) -> ChannelIndices | None:
    """Where a family sits on one of some axes of an array; None where on none, on several, or unevenly."""
    found: ChannelIndices | None = None
    for axis in axes:
        for channels in families.on_axis(path, axis).get(family, []):
            positions = positions_of(channels, len(families.channel_roots[family]))
            if found is not None or positions is None:
                return None
            found = ChannelIndices((axis,), positions)
    return found


def positions_of(channels: np.ndarray, count: int) -> np.ndarray | None:
    """[C, m] the places of each channel; None where they are not equally many.

    Example:
      >>> positions_of(np.array([0, 1, 0, 1, -1]), 2).tolist()
      [[0, 2], [1, 3]]
    """
    places = np.flatnonzero(channels >= 0)
    if places.size == 0 or places.size % count:
        return None
    order = np.argsort(channels[places], kind="stable")
    found = places[order].reshape(count, -1)
    return found if (channels[found] == np.arange(count)[:, None]).all() else None


def _norm(
    families: ChannelFamilies, family: int, number: int, use: ChannelRead
) -> tuple[tuple[Path, ChannelIndices] | None, tuple[Path, ChannelIndices] | None]:
    """The first learned scale after a production and before its first use, and the first shift after that."""
    trace = families.trace
    gamma: Path | None = None
    beta: Path | None = None
    is_scaled = False
    for touch in trace.affine_uses[: use.num_affine_uses]:
        if (
            number not in touch.producers
            or (touch.is_scale and is_scaled)
            or not (touch.is_scale or is_scaled)
        ):
            continue
        if not (families.locate(trace.labels.find(touch.labels))[0] == family).any():
            continue
        trained = sorted((touch.sources & trace.trained) - {gamma}, key=str)
        only = trained[0] if len(trained) == 1 else None
        if touch.is_scale:
            is_scaled, gamma = True, only
        elif beta is None:
            beta = only
            break
    return _vector(families, family, gamma), _vector(families, family, beta)


def _vector(families: ChannelFamilies, family: int, path: Path | None) -> tuple[Path, ChannelIndices] | None:
    if path is None:
        return None
    place = place_in_array(families, family, path, range(len(families.roots[path])))
    return None if place is None else (path, place)


# === merged: """Arrays at the places where channels are made and read, brought into the shapes that sco


def channels_last(value: jax.Array, site: ProducerSite) -> jax.Array:
    """The activations of a site (or their gradient) as [N, *space, C], at least float32.

    Args:
      value: the value that enters the site's first consumer, in the network's own order of axes; where that is in a
        loop, one for each turn, along leading axes.
      site: where that is.
    """
    turns = len(site.turns)
    moved = jnp.moveaxis(value, site.batch_axis + turns, 0)
    axes = [axis + turns + (axis < site.batch_axis) for axis in site.seen.axes]
    found = _channels_behind(moved, axes, site.seen.positions)
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def channel_columns(array: Array, place: ChannelIndices) -> jax.Array:
    """A kernel (or its gradient) as [F, C]: the entries of each channel, one column per channel."""
    found = _channels_behind(jnp.asarray(array), list(place.axes), place.positions)
    return found.reshape(math.prod(found.shape[:-1]), found.shape[-1])


def filter_columns(kernel: Array, site: ProducerSite) -> jax.Array:
    """A producing kernel (or its gradient) as [F, C]: one column per channel."""
    return channel_columns(kernel, site.made)


def _channels_behind(array: jax.Array, axes: list[int], positions: np.ndarray) -> jax.Array:
    """[..., C]: channels behind everything else; where each has several places, these stay at the first of the axes.

    Args:
      array: of any shape.
      axes: that hold the channels, rising; their flat index is what `positions` count.
      positions: [C, m] places of each channel.
    """
    first = axes[0]
    joined = jnp.moveaxis(array, axes, range(first, first + len(axes)))
    shape = joined.shape
    joined = joined.reshape((*shape[:first], -1, *shape[first + len(axes) :]))
    count, each = positions.shape
    is_whole = (
        each == 1 and count == joined.shape[first] and bool((positions[:, 0] == np.arange(count)).all())
    )
    if not is_whole:
        joined = jnp.take(joined, positions.T.reshape(-1), axis=first)
    apart = joined.reshape((*joined.shape[:first], each, count, *joined.shape[first + 1 :]))
    found = jnp.moveaxis(apart, first + 1, -1)
    return found[(slice(None),) * first + (0,)] if each == 1 else found
