"""Says what is wrong with the channels that a plan keeps: the one check of everything that takes kept channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.text import shortened
from jaxprune.types import Array, Kept, is_whole

_LONGEST = 120
"""Most characters of a value that a message repeats."""


KeptIndices = Mapping[str, Sequence[int] | Array] | Kept
"""Group name -> kept indices, as a mapping or as the pairs of `types.Kept`; indices may be traced arrays."""


def kept_problem(name: str, kept: Sequence[int] | Array, width: int) -> str | None:
    """Says in words what is wrong with the kept indices of one group.

    Args:
      name: of the group.
      kept: its kept indices. Of traced arrays only the shape and the type of numbers are known.
      width: the number of channels of the group.

    Returns:
      What was needed and what came; None if nothing is wrong.

    Example:
      >>> kept_problem("conv", (0, 4), 4)
      'group conv needs rising indices between 0 and 3, got (0, 4)'
      >>> kept_problem("conv", (0, 3), 4)
    """
    if isinstance(kept, np.ndarray | jax.Array):
        if kept.ndim != 1 or not jnp.issubdtype(kept.dtype, jnp.integer):
            return (
                f"group {name} needs whole numbers in one row as kept indices, got an array of {kept.dtype} of "
                f"shape {kept.shape}"
            )
        is_traced = isinstance(kept, jax.core.Tracer)
        values = range(kept.size) if is_traced else np.asarray(kept).tolist()  # those of a trace are unknown
    elif not is_sequence(kept) or not all(map(is_whole, kept)):
        return f"group {name} needs a list of whole numbers as kept indices, got {shown(kept)}"
    else:
        values = list(kept)
    if not 1 <= len(values) <= width:
        return f"group {name} needs between 1 and {width} kept indices, got {len(values)}: {shown(kept)}"
    if list(values) != sorted(set(values)) or values[0] < 0 or values[-1] >= width:
        return f"group {name} needs rising indices between 0 and {width - 1}, got {shown(kept)}"
    return None


def plan_problems(kept: object, widths: object) -> list[str]:
    """Says in words what is wrong with a plan, whatever its network is.

    Args:
      kept: group -> kept indices.
      widths: group -> number of channels.

    Returns:
      One clause for each group with a problem; none if nothing is wrong.
    """
    if not isinstance(kept, Mapping) or not isinstance(widths, Mapping):
        return [f"kept indices and widths go by group, got {shown(kept)} and {shown(widths)}"]
    problems = [f"group {name} needs a width and kept indices" for name in {*kept} ^ {*widths}]
    for name, indices in kept.items():
        width = widths.get(name)
        if name not in widths:
            continue
        if not is_whole(width, smallest=1):
            problems.append(f"group {name} needs a whole number >= 1 as width, got {shown(width)}")
        elif problem := kept_problem(name, indices, width):
            problems.append(problem)
    return problems


def network_problems(widths: Mapping[str, int], network_widths: Mapping[str, int]) -> list[str]:
    """Says in words why the widths of a plan are not those of a network.

    Args:
      widths: group -> number of channels, of the plan; groups that it leaves out stay whole.
      network_widths: group -> number of channels, of the network.

    Returns:
      One clause for each group with a problem; none if nothing is wrong.
    """
    problems = []
    for name, width in widths.items():
        if name not in network_widths:
            problems.append(f"no group is called {name!r} (groups: {', '.join(network_widths)})")
        elif width != network_widths[name]:
            problems.append(f"group {name} has {network_widths[name]} channels, not {shown(width)}")
    return problems


def index_arrays(structure: Structure, kept: KeptIndices) -> dict[str, Array]:
    """Returns kept indices as integer arrays, after checking that they fit the groups.

    Args:
      structure: groups of the network.
      kept: group name -> kept indices.

    Returns:
      Group name -> [kept channels] int32; groups that `kept` leaves out are left out here too, and stay whole.

    Raises:
      ValueError: for unknown groups, no index at all, or indices out of order or out of range. The values of traced
        indices are not checked.
    """
    pairs: Iterable[tuple[str, Sequence[int] | Array]] = kept.items() if isinstance(kept, Mapping) else kept
    arrays: dict[str, Array] = {}
    problems: list[str] = []
    for name, indices in pairs:
        if name in arrays:
            problems.append(f"group {name} is listed twice")
        elif name not in structure.groups:
            problems.append(f"no group is called {name!r} (groups: {', '.join(structure.groups)})")
        elif problem := kept_problem(name, indices, structure.groups[name].size):
            problems.append(problem)
        else:
            arrays[name] = indices if isinstance(indices, jax.core.Tracer) else np.asarray(indices, np.int32)
    if problems:
        raise ValueError(f"needs kept indices that fit the network's groups: {'; '.join(problems)}.")
    return arrays


def is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    """Tells whether a value is a list, a tuple or the like, but no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def shown(value: object) -> str:
    """Returns a value as a message shows it, cut where it is long."""
    try:
        text = repr(np.asarray(value).tolist() if isinstance(value, np.ndarray | jax.Array) else value)
    except Exception:  # a traced array, or a whole number of more digits than Python writes
        text = type(value).__name__
    return shortened(text, _LONGEST)
