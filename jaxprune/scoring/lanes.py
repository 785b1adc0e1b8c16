"""Values with lanes: an operator made for one channel and one class, run for all of them at once.

Every value is an array [B, K, C, *axes of its type]: members, classes, channels, each of size 1 where the value does
not depend on it. Sample axes of classes of unequal size are padded and carry masks [1, K, 1, size].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.language.axes import Type
from jaxprune.language.operands import OPERANDS
from jaxprune.language.operators import Implementation, Params
from jaxprune.language.tree import Expression
from jaxprune.scoring.analysis import View
from jaxprune.scoring.moments import SetMoments, class_sets
from jaxprune.scoring.records import Operands
from jaxprune.types import Array

NUM_LANES = 3
LaneMasks = tuple[tuple[Array | None, ...], ...]
_TRACED_PARAMS = frozenset({"rbf"})  # parameters that are ordinary numbers: a new width compiles nothing


def apply_lanes(
    implement: Implementation,
    arrays: Sequence[Array],
    masks: LaneMasks,
    params: Params,
) -> jax.Array:
    """Runs a one-channel, one-class implementation over all lanes, never repeating a lane of size 1.

    Example:
      >>> from jaxprune.language.operators import OPERATORS
      >>> values = jnp.ones((1, 1, 3, 4))
      >>> apply_lanes(OPERATORS["sum"].implement, [values], ((None,),), ()).tolist()
      [[[4.0, 4.0, 4.0]]]
    """
    leaves, treedef = jax.tree.flatten((tuple(arrays), masks))
    sizes = tuple(max(leaf.shape[lane] for leaf in leaves) for lane in range(NUM_LANES))
    has_lane = [[leaf.shape[lane] > 1 for lane in range(NUM_LANES)] for leaf in leaves]

    def one(*parts: jax.Array) -> jax.Array:
        values, own_masks = jax.tree.unflatten(treedef, parts)
        return implement(*values, masks=own_masks, params=params)

    function = one
    for lane in reversed(range(NUM_LANES)):
        if sizes[lane] > 1:
            function = jax.vmap(function, in_axes=tuple(0 if has[lane] else None for has in has_lane))
    squeezed = [
        jnp.reshape(leaf, (*(size for size in leaf.shape[:NUM_LANES] if size > 1), *leaf.shape[NUM_LANES:]))
        for leaf in leaves
    ]
    result = function(*squeezed)
    return result.reshape(sizes + result.shape[sum(size > 1 for size in sizes) :])


def split_params(node: Expression) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A node's parameters as (static, traced): one of the two is empty."""
    return ((), node.params) if node.operator in _TRACED_PARAMS else (node.params, ())


@lru_cache(maxsize=256)
def class_rows(class_counts: tuple[int, ...]) -> Mapping[str, tuple[np.ndarray, np.ndarray | None]]:
    """Rows of the class-sorted sample that belong to `P` and `Q`, padded, and which of them are real.

    Returns:
      Set name -> ([K, size] row indices, [1, K, 1, size] booleans or None when nothing is padded).

    Example:
      >>> rows, is_real = class_rows((2, 1))["P"]
      >>> rows.tolist(), is_real[0, :, 0].tolist()
      ([[0, 1], [2, 2]], [[True, True], [True, False]])
    """
    ids = np.repeat(np.arange(len(class_counts)), class_counts)
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for name, belongs in {"P": lambda k: ids == k, "Q": lambda k: ids != k}.items():
        rows = [np.flatnonzero(belongs(k)) for k in range(len(class_counts))]
        size = max(map(len, rows))
        padded = np.stack([np.concatenate([row, np.full(size - len(row), row[0])]) for row in rows])
        is_real = np.stack([np.arange(size) < len(row) for row in rows])[None, :, None]
        found[name] = (padded.astype(np.int32), None if is_real.all() else is_real)
    return found


def masks_of(type: Type, class_counts: tuple[int, ...]) -> tuple[Array | None, ...]:
    """The mask of each axis of a value: for sample axes of unequal classes [1, K, 1, size], else None."""
    by_axis = {"N": "P", "NQ": "Q"}
    return tuple(class_rows(class_counts)[by_axis[axis]][1] if axis in by_axis else None for axis in type)


def axis_sizes(operands: Operands, view: View) -> dict[str, int]:
    """The size of every axis of one layer, with `K` classes and `C` channels of the layer."""
    moments = operands.moments if view == "full" else operands.sample_moments
    counts = operands.class_counts
    sizes = {
        "D": moments.pivot.shape[-2],
        "NX": sum(counts),
        "N": max(counts),
        "NQ": sum(counts) - min(counts),
    }
    sizes |= {"F": operands.filters.shape[-2], "C": operands.bank.shape[-1], "K": len(counts)}
    return sizes | {"O": 0 if operands.outgoing is None else operands.outgoing.shape[-2]}


def weight_values(operands: Operands) -> dict[str, jax.Array]:
    """`WI W WO gamma beta GW` of stacked operands, as values with lanes; only those that are present."""
    gradient = operands.gradients.weights if operands.gradients is not None else None
    values = {
        "WI": jnp.swapaxes(operands.filters, -1, -2)[:, None],
        "GW": None if gradient is None else jnp.swapaxes(gradient, -1, -2)[:, None],
        "W": operands.bank[:, None, None],
        "WO": None if operands.outgoing is None else jnp.swapaxes(operands.outgoing, -1, -2)[:, None],
        "gamma": None if operands.gamma is None else operands.gamma[:, None],
        "beta": None if operands.beta is None else operands.beta[:, None],
    }
    return {name: value for name, value in values.items() if value is not None}


def moment_values(operands: Operands, view: View) -> dict[str, jax.Array]:
    """Class sizes and all moments of stacked operands: `N`, `mean(P)`, `mean_samples(X)` and so on.

    Class sizes are [B, K, 1], scalars [B, K or 1, C], position means [B, K or 1, C, D].
    """
    moments = operands.moments if view == "full" else operands.sample_moments

    def one_member(member: object) -> dict[str, jax.Array]:
        values: dict[str, jax.Array] = {}
        for name, found in class_sets(member).items():  # type: ignore[arg-type]
            values |= {f"{operator}({name})": value for operator, value in _set_values(found).items()}
            values[{"X": "NX", "P": "N", "Q": "NQ"}[name]] = found.num_examples[:, None]
        return values

    return jax.vmap(one_member)(moments)


def sample_values(operands: Operands, name: str) -> jax.Array:
    """`X`, `P`, `Q` or `GX` of stacked operands: [B, K or 1, C, rows, D], rows of smaller classes padded."""
    samples = operands.samples
    if name == "GX":
        gradients = operands.gradients
        assert gradients is not None and gradients.samples is not None  # missing_operands has looked
        samples = gradients.samples
    rows = jnp.transpose(samples, (0, 3, 1, 2))  # [B, C, n, D]
    if name in ("X", "GX"):
        return rows[:, None]
    index, _ = class_rows(operands.class_counts)[name]
    gathered = jnp.take(rows, index.reshape(-1), axis=2)
    shape = (*rows.shape[:2], *index.shape, rows.shape[-1])
    return jnp.moveaxis(gathered.reshape(shape), 2, 1)


def registered_value(operands: Operands, name: str) -> jax.Array | None:
    """The value of a registered operand, read member by member, or None where the layer has none.

    Raises:
      ValueError: if its array has not the shape its type promises.
    """
    record = OPERANDS[name]
    found = []
    for index in range(operands.num_members):
        member = operands.member(index) if operands.is_stacked else operands
        value = member.extras.get(name) if record.read is None else record.read(member)
        if value is None:
            return None
        found.append(jnp.asarray(value, operands.dtype))
    stacked = jnp.stack(found)
    lanes = 2 if record.per_class else 1
    wanted = (operands.num_channels, operands.num_classes)[:lanes]
    if stacked.ndim != 1 + lanes + len(record.type) or stacked.shape[1 : 1 + lanes] != wanted:
        axes = ", ".join(("C", "K")[:lanes] + record.type)
        raise ValueError(
            f"operand {name} must be read as [{axes}] with {operands.num_channels} channels, "
            f"got shape {stacked.shape[1:]}. Check what its `read` returns."
        )
    return jnp.swapaxes(stacked, 1, 2) if record.per_class else stacked[:, None]


def is_built_in(name: str) -> bool:
    """Whether scoring itself knows the operand's value (it may still be absent from a layer)."""
    return OPERANDS[name].read is None


def _set_values(found: SetMoments) -> dict[str, jax.Array]:
    """Every moment of a set of examples with lanes [L, C]."""
    variance = found.entry_variance
    count = jnp.broadcast_to(found.num_entries[:, None], variance.shape)
    return {
        "mean_samples": jnp.swapaxes(found.mean, 1, 2),
        "mean": found.entry_mean,
        "var": variance,
        "std": jnp.sqrt(variance),
        "sum": found.entry_mean * count,
        "count": count,
    }
