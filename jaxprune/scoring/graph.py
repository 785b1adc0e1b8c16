"""The values of all nodes of many formulas on one set of operands, each computed once.

A `ValueGraph` walks hash-consed expressions and calls one jitted kernel per operator and shape. Recent values are
remembered up to a number of bytes, so equal subtrees of a population are shared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.operators import OPERATORS
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import (
    SETS,
    View,
    evaluated_nodes,
    moment_answer,
    reads_activations,
    swallowed_children,
)
from jaxprune.scoring.lanes import (
    cut_lanes,
    finite_lanes,
    full_lanes,
    is_built_in,
    lane_kernel,
    masks_of,
    moment_table,
    registered_value,
    sample_table,
    split_params,
    weight_table,
)
from jaxprune.scoring.records import Operands
from jaxprune.types import Array

TINY_BYTES = 256 << 10
"""Up to this size of its arguments a kernel is compiled without optimisation."""

NodeKey = tuple[Expression, View | None]
"""A node and the view it reads; None where it reads no activations."""

Hidden = Mapping[NodeKey, Sequence[Array]]
"""Per node that could hide a non-finite argument of itself: [B or 1, C or 1] booleans, False where it did."""


class ValueGraph:
    """Node values of formulas over one set of stacked operands.

    Scalars are kept with all lanes [B, K, C], so that each scalar operator compiles once per layer; other
    values are as small as they can be.

    Args:
      operands: stacked operands.
      cache_bytes: how many bytes of values to remember.
    """

    def __init__(self, operands: Operands, cache_bytes: int) -> None:
        self.operands = operands
        self.lanes = (operands.num_members, operands.num_classes, operands.num_channels)
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._values: OrderedDict[NodeKey, Array] = OrderedDict()
        self._given: dict[NodeKey, Array] = {}
        self._arguments_finite: dict[NodeKey, Sequence[Array]] = {}
        self._finite: dict[NodeKey, np.ndarray] = {}
        self._weights: dict[str, jax.Array] | None = None
        self._moments: dict[View, dict[str, jax.Array]] = {}

    def key(self, node: Expression, view: View) -> NodeKey:
        """What identifies a node's value."""
        if not reads_activations(node):
            return node, None
        return node, "full" if self.operands.sample_is_full else view

    def is_known(self, node: Expression, view: View) -> bool:
        """Whether the value is remembered."""
        key = self.key(node, view)
        return key in self._given or key in self._values

    def give(self, node: Expression, view: View, value: Array, arguments_finite: Hidden) -> None:
        """Remembers a value that was computed elsewhere (in blocks), and what its parts may have hidden."""
        self._given[self.key(node, view)] = value
        self._arguments_finite.update(arguments_finite)

    def value(self, node: Expression, view: View) -> Array:
        """The node's value with lanes; computed if it is not remembered."""
        key = self.key(node, view)
        found = self._given.get(key)
        if found is not None:
            return found
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
            return found
        found = self._compute(node, view)
        self._remember(key, found)
        return found

    def hidden(self, f: Expression, view: View) -> Hidden:
        """What the nodes of a function that has been evaluated may have hidden."""
        keys = [self.key(node, view) for node in evaluated_nodes(f) if swallowed_children(node)]
        return {key: self._arguments_finite[key] for key in keys if key in self._arguments_finite}

    def finite(self, node: Expression, view: View) -> np.ndarray:
        """Whether all real entries of a node's value are finite, over classes: [B or 1, C or 1] booleans."""
        key = self.key(node, view)
        if key not in self._finite:
            masks = masks_of(node.type, self.operands.class_counts)
            self._finite[key] = np.asarray(finite_lanes(self.value(node, view), masks))
        return self._finite[key]

    def _compute(self, node: Expression, view: View) -> Array:
        answer = moment_answer(node)
        if answer is not None:
            return self._moment_table(view)[answer]
        if node.is_literal:
            return jnp.asarray(np.full(self.lanes, node.value, self.operands.dtype))
        if node.is_operand:
            return self._operand(node, view)
        looked_at = swallowed_children(node)
        if looked_at:
            self._arguments_finite[self.key(node, view)] = [
                self._all_finite(node.children[index], view) for index in looked_at
            ]
        static, traced = split_params(node)
        arrays = tuple(self._argument(child, node, view) for child in node.children)
        masks = tuple(masks_of(child.type, self.operands.class_counts) for child in node.children)
        params = tuple(np.asarray(param, self.operands.dtype) for param in traced)
        is_tiny = sum(array.nbytes for array in arrays) <= TINY_BYTES
        kernel = lane_kernel(cast(Hashable, OPERATORS[node.operator].implement), static, is_tiny)
        return kernel(arrays, masks, params, self.lanes if node.type == () else None)

    def _argument(self, child: Expression, node: Expression, view: View) -> Array:
        """A child's value; a scalar that meets larger values is cut to the lanes it depends on."""
        value = self.value(child, view)
        if child.type != () or node.type == ():
            return value
        needed = full_lanes(child, self.lanes)
        return value if needed == self.lanes else cut_lanes(value, needed)

    def _all_finite(self, node: Expression, view: View) -> jax.Array:
        return finite_lanes(self.value(node, view), masks_of(node.type, self.operands.class_counts))

    def _operand(self, node: Expression, view: View) -> Array:
        name = node.name
        if name in SETS or name == "GX":
            return sample_table(self.operands, name)
        if is_built_in(name):
            if self._weights is None:
                self._weights = weight_table(self.operands, self.lanes)
            found = self._weights.get(name)
            return self._moment_table(view)[name] if found is None else found
        value = registered_value(self.operands, name)
        assert value is not None  # the evaluator has refused functions whose operands are missing
        return value if node.type else jnp.broadcast_to(value, self.lanes)

    def _moment_table(self, view: View) -> dict[str, jax.Array]:
        view = "full" if self.operands.sample_is_full else view
        if view not in self._moments:
            self._moments[view] = moment_table(self.operands, view, self.lanes)
        return self._moments[view]

    def _remember(self, key: NodeKey, value: Array) -> None:
        if key in self._values:
            return
        self._values[key] = value
        self._cached_bytes += value.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._values) > 1:
            _, dropped = self._values.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
