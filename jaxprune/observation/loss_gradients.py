"""Gradients of the loss with respect to producing weights and to activations, and mean squares of the former.

`make_gradients` runs the traced program with a zero added to every value that a channel is read from. The derivative
with respect to that zero is the gradient of the value, whatever the network does with it afterwards; one jitted pass
over the images gives all gradients. `make_squared_gradients` averages the squares of each example's own gradient with
respect to the weights (the diagonal of the empirical Fisher matrix), which takes a backward pass for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.nets.inputs import Batch, Example, Outputs, arrays_of
from jaxprune.observation.activations import activation_sites, count_examples, on_each_example
from jaxprune.observation.examples import Examples, Targets
from jaxprune.observation.gradients import EffectSums, Gradients, sum_effects
from jaxprune.observation.sample import flat_positions, pool_positions
from jaxprune.structure.evaluating import evaluate
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path
from jaxprune.structure.producer_sites import ProducerSite, channel_columns, channels_last
from jaxprune.structure.program import Program
from jaxprune.types import Array

Loss = Callable[[Any, Any], jax.Array]
"""What the network returns and targets -> [N] losses, one per example. Targets are the labels that were given, any
pytree of arrays [N, ...]; without labels they are the batch itself, in the form in which it was given."""

NOT_DIFFERENTIABLE = (NotImplementedError, TypeError, ValueError)
"""What JAX raises for a network or a loss that it cannot differentiate."""
_MAX_TOGETHER = 32
"""Examples that are differentiated side by side at most."""
_BYTES_TOGETHER = 1 << 28
"""Memory for the gradients of examples that are differentiated side by side."""


class SampledInputs(NamedTuple):
    """The examples whose own gradients are returned, and the structure traced with as many of them."""

    structure: Structure
    inputs: Batch
    targets: Targets
    max_positions: int


class GradientSums(NamedTuple):
    """Sums over examples at one producer."""

    weights: jax.Array
    """[F, C] gradient of the sum of losses with respect to the producing weights."""
    effects: EffectSums | None
    """None where the activations cannot be observed."""


def cross_entropy(outputs: Outputs, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example, in at least float32.

    Args:
      outputs: [N, K] logits, alone or as the only array of a pytree.
      labels: [N] classes 0 .. K-1.

    Returns:
      [N] losses.

    Example:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()
      [1.3862943649291992]
    """
    (logits,) = jax.tree.leaves(outputs)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def make_gradients(
    structure: Structure,
    batches: Iterable[tuple[Batch, Targets, np.ndarray]] | None,
    sample: SampledInputs,
    examples: Examples,
    loss: Loss | None = None,
) -> Callable[[Mapping[Path, Array]], dict[str, Gradients]]:
    """Makes a function that returns the gradients at every producer of any network of one architecture.

    Args:
      structure: of the network, traced at the batches' size; or with one example, as that of `sample` then is.
      batches: (inputs, targets, which of them are real) of all calibration examples, read at every call; None if these
        are the sample.
      sample: the examples whose own gradients are returned.
      examples: all of them.
      loss: losses of examples from the network's outputs and the targets; `cross_entropy` by default.

    Returns:
      A function from a network's arrays to producer path -> `Gradients`; it compiles once.

    Raises:
      ValueError: from the returned function, if outputs or labels do not suit the loss, or the network cannot be
        differentiated.
    """
    loss_of = cross_entropy if loss is None else loss
    on_sample = jax.jit(partial(sample_gradients, sample.structure, loss_of, sample.max_positions))
    on_batch = jax.jit(partial(add_gradients, structure, loss_of))
    is_checked = False  # what suits one network suits all of the architecture

    def gradients(arrays: Mapping[Path, Array]) -> dict[str, Gradients]:
        nonlocal is_checked
        flat = dict(arrays)
        if not is_checked:
            program, inputs, targets = sample.structure.program, sample.inputs, sample.targets
            if program.example.batch_size == 1:
                inputs, targets, *_ = next(examples.batches(1))
            _check_loss(program, inputs, targets, examples.labels, loss, flat)
            is_checked = True
        try:
            sums, rows = on_sample(flat, sample.inputs, sample.targets)
            if batches is not None:
                sums = jax.tree.map(jnp.zeros_like, sums)
                for batch in batches:
                    sums = on_batch(flat, sums, *batch)
        except NOT_DIFFERENTIABLE as error:
            raise ValueError(_explain_failure(error)) from error
        result = {}
        for name, (weights, effects) in sums.items():
            means = [None, None] if effects is None else [each / examples.num_examples for each in effects]
            result[name] = Gradients(weights / examples.num_examples, rows.get(name), *means)
        return result

    return gradients


def sample_gradients(
    structure: Structure,
    loss: Loss,
    max_positions: int,
    arrays: FlatState,
    inputs: Batch,
    targets: Targets,
) -> tuple[dict[str, GradientSums], dict[str, jax.Array]]:
    """Differentiates the loss on the sample; jittable in the last three arguments.

    Args:
      structure: of the network, traced with as many examples.
      loss: of examples.
      max_positions: gradients at more positions are summed over windows.
      arrays: of the network.
      inputs: of the sample.
      targets: for the loss.

    Returns:
      For each producer the sums over the sample, and the [n, D', C] gradients of each example's own loss.
    """
    is_real = jnp.ones(count_examples(structure, inputs), bool)
    sums, gradients = _differentiate(structure, loss, arrays, inputs, targets, is_real)
    pooled = {name: pool_positions(value, max_positions, jnp.sum) for name, value in gradients.items()}
    return sums, {name: flat_positions(value) for name, value in pooled.items()}


def add_gradients(
    structure: Structure,
    loss: Loss,
    arrays: FlatState,
    sums: dict[str, GradientSums],
    inputs: Batch,
    targets: Targets,
    is_real: jax.Array,
) -> dict[str, GradientSums]:
    """Adds a batch to the sums over examples; jittable in the last five arguments.

    Args:
      structure: of the network, traced with as many examples.
      loss: of examples.
      arrays: of the network.
      sums: of the batches before, by producer.
      inputs: of the batch.
      targets: for the loss.
      is_real: [N] False for examples that only fill up the batch.

    Returns:
      The sums including the batch.
    """
    sums_of_batch, _ = _differentiate(structure, loss, arrays, inputs, targets, is_real)
    return jax.tree.map(jnp.add, sums, sums_of_batch)


def _differentiate(
    structure: Structure,
    loss: Loss,
    arrays: FlatState,
    inputs: Batch,
    targets: Targets,
    is_real: jax.Array,
) -> tuple[dict[str, GradientSums], dict[str, jax.Array]]:
    """Returns for each producer the sums over a batch, and [N, *space, C] gradients of each example's own loss."""
    chex.assert_shape(is_real, (count_examples(structure, inputs),))
    sites = activation_sites(structure)
    numbers = list(dict.fromkeys(site.value for site in sites.values()))
    kernels = {
        path: jnp.asarray(arrays[path]) for path in dict.fromkeys(s.kernel for s in structure.sites.values())
    }
    program = structure.program

    def run(
        flat: FlatState, added: Mapping[int, jax.Array] | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        if program.example.batch_size > 1:
            return _losses(program, loss, numbers, flat, inputs, targets, added)
        run_one = partial(_loss_of_one, program, loss, numbers, flat)
        return on_each_example(program.example, run_one)(inputs, targets, added)

    _, shapes = jax.eval_shape(run, arrays)
    zeros = {
        number: jnp.zeros(shape.shape, shape.dtype) for number, shape in zip(numbers, shapes, strict=True)
    }

    def total_loss(kernels: FlatState, zeros: dict[int, jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        losses, activations = run({**arrays, **kernels}, zeros)
        # in evaluation mode examples do not affect each other: the gradient of the sum holds that of each one
        return jnp.sum(jnp.where(is_real, losses, 0)), activations

    (of_kernels, of_values), activations = jax.grad(total_loss, argnums=(0, 1), has_aux=True)(kernels, zeros)
    by_number = dict(zip(numbers, activations, strict=True))
    gradients = {name: channels_last(of_values[site.value], site) for name, site in sites.items()}
    sums = {}
    for name, own in structure.sites.items():
        columns = channel_columns(of_kernels[own.kernel], own.kernel_channels)
        wide = columns.astype(jnp.promote_types(columns.dtype, jnp.float32))
        effects, site = None, own.activations
        if site is not None:
            features = flat_positions(channels_last(by_number[site.value], site))
            effects = sum_effects(features, flat_positions(gradients[name]), is_real)
        sums[name] = GradientSums(wide, effects)
    return sums, gradients


def _losses(
    program: Program,
    loss: Loss,
    numbers: Sequence[int],
    arrays: FlatState,
    inputs: Batch,
    targets: Targets,
    added: Mapping[int, jax.Array] | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Runs a program; returns the losses of its examples, and some values, to which `added` are added."""
    values = evaluate(program, arrays, inputs, [*numbers, *program.outputs], added)
    outputs = program.as_returned(values[len(numbers) :])
    return loss(outputs, _targets(program, inputs, targets)), values[: len(numbers)]


def _loss_of_one(
    program: Program,
    loss: Loss,
    numbers: Sequence[int],
    arrays: FlatState,
    inputs: Batch,
    target: Targets,
    added: Mapping[int, jax.Array] | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Does so for one example, whose target has no batch axis."""
    of_one = jax.tree.map(lambda leaf: leaf[None], target)
    losses, values = _losses(program, loss, numbers, arrays, inputs, of_one, added)
    return jnp.sum(losses), values


def make_squared_gradients(
    trace_one: Callable[[Example], Program],
    sites: Mapping[str, ProducerSite],
    examples: Examples,
    loss: Loss | None = None,
) -> Callable[[Mapping[Path, Array]], dict[str, jax.Array]]:
    """Makes a function that returns the mean squared gradient at every producer of any network of one architecture.

    Args:
      trace_one: traces the network's program for inputs of some shapes; it is called at the first call, for one.
      sites: producer path -> where its weights are.
      examples: all calibration examples.
      loss: losses of examples from the network's outputs and the targets; `cross_entropy` by default.

    Returns:
      A function from a network's arrays to producer path -> [C, F] mean over examples, at least float32; it compiles
      once.

    Raises:
      ValueError: from the returned function, as for `make_gradients`.
    """
    loss_of = cross_entropy if loss is None else loss
    compiled: Callable[..., FlatState] | None = None
    kernels = list(dict.fromkeys(site.kernel for site in sites.values()))

    def squared_gradients(arrays: Mapping[Path, Array]) -> dict[str, jax.Array]:
        nonlocal compiled
        flat = dict(arrays)
        if compiled is None:
            program = trace_one(examples.example.with_batch_size(1))
            first = next(examples.batches(1))
            _check_loss(program, first.arrays, first.targets, examples.labels, loss, flat)
            compiled = jax.jit(partial(add_squares, program, loss_of))
        sums: FlatState = {
            path: jnp.zeros(flat[path].shape, jnp.promote_types(flat[path].dtype, jnp.float32))
            for path in kernels
        }
        size = num_together(sum(array.nbytes for array in sums.values()), examples.num_examples)
        try:
            for batch in examples.with_targets(size):
                sums = compiled(flat, sums, *batch)
        except NOT_DIFFERENTIABLE as error:
            raise ValueError(_explain_failure(error)) from error
        return means(sums)

    @jax.jit
    def means(sums: FlatState) -> dict[str, jax.Array]:
        return {
            name: channel_columns(sums[site.kernel], site.kernel_channels).T / examples.num_examples
            for name, site in sites.items()
        }

    return squared_gradients


def add_squares(
    program: Program,
    loss: Loss,
    arrays: FlatState,
    sums: FlatState,
    inputs: Batch,
    targets: Targets,
    is_real: jax.Array,
) -> FlatState:
    """Adds the squared gradients of some examples, which are differentiated side by side, to the sums of squares.

    Args:
      program: of the network, for one example.
      loss: of examples.
      arrays: of the network.
      sums: kernel path -> sum over the examples before.
      inputs: of the examples.
      targets: for the loss.
      is_real: [N] False for examples that only fill up.

    Returns:
      Kernel path -> sum including these examples.
    """

    def loss_of_one(kernels: FlatState, one: Batch, target: Targets) -> jax.Array:
        # what is added to an input reaches no operation: it only asks for the network's own derivative rules
        added = {program.inputs[0]: jnp.zeros(())}
        return _loss_of_one(program, loss, (), {**arrays, **kernels}, one, target, added)[0]

    kernels = {path: jnp.asarray(arrays[path]) for path in sums}
    gradients = on_each_example(program.example, partial(jax.grad(loss_of_one), kernels))(inputs, targets)

    def with_squares(total: jax.Array, gradient: jax.Array) -> jax.Array:
        real = is_real.reshape(-1, *[1] * total.ndim)
        return total + jnp.sum(jnp.where(real, jnp.square(gradient.astype(total.dtype)), 0), axis=0)

    return {path: with_squares(jnp.asarray(total), gradients[path]) for path, total in sums.items()}


def num_together(num_bytes: int, num_images: int) -> int:
    """Returns how many examples to differentiate side by side.

    Args:
      num_bytes: of the gradient of one example.
      num_images: how many there are in all.

    Example:
      >>> num_together(60_000_000, 2000), num_together(100_000, 2000), num_together(10**10, 2000)
      (4, 32, 1)
    """
    return max(1, min(_MAX_TOGETHER, num_images, _BYTES_TOGETHER // max(num_bytes, 1)))


def _check_loss(
    program: Program,
    inputs: Batch,
    targets: Targets,
    all_labels: np.ndarray | None,
    loss: Loss | None,
    arrays: FlatState,
) -> None:
    """Refuses labels and outputs that do not suit the loss (None is the cross-entropy); `inputs` are some of them."""
    if all_labels is not None:
        _check_class_labels(program, all_labels, loss)
    elif loss is None:
        raise ValueError(
            "GW, GX and GW2 need labels [N] or a loss of your own, got neither. Give observe(..., loss=...), which "
            "reads the network's outputs and the batch."
        )
    losses = partial(_losses, program, cross_entropy if loss is None else loss, ())
    result, _ = jax.eval_shape(losses, arrays, arrays_of(inputs), targets)
    size = program.example.batch_size
    if getattr(result, "shape", None) != (size,) or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(
            f"GW and GX need a loss that gives one number per example, {(size,)}, got {result}. "
            "Do not average: loss(outputs, labels) -> [N]."
        )


def _targets(program: Program, inputs: Batch, targets: Targets) -> Targets:
    """Returns what the loss reads besides the outputs: the batch as it was given, if there are no targets."""
    return program.example.fill(arrays_of(inputs)) if targets is None else targets


def _check_class_labels(program: Program, all_labels: np.ndarray, loss: Loss | None) -> None:
    """Refuses labels of classes that do not suit the loss."""
    if not np.issubdtype(all_labels.dtype, np.integer):
        raise ValueError(
            f"GW and GX need labels that a loss can read, whole numbers, got dtype {all_labels.dtype}. "
            "Number the classes as the network's outputs are."
        )
    if loss is None:
        _check_logits(program, all_labels)
    narrow = jax.dtypes.canonicalize_dtype(all_labels.dtype)
    if not np.array_equal(all_labels.astype(narrow), all_labels):
        raise ValueError(
            f"GW and GX need labels that fit {narrow}, got {all_labels.min()} .. {all_labels.max()}. "
            "Number the classes from 0."
        )


def _check_logits(program: Program, labels: np.ndarray) -> None:
    """Refuses networks without [N, K] logits, and labels that are not 0 .. K-1."""
    shapes = [program.shapes[number] for number in program.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(
            "GW and GX need a network that returns [N, K] logits, for the cross-entropy with the labels, "
            f"got outputs of shapes {shapes}. Give your own loss: observe(..., loss=...)."
        )
    num_outputs = shapes[0][1]
    if labels.min() < 0 or labels.max() >= num_outputs:
        raise ValueError(
            f"GW and GX need labels 0 .. {num_outputs - 1}, as the network has {num_outputs} outputs, "
            f"got {labels.min()} .. {labels.max()}. Number the classes as the outputs are, or give your own loss."
        )


def _explain_failure(error: Exception) -> str:
    return (
        "gradients of the loss need a network and a loss that JAX can differentiate, but it failed with "
        f"{type(error).__name__}: {error}. Use functions without GW, GX and GW2, or leave that operation out."
    )
