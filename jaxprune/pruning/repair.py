"""Meets a budget: the numbers of channels, in allowed steps, whose size comes nearest to a limit from below.

Numbers are chosen as real ones first (one fraction for all groups, or one ranking of all channels) and rounded down to
allowed ones. Then groups take turns to keep one step more, as long as the network stays within the limit.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxprune.pruning.scopes import Room

NEAR = 0.01
"""A budget counts as met if what is kept is this near to what was asked."""

Counts = dict[str, int]
"""Group name -> number of channels that it keeps."""

Load = Callable[[Mapping[str, int]], float]
"""Size of a network of these counts, as a fraction of the limit: it fits up to 1. It never grows when counts fall."""

Urgency = Callable[[str, int], float]
"""(group, count that it has now) -> how much it deserves a step up; the largest takes its step first."""


def uniform_fraction(rooms: Mapping[str, Room], load: Load) -> tuple[float, float]:
    """Returns the largest fraction of every group's channels that fits, and the next one, which does not.

    Args:
      rooms: what groups may keep, in single channels.
      load: size by counts.

    Returns:
      Two fractions for `uniform_counts`; the first is 0 if not even the smallest network fits.

    Example:
      >>> rooms = {"a": Room(4, range(1, 5), False), "b": Room(8, range(1, 9), False)}
      >>> low, high = uniform_fraction(rooms, lambda counts: sum(counts.values()) / 7)
      >>> uniform_counts(rooms, low), uniform_counts(rooms, high)
      ({'a': 2, 'b': 5}, {'a': 3, 'b': 5})
    """
    halves = {(kept + 0.5) / room.width for room in rooms.values() for kept in range(room.width)}
    # Just below the half, where the count that rounds up at the half has not risen yet.
    fractions = [0.0, *sorted(min(1.0, half) * (1 - 1e-9) for half in halves), 1.0]
    first_too_large = bisect_left(
        range(1, len(fractions)), True, key=lambda at: load(uniform_counts(rooms, fractions[at])) > 1
    )
    return fractions[first_too_large], fractions[min(first_too_large + 1, len(fractions) - 1)]


def uniform_counts(rooms: Mapping[str, Room], fraction: float) -> Counts:
    """Returns the same fraction of every group, rounded (half to even), within what each group may keep.

    Args:
      rooms: what groups may keep, in single channels.
      fraction: in [0, 1].

    Example:
      >>> uniform_counts({"a": Room(5, range(1, 6), False), "b": Room(6, range(4, 7), False)}, 0.5)
      {'a': 2, 'b': 4}
    """
    return {
        name: min(max(room.counts[0], round(fraction * room.width)), room.counts[-1])
        for name, room in rooms.items()
    }


def rounded_counts(rooms: Mapping[str, Room], fraction: float, load: Load) -> Counts | None:
    """Returns about the same fraction of every group in allowed steps, as near to the limit as steps allow.

    All groups are rounded down. If that is too large, because some groups have a floor, those furthest above the
    fraction step down. Then those furthest below it step up, until no step of any group fits.

    Args:
      rooms: what groups may keep.
      fraction: aimed at in every group.
      load: size by counts.

    Returns:
      The counts, or None if the limit cannot be met.

    Example:
      >>> rooms = {name: Room(24, range(8, 25, 8), False) for name in "abc"}
      >>> rounded_counts(rooms, 0.5, lambda counts: sum(counts.values()) / 36)
      {'a': 16, 'b': 8, 'c': 8}
    """
    targets = {name: fraction * room.width for name, room in rooms.items()}
    counts = {
        name: room.counts[max(0, bisect_right(room.counts, targets[name] + 1e-6) - 1)]
        for name, room in rooms.items()
    }

    def deficit(name: str, count: int) -> float:
        return (targets[name] - count) / rooms[name].width

    while load(counts) > 1:
        lower = [name for name, room in rooms.items() if counts[name] > room.counts[0]]
        if not lower:
            return None
        name = min(lower, key=lambda name: deficit(name, counts[name]))
        counts[name] = _next_below(rooms[name].counts, counts[name])
    return nearer(counts, rooms, load, deficit)


def nearest_counts(rooms: Mapping[str, Room], fraction: float, limit: int) -> Counts:
    """Returns a fraction of every group, rounded to the nearest allowed count, with about the right sum.

    Where the rounded counts sum to more than the limit, the groups furthest above the fraction are rounded down
    instead, as long as that brings the sum nearer; where they sum to less, groups are rounded up as long as that fits.
    No group is further from the fraction than its next allowed count.

    Args:
      rooms: what groups may keep.
      fraction: of every group.
      limit: the sum of all counts.

    Example:
      >>> rooms = {name: Room(16, (8, 16), False) for name in "abcd"}
      >>> nearest_counts(rooms, 0.7, 45)  # 11.2 of 16 are nearest to 8
      {'a': 16, 'b': 8, 'c': 8, 'd': 8}
    """
    targets = {name: fraction * room.width for name, room in rooms.items()}

    def deficit(name: str, count: int) -> float:
        return (targets[name] - count) / rooms[name].width

    counts: Counts = {}
    for name, room in rooms.items():
        count = max(1, round(targets[name]))
        counts[name] = min(room.counts, key=lambda allowed: (abs(allowed - count), -allowed))
    for name in sorted(rooms, key=lambda name: deficit(name, counts[name])):
        excess = sum(counts.values()) - limit
        if excess > 0 and targets[name] < counts[name] > rooms[name].counts[0]:
            lower = _next_below(rooms[name].counts, counts[name])
            if abs(excess - counts[name] + lower) < excess:
                counts[name] = lower
    near = {
        name: room.counts[
            : max(bisect_left(room.counts, targets[name] - 1e-6), bisect_left(room.counts, counts[name])) + 1
        ]
        for name, room in rooms.items()
    }
    return raised(counts, near, lambda counts: sum(counts.values()) / limit, deficit)


def ranked_counts(rooms: Mapping[str, Room], scores: Mapping[str, np.ndarray], load: Load) -> Counts | None:
    """Returns the counts that are left when the steps of lowest mean score are removed first, over all groups.

    Then the best of the removed steps that still fit are taken back, until none fits.

    Args:
      rooms: what groups may keep.
      scores: group name -> [C] finite scores.
      load: size by counts.

    Returns:
      The counts, or None if the limit cannot be met.

    Example:
      >>> rooms = {"a": Room(3, range(1, 4), False), "b": Room(2, range(1, 3), False)}
      >>> scores = {"a": np.array([1.0, 5.0, 2.0]), "b": np.array([4.0, 3.0])}
      >>> ranked_counts(rooms, scores, lambda counts: sum(counts.values()) / 3)
      {'a': 1, 'b': 2}
    """
    rising = {name: np.sort(scores[name]) for name in rooms}

    def mean_score(name: str, lower: int, upper: int) -> float:
        width = rooms[name].width
        return float(rising[name][width - upper : width - lower].mean())

    removed = _removals(rooms, mean_score)
    tops = {name: room.counts[-1] for name, room in rooms.items()}

    def after(number: int) -> Counts:
        return {**tops, **dict(removed[:number])}

    number = bisect_left(range(len(removed) + 1), True, key=lambda number: load(after(number)) <= 1)
    if number > len(removed):
        return None

    def urgency(name: str, count: int) -> float:
        return mean_score(name, count, _next_above(rooms[name].counts, count))

    return nearer(after(number), rooms, load, urgency)


def _removals(
    rooms: Mapping[str, Room], mean_score: Callable[[str, int, int], float]
) -> list[tuple[str, int]]:
    """Returns (group, count that is left) for all steps down in the order of their scores, groups in program order."""
    heap: list[tuple[float, int, str, int]] = []

    def push(rank: int, name: str, at: int) -> None:
        if at > 0:
            lower, upper = rooms[name].counts[at - 1], rooms[name].counts[at]
            heapq.heappush(heap, (mean_score(name, lower, upper), rank, name, at - 1))

    for rank, (name, room) in enumerate(rooms.items()):
        push(rank, name, len(room.counts) - 1)
    removed = []
    while heap:
        _, rank, name, at = heapq.heappop(heap)
        removed.append((name, rooms[name].counts[at]))
        push(rank, name, at)
    return removed


def nearer(counts: Counts, rooms: Mapping[str, Room], load: Load, urgency: Urgency) -> Counts:
    """Returns counts as near to the limit as single steps bring them, and exchanges of steps where these leave a gap.

    In an exchange one group steps up although that does not fit, and the least urgent steps of others make up for it.

    Args:
      counts: that fit.
      rooms: what groups may keep.
      load: size by counts.
      urgency: of the next step of a group.

    Example:
      >>> rooms = {"small": Room(2, (1, 2), False), "large": Room(8, (4, 8), False)}
      >>> nearer({"small": 2, "large": 4}, rooms, lambda c: sum(c.values()) / 9, lambda name, count: 0.0)
      {'small': 1, 'large': 8}
    """
    steps = {name: room.counts for name, room in rooms.items()}
    counts = raised(counts, steps, load, urgency)
    while 1 - load(counts) > NEAR:
        exchanged = [
            raised(found, steps, load, urgency)
            for name in rooms
            if counts[name] < steps[name][-1] and (found := _exchange(counts, steps, name, load, urgency))
        ]
        best = max(exchanged, key=load, default=counts)
        if load(best) <= load(counts):
            break
        counts = best
    return counts


def _exchange(
    counts: Counts, steps: Mapping[str, Sequence[int]], name: str, load: Load, urgency: Urgency
) -> Counts | None:
    """Returns counts in which one group has stepped up and the least urgent steps of others down, or None."""
    counts = {**counts, name: _next_above(steps[name], counts[name])}
    while load(counts) > 1:
        lower = {
            other: _next_below(allowed, counts[other])
            for other, allowed in steps.items()
            if other != name and counts[other] > allowed[0]
        }
        if not lower:
            return None
        least = min(lower, key=lambda other: urgency(other, lower[other]))
        counts[least] = lower[least]
    return counts


def raised(counts: Counts, steps: Mapping[str, Sequence[int]], load: Load, urgency: Urgency) -> Counts:
    """Returns the counts after the most urgent groups have stepped up, one step at a time, as long as they fit.

    Args:
      counts: that fit, or not at all (then nothing is raised).
      steps: group name -> allowed counts, rising; other groups stay as they are.
      load: size by counts.
      urgency: of the next step of a group.

    Returns:
      Counts of which no step up fits any more.

    Example:
      >>> raised({"a": 1, "b": 1}, {"a": (1, 2), "b": (1, 4)}, lambda c: sum(c.values()) / 4, lambda name, count: 0.0)
      {'a': 2, 'b': 1}
    """
    counts = dict(counts)
    is_open = [name for name, allowed in steps.items() if counts[name] < allowed[-1]]
    while is_open:
        name = max(is_open, key=lambda name: urgency(name, counts[name]))
        larger = _next_above(steps[name], counts[name])
        if load({**counts, name: larger}) > 1:
            is_open.remove(name)  # it never will: what others keep only rises
            continue
        counts[name] = larger
        if larger == steps[name][-1]:
            is_open.remove(name)
    return counts


def _next_above(steps: Sequence[int], count: int) -> int:
    """Returns the next larger allowed count."""
    return steps[bisect_left(steps, count) + 1]


def _next_below(steps: Sequence[int], count: int) -> int:
    """Returns the next smaller allowed count."""
    return steps[bisect_left(steps, count) - 1]
