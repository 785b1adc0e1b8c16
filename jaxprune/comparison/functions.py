"""The rows of a comparison: from the functions that a caller names, or the winner of a run, to one function each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from jaxprune.comparison.measurements import REFERENCE
from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.scoring.lookup import Function, display_name, find_function
from jaxprune.scoring.metrics import Metric, PruningFunction, metrics, name_of
from jaxprune.search.problem import Problem
from jaxprune.search.run_directory import load_run

CONTROLS = ("random", "scratch", "oracle")
"""Names of rows without a formula; a function cannot be named like one of them."""


def named_functions(functions: Sequence[Function] | Mapping[str, Function]) -> dict[str, PruningFunction]:
    """Finds the functions to compare and gives each a row name.

    A library function, own seed or metric goes by its name, another formula by its text, a Python function by its own
    name, an entry of a mapping by its key.

    Args:
      functions: names, formulas, expressions, metrics and functions, or a mapping from row names to any of these.
        The names "random" and "scratch" are skipped: these rows have no function.

    Returns:
      Row name -> function, in the given order; l2 comes first if it is not among the functions.

    Raises:
      ValueError: for an unknown name or a text that is no formula, a formula that is not a scalar, one name for two
        functions, or a function named like a control.

    Example:
      >>> {name: str(f) for name, f in named_functions(["l1", "random", "mean(X)*2"]).items()}
      {'l2': 'sqrt(sum(square(WI)))', 'l1': 'sum(abs(WI))', 'mean(X)*2': 'mean(X)*2'}
    """
    if isinstance(functions, str | Expression | Metric) or callable(functions):
        functions = [functions]
    entries: list[tuple[str | None, Function]] = (
        list(functions.items())
        if isinstance(functions, Mapping)
        else [(None, function) for function in functions]
    )
    rows: dict[str, PruningFunction] = {}
    for key, given in entries:
        if isinstance(given, str) and given in ("random", "scratch"):
            continue
        if given is metrics["random"] and key in (None, "random"):
            continue
        function = find_function(given)
        name = display_name(function) if key is None else key
        if name in CONTROLS or (name == REFERENCE and function is not library[REFERENCE]):
            shown = given if isinstance(given, str) else name_of(given)
            raise ValueError(
                f"{name!r} is the name of a row of its own, got {shown} for it. Choose another name."
            )
        if rows.setdefault(name, function) is not function:
            raise ValueError(
                f"rows need different names, got {name!r} for {name_of(rows[name])} and for {name_of(function)}."
            )
    return rows if REFERENCE in rows else {REFERENCE: library[REFERENCE], **rows}


class Frozen(NamedTuple):
    """A function that no search changes any more, and where it comes from."""

    function: PruningFunction
    tasks: tuple[str, ...] = ()
    """Names of the tasks that it was evolved on, if it is the winner of a run."""
    is_verified: bool = True
    """False for a winner of a run that ended before its leaders were verified: it is the best by prediction alone."""


def frozen_function(given: str) -> Frozen:
    """Finds a function by name or formula, or the winner of a run by the run's folder.

    Args:
      given: a name of a function, the text of a formula, or a folder that `evolve` wrote.

    Raises:
      ValueError: if it is none of these.
      RunDirectoryError: if the folder has no complete generation, or its state is damaged or of a newer format.

    Example:
      >>> str(frozen_function("l1").function)
      'sum(abs(WI))'
    """
    if Path(given).is_dir():
        return winner_of(Path(given))
    try:
        return Frozen(find_function(given))
    except ValueError as error:
        if "/" not in given:
            raise
        raise ValueError(f"{error} There is no run folder of that name either.") from error


def winner_of(run_dir: Path) -> Frozen:
    """Returns the winner of a run.

    Args:
      run_dir: the folder of the run.

    Raises:
      RunDirectoryError: if there is no complete generation, or the state is damaged or of a newer format.
    """
    state = load_run(run_dir, cast(Problem, None))  # a state that is only read asks its problem nothing
    winner = state.ranked()[0]
    return Frozen(winner.expression, tuple(task.name for task in state.tasks), winner.is_verified)
