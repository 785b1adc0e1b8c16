"""One training run as a pure function of weights, examples and their order to trained weights and accuracies.

A model is split once into static graphs (for training and evaluation mode) and arrays. `train` is then a pure
function of arrays, so the same code trains a base network, fine-tunes a slim one or, under `vmap`, trains many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune.keys import derive, generator
from jaxprune.pruning.masking import apply_masks
from jaxprune.structure.model_state import (
    FlatState,
    Path,
    RestState,
    merge_to_run,
    parameter_paths,
    random_state,
    split_model,
)
from jaxprune.training.objective import distillation_loss, mean_loss, training_pass
from jaxprune.training.recipes import Augmentation, Recipe
from jaxprune.types import Array

EVALUATION_BATCH = 500
"""Most images per forward pass when evaluating; patches of so many 28x28 images still fit into memory."""


class Examples(NamedTuple):
    """Images `x` [N, H, W, C] (or features [N, F]) and their labels `y` [N], class ids from 0."""

    x: jax.Array
    y: jax.Array


@dataclass(frozen=True)
class Network:
    """A model without its weights.

    Args:
      training: graph of training mode, with batch statistics and dropout.
      evaluation: graph of evaluation mode, with running statistics and without dropout.
      rest: path -> random key or counter, or variable that holds no array; training changes none of them.
      trained: paths of the arrays that the optimiser changes; the other weights are running statistics.
    """

    training: nnx.GraphDef[nnx.Module]
    evaluation: nnx.GraphDef[nnx.Module]
    rest: RestState
    trained: frozenset[Path]

    def logits(self, weights: FlatState, x: jax.Array) -> jax.Array:
        """Returns [N, K] logits of examples `x` in evaluation mode."""
        model = merge_to_run(self.evaluation, weights, self.rest)
        return model(x)


class Teacher(NamedTuple):
    """A network whose soft classes another one learns, in evaluation mode and full precision.

    Attributes:
      network: the teacher without its weights, which each step is given.
      temperature: of `distillation_loss`.
      weight: share of that loss; the rest is the loss on labels.
    """

    network: Network
    temperature: float
    weight: float


def split_network(model: nnx.Module) -> tuple[Network, FlatState]:
    """Splits a model into static graphs and weights (path -> array); the model is not changed.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> network, weights = split_network(PlainConvNet(nnx.Rngs(0)))
      >>> network.logits(weights, jnp.zeros((2, 8, 8, 1))).shape
      (2, 10)
    """
    training, weights, rest = split_model(model, "training")
    evaluation = split_model(model, "evaluation")[0]
    return Network(training, evaluation, rest, parameter_paths(model)), weights


def batch_order(key: jax.Array, num_examples: int, recipe: Recipe) -> np.ndarray:
    """Draws the order of examples for a whole run: each epoch is a new permutation without its incomplete last batch.

    Args:
      key: a typed key.
      num_examples: number of training examples.
      recipe: gives the number of epochs and the batch size.

    Returns:
      [steps, batch] int32 example indices.

    Raises:
      ValueError: if there are fewer examples than one batch holds.

    Example:
      >>> from jaxprune.training.recipes import RECIPES
      >>> batch_order(jax.random.key(0), 100, RECIPES["adam_short"].replace(epochs=2, batch_size=50)).shape
      (4, 50)
    """
    shape = (recipe.num_steps(num_examples), recipe.batch_size)
    num_used = shape[0] // recipe.epochs * recipe.batch_size
    epochs = [
        generator(derive(key, "epoch", epoch)).permutation(num_examples)[:num_used]
        for epoch in range(recipe.epochs)
    ]
    return np.concatenate(epochs).reshape(shape).astype(np.int32)


class StepState(NamedTuple):
    """The state that one step passes to the next."""

    weights: FlatState
    optimiser: optax.OptState
    average: FlatState | None = None
    """The moving average of the weights, for a recipe with `ema`."""

    @property
    def result(self) -> FlatState:
        """The weights that a run ends with: their moving average if there is one."""
        return self.weights if self.average is None else self.average


class StepMeasures(NamedTuple):
    """What one step found on its batch, before it changed the weights."""

    loss: jax.Array
    """The mean loss over the examples that count, a scalar."""
    num_correct: jax.Array
    """The int32 number of rightly classified examples that count."""
    num_examples: jax.Array
    """The int32 number of examples that count."""
    num_unknown: jax.Array
    """How many of these have a label that is no class of the network, int32."""


def make_step(
    network: Network, recipe: Recipe, num_steps: int
) -> tuple[Callable[[FlatState], StepState], Callable[..., StepState]]:
    """Makes the two pure functions of a training run, `init` and `step`.

    Args:
      network: the model without weights.
      recipe: optimiser, schedule, augmentation.
      num_steps: steps of the whole run.

    Returns:
      `init(weights) -> StepState` and
      `step(state, images, labels, key, masks) -> StepState`. `masks` is None or path -> booleans; entries where
      a mask is False are zero after every step, whatever the optimiser does.
    """
    init, measured_step = make_measured_step(network, recipe, num_steps)

    def step(
        state: StepState, images: jax.Array, labels: jax.Array, key: jax.Array, masks: FlatState | None = None
    ) -> StepState:
        return measured_step(state, images, labels, key, masks)[0]

    return init, step


def make_measured_step(
    network: Network,
    recipe: Recipe,
    num_steps: int,
    *,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
    teacher: Teacher | None = None,
) -> tuple[Callable[[FlatState], StepState], Callable[..., tuple[StepState, StepMeasures]]]:
    """Makes `init` and `step` as `make_step` does; the step also returns its loss and its number of right answers.

    Args:
      network, recipe, num_steps: as for `make_step`.
      prepare: is applied to the images after augmentation, such as a normalisation of bytes to floats.
      teacher: None, or what the network learns from beside labels.

    Returns:
      `init(weights) -> StepState` and
      `step(state, images, labels, key, masks=None, counted=None, teacher_weights=None) -> (StepState, StepMeasures)`.
      `counted` is None or [N] float32 weights of the examples: those of weight 0 add nothing to loss and counts, but
      pass through the network with the others, so that batch statistics see them.
    """
    optimiser = recipe.transformation(num_steps)

    def init(weights: FlatState) -> StepState:
        average = (
            jax.tree.map(jnp.copy, weights) if recipe.ema else None
        )  # a donated state holds no array twice
        return StepState(weights, optimiser.init(_trained(network, weights)), average)

    def step(
        state: StepState,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        masks: FlatState | None = None,
        counted: jax.Array | None = None,
        teacher_weights: FlatState | None = None,
    ) -> tuple[StepState, StepMeasures]:
        weights, optimiser_state, average = state
        params = _trained(network, weights)

        def loss(params: FlatState) -> tuple[jax.Array, tuple[FlatState, jax.Array]]:
            x = augment(derive(key, "augment"), images, recipe.augment)
            x = x if prepare is None else prepare(x)
            rest = _reseeded(network.rest, derive(key, "dropout"))
            logits, after = training_pass(
                network.training, network.trained, weights | params, rest, x, recipe.compute
            )
            total = mean_loss(logits, labels, recipe.label_smoothing, counted)
            if teacher is not None:
                soft_logits = teacher.network.logits(teacher_weights or {}, x)
                soft = distillation_loss(logits, soft_logits, teacher.temperature, counted)
                total = (1 - teacher.weight) * total + teacher.weight * soft
            return total, (after, logits)

        (batch_loss, (new_weights, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, params)
        new_weights |= optax.apply_updates(params, updates)
        if masks is not None:
            new_weights = apply_masks(new_weights, masks)
        if average is not None:
            average = {path: _moved(average[path], new_weights[path], recipe.ema) for path in average}
        is_counted = jnp.ones(labels.shape, bool) if counted is None else counted > 0
        is_correct = is_counted & (jnp.argmax(logits, -1) == labels)
        is_unknown = is_counted & ((labels < 0) | (labels >= logits.shape[-1]))
        measures = StepMeasures(
            batch_loss, *(jnp.sum(of, dtype=jnp.int32) for of in (is_correct, is_counted, is_unknown))
        )
        return StepState(new_weights, optimiser_state, average), measures

    return init, step


def _moved(average: Array, array: Array, decay: float) -> Array:
    """A moving average after one more value; of numbers that are no floats it is the last value."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return decay * average + (1 - decay) * array


def count_correct(network: Network, weights: FlatState, examples: Examples) -> jax.Array:
    """Counts rightly classified examples; examples with a non-finite logit count as wrong.

    Examples are evaluated in equal batches (the last one padded with label -1), so that memory does not grow with N.

    Args:
      network: the model without weights.
      weights: path -> array.
      examples: images and labels.

    Returns:
      The int32 count, a scalar.
    """
    num_examples = examples.x.shape[0]
    num_batches = -(-num_examples // EVALUATION_BATCH)
    batch_size = -(-num_examples // num_batches)
    padding = num_batches * batch_size - num_examples
    x = jnp.pad(examples.x, ((0, padding), *((0, 0),) * (examples.x.ndim - 1)))
    y = jnp.pad(examples.y, (0, padding), constant_values=-1)

    def correct(batch: Examples) -> jax.Array:
        logits = network.logits(weights, batch.x)
        is_correct = (jnp.argmax(logits, -1) == batch.y) & jnp.all(jnp.isfinite(logits), -1)
        return jnp.sum(is_correct, dtype=jnp.int32)

    if num_batches == 1:
        return correct(Examples(x, y))
    batches = Examples(x.reshape(num_batches, batch_size, *x.shape[1:]), y.reshape(num_batches, batch_size))
    return jnp.sum(jax.lax.map(correct, batches))


def train(
    network: Network,
    recipe: Recipe,
    weights: FlatState,
    data: Examples,
    validation: Examples,
    order: jax.Array,
    key: jax.Array,
    *,
    masks: FlatState | None = None,
    evaluations: int = 1,
) -> tuple[FlatState, jax.Array]:
    """Trains a network for all steps of `order` and evaluates it along the way; to be jitted by the caller.

    Args:
      network: the model without weights, from `split_network`.
      recipe: optimiser, schedule, augmentation.
      weights: path -> array, the weights to start from.
      data: training examples.
      validation: examples held out of the training set.
      order: [steps, batch] example indices, from `batch_order`.
      key: seeds dropout and augmentation.
      masks: None or path -> booleans, see `make_step`.
      evaluations: number of evaluations, 1 to steps, evenly spread with the last one after the last step.

    Returns:
      The trained weights and [evaluations] int32 counts of rightly classified validation examples.
    """
    num_steps = order.shape[0]
    init, step = make_step(network, recipe, num_steps)
    state = init(weights if masks is None else apply_masks(weights, masks))

    def numbered_step(state: StepState, item: tuple[jax.Array, jax.Array]) -> tuple[StepState, None]:
        number, rows = item
        return step(state, data.x[rows], data.y[rows], jax.random.fold_in(key, number), masks), None

    counts = []
    numbers = jnp.arange(num_steps)
    for first, last in segments(num_steps, evaluations):
        state, _ = jax.lax.scan(numbered_step, state, (numbers[first:last], order[first:last]))
        counts.append(count_correct(network, state.result, validation))
    return state.result, jnp.stack(counts)


def segments(num_steps: int, evaluations: int) -> list[tuple[int, int]]:
    """Splits steps into nearly equal parts, one before each evaluation.

    Args:
      num_steps: number of steps.
      evaluations: number of parts.

    Returns:
      (first step, step after the last) of each part.

    Raises:
      ValueError: if there are more evaluations than steps, or none.

    Example:
      >>> segments(10, 4)
      [(0, 3), (3, 5), (5, 8), (8, 10)]
    """
    if not 1 <= evaluations <= num_steps:
        raise ValueError(
            f"evaluations must be from 1 to the number of training steps, {num_steps}, got {evaluations}."
        )
    ends = [round(num_steps * (i + 1) / evaluations + 1e-9) for i in range(evaluations)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def augment(key: jax.Array, images: jax.Array, kind: Augmentation) -> jax.Array:
    """Changes each image of a batch at random in a way that leaves its label true.

    Args:
      key: a typed key.
      images: [N, H, W, C].
      kind: "none"; or "crop_flip": pads with H // 8 zeros, crops back at a random place, mirrors half of the images.

    Returns:
      [N, H, W, C] of the same dtype.

    Raises:
      ValueError: if `kind` is unknown, or images to crop do not have four axes.

    Example:
      >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 1)), "none").shape
      (2, 8, 8, 1)
    """
    if kind == "none":
        return images
    if kind != "crop_flip":
        raise ValueError(f'augment must be "none" or "crop_flip", got {kind!r}.')
    if images.ndim != 4:
        raise ValueError(
            f'crop_flip needs images [N, H, W, C], got shape {images.shape}. Use a recipe with augment="none".'
        )
    n, height, width, channels = images.shape
    margin = max(1, height // 8)
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    key_crop, key_flip = jax.random.split(key)
    corners = jax.random.randint(key_crop, (n, 2), 0, 2 * margin + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    cropped = jax.vmap(crop)(padded, corners)
    is_mirrored = jax.random.bernoulli(key_flip, 0.5, (n,))[:, None, None, None]
    return jnp.where(is_mirrored, cropped[:, :, ::-1], cropped)


def _trained(network: Network, weights: FlatState) -> FlatState:
    """The arrays that the optimiser changes."""
    return {path: array for path, array in weights.items() if path in network.trained}


def _reseeded(rest: RestState, key: jax.Array) -> RestState:
    """Reseeds every random stream from `key`, so that dropout depends on the key of the step alone."""
    reseeded = {
        path: jax.random.fold_in(key, i) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value
        for i, (path, value) in enumerate(sorted(random_state(rest).items()))
    }
    return {**rest, **reseeded}
