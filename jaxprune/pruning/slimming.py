"""Slims networks: removes pruned channels from the arrays and from the sizes that layers store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast, overload

import jax
import numpy as np
from flax import nnx

from jaxprune.nets.factories import placeholder
from jaxprune.nets.foreign_layers import with_sizes_of_arrays
from jaxprune.nets.function_network import FunctionNetwork, Params
from jaxprune.nets.inputs import Example, abstract_call, example_of
from jaxprune.observation.observed import Observed
from jaxprune.pruning.compensation import check_compensable, check_observed, compensated_state
from jaxprune.pruning.optimizer_states import OptimizerState, slim_optimizer
from jaxprune.pruning.plan_checks import KeptIndices, index_arrays
from jaxprune.pruning.planning import Plan, check_plan, make_plan
from jaxprune.structure.culprits import smallest_failing
from jaxprune.structure.groups import Structure
from jaxprune.structure.layouts import gather
from jaxprune.structure.model_state import (
    FlatState,
    Parts,
    Path,
    is_abstract,
    merge_model,
    put_beside,
    shape_beside,
    take_apart,
)
from jaxprune.structure.own_sizes import stored_sizes
from jaxprune.structure.verification import Attributes, find_misfit, slim_graph
from jaxprune.types import Array


@overload
def slim(
    model: nnx.Module,
    plan: Plan,
    *,
    attributes: Attributes | None = None,
    compensate: Observed | None = None,
    optimizer: None = None,
) -> nnx.Module: ...


@overload
def slim(
    model: nnx.Module,
    plan: Plan,
    *,
    attributes: Attributes | None = None,
    compensate: Observed | None = None,
    optimizer: OptimizerState,
) -> tuple[nnx.Module, OptimizerState]: ...


def slim(
    model: nnx.Module,
    plan: Plan,
    *,
    attributes: Attributes | None = None,
    compensate: Observed | None = None,
    optimizer: OptimizerState | None = None,
) -> nnx.Module | tuple[nnx.Module, OptimizerState]:
    """Returns a smaller model without the pruned channels.

    It computes what the masked model computes, except where activations are normalised across pruned channels, and
    where code computes with a size, as attention divides by the square root of the size of a head: there it computes
    what a network built at the smaller size would. Where the network normalises *weights* across pruned
    channels (`plan.notes` says so), it does the same: their norm is that of the channels that stay. The sizes that
    Flax's own layers store are adjusted. The new model is traced on shapes alone, to check that every operation
    combines the same channels as before.

    With `compensate`, the layers that read pruned channels are corrected first: by least squares, the channels that
    stay take over what can be predicted of the others (`jaxprune/pruning/compensation.py` has the formulas).

    With `optimizer`, its state is cut along, and training goes on where it was: the next update of the channels that
    stay is that of the masked network (`jaxprune/pruning/optimizer_states.py` says what is cut how). Averages of
    weights in it are cut and not corrected by `compensate`.

    Args:
      model: the network that the plan was made for; it is not changed. Of a network of shapes alone
        (`nnx.eval_shape`, `jaxprune.nets.without_weights`), a smaller one of shapes is made: what a checkpoint of the
        slim network holds.
      plan: which channels to keep.
      attributes: new values for whole numbers that classes of your own store, by dotted path, such as
        `{"blocks.0.attention.head_dim": 16}`.
      compensate: what `observe` returned for this model; None cuts without a correction.
      optimizer: an `nnx.Optimizer` of this model, a state of Optax, or any pytree of these and of averages of the
        weights; it is not changed. It may be of shapes alone too.

    Returns:
      A new model, whose arrays are on the same devices. They are split as before where the new sizes divide evenly, and
      replicated elsewhere. With `optimizer`, the new model and a new optimizer (or state) for it.

    Raises:
      TypeError: if `optimizer` is an Optax transformation, which has no state, or `compensate` is not what `observe`
        returned.
      ValueError: if the plan was made for another network, or if code of the model still relies on an old size; the
        message names the attributes that hold an old size, with the values they need. With `compensate`, also if
        something other than dense layers and convolutions reads pruned channels; the message names groups and readers.
        With `optimizer`, if it was made for another network, or its state cannot be cut exactly (Adafactor's, say).
    """
    parts = take_apart(model)
    structure = check_plan(parts, plan)
    if compensate is not None:
        if is_abstract(parts.flat):
            raise ValueError(
                "needs a network with weights to compensate, got one of shapes alone. Leave out compensate=."
            )
        check_observed(compensate)
        check_compensable(structure, plan.kept_counts)
    attributes = attributes or {}
    kept = {
        name: np.asarray(channels, np.int32)
        for name, channels in plan.kept.items()
        if len(channels) < plan.widths[name]
    }
    graphdef = slim_graph(parts, structure, kept, attributes)
    required = structure.attributes_for(plan.kept_counts)
    problem = "attributes of its own classes must change"
    if required.keys() <= attributes.keys():
        misfit = find_misfit(parts, structure, kept, attributes, graph=graphdef)
        if misfit is None:
            if is_abstract(parts.flat):
                arrays = slim_shapes(structure, parts.flat, plan.kept)
            else:
                # NumPy cuts, and device_put moves: jnp.asarray would compile a program for each new shape.
                flat = jax.device_get(parts.flat)
                if compensate is not None:
                    flat = compensated_state(structure, flat, kept, compensate.covariances())
                arrays = put_beside(slim_state(structure, flat, plan.kept), parts.flat)
            smaller = merge_model(graphdef, arrays, parts.rest)
            if optimizer is None:
                return smaller
            return smaller, slim_optimizer(optimizer, structure, kept, model, smaller)
        problem = misfit.reason
        guilty = misfit.groups or _guilty_groups(parts, structure, kept)
        kept = {name: channels for name, channels in kept.items() if name in guilty}
        sizes = {plan.widths[name]: len(channels) for name, channels in kept.items()}
        required = {path: sizes[old] for path, old in stored_sizes(model, sizes).items()}
    missing = {path: size for path, size in required.items() if path not in attributes}
    raise ValueError(_misfit_message(plan, kept, problem, missing))


def _guilty_groups(parts: Parts, structure: Structure, kept: Mapping[str, np.ndarray]) -> Collection[str]:
    """Returns groups that suffice for a slim network not to run; all of them if others do with other attributes."""

    def fails(names: Sequence[str]) -> bool:
        cut = {name: kept[name] for name in names}
        attributes = structure.attributes_for({name: len(channels) for name, channels in cut.items()})
        return find_misfit(parts, structure, cut, attributes) is not None

    return smallest_failing(list(kept), fails)[0] if fails(list(kept)) else kept


class SlimParams(NamedTuple):
    """A smaller network that is a pure function of its parameters."""

    params: Params
    """In the pytree that was given; layers of Equinox store their new sizes."""
    fn: Callable[..., Any]
    """The function for these parameters: the one that was given, with layers of Linen in the sizes of their arrays."""
    features: Mapping[str, Mapping[str, Any]]
    """Path of a layer of Linen -> its attributes with their new sizes, to build the smaller module with. Empty too
    where the function has been compiled and holds a loop that cannot run without that."""


@overload
def slim_params(
    fn: Callable[..., Any],
    params: Params,
    plan: Plan | Structure,
    kept: Mapping[str, Sequence[int]] | None = None,
    *,
    compensate: Observed | None = None,
    optimizer: None = None,
) -> SlimParams: ...


@overload
def slim_params(
    fn: Callable[..., Any],
    params: Params,
    plan: Plan | Structure,
    kept: Mapping[str, Sequence[int]] | None = None,
    *,
    compensate: Observed | None = None,
    optimizer: OptimizerState,
) -> tuple[SlimParams, OptimizerState]: ...


def slim_params(
    fn: Callable[..., Any],
    params: Params,
    plan: Plan | Structure,
    kept: Mapping[str, Sequence[int]] | None = None,
    *,
    compensate: Observed | None = None,
    optimizer: OptimizerState | None = None,
) -> SlimParams | tuple[SlimParams, OptimizerState]:
    """Returns the parameters of a pure function without pruned channels, as `slim` does for NNX modules.

    The function is traced again with the smaller arrays, on shapes alone. Widths have to follow from the arrays: a
    number in the function's own code that no longer fits is an error that names the line.

    Args:
      fn: `fn(params, *inputs)`, the function that the plan was made for.
      params: its parameters; they are not changed.
      plan: which channels to keep, from `jp.plan(jp.FunctionNetwork(fn, params), ...)`; or what `trace_params` gave.
      kept: with a structure, group name -> rising kept indices; groups left out stay whole.
      compensate: as for `slim`.
      optimizer: a state of Optax for `params` (or for a part of them, such as `params["params"]` of Linen), or any
        pytree with arrays for them, such as averages or a `TrainState` of Flax; it is not changed.

    Returns:
      The smaller parameters, the function for them, and for Linen the new sizes of its layers. With `optimizer`, these
      and the state that goes with them.

    Raises:
      TypeError: if `plan` is neither a plan nor a structure with `kept`.
      ValueError: as `slim`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.structure.tracing import trace_params
      >>> fn, params = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
      >>> smaller = slim_params(fn, params, trace_params(fn, params, jnp.ones((4, 3))), {"a": (0, 2)})
      >>> smaller.params["a"].shape, smaller.params["b"].shape
      ((3, 2), (2, 2))
    """
    if isinstance(plan, Structure):
        if kept is None:
            raise TypeError(
                "slim_params needs kept={group: indices} with a structure, got none. Or give it a plan."
            )
        plan = make_plan(plan, {name: tuple(indices) for name, indices in kept.items()})
    network = FunctionNetwork(fn, params)
    if optimizer is None:
        found = slim(network, plan, compensate=compensate)
    else:
        found, optimizer = slim(network, plan, compensate=compensate, optimizer=optimizer)
    smaller = cast(FunctionNetwork, found)
    features = _sizes_of_linen(smaller, example_of(plan.example, smaller))
    new = SlimParams(smaller.parameters, fn if features == {} else smaller.as_function(), features or {})
    return new if optimizer is None else (new, optimizer)


def _sizes_of_linen(network: FunctionNetwork, example: Example) -> dict[str, dict[str, Any]] | None:
    """Returns path of a layer of Linen -> new sizes; None if a function that was compiled before may hide layers."""
    forward, *arguments = abstract_call(network, example)
    for context in (jax.disable_jit, nullcontext):
        found: dict[str, dict[str, Any]] = {}
        try:
            with context(), with_sizes_of_arrays(found):
                jax.eval_shape(forward, *arguments)
        except Exception:  # a loop whose end depends on values cannot run without being compiled
            continue
        return found if found or context is jax.disable_jit else None
    return None


def slim_state(structure: Structure, flat: Mapping[Path, Array], kept: KeptIndices) -> FlatState:
    """Returns the arrays of the slim network; it only gathers, so it works under jit and vmap over many candidates.

    Args:
      structure: groups of the full network.
      flat: path -> array: the network's arrays, or anything with the same paths and shapes, such as optimizer moments.
        Arrays at other paths are returned unchanged.
      kept: group name -> kept indices, NumPy or (traced) JAX; groups left out stay whole.

    Returns:
      Path -> smaller array.

    Raises:
      ValueError: for indices that do not fit the groups.
    """
    indices = index_arrays(structure, kept)
    return {
        path: gather(array, structure.layouts[path], indices) if path in structure.layouts else array
        for path, array in flat.items()
    }


def slim_shapes(structure: Structure, flat: Mapping[Path, Array], kept: KeptIndices) -> FlatState:
    """Returns what stands for the arrays of the slim network where the full one has shapes in place of arrays.

    Args:
      structure: groups of the full network.
      flat: path -> shape and dtype, or an array that stands for one, of a network that `without_weights` made.
      kept: group name -> kept indices.

    Returns:
      Path -> shape and dtype, with a sharding where there was one that fits, or an array of zeros that takes no memory
      where `flat` has an array.
    """
    paths = list(flat)
    shapes = jax.eval_shape(
        lambda arrays: list(slim_state(structure, dict(zip(paths, arrays, strict=True)), kept).values()),
        list(flat.values()),
    )
    originals: Mapping[Path, Any] = flat
    found: dict[Path, Any] = {}
    for path, shape in zip(paths, shapes, strict=True):
        is_shape = isinstance(originals[path], jax.ShapeDtypeStruct)
        found[path] = shape_beside(shape, originals[path]) if is_shape else placeholder(shape)
    return found


def _misfit_message(
    plan: Plan, kept: Mapping[str, np.ndarray], problem: str, missing: Mapping[str, int]
) -> str:
    """Explains why a slim network would not work, and which attributes to pass or what to change in its code."""
    sizes = ", ".join(f"{name} {plan.widths[name]} -> {len(channels)}" for name, channels in kept.items())
    advice = (
        "If its code holds a number (often in a reshape), read it from a shape, as in x.reshape(x.shape[0], -1); or "
        f"leave {'this group' if len(kept) == 1 else 'these groups'} whole with plan(..., ignore={sorted(kept)})"
    )
    if len(kept) > 1 and not missing:
        advice += (
            ". If it needs equal sizes (of keys and values, say), give these groups equal counts with "
            "plan(..., kept_counts=)"
        )
    if missing:
        advice = (
            f"These attributes still hold an old size: pass slim(..., attributes={missing}), or: {advice}"
        )
    return (
        f"needs a network whose code follows the sizes of its arrays, but after slimming ({sizes}) {problem}. "
        f"{advice}."
    )
