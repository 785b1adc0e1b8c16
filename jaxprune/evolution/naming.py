"""From what a caller names to rows of a comparison: library names, formulas, expressions, controls."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from jaxprune.evolution.measurements import REFERENCE
from jaxprune.language.operands import OPERANDS
from jaxprune.language.parsing import parse
from jaxprune.language.published import library, own_seeds
from jaxprune.language.tree import Expression

CONTROLS = ("random", "scratch", "oracle")
"""Rows without a formula; no function can have such a name."""

Function = str | Expression
"""The name of a library function or own seed, a formula, or an expression."""


def known_functions() -> dict[str, Expression]:
    """Name -> function, of the library and our own seeds."""
    return {**library, **own_seeds}


def name_of(expression: Expression) -> str:
    """The name of a library function or own seed; of any other its text.

    Example:
      >>> name_of(parse("sum(abs(WI))")), name_of(parse("mean(X)*2"))
      ('l1', 'mean(X)*2')
    """
    return next((name for name, found in known_functions().items() if found == expression), str(expression))


def named_functions(functions: Sequence[Function] | Mapping[str, Function]) -> dict[str, Expression]:
    """Row name -> expression, l2 first if it is not among them; "random" and "scratch" are left out.

    A library function or own seed goes by its name, another formula by its text, an entry of a mapping by its key.

    Args:
      functions: names, formulas and expressions, or a mapping from row names to any of these.

    Raises:
      ValueError: for an unknown name or a text that is no formula, a formula that is not a scalar, one name for two
        formulas, a formula named as a control.

    Example:
      >>> {name: str(f) for name, f in named_functions(["l1", "random", "mean(X)*2"]).items()}
      {'l2': 'sqrt(sum(square(WI)))', 'l1': 'sum(abs(WI))', 'mean(X)*2': 'mean(X)*2'}
    """
    if isinstance(functions, str | Expression):
        functions = [functions]
    given: list[tuple[str | None, Function]] = (
        list(functions.items()) if isinstance(functions, Mapping) else [(None, each) for each in functions]
    )
    rows: dict[str, Expression] = {}
    for key, function in given:
        if isinstance(function, str) and function in ("random", "scratch"):
            continue
        expression = find_function(function)
        name = key if key is not None else name_of(expression)
        if name in CONTROLS or (name == REFERENCE and expression is not library[REFERENCE]):
            raise ValueError(
                f"{name!r} is the name of a row of its own, got {function!s} for it. Choose another name."
            )
        if rows.setdefault(name, expression) is not expression:
            raise ValueError(
                f"rows need different names, got {name!r} for {rows[name]} and for {expression}."
            )
    return rows if REFERENCE in rows else {REFERENCE: library[REFERENCE], **rows}


def find_function(function: Function) -> Expression:
    """The function of a name, formula or expression.

    Raises:
      ValueError: for an unknown name, a text that is no formula, or a formula whose value is not a scalar.
    """
    known = known_functions()
    if isinstance(function, Expression):
        expression = function
    elif function in known:
        expression = known[function]
    elif function.isidentifier() and function not in OPERANDS:
        close = difflib.get_close_matches(function, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"a function needs to be a formula or one of {', '.join(known)}, got {function!r}.{hint}"
        )
    else:
        expression = parse(function)
    if expression.type != ():
        raise ValueError(
            f"a pruning function needs one number per channel, got {expression} of type "
            f"({', '.join(expression.type)}). Wrap it in sum(...) or mean(...)."
        )
    return expression
