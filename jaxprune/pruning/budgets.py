"""How many channels each group keeps under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from jaxprune.structure.groups import Structure
from jaxprune.types import Array

Scope = Literal["group", "global"]
Factor = Literal["inner", "outer", "both"]
"""Of two groups that share every index (places in a head, and heads): which one loses channels."""
Budgets = Mapping[str, "float | Mapping[str, int] | None"]


def budget_counts(
    structure: Structure,
    *,
    kept_fraction: float | None = None,
    kept_counts: Mapping[str, int] | None = None,
    macs_fraction: float | None = None,
    params_fraction: float | None = None,
    multiple_of: int = 1,
    ignore: Sequence[str] = (),
    factor: Factor = "inner",
) -> dict[str, int]:
    """Group name -> kept channels under one budget that needs no scores (`scope="group"`); see `plan`.

    Raises:
      ValueError: as `plan` does.
    """
    budgets: Budgets = {
        "kept_fraction": kept_fraction,
        "kept_counts": kept_counts,
        "macs_fraction": macs_fraction,
        "params_fraction": params_fraction,
    }
    return counts_within(
        structure, budgets, scores={}, scope="group", multiple_of=multiple_of, ignore=ignore, factor=factor
    )


def counts_within(
    structure: Structure,
    budgets: Budgets,
    *,
    scores: Mapping[str, Array],
    scope: Scope,
    multiple_of: int,
    ignore: Sequence[str],
    factor: Factor = "inner",
) -> dict[str, int]:
    """Group name -> kept channels, for every group in program order, under exactly one of `budgets`."""
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"needs exactly one budget out of {', '.join(budgets)}, got {sorted(given) or 'none'}."
        )
    if scope not in ("group", "global"):
        raise ValueError(f"scope must be 'group' or 'global', got {scope!r}.")
    if not _is_whole(multiple_of) or multiple_of < 1:
        raise ValueError(f"multiple_of must be a whole number >= 1, got {multiple_of}.")
    if factor not in ("inner", "outer", "both"):
        raise ValueError(f"factor must be 'inner', 'outer' or 'both', got {factor!r}.")
    free = _free_groups(structure, ignore)
    ((name, value),) = given.items()
    if isinstance(value, Mapping):
        return _explicit(structure, value, free)
    left_whole = structure.shared_groups(factor)
    free = [group for group in free if group not in left_whole]
    if not free:
        raise ValueError(
            f"nothing is left to prune: with factor={factor!r} and ignore={list(ignore)} every group stays whole. "
            f"The groups are {', '.join(structure.groups)}."
        )
    if name == "kept_counts":
        raise ValueError(f"kept_counts must map group names to kept channels, got {value!r}.")
    if not _is_fraction(value):
        raise ValueError(f"{name} must be in (0, 1], got {value!r}. It is the fraction that stays.")
    if scope == "global":
        steps = _global_steps(structure, check_scores(structure, scores, needed=free), free, multiple_of)
    elif name == "kept_fraction":
        return {**structure.widths, **_uniform(structure, free, value, multiple_of)}
    else:
        steps = _uniform_steps(structure, free, multiple_of)
    return _first_within(structure, steps, name, value, free)


def check_scores(
    structure: Structure, scores: Mapping[str, Array], needed: Sequence[str]
) -> dict[str, np.ndarray]:
    """Scores as NumPy arrays, all problems reported at once.

    Raises:
      ValueError: for unknown or missing groups, wrong lengths, NaN or infinities.
    """
    problems = [f"{name!r} is no group of this network" for name in scores if name not in structure.groups]
    problems += [f"group {name!r} has no scores" for name in needed if name not in scores]
    result: dict[str, np.ndarray] = {}
    for name in structure.groups:
        if name not in scores:
            continue
        values = np.asarray(scores[name])
        if values.shape != (structure.widths[name],):
            problems.append(
                f"group {name!r} needs [{structure.widths[name]}] scores, got shape {values.shape}"
            )
            continue
        for channel in np.flatnonzero(~np.isfinite(values)):
            problems.append(f"group {name!r} channel {channel} has score {values[channel]}")
        result[name] = values
    if problems:
        raise ValueError(
            f"needs one finite score per channel of {', '.join(structure.groups)}: {'; '.join(problems[:10])}. "
            "Score this network with jp.score, or leave groups out with ignore=."
        )
    return result


def _free_groups(structure: Structure, ignore: Sequence[str]) -> list[str]:
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    unmatched = [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in structure.groups)
    ]
    if unmatched:
        raise ValueError(
            f"ignore needs names or patterns of groups, {', '.join(structure.groups)}, got {unmatched}."
        )
    return [name for name in structure.groups if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float | np.number) and bool(0 < value <= 1)


def _explicit(structure: Structure, counts: Mapping[str, int], free: Sequence[str]) -> dict[str, int]:
    problems = []
    for name, count in counts.items():
        if name not in structure.groups:
            problems.append(f"{name!r} is no group (groups: {', '.join(structure.groups)})")
        elif count not in range(1, structure.widths[name] + 1):
            problems.append(
                f"{name!r} needs between 1 and {structure.widths[name]} kept channels, got {count!r}"
            )
        elif name not in free and count != structure.widths[name]:
            problems.append(f"{name!r} is ignored and has a kept count of {count}")
    if problems:
        raise ValueError(f"kept_counts does not fit the network: {'; '.join(problems)}.")
    return {name: int(counts.get(name, width)) for name, width in structure.widths.items()}


def _rounded(count: int, width: int, multiple_of: int) -> int:
    """The nearest multiple (up on a tie), at least one multiple; all channels of a narrower group."""
    multiple = max(1, (2 * count + multiple_of) // (2 * multiple_of)) * multiple_of
    return multiple if multiple <= width else max(width // multiple_of * multiple_of, min(width, multiple_of))


def _uniform(structure: Structure, free: Sequence[str], fraction: float, multiple_of: int) -> dict[str, int]:
    widths = structure.widths
    return {
        name: widths[name]
        if fraction == 1
        else _rounded(max(1, round(fraction * widths[name])), widths[name], multiple_of)
        for name in free
    }


def _uniform_steps(structure: Structure, free: Sequence[str], multiple_of: int) -> Iterator[dict[str, int]]:
    """Counts for falling fractions, at every fraction where a count changes."""
    fractions = {
        (kept + 0.5) / structure.widths[name] for name in free for kept in range(structure.widths[name])
    }
    yield dict(structure.widths)
    for fraction in sorted(fractions, reverse=True):
        # just below the half, so that the count that rounds up there is already left behind
        yield {**structure.widths, **_uniform(structure, free, min(1.0, fraction) * (1 - 1e-9), multiple_of)}


def _global_steps(
    structure: Structure, scores: Mapping[str, np.ndarray], free: Sequence[str], multiple_of: int
) -> Iterator[dict[str, int]]:
    """Counts as the lowest channels of all groups fall, a block at a time."""
    counts = dict(structure.widths)
    yield dict(counts)
    ordered = {name: np.sort(scores[name]) for name in free}
    while True:
        best: tuple[float, str, int] | None = None
        for name in free:
            below = (counts[name] - 1) // multiple_of * multiple_of
            if below < 1:
                continue
            pruned = structure.widths[name] - counts[name]
            block = ordered[name][pruned : pruned + counts[name] - below]
            if best is None or float(block.mean()) < best[0]:
                best = (float(block.mean()), name, below)
        if best is None:
            return
        counts[best[1]] = best[2]
        yield dict(counts)


def _first_within(
    structure: Structure, steps: Iterator[dict[str, int]], name: str, fraction: float, free: Sequence[str]
) -> dict[str, int]:
    """The first step whose cost is within the budget."""
    cost: Callable[[Mapping[str, int]], int] = {
        "kept_fraction": lambda counts: sum(counts[group] for group in free),
        "macs_fraction": structure.count_macs,
        "params_fraction": structure.count_parameters,
    }[name]
    full = cost(structure.widths)
    limit = round(fraction * full) if name == "kept_fraction" else fraction * full
    counts = structure.widths
    for counts in steps:
        if cost(counts) <= limit:
            return counts
    raise ValueError(
        f"{name}={fraction} cannot be met: the smallest network that keeps a channel of every group has "
        f"{cost(counts) / full:.4f} of the full cost. Raise it, ignore fewer groups or lower multiple_of."
    )
