"""How one node of a graph is computed from its inputs, with NumPy or JAX, and a cache of computed values.

Every way of evaluating a formula computes its nodes here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol, cast

from jaxprune.language.axes import SAMPLE_AXES, Type
from jaxprune.language.basic_operators import real_entries
from jaxprune.language.operators import OPERATORS, AxisMasks, Params
from jaxprune.scoring.set_statistics import ClassRows, pair_statistics, row_statistics
from jaxprune.types import Array, Namespace


class Computation(Protocol):
    """What to compute: a node of a graph, or the specification of a program."""

    @property
    def kind(self) -> str:
        """As in `Node`."""

    @property
    def name(self) -> str:
        """Name of the operator or the statistic."""

    @property
    def params(self) -> Params:
        """Parameters of the operator."""

    @property
    def type(self) -> Type:
        """Axes of the result; for statistics those of the value that they describe."""


CACHED_VALUES = 1024
"""Values that are kept between calls: those of some generations. On a small network the formulas, which are keys, take
more memory than the values, so that a limit on bytes alone is no limit."""

Value = Any
"""An array [M, K or 1, C or 1, *axes], or a mapping of them for a node of kind `statistics`."""


def compute_node(
    xp: Namespace,
    node: Computation,
    values: Sequence[Value],
    rows: ClassRows,
    *,
    masks: Sequence[AxisMasks] | None = None,
    params: Sequence[Array | float] | None = None,
) -> Value:
    """Computes the value of a node that has inputs.

    Args:
      xp: `numpy` or `jax.numpy`.
      node: what to compute.
      values: of its inputs.
      rows: which rows of the sample belong to which class.
      masks: for each input which entries are real, None where all are.
      params: parameters to use instead of the node's.

    Returns:
      [M, K or 1, C or 1, *axes], or a mapping of such arrays for a node of kind `statistics`.
    """
    if node.kind == "rows":
        return rows.select(xp, values[0], node.type)
    if node.kind == "statistics":
        if sum(axis in SAMPLE_AXES for axis in node.type) == 2:
            return pair_statistics(xp, values[0], rows)
        positions = masks[0][-1] if masks is not None and len(node.type) == 2 else None
        return row_statistics(xp, values[0], rows, positions)
    if node.kind == "statistic":
        statistics: Mapping[str, Array] = values[0]
        return statistics[node.name]
    if node.kind == "finite":  # [M, 1, C] 1 where all entries over all classes are finite, else 0
        value = values[0]
        is_finite = xp.isfinite(value)
        real = None if masks is None else real_entries(xp, value, masks[0])
        if real is not None:
            is_finite = is_finite | ~real
        return is_finite.all(axis=(1, *range(3, value.ndim)))[:, None].astype(value.dtype)
    own_params = node.params if params is None else cast(Params, params)
    return OPERATORS[node.name].implement(xp, *values, masks=masks, params=own_params)


class ValueCache:
    """Values of nodes by what they compute; the least recently used are dropped when they are too many or too large.

    Args:
      max_bytes: of all values together.
      max_entries: number of keys.

    Example:
      >>> import numpy as np
      >>> cache = ValueCache(max_bytes=100, max_entries=2)
      >>> cache.add("a", [np.ones(8)]), cache.add("b", [np.ones(8)])
      (None, None)
      >>> cache.get("a") is None, cache.get("b") is None
      (True, False)
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._max_bytes, self._max_entries, self._bytes = max_bytes, max_entries, 0
        self._values: OrderedDict[Hashable, Sequence[Array]] = OrderedDict()

    def get(self, key: Hashable) -> Sequence[Array] | None:
        """Returns the values of a key, or None if they are not cached."""
        values = self._values.get(key)
        if values is not None:
            self._values.move_to_end(key)
        return values

    def add(self, key: Hashable, values: Sequence[Array]) -> None:
        """Caches values, and drops those that were not used for longest if there are too many.

        Args:
          key: what the values are cached under.
          values: NumPy or JAX arrays.
        """
        if key in self._values:
            return
        self._values[key] = values
        self._bytes += sum(value.nbytes for value in values)
        while self._values and (self._bytes > self._max_bytes or len(self._values) > self._max_entries):
            _, dropped = self._values.popitem(last=False)
            self._bytes -= sum(value.nbytes for value in dropped)
