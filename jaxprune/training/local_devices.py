"""Spreads independent members over all local devices: rows of one chunk of members on each device.

What decides the bits of a result is how many members the program of one device holds (see docs/fine_tuning.md). So
every device gets a chunk of one fixed size, the last row is padded, and nothing is summed or exchanged between devices:
any number of devices, one among them, gives the same bits by the same code and one compilation. Members enter and leave
by the host, so that what is computed with them later compiles for one device alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_Tree = TypeVar("_Tree")
_Result = TypeVar("_Result")

_AXIS = "member"


def row_size(chunk: int) -> int:
    """Returns how many members all local devices take together.

    Args:
      chunk: members on each device.

    Example:
      >>> row_size(4) == 4 * jax.local_device_count()
      True
    """
    return chunk * jax.local_device_count()


def on_all_devices(tree: _Tree) -> _Tree:
    """Returns arrays with a whole copy on every local device; arrays that have one already are returned as they are.

    Args:
      tree: any tree of arrays.

    Example:
      >>> on_all_devices(jnp.ones(3)).is_fully_replicated
      True
    """
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def over_devices(program: Callable[..., _Result]) -> Callable[..., _Result]:
    """Compiles a function of one member into one of a row, with an equal share of the members on each local device.

    Args:
      program: a function (member, *shared) of trees of arrays, the same for every member but for its first argument.

    Returns:
      The compiled function ([M, ...] members, *shared) -> [M, ...] results, M a multiple of the number of devices. It
      compiles once for each M, whatever the number of devices.

    Example:
      >>> double = over_devices(lambda x, factor: x * factor)
      >>> np.asarray(double(np.ones(row_size(2)), np.float32(2)))[:2]
      array([2., 2.], dtype=float32)
    """
    mesh, split, whole = _mesh(), PartitionSpec(_AXIS), PartitionSpec()

    def row(members: object, *shared: object) -> _Result:
        share = jax.vmap(program, in_axes=(0, *(None for _ in shared)))
        specs = (split, *(whole for _ in shared))
        # The check of what varies between devices refuses loops that start from constants.
        spread = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        result: _Result = spread(members, *shared)
        return result

    return jax.jit(row)


def stack_row(members: Sequence[_Tree], size: int) -> _Tree:
    """Stacks members for `over_devices`, each on its device; copies of the last one fill the row.

    Args:
      members: at least one tree of arrays, all of equal shapes.
      size: length of the row, a multiple of the number of local devices and at least the number of members.

    Returns:
      The tree with arrays [size, ...].

    Example:
      >>> stack_row([np.arange(2)], row_size(1)).shape == (row_size(1), 2)
      True
    """
    padded = [*members, *[members[-1]] * (size - len(members))]
    stacked: _Tree = jax.tree.map(lambda *leaves: _stack(leaves), *padded)
    return jax.device_put(stacked, NamedSharding(_mesh(), PartitionSpec(_AXIS)))


def unstack_row(row: _Tree, num_members: int) -> list[_Tree]:
    """Returns the first members of a row of `over_devices`, as arrays of the default device.

    Args:
      row: a tree of arrays [size, ...].
      num_members: number of members, without the padding.

    Example:
      >>> unstack_row(np.arange(3.0), 1)
      [Array(0., dtype=float32)]
    """
    fetched = jax.device_get(row)
    # Copies: a slice would keep the memory of the whole row.
    return [jax.tree.map(lambda leaf, i=i: jnp.array(leaf[i]), fetched) for i in range(num_members)]


def _stack(leaves: Sequence[jax.Array | np.ndarray]) -> jax.Array | np.ndarray:
    """Stacks on the host, where nothing compiles; only typed keys cannot go there."""
    if isinstance(leaves[0], jax.Array) and jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    return np.stack(jax.device_get(leaves))


def _mesh() -> Mesh:
    """All local devices in a line."""
    return Mesh(np.array(jax.local_devices()), (_AXIS,))
