"""Network weights on disk as Orbax checkpoints: ours, written whole or not at all, and those that users bring."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from jaxprune.structure.model_state import FlatState, dotted


def save_network(path: str | os.PathLike[str], weights: FlatState, numbers: Mapping[str, float]) -> None:
    """Writes a network's arrays and a few numbers about it, so that a reader never sees half a checkpoint.

    Args:
      path: folder to create; an existing one is removed first.
      weights: path -> array.
      numbers: name -> number to save with them, such as the validation accuracy.

    Raises:
      OSError: if the folder cannot be written, on a full disk for instance; then there is no folder.
    """
    import orbax.checkpoint as ocp

    tree = {
        "weights": {dotted(key): np.asarray(array) for key, array in weights.items()},
        "numbers": {name: np.asarray(value, np.float64) for name, value in numbers.items()},
    }
    folder = FilePath(path).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder, tree, force=True)
    except ValueError as error:  # the storage library below Orbax reports a full disk in this way
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def load_network(path: str | os.PathLike[str], like: FlatState) -> tuple[FlatState, dict[str, float]] | None:
    """Reads what `save_network` wrote.

    A folder that cannot be read or holds other arrays than `like` is removed, so that its content is computed again.

    Args:
      path: the folder.
      like: path -> array (or its shape) of the expected network.

    Returns:
      The weights and the numbers, or None if there is no usable checkpoint.
    """
    folder = FilePath(path).resolve()
    if not folder.exists():
        return None
    try:
        tree = _read_tree(folder)
        weights: FlatState = {key: jax.numpy.asarray(tree["weights"][dotted(key)]) for key in like}
        numbers: dict[str, float] = {name: float(value) for name, value in tree["numbers"].items()}
        if all(weights[key].shape == like[key].shape for key in like):
            return weights, numbers
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_weights(path: str | os.PathLike[str], like: FlatState) -> FlatState:
    """Reads the weights of a network from any Orbax checkpoint; the folder is not changed.

    Args:
      path: a folder written by `save_network`, or by Orbax from `nnx.state(model)` or a nested dictionary of arrays;
        the folder of one step of a checkpoint manager will do too.
      like: path -> array (or its shape) of the expected network.

    Returns:
      Path -> array, in the dtypes of `like`. Other content of the checkpoint, an optimiser's state say, is left out.

    Raises:
      ValueError: if there is no checkpoint, or arrays are missing or of other shapes; names all of them.

    Example:
      >>> import tempfile
      >>> folder = FilePath(tempfile.mkdtemp()) / "network"
      >>> save_network(folder, {("dense", "kernel"): np.ones((2, 3), np.float32)}, {})
      >>> read_weights(folder, {("dense", "kernel"): np.zeros((2, 3), np.float32)})[("dense", "kernel")].sum()
      Array(6., dtype=float32)
    """
    stored = {
        name.removeprefix("weights."): np.asarray(array)
        for name, array in _named_leaves(_restore(FilePath(path).resolve()))
    }
    names = {key: dotted(key) for key in like}
    problems = [f"{name} is missing" for name in names.values() if name not in stored]
    problems += [
        f"{name} is {stored[name].shape} and not {like[key].shape}"
        for key, name in names.items()
        if name in stored and stored[name].shape != like[key].shape
    ]
    if problems:
        raise ValueError(
            f"a checkpoint needs all arrays of the network, got {path} with {len(stored)} arrays: "
            f"{'; '.join(problems[:8])}{f'; and {len(problems) - 8} others' if len(problems) > 8 else ''}. "
            "Name the network and the widths that it was made from."
        )
    return {key: jax.numpy.asarray(stored[name], like[key].dtype) for key, name in names.items()}


def _restore(folder: FilePath) -> object:
    """Reads the tree of a checkpoint, or of the only item in a checkpoint manager's step."""
    for source in (folder, folder / "default"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _read_tree(source)
    content = "which is no folder"
    if folder.is_dir():
        names = sorted(child.name for child in folder.iterdir())
        listed = ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
        content = f"a folder with {listed or 'nothing in it'}"
    raise ValueError(
        f"needs an Orbax checkpoint of a network's state, got {folder}, {content}. Write one with "
        "orbax.checkpoint.StandardCheckpointer().save(folder, flax.nnx.state(model))."
    )


def _read_tree(folder: FilePath) -> dict[str, Any]:
    """Reads an Orbax checkpoint, without Orbax's warnings about shardings, which do not matter here."""
    import orbax.checkpoint as ocp

    with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
        warnings.simplefilter("ignore")
        return checkpointer.restore(folder)


def _named_leaves(tree: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Dotted names and arrays of a tree, without the `value` that Orbax puts below every variable."""
    if isinstance(tree, Mapping | list | tuple):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _named_leaves(part, (*above, str(key)))
    elif tree is not None:
        yield dotted(above[:-1] if above[-1:] == ("value",) else above), tree
