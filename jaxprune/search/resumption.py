"""Whether a run may go on with the tasks of today, and in words what has changed if it may not.

A run notes what the fingerprints of its tasks are made of, and the versions of the libraries it was started with. A run
of an earlier version, which notes neither, goes on if its fingerprints are those that the earlier version would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import numpy as np
import optax

from jaxprune._version import __version__
from jaxprune.search.problem import BatchedProblem, IdentifiedProblem, Problem

_LIBRARIES = {"jaxprune": __version__} | {
    library.__name__: library.__version__ for library in (jax, flax, optax, np)
}

ABSENT = "absent"
"""Stands for a setting that one of two runs does not have."""


def origin_of(problem: Problem) -> dict[str, Any]:
    """Returns what a run of a problem is made of, for its config.json: identities of tasks, and versions.

    Args:
      problem: what the run searches on.
    """
    identities = problem.identities if isinstance(problem, IdentifiedProblem) else {}
    return {"tasks": {name: dict(identity) for name, identity in identities.items()}, "versions": _LIBRARIES}


def agree_on_names(
    document: Mapping[str, Any], existing: Mapping[str, Any], problem: Problem
) -> dict[str, Any]:
    """Returns the config.json of today as a run that exists would have it, so that only what matters is different.

    Args:
      document: the config.json that the run would get today.
      existing: the one that it has.
      problem: what the run searches on.

    Returns:
      The document with the fingerprints by which the run knows the same tasks, and with the versions of its start,
      which are none for a run that did not note them.
    """
    versions = (existing.get("origin") or {}).get("versions", {})
    agreed = {**document, "origin": {**document["origin"], "versions": versions}}
    known = {name: task["fingerprint"] for name, task in _tasks(existing).items() if "fingerprint" in task}
    if isinstance(problem, IdentifiedProblem):
        agreed["tasks"] = {
            name: task | {"fingerprint": known[name]}
            if name in known
            and (
                _origins(existing).get(name) == _origins(document)[name]
                or problem.is_known_as(name, known[name])
            )
            else task
            for name, task in _tasks(document).items()
        }
    return agreed


def with_batching(existing: Mapping[str, Any], problem: Problem) -> Mapping[str, Any]:
    """Returns the config.json of a run with how its members are batched, which earlier versions did not note.

    Args:
      existing: the config.json of the run.
      problem: what the run searches on.
    """
    if "batching" in existing or not isinstance(problem, BatchedProblem):
        return existing
    return {**existing, "batching": problem.earlier_batching}


def task_changes(existing: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """Says in words what has changed about the tasks of a run.

    Args:
      existing: the config.json of the run.
      document: the one that it would get today.

    Returns:
      A clause for each change.
    """
    changes: list[str] = []
    for name in sorted(_tasks(existing).keys() & _tasks(document).keys()):
        before, now = (_tasks(config)[name].get("fingerprint", "") for config in (existing, document))
        if before == now:
            continue
        old, new = (_origins(config).get(name) for config in (existing, document))
        if old is None and new is None:
            changes.append(f"tasks.{name}.fingerprint was {before!r} and is now {now!r}")
        elif old is None or new is None:
            changes.append(
                f"the data, network, schedule or recipe of task {name} is another, or the version of JAX (the run is "
                "of an older jaxprune, which did not note these)"
            )
        else:
            changes += _identity_changes(name, old, new, _version_changes(existing))
    return changes


def version_notice(existing: Mapping[str, Any]) -> str:
    """Says with which versions of libraries a run was started, if others are installed now; "" if not."""
    changes = _version_changes(existing)
    if not changes:
        return ""
    return (
        f"Libraries have changed since this run was started ({', '.join(changes)}). Networks that are trained from now "
        "on may differ from what they would have been."
    )


def _identity_changes(
    task: str, old: Mapping[str, Any], new: Mapping[str, Any], versions: list[str]
) -> list[str]:
    """What has changed about one task."""
    cause = f" ({', '.join(versions)}, which may be why)" if versions else ""
    changes = []
    if old.get("data") != new.get("data"):
        changes.append(f"the training or validation data of task {task} are others")
    if old.get("network") != new.get("network"):
        changes.append(f"the network of task {task} is another{cause}")
    return changes + [
        f"{name} of task {task} was {before!r} and is now {now!r}"
        for name, before, now in differences(old.get("settings", {}), new.get("settings", {}))
    ]


def _version_changes(existing: Mapping[str, Any]) -> list[str]:
    """Which libraries have another version than at the start of a run."""
    origin = existing.get("origin") or {}
    return [
        f"{name} was {version} and is now {_LIBRARIES[name]}"
        for name, version in origin.get("versions", {}).items()
        if name in _LIBRARIES and version != _LIBRARIES[name]
    ]


def _tasks(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("tasks") or {}


def _origins(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return (config.get("origin") or {}).get("tasks") or {}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    """Yields each setting that differs between two nested dictionaries: dotted name, first value, second value.

    A value that is not there is `ABSENT`.

    Example:
      >>> list(differences({"config": {"seed": 1}, "format": 1}, {"config": {"seed": 2}, "format": 1}))
      [('config.seed', 1, 2)]
    """
    values = _flat(first), _flat(second)
    for name in sorted(values[0].keys() | values[1].keys()):
        one, other = (flat.get(name, ABSENT) for flat in values)
        if one != other:
            yield name, one, other


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries into one with dotted names."""
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values
