"""Saves a network as a folder from which another process makes it again, and loads it there.

The folder has the arrays, the plans as JSON and a manifest. Nothing in it is code or a pickle. Loading makes the dense
network from its factory, of shapes alone, slims it by the plans, and fills in the arrays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from jaxprune.deploy.manifest import Manifest, WeightsFormat, is_saved, read_manifest, write_manifest
from jaxprune.deploy.network_sources import Factory, Maker, NetworkSource, as_source, maker_of
from jaxprune.deploy.stored_state import StoredState, fill, mismatches, stored_state
from jaxprune.deploy.tensor_files import read_tensors, write_tensors
from jaxprune.files import atomic_folder
from jaxprune.nets.factories import without_weights
from jaxprune.pruning.planning import Plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import dotted, fingerprint, merge_model, take_apart
from jaxprune.training.checkpoint import DamagedNetworkError, read_arrays, save_network

_TENSORS = "weights.safetensors"
_CHECKPOINT = "weights"


def save(
    model: nnx.Module,
    path: str | os.PathLike[str],
    *,
    plan: Plan | Sequence[Plan] | None = None,
    factory: Factory | None = None,
    options: Mapping[str, Any] | None = None,
    attributes: Mapping[str, int] | Sequence[Mapping[str, int]] | None = None,
    weights: WeightsFormat = "safetensors",
    overwrite: bool = False,
) -> None:
    """Writes a network to a folder that `load` reads in any other process, with bit-equal arrays.

    The folder holds `weights.safetensors` (or an Orbax checkpoint), the plans as JSON, and `manifest.json` with
    versions, checksums, and how the dense network is made. It is written whole or not at all. All variables are saved:
    parameters, batch statistics, random keys and counters, numbers and texts. Not saved are what a forward pass sowed
    and attributes that code has changed since the network was made, among them the mode (`model.eval()`).

    With `factory`, the network is made and slimmed on shapes at once, so that what cannot be loaded is not saved.

    Args:
      model: the network, dense or slim; it is not changed.
      path: the new folder; the one that it is in must exist.
      plan: what the network was slimmed by, or several plans in the order in which they were applied; None for a dense
        network.
      factory: what makes the dense network: a name of `jaxprune.nets.NETWORKS`, `"module:factory"`, a class or function
        at the top of a module (or a `functools.partial` of one) that takes `nnx.Rngs`. None if `load` is to be told.
      options: keyword arguments of the factory; numbers, texts, and lists of these, which come back as tuples.
      attributes: what was passed to `slim` as `attributes`; with several plans one mapping for each.
      weights: "safetensors", or "orbax".
      overwrite: whether a network that `save` wrote to the same path is replaced.

    Raises:
      FileExistsError: if there is something at `path`, and it is no saved network or `overwrite` is false.
      OSError: if the folder cannot be written, on a full disk for instance; nothing is left behind.
      ValueError: for a factory that cannot be imported or does not make this network (lists all arrays that differ),
        for arrays that the format cannot hold, and for a network without weights.

    Example:
      >>> import jax, tempfile
      >>> import jaxprune as jp
      >>> model = jp.PlainConvNet(nnx.Rngs(0), widths=(2, 3, 4))
      >>> folder = Path(tempfile.mkdtemp()) / "network"
      >>> jp.save(model, folder, factory=jp.PlainConvNet, options={"widths": (2, 3, 4)})
      >>> sorted(file.name for file in folder.iterdir())
      ['manifest.json', 'weights.safetensors']
      >>> jp.load(folder).conv1.kernel.shape
      (3, 3, 1, 2)
    """
    if weights not in get_args(WeightsFormat):
        raise ValueError(f"weights needs to be one of {', '.join(get_args(WeightsFormat))}, got {weights!r}.")
    folder = Path(path)
    plans, all_attributes = _rounds(plan, attributes)
    _check_place(folder, overwrite=overwrite)
    state = stored_state(model)
    if weights == "orbax" and (empty := [name for name, array in state.arrays.items() if not array.size]):
        raise ValueError(
            f'weights="orbax" needs arrays with entries, got empty ones: {", ".join(empty)}. Use "safetensors".'
        )
    source: NetworkSource | None = None
    recast: tuple[str, ...] = ()
    if factory is not None:
        source = as_source(factory, options)
        recast = _check_remake(source.make, plans, all_attributes, state)
    elif options:
        raise ValueError(f"options {dict(options)} need factory=, which takes them.")
    names = tuple(
        "plan.json" if len(plans) == 1 else f"plan_{number + 1}.json" for number in range(len(plans))
    )
    manifest = Manifest(weights, source, names, all_attributes, recast, state.random, state.values)
    try:
        with atomic_folder(folder, overwrite=overwrite) as temporary:
            for name, each in zip(names, plans, strict=True):
                each.save(temporary / name)
            if weights == "safetensors":
                write_tensors(temporary / _TENSORS, state.arrays)
            else:
                save_network(
                    temporary / _CHECKPOINT, {(name,): array for name, array in state.arrays.items()}, {}
                )
            write_manifest(temporary, manifest)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"could not save the network to {folder}: {reason}. Nothing was written; save again when the "
            "cause is gone, or to another folder"
        ) from error  # fmt: skip


def load(path: str | os.PathLike[str], *, factory: Factory | None = None) -> nnx.Module:
    """Returns the network that `save` wrote, with bit-equal arrays.

    The dense network is made from its factory on shapes alone and slimmed by the plans; then the arrays are filled in.
    Its module is imported and called, so load networks with a factory of their own only from people you trust;
    arguments from the file reach classes of NNX modules and functions with a parameter `rngs` alone. Random keys that
    the file does not have are made anew.

    Args:
      path: the folder.
      factory: what makes the dense network, in place of what the folder says; any function that takes `nnx.Rngs` or
        nothing will do.

    Returns:
      The network, on the default device, in the mode in which its factory makes it.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if the folder was not written by `save`, or by a newer version; if files are missing or damaged; if it
        does not say how the network is made; or if the factory and the plan make another network than was saved, with
        all arrays that differ.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if factory is None and manifest.source is None:
        raise ValueError(
            f"{folder} does not say how its dense network is made. Pass load(path, factory=function), where the "
            "function takes flax.nnx.Rngs and returns the network as it was before pruning."
        )
    make = maker_of(factory) if factory is not None else manifest.source.make  # type: ignore[union-attr]
    try:
        if manifest.weights == "safetensors":
            arrays = read_tensors(folder / _TENSORS)
        else:
            arrays = read_arrays(folder / _CHECKPOINT)
    except (DamagedNetworkError, OSError) as error:
        raise ValueError(f"needs the weights that jaxprune.save wrote to {folder}, but {error}.") from error
    state = StoredState(arrays, manifest.random, manifest.values)
    plans = [Plan.load(folder / name) for name in manifest.plans]
    dtypes = {name: arrays[name].dtype for name in manifest.recast if name in arrays}
    remade = _remake(make, plans, manifest.attributes, dtypes)
    try:
        return fill(remade, state, manifest.recast)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _rounds(
    plan: Plan | Sequence[Plan] | None, attributes: Mapping[str, int] | Sequence[Mapping[str, int]] | None
) -> tuple[tuple[Plan, ...], tuple[Mapping[str, int], ...]]:
    """Returns the plans, and as many mappings of attributes."""
    given: Sequence[object] = (
        () if plan is None else (plan,) if isinstance(plan, Plan | str | os.PathLike) else tuple(plan)
    )
    plans = tuple(each for each in given if isinstance(each, Plan))
    strange = [type(each).__name__ for each in given if not isinstance(each, Plan)]
    if strange:
        raise TypeError(
            f"plan needs a Plan or several, got {', '.join(strange)}. Make one with plan() or Plan.load()."
        )
    if attributes is None:
        return plans, ({},) * len(plans)
    own = (attributes,) if isinstance(attributes, Mapping) else tuple(attributes)
    if len(own) != len(plans):
        raise ValueError(
            f"attributes needs one mapping for each plan, got {len(own)} for {len(plans)} plans. Use {{}} where none "
            "was passed to slim."
        )
    return plans, tuple({name: int(value) for name, value in each.items()} for each in own)


def _check_place(folder: Path, *, overwrite: bool) -> None:
    """Refuses a place where nothing can be written, or something would be lost."""
    if os.path.lexists(folder) and not (overwrite and is_saved(folder)):
        raise FileExistsError(
            f"nothing but a saved network is replaced, and only with overwrite=True; there is {folder} already. "
            "Choose another path."
        )
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"the folder to save to needs to be in one that exists, got {folder}. Make it first."
        )


def _remake(
    make: Maker,
    plans: Sequence[Plan],
    attributes: Sequence[Mapping[str, int]],
    dtypes: Mapping[str, np.dtype[Any]],
) -> nnx.Module:
    """Makes the dense network of shapes and slims it.

    Args:
      make: the factory.
      plans: in the order in which they were applied.
      attributes: for each plan.
      dtypes: arrays whose dtype was changed, before the plan was made or after it.
    """
    model = _of_shapes(make)
    for plan, own in zip(plans, attributes, strict=True):
        parts = take_apart(model)
        if fingerprint(parts.flat) != plan.fingerprint:
            flat = {path: _recast(array, dtypes.get(dotted(path))) for path, array in parts.flat.items()}
            if fingerprint(flat) == plan.fingerprint:
                model = merge_model(parts.graphdef, flat, parts.rest)
        model = slim(model, plan, attributes=own)
    return model


def _of_shapes(make: Maker) -> nnx.Module:
    """Makes a network of shapes; with weights if its factory looks at values, as one that reads a file does."""
    try:
        return without_weights(make, counts_keys=True)
    except jax.errors.JAXTypeError:
        return make(nnx.Rngs(0))


def _recast(array: Any, dtype: np.dtype[Any] | None) -> Any:  # noqa: ANN401 - a shape, or what stands for one
    """Returns what stands for an array, with another dtype."""
    return (
        array
        if dtype is None
        else array.update(dtype=dtype)
        if hasattr(array, "update")
        else array.astype(dtype)
    )


def _check_remake(
    make: Maker, plans: Sequence[Plan], attributes: Sequence[Mapping[str, int]], state: StoredState
) -> tuple[str, ...]:
    """Checks that the factory and the plans make the network; returns which arrays have another dtype than there."""
    dense = take_apart(_of_shapes(make)).flat
    saved = {name: array.dtype for name, array in state.arrays.items() if not state.random.get(name)}
    recast = {
        name: saved[name]
        for name, array in ((dotted(path), array) for path, array in dense.items())
        if name in saved and saved[name] != array.dtype
    }
    if problems := mismatches(_remake(make, plans, attributes, recast), state, recast):
        raise ValueError(
            f"the network to save needs to be the one that factory and plan make, but: {'; '.join(problems)}. Pass the "
            "options that the dense network was made with, and every plan that it was slimmed by."
        )
    return tuple(recast)
