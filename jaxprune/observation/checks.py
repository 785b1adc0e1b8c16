"""Checks of the arrays that callers pass in, made before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.vocabulary import OPERANDS
from jaxprune.observation.gradients import Gradients, gradients_from_arrays
from jaxprune.observation.moments import Moments, sample_moments
from jaxprune.observation.sample import flat_positions
from jaxprune.types import Array

_RANKS = {
    "features": ((2, 3, 4), "[N, H, W, C], [N, L, C] or [N, C]"),
    "kernel": ((2, 3, 4), "[kh, kw, c_in, C], [k, c_in, C] or [c_in, C]"),
    "outgoing": ((2, 3, 4), "[kh, kw, C, c_out], [k, C, c_out] or [C, c_out]"),
    "gamma": ((1,), "[C]"),
    "beta": ((1,), "[C]"),
    "weight_gradient": ((2, 3, 4), "[kh, kw, c_in, C], [k, c_in, C] or [c_in, C]"),
    "feature_gradient": ((2, 3, 4), "[N, H, W, C], [N, L, C] or [N, C]"),
    "squared_weight_gradient": ((2, 3, 4), "[kh, kw, c_in, C], [k, c_in, C] or [c_in, C]"),
}
_GRADIENT_OF = {
    "weight_gradient": "kernel",
    "feature_gradient": "features",
    "squared_weight_gradient": "kernel",
}


class FlatWeights(TypedDict):
    """The weights around the channels, and the normalisation that follows them."""

    kernel: jax.Array  # [F, C]
    outgoing: jax.Array | None  # [O, C]
    gamma: jax.Array | None  # [C]
    beta: jax.Array | None  # [C]


class BuildArguments(NamedTuple):
    """The arguments of `Operands.build`, which describes them."""

    moments: Moments
    samples: jax.Array
    sample_labels: np.ndarray
    kernel: jax.Array
    outgoing: jax.Array | None
    gamma: jax.Array | None
    beta: jax.Array | None
    gradients: Gradients | None
    extras: dict[str, jax.Array]
    sample_is_full: bool
    space: tuple[int, ...]


def check_arrays(
    features: Array,
    labels: Array,
    kernel: Array,
    optional: Mapping[str, Array | None],
    extras: Mapping[str, Array],
) -> BuildArguments:
    """Checks the arguments of `Operands.from_arrays` and brings them into the shapes of `Operands.build`.

    Args:
      features: as in `Operands.from_arrays`.
      labels: as there.
      kernel: as there.
      optional: outgoing, gamma, beta and the gradients by name, None where not given.
      extras: as there.

    Returns:
      The arguments of `Operands.build`, in one dtype.

    Raises:
      ValueError: saying which argument was needed in which form, what came, and what to change.
    """
    arrays, extra_arrays = check_numbers({"features": features, "kernel": kernel, **optional}, extras)
    class_ids, num_classes = to_class_ids(check_labels(labels, arrays["features"].shape[0]))
    space = arrays["features"].shape[1:-1]
    # NumPy reshapes, and device_put moves: jnp.asarray and reshape would compile programs for each new shape.
    rows = jax.device_put(flat_positions(arrays["features"]))
    gradients = [arrays.get(name) for name in ("weight_gradient", "feature_gradient")]
    return BuildArguments(
        moments=sample_moments(rows, class_ids, num_classes=num_classes),
        samples=rows,
        sample_labels=class_ids,
        gradients=gradients_from_arrays(rows, *gradients),
        extras=jax.device_put(extra_arrays),
        sample_is_full=True,
        space=space,
        **flat_weights(arrays),
    )


def check_numbers(
    arguments: Mapping[str, Array | None], extras: Mapping[str, Array], dtype: np.dtype | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Brings arguments of `Operands.from_arrays` to one dtype, after checking shapes and that all are finite.

    The squared weight gradient moves to the extras, where `GW2` is read.

    Args:
      arguments: arrays by the name of the argument, `features` among them; None where one was not given.
      extras: values of registered operands by name.
      dtype: of the result; by default what all dtypes promote to, at least float32.

    Returns:
      (arguments that were given, extras), as NumPy arrays by name.

    Raises:
      ValueError: for ranks, sizes or kinds that do not fit, NaN and infinities.
    """
    arrays = {name: np.asarray(value) for name, value in arguments.items() if value is not None}
    extra_arrays = {name: np.asarray(value) for name, value in extras.items()}
    _check_ranks(arrays)
    for name, original in _GRADIENT_OF.items():
        if name in arrays and arrays[name].shape != arrays[original].shape:
            raise ValueError(
                f"{name} must have the shape of {original}, {arrays[original].shape}, got shape "
                f"{arrays[name].shape}. Differentiate the loss with respect to {original}, as they are given."
            )
    _check_channels(arrays, extra_arrays)
    dtypes = [
        jax.dtypes.canonicalize_dtype(array.dtype) for array in (*arrays.values(), *extra_arrays.values())
    ]
    wide = jnp.result_type(jnp.float32, *dtypes) if dtype is None else dtype
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the check finds
        arrays = {name: array.astype(wide, copy=False) for name, array in arrays.items()}
        extra_arrays = {name: array.astype(wide, copy=False) for name, array in extra_arrays.items()}
    _check_finite(arrays | {f"extras[{name!r}]": value for name, value in extra_arrays.items()}, wide)
    squares = arrays.pop("squared_weight_gradient", None)
    if squares is not None:
        if squares.min() < 0:
            raise ValueError(
                f"squared_weight_gradient must be >= 0, got {squares.min():.3g}. Square each example's own gradient, "
                "then average over examples."
            )
        extra_arrays["GW2"] = squares.reshape(-1, squares.shape[-1]).T
    return arrays, extra_arrays


def flat_weights(arrays: Mapping[str, np.ndarray]) -> FlatWeights:
    """Brings weights and normalisation into the shapes of the record, one column per channel.

    Args:
      arrays: `kernel` [..., C] and, where given, `outgoing` [..., C, c_out], `gamma` [C] and `beta` [C].
    """
    kernel, outgoing = arrays["kernel"], arrays.get("outgoing")
    channels = kernel.shape[-1]
    weights: FlatWeights = jax.device_put(
        {
            "kernel": kernel.reshape(-1, channels),
            "outgoing": None if outgoing is None else np.moveaxis(outgoing, -2, -1).reshape(-1, channels),
            "gamma": arrays.get("gamma"),
            "beta": arrays.get("beta"),
        }
    )
    return weights


def check_labels(
    labels: Array, num_examples: int, *, owner: str = "", allow_strings: bool = True
) -> np.ndarray:
    """Returns labels as a NumPy array [N], after checking that there is one for each example.

    Args:
      labels: whole numbers or strings.
      num_examples: N.
      owner: what the labels belong to, put before error messages ("digits, train split: ", say).
      allow_strings: whether labels may be other than whole numbers.

    Raises:
      ValueError: if the shape is not [N], or labels are neither whole numbers nor (where allowed) strings.
    """
    values = np.asarray(labels)
    if values.shape != (num_examples,):
        raise ValueError(
            f"{owner}needs one label for each of {num_examples} examples, got labels of shape {values.shape}. "
            "Pass the labels of exactly these examples; one-hot labels become numbers by labels.argmax(-1)."
        )
    is_inexact = values.dtype == object or np.issubdtype(values.dtype, np.inexact)
    if is_inexact or not (allow_strings or np.issubdtype(values.dtype, np.integer)):
        kinds = "whole numbers or strings" if allow_strings else "whole numbers"
        raise ValueError(f"{owner}labels must be {kinds}, got dtype {values.dtype}. Use labels.astype(int).")
    return values


def check_real(images: np.ndarray, *, owner: str = "") -> None:
    """Refuses images that are not real numbers but texts, objects, times or complex numbers.

    Args:
      images: [N, ...].
      owner: what the images belong to, put before the error message ("digits, train split: ", say).

    Raises:
      ValueError: if a cast to floating-point numbers would fail, or lose something without a word.
    """
    if jnp.issubdtype(images.dtype, jnp.complexfloating):
        raise ValueError(
            f"{owner}needs images that hold real numbers, got dtype {images.dtype}. Use their real part or magnitude."
        )
    if not jnp.issubdtype(images.dtype, jnp.number) and images.dtype != bool:
        raise ValueError(
            f"{owner}needs images that hold numbers, got dtype {images.dtype}. Stack them: np.stack(images)."
        )


def to_class_ids(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers classes 0 .. K-1 in sorted order of their labels.

    Args:
      labels: [N], as `check_labels` returns them.

    Returns:
      [N] int32 class ids, and K.

    Raises:
      ValueError: if there is only one class.
    """
    classes, ids = np.unique(labels, return_inverse=True)
    check_several_classes(classes.tolist(), len(labels))
    return ids.astype(np.int32).reshape(-1), len(classes)


def check_several_classes(classes: Sequence[object], num_examples: int) -> None:
    """Refuses a single class.

    Args:
      classes: the distinct labels.
      num_examples: how many examples there are, for the message.

    Raises:
      ValueError: if there is only one.
    """
    if len(classes) < 2:
        found = f"only class {classes[0]!r} in {num_examples} labels" if classes else "no labels"
        raise ValueError(f"scoring needs at least two classes, got {found}. Add examples of another class.")


def check_sample(
    moments: Moments,
    samples: jax.Array,
    labels: np.ndarray,
    kernel: jax.Array,
    outgoing: jax.Array | None,
    space: tuple[int, ...] | None,
    *,
    least_classes: int = 2,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Checks the arguments of `Operands.build`.

    Args:
      moments, samples, labels, kernel, outgoing, space: as there.
      least_classes: fewer are refused.

    Returns:
      ([K] number of sample rows of each class, spatial shape of the sample: one long axis where `space` is None).

    Raises:
      ValueError: if shapes do not fit together or a class has no example.
    """
    num_classes = moments.count.shape[0]
    if samples.ndim != 3 or labels.shape != samples.shape[:1]:
        raise ValueError(
            "Operands.build needs samples [n, D, C] with sample_labels [n], "
            f"got shapes {samples.shape} and {labels.shape}. Flatten the positions into one axis."
        )
    _, num_positions, channels = samples.shape
    for name, array in {"moments.pivot": moments.pivot, "kernel": kernel, "outgoing": outgoing}.items():
        if array is not None and (array.ndim != 2 or array.shape[-1] != channels):
            raise ValueError(
                f"Operands.build needs {name} with two axes, the last of {channels} channels as in samples, "
                f"got shape {array.shape}."
            )
    if num_classes < least_classes:
        raise ValueError(
            f"scoring needs at least two classes, got {num_classes}. Add examples of another class."
        )
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"sample_labels must be class ids 0 .. {num_classes - 1}, got {labels.min()} .. {labels.max()}."
        )
    counts = np.bincount(labels, minlength=num_classes)
    absent = set(np.flatnonzero(counts == 0).tolist())
    if not isinstance(moments.count, jax.core.Tracer):
        absent |= set(np.flatnonzero(np.asarray(moments.count) == 0).tolist())
    if absent:
        raise ValueError(
            f"each of the {num_classes} classes needs an example, but {sorted(absent)} have none. "
            "Add examples of these classes, or count only the classes that occur."
        )
    shape = (num_positions,) if space is None else tuple(int(length) for length in space)
    if math.prod(shape) != num_positions:
        raise ValueError(
            f"space must hold the {num_positions} positions of samples, got {shape} with {math.prod(shape)}. "
            "Pass the shape of the activations without examples and channels."
        )
    return tuple(int(count) for count in counts), shape


def check_channel_indices(channel_indices: Array | Sequence[int], num_channels: int) -> jax.Array:
    """Returns channel indices as an integer array, checked unless they are traced.

    Args:
      channel_indices: [c] indices.
      num_channels: how many channels there are.

    Raises:
      ValueError: if an index is negative or not below `num_channels`.
    """
    if isinstance(channel_indices, jax.core.Tracer):
        return channel_indices.astype(jnp.int32)
    index = np.asarray(channel_indices, dtype=np.int32)
    if index.ndim != 1 or index.size == 0 or index.min() < 0 or index.max() >= num_channels:
        raise ValueError(
            f"take needs a list of channel indices in 0 .. {num_channels - 1}, got {index.tolist()}."
        )
    return jax.device_put(index)


def sort_examples(name: str, value: jax.Array, order: np.ndarray) -> jax.Array:
    """Brings the `NX` axis of a registered operand into the order of the sorted sample.

    Args:
      name: of the operand.
      value: [C, *axes].
      order: [n] for each row of the sorted sample, its index in `value`.

    Returns:
      [C, *axes].

    Raises:
      ValueError: if no operand of that name was registered.
    """
    if name not in OPERANDS:
        raise ValueError(f"extras must be registered operands, got {name!r}. Call register_operand first.")
    if OPERANDS[name].read is None:
        raise ValueError(
            f"extras must be operands of one's own, got {name!r}, which is built in. It has an argument of its own "
            "or follows from features and labels (GW is weight_gradient=, GX feature_gradient=)."
        )
    for axis, axis_name in enumerate(OPERANDS[name].type):
        if axis_name == "NX":
            value = jnp.take(value, order, axis=axis + 1)
    return value


def _check_ranks(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        ranks, shapes = _RANKS[name]
        if array.ndim not in ranks or array.size == 0:
            raise ValueError(
                f"{name} must be a non-empty {shapes} array, got shape {array.shape}. "
                f"The channel axis is last{' but one' if name == 'outgoing' else ''}."
            )
        if array.dtype == object or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise ValueError(f"{name} must hold numbers, got dtype {array.dtype}.")
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}.")


def _check_channels(arrays: Mapping[str, np.ndarray], extras: Mapping[str, np.ndarray]) -> None:
    counts = {name: array.shape[-2 if name == "outgoing" else -1] for name, array in arrays.items()}
    counts |= {f"extras[{name!r}]": value.shape[0] if value.ndim else 0 for name, value in extras.items()}
    wrong = {name: count for name, count in counts.items() if count != counts["features"]}
    if wrong:
        raise ValueError(
            f"all operands must have the {counts['features']} channels of features, got "
            + ", ".join(f"{name} with {count}" for name, count in wrong.items())
            + ". Kernels are [..., c_in, c_out] and features channels-last; transpose what is channels-first."
        )


def _check_finite(arrays: Mapping[str, np.ndarray], dtype: np.dtype) -> None:
    wrong = []
    for name, array in arrays.items():
        num_bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if num_bad:
            wrong.append(f"{num_bad} of {array.size} in {name}")
    if wrong:
        raise ValueError(
            f"operands must be finite, got NaN or infinite values: {', '.join(wrong)}. "
            f"Check that the network did not diverge and that all fit {dtype}, or drop these examples."
        )
