"""What a network is called with: one array, several, keywords, or any pytree of arrays.

`Inputs` is how a caller writes it. `example_of` decides once what a batch means: which call of the network it stands
for, and which of its arrays have a batch axis. The `Example` that it returns has shapes in place of arrays; everything
that runs a network gets the arrays alone, in the example's order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.types import Array, is_whole

Batch = Any
"""What a network takes: an array, a dict or other pytree, a tuple of arguments, or `Inputs`; shapes may stand in."""

Outputs = Any
"""What a network returns: an array or any pytree."""

_Part = Any
"""A part of a batch, or of its description as plain data."""

Call = Literal["argument", "arguments", "inputs"]
"""Whether a batch is the only argument, a tuple of positional arguments, or `Inputs`."""

_SCALARS = (bool, int, float, str)


@jax.tree_util.register_pytree_with_keys_class
class Inputs:
    """The positional and keyword arguments of a network's call, as one batch.

    It stands wherever an example or images are taken. Arrays whose first axis is as long as that of the first array
    with axes are batched; others, such as a scalar or a table that all examples share, are passed whole. Values that
    are no arrays (`True`, `None`, a text) are passed as they are and may decide what the network's code does.

    Args:
      args: positional arguments, each an array or any pytree.
      kwargs: keyword arguments, likewise.

    Example:
      >>> batch = Inputs(np.zeros((4, 8)), mask=np.ones((4, 8)), train=False)
      >>> batch
      Inputs([4, 8], mask=[4, 8], train=False)
    """

    def __init__(self, *args: Batch, **kwargs: Batch) -> None:
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        """Shows shapes in place of arrays."""
        shown = jax.tree.map(
            lambda leaf: _Shown(list(leaf.shape) if _is_array(leaf) else leaf), (self.args, self.kwargs)
        )
        parts = [*map(repr, shown[0]), *(f"{name}={value!r}" for name, value in shown[1].items())]
        return f"Inputs({', '.join(parts)})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[int, tuple[str, ...]]]:
        """Returns arguments by their places, and what is static: their number and the keywords."""
        names = tuple(sorted(self.kwargs))
        positional = [(jax.tree_util.SequenceKey(i), value) for i, value in enumerate(self.args)]
        return [*positional, *((jax.tree_util.DictKey(name), self.kwargs[name]) for name in names)], (
            len(self.args),
            names,
        )

    @classmethod
    def tree_unflatten(cls, static: tuple[int, tuple[str, ...]], children: Iterable[Any]) -> Inputs:
        """Inverts `tree_flatten_with_keys`."""
        (count, names), values = static, list(children)
        return cls(*values[:count], **dict(zip(names, values[count:], strict=True)))


@dataclass(frozen=True)
class _Shown:
    """Shows a value inside a pytree as its text."""

    value: object

    def __repr__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, eq=False)
class Example:
    """The shapes of a batch as a network takes it; equal for batches of equal shapes, types and static values."""

    batch: Batch
    """As the caller gave it, with `jax.ShapeDtypeStruct` in place of arrays."""
    call: Call
    is_batched: tuple[bool, ...]
    """For each array whether its first axis is the batch."""

    @cached_property
    def arrays(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each array, in the order in which all that run a network take them."""
        return tuple(leaf for leaf in jax.tree.leaves(self.batch) if _is_array(leaf))

    @property
    def first(self) -> jax.ShapeDtypeStruct:
        """The first array with a batch axis."""
        return self.arrays[self.is_batched.index(True)]

    @property
    def batch_size(self) -> int:
        """How many examples the batch has."""
        return int(self.first.shape[0])

    @property
    def is_one_array(self) -> bool:
        """Whether the network takes a single array and nothing else."""
        return self.call == "argument" and _is_array(self.batch)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Where each array is in the batch, such as `left` or `0.ids`; `images` if it is the only one."""
        if self.is_one_array:
            return ("images",)
        paths = jax.tree_util.tree_flatten_with_path(self.batch)[0]
        return tuple(
            ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
            for path, leaf in paths
            if _is_array(leaf)
        )

    @property
    def words(self) -> str:
        """Shapes and dtypes for messages."""
        if self.is_one_array:
            return f"images of shape {self.batch.shape} and dtype {self.batch.dtype}"
        parts = (f"{n} {a.shape} {a.dtype}" for n, a in zip(self.names, self.arrays, strict=True))
        return f"inputs of shapes {', '.join(parts)}"

    def with_batch_size(self, size: int) -> Example:
        """Returns the same with another number of examples."""
        arrays = [
            jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) if is_batched else array
            for array, is_batched in zip(self.arrays, self.is_batched, strict=True)
        ]
        return Example(self.fill(arrays), self.call, self.is_batched)

    def fill(self, arrays: Iterable[Any]) -> Batch:
        """Returns a batch of the caller's form that holds some arrays."""
        leaves, treedef = jax.tree.flatten(self.batch)
        rest = iter(arrays)
        return jax.tree.unflatten(treedef, [next(rest) if _is_array(leaf) else leaf for leaf in leaves])

    def call_network(self, network: Callable[..., Any], arrays: Iterable[Any]) -> Outputs:
        """Calls a network with some arrays and returns its outputs."""
        batch = self.fill(arrays)
        if self.call == "inputs":
            return network(*batch.args, **batch.kwargs)
        return network(*batch) if self.call == "arguments" else network(batch)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        leaves, treedef = jax.tree.flatten(self.batch)
        kinds = tuple((leaf.shape, leaf.dtype) if _is_array(leaf) else (type(leaf), leaf) for leaf in leaves)
        return treedef, kinds, self.call, self.is_batched

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def to_record(self) -> dict[str, Any]:
        """Returns plain data that `from_record` reads.

        Raises:
          ValueError: if the batch holds other containers than dicts, lists, tuples and `Inputs`.
        """
        flags = iter(self.is_batched)
        return {"call": self.call, "batch": _to_plain(self.batch, flags)}

    @classmethod
    def from_record(cls, record: object) -> Example:
        """Returns the example that `to_record` described.

        Raises:
          ValueError: if the record is of another form.
        """
        if not isinstance(record, Mapping) or record.get("call") not in ("argument", "arguments", "inputs"):
            raise ValueError("inputs must have a call and a batch")
        flags: list[bool] = []
        batch = _from_plain(record.get("batch"), flags)
        wanted = {"arguments": tuple, "inputs": Inputs}.get(record["call"], object)
        if not isinstance(batch, wanted) or True not in flags:
            raise ValueError(f"a batch of {record['call']} does not have that form, or has no batch axis")
        return cls(batch, cast(Call, record["call"]), tuple(flags))


def example_of(batch: Batch | Example, network: nnx.Module | None = None) -> Example:
    """Decides what a batch means for a network: the one place that does.

    A tuple is the positional arguments of a network that takes several, and the argument itself of a network whose
    `__call__` takes exactly one. Where the signature leaves both open (`*args`, optional arguments), the network is run
    on shapes: with positional arguments first. A named tuple, like any other pytree, is one argument.

    Args:
      batch: arrays or their shapes, as the network takes them; an `Example` is returned as it is.
      network: the network; it is not changed. Without one a tuple is one argument.

    Returns:
      The example, in types of numbers that JAX has.

    Raises:
      ValueError: if no array has a batch axis.

    Example:
      >>> example_of({"ids": np.zeros((4, 6), np.int32), "scale": np.float32(2.0)}).is_batched
      (True, False)
    """
    if isinstance(batch, Example):
        return batch
    shapes = jax.tree.map(_shape_of, batch)
    arrays = [leaf for leaf in jax.tree.leaves(shapes) if _is_array(leaf)]
    sizes = [array.shape[0] for array in arrays if array.shape]
    if not sizes:
        got = "a scalar" if arrays else f"no array: {batch!r:.60}"
        raise ValueError(f"needs an example with a batch axis, got {got}. Pass images[:1].")
    is_batched = tuple(bool(array.shape) and array.shape[0] == sizes[0] for array in arrays)
    if isinstance(batch, Inputs):
        return Example(shapes, "inputs", is_batched)
    as_argument = Example(shapes, "argument", is_batched)
    if type(batch) is not tuple or network is None:
        return as_argument
    as_arguments = Example(shapes, "arguments", is_batched)
    takes_several = _takes_several(network, len(batch))
    if takes_several is None:
        takes_several = _runs(network, as_arguments) or not _runs(network, as_argument)
    return as_arguments if takes_several else as_argument


def arrays_of(batch: Batch) -> tuple[Array, ...]:
    """Returns the arrays of a batch, in the order of its example.

    Example:
      >>> [array.shape for array in arrays_of(Inputs(np.ones((2, 3)), mask=np.ones(2), train=False))]
      [(2, 3), (2,)]
    """
    return tuple(leaf for leaf in jax.tree.leaves(batch) if _is_array(leaf))


def random_values(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns values that a network may take: normal ones, or zeros for whole numbers, which are an index everywhere.

    Example:
      >>> random_values(jax.ShapeDtypeStruct((2,), "int32"))
      Array([0, 0], dtype=int32)
    """
    is_real = jnp.issubdtype(shape.dtype, jnp.inexact)
    values = np.random.default_rng(0).normal(size=shape.shape) if is_real else np.zeros(shape.shape)
    return jax.device_put(values.astype(shape.dtype))


def abstract_call(
    model: nnx.Module, example: Example
) -> tuple[Callable[..., Any], nnx.State[Any, Any], list[jax.ShapeDtypeStruct]]:
    """Returns a function that runs a copy of a model in evaluation mode, and what to call it with.

    Args:
      model: NNX module; it is not changed, and its arrays may be abstract.
      example: as the model takes it.

    Returns:
      `(forward, arrays, inputs)`: `forward(arrays, inputs)` returns the outputs, and may be traced.
    """
    # The view shares the caller's variables; splitting and merging puts a copy between it and the traced call.
    view = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graphdef, arrays, *others = nnx.split(view, lambda path, variable: holds_array(variable), ...)

    def forward(arrays: nnx.State[Any, Any], inputs: Sequence[Any]) -> Outputs:
        network = cast(Callable[..., Any], nnx.merge(graphdef, arrays, *others, copy=True))
        return example.call_network(network, inputs)

    return forward, arrays, list(example.arrays)


def holds_array(variable: object) -> bool:
    """Tells whether a variable holds one array, or the shape of one, rather than a number, a text or a tuple.

    Example:
      >>> holds_array(nnx.Param(jax.numpy.ones(2))), holds_array(nnx.Variable(3))
      (True, False)
    """
    value = variable.get_raw_value() if isinstance(variable, nnx.Variable) else variable
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_array(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape_of(leaf: _Part) -> _Part:
    """Returns the shape and the dtype that JAX gives an array; other leaves stay."""
    if not _is_array(leaf):
        return leaf
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.extended):  # random keys are of no other type
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(tuple(leaf.shape), dtype)


def _takes_several(network: nnx.Module, count: int) -> bool | None:
    """Whether a network's signature takes so many positional arguments, not one; None if it leaves both open."""
    parameters = list(inspect.signature(type(network).__call__).parameters.values())[1:]
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    num_needed = sum(parameter.default is kinds.empty for parameter in positional)
    if any(parameter.kind is kinds.VAR_POSITIONAL for parameter in parameters):
        return True if num_needed > 1 else None
    if len(positional) == 1:
        return False
    return True if num_needed > 1 or count > len(positional) else None


def _runs(network: nnx.Module, example: Example) -> bool:
    """Whether a network runs on some shapes."""
    forward, *arguments = abstract_call(network, example)
    try:
        jax.eval_shape(forward, *arguments)
    except Exception:  # whatever the network's code raises for arguments that it does not take
        return False
    return True


def _to_plain(value: _Part, flags: Iterator[bool]) -> _Part:
    """Returns a part of a batch as plain data."""
    if _is_array(value):
        plain = {"shape": list(value.shape), "dtype": str(value.dtype)}
        return plain if next(flags) else {**plain, "batched": False}
    if value is None or isinstance(value, _SCALARS):
        return {"value": value}
    if isinstance(value, Inputs):
        # in the order of the leaves
        args = [_to_plain(part, flags) for part in value.args]
        return {"args": args, "kwargs": {k: _to_plain(value.kwargs[k], flags) for k in sorted(value.kwargs)}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_to_plain(part, flags) for part in value]}
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return {"dict": {name: _to_plain(value[name], flags) for name in sorted(value)}}
    raise ValueError(
        "a plan is written with inputs made of dicts with texts as keys, lists, tuples and jaxprune.Inputs, got "
        f"{type(value).__name__}. Give the network one of these, or keep the plan in memory."
    )


def _from_plain(plain: _Part, flags: list[bool]) -> _Part:
    """Inverts `_to_plain`, and appends which arrays have a batch axis."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"a part of the inputs must be an object, got {plain!r:.60}")
    if "shape" in plain:
        is_batched = plain.get("batched", True)
        if (
            not is_shape(plain["shape"])
            or not is_dtype(plain.get("dtype"))
            or not isinstance(is_batched, bool)
        ):
            raise ValueError(
                f"an array of the inputs must have a shape and a dtype of JAX, got {plain!r:.60}"
            )
        flags.append(is_batched)
        return jax.ShapeDtypeStruct(tuple(plain["shape"]), np.dtype(plain["dtype"]))
    kinds = {"list": list, "tuple": tuple}
    for name, kind in kinds.items():
        if isinstance(plain.get(name), list):
            return kind([_from_plain(part, flags) for part in plain[name]])
    if isinstance(plain.get("dict"), Mapping):
        return {name: _from_plain(part, flags) for name, part in sorted(plain["dict"].items())}
    if isinstance(plain.get("args"), list) and isinstance(plain.get("kwargs"), Mapping):
        args = [_from_plain(part, flags) for part in plain["args"]]
        return Inputs(*args, **{name: _from_plain(p, flags) for name, p in sorted(plain["kwargs"].items())})
    if "value" in plain and (plain["value"] is None or isinstance(plain["value"], _SCALARS)):
        return plain["value"]
    raise ValueError(f"a part of the inputs is neither array, container nor value, got {plain!r:.60}")


def is_shape(value: object) -> bool:
    """Tells whether a value of a plan is the shape of an array.

    Example:
      >>> is_shape([1, 8]), is_shape([]), is_shape([0]), is_shape("18")
      (True, True, False, False)
    """
    return isinstance(value, list | tuple) and all(is_whole(s, smallest=1) and s < 2**31 for s in value)


def is_dtype(value: object) -> bool:
    """Tells whether a value of a plan names a type of numbers that JAX has.

    Example:
      >>> is_dtype("bfloat16"), is_dtype("text"), is_dtype(3)
      (True, False, False)
    """
    try:
        return isinstance(value, str) and (
            np.dtype(value) == bool or bool(jnp.issubdtype(np.dtype(value), jnp.number))
        )
    except TypeError:
        return False
