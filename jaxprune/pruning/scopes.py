"""Options by group: names and patterns of groups become a value for each group, and the counts that it may keep."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from jaxprune.patterns import as_list, check_patterns, chosen_groups, matching
from jaxprune.structure.groups import Structure
from jaxprune.types import Array, is_whole

KeptLimit = int | float
"""A number of channels (a whole number), or a fraction of a group's channels (a float in (0, 1])."""

Limits = KeptLimit | Mapping[str, KeptLimit]
"""One limit for every group, or limits by name or pattern of groups."""

Factor = Literal["inner", "outer", "both"]
"""Which of two groups that share every index loses channels: dimensions of heads (inner), heads (outer) or both."""

_Value = TypeVar("_Value")


class Room(NamedTuple):
    """How many channels a group may keep."""

    width: int
    """Number of channels before pruning."""
    counts: Sequence[int]
    """The allowed numbers, rising."""
    is_limited: bool
    """Whether a floor or a ceiling of the user's takes part in them."""


class RoomLimits(NamedTuple):
    """Floors and ceilings of groups, as `plan` takes them."""

    min_kept: Limits | None = None
    max_kept: Limits | None = None


def values_by_group(option: str, given: Mapping[str, _Value], names: Collection[str]) -> dict[str, _Value]:
    """Returns the value of each group that a pattern matches.

    Args:
      option: name of the option, for messages.
      given: name or shell pattern of groups -> value.
      names: of all groups, in program order.

    Returns:
      Group name -> value, in program order.

    Raises:
      ValueError: for a pattern that matches nothing, and for groups that patterns of different values match.

    Example:
      >>> values_by_group("kept_fraction", {"conv*": 0.5, "dense": 0.75}, ["conv1", "conv2", "dense"])
      {'conv1': 0.5, 'conv2': 0.5, 'dense': 0.75}
    """
    check_patterns(option, given, names)
    values: dict[str, tuple[str, _Value]] = {}
    problems = []
    for pattern, value in given.items():
        for name in matching(pattern, names):
            earlier, other = values.setdefault(name, (pattern, value))
            if other != value:
                problems.append(f"{name} has {other} by {earlier!r} and {value} by {pattern!r}")
    if problems:
        raise ValueError(
            f"{option} needs one value for each group, but {'; '.join(problems)}. Make the patterns narrower."
        )
    return {name: values[name][1] for name in names if name in values}


def free_groups(
    structure: Structure,
    ignore: Sequence[str],
    factor: Factor,
    *,
    groups: Sequence[str] | None = None,
    scores: Mapping[str, Array] | None = None,
) -> list[str]:
    """Returns the groups that may lose channels, in program order.

    Args:
      structure: groups of the network.
      ignore: names or patterns of groups that stay whole.
      factor: which of two groups that share every index loses channels.
      groups: names or patterns of the only groups that may lose channels; None stands for all.
      scores: group name -> scores; groups without stay whole. None stands for scores of all.

    Raises:
      ValueError: for patterns that match nothing, and if no group is left.
    """
    always_whole = structure.shared_groups(factor)
    chosen = [name for name in chosen_groups(structure.groups, groups, ignore) if name not in always_whole]
    free = [name for name in chosen if scores is None or name in scores]
    if not free:
        options = f"factor={factor!r} and ignore={as_list(ignore)}"
        options += "" if groups is None else f" and groups={as_list(groups)}"
        options += f" and scores of {', '.join(scores or ()) or 'no group'}" if chosen else ""
        raise ValueError(
            f"nothing is left to prune: with {options} every group stays whole. "
            f"The groups are {', '.join(structure.groups)}."
        )
    return free


def rooms_of(
    structure: Structure,
    free: Sequence[str],
    limits: RoomLimits,
    *,
    multiple_of: int = 1,
    keep_odd_widths: bool = False,
) -> dict[str, Room]:
    """Returns how many channels each group may keep.

    Args:
      structure: groups of the network.
      free: groups that may lose channels.
      limits: floors and ceilings.
      multiple_of: counts are multiples of it in groups that are at least that wide; narrower groups stay whole.
      keep_odd_widths: whether a group whose width is no multiple may also stay whole.

    Returns:
      Group name -> its room, for the groups of `free`.

    Raises:
      ValueError: for limits that are no counts or fractions, match no group, or leave a group nothing to keep.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxprune.structure.tracing import trace_structure
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.hidden = nnx.Linear(4, 8, rngs=rngs)
      ...         self.head = nnx.Linear(8, 2, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.head(nnx.relu(self.hidden(x)))
      >>> structure = trace_structure(Net(nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 4), "float32"))
      >>> rooms = rooms_of(structure, ["hidden.kernel"], RoomLimits({"hidden*": 0.3}, 6), multiple_of=2)
      >>> list(rooms["hidden.kernel"].counts)
      [4, 6]
    """
    floors = _limits(structure, "min_kept", limits.min_kept, free)
    ceilings = _limits(structure, "max_kept", limits.max_kept, free)
    rooms, problems = {}, []
    for name in free:
        width = structure.widths[name]
        low, high = floors.get(name, 1), ceilings.get(name, width)
        counts = _allowed_counts(width, low, high, multiple_of, keep_odd_widths)
        rooms[name] = Room(width, counts, name in floors or name in ceilings)
        if low > high:
            problems.append(f"{name} keeps at least {low} by min_kept and at most {high} by max_kept")
        elif not counts:
            problems.append(
                f"{name} of {width} channels has no multiple of {multiple_of} from {low} to {high}"
            )
    if problems:
        raise ValueError(
            f"min_kept, max_kept and multiple_of contradict each other: {'; '.join(problems)}. Loosen one of them."
        )
    return rooms


def _allowed_counts(width: int, low: int, high: int, multiple_of: int, keep_odd: bool) -> Sequence[int]:
    """Returns the numbers of channels, rising, that a group may keep; none if limits and multiples exclude all."""
    multiples = range(-(-low // multiple_of) * multiple_of, high + 1, multiple_of)
    if width % multiple_of == 0 or high < width or (multiples and not keep_odd):
        return multiples
    return (*multiples, width)


def _limits(
    structure: Structure,
    option: str,
    given: Limits | None,
    free: Sequence[str],
) -> dict[str, int]:
    """Returns the limit of each group in channels."""
    if given is None:
        return {}
    patterns = given if isinstance(given, Mapping) else {"*": given}
    problems = [f"{value!r} for {pattern!r}" for pattern, value in patterns.items() if not _is_limit(value)]
    if problems:
        raise ValueError(
            f"{option} needs whole numbers of channels >= 1 or fractions of a group (floats in (0, 1]), got "
            f"{', '.join(problems)}."
        )
    widths = structure.widths
    too_many = [
        f"{value} for {name}, which has {widths[name]}"
        for name, value in patterns.items()
        if name in widths and value > widths[name]
    ]
    if too_many:
        raise ValueError(f"{option} needs at most the channels of a group, got {', '.join(too_many)}.")
    idle = [
        pattern
        for pattern in patterns
        if (matched := matching(pattern, widths)) and not set(matched) & set(free)
    ]
    if idle and option == "max_kept":
        raise ValueError(
            f"max_kept needs groups that may lose channels, got {', '.join(map(repr, idle))}, which stay whole by "
            "ignore= or factor=. Leave one of the two out."
        )
    values = values_by_group(option, patterns, widths)
    return {name: _in_channels(value, widths[name], option) for name, value in values.items()}


def _is_limit(value: object) -> bool:
    """Tells whether a value is a number of channels or a fraction of them."""
    return is_whole(value, smallest=1) or (isinstance(value, float | np.floating) and bool(0 < value <= 1))


def _in_channels(value: KeptLimit, width: int, option: str) -> int:
    """Returns a limit in channels: fractions become the nearest count on the side that the limit allows."""
    if is_whole(value):
        return min(int(value), width)
    exact = round(float(value) * width, 9)  # 0.1 * 30 is a little above 3
    return max(1, math.ceil(exact) if option == "min_kept" else math.floor(exact))
