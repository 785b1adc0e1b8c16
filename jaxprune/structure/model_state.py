"""Takes a Flax NNX network apart into a static graph, a flat dictionary of arrays and its random state, and back.

Everything that changes a network works on the flat dictionary (path -> array), so the caller's model is never
edited: `split_model` takes it apart and `merge_model` builds a new one. The state of random numbers (keys and counters
of dropout) is kept apart, because it is neither scored nor cut, and so is what is no array.

Arrays are those that the network stores. A `Variable` may change its value whenever it is read (by `on_get_value` or a
`get_value` of its own); that happens where the network's code reads it, and nowhere else.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.nets.inputs import holds_array
from jaxprune.types import Array

Path: TypeAlias = tuple[str | int, ...]
"""Where an array lives in a model: `("conv1", "kernel")`; positions in an `nnx.List` are whole numbers."""

FlatState: TypeAlias = dict[Path, Array]
"""Path -> NumPy or JAX array, for parameters and batch statistics (and any other non-random variable)."""

RestState: TypeAlias = dict[Path, Array | nnx.Variable[Any]]
"""Path -> array of random state, or a variable that is passed on as it is."""

RunMode: TypeAlias = Literal["evaluation", "training"]
"""What batch norm and dropout are switched to."""
Mode: TypeAlias = Literal["as_is"] | RunMode

_LEAVES = (
    nnx.Variable,
    jax.Array,
    np.ndarray,
    str,
    int,
    float,
    complex,
    bytes,
    type(None),
    FunctionType,
    type,
)
"""Types of attributes that hold no module."""
_KINDS: dict[type, str] = {}
"""How to search values of a type for modules, cached: module, leaf, sequence, mapping or graph node."""


class Parts(NamedTuple):
    """A model taken apart."""

    graphdef: nnx.GraphDef[nnx.Module]
    flat: FlatState
    rest: RestState
    """The state of random numbers, and variables that are passed on as they are: those that hold no array (numbers,
    texts, tuples ...) and what the network sowed."""
    trained: frozenset[Path]
    """Paths of the parameters (`nnx.Param`) among `flat`, without batch statistics."""
    model: nnx.Module
    """The model itself, unchanged."""


def dotted(path: Path) -> str:
    """Returns the name that a user sees for a path.

    Example:
      >>> dotted(("layers", 0, "kernel"))
      'layers.0.kernel'
    """
    return ".".join(str(part) for part in path)


def split_model(
    model: nnx.Module, mode: Mode = "as_is"
) -> tuple[nnx.GraphDef[nnx.Module], FlatState, RestState]:
    """Takes a model apart into a static graph, its arrays by path, and its random state by path.

    The model itself is not changed: batch norm and dropout are switched on a copy,
    and only the arrays (which JAX never changes in place) are handed out.

    Args:
      model: any NNX module.
      mode: `"evaluation"` uses running statistics and no dropout, `"training"` the opposite, `"as_is"` leaves both as
        they are.

    Returns:
      `(graphdef, flat, rest)`; `merge_model` puts them together again. Equal architectures have equal graphs. `flat`
      holds the arrays as they are stored, `rest` random state and variables that hold no array.

    Raises:
      TypeError: if `model` is not an NNX module.

    Example:
      >>> graphdef, flat, rest = split_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> {dotted(path): array.shape for path, array in flat.items()}
      {'bias': (3,), 'kernel': (2, 3)}
    """
    parts = take_apart(model)
    if mode != "as_is":
        parts = take_apart(set_mode(merge_model(*parts[:3]), mode))
    return parts[:3]


def take_apart(model: nnx.Module) -> Parts:
    """Takes a model apart as `split_model` does, and also returns the paths of its trained parameters.

    Raises:
      TypeError: if `model` is not an NNX module.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"needs a Flax NNX module (flax.nnx.Module), got {type(model).__name__}. "
            "For a pure function of parameters use jaxprune.FunctionNetwork(fn, params)."
        )
    graphdef, random_state, *states = nnx.split(model, nnx.RngState, ...)
    variables = nnx.to_flat_state(states[0])
    flat = {
        path: _stored(variable)
        for path, variable in variables
        if holds_array(variable) and not _is_sown(variable)
    }
    rest = {path: _stored(variable) for path, variable in nnx.to_flat_state(random_state)}
    rest.update((path, variable) for path, variable in variables if path not in flat)
    trained = frozenset(
        path for path, variable in variables if isinstance(variable, nnx.Param) and path in flat
    )
    return Parts(
        graphdef, cast(FlatState, flat), cast(RestState, rest), cast(frozenset[Path], trained), model
    )


def _is_sown(variable: object) -> bool:
    """Tells whether a variable holds what a forward pass left behind."""
    return isinstance(variable, nnx.Intermediate) and not isinstance(variable, nnx.Perturbation)


def _stored(variable: object) -> object:
    """Returns what a variable stores, not what it reads as."""
    if not isinstance(variable, nnx.Variable):
        return variable
    value = variable.get_raw_value()
    return value[...] if nnx.variablelib.is_array_ref(value) else value


def merge_model(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: Mapping[Path, Array | nnx.Variable[Any]],
) -> nnx.Module:
    """Builds a new model from what `split_model` returned; it works inside `jax.jit` and `jax.vmap`.

    Args:
      graphdef: the static graph.
      flat: path -> array.
      rest: path -> array of the random state, or variable that is passed on.

    Returns:
      A model of its own.

    Example:
      >>> parts = split_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> merge_model(*parts)(jax.numpy.ones((4, 2))).shape
      (4, 3)
    """
    own = {path: value.copy() if isinstance(value, nnx.Variable) else value for path, value in rest.items()}
    state: tuple[nnx.State[Any, Any], ...] = tuple(
        nnx.from_flat_state(list(values.items())) for values in (flat, own)
    )
    return nnx.merge(graphdef, *state)


def put_beside(host: Mapping[Path, Array], originals: Mapping[Path, Array]) -> FlatState:
    """Moves arrays to the devices of the arrays that they replace, without compiling anything.

    Args:
      host: path -> NumPy array, of the shape of its original or a smaller one.
      originals: path -> array of the network.

    Returns:
      Path -> JAX array, placed as its original. Where an axis is split over devices and its new size cannot be split
      as evenly, the array is replicated over these devices.

    Example:
      >>> put_beside({("w",): np.ones(2)}, {("w",): jnp.ones(3)})
      {('w',): Array([1., 1.], dtype=float32)}
    """
    places = [place_of(originals[path], array.shape) for path, array in host.items()]
    return dict(zip(host, jax.device_put(list(host.values()), places), strict=True))


def shape_beside(shape: jax.ShapeDtypeStruct, original: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns a shape with the sharding of the one that it replaces, or replicated where that does not fit any more.

    Example:
      >>> shape_beside(jax.ShapeDtypeStruct((2,), "float32"), jax.ShapeDtypeStruct((3,), "float32"))
      ShapeDtypeStruct(shape=(2,), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place_of(original, shape.shape))


def place_of(original: Array | jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
    """Returns where an array goes that takes the place of another one.

    Args:
      original: the array that it replaces.
      shape: of the new array.

    Returns:
      The place; None stands for wherever JAX puts new arrays, as the original is.

    Example:
      >>> place_of(np.ones(3), (2,)) is None
      True
    """
    if isinstance(original, np.ndarray) or (isinstance(original, jax.Array) and not original.committed):
        return None
    place = original.sharding
    if isinstance(place, jax.sharding.NamedSharding):
        try:
            place.shard_shape(shape)
        except ValueError:
            return place.update(spec=jax.sharding.PartitionSpec())
    return place


def merge_to_run(
    graphdef: nnx.GraphDef[nnx.Module],
    flat: Mapping[Path, Array],
    rest: Mapping[Path, Array | nnx.Variable[Any]],
) -> nnx.Module:
    """Builds a model as `merge_model` does, without what it sowed before, which may be of another batch size.

    Args:
      graphdef, flat, rest: as for `merge_model`.

    Returns:
      A model of its own, to be run.
    """
    model = merge_model(graphdef, flat, rest)
    if any(map(_is_sown, rest.values())):
        nnx.pop(model, lambda path, variable: _is_sown(variable))
    return model


def random_state(rest: RestState) -> FlatState:
    """Returns the arrays of the random state, without variables that are passed on."""
    return {path: value for path, value in rest.items() if not isinstance(value, nnx.Variable)}


def passed_values(rest: RestState) -> tuple[object, ...]:
    """Returns what tells the variables apart that hold no array and that code of the network may read.

    Networks of one graph may run differently for different values. Arrays count by their content.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> model.steps = nnx.Variable(3)
      >>> passed_values(split_model(model)[2])
      ((('steps',), 'PyTreeDef(*)', ((<class 'int'>, 3),)),)
    """
    values: list[object] = []
    for path, variable in rest.items():
        if isinstance(variable, nnx.Variable) and not _is_sown(variable):
            leaves, treedef = jax.tree.flatten(variable.get_raw_value())
            values.append((path, str(treedef), tuple(map(_content, leaves))))
    return tuple(values)


def array_content(array: Array) -> tuple[tuple[int, ...], str, str]:
    """Returns shape, dtype and a hash of the bytes of an array or of random keys; they are equal for equal arrays.

    Example:
      >>> array_content(np.zeros(2, np.int8)) == array_content(np.array([0, 0], np.int8))
      True
    """
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(array) if is_key else array)
    return array.shape, str(array.dtype), hashlib.sha256(values.tobytes()).hexdigest()


def _content(leaf: object) -> object:
    """Returns a value that has a hash and is equal for equal leaves."""
    if isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, jax.core.Tracer):
        return array_content(leaf)
    return type(leaf), leaf  # 1, 1.0 and True are equal


def set_mode(model: nnx.Module, mode: RunMode) -> nnx.Module:
    """Switches batch norm and dropout of a model in place, as `nnx.view` does in a copy, and returns the model."""
    for module in modules_of(model):
        switches = _switches_of(type(module))
        set_view = getattr(module, "set_view", None)
        if switches and set_view is not None:
            set_view(**dict.fromkeys(switches, mode == "evaluation"))
    return model


@lru_cache(maxsize=1024)
def _switches_of(layer: type[nnx.Module]) -> tuple[str, ...]:
    """Returns which of the two switches between modes a class of layers has."""
    method = getattr(layer, "set_view", None)
    parameters = {} if method is None else inspect.signature(method).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return tuple(name for name in ("use_running_average", "deterministic") if takes_any or name in parameters)


def modules_of(model: nnx.Module) -> Iterator[nnx.Module]:
    """Yields every module of a model once, the model first: those of `nnx.iter_modules`, several times faster."""
    visited: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        kind = _KINDS.get(type(value)) or _KINDS.setdefault(type(value), _kind_of(value))
        if kind == "leaf" or id(value) in visited:
            continue
        visited.add(id(value))
        if kind == "module":
            yield value
            # Flax notes in each module what its other attributes are; looking for modules there takes most of the time.
            stack += [held for name, held in vars(value).items() if not name.startswith("_pytree__")]
        elif kind == "sequence":
            stack += value
        elif kind == "mapping":
            stack += value.values()
        else:
            stack += [module for _, module in nnx.iter_modules(value)]


def _kind_of(value: object) -> str:
    """Returns how to search a value for modules."""
    kinds = ((nnx.Module, "module"), (_LEAVES, "leaf"), ((list, tuple), "sequence"), (dict, "mapping"))
    for types, kind in kinds:
        if isinstance(value, types):
            return kind
    return "graph node" if nnx.graph.is_node(value) else "leaf"


def parameter_paths(model: nnx.Module) -> frozenset[Path]:
    """Returns the paths of a model's trained parameters (`nnx.Param`), without batch statistics."""
    return take_apart(model).trained


def is_abstract(flat: Mapping[Path, Array]) -> bool:
    """Tells whether a network has shapes in place of arrays.

    Example:
      >>> is_abstract({("kernel",): jax.ShapeDtypeStruct((2, 3), "float32")}), is_abstract({})
      (True, False)
    """
    return any(isinstance(array, jax.ShapeDtypeStruct) for array in flat.values())


def fingerprint(flat: Mapping[Path, Array | jax.ShapeDtypeStruct]) -> str:
    """Returns sixteen hexadecimal digits that identify a network's paths, shapes and dtypes (not its values).

    Example:
      >>> flat = {("kernel",): jax.numpy.zeros((2, 3))}
      >>> fingerprint(flat) == fingerprint({("kernel",): jax.numpy.ones((2, 3))})
      True
    """
    rows = sorted([dotted(path), list(array.shape), str(array.dtype)] for path, array in flat.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
