"""A network as a function of its arrays and its inputs, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
from flax import nnx

from jaxprune.structure.model_state import is_abstract, merge_to_run, split_model
from jaxprune.types import Array

Forward: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""`forward(arrays, inputs)` returns the outputs."""


def evaluation_call(
    model: nnx.Module, example: Array | jax.ShapeDtypeStruct
) -> tuple[Forward, list[Array], list[jax.ShapeDtypeStruct]]:
    """Returns a function that runs a copy of a network in evaluation mode, and what to call it with.

    Args:
      model: NNX module with weights; it is not changed.
      example: images as the network takes them, or their shape and dtype.

    Returns:
      `(forward, arrays, inputs)`: the function, the network's arrays, and shape and dtype of each input.

    Raises:
      ValueError: if the network has shapes in place of arrays, or the example has no batch axis.

    Example:
      >>> import numpy as np
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> forward, arrays, inputs = evaluation_call(model, np.ones((4, 2)))
      >>> forward(arrays, [np.ones((4, 2), np.float32)]).shape, inputs
      ((4, 3), [ShapeDtypeStruct(shape=(4, 2), dtype=float32)])
    """
    graphdef, flat, rest = split_model(model, "evaluation")
    if is_abstract(flat):
        raise ValueError(
            "needs a network with weights, got one of shapes alone. Fill it, or make it with weights."
        )
    if not example.shape:
        raise ValueError("needs an example with a batch axis, got a scalar. Pass images[:1].")
    paths = list(flat)

    def forward(arrays: Sequence[Any], inputs: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever the network returns
        network = merge_to_run(graphdef, dict(zip(paths, arrays, strict=True)), rest)
        return cast(Callable[..., Any], network)(*inputs)

    inputs = [jax.ShapeDtypeStruct(example.shape, jax.dtypes.canonicalize_dtype(example.dtype))]
    return forward, list(flat.values()), inputs
