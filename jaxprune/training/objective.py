"""What a training step minimises: a forward pass in the precision of the recipe, and the loss of its logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxprune.structure.model_state import (
    FlatState,
    Path,
    RestState,
    merge_to_run,
    modules_of,
    split_model,
)
from jaxprune.training.recipes import ComputeType
from jaxprune.types import Array

_Arrays = TypeVar("_Arrays", bound=tuple[Any, ...])


def training_pass(
    graph: nnx.GraphDef[nnx.Module],
    trained: Collection[Path],
    weights: FlatState,
    rest: RestState,
    x: jax.Array,
    compute: ComputeType = "float32",
) -> tuple[jax.Array, FlatState]:
    """Runs a network in training mode.

    With "bfloat16", the network sees the inputs and copies of the trained arrays in that type. Running statistics
    keep theirs, as Flax computes batch statistics in float32, and so do the logits.

    Args:
      graph: graph of training mode.
      trained: paths of the arrays that the optimiser changes.
      weights: path -> array, trained ones and running statistics.
      rest: random state and variables that hold no array.
      x: inputs [N, ...].
      compute: the type to compute in.

    Returns:
      [N, K] logits, and path -> array after the pass for the paths of `weights`, without what the network sowed.
    """
    is_short = compute == "bfloat16"
    used = {path: _shortened(array) if path in trained else array for path, array in weights.items()}
    model = merge_to_run(graph, used if is_short else weights, rest)
    if is_short:
        # Batch norm would promote its input to the float32 of its running statistics, and all that follows with it.
        for module in modules_of(model):
            if isinstance(module, nnx.BatchNorm):
                module.promote_dtype = _unchanged
    logits = model(_shortened(x) if is_short else x)
    after = split_model(model)[1]
    after = {path: after[path] for path in weights}
    if is_short:
        return logits.astype(jnp.float32), {path: after[path].astype(weights[path].dtype) for path in after}
    return logits, after


def mean_loss(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, counted: jax.Array | None = None
) -> jax.Array:
    """Averages the cross entropy over the examples of a batch.

    Args:
      logits: [N, K].
      labels: [N] class ids from 0; any number where the weight is 0.
      label_smoothing: share of each label that is spread evenly over all K classes, in [0, 1).
      counted: None or [N] weights of the examples, >= 0.

    Returns:
      The loss, a scalar; 0 if all weights are 0.

    Example:
      >>> logits = jnp.array([[0.0, 0.0], [9.0, -9.0]])
      >>> round(float(mean_loss(logits, jnp.array([1, 1]), counted=jnp.array([1.0, 0.0]))), 4)
      0.6931
    """
    if counted is not None:
        labels = jnp.where(counted > 0, labels, 0)
    if label_smoothing == 0:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, label_smoothing))
    return _mean(losses, counted)


def distillation_loss(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float, counted: jax.Array | None = None
) -> jax.Array:
    """Averages how far the soft classes of a network are from those of its teacher.

    It is T^2 times the divergence KL(teacher || network) of the softmax of logits / T: as the gradients of the soft
    part go with 1 / T^2, its weight against a cross entropy does not depend on T. It is 0 for equal logits.

    Args:
      logits: [N, K] of the network.
      teacher_logits: [N, K] of the teacher; no gradient flows into them.
      temperature: T > 0; the higher, the more the classes count that the teacher holds for unlikely.
      counted: None or [N] weights of the examples, >= 0.

    Returns:
      The loss, a scalar >= 0; 0 if all weights are 0.

    Raises:
      ValueError: if the teacher has other outputs.

    Example:
      >>> logits = jnp.array([[0.0, 0.0]])
      >>> round(float(distillation_loss(logits, jnp.array([[2.0, -2.0]]), temperature=2.0)), 4)
      1.3113

    Source:
      Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, sec. 2.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"distillation needs a teacher with the outputs of the network, [N, K], got {teacher_logits.shape} of the "
            f"teacher and {logits.shape} of the network. Use a teacher for the same classes."
        )
    targets = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    found = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * _mean(jnp.sum(jnp.exp(targets) * (targets - found), axis=-1), counted)


def _mean(losses: jax.Array, counted: jax.Array | None) -> jax.Array:
    """The mean over the examples that count."""
    if counted is None:
        return losses.mean()
    total = counted.sum()
    return jnp.where(counted > 0, counted * losses, 0).sum() / jnp.where(total > 0, total, 1)


def _shortened(array: Array) -> Array:
    """Converts an array of floats to bfloat16."""
    return array.astype(jnp.bfloat16) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _unchanged(arrays: _Arrays, /, *, dtype: object = None, inexact: bool = True) -> _Arrays:
    """Stands for Flax's `promote_dtype` where arrays are to keep their own types."""
    return arrays
