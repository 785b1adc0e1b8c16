"""What a function costs on a layer, estimated from shapes before anything is computed, and what is refused for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from jaxprune.language.expression import Expression
from jaxprune.language.operators import OPERATORS
from jaxprune.observation.observed import Observed
from jaxprune.scoring.analysis import class_independent_form, dependence_of, moment_answer, set_answer
from jaxprune.scoring.compiled import explain_missing, missing_operands, view_of
from jaxprune.scoring.layer_batches import axis_sizes, value_shape

BUDGET_BYTES = 512 << 20
"""Memory for values besides the operands themselves, unless the caller sets another budget."""
MAX_FLOPS = 5e10
"""Arithmetic operations that one function may take on one member of one layer; costlier functions are refused."""
BUDGET_SHARE = 4
"""A budget must hold the values of one channel that many times."""
_PRODUCTS = 3
"""Matrix products with class membership that split a class-independent form by class."""


class LayerCost(NamedTuple):
    """The cost of one function on one layer."""

    producer: str
    """Path of the kernel whose channels are scored."""
    channels: int
    """Number of channels, C."""
    bytes_per_channel: int
    """Of the largest intermediate value, for one class; as many channels are computed at once as fit."""
    flops: float
    """Arithmetic operations over all classes and channels; what does not differ between classes counts once."""
    refusal: str
    """Why the function is refused here; "" if it is not."""


class FormulaCost(NamedTuple):
    """What a function costs on one member of one layer, estimated from shapes."""

    bytes_per_channel: int
    """Of the largest value, for one channel and one class: the least that must be held at once."""
    flops: float
    """Of all values, over all classes and channels; what does not differ between classes counts once."""
    largest: Expression
    """The sub-expression with the largest value."""
    costliest: Expression
    """The sub-expression that takes most arithmetic operations, its arguments not counted."""


def layer_costs(
    f: Expression, observed: Observed, *, budget_bytes: int = BUDGET_BYTES, max_flops: float = MAX_FLOPS
) -> list[LayerCost]:
    """Estimates the cost of a function on every producer; nothing is evaluated.

    Args:
      f: a pruning function.
      observed: what `observe` returns.
      budget_bytes: memory for values, of which one channel may take a quarter.
      max_flops: arithmetic operations that a function may take on one layer.

    Returns:
      One record per producer, in their order.

    Example:
      >>> import numpy as np
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.operands import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> layer_costs(parse("sum(abs(WI))"), observed)[0][1:]
      (2, 8, 8.0, '')
    """
    computable = {"GW", "GX"} if observed.gradient_source is not None else set()
    computable |= {"GW2"} if observed.squared_gradient_source is not None else set()
    costs = []
    for path, operands in observed.items():
        view = view_of(f, sample_is_full=operands.sample_is_full)
        cost = estimate_cost(f, axis_sizes(operands, view), operands.dtype.itemsize)
        absent = missing_operands(f.operands - computable, operands)
        too_costly = explain_refusal(cost, budget_bytes, max_flops)
        refusal = explain_missing(absent, operands) if absent else too_costly or ""
        costs.append(LayerCost(path, operands.num_channels, cost.bytes_per_channel, cost.flops, refusal))
    return costs


def estimate_cost(f: Expression, sizes: Mapping[str, int], itemsize: int) -> FormulaCost:
    """Estimates the cost of a function from axis sizes; nothing is computed.

    Args:
      f: a pruning function.
      sizes: of all axes, with `K` classes and `C` channels, as `axis_sizes` returns them.
      itemsize: bytes of one number.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> cost = estimate_cost(parse("sum(abs(WI))"), {"F": 9, "C": 4, "K": 10}, 4)
      >>> cost.bytes_per_channel, cost.flops, str(cost.largest)
      (36, 72.0, 'abs(WI)')
    """
    return _estimate(f, tuple(sizes.items()), itemsize)


@lru_cache(maxsize=1 << 11)  # each keeps its function in memory
def _estimate(f: Expression, size_items: tuple[tuple[str, int], ...], itemsize: int) -> FormulaCost:
    sizes = dict(size_items)
    max_bytes, largest, flops = itemsize, f, 0.0
    max_flops, costliest = 0.0, f
    visited: set[Expression] = set()
    stack = [(f, f)]
    while stack:
        node, source = stack.pop()  # what is computed, and the part of the formula that it stands for
        if node in visited:
            continue
        visited.add(node)
        node_bytes = itemsize * math.prod(value_shape(node.type, sizes))
        if node_bytes > max_bytes:
            max_bytes, largest = node_bytes, source
        if moment_answer(node) is not None or not node.children:
            continue
        depends = dependence_of(node)
        channels = sizes["C"] if depends.channel else 1
        answer, form, node_flops = set_answer(node), class_independent_form(node), 0.0
        if answer is not None:
            entries = math.prod(value_shape(answer.form.type, sizes))
            node_flops = channels * 2.0 * _PRODUCTS * sizes["K"] * entries
            stack.append((answer.form, source.children[0]))
        elif form is not None and form is not node:
            stack.append((form, source))
        else:
            shapes = [value_shape(child.type, sizes) for child in node.children]
            classes = sizes["K"] if depends.per_class else 1
            node_flops = channels * classes * OPERATORS[node.operator].flops(shapes)
            # of a transposed form the arguments are not those of the formula
            parts = source.children if node.operator == source.operator else (source,)
            stack += zip(node.children, parts, strict=False)  # rbf(P, Q, 1) is a block of rbf(X, 1)
        flops += node_flops
        if node_flops > max_flops:
            max_flops, costliest = node_flops, source
    return FormulaCost(max_bytes, flops, largest, costliest)


def explain_refusal(cost: FormulaCost, budget_bytes: int, max_flops: float) -> str | None:
    """Returns why a function of this cost is refused, or None if it is not.

    Args:
      cost: of the function.
      budget_bytes: memory for values.
      max_flops: arithmetic operations that it may take.

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
    least = BUDGET_SHARE * cost.bytes_per_channel
    if least > budget_bytes:
        return (
            f"refused: {cost.largest} needs {cost.bytes_per_channel} bytes for one channel, more than a quarter of the "
            f"budget of {budget_bytes} bytes; the least that works is {least} bytes"
        )
    return None


def explain_memory_refusal(cost: FormulaCost, held_bytes: int, budget_bytes: int) -> str | None:
    """Returns why a function that holds so much memory at once is refused, or None if it is not.

    Args:
      cost: of the function.
      held_bytes: what one class and channel hold at once.
      budget_bytes: memory for values.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> f = parse("sum(abs(X))")
      >>> cost = FormulaCost(8 << 20, 1e3, f.children[0], f)
      >>> print(explain_memory_refusal(cost, held_bytes=24 << 20, budget_bytes=64 << 20))
      refused: abs(X) and what it is made from need 25165824 bytes at once for one channel, more than a quarter of the \
budget of 67108864 bytes; the least that works is 100663296 bytes
    """
    least = BUDGET_SHARE * held_bytes
    if least <= budget_bytes:
        return None
    return (
        f"refused: {cost.largest} and what it is made from need {held_bytes} bytes at once for one channel, more than "
        f"a quarter of the budget of {budget_bytes} bytes; the least that works is {least} bytes"
    )
