"""Gradients of the loss with respect to producing weights and to activations, in one jitted pass over the images.

The traced program runs with a zero added to every value that a channel is read from; the derivative with respect to
that zero is the gradient of the value, whatever the network does with it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.observation.gradients import Contributions, Gradients, contributions
from jaxprune.observation.sample import flat_positions, pool_positions
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, Path
from jaxprune.structure.producer_sites import ProducerSite, channels_last, filter_columns
from jaxprune.structure.program import Program, evaluate
from jaxprune.types import Array

Loss = Callable[[Any, jax.Array], jax.Array]
"""What the network returns (a tuple where it returns several arrays) and labels [N] -> [N] losses, one per example."""


class GradientSums(NamedTuple):
    """What is summed over examples at one producer."""

    weights: jax.Array
    """[F, C] gradient of the sum of losses with respect to the producing weights."""
    contributions: Contributions


class Sample(NamedTuple):
    """The images whose gradients are kept one by one, and the structure traced at their number."""

    structure: Structure
    images: jax.Array
    labels: np.ndarray
    max_positions: int


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of [N, K] logits with labels 0 .. K-1, per example [N] and in at least float32.

    Example:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()
      [1.3862943649291992]
    """
    wide = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def make_gradients(
    structure: Structure,
    batches: Sequence[tuple[jax.Array, np.ndarray, np.ndarray]],
    sample: Sample,
    loss: Loss | None = None,
) -> Callable[[Mapping[Path, Array]], dict[str, Gradients]]:
    """A function that gives the gradients at every producer of any network of one architecture; it compiles once.

    Args:
      structure: of the network, traced at the batches' size.
      batches: (images, labels, which of them are real) of all calibration examples; empty if these are the sample.
      sample: the images whose own gradients are kept.
      loss: losses of examples from the network's outputs and the labels; `cross_entropy` by default.

    Returns:
      A function from a network's arrays to producer path -> `Gradients`.

    Raises:
      ValueError: from the returned function, if outputs and labels do not suit the loss, or the network cannot be
        differentiated.
    """
    chosen = cross_entropy if loss is None else loss
    on_sample = jax.jit(partial(sample_gradients, sample.structure, chosen, sample.max_positions))
    on_batch = jax.jit(partial(add_gradients, structure, chosen))
    labels = np.concatenate([batch[1][batch[2]] for batch in batches]) if batches else sample.labels

    is_checked: list[bool] = []  # what suits one network suits all of the architecture

    def gradients(arrays: Mapping[Path, Array]) -> dict[str, Gradients]:
        flat = dict(arrays)
        if not is_checked:
            check_loss(sample.structure.program, sample.images, sample.labels, labels, loss, flat)
            is_checked.append(True)
        try:
            sums, rows = on_sample(flat, sample.images, sample.labels)
            if batches:
                sums = jax.tree.map(jnp.zeros_like, sums)
                for batch in batches:
                    sums = on_batch(flat, sums, *batch)
        except NOT_DIFFERENTIABLE as error:
            raise ValueError(explain_failure(error)) from error
        return {name: _averaged(sums[name], rows[name], len(labels)) for name in structure.sites}

    return gradients


def sample_gradients(
    structure: Structure,
    loss: Loss,
    max_positions: int,
    arrays: FlatState,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[dict[str, GradientSums], dict[str, jax.Array]]:
    """Per producer the sums over a sample, and [n, D', C] gradients of each example's own loss, summed over windows."""
    sums, gradients = _differentiate(structure, loss, arrays, images, labels, jnp.ones(labels.shape, bool))
    pooled = {name: pool_positions(value, max_positions, jnp.sum) for name, value in gradients.items()}
    return sums, {name: flat_positions(value) for name, value in pooled.items()}


def add_gradients(
    structure: Structure,
    loss: Loss,
    arrays: FlatState,
    sums: dict[str, GradientSums],
    images: jax.Array,
    labels: jax.Array,
    is_real: jax.Array,
) -> dict[str, GradientSums]:
    """The sums with one batch more."""
    found, _ = _differentiate(structure, loss, arrays, images, labels, is_real)
    return jax.tree.map(jnp.add, sums, found)


def _differentiate(
    structure: Structure,
    loss: Loss,
    arrays: FlatState,
    images: jax.Array,
    labels: jax.Array,
    is_real: jax.Array,
) -> tuple[dict[str, GradientSums], dict[str, jax.Array]]:
    """Per producer the sums over a batch, and [N, *space, C] gradients of each example's own loss."""
    sites, program = structure.sites, structure.program
    numbers = list(dict.fromkeys(site.value for site in sites.values()))
    kernels = {path: jnp.asarray(arrays[path]) for path in dict.fromkeys(s.kernel for s in sites.values())}
    shapes = jax.eval_shape(lambda: evaluate(program, arrays, images, numbers))
    zeros = {
        number: jnp.zeros(shape.shape, shape.dtype) for number, shape in zip(numbers, shapes, strict=True)
    }

    def total(kernels: FlatState, zeros: dict[int, jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        flat = {**arrays, **kernels}
        found = evaluate(program, flat, images, [*numbers, *program.outputs], zeros)
        values, outputs = found[: len(numbers)], found[len(numbers) :]
        losses = loss(outputs[0] if len(outputs) == 1 else tuple(outputs), labels)
        # examples do not see each other in evaluation mode: the gradient of the sum holds everyone's own
        return jnp.sum(jnp.where(is_real, losses, 0)), values

    (of_kernels, of_values), values = jax.grad(total, argnums=(0, 1), has_aux=True)(kernels, zeros)
    known = dict(zip(numbers, values, strict=True))
    gradients = {name: channels_last(of_values[site.value], site) for name, site in sites.items()}
    sums = {}
    for name, site in sites.items():
        features = flat_positions(channels_last(known[site.value], site))
        columns = filter_columns(of_kernels[site.kernel], site)
        wide = columns.astype(jnp.promote_types(columns.dtype, jnp.float32))
        sums[name] = GradientSums(wide, contributions(features, flat_positions(gradients[name]), is_real))
    return sums, gradients


def _averaged(sums: GradientSums, rows: jax.Array, count: int) -> Gradients:
    fisher, first_order = (each / count for each in sums.contributions)
    return Gradients(sums.weights / count, rows, fisher, first_order)


NOT_DIFFERENTIABLE = (NotImplementedError, TypeError, ValueError)
"""What JAX raises for a network or a loss that it cannot differentiate."""


def explain_failure(error: Exception) -> str:
    """What one of these means here."""
    return (
        "gradients of the loss need a network and a loss that JAX can differentiate, but it failed with "
        f"{type(error).__name__}: {error}. Use functions without GW, GX and GW2, or leave that operation out."
    )


def check_loss(
    program: Program,
    images: jax.Array,
    labels: np.ndarray,
    every_label: np.ndarray,
    loss: Loss | None,
    arrays: FlatState,
) -> None:
    """Refuses labels and outputs that do not suit the loss.

    Args:
      program: of the network at the size of `images`.
      images: some of them, with their labels.
      labels: theirs.
      every_label: of all images.
      loss: the caller's, or None for the cross-entropy.
      arrays: of the network.

    Raises:
      ValueError: saying what does not suit.
    """
    _check_labels(every_label)
    if loss is None:
        _check_logits(program, every_label)
    _check_losses(program, images, labels, cross_entropy if loss is None else loss, arrays)


def _check_labels(labels: np.ndarray) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"GW and GX need labels that a loss can read, whole numbers, got dtype {labels.dtype}. "
            "Number the classes as the network's outputs are."
        )


def _check_logits(program: Program, labels: np.ndarray) -> None:
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


def _check_losses(
    program: Program, images: jax.Array, labels: np.ndarray, loss: Loss, arrays: FlatState
) -> None:
    def losses(arrays: FlatState) -> jax.Array:
        outputs = evaluate(program, arrays, images, program.outputs)
        return loss(outputs[0] if len(outputs) == 1 else tuple(outputs), jnp.asarray(labels))

    found = jax.eval_shape(losses, arrays)
    wanted = labels.shape
    if getattr(found, "shape", None) != wanted or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"GW and GX need a loss that gives one number per example, {wanted}, got {found}. "
            "Do not average: loss(outputs, labels) -> [N]."
        )


# === merged: """Mean squares of each example's own gradient with respect to the producing weights: the

_MAX_TOGETHER = 32
_BYTES_TOGETHER = 1 << 28
"""Of the gradients of examples that are differentiated side by side."""


def make_squared_gradients(
    trace_one: Callable[[jax.ShapeDtypeStruct], Program],
    sites: Mapping[str, ProducerSite],
    images: np.ndarray,
    labels: np.ndarray,
    loss: Loss | None = None,
) -> Callable[[Mapping[Path, Array]], dict[str, jax.Array]]:
    """A function that gives the mean squared gradient at every producer of any network of one architecture.

    Args:
      trace_one: gives the network's program for images of a shape; it is asked for one image, at the first call.
      sites: producer path -> where its weights are.
      images: [N, ...] all calibration images.
      labels: [N] theirs.
      loss: losses of examples from the network's outputs and the labels; `cross_entropy` by default.

    Returns:
      A function from a network's arrays to producer path -> [C, F] mean over images, at least float32; it compiles
      once.

    Raises:
      ValueError: from the returned function, as for `make_gradients`.
    """
    chosen = cross_entropy if loss is None else loss
    compiled: list[Callable[..., FlatState]] = []
    kernels = list(dict.fromkeys(site.kernel for site in sites.values()))

    def squared_gradients(arrays: Mapping[Path, Array]) -> dict[str, jax.Array]:
        flat = dict(arrays)
        if not compiled:
            one = trace_one(jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
            check_loss(one, jnp.asarray(images[:1]), labels[:1], labels, loss, flat)
            compiled.append(jax.jit(partial(add_squares, one, chosen)))
        sums: FlatState = {path: jnp.zeros(flat[path].shape, _wide(flat[path])) for path in kernels}
        size = num_together(sum(array.nbytes for array in sums.values()), len(images))
        try:
            for start in range(0, len(images), size):
                index = np.arange(start, start + size)
                is_real = index < len(images)
                index = np.where(is_real, index, start)
                sums = compiled[0](flat, sums, images[index], labels[index], is_real)
        except NOT_DIFFERENTIABLE as error:
            raise ValueError(explain_failure(error)) from error
        return {name: filter_columns(sums[site.kernel], site).T / len(images) for name, site in sites.items()}

    return squared_gradients


def add_squares(
    program: Program,
    loss: Loss,
    arrays: FlatState,
    sums: FlatState,
    images: jax.Array,
    labels: jax.Array,
    is_real: jax.Array,
) -> FlatState:
    """The sums of squares with some examples more, which are differentiated side by side.

    Args:
      program: of the network, for one image.
      loss: of examples.
      arrays: of the network.
      sums: kernel path -> sum so far.
      images, labels, is_real: of the examples; False for those that only fill up.
    """

    def own_loss(kernels: FlatState, image: jax.Array, label: jax.Array) -> jax.Array:
        # what is added to the images reaches no step: it only asks for the network's own derivative rules
        asked = {program.example: jnp.zeros(())}
        outputs = evaluate(program, {**arrays, **kernels}, image[None], program.outputs, asked)
        return jnp.sum(loss(outputs[0] if len(outputs) == 1 else tuple(outputs), label[None]))

    kernels = {path: jnp.asarray(arrays[path]) for path in sums}
    found = jax.vmap(jax.grad(own_loss), in_axes=(None, 0, 0))(kernels, images, labels)

    def with_squares(total: jax.Array, each: jax.Array) -> jax.Array:
        real = is_real.reshape(-1, *[1] * total.ndim)
        return total + jnp.sum(jnp.where(real, jnp.square(each.astype(total.dtype)), 0), axis=0)

    return {path: with_squares(jnp.asarray(total), found[path]) for path, total in sums.items()}


def num_together(num_bytes: int, num_images: int) -> int:
    """How many examples are differentiated side by side, when the gradient of one takes this many bytes.

    Example:
      >>> num_together(60_000_000, 2000), num_together(100_000, 2000), num_together(10**10, 2000)
      (4, 32, 1)
    """
    return max(1, min(_MAX_TOGETHER, num_images, _BYTES_TOGETHER // max(num_bytes, 1)))


def _wide(array: Array) -> np.dtype:
    return np.dtype(jnp.promote_types(array.dtype, jnp.float32))
