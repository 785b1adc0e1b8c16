"""Limits on sizes: which fraction of channels, multiply-adds or parameters groups may keep, and the counts within."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.patterns import matching
from jaxprune.pruning.repair import (
    NEAR,
    Counts,
    nearest_counts,
    raised,
    ranked_counts,
    rounded_counts,
    uniform_counts,
    uniform_fraction,
)
from jaxprune.pruning.scopes import Room, values_by_group
from jaxprune.structure.groups import Structure

_SIZES = {
    "kept_fraction": "all channels",
    "macs_fraction": "all multiply-adds",
    "params_fraction": "all parameters",
}
_MOST_PASSES = 3
"""How often limits that share layers are met in turn."""


class Rules(NamedTuple):
    """How a budget is met, whichever it is."""

    structure: Structure
    rooms: Mapping[str, Room]
    """What each group that may lose channels may keep."""
    fine_rooms: Mapping[str, Room]
    """The same in single channels."""
    scores: Mapping[str, np.ndarray]
    """Of these groups; only read if they compete."""
    is_global: bool
    """Whether the channels of all groups compete in one ranking, or every group keeps the same fraction."""
    multiple_of: int
    unscored: Sequence[str] = ()
    """Groups that stay whole because they have no scores."""

    @property
    def remark(self) -> str:
        """A sentence that names the groups without scores, for errors; "" if there are none."""
        return f" Groups without scores stay whole: {', '.join(self.unscored)}." if self.unscored else ""


class Target(NamedTuple):
    """A limit on the size of the network, or of some of its layers."""

    budget: str
    """Name of the option."""
    pattern: str
    """Which groups it is about; "" for all."""
    fraction: float
    """Of the full size."""
    groups: Sequence[str]
    """The groups that lose channels to meet it."""
    size_of: Callable[[Mapping[str, int]], int]
    """Counts of all groups -> size."""
    full_size: int
    limit: float

    @property
    def label(self) -> str:
        """The option as the caller typed it."""
        return label_of(self.budget, self.pattern)

    def met(self, counts: Mapping[str, int]) -> float:
        """The fraction of the full size that a network of these counts has."""
        return self.size_of(counts) / self.full_size

    def fits(self, counts: Mapping[str, int]) -> bool:
        """Whether a network of these counts is within the limit."""
        return self.size_of(counts) <= self.limit


def label_of(budget: str, pattern: str) -> str:
    """Returns an option, and its pattern if it has one, as a caller types them."""
    return f"{budget}[{pattern!r}]" if pattern else budget


def targets_of(rules: Rules, budget: str, asked: object) -> list[Target]:
    """Returns the limit on the whole network, or one for each pattern of a mapping, in program order.

    Args:
      rules: the groups.
      budget: `"kept_fraction"`, `"macs_fraction"` or `"params_fraction"`.
      asked: its fraction, or fractions by pattern.

    Raises:
      ValueError: for fractions out of range, and for patterns that match no group that may lose channels, or groups
        that another pattern gives another fraction.
    """
    if not isinstance(asked, Mapping):
        return [target_of(rules, budget, "", checked_fraction(budget, asked), list(rules.rooms))]
    if not asked:
        raise ValueError(f"{budget} needs a fraction, or fractions by name or pattern of groups, got none.")
    names = rules.structure.groups
    fractions = {
        pattern: checked_fraction(label_of(budget, str(pattern)), value) for pattern, value in asked.items()
    }
    values_by_group(budget, fractions, names)
    groups = {
        pattern: [name for name in matching(pattern, names) if name in rules.rooms] for pattern in fractions
    }
    if whole := [pattern for pattern, matched in groups.items() if not matched]:
        raise ValueError(
            f"{budget} needs groups that may lose channels, got {', '.join(map(repr, whole))}, whose groups stay "
            f"whole by groups=, ignore= or factor=. Leave one of the two out.{rules.remark}"
        )
    order = list(rules.rooms)
    return [
        target_of(rules, budget, pattern, fractions[pattern], groups[pattern])
        for pattern in sorted(groups, key=lambda pattern: order.index(groups[pattern][0]))
    ]


def target_of(rules: Rules, budget: str, pattern: str, fraction: float, groups: Sequence[str]) -> Target:
    """Returns a limit on the whole network, or with a pattern on the layers that make or read its groups."""
    structure, among = rules.structure, frozenset(groups) if pattern else None
    size_of: Callable[[Mapping[str, int]], int] = {
        "kept_fraction": lambda counts: sum(counts[name] for name in groups),
        "macs_fraction": lambda counts: structure.count_macs(counts, among),
        "params_fraction": lambda counts: structure.count_parameters(counts, among),
    }[budget]
    full_size = size_of(structure.widths)
    limit = round(fraction * full_size) if budget == "kept_fraction" else fraction * full_size
    return Target(budget, pattern, fraction, groups, size_of, full_size, limit)


def checked_fraction(option: str, fraction: object) -> float:
    """Returns a fraction as a float.

    Raises:
      ValueError: if it is no number in (0, 1].
    """
    if (
        not isinstance(fraction, int | float | np.integer | np.floating)
        or isinstance(fraction, bool)
        or not 0 < fraction <= 1
    ):
        raise ValueError(f"{option} must be in (0, 1], got {fraction!r}. It is the fraction that stays.")
    return float(fraction)


def reach(rules: Rules, targets: Sequence[Target]) -> Counts:
    """Returns the largest counts within all limits; layers that two patterns share are within both.

    Args:
      rules: what groups may keep.
      targets: the limits.

    Returns:
      Group name -> kept channels, for every group of the network.

    Raises:
      ValueError: if a limit cannot be met; the message says what can.
    """
    counts = {**rules.structure.widths, **{name: _most(rules, name) for name in rules.rooms}}
    for number in range(_MOST_PASSES if len(targets) > 1 else 1):
        tried = dict(counts)
        for target in targets:
            found = solve(rules, target, tried)
            if found is None:
                raise _unreachable(rules, target, tried)
            tried.update(found)
        # After the first pass, what later patterns removed may leave more to earlier ones.
        if number and not all(target.fits(tried) for target in targets):
            break
        counts = tried
    return counts


def solve(rules: Rules, target: Target, others: Mapping[str, int]) -> Counts | None:
    """Returns the largest counts of a target's groups within its limit.

    Args:
      rules: what groups may keep.
      target: the limit.
      others: counts of all groups, of which those of the target's are not read.

    Returns:
      Group name -> kept channels, for the target's groups; None if none are within the limit.
    """
    rooms = {name: rules.rooms[name] for name in target.groups}
    fine = {name: rules.fine_rooms[name] for name in target.groups}

    def load(counts: Mapping[str, int]) -> float:
        return target.size_of({**others, **counts}) / max(target.limit, 1e-9)

    if target.fraction == 1 and load(whole := {name: _most(rules, name) for name in rooms}) <= 1:
        return whole
    if rules.is_global:
        return ranked_counts(rooms, rules.scores, load)
    if target.budget == "kept_fraction" and not _are_limits_felt(fine, target.fraction):
        if rules.multiple_of == 1:
            return uniform_counts(fine, target.fraction)
        return nearest_counts(rooms, target.fraction, round(target.limit))
    fraction, next_fraction = uniform_fraction(fine, load)
    if rules.multiple_of > 1:
        return rounded_counts(rooms, fraction, load)
    counts, next_counts = uniform_counts(fine, fraction), uniform_counts(fine, next_fraction)
    if load(counts) > 1:
        return None

    # All groups of one width change at the same fraction: take those along that still fit.
    def urgency(name: str, count: int) -> float:
        return -count / rooms[name].width

    steps = {name: range(count, next_counts[name] + 1) for name, count in counts.items()}
    counts = raised(counts, steps, load, urgency)
    if (
        1 - load(counts) > NEAR
    ):  # few wide steps: single channels more, if these are enough to meet the budget
        more = raised(counts, {name: room.counts for name, room in fine.items()}, load, urgency)
        counts = more if 1 - load(more) <= NEAR else counts
    return counts


def _most(rules: Rules, name: str) -> int:
    """The most that a group may keep: all its channels, unless a ceiling of the user's says less."""
    width, most = rules.fine_rooms[name].width, rules.fine_rooms[name].counts[-1]
    return width if most == width else rules.rooms[name].counts[-1]


def _are_limits_felt(rooms: Mapping[str, Room], fraction: float) -> bool:
    """Whether a floor or ceiling of the user's keeps a group from a fraction of its channels."""
    return any(
        room.is_limited and not room.counts[0] <= max(1, round(fraction * room.width)) <= room.counts[-1]
        for room in rooms.values()
    )


def _unreachable(rules: Rules, target: Target, others: Mapping[str, int]) -> ValueError:
    """Returns the error for a limit below the smallest network."""
    smallest = {**others, **{name: rules.rooms[name].counts[0] for name in target.groups}}
    closest = math.ceil(target.met(smallest) * 1e4) / 1e4
    is_limited = any(rules.rooms[name].is_limited for name in target.groups)
    floor = "keeps what min_kept says" if is_limited else "keeps a channel of every group"
    return ValueError(
        f"{target.label}={target.fraction} cannot be met: the smallest network that {floor} has "
        f"{closest:.4f} of {_SIZES[target.budget]}, the closest that can be reached. Raise it, ignore fewer groups or "
        f"lower multiple_of{' or min_kept' if is_limited else ''}.{rules.remark}"
    )
