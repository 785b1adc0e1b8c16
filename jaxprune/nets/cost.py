"""Exact counts of a network's multiply-accumulates (MACs) for one example and of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import jax
from flax import nnx
from jax.extend import core

from jaxprune.nets.inputs import Batch, abstract_call, example_of, holds_array


def count_macs(model: nnx.Module, example: Batch) -> int:
    """Counts the multiply-accumulates of all convolutions and matrix products for one example, in evaluation mode.

    The network is traced, not run. Every convolution and matrix product counts the entries of its output times the
    products summed for each, padded positions included, as is usual. Adding biases, normalisation, activation and
    pooling do not count. A compiled loop counts its body once per iteration, a branch its costliest case.

    Args:
      model: any NNX model; it is not changed, and its parameters may be abstract.
      example: a batch as the model takes it: an array [N, ...], a dict, a tuple of arguments, `jaxprune.Inputs`. Shapes
        may stand in for arrays, and N does not matter.

    Returns:
      MACs for one example.

    Raises:
      ValueError: if the example has no batch axis, or there are products in a loop whose number of iterations depends
        on values.

    Example:
      >>> import jax.numpy as jnp
      >>> count_macs(nnx.Linear(8, 5, rngs=nnx.Rngs(0)), jnp.zeros((32, 8)))
      40
    """
    if getattr(example, "shape", None) == ():
        raise ValueError(
            "count_macs needs an example batch [N, ...], got a scalar. Pass images[:1], for instance."
        )
    forward, *arguments = abstract_call(model, example_of(example, model).with_batch_size(1))
    return _jaxpr_macs(jax.make_jaxpr(forward)(*arguments).jaxpr)


def count_parameters(model: nnx.Module) -> int:
    """Counts trainable parameters: entries of kernels, biases, normalisation scales and shifts.

    Shared parameters count once; running statistics and random state do not count.

    Args:
      model: any NNX model; its parameters may be abstract.

    Returns:
      The number of entries of all `nnx.Param` variables.

    Example:
      >>> count_parameters(nnx.Linear(8, 5, rngs=nnx.Rngs(0)))
      45
    """
    return sum(parameter_sizes(model).values())


def parameter_sizes(model: nnx.Module) -> Mapping[str, int]:
    """Returns the number of entries of each trainable parameter by dotted path, in path order.

    Example:
      >>> parameter_sizes(nnx.Linear(8, 5, rngs=nnx.Rngs(0)))
      {'bias': 5, 'kernel': 40}
    """
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        ".".join(map(str, path)): math.prod(variable.shape)
        for path, variable in flat
        if holds_array(variable)
    }


def _jaxpr_macs(jaxpr: core.Jaxpr) -> int:
    """MACs of all equations of a jaxpr, nested ones included."""
    return sum(map(_equation_macs, jaxpr.eqns))


def _equation_macs(equation: core.JaxprEqn) -> int:
    """MACs of one equation: those of its own product, or of the jaxprs that it calls."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel, out_axis = _shape(equation.invars[1]), params["dimension_numbers"].rhs_spec[0]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // kernel[out_axis]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)
    called = [_jaxpr_macs(jaxpr) for jaxpr in _called_jaxprs(equation)]
    if name == "cond":
        return max(called, default=0)
    if name == "while" and sum(called) > 0:
        raise ValueError(
            "count_macs needs loops with a known number of iterations, got products inside a while loop whose end "
            "depends on values. Write it as jax.lax.scan or with fixed bounds."
        )
    return sum(called) * int(params["length"] if name == "scan" else 1)


def _shape(value: core.Var | core.Literal) -> tuple[int, ...]:
    """The shape of an equation's input or output."""
    return cast(jax.ShapeDtypeStruct, value.aval).shape


def _called_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs that an equation calls: of function calls, custom derivatives, remat, loops, branches."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
