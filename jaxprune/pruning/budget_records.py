"""What a plan was asked for and what it met, as plain data that is saved with the plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax
import jax

from jaxprune._version import __version__
from jaxprune.pruning.plan_checks import shown
from jaxprune.types import is_whole

Amounts = float | Mapping[str, float]
"""One number for the whole network, or one for each group or pattern of groups."""

BUDGETS = ("kept_fraction", "kept_counts", "macs_fraction", "params_fraction", "latency_fraction")
"""Names of budgets, which are the keywords of `plan`."""


@dataclass(frozen=True)
class Budget:
    """A budget that a plan was made for, and what the plan keeps of the full network.

    Example:
      >>> print(Budget("macs_fraction", asked=0.5, met=0.4967))
      macs_fraction: asked 0.5, met 0.4967
      >>> Budget.from_record(Budget("kept_fraction", 0.5, 0.48).to_record()).met
      0.48
    """

    name: str
    """One of `BUDGETS`."""
    asked: Amounts
    """As the caller gave it."""
    met: Amounts
    """What is kept, in the same form; for a pattern, of the groups that it matches."""
    table: tuple[Mapping[str, float], ...] = ()
    """What was measured for a latency: multiply-adds kept, seconds of the slim and of the full network, their ratio."""

    def __str__(self) -> str:
        return f"{self.name}: asked {_text(self.asked)}, met {_text(self.met)}"

    def to_record(self) -> dict[str, Any]:
        """Returns the budget as JSON can hold it."""
        plain = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in (("name", self.name), ("asked", self.asked), ("met", self.met))
        }
        return plain | ({"table": [dict(row) for row in self.table]} if self.table else {})

    @classmethod
    def from_record(cls, record: object) -> Budget:
        """Returns the budget that `to_record` wrote.

        Raises:
          ValueError: if it is none.
        """
        if not isinstance(record, dict) or not {"name", "asked", "met"} <= record.keys() <= {
            *cls.__annotations__
        }:
            raise ValueError(f"budget must have a name, and what was asked and met, got {shown(record)}")
        if record["name"] not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {shown(record['name'])}")
        for name in ("asked", "met"):
            if not _are_amounts(record[name]):
                raise ValueError(f"{name} of a budget must be numbers, got {shown(record[name])}")
        table = record.get("table", [0])
        if "table" in record and not (
            isinstance(table, list)
            and table
            and all(isinstance(row, dict) and _are_amounts(row) for row in table)
        ):
            raise ValueError(f"table of a budget must be rows of numbers, got {shown(table)}")
        return cls(record["name"], record["asked"], record["met"], tuple(record.get("table", ())))


def versions_now() -> dict[str, str]:
    """Returns the versions of jaxprune, JAX and Flax that are running."""
    return {"jaxprune": __version__, "jax": jax.__version__, "flax": flax.__version__}


def kept_digest(kept: Mapping[str, Sequence[int]]) -> str:
    """Returns a digest of the channels that a plan keeps, by which a file tells that they were changed in it.

    Example:
      >>> kept_digest({"conv": (0, 2)}) == kept_digest({"conv": [0, 2]}) != kept_digest({"conv": (0, 1)})
      True
    """
    text = json.dumps([[name, list(channels)] for name, channels in kept.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def origin_problem(record: Mapping[str, Any]) -> str | None:
    """Says in words what is wrong with what the record of a plan tells about its origin.

    Args:
      record: of a plan, with or without budget, metric and versions.

    Returns:
      What was needed and what came; None if nothing is wrong.

    Example:
      >>> origin_problem({"metric": 3})
      'metric must be a text, got 3'
    """
    if "metric" in record and not (isinstance(record["metric"], str) and record["metric"]):
        return f"metric must be a text, got {shown(record['metric'])}"
    versions = record.get("versions", {"": ""})
    if (
        not isinstance(versions, dict)
        or not versions
        or not all(isinstance(each, str) for each in versions.values())
    ):
        return f"versions must be texts by package, got {shown(versions)}"
    if ("budget" in record) != ("kept_digest" in record):
        return "a budget and the digest of the kept channels go together, and one of them is missing"
    if "budget" in record:
        try:
            Budget.from_record(record["budget"])
        except ValueError as error:
            return str(error)
    return None


def digest_problem(record: Mapping[str, Any], kept: Mapping[str, Sequence[int]]) -> str | None:
    """Says in words that the channels of a record are not those that it was saved with; None if they are.

    Args:
      record: of a plan; one without a budget may hold any channels.
      kept: group name -> kept channels, of the record.
    """
    if record.get("kept_digest", digest := kept_digest(kept)) == digest:
        return None
    return (
        "needs the kept channels that the plan was saved with, but they were changed in the file: they need not "
        "meet its budget. Restore the file, or make the plan again."
    )


def _text(amounts: Amounts) -> str:
    """Returns amounts for people, at most four digits."""
    if isinstance(amounts, Mapping):
        return ", ".join(f"{name} {value:.4g}" for name, value in amounts.items())
    return f"{amounts:.4g}"


def _are_amounts(value: object) -> bool:
    """Tells whether a value of a record is a number >= 0, or numbers by name."""
    if isinstance(value, dict):
        return bool(value) and all(_is_amount(each) for each in value.values())
    return _is_amount(value)


def _is_amount(value: object) -> bool:
    """Tells whether a value is a finite number >= 0."""
    return (is_whole(value) or isinstance(value, float)) and math.isfinite(value) and value >= 0
