"""Arrays on disk: one Orbax checkpoint per network, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path as FilePath

import jax
import numpy as np

from jaxprune.pruning.states import FlatState, dotted


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
