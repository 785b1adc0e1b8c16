"""Reads networks and plans of a run back, which have to be those that it stored."""

from __future__ import annotations

from pathlib import Path

from flax import nnx

from jaxprune.comparison.record_folder import REMEDY
from jaxprune.files import RunDirectoryError
from jaxprune.pruning.planning import Plan
from jaxprune.search.task_problem import kept_digest
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.training.checkpoint import DamagedNetworkError, load_network


def read_network(path: Path, like: nnx.Module, identity: str) -> nnx.Module:
    """Reads a network that was stored.

    Args:
      path: its checkpoint.
      like: a network of the same shapes.
      identity: what the network is, as it was written into the file.

    Raises:
      RunDirectoryError: if it is missing, damaged, or another network.
    """
    graph, weights, rest = split_model(like)
    try:
        loaded = load_network(path, weights, identity)
    except DamagedNetworkError as error:
        raise RunDirectoryError(f"{path} needs the network that was stored, but {error}. {REMEDY}") from error
    if loaded is None:
        raise RunDirectoryError(f"{path} needs the network that was stored, got nothing there. {REMEDY}")
    return merge_model(graph, loaded[0], rest)


def read_plan(path: Path, digest: str) -> Plan:
    """Reads a plan that was stored.

    Args:
      path: its file.
      digest: of its kept channels, as it was noted.

    Raises:
      RunDirectoryError: if it is missing, damaged, or keeps other channels.
    """
    try:
        plan = Plan.load(path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} needs to be a plan, but it is missing or damaged ({error}). {REMEDY}"
        ) from error
    if kept_digest(plan.to_kept()) != digest:
        raise RunDirectoryError(f"{path} needs the plan that was made, but it was changed since. {REMEDY}")
    return plan
