"""Budgets: turns one limit on a network's size into the number of channels that each group keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from jaxprune.patterns import chosen_groups, matching
from jaxprune.pruning.budget_records import BUDGETS, Budget
from jaxprune.pruning.latency import SecondsOf, fastest_enough
from jaxprune.pruning.repair import NEAR, Counts
from jaxprune.pruning.scopes import (
    Factor,
    Limits,
    RoomLimits,
    free_groups,
    rooms_of,
)
from jaxprune.pruning.targets import (
    Rules,
    checked_fraction,
    label_of,
    reach,
    solve,
    target_of,
    targets_of,
)
from jaxprune.structure.groups import Structure
from jaxprune.types import Array, is_whole

Scope = Literal["group", "global"]
"""Whether every group keeps the same fraction, or the channels of all groups compete in one ranking."""
Fraction = float | Mapping[str, float]
"""One fraction for the network, or fractions by name or pattern of groups."""


class PlanOptions(TypedDict, total=False):
    """Keywords of `plan`: one budget, and how it is met."""

    kept_fraction: Fraction | None
    kept_counts: Mapping[str, int] | None
    macs_fraction: Fraction | None
    params_fraction: Fraction | None
    latency_fraction: float | None
    scope: Scope
    multiple_of: int
    min_kept: Limits | None
    max_kept: Limits | None
    groups: Sequence[str] | None
    ignore: Sequence[str]
    factor: Factor


class BudgetOptions(PlanOptions, total=False):
    """Keywords of `budget_counts`: those of `plan`, and scores."""

    scores: Mapping[str, Array] | None


class Choice(NamedTuple):
    """How many channels each group keeps, and what of the budget that meets."""

    counts: Counts
    budget: Budget
    remarks: tuple[str, ...] = ()
    """Where the budget is missed, and which groups stay whole unexpectedly; `plan` warns of them."""


def budget_counts(structure: Structure, **options: Unpack[BudgetOptions]) -> Counts:
    """Returns the number of channels that each group keeps under exactly one budget.

    Args:
      structure: groups of the network.
      **options: see `choose_counts`.

    Returns:
      Group name -> kept channels, for every group in program order.

    Raises:
      ValueError: as `choose_counts` does.
    """
    return choose_counts(structure, **options).counts


def choose_counts(
    structure: Structure, *, seconds_of: SecondsOf | None = None, **options: Unpack[BudgetOptions]
) -> Choice:
    """Chooses the number of channels that each group keeps under exactly one budget, and says what is met.

    Args:
      structure: groups of the network.
      seconds_of: measures the latency of a slim network; needed for `latency_fraction` alone.
      **options: the budget, and how it is met; see `plan`. Of `scores` only the groups are read but with
        `scope="global"`; without scores, every group has some.

    Returns:
      The counts and what they meet.

    Raises:
      ValueError: if not exactly one budget is given, or if an option is out of range or cannot be met.
    """
    budgets = {name: options.get(name) for name in BUDGETS}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one budget out of {', '.join(budgets)}, got {given or 'none'}.")
    scope, multiple_of = options.get("scope", "group"), options.get("multiple_of", 1)
    factor, ignore, groups = options.get("factor", "inner"), options.get("ignore", ()), options.get("groups")
    min_kept, max_kept = options.get("min_kept"), options.get("max_kept")
    _check_options(scope, multiple_of, factor)
    kept_counts = options.get("kept_counts")
    if kept_counts is not None:
        if min_kept is not None or max_kept is not None:
            raise ValueError("kept_counts says what each group keeps. Leave out min_kept and max_kept.")
        counts = _explicit_counts(structure, kept_counts, chosen_groups(structure.groups, groups, ignore))
        return Choice(counts, Budget("kept_counts", counts, counts))
    is_global = scope == "global"
    scores = options.get("scores")
    free = free_groups(structure, ignore, factor, groups=groups, scores=scores)
    limits = RoomLimits(min_kept, max_kept)
    rules = Rules(
        structure,
        rooms_of(structure, free, limits, multiple_of=multiple_of, keep_odd_widths=is_global),
        rooms_of(structure, free, limits),
        check_scores(structure, scores or {}, needed=free) if is_global else {},
        is_global,
        multiple_of,
        [] if scores is None else [name for name in structure.groups if name not in scores],
    )
    asked = budgets[given[0]]
    if given[0] == "latency_fraction":
        counts, budget = _within_latency(rules, asked, seconds_of)
    else:
        counts, budget = _within_size(rules, given[0], asked)
    return Choice(counts, budget, _remarks(rules, counts, budget))


def check_scores(
    structure: Structure, scores: Mapping[str, Array], needed: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Returns scores as NumPy arrays, after reporting all problems with them at once.

    Args:
      structure: groups of the network.
      scores: group name -> [C] scores.
      needed: groups that must have scores.

    Returns:
      Group name -> [C] finite scores, for the groups that have any.

    Raises:
      TypeError: if `scores` is no mapping.
      ValueError: for unknown groups, missing groups, wrong lengths, NaN or infinities.
    """
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores needs group name -> one score per channel, as jp.score returns it, got {type(scores).__name__}."
        )
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


def _within_size(rules: Rules, budget: str, asked: object) -> tuple[Counts, Budget]:
    """Returns the largest counts within a budget of channels, multiply-adds or parameters."""
    targets = targets_of(rules, budget, asked)
    counts = reach(rules, targets)
    met = {target.pattern: target.met(counts) for target in targets}
    if not isinstance(asked, Mapping):
        return counts, Budget(budget, targets[0].fraction, met[""])
    return counts, Budget(budget, {target.pattern: target.fraction for target in targets}, met)


def _within_latency(rules: Rules, asked: object, seconds_of: SecondsOf | None) -> tuple[Counts, Budget]:
    """Returns the largest counts, among a few networks of different sizes, that are measured to be fast enough."""
    if isinstance(asked, Mapping):
        raise ValueError(
            f"latency_fraction is of the whole network, got {dict(asked)}. Give one number, and say with ignore= or "
            "max_kept= which groups lose channels."
        )
    fraction = checked_fraction("latency_fraction", asked)
    if seconds_of is None:
        raise ValueError("latency_fraction needs a network to measure. Use jp.plan(model, ...).")
    widths = rules.structure.widths

    def counts_within(macs_fraction: float) -> Counts | None:
        target = target_of(rules, "macs_fraction", "", macs_fraction, list(rules.rooms))
        found = solve(rules, target, widths)
        return None if found is None else {**widths, **found}

    smallest = {**widths, **{name: room.counts[0] for name, room in rules.rooms.items()}}
    found = fastest_enough(rules.structure, smallest, fraction, counts_within, seconds_of)
    return found.counts, Budget("latency_fraction", fraction, found.met, found.table)


def _remarks(rules: Rules, counts: Counts, budget: Budget) -> tuple[str, ...]:
    """Says in words where a budget is missed, and which groups stay whole although a reader would think otherwise."""
    amounts = {"": budget.asked} if isinstance(budget.asked, float) else budget.asked
    met = {"": budget.met} if isinstance(budget.met, float) else budget.met
    remarks = []
    if all(counts[name] == room.width for name, room in rules.rooms.items()):
        remarks.append(f"{budget.name}={_asked(budget)} prunes nothing")
    if all(fraction == 1 for fraction in amounts.values()):
        return (*remarks, "1.0 is the fraction that stays") if remarks else ()
    narrow = [
        name
        for name, room in rules.rooms.items()
        if room.width == room.counts[0] != rules.fine_rooms[name].counts[0]
    ]
    if narrow:
        remarks.append(
            f"multiple_of={rules.multiple_of} leaves groups whole that are too narrow for it: {', '.join(narrow)}"
        )
    is_at_top = all(counts[name] >= room.counts[-1] for name, room in rules.rooms.items())
    for pattern, fraction in amounts.items():
        missed = f"{label_of(budget.name, pattern)}={fraction:.4g} is met with {met[pattern]:.4g}"
        if met[pattern] > fraction + NEAR + _rounding(rules, budget.name, pattern):
            remarks.append(f"{missed}, because groups keep at least a channel or a multiple")
        elif met[pattern] < fraction - NEAR and is_at_top:
            remarks.append(f"{missed}, because max_kept allows no more")
    return tuple(remarks)


def _asked(budget: Budget) -> object:
    """Returns what was asked as a caller typed it."""
    return dict(budget.asked) if isinstance(budget.asked, Mapping) else budget.asked


def _rounding(rules: Rules, budget: str, pattern: str) -> float:
    """Returns how far rounding single channels may be from a fraction of all of them."""
    if budget != "kept_fraction" or rules.multiple_of > 1:
        return 0.0
    widths = [room.width for name, room in rules.rooms.items() if not pattern or matching(pattern, [name])]
    return 0.5 * len(widths) / sum(widths)
