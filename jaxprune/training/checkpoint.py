"""Network weights on disk as Orbax checkpoints: ours, written whole or not at all, and those that users bring.

Ours hold a checksum over the arrays and over what they are (task, pool and number of a base network), so that damage,
and a network in the place of another, are noticed when they are read.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from jaxprune.files import is_disk_full
from jaxprune.structure.model_state import FlatState, dotted

_OVERHEAD_BYTES = 128 * 1024
"""More than what a checkpoint takes beside its arrays."""


_CHECKPOINT_FILES = {
    "_CHECKPOINT_METADATA", "_METADATA", "_sharding", "array_metadatas", "commit_success.txt", "d", "manifest.ocdbt",
    "ocdbt.process_0",
}  # fmt: skip
_CHECKPOINT_PARTS = {"weights", "numbers", "identity", "checksum"}
"""What a network that was saved before may consist of; nothing else is ever removed."""


class DamagedNetworkError(ValueError):
    """A stored network is not what was saved under its name; the message says how it differs."""


def checkpointer() -> Any:  # noqa: ANN401 - Orbax is imported when it is used
    """Returns an Orbax checkpointer for this process alone.

    Orbax's own ones are collectives: with several processes they wait for ever, or pair with what another one sends,
    unless all of them save at the same time.
    """
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    alone = this_process()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def this_process() -> Any:  # noqa: ANN401 - Orbax is imported when it is used
    """Returns the options by which Orbax waits for no other process.

    NumPy arrays are still written by process 0 alone.
    """
    import orbax.checkpoint as ocp

    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process-{here}"
    )


def save_network(
    path: str | os.PathLike[str], weights: FlatState, numbers: Mapping[str, float], identity: str = ""
) -> None:
    """Writes a network's arrays and a few numbers about it, so that a reader never sees half a checkpoint.

    Args:
      path: folder to create; an existing one is removed first.
      weights: path -> array.
      numbers: name -> number to save with them, such as the validation accuracy.
      identity: what the network is, as `load_network` will ask for it.

    Raises:
      OSError: if the folder cannot be written, on a full disk for instance; then there is no folder.
    """
    arrays = {dotted(key): np.asarray(array) for key, array in weights.items()}
    values = {name: np.asarray(value, np.float64) for name, value in numbers.items()}
    tree = {
        "weights": arrays,
        "numbers": values,
        "identity": _as_bytes(identity),
        "checksum": _as_bytes(_checksum(arrays, values, identity)),
    }
    folder = FilePath(path).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, sum(array.nbytes for array in arrays.values()))
    try:
        with quiet(), checkpointer() as orbax:
            orbax.save(folder, tree, force=True)
    except ValueError as error:  # the storage library below Orbax reports a full disk in this way
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def load_network(
    path: str | os.PathLike[str], like: FlatState, identity: str = "", *, is_checked: bool = True
) -> tuple[FlatState, dict[str, float]] | None:
    """Reads what `save_network` wrote.

    Args:
      path: the folder; it is not changed.
      like: path -> array (or its shape) of the expected network.
      identity: what the network is expected to be.
      is_checked: whether it needs a checksum; earlier versions saved none. One that is there is checked in any case.

    Returns:
      The weights and the numbers, or None if there is nothing at the path.

    Raises:
      DamagedNetworkError: if the folder holds anything but the network that was saved with this identity.
    """
    folder = FilePath(path).resolve()
    if not os.path.lexists(folder):
        return None
    try:
        tree = _read_tree(folder)
        if (is_checked or "checksum" in tree) and (stored := _checked_identity(tree)) != identity:
            raise DamagedNetworkError(f"it is another network: {stored or 'one without a name'}")
        weights: FlatState = {key: jax.numpy.asarray(tree["weights"][dotted(key)]) for key in like}
        numbers = {name: float(value) for name, value in tree["numbers"].items()}
    except DamagedNetworkError:
        raise
    except Exception as error:  # damaged files raise all kinds of errors inside Orbax and below
        raise DamagedNetworkError("it cannot be read, because files are damaged or missing") from error
    if any((weights[key].shape, weights[key].dtype) != (like[key].shape, like[key].dtype) for key in like):
        raise DamagedNetworkError("its arrays have other shapes or types than the network's")
    return weights, numbers


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays of a network that `save_network` wrote, whatever network it is.

    Args:
      path: the folder; it is not changed.

    Returns:
      Dotted path -> array.

    Raises:
      DamagedNetworkError: if the folder holds anything else, or was changed since.

    Example:
      >>> folder = FilePath(tempfile.mkdtemp()) / "network"
      >>> save_network(folder, {("dense", "kernel"): np.ones(2, np.float32)}, {})
      >>> read_arrays(folder)
      {'dense.kernel': array([1., 1.], dtype=float32)}
    """
    try:
        tree = _read_tree(FilePath(path).resolve())
        _checked_identity(tree)
        return {name: np.asarray(array) for name, array in tree["weights"].items()}
    except DamagedNetworkError:
        raise
    except Exception as error:  # damaged files raise all kinds of errors inside Orbax and below
        raise DamagedNetworkError("it cannot be read, because files are damaged or missing") from error


def is_saved_network(folder: FilePath) -> bool:
    """Returns whether a folder is a network that `save_network` wrote, with nothing else in it."""
    try:
        tree = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"]
        parts = {entry["key_metadata"][0]["key"] for entry in tree.values()}
        others = {path.name for path in folder.iterdir()} - _CHECKPOINT_FILES
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return not folder.is_symlink() and not others and {"weights", "numbers"} <= parts <= _CHECKPOINT_PARTS


def check_room(folder: FilePath, num_bytes: int) -> None:
    """Raises before Orbax starts on a disk that is nearly full, where its threads print tracebacks as they give up."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes + _OVERHEAD_BYTES)
            except OSError as error:
                if is_disk_full(error):  # else the file system cannot tell
                    raise


def _checked_identity(tree: Mapping[str, Any]) -> str:
    """Returns the identity in a tree of `save_network`; refuses one that has changed since."""
    stored, expected = (_as_text(tree[name]) for name in ("identity", "checksum"))
    if _checksum(tree["weights"], tree["numbers"], stored) != expected:
        raise DamagedNetworkError("its content has changed since it was saved (its checksum differs)")
    return stored


def _checksum(arrays: Mapping[str, Any], numbers: Mapping[str, Any], identity: str) -> str:
    """A hash over the names, types, shapes and bits of arrays and numbers, and over what they are."""
    digest = hashlib.sha256(identity.encode())
    for kind, values in (("weights", arrays), ("numbers", numbers)):
        for name in sorted(values):
            array = np.asarray(values[name])
            digest.update(f"|{kind} {name} {array.dtype} {array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _as_bytes(text: str) -> np.ndarray:
    """Text as an array, which Orbax can store; it ends with a new line, because empty arrays cannot be stored."""
    return np.frombuffer(f"{text}\n".encode(), np.uint8)


def _as_text(array: object) -> str:
    """The text in an array of `_as_bytes`."""
    return np.asarray(array).tobytes().decode(errors="replace").removesuffix("\n")


def read_weights(path: str | os.PathLike[str], like: FlatState) -> FlatState:
    """Reads the weights of a network from any Orbax checkpoint; the folder is not changed.

    Args:
      path: a folder written by `save_network`, or by Orbax from `nnx.state(model)` or a nested dictionary of arrays;
        the folder of one step of a checkpoint manager will do too.
      like: path -> array (or its shape) of the expected network.

    Returns:
      Path -> array, in the dtypes of `like`. Other content of the checkpoint, an optimiser's state say, is left out.

    Raises:
      ValueError: if there is no checkpoint, it was changed since `save_network` wrote it, or arrays are missing or of
        other shapes; names all of them.

    Example:
      >>> import tempfile
      >>> folder = FilePath(tempfile.mkdtemp()) / "network"
      >>> save_network(folder, {("dense", "kernel"): np.ones((2, 3), np.float32)}, {})
      >>> read_weights(folder, {("dense", "kernel"): np.zeros((2, 3), np.float32)})[("dense", "kernel")].sum()
      Array(6., dtype=float32)
    """
    tree = _restore(FilePath(path).resolve())
    if isinstance(tree, Mapping) and {"identity", "checksum"} <= tree.keys():
        try:
            _checked_identity(tree)
        except DamagedNetworkError as error:
            raise ValueError(
                f"needs a checkpoint as it was saved, got {path}, but {error}. Save it again."
            ) from error
    stored = {name.removeprefix("weights."): np.asarray(array) for name, array in _named_leaves(tree)}
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
            f"{'; '.join(problems)}. "
            "Name the network and the widths that it was made from."
        )
    return {key: jax.numpy.asarray(stored[name], like[key].dtype) for key, name in names.items()}


def _restore(folder: FilePath) -> object:
    """Reads the tree of a checkpoint, or of the only item in a checkpoint manager's step."""
    for source in (folder, folder / "default"):
        with contextlib.suppress(Exception):  # damaged files raise all kinds of errors inside Orbax and below
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
    with quiet(), warnings.catch_warnings(), checkpointer() as orbax:
        warnings.simplefilter("ignore")
        return orbax.restore(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps asyncio from logging the errors inside Orbax, with tracebacks, that are raised here anyway."""
    logger = logging.getLogger("asyncio")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        gc.collect(1)  # asyncio logs when the futures that hold the errors are freed
        raise
    finally:
        logger.disabled = was_disabled


def _named_leaves(tree: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Dotted names and arrays of a tree, without the `value` that Orbax puts below every variable."""
    if isinstance(tree, Mapping | list | tuple):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _named_leaves(part, (*above, str(key)))
    elif tree is not None:
        yield dotted(above[:-1] if above[-1:] == ("value",) else above), tree
