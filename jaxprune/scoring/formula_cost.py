"""What a function would cost on every layer of an observed network, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from jaxprune.language.expression import Expression
from jaxprune.language.operators import OPERATORS
from jaxprune.observation.observed import Observed
from jaxprune.scoring.analysis import dependence_of, moment_answer
from jaxprune.scoring.class_independent import class_independent_form, set_answer
from jaxprune.scoring.compiled import explain_missing, missing_operands, view_of
from jaxprune.scoring.leaves import axis_sizes, value_shape

BUDGET_BYTES = 512 << 20
"""How much memory values may take at most, besides the operands themselves, where nobody says otherwise."""
MAX_FLOPS = 5e10
"""Operations that one function may cost on one member of one layer; costlier ones are refused."""


class LayerCost(NamedTuple):
    """The cost of one function on one layer."""

    producer: str
    """Path of the kernel whose channels are scored."""
    channels: int
    """C."""
    bytes_per_channel: int
    """Of the largest value on the way, for one class; the engine takes as many channels at once as fit."""
    flops: float
    """Operations in all, over all classes and channels; what does not differ between classes counts once."""
    refusal: str
    """Why its largest value or its operations rule it out; "" if they do not."""


def layer_costs(
    f: Expression, observed: Observed, *, budget_bytes: int = BUDGET_BYTES, max_flops: float = MAX_FLOPS
) -> list[LayerCost]:
    """The estimated cost of a function on every producer; nothing is evaluated.

    Args:
      f: a pruning function.
      observed: what `observe` returns.
      budget_bytes: memory for values, of which one channel may take a quarter.
      max_flops: operations that a function may cost on one layer.

    Example:
      >>> import numpy as np
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> layer_costs(parse("sum(abs(WI))"), observed)[0][1:]
      (2, 8, 8.0, '')
    """
    found = []
    can_be_asked = {"GW", "GX"} if observed.gradient_source is not None else set()
    can_be_asked |= {"GW2"} if observed.squared_gradient_source is not None else set()
    for path, operands in observed.items():
        cost = estimate_cost(f, axis_sizes(operands, view_of(f, operands)), operands.dtype.itemsize)
        absent = tuple(name for name in missing_operands(f, operands) if name not in can_be_asked)
        refusal = explain_missing(absent) if absent else explain_refusal(cost, budget_bytes, max_flops) or ""
        found.append(LayerCost(path, operands.num_channels, cost.bytes_per_channel, cost.flops, refusal))
    return found


# === merged: """What a function costs on one layer, estimated from shapes before anything runs."""

_PRODUCTS = 3
"""Matrix products with class membership that split a class-independent form by class."""


class FormulaCost(NamedTuple):
    """What a function costs on one member of one layer, estimated from shapes."""

    bytes_per_channel: int
    """Of the largest value, for one channel and one class: the least that must be held at once."""
    flops: float
    """Of all values, over all classes and channels; what does not differ between classes counts once."""
    largest: Expression
    """The sub-expression with the largest value."""
    costliest: Expression
    """The sub-expression that takes most operations, its arguments apart."""


def estimate_cost(f: Expression, sizes: Mapping[str, int], itemsize: int) -> FormulaCost:
    """The cost of a function from axis sizes, `K` classes and `C` channels; nothing is run.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> cost = estimate_cost(parse("sum(abs(WI))"), {"F": 9, "C": 4, "K": 10}, 4)
      >>> cost.bytes_per_channel, cost.flops, str(cost.largest)
      (36, 72.0, 'abs(WI)')
    """
    return _estimated(f, tuple(sizes.items()), itemsize)


@lru_cache(maxsize=1 << 14)
def _estimated(f: Expression, of_axes: tuple[tuple[str, int], ...], itemsize: int) -> FormulaCost:
    sizes = dict(of_axes)
    most_bytes, largest, flops = itemsize, f, 0.0
    most_flops, costliest = 0.0, f
    seen: set[Expression] = set()
    stack = [(f, f)]
    while stack:
        node, shown = stack.pop()  # what is computed, and what it stands for in the formula
        if node in seen:
            continue
        seen.add(node)
        own_bytes = itemsize * math.prod(value_shape(node.type, sizes))
        if own_bytes > most_bytes:
            most_bytes, largest = own_bytes, shown
        if moment_answer(node) is not None or not node.children:
            continue
        depends = dependence_of(node)
        channels = sizes["C"] if depends.channel else 1
        answer, form, own_flops = set_answer(node), class_independent_form(node), 0.0
        if answer is not None:
            entries = math.prod(value_shape(answer.form.type, sizes))
            own_flops = channels * 2.0 * _PRODUCTS * sizes["K"] * entries
            stack.append((answer.form, shown.children[0]))
        elif form is not None and form is not node:
            stack.append((form, shown))
        else:
            shapes = [value_shape(child.type, sizes) for child in node.children]
            turns = sizes["K"] if depends.per_class else 1
            own_flops = channels * turns * OPERATORS[node.operator].flops(shapes)
            is_alike = node.operator == shown.operator  # else it has been transposed
            parts = shown.children if is_alike else (shown,)
            stack += zip(node.children, parts, strict=False)  # rbf(P, Q, 1) is a block of rbf(X, 1)
        flops += own_flops
        if own_flops > most_flops:
            most_flops, costliest = own_flops, shown
    return FormulaCost(most_bytes, flops, largest, costliest)


LEAST_SHARE = 4
"""A budget must hold the largest value of one channel that many times."""


def explain_refusal(cost: FormulaCost, budget_bytes: int, max_flops: float) -> str | None:
    """Why a function of this cost is not evaluated, or None.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> f = parse("sum(abs(X))")
      >>> print(explain_refusal(FormulaCost(100, 1e3, f.children[0], f), budget_bytes=200, max_flops=1e9))
      refused: abs(X) needs 100 bytes for one channel, more than a quarter of the budget of 200 bytes; the least that \
works is 400 bytes
    """
    if cost.flops > max_flops:
        return (
            f"refused: needs {cost.flops:.1e} operations on this layer, more than {max_flops:.1e}, "
            f"most of them for {cost.costliest}"
        )
    least = LEAST_SHARE * cost.bytes_per_channel
    if least > budget_bytes:
        return (
            f"refused: {cost.largest} needs {cost.bytes_per_channel} bytes for one channel, more than a quarter of the "
            f"budget of {budget_bytes} bytes; the least that works is {least} bytes"
        )
    return None


def explain_plan(cost: FormulaCost, held_bytes: int, budget_bytes: int) -> str | None:
    """Why a function is not evaluated that holds so much at once for one class and channel, or None.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> f = parse("sum(abs(X))")
      >>> print(explain_plan(FormulaCost(8 << 20, 1e3, f.children[0], f), held_bytes=24 << 20, budget_bytes=64 << 20))
      refused: abs(X) and what it is made from need 25165824 bytes at once for one channel, more than a quarter of the \
budget of 67108864 bytes; the least that works is 100663296 bytes
    """
    least = LEAST_SHARE * held_bytes
    if least <= budget_bytes:
        return None
    return (
        f"refused: {cost.largest} and what it is made from need {held_bytes} bytes at once for one channel, more than "
        f"a quarter of the budget of {budget_bytes} bytes; the least that works is {least} bytes"
    )
