"""Budgets: turns one limit on a network's size into the number of channels that each group keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.types import Array, is_whole

Scope = Literal["group", "global"]
"""Whether every group keeps the same fraction, or the channels of all groups compete in one ranking."""
Factor = Literal["inner", "outer", "both"]
"""Which of two groups that share every index loses channels: dimensions of heads (inner), heads (outer) or both."""


def budget_counts(
    structure: Structure,
    *,
    kept_fraction: float | None = None,
    kept_counts: Mapping[str, int] | None = None,
    macs_fraction: float | None = None,
    params_fraction: float | None = None,
    scores: Mapping[str, Array] | None = None,
    scope: Scope = "group",
    multiple_of: int = 1,
    ignore: Sequence[str] = (),
    factor: Factor = "inner",
) -> dict[str, int]:
    """Returns the number of channels that each group keeps under exactly one budget.

    Args:
      structure: groups of the network.
      kept_fraction, kept_counts, macs_fraction, params_fraction: the budget; see `plan`.
      scores: group name -> [C] scores; only read with `scope="global"`.
      scope, multiple_of, ignore, factor: see `plan`.

    Returns:
      Group name -> kept channels, for every group in program order.

    Raises:
      ValueError: if not exactly one budget is given, or if an option is out of range or cannot be met.
    """
    budgets = {
        "kept_fraction": kept_fraction,
        "kept_counts": kept_counts,
        "macs_fraction": macs_fraction,
        "params_fraction": params_fraction,
    }
    given = sorted(name for name, value in budgets.items() if value is not None)
    if len(given) != 1:
        raise ValueError(f"Give exactly one budget out of {', '.join(budgets)}, got {given or 'none'}.")
    _check_options(scope, multiple_of, factor)
    free = _free_groups(structure, ignore)
    if kept_counts is not None:
        return _explicit_counts(structure, kept_counts, free)
    always_whole = structure.shared_groups(factor)
    free = [name for name in free if name not in always_whole]
    if not free:
        raise ValueError(
            f"nothing is left to prune: with factor={factor!r} and ignore={list(ignore)} every group stays whole. "
            f"The groups are {', '.join(structure.groups)}."
        )
    return _counts_within(structure, given[0], budgets[given[0]], free, scores or {}, scope, multiple_of)


def check_scores(
    structure: Structure, scores: Mapping[str, Array], needed: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns scores as NumPy arrays, after reporting all problems with them at once.

    Args:
      structure: groups of the network.
      scores: group name -> [C] scores.
      needed: groups that must have scores.

    Returns:
      Group name -> [C] finite scores, for the groups that have any.

    Raises:
      ValueError: for unknown groups, missing groups, wrong lengths, NaN or infinities.
    """
    problems = [f"{name!r} is no group of this network" for name in scores if name not in structure.groups]
    problems += [f"group {name!r} has no scores" for name in needed if name not in scores]
    arrays: dict[str, np.ndarray] = {}
    for name, width in structure.widths.items():
        if name not in scores:
            continue
        values = np.asarray(scores[name])
        if values.shape != (width,):
            problems.append(f"group {name!r} needs [{width}] scores, got shape {values.shape}")
            continue
        for channel in np.flatnonzero(~np.isfinite(values)):
            problems.append(f"group {name!r} channel {channel} has score {values[channel]}")
        arrays[name] = values
    if problems:
        raise ValueError(
            f"needs one finite score per channel of {', '.join(structure.groups)}: {'; '.join(problems[:10])}. "
            "Score this network with jp.score, or leave groups out with ignore=."
        )
    return arrays


def _check_options(scope: object, multiple_of: object, factor: object) -> None:
    """Raises a `ValueError` for an option that has none of its allowed values."""
    if scope not in ("group", "global"):
        raise ValueError(f"scope must be 'group' or 'global', got {scope!r}.")
    if not is_whole(multiple_of, smallest=1):
        raise ValueError(f"multiple_of must be a whole number >= 1, got {multiple_of}.")
    if factor not in ("inner", "outer", "both"):
        raise ValueError(f"factor must be 'inner', 'outer' or 'both', got {factor!r}.")


def _free_groups(structure: Structure, ignore: Sequence[str]) -> list[str]:
    """Returns the groups that no pattern of `ignore` matches."""
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    unmatched = [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in structure.groups)
    ]
    if unmatched:
        raise ValueError(
            f"ignore needs names or patterns of groups, {', '.join(structure.groups)}, got {unmatched}."
        )
    return [name for name in structure.groups if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _explicit_counts(structure: Structure, counts: Mapping[str, int], free: Sequence[str]) -> dict[str, int]:
    """Returns the counts that the caller gave, checked, and full widths for the other groups."""
    if not isinstance(counts, Mapping):
        raise ValueError(f"kept_counts must map group names to kept channels, got {counts!r}.")
    problems = []
    for name, count in counts.items():
        if name not in structure.groups:
            problems.append(f"{name!r} is no group (groups: {', '.join(structure.groups)})")
        elif not is_whole(count, smallest=1) or count > structure.widths[name]:
            problems.append(
                f"{name!r} needs a whole number of kept channels from 1 to {structure.widths[name]}, got {count!r}"
            )
        elif name not in free and count != structure.widths[name]:
            problems.append(f"{name!r} is ignored and has a kept count of {count}")
    if problems:
        raise ValueError(f"kept_counts does not fit the network: {'; '.join(problems)}.")
    return {name: int(counts.get(name, width)) for name, width in structure.widths.items()}


def _counts_within(
    structure: Structure,
    budget: str,
    fraction: object,
    free: Sequence[str],
    scores: Mapping[str, Array],
    scope: Scope,
    multiple_of: int,
) -> dict[str, int]:
    """Returns the largest counts whose size is at most a fraction of the full network's."""
    if (
        not isinstance(fraction, int | float | np.number)
        or isinstance(fraction, bool)
        or not 0 < fraction <= 1
    ):
        raise ValueError(f"{budget} must be in (0, 1], got {fraction!r}. It is the fraction that stays.")
    if budget == "kept_fraction" and scope == "group":
        return {**structure.widths, **_uniform_counts(structure, free, float(fraction), multiple_of)}
    if scope == "global":
        arrays = check_scores(structure, scores, needed=free)
        falling_counts = _falling_global_counts(structure, arrays, free, multiple_of)
    else:
        falling_counts = _falling_uniform_counts(structure, free, multiple_of)
    size_of: Callable[[Mapping[str, int]], int] = {
        "kept_fraction": lambda counts: sum(counts[name] for name in free),
        "macs_fraction": structure.count_macs,
        "params_fraction": structure.count_parameters,
    }[budget]
    full_size = size_of(structure.widths)
    limit = round(fraction * full_size) if budget == "kept_fraction" else fraction * full_size
    counts = structure.widths
    for counts in falling_counts:
        if size_of(counts) <= limit:
            return counts
    raise ValueError(
        f"{budget}={fraction} cannot be met: the smallest network that keeps a channel of every group has "
        f"{size_of(counts) / full_size:.4f} of the full cost. Raise it, ignore fewer groups or lower multiple_of."
    )


def _uniform_counts(
    structure: Structure, free: Sequence[str], fraction: float, multiple_of: int
) -> dict[str, int]:
    """Returns the same fraction of every free group, rounded to a multiple (up on a tie; at least one multiple)."""
    counts = {}
    for name in free:
        width = structure.widths[name]
        count = max(1, round(fraction * width))
        rounded = max(1, (2 * count + multiple_of) // (2 * multiple_of)) * multiple_of
        if rounded > width:
            rounded = max(width // multiple_of * multiple_of, min(width, multiple_of))
        counts[name] = width if fraction == 1 else rounded
    return counts


def _falling_uniform_counts(
    structure: Structure, free: Sequence[str], multiple_of: int
) -> Iterator[dict[str, int]]:
    """Yields uniform counts at every fraction where a count changes, from the largest to the smallest."""
    fractions = {
        (kept + 0.5) / structure.widths[name] for name in free for kept in range(structure.widths[name])
    }
    yield dict(structure.widths)
    for fraction in sorted(fractions, reverse=True):
        # Just below the half, where the count that rounds up at the half has already fallen.
        just_below = min(1.0, fraction) * (1 - 1e-9)
        yield {**structure.widths, **_uniform_counts(structure, free, just_below, multiple_of)}


def _falling_global_counts(
    structure: Structure, scores: Mapping[str, np.ndarray], free: Sequence[str], multiple_of: int
) -> Iterator[dict[str, int]]:
    """Yields counts after each removal of the block of channels with the lowest mean score in any group."""
    widths, counts = structure.widths, dict(structure.widths)
    rising_scores = {name: np.sort(scores[name]) for name in free}
    while True:
        yield dict(counts)
        smaller_counts = {
            name: (counts[name] - 1) // multiple_of * multiple_of
            for name in free
            if counts[name] > multiple_of
        }
        if not smaller_counts:
            return
        block_means = {
            name: float(rising_scores[name][widths[name] - counts[name] : widths[name] - smaller].mean())
            for name, smaller in smaller_counts.items()
        }
        lowest = min(block_means, key=block_means.__getitem__)
        counts[lowest] = smaller_counts[lowest]
