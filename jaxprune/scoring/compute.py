"""How one step is computed from its inputs, with NumPy or JAX; every way of evaluating goes through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from jaxprune.language.axes import SAMPLE_AXES, Type
from jaxprune.language.basic_operators import real_entries
from jaxprune.language.operators import OPERATORS, AxisMasks, Params
from jaxprune.scoring.set_statistics import ClassRows, pair_statistics, row_statistics
from jaxprune.types import Array, Namespace


class Computation(Protocol):
    """What to compute: a step of a graph, or the specification of a program."""

    @property
    def kind(self) -> str:
        """As in `Step`."""

    @property
    def name(self) -> str:
        """Of the operator or the statistic."""

    @property
    def params(self) -> Params:
        """Of the operator."""

    @property
    def type(self) -> Type:
        """Axes of the result; for statistics those of what they are of."""


Value = Any
"""An array [M, K or 1, C or 1, *axes], or a mapping of them for a step of kind `statistics`."""


def compute_step(
    xp: Namespace,
    step: Computation,
    values: Sequence[Value],
    rows: ClassRows,
    *,
    masks: Sequence[AxisMasks] | None = None,
    params: Sequence[Array | float] | None = None,
) -> Value:
    """The value of a step that has inputs.

    Args:
      xp: `numpy` or `jax.numpy`.
      step: what to compute.
      values: of its inputs.
      rows: which rows of the sample are of which class.
      masks: what is real of each input, None where all is.
      params: instead of the step's own.
    """
    if step.kind == "rows":
        return rows.select(xp, values[0], step.type)
    if step.kind == "statistics":
        if sum(axis in SAMPLE_AXES for axis in step.type) == 2:
            return pair_statistics(xp, values[0], rows)
        positions = masks[0][-1] if masks is not None and len(step.type) == 2 else None
        return row_statistics(xp, values[0], rows, positions)
    if step.kind == "statistic":
        found: Mapping[str, Array] = values[0]
        return found[step.name]
    if step.kind == "finite":
        return _finite(xp, values[0], masks)
    own = step.params if params is None else cast(Params, params)
    return OPERATORS[step.name].implement(xp, *values, masks=masks, params=own)


def _finite(xp: Namespace, value: Array, masks: Sequence[AxisMasks] | None) -> Array:
    """[M, 1, C] 1 where all entries over all classes are finite, else 0."""
    is_finite = xp.isfinite(value)
    real = None if masks is None else real_entries(xp, value, masks[0])
    if real is not None:
        is_finite = is_finite | ~real
    return is_finite.all(axis=(1, *range(3, value.ndim)))[:, None].astype(value.dtype)
