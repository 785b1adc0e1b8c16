"""A network as a function of its arrays and its inputs, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from flax import nnx

from jaxprune.nets.inputs import Batch, Example, example_of
from jaxprune.structure.model_state import is_abstract, merge_to_run, split_model
from jaxprune.types import Array

Forward: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""`forward(arrays, inputs)` returns the outputs."""


def evaluation_call(model: nnx.Module, example: Batch) -> tuple[Forward, list[Array], Example]:
    """Returns a function that runs a copy of a network in evaluation mode, and what to call it with.

    Args:
      model: NNX module with weights; it is not changed.
      example: a batch as the network takes it, or its shapes and dtypes.

    Returns:
      `(forward, arrays, example)`: the function, the network's arrays, and what the network takes: `forward` is called
      with arrays like `example.arrays`.

    Raises:
      ValueError: if the network has shapes in place of arrays, or the example has no batch axis.

    Example:
      >>> import numpy as np
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> forward, arrays, example = evaluation_call(model, np.ones((4, 2)))
      >>> forward(arrays, [np.ones((4, 2), np.float32)]).shape, example.arrays
      ((4, 3), (ShapeDtypeStruct(shape=(4, 2), dtype=float32),))
    """
    graphdef, flat, rest = split_model(model, "evaluation")
    if is_abstract(flat):
        raise ValueError(
            "needs a network with weights, got one of shapes alone. Fill it, or make it with weights."
        )
    taken, paths = example_of(example, model), list(flat)

    def forward(arrays: Sequence[Any], inputs: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever the network returns
        network = merge_to_run(graphdef, dict(zip(paths, arrays, strict=True)), rest)
        return taken.call_network(cast(Callable[..., Any], network), inputs)

    return forward, list(flat.values()), taken
