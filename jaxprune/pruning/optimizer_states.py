"""Cuts the state of an optimizer along with its network, so that training goes on as if nothing had happened.

Whatever a transformation keeps for each parameter (momentum, second moments, averages of weights, accumulated
gradients) lies in its state at paths that end in the parameter's path. Arrays there that have the parameter's shape
are cut as the parameter is. Counts, rates, random keys and what belongs to parameters that stay whole are kept. What
is as long as something that is cut, but is not known to follow it, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.pruning.tree_paths import Names, Place, find_places, names_of
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import Layout, gather
from jaxprune.structure.model_state import Path, dotted, place_of, shape_beside

OptimizerState = TypeVar("OptimizerState")
"""An `nnx.Optimizer`, or any pytree, such as a state of Optax."""

_NUM_NAMED = 6
"""Arrays that a message names."""
_ADVICE = "Slim without optimizer=, and make a new optimizer for the smaller network."


def slim_optimizer(
    optimizer: OptimizerState,
    structure: Structure,
    kept: Mapping[str, np.ndarray],
    model: nnx.Module,
    smaller: nnx.Module,
) -> OptimizerState:
    """Returns an optimizer for the smaller network, with all that it had gathered about the channels that stay.

    Its next update is that which the optimizer of the masked network makes, for transformations that treat each entry
    on its own or read norms over gradients, which are zero for pruned channels.

    Args:
      optimizer: an `nnx.Optimizer` (or `nnx.ModelAndOptimizer`), a state of Optax, or another pytree that holds
        arrays for the parameters, such as a moving average of them; it is not changed. A tuple of these is a pytree.
      structure: groups of the network.
      kept: group -> rising kept indices of the groups that lose channels.
      model: the network that is slimmed.
      smaller: the slim network.

    Returns:
      The same kind of object. A `ModelAndOptimizer` holds the smaller network.

    Raises:
      TypeError: for an Optax transformation or its name, which have no state.
      ValueError: if the optimizer was made for another network, or its state holds arrays of which it is not known how
        they follow the parameters that are cut; names them.
    """
    if isinstance(optimizer, nnx.Optimizer):
        fields: dict[str, object] = vars(optimizer)
        owned = fields.get("model", model)
        if owned is not model:
            raise ValueError(
                "needs an optimizer of the network that is slimmed, got a ModelAndOptimizer that holds another module. "
                "Pass its own network: slim(optimizer.model, plan, optimizer=optimizer)."
            )
        _check_fits(optimizer, optimizer.opt_state, model)
        state = slim_tree(optimizer.opt_state, structure, kept, is_own=True)
        _check_fits(optimizer, state, smaller, is_cut=True)
        graphdef, variables = nnx.split(optimizer)
        copied = nnx.merge(graphdef, jax.tree.map(lambda array: array, variables))  # merging keeps variables
        copied.opt_state = nnx.data(state)
        copied.step.set_value(_cut(copied.step.get_value(), None, kept))
        if "model" in fields:
            setattr(copied, "model", smaller)  # noqa: B010 - only a ModelAndOptimizer has it
        return copied
    return slim_tree(optimizer, structure, kept)


def slim_tree(
    tree: OptimizerState, structure: Structure, kept: Mapping[str, np.ndarray], *, is_own: bool = False
) -> OptimizerState:
    """Returns a pytree whose arrays at the paths of parameters are cut as these are.

    Args:
      tree: any pytree.
      structure: groups of the network.
      kept: group -> rising kept indices; groups left out stay whole.
      is_own: whether it is known that the tree was made for this network.

    Returns:
      A tree of the same structure. All its arrays are new ones, on the devices of those that they replace.

    Raises:
      TypeError: for an Optax transformation.
      ValueError: as `slim_optimizer`.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> from jaxprune.structure.tracing import trace_structure
      >>> structure = trace_structure(PlainConvNet(nnx.Rngs(0), widths=(4, 4, 4)), np.zeros((1, 8, 8, 1), np.float32))
      >>> momentum = {"count": np.zeros(()), "trace": {"conv1": {"bias": np.arange(4.0)}}}
      >>> slim_tree(momentum, structure, {"conv1.kernel": np.array([1, 3])})["trace"]["conv1"]["bias"]
      Array([1., 3.], dtype=float32)
    """
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if any(callable(leaf) or isinstance(leaf, str) for _, leaf in keyed):
        raise TypeError(
            f"optimizer needs an nnx.Optimizer or the state of an Optax transformation, got {type(tree).__name__} with "
            "functions or texts in it. Pass what transformation.init(params) returned, after its last update."
        )
    names = [names_of(keys) for keys, _ in keyed]
    leaves = [
        _Leaf(jax.tree_util.keystr(keys), own, leaf, place)
        for (keys, leaf), own, place in zip(keyed, names, find_places(names, structure.shapes), strict=True)
    ]
    cutter = _Cutter(structure, kept)
    cutter.check(leaves, is_own=is_own)
    new = [_cut(leaf.value, cutter.layout_of(leaf), kept) for leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, new)


def _cut(value: Any, layout: Layout | None, kept: Mapping[str, np.ndarray]) -> object:  # noqa: ANN401 - of any pytree
    """What a leaf of a state becomes; nothing is compiled. Without a layout it is copied, if it is an array of JAX."""
    if layout is None:
        return (
            jax.device_put(value, value.sharding, may_alias=False) if isinstance(value, jax.Array) else value
        )
    if isinstance(value, jax.ShapeDtypeStruct):
        return shape_beside(jax.eval_shape(lambda array: gather(array, layout, kept), value), value)
    array = gather(np.asarray(jax.device_get(value)), layout, kept)
    return jax.device_put(array, place_of(value, array.shape))


class _Leaf(NamedTuple):
    """A leaf of a state."""

    title: str
    names: Names
    value: Any
    place: Place | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; () for what is no array."""
        return tuple(getattr(self.value, "shape", ()))

    @property
    def is_kept_as_it_is(self) -> bool:
        """Whether it is one number, or a random key."""
        dtype = getattr(self.value, "dtype", None)
        if dtype is None or prod(self.shape) <= 1 or jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return True
        return dtype == np.uint32 and self.shape in ((2,), (4,))  # a key as raw numbers


class _Cutter:
    """Knows which arrays of a network are cut, and where.

    Args:
      structure: groups of the network.
      kept: group -> kept indices.
    """

    def __init__(self, structure: Structure, kept: Mapping[str, np.ndarray]) -> None:
        self._shapes, self._layouts = structure.shapes, structure.layouts
        self._cut_axes = {
            path: [axis for axis, fields in enumerate(layout) if any(field.group in kept for field in fields)]
            for path, layout in structure.layouts.items()
        }
        self._lengths = {self._shapes[path][axis] for path, axes in self._cut_axes.items() for axis in axes}
        self._lengths |= {prod(self._shapes[path]) for path, axes in self._cut_axes.items() if axes}
        self._lengths.add(sum(prod(self._shapes[path]) for path in structure.trained))

    def layout_of(self, leaf: _Leaf) -> Layout | None:
        """Returns how an array is cut; None if it stays as it is."""
        if leaf.place is None or leaf.is_kept_as_it_is or not self._cut_axes.get(leaf.place.parameter):
            return None
        return self._follow(leaf, leaf.place.parameter)

    def check(self, leaves: Sequence[_Leaf], *, is_own: bool) -> None:
        """Checks that it is known of all arrays how they follow the network's.

        Raises:
          ValueError: if not; names them.
        """
        arrays = [leaf for leaf in leaves if not leaf.is_kept_as_it_is]
        if foreign := [] if is_own else list(self._foreign(arrays)):
            raise ValueError(
                f"needs an optimizer that was made for this network, got {_listed(foreign)}. Pass the optimizer whose "
                "updates this network was trained with."
            )
        if unknown := list(self._unknown(arrays)):
            raise ValueError(
                f"cannot cut all of the optimizer's state exactly: {_listed(unknown)}. {_ADVICE}"
            )

    def _foreign(self, arrays: Sequence[_Leaf]) -> Iterator[str]:
        """Arrays that cannot be of this network, in words."""
        roots = {leaf.place.before for leaf in arrays if leaf.place and self._is_mirrored(leaf)}
        for leaf in arrays:
            if leaf.place is None:
                if any(root and leaf.names[: len(root)] == root for root in roots):
                    yield f"{leaf.title}, which is at no path of the network"
            elif not leaf.place.after and not self._is_mirrored(leaf):
                shape = self._shapes[leaf.place.parameter]
                if len(leaf.shape) == len(shape):
                    yield f"{leaf.title} {leaf.shape} where {dotted(leaf.place.parameter)} is {shape}"
        if arrays and all(leaf.place is None for leaf in arrays):
            yield f"{', '.join(leaf.title for leaf in arrays[:_NUM_NAMED])}, and nothing at a path of the network"

    def _unknown(self, arrays: Sequence[_Leaf]) -> Iterator[str]:
        """Arrays that follow what is cut in a way that is not known, in words."""
        for leaf in arrays:
            if leaf.place is None:
                if not self._lengths.isdisjoint(leaf.shape):
                    yield f"{leaf.title} {leaf.shape} has the size of something that is cut, but no parameter's path"
                continue
            path = leaf.place.parameter
            if not self._cut_axes.get(path) or self._follow(leaf, path) is not None:
                continue
            shape = self._shapes[path]
            how = "is not of its shape"
            if leaf.shape in _without_each_axis(shape):
                how = "holds means over an axis that is cut, as Adafactor's factored moments do"
            yield f"{leaf.title} {leaf.shape} belongs to {dotted(path)} {shape} and {how}"

    def _is_mirrored(self, leaf: _Leaf) -> bool:
        return leaf.place is not None and leaf.shape == self._shapes[leaf.place.parameter]

    def _follow(self, leaf: _Leaf, path: Path) -> Layout | None:
        """Returns the layout of an array that belongs to a parameter that is cut; None if it is not known.

        It has the parameter's shape, or that of several such arrays, or lacks an axis that stays whole.
        """
        shape, layout = self._shapes[path], self._layouts[path]
        if leaf.shape == shape:
            return layout
        num_more = len(leaf.shape) - len(shape)
        if num_more > 0 and leaf.shape[num_more:] == shape:
            return ((),) * num_more + layout if self._lengths.isdisjoint(leaf.shape[:num_more]) else None
        missing = [axis for axis, left in enumerate(_without_each_axis(shape)) if left == leaf.shape]
        if len(missing) != 1 or missing[0] in self._cut_axes[path]:
            return None
        return layout[: missing[0]] + layout[missing[0] + 1 :]


def _check_fits(
    optimizer: nnx.Optimizer[Any], state: object, model: nnx.Module, *, is_cut: bool = False
) -> None:
    """Checks that an optimizer would start with a state of these shapes for a network; nothing is computed."""
    parameters = nnx.state(model, optimizer.wrt)
    fresh = jax.eval_shape(lambda state: nnx.as_pure(optimizer.tx.init(state)), parameters)
    expected, found = (_shapes_by_name(tree) for tree in (fresh, nnx.as_pure(state)))
    problems = [
        f"{name} {found.get(name, 'nothing')} where this network needs {expected.get(name, 'nothing')}"
        for name in dict.fromkeys((*found, *expected))
        if found.get(name) != expected.get(name)
    ]
    if problems and is_cut:
        raise ValueError(
            f"cannot cut all of the optimizer's state exactly, because it has another form for the smaller network: "
            f"{_listed(problems)}. {_ADVICE}"
        )
    if problems:
        raise ValueError(
            f"needs an optimizer that was made for this network, got {_listed(problems)}. Pass the optimizer whose "
            "updates this network was trained with."
        )


def _shapes_by_name(tree: object) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(keys): tuple(getattr(leaf, "shape", ())) for keys, leaf in leaves}


def _without_each_axis(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes that lack one axis."""
    return [shape[:axis] + shape[axis + 1 :] for axis in range(len(shape))] if len(shape) > 1 else []


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _NUM_NAMED} others" if len(problems) > _NUM_NAMED else ""
    return "; ".join(problems[:_NUM_NAMED]) + more
