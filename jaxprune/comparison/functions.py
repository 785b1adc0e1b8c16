"""From what a caller names to rows of a comparison: known names, formulas, metrics, functions, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxprune.comparison.measurements import REFERENCE
from jaxprune.language.expression import Expression
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.scoring.metrics import Metric, PruningFunction, metrics, name_of
from jaxprune.text import closest

CONTROLS = ("random", "scratch", "oracle")
"""Rows without a formula; no function can have such a name."""

Function = str | PruningFunction
"""The name of a library function, own seed or metric, a formula, an expression, a metric, a function of operands."""


def known_functions() -> dict[str, Expression]:
    """Name -> function, of the library and our own seeds."""
    return {**library, **own_seeds}


def row_name(function: PruningFunction) -> str:
    """The name of a library function, own seed or metric; of another formula its text, of a function its own name.

    Example:
      >>> row_name(parse("sum(abs(WI))")), row_name(parse("mean(X)*2"))
      ('l1', 'mean(X)*2')
    """
    known = {**known_functions(), **{name: metric.function for name, metric in metrics.items()}}
    return next((name for name, found in known.items() if found == function), name_of(function))


def named_functions(functions: Sequence[Function] | Mapping[str, Function]) -> dict[str, PruningFunction]:
    """Row name -> function, l2 first if it is not among them; "random" and "scratch" are left out.

    A library function, own seed or metric goes by its name, another formula by its text, a function by its own name, an
    entry of a mapping by its key.

    Args:
      functions: names, formulas, expressions, metrics and functions, or a mapping from row names to any of these.

    Raises:
      ValueError: for an unknown name or a text that is no formula, a formula that is not a scalar, one name for two
        formulas, a formula named as a control.

    Example:
      >>> {name: str(f) for name, f in named_functions(["l1", "random", "mean(X)*2"]).items()}
      {'l2': 'sqrt(sum(square(WI)))', 'l1': 'sum(abs(WI))', 'mean(X)*2': 'mean(X)*2'}
    """
    if isinstance(functions, str | Expression | Metric) or callable(functions):
        functions = [functions]
    given: list[tuple[str | None, Function]] = (
        list(functions.items()) if isinstance(functions, Mapping) else [(None, each) for each in functions]
    )
    rows: dict[str, PruningFunction] = {}
    for key, function in given:
        if isinstance(function, str) and function in ("random", "scratch"):
            continue
        if function is metrics["random"] and key in (None, "random"):
            continue
        found = find_function(function)
        name = key if key is not None else row_name(found)
        if name in CONTROLS or (name == REFERENCE and found is not library[REFERENCE]):
            raise ValueError(
                f"{name!r} is the name of a row of its own, got {_shown(function)} for it. Choose another name."
            )
        if rows.setdefault(name, found) is not found:
            raise ValueError(
                f"rows need different names, got {name!r} for {name_of(rows[name])} and for {name_of(found)}."
            )
    return rows if REFERENCE in rows else {REFERENCE: library[REFERENCE], **rows}


def find_function(function: Function) -> PruningFunction:
    """The function of a name or formula, or what was given; a metric that the language can say as its expression.

    Raises:
      ValueError: for an unknown name, a text that is no formula, or a formula whose value is not a scalar.

    Example:
      >>> str(find_function("flap")), find_function("fpgm") is metrics["fpgm"]
      ('var(X)*sum(square(WO))', True)
    """
    known: dict[str, PruningFunction] = {**metrics, **known_functions()}
    if isinstance(function, str) and function in known:
        function = known[function]
    if isinstance(function, Expression):
        expression = function
    elif isinstance(function, Metric):
        return function.expression or function
    elif callable(function):
        return function
    elif function.isidentifier() and function not in OPERANDS:
        raise ValueError(
            f"a function needs to be a formula or one of {', '.join(known)}, got {function!r}."
            f"{closest(function, known)}"
        )
    else:
        expression = parse(function)
    if expression.type != ():
        raise ValueError(
            f"a pruning function needs one number per channel, got {expression} of type "
            f"({', '.join(expression.type)}). Wrap it in sum(...) or mean(...)."
        )
    return expression


def _shown(function: Function) -> str:
    return function if isinstance(function, str) else name_of(function)
