"""One pruning function becomes one fused, jitted program; and what a function and a layer must have for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxprune.language.axes import type_name
from jaxprune.language.expression import Expression
from jaxprune.language.vocabulary import OF_ACTIVATIONS, OPERANDS
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.operands import Operands
from jaxprune.scoring.analysis import View, needs_samples
from jaxprune.scoring.compute import compute_node
from jaxprune.scoring.graph import Graph
from jaxprune.scoring.layer_batches import moment_values, operand_value
from jaxprune.scoring.set_statistics import class_rows
from jaxprune.types import Array

CompiledFunction = Callable[[Operands], jax.Array]
"""From operands to [C] scores ([B, C] for stacked operands)."""

MAX_COMPILED = 64
"""Functions whose programs `compile` keeps for a later call; each program takes about 2 MB."""


def compile(f: Expression) -> CompiledFunction:
    """Compiles a pruning function for use after evolution: one fused program per shape of operands.

    Args:
      f: an expression of type ().

    Returns:
      A function from `Operands` to [C] scores, the mean over classes ([B, C] for B stacked members). It may be called
      inside `jit` and `vmap`. Values follow plain IEEE arithmetic: what divides by zero is not finite.

    Raises:
      ValueError: if `f` is no scalar; when called, if an operand it reads is missing.

    Example:
      >>> import numpy as np
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
      >>> compile(parse("sum(abs(WI))"))(ops).tolist()
      [4.0, 6.0]
    """
    check_scalar(f)
    return _compile(f)


def check_scalar(f: Expression) -> None:
    """Refuses what is not a pruning function.

    Raises:
      TypeError: if `f` is not an expression.
      ValueError: if its type is not ().
    """
    if not isinstance(f, Expression):
        raise TypeError(f"a pruning function must be an Expression, got {type(f).__name__}. Use parse(text).")
    if f.type != ():
        raise ValueError(
            f"a pruning function must be a scalar per channel, got {f} of type {type_name(f.type)}. "
            "Reduce it, for example with sum(...) or mean(...)."
        )


def check_operands(operands: object) -> None:
    """Refuses anything but the operands of one layer.

    Raises:
      TypeError: if `operands` is no `Operands`.
    """
    if not isinstance(operands, Operands):
        raise TypeError(
            f"needs the Operands of one layer, got {type(operands).__name__}. Of what observe returns take one "
            'layer, such as observed["conv1.kernel"], or use score for the whole network.'
        )


def missing_operands(names: Iterable[str], operands: Operands) -> tuple[str, ...]:
    """Returns those of some operands that a layer does not have, sorted.

    Args:
      names: of the operands that a function reads.
      operands: of the layer.

    Example:
      >>> import numpy as np
      >>> from jaxprune.language.parsing import parse
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> missing_operands(parse("gamma * sum(WO) + mean(X)").operands, ops)
      ('WO', 'gamma')
    """
    gradients, names = operands.gradients or Gradients(), tuple(names)
    optional: dict[str, Array | None] = {
        "WO": operands.outgoing,
        "gamma": operands.gamma,
        "beta": operands.beta,
        "GW": gradients.weights,
        "GX": gradients.samples,
    }
    registered = [name for name in names if name not in optional and OPERANDS[name].read is not None]
    optional |= {name: operand_value(jnp, operands.members(), name) for name in registered}
    of_classes = () if operands.has_classes else [name for name in names if OPERANDS[name].per_class]
    of_activations = () if operands.has_activations else OF_ACTIVATIONS.intersection(names)
    absent = (name for name in names if name in optional and optional[name] is None)
    return tuple(sorted({*absent, *of_classes, *of_activations}))


def explain_missing(names: tuple[str, ...], operands: Operands) -> str:
    """Says which operands a layer does not have, and how to get them.

    Args:
      names: of the operands, at least one.
      operands: of the layer.
    """
    sentence = f"operand {' and '.join(names)} is missing: this layer does not have it"
    hint = "; for gradients use observe(...).with_gradients(), or weight_gradient= and feature_gradient= of from_arrays"
    if not operands.has_activations and OF_ACTIVATIONS.intersection(names):
        return f"{sentence}, because its activations cannot be observed"
    if any(OPERANDS[name].per_class for name in names):
        hint = "; the examples have no classes: give labels to observe"
        return sentence + hint
    squared = "; use observe(...).with_squared_gradients(), or squared_weight_gradient= of from_arrays"
    return sentence + (hint if {"GW", "GX"} & set(names) else squared if "GW2" in names else "")


def view_of(f: Expression, *, sample_is_full: bool) -> View:
    """Returns where a function reads activations: all examples, or the sample if it needs sample matrices.

    Args:
      f: the function.
      sample_is_full: whether the sample of every layer in question holds all examples.
    """
    return "sample" if needs_samples(f) and not sample_is_full else "full"


@lru_cache(maxsize=MAX_COMPILED)
def _compile(f: Expression) -> CompiledFunction:
    def scores(operands: Operands) -> jax.Array:
        check_operands(operands)
        absent = missing_operands(f.operands, operands)
        if absent:
            raise ValueError(
                f"{f}: {explain_missing(absent, operands)}. Give it to the operands, or use another function."
            )
        return _evaluate(f, operands)

    return jax.jit(scores)


def _evaluate(f: Expression, operands: Operands) -> jax.Array:
    """Returns [C] or [B, C] scores; values have an axis of classes or channels only where these differ."""
    members, view = operands.members(), view_of(f, sample_is_full=operands.sample_is_full)
    graph, rows = Graph(), class_rows(operands.class_counts)
    graph.add(f, view)
    moments = moment_values(jnp, members, view)
    values: list[Array] = []
    for node in graph.nodes:
        if node.kind == "literal":
            values.append(jnp.full((1, 1, 1), node.key[0].value, operands.dtype))
        elif not node.inputs:
            value = moments[node.name] if node.name in moments else operand_value(jnp, members, node.name)
            assert value is not None  # missing_operands has checked this
            values.append(value)
        else:
            masks = [rows.masks(graph.nodes[number].type) for number in node.inputs]
            inputs = [values[number] for number in node.inputs]
            values.append(compute_node(jnp, node, inputs, rows, masks=masks))
    scores = jnp.mean(values[-1], axis=1)
    scores = jnp.broadcast_to(scores, (operands.num_members, operands.num_channels))
    return scores if operands.is_stacked else scores[0]
