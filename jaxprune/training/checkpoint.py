"""Arrays on disk: one Orbax checkpoint per network, written whole or not at all; and those that users bring."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

import jax
import numpy as np

from jaxprune.structure.model_state import FlatState, dotted


def save_network(path: str | os.PathLike[str], weights: FlatState, numbers: Mapping[str, float]) -> None:
    """Writes a network's arrays and a few numbers about it; a reader never sees half of it.

    Args:
      path: folder to create; an existing one is removed first.
      weights: path -> array.
      numbers: what to remember along with them, such as the validation accuracy.

    Raises:
      OSError: if the folder cannot be written, on a full disk for instance; then there is none.
    """
    import orbax.checkpoint as ocp

    tree = {
        "weights": {dotted(key): np.asarray(array) for key, array in weights.items()},
        "numbers": {name: np.asarray(value, np.float64) for name, value in numbers.items()},
    }
    target = FilePath(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(target, tree, force=True)
    except ValueError as error:  # as the storage below Orbax reports a full disk
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(target)) from error


def load_network(path: str | os.PathLike[str], like: FlatState) -> tuple[FlatState, dict[str, float]] | None:
    """Reads what `save_network` wrote, or None where there is nothing usable.

    A folder that cannot be read, or holds other arrays than `like`, is removed: what it cached is made anew.

    Args:
      path: the folder.
      like: arrays (or their shapes) by path, of the network expected.

    Returns:
      The weights and the numbers, or None.
    """
    import orbax.checkpoint as ocp

    target = FilePath(path).resolve()
    if not target.exists():
        return None
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(target, restore_args=None)
        weights = {key: tree["weights"][dotted(key)] for key in like}
        numbers = {name: float(value) for name, value in tree["numbers"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(target, ignore_errors=True)
        return None
    if any(weights[key].shape != like[key].shape for key in like):
        shutil.rmtree(target, ignore_errors=True)
        return None
    return {key: jax.numpy.asarray(array) for key, array in weights.items()}, numbers


def read_weights(path: str | os.PathLike[str], like: FlatState) -> FlatState:
    """The arrays of a network, out of an Orbax checkpoint that somebody made; the folder is left as it is.

    Args:
      path: a folder written by `save_network`, or by Orbax from `nnx.state(model)` or a nested dictionary of arrays;
        that of one step of a checkpoint manager too.
      like: arrays (or their shapes) by path, of the network expected.

    Returns:
      Path -> array, in the dtypes of `like`. What else the checkpoint holds, an optimiser's state say, is left out.

    Raises:
      ValueError: if there is no checkpoint, or arrays are missing or of other shapes; names all of them.

    Example:
      >>> import tempfile
      >>> folder = FilePath(tempfile.mkdtemp()) / "network"
      >>> save_network(folder, {("dense", "kernel"): np.ones((2, 3), np.float32)}, {})
      >>> read_weights(folder, {("dense", "kernel"): np.zeros((2, 3), np.float32)})[("dense", "kernel")].sum()
      Array(6., dtype=float32)
    """
    found = {}
    for name, array in _leaves(_restored(FilePath(path).resolve())):
        found[name.removeprefix("weights.")] = np.asarray(array)
    wanted = {key: dotted(key) for key in like}
    wrong = [f"{name} is missing" for name in wanted.values() if name not in found]
    wrong += [
        f"{name} is {found[name].shape} and not {like[key].shape}"
        for key, name in wanted.items()
        if name in found and found[name].shape != like[key].shape
    ]
    if wrong:
        raise ValueError(
            f"a checkpoint needs all arrays of the network, got {path} with {len(found)} arrays: "
            f"{'; '.join(wrong[:8])}{f'; and {len(wrong) - 8} others' if len(wrong) > 8 else ''}. "
            "Name the network and the widths that it was made from."
        )
    return {key: jax.numpy.asarray(found[name], like[key].dtype) for key, name in wanted.items()}


def _restored(folder: FilePath) -> object:
    """The tree of a checkpoint, or of the only item of a checkpoint manager's step."""
    import orbax.checkpoint as ocp

    for place in (folder, folder / "default"):
        try:
            with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
                warnings.simplefilter("ignore")  # about shardings, which are not asked for
                return checkpointer.restore(place)
        except (OSError, ValueError, KeyError):
            continue
    what = "what is no folder" if not folder.is_dir() else f"a folder with {_some(folder)}"
    raise ValueError(
        f"needs an Orbax checkpoint of a network's state, got {folder}, {what}. Write one with "
        "orbax.checkpoint.StandardCheckpointer().save(folder, flax.nnx.state(model))."
    )


def _some(folder: FilePath) -> str:
    names = sorted(each.name for each in folder.iterdir())
    return ", ".join(names[:4]) + (" and others" if len(names) > 4 else "") if names else "nothing in it"


def _leaves(tree: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Dotted names and arrays; the `value` that Orbax puts below every variable is left out of the name."""
    if isinstance(tree, Mapping | list | tuple):
        parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, part in parts:
            yield from _leaves(part, (*above, str(key)))
    elif tree is not None:
        yield dotted(above[:-1] if above[-1:] == ("value",) else above), tree
