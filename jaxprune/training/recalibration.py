"""Recalibrates batch norm: new running statistics from images, without training.

Running statistics are those of the network before it was pruned, or lag behind its weights. Here each batch is
normalised by its own statistics, and means and variances are joined over batches exactly:

    mean = sum_b n_b m_b / N        var = sum_b n_b (v_b + (m_b - mean)^2) / N

for n_b images in batch b with mean m_b and variance v_b. If one batch holds all images, these are the statistics of the
population in every layer. With several, they are exact in the first layer, and behind it those of activations that
were normalised batch by batch. Going through the layers one after the other would be exact there too, at the cost of
one pass over all images for each layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.nets.inputs import Batch, Example, arrays_of, example_of
from jaxprune.observation.examples import read_batches
from jaxprune.structure.model_state import (
    FlatState,
    Path,
    RestState,
    dotted,
    merge_model,
    merge_to_run,
    put_beside,
    split_model,
)
from jaxprune.types import Array, is_whole


def recalibrate(model: nnx.Module, images: Batch | Iterable[Any], *, batch_size: int = 256) -> nnx.Module:
    """Returns a copy of a network whose batch norms have the statistics of some images, or other inputs.

    Statistics are exact if one batch holds all images; see above for several. Dropout is off, and weights stay as they
    are. The network may be of any mode, and keeps it. A batch norm that is called several times in a pass gets the
    statistics of its last call.

    Args:
      model: any NNX model with batch norm; it is not changed.
      images: [N, ...] finite images, or any other batch as the network takes it, without labels: those it was trained
        on, best several hundred. Also an iterable of batches, or of (batch, labels), as for `observe`; it is read once.
      batch_size: most images in a pass; the images, or each batch of an iterable, are split evenly.

    Returns:
      A new model of the same shapes on the same devices.

    Raises:
      ValueError: if the network has no batch norm, or none that uses the statistics of a batch in any mode; if there
        are no images, or they give statistics that are not finite; or if `batch_size` is not a whole number >= 1.

    Example:
      >>> recalibrate(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)).mean[...]
      Array([1., 1.], dtype=float32)

    Source:
      Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, sec. 3.2 (PreciseBN), with the variance between batches.
    """
    if not is_whole(batch_size, smallest=1):
        raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}.")
    graphdef, flat, rest = split_model(model)
    norms = list(_batch_norms(model))
    if not norms:
        raise ValueError(
            "recalibrate needs a network with batch norm (nnx.BatchNorm with running statistics), got none. "
            "A network without it has nothing to recalibrate."
        )
    evaluated = split_model(model, "evaluation")[0]
    measure = jax.jit(
        lambda flat, arrays, example: _measure(evaluated, rest, flat, arrays, example), static_argnums=2
    )
    counts, measured = [], []
    for example, arrays in _parts(model, images, int(batch_size)):
        counts.append(example.batch_size)
        measured.append(jax.device_get(measure(flat, arrays, example)))
    if not counts:
        raise ValueError("recalibrate needs at least one batch, got none. Is the iterable empty?")
    new = _joined(measured, np.array(counts))
    if not new:
        raise ValueError(
            "recalibrate needs batch norms that can use the statistics of a batch, but code of the network makes "
            f"{_named(norms)} use running ones. Leave use_running_average to the mode (model.train(), model.eval())."
        )
    if left := [path for path in norms if (*path, "mean") not in new]:
        warnings.warn(
            f"{_named(left)} saw no batch and keep their statistics: the network does not use these batch norms, or "
            "its code fixes use_running_average."
        )
    if bad := [path for path, array in new.items() if not np.isfinite(array).all()]:
        raise ValueError(
            f"recalibrate needs finite activations, got NaN or infinite statistics in {_named(bad)}. "
            "Check the images and the weights."
        )
    host = {path: array.astype(flat[path].dtype) for path, array in new.items()}
    return merge_model(graphdef, {**flat, **put_beside(host, flat)}, rest)


def _parts(
    model: nnx.Module, images: Batch | Iterable[Any], batch_size: int
) -> Iterator[tuple[Example, list[Array]]]:
    """Yields what the network takes, in parts of no more than some examples."""
    for batch in read_batches(images):
        arrays = arrays_of(batch)
        if arrays and (arrays[0] is batch and arrays[0].ndim < 2 or 0 in arrays[0].shape[:1]):
            raise ValueError(f"recalibrate needs images [N, ...], got an array of shape {arrays[0].shape}.")
        example = example_of(batch, model)
        size = example.batch_size
        for rows in np.array_split(np.arange(size), -(-size // batch_size)):
            part = [
                np.asarray(array)[rows[0] : rows[-1] + 1] if is_batched else array
                for array, is_batched in zip(arrays, example.is_batched, strict=True)
            ]
            yield example.with_batch_size(len(rows)), part


def _batch_norms(model: nnx.Module) -> dict[Path, nnx.BatchNorm]:
    """Path -> batch norm of a model."""
    modules: Iterable[tuple[Any, object]] = nnx.iter_modules(model)
    return {path: module for path, module in modules if isinstance(module, nnx.BatchNorm)}


def _measure(
    graphdef: nnx.GraphDef[nnx.Module],
    rest: RestState,
    flat: FlatState,
    arrays: Sequence[jax.Array],
    example: Example,
) -> dict[Path, tuple[jax.Array, jax.Array]]:
    """Returns mean and variance of a batch in every batch norm that it enters, by the norm's path."""
    model = merge_to_run(graphdef, flat, rest)
    norms, before = _batch_norms(model), {}
    for path, norm in norms.items():
        norm.use_running_average, norm.momentum = (
            False,
            0.0,
        )  # the running statistics become those of this batch
        before[path] = jnp.zeros(norm.mean.shape, norm.mean.dtype)
        norm.mean.set_value(before[path])
        norm.var.set_value(before[path])
    example.call_network(cast(Callable[..., Any], model), arrays)
    return {
        path: (norm.mean.get_value(), norm.var.get_value())
        for path, norm in norms.items()
        if norm.mean.get_value() is not before[path]
    }


def _joined(
    measured: Sequence[Mapping[Path, tuple[np.ndarray, np.ndarray]]], counts: np.ndarray
) -> dict[Path, np.ndarray]:
    """Joins the means and variances of batches of so many images; returns them by the paths of their arrays."""
    joined: dict[Path, np.ndarray] = {}
    for path in measured[0]:
        means, variances = (
            np.stack([np.asarray(batch[path][number], np.float64) for batch in measured]) for number in (0, 1)
        )
        mean = np.average(means, axis=0, weights=counts)
        joined[*path, "mean"] = mean
        joined[*path, "var"] = np.average(variances + np.square(means - mean[None]), axis=0, weights=counts)
    return joined


def _named(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 6} others" if len(paths) > 6 else ""
    return ", ".join(dotted(path) or "the network itself" for path in paths[:6]) + more
