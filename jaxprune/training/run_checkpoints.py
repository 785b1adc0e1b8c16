"""Checkpoints of a training run: the newest whole one is where the run goes on, bit for bit.

A checkpoint holds the state after some steps, what the run was found to be worth so far, what run it is, and a
checksum. Orbax writes it under a temporary name, so a kill at any moment leaves the earlier ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune.files import checksum, parse_json, to_text
from jaxprune.structure.model_state import FlatState, array_content, dotted
from jaxprune.training.checkpoint import DamagedNetworkError, check_room, quiet, this_process
from jaxprune.training.loop import StepState

_NUM_KEPT = 2
"""Checkpoints that are kept: if the newest is damaged, there is one before."""

Tree = dict[str, dict[str, Any]]
"""Part of the state (weights, optimiser, average) -> name -> array, as it is stored."""


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      num_done: steps that were done.
      state: the state after them, in NumPy arrays.
      history: plain data that was saved with it.
    """

    num_done: int
    state: StepState
    history: list[Any]


class RunCheckpoints:
    """The checkpoints of one training run in a folder, the newest two.

    Args:
      folder: created if it is not there.
      identity: name -> plain data that tells this run from others: network, recipe, data.
      like: a state of the run, or its shapes.
      is_alone: whether this process alone trains and saves; otherwise all processes of `jax.distributed` do together.

    Raises:
      OSError: if there is too little room on the disk.
      ValueError: if the folder holds checkpoints of another run; names what differs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: Mapping[str, Any],
        like: StepState,
        *,
        is_alone: bool = True,
    ) -> None:
        import orbax.checkpoint as ocp

        self.folder = FilePath(folder).resolve()
        self._identity: Any = parse_json(to_text(dict(identity)))  # as it comes back from a checkpoint
        self._like = like
        self.folder.mkdir(parents=True, exist_ok=True)
        self._is_one_of_several = is_alone and jax.process_count() > 1
        if is_alone or jax.process_index() == 0:
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
            num_there = sum(entry.name.isdigit() for entry in self.folder.iterdir())
            check_room(self.folder, (_NUM_KEPT + 1 - min(num_there, _NUM_KEPT)) * size)
        processes = this_process() if self._is_one_of_several else ocp.options.MultiprocessingOptions()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(_NUM_KEPT),
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=processes,
            # Orbax's marks of saves in the background have the same names in all processes.
            enable_async_checkpointing=not self._is_one_of_several,
        )
        types = {"type_handler_registry": _types_written_here()} if self._is_one_of_several else {}
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=processes, **types),
            "record": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until the last checkpoint is on the disk."""
        self._manager.close()

    @property
    def newest(self) -> int | None:
        """Steps that were done at the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def restore(self) -> Restored | None:
        """Reads the newest checkpoint that is whole; damaged ones after it are removed, with a warning.

        Returns:
          Its content, or None if there are no checkpoints.

        Raises:
          ValueError: if a checkpoint is of another run, or all are damaged.
        """
        damaged: dict[int, str] = {}
        for num_done in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(num_done)
            except DamagedNetworkError as error:
                damaged[num_done] = str(error)
                continue
            for step, reason in damaged.items():
                warnings.warn(
                    f"The checkpoint after {step} steps in {self.folder} is damaged: {reason}. "
                    f"It is removed, and the run goes on from the one after {num_done} steps."
                )
                self._manager.delete(step)
            return restored
        if damaged:
            reasons = "; ".join(f"after {step} steps, {reason}" for step, reason in damaged.items())
            raise ValueError(
                f"going on needs a whole checkpoint, got {self.folder} where all are damaged: {reasons}. "
                "Remove this folder to start the run anew, or restore it from a copy."
            )
        return None

    def save(self, num_done: int, state: StepState, history: Sequence[Any]) -> None:
        """Saves a state; returns as soon as it is copied, while files are written.

        Args:
          num_done: steps that were done.
          state: the state after them, replicated on all devices.
          history: plain data to save with it.

        Raises:
          OSError: if an earlier checkpoint could not be written.
        """
        import orbax.checkpoint as ocp

        # Copies: the next step takes the memory of the state.
        tree = _as_tree(jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), state))
        record = {"identity": self._identity, "history": list(history)}
        record["checksum"] = _checksum(tree, record["identity"], record["history"])
        stored = jax.tree.map(_seen_by_all, tree) if self._is_one_of_several else tree
        arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(stored), record=ocp.args.JsonSave(record))
        self._manager.save(num_done, args=arguments, force=True)

    def wait(self) -> None:
        """Waits until everything saved is on the disk."""
        self._manager.wait_until_finished()

    def is_preempted(self, num_done: int) -> bool:
        """Tells, on all processes at the same step, whether one of them was told to stop; needs `jax.distributed`."""
        return self._manager.reached_preemption(num_done)

    def _read(self, num_done: int) -> Restored:
        """Reads one checkpoint.

        Raises:
          DamagedNetworkError: if it cannot be read or was changed since.
          ValueError: if it is of another run.
        """
        import orbax.checkpoint as ocp

        try:
            record = self._manager.restore(num_done, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
            stored, history, expected = (record["record"][k] for k in ("identity", "history", "checksum"))
        except MemoryError:
            raise
        except Exception as error:  # damaged files raise all kinds of errors inside Orbax and below
            raise DamagedNetworkError("its record cannot be read") from error
        self._check_identity(stored)
        like = _as_tree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._like))
        try:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=as_numpy))
            with quiet():
                tree = self._manager.restore(num_done, args=arguments)["state"]
        except MemoryError:
            raise
        except Exception as error:
            raise DamagedNetworkError("its arrays cannot be read") from error
        if _checksum(tree, stored, history) != expected:
            raise DamagedNetworkError("its content has changed since it was saved (its checksum differs)")
        return Restored(num_done, _from_tree(tree, self._like), history)

    def _check_identity(self, stored: Mapping[str, Any]) -> None:
        """Raises if a checkpoint is of another run."""
        differences = [
            f"{name} was {stored.get(name)!r} and is {self._identity.get(name)!r}"
            for name in sorted(stored.keys() | self._identity.keys())
            if stored.get(name) != self._identity.get(name)
        ]
        if differences:
            raise ValueError(
                f"checkpoint_dir needs to be empty or hold checkpoints of this run, got {self.folder} of another "
                f"one: {'; '.join(differences)}. Choose another folder, or remove this one to start anew."
            )


def _types_written_here() -> Any:  # noqa: ANN401 - of Orbax
    """How Orbax writes arrays of `_seen_by_all`, and reads them as NumPy arrays.

    It writes NumPy arrays by process 0 alone, and refuses arrays of JAX that only this process has.
    """
    from orbax.checkpoint import type_handlers

    here = jax.process_index()
    arrays = type_handlers.ArrayHandler(
        primary_host=here, replica_id=None, use_replica_parallel=False, enable_write_sharding_file=False
    )
    return type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, type_handlers.NumpyHandler())
    )


def _seen_by_all(array: np.ndarray) -> jax.Array:
    """An array as one that all processes would have, of which each knows its own copy."""
    first = {device.process_index: device for device in reversed(jax.devices())}
    everywhere = NamedSharding(Mesh(np.array(list(first.values())), ("process",)), PartitionSpec())
    copy = jax.device_put(array, first[jax.process_index()])
    return jax.make_array_from_single_device_arrays(array.shape, everywhere, [copy])


def _as_tree(state: StepState) -> Tree:
    """Names all arrays of a state, as Orbax stores names and no paths."""
    tree: Tree = {
        "weights": {dotted(path): array for path, array in state.weights.items()},
        "optimiser": {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.optimiser))},
    }
    if state.average is not None:
        tree["average"] = {dotted(path): array for path, array in state.average.items()}
    return {part: named for part, named in tree.items() if named}


def _from_tree(tree: Tree, like: StepState) -> StepState:
    """Puts a state together again."""

    def flat(part: str, paths: FlatState) -> FlatState:
        return {path: tree[part][dotted(path)] for path in paths}

    leaves = [tree["optimiser"][str(i)] for i in range(len(jax.tree.leaves(like.optimiser)))]
    return StepState(
        flat("weights", like.weights),
        jax.tree.unflatten(jax.tree.structure(like.optimiser), leaves),
        None if like.average is None else flat("average", like.average),
    )


def _checksum(tree: Tree, *plain: object) -> str:
    """A hash over names, types, shapes and bits of all arrays, and over plain data."""
    arrays = [
        [part, name, *map(str, array_content(np.asarray(array)))]
        for part, named in sorted(tree.items())
        for name, array in sorted(named.items())
    ]
    return checksum([arrays, *plain])
