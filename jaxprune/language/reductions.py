"""Operators that summarise the entries of a value: `sum product mean std var count mean_samples`.

Each reads masks, because padding may hold anything, NaN included: padded entries are replaced, never multiplied
away. Means and variances are taken relative to the first real entry, so a constant is exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxprune.language.operators import AxisMasks, Fragment, Params, register_operator


def real_entries(array: jax.Array, masks: AxisMasks | None) -> jax.Array | None:
    """Which entries of `array` are real: booleans of its shape, or None when all are."""
    if masks is None or all(mask is None for mask in masks):
        return None
    is_real = jnp.ones(array.shape, bool)
    for axis, mask in enumerate(masks):
        if mask is not None:
            others = tuple(other for other in range(array.ndim) if other != axis)
            is_real = is_real & jnp.expand_dims(mask, others)
    return is_real


def zero_padding(array: jax.Array, masks: AxisMasks | None) -> jax.Array:
    """The array with 0 wherever an entry is padding."""
    is_real = real_entries(array, masks)
    return array if is_real is None else jnp.where(is_real, array, 0)


def _of(masks: Sequence[AxisMasks] | None, index: int) -> AxisMasks | None:
    return None if masks is None else masks[index]


def _sum(values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()) -> jax.Array:
    return jnp.sum(zero_padding(values, _of(masks, 0)))


def _product(
    values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()
) -> jax.Array:
    is_real = real_entries(values, _of(masks, 0))
    return jnp.prod(values if is_real is None else jnp.where(is_real, values, 1))


def _count(values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()) -> jax.Array:
    is_real = real_entries(values, _of(masks, 0))
    return jnp.asarray(values.size if is_real is None else jnp.sum(is_real), values.dtype)


def _mean(values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()) -> jax.Array:
    mean, deviations, count = _centred(values, _of(masks, 0))
    return mean + jnp.sum(deviations) / count


def _var(values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()) -> jax.Array:
    _, deviations, count = _centred(values, _of(masks, 0))
    return jnp.sum(jnp.square(deviations)) / count


def _std(values: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()) -> jax.Array:
    return jnp.sqrt(_var(values, masks=masks))


def _mean_samples(
    samples: jax.Array, *, masks: Sequence[AxisMasks] | None = None, params: Params = ()
) -> jax.Array:
    rows = masks[0][0] if masks is not None else None
    is_real = jnp.ones(samples.shape[:1], bool) if rows is None else rows
    count = jnp.sum(is_real)
    mean = samples[jnp.argmax(is_real)]
    for _ in range(2):  # see _centred
        mean = mean + jnp.sum(jnp.where(is_real[:, None], samples - mean[None], 0), axis=0) / count
    return mean


def _centred(values: jax.Array, masks: AxisMasks | None) -> tuple[jax.Array, jax.Array, jax.Array | int]:
    """A close estimate of the mean, the deviations from it with 0 in the padding, and the number of real entries.

    The estimate starts at the first real entry: a constant is exact, and what is left to add up is small, so that
    long float32 sums keep their digits (differences of kernel means need them).
    """
    flat = values.reshape(-1)
    is_real = real_entries(values, masks)
    if is_real is None:
        mean = flat[0] + jnp.sum(values - flat[0]) / values.size
        return mean, values - mean, values.size
    first, count = flat[jnp.argmax(is_real.reshape(-1))], jnp.sum(is_real)
    mean = first + jnp.sum(jnp.where(is_real, values - first, 0)) / count
    return mean, jnp.where(is_real, values - mean, 0), count


def _mean_samples_latex(arguments: Sequence[Fragment], params: Params) -> str:
    return rf"\operatorname{{mean}}_{{n}}\left({arguments[0].text}\right)"


_MEAN = '''\
def mean(values):
    """Mean of all entries; relative to the first one, so that a constant is exact."""
    first = values.reshape(-1)[0]
    return first + np.mean(values - first)'''

_VARIANCE = '''\
def variance(values):
    """Mean squared deviation of all entries; relative to the first one, so that a constant gives exactly 0."""
    shifted = values - values.reshape(-1)[0]
    return np.mean(np.square(shifted - np.mean(shifted)))'''

_SAMPLE_MEAN = '''\
def sample_mean(samples):
    """Mean of the rows of [n, D] samples; relative to the first row, so that a constant is exact."""
    return samples[0] + np.mean(samples - samples[:1], 0)'''

_COUNT = {
    "numpy": "np.asarray(np.size({0}), dtype=X.dtype)",
    "jax": "jnp.asarray(jnp.size({0}), dtype=X.dtype)",
    "torch": "torch.asarray(torch.numel({0}), dtype=X.dtype)",
}

_WHOLE = ("* -> ()",)

register_operator("sum", _sum, signatures=_WHOLE, uses_masks=True, code="np.sum({0})")
register_operator("product", _product, signatures=_WHOLE, uses_masks=True, code="np.prod({0})")
register_operator("mean", _mean, signatures=_WHOLE, uses_masks=True, code="mean({0})", helper=_MEAN)
register_operator(
    "std", _std, signatures=_WHOLE, uses_masks=True, code="np.sqrt(variance({0}))", helper=_VARIANCE
)
register_operator("var", _var, signatures=_WHOLE, uses_masks=True, code="variance({0})", helper=_VARIANCE)
register_operator("count", _count, signatures=_WHOLE, uses_masks=True, code=_COUNT)
register_operator(
    "mean_samples",
    _mean_samples,
    signatures=("(n,d) -> (d)",),
    uses_masks=True,
    latex=_mean_samples_latex,
    code="sample_mean({0})",
    helper=_SAMPLE_MEAN,
)
