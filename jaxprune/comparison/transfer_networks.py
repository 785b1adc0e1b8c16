"""The networks of a transfer: made fresh, read, cut by their plans, and checked to be those that were measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxprune.comparison.network_trainings import whole_number
from jaxprune.comparison.record_folder import REMEDY
from jaxprune.comparison.stored_networks import read_network, read_plan
from jaxprune.comparison.training_checks import read_checkpoint
from jaxprune.comparison.transfer_folder import KnownTransfer
from jaxprune.comparison.transfer_plans import Planned
from jaxprune.comparison.transfer_records import DENSE
from jaxprune.comparison.transfer_setup import TransferSetup
from jaxprune.files import RunDirectoryError, explained
from jaxprune.keys import derive
from jaxprune.pruning.planning import Plan
from jaxprune.pruning.slimming import slim
from jaxprune.search.task_problem import kept_digest
from jaxprune.structure.model_state import FlatState, dotted, merge_model, split_model
from jaxprune.structure.model_state import Path as ArrayPath
from jaxprune.training.checkpoint import save_network

_AGAIN = "give the same command again"


class TransferNetworks:
    """Networks and plans in the folder of a transfer.

    Args:
      setup: what is done.
      folder: where they are, and what is noted of them.
    """

    def __init__(self, setup: TransferSetup, folder: KnownTransfer) -> None:
        self.setup, self.folder = setup, folder
        self._loaded: tuple[int, nnx.Module] | None = None

    def key(self, base: int) -> jax.Array:
        """Returns the key that everything random about a base follows from.

        Args:
          base: its number.
        """
        return derive(self._start, "transfer", base)

    def fresh(self, base: int, purpose: str) -> nnx.Module:
        """Makes a network with fresh weights.

        Args:
          base: number of the base network.
          purpose: what it is for.
        """
        return self.setup.make_network(whole_number(derive(self.key(base), purpose), 31))

    def base(self, base: int) -> nnx.Module:
        """Returns a base network.

        Args:
          base: its number.

        Raises:
          RunDirectoryError: if it is not the one that was measured.
        """
        if self._loaded is None or self._loaded[0] != base:
            self._loaded = (base, self._read_base(base))
        return self._loaded[1]

    def given_base(self, base: int) -> nnx.Module:
        """Makes a base network of weights that were given.

        Args:
          base: its number.
        """
        graph, _, rest = split_model(self.setup.make_network(0))
        settings, data = self.setup.settings, self.setup.data
        weights = read_checkpoint(self._path_of(base), settings.network, data, settings.data)
        return merge_model(graph, weights, rest)

    def pruned(self, base: int, name: str) -> nnx.Module:
        """Returns a network as it is before fine-tuning.

        Args:
          base: number of the base network.
          name: of the row; "scratch" is the slim network with fresh weights.
        """
        plan = self.plan(base, name)
        if name == "scratch":
            return rescaled(slim(self.fresh(base, name), plan), self.setup.structure.shapes)
        return slim(self.base(base), plan)

    def finetuned(self, base: int, name: str) -> nnx.Module:
        """Reads a network as it is after fine-tuning.

        Args:
          base: number of the base network.
          name: of the row.

        Raises:
          RunDirectoryError: if it is missing or damaged.
        """
        like = slim(self.setup.make_network(0), self.plan(base, name))
        return self._read(self.folder.network(base, name), like, base, name)

    def save(self, base: int, name: str, weights: FlatState) -> None:
        """Stores a trained network.

        Args:
          base: number of the base network.
          name: of the row.
          weights: path -> array.

        Raises:
          RunDirectoryError: if it cannot be written.
        """
        place = self.folder.base(base) if name == DENSE else self.folder.network(base, name)
        with explained(f"store {place}", again=_AGAIN, place="folder"):
            save_network(place, weights, {}, self._identity(base, name))

    def save_plan(self, base: int, name: str, planned: Planned) -> dict[str, Any]:
        """Writes a plan beside where its network will be.

        Args:
          base: number of the base network.
          name: of the row.
          planned: the plan.

        Returns:
          What to note of it.

        Raises:
          RunDirectoryError: if it cannot be written.
        """
        path = self.folder.plan(base, name)
        with explained(f"write {path}", again=_AGAIN, place="folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            planned.plan.save(path)
        digest, groups = kept_digest(planned.plan.to_kept()), list(planned.fallback_groups)
        return {"base": base, "name": name, "kept_digest": digest, "fallback_groups": groups}

    def plan(self, base: int, name: str) -> Plan:
        """Reads the plan of a row.

        Args:
          base: number of the base network.
          name: of the row.

        Raises:
          RunDirectoryError: if it is not the one that was noted.
        """
        return read_plan(self.folder.plan(base, name), self.folder.planned[base, name].kept_digest)

    def _read_base(self, base: int) -> nnx.Module:
        """Reads a base network, which has to be the one that was measured."""
        if self.setup.settings.base_recipe is not None:
            return self._read(self.folder.base(base), self.setup.make_network(0), base, DENSE)
        model = self.given_base(base)
        if weights_digest(split_model(model)[1]) != self.folder.rows[base, DENSE].digest:
            raise RunDirectoryError(
                f"base {base} needs the weights that the transfer was started with, but {self._path_of(base)} holds "
                f"others now. {REMEDY}"
            )
        return model

    def _read(self, path: Path, like: nnx.Module, base: int, name: str) -> nnx.Module:
        """Reads a network that was stored."""
        return read_network(path, like, self._identity(base, name))

    def _path_of(self, base: int) -> str:
        """The checkpoint of a base network that was given."""
        weights = self.setup.settings.weights
        return weights[base % len(weights)]

    @cached_property
    def _start(self) -> jax.Array:
        """The key of the seed."""
        return jax.random.key(self.setup.settings.seed)

    def _identity(self, base: int, name: str) -> str:
        """What a network is, as it is written into its file."""
        settings = self.setup.settings
        return f"transfer to {settings.network} on {settings.data}, base {base}, {name}, seed {settings.seed}"


def rescaled(model: nnx.Module, full_shapes: Mapping[ArrayPath, tuple[int, ...]]) -> nnx.Module:
    """Returns a slice of a fresh network with the scale of kernels that a fresh slim network has.

    Args:
      model: a slim network, cut from one with fresh weights.
      full_shapes: path -> shape of the array before it was cut.
    """
    graph, weights, rest = split_model(model)
    scaled = {
        path: jax.device_put(np.asarray(array) * sqrt(prod(full_shapes[path][:-1]) / prod(array.shape[:-1])))
        if array.ndim >= 2 and path in full_shapes
        else array
        for path, array in weights.items()
    }
    return merge_model(graph, scaled, rest)


def weights_digest(weights: FlatState) -> str:
    """Computes a hash over names, types, shapes and bits of a network's arrays.

    Args:
      weights: path -> array.

    Example:
      >>> weights_digest({("kernel",): np.zeros(2)}) == weights_digest({("kernel",): np.ones(2)})
      False
    """
    digest = hashlib.sha256()
    for path in sorted(weights, key=dotted):
        array = np.ascontiguousarray(weights[path])
        digest.update(f"{dotted(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
