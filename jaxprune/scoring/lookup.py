"""Looks pruning functions up by name: from what a caller types to the formula or metric it stands for, and back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from jaxprune.language.expression import Expression
from jaxprune.language.library import own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.scoring.metrics import Metric, PruningFunction, metrics, name_of
from jaxprune.text import closest

Function = str | PruningFunction
"""A name of `FUNCTIONS`, the text of a formula, an expression, a metric, or a function of operands."""

FUNCTIONS: Mapping[str, Expression | Metric] = MappingProxyType(
    {**metrics, **{name: f for name, f in own_seeds.items() if name not in metrics}}
)
"""Name -> function: every metric (the library is among them), then those of our own seeds that are not metrics."""


def find_function(function: Function) -> PruningFunction:
    """Returns the pruning function that a name or a formula stands for.

    Args:
      function: anything that `Function` lists.

    Returns:
      The expression wherever the language can say the function, otherwise the metric or function itself.

    Raises:
      ValueError: if the text is neither a known name nor a formula, or if the formula does not give one number per
        channel.

    Example:
      >>> str(find_function("flap")), find_function("fpgm") is metrics["fpgm"]
      ('var(X)*sum(square(WO))', True)
    """
    if isinstance(function, str):
        function = _look_up(function)
    if isinstance(function, Metric):
        return function.expression or function
    if isinstance(function, Expression) and function.type != ():
        raise ValueError(
            f"a pruning function needs one number per channel, got {function} of type "
            f"({', '.join(function.type)}). Wrap it in sum(...) or mean(...)."
        )
    return function


def find_formula(text: str) -> Expression:
    """Returns the formula that a name or a text stands for; its value may have any axes.

    Args:
      text: a name of `FUNCTIONS`, or a formula.

    Raises:
      ValueError: if the text is neither a known name nor a formula, or names a metric that the language cannot say.

    Example:
      >>> str(find_formula("l1")), find_formula("mX").type
      ('sum(abs(WI))', ('D',))
    """
    named = _look_up(text)
    formula = named.expression if isinstance(named, Metric) else named
    if formula is None:
        metric = metrics[text]
        raise ValueError(
            f"a formula needs to be something the language can say, got {text!r}, a metric that is a function: "
            f"{metric.about} ({metric.source})"
        )
    return formula


def known_name(function: PruningFunction) -> str:
    """Returns the function's name in `FUNCTIONS`; empty if it is not there.

    Example:
      >>> known_name(parse("sum(abs(WI))")), known_name(parse("mean(X)*2"))
      ('l1', '')
    """
    for name, known in FUNCTIONS.items():
        if function in (known, known.function if isinstance(known, Metric) else known):
            return name
    return ""


def display_name(function: PruningFunction) -> str:
    """Returns the function's known name; without one, the text of a formula or the name of a Python function.

    Example:
      >>> display_name(parse("sum(abs(WI))")), display_name(parse("mean(X)*2"))
      ('l1', 'mean(X)*2')
    """
    return known_name(function) or name_of(function)


def _look_up(text: str) -> Expression | Metric:
    """Returns the function of that name; parses the text if it is not a name."""
    if text in FUNCTIONS:
        return FUNCTIONS[text]
    if text.isidentifier() and text not in OPERANDS:
        raise ValueError(
            f"a function needs to be a formula such as 'sum(abs(WI))' or one of {', '.join(FUNCTIONS)}, got {text!r}."
            f"{closest(text, FUNCTIONS)}"
        )
    return parse(text)
